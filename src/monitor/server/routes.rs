//! What there is to be asked for.

use super::cache::Topic;
use super::response::{Answer, Status};

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether every worker is alive: known at once.
    Health,
    /// Something that has to be read first.
    Reading(Topic),
    /// Metrics, in one of their formats, that have to be read first.
    Metrics,
    /// What people look at.
    Page,
}

/// Every path with what stands there, and what that is in words.
const ROUTES: [(&str, Route, &str); 5] = [
    ("/", Route::Page, "a page that shows what the daemon does"),
    ("/healthz", Route::Health, "200 where all workers are alive"),
    (
        "/readyz",
        Route::Reading(Topic::Ready),
        "200 where Redis answers and no chain is on hold",
    ),
    (
        "/status",
        Route::Reading(Topic::Status),
        "what `conserver status --json --queues` prints",
    ),
    ("/metrics", Route::Metrics, "metrics for Prometheus"),
];

/// What stands at this path.
pub(super) fn find(path: &str) -> Option<Route> {
    let mut routes = ROUTES.iter();
    let found = routes.find(|(known, ..)| *known == path);
    found.map(|(_, route, _)| *route)
}

/// What is answered at any other path: the list of these.
pub(super) fn none() -> Answer {
    let lines = ROUTES.map(|(path, _, words)| format!("{path:<10}{words}"));
    let lines = lines.join("\n");
    Answer::text(
        Status::NotFound,
        &format!("there is nothing here, but:\n{lines}"),
    )
}
