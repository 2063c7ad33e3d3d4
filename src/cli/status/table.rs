//! The status for people.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use indexmap::IndexMap;

use super::figures;
use crate::queue::storage_letters_list;
use crate::view::{Hold, LaneStatus, Outage, Queues, View, WorkerStatus};
use crate::visible::printable;

/// The status as text.
pub(super) fn text(view: &View) -> String {
    let mut text = format!(
        "{} (PID {}): {}, {} of {} workers ready, start method {}, up {}\n{}",
        view.instance,
        view.pid,
        view.state,
        view.workers_ready,
        view.workers_wanted,
        view.start_method,
        duration(view.uptime_seconds),
        workers(view),
    );
    if let Some(seconds) = view.redis_away_seconds {
        text.push('\n');
        text.push_str(&redis_away(seconds));
    }
    for worker in &view.workers {
        for lane in worker.lanes.iter().filter(|lane| lane.stuck) {
            text.push('\n');
            text.push_str(&stuck(worker, lane));
        }
    }
    for hold in &view.holds {
        text.push('\n');
        text.push_str(&on_hold(hold));
    }
    for outage in &view.outages {
        text.push('\n');
        text.push_str(&deferring(outage, view.queues.as_ref()));
    }
    if let Some(figures) = figures::table(view) {
        text.push_str(&format!("\n{figures}"));
    }
    if let Some(queues) = &view.queues {
        text.push('\n');
        text.push_str(&queue_table(queues));
    }
    text
}

pub(in crate::cli) fn redis_away(seconds: f64) -> String {
    format!("Redis has been away for {}", duration(seconds))
}

/// `On hold for 12 s: storage pg is away (workers 1, 2), chain main waits`
pub(in crate::cli) fn on_hold(hold: &Hold) -> String {
    let workers: Vec<String> = hold.workers.iter().map(usize::to_string).collect();
    let waiting = match &hold.chains[..] {
        [] => String::new(),
        chains => format!(", chain {} waits", chains.join(", ")),
    };
    let line = format!(
        "On hold for {}: {} (workers {}){waiting}",
        duration(hold.seconds as f64),
        hold.fault(),
        workers.join(", ")
    );
    printable(&line).into_owned()
}

/// `Storage pg has been away for 12 s (workers 1, 2): 5 vCons wait in its backlog, chains go on`
pub(in crate::cli) fn deferring(outage: &Outage, queues: Option<&Queues>) -> String {
    let workers: Vec<String> = outage.workers.iter().map(usize::to_string).collect();
    let queue = queues.and_then(|queues| queues.storages.get(&outage.storage));
    let waiting = match queue {
        Some(Some(queue)) => format!("{} vCons wait", queue.backlog),
        _ => "its vCons wait".to_owned(),
    };
    let line = format!(
        "Storage {} has been away for {} (workers {}): {waiting} in its backlog, chains go on",
        outage.storage,
        duration(outage.seconds as f64),
        workers.join(", ")
    );
    printable(&line).into_owned()
}

/// `Stuck: worker 3, lane 2 has worked on 05cec3d4-… for 1 h 2 min`
fn stuck(worker: &WorkerStatus, lane: &LaneStatus) -> String {
    let vcon = lane.vcon.as_deref().unwrap_or("an entry that is no UUID");
    let (number, time) = (worker.worker, duration(lane.seconds));
    format!(
        "Stuck: worker {number}, lane {} has worked on {vcon} for {time}",
        lane.lane
    )
}

fn workers(view: &View) -> Table {
    let mut table = new_table(&[
        "Worker", "PID", "State", "vCon", "Seconds", "Done", "Failed", "Restarts", "Memory",
    ]);
    for worker in &view.workers {
        table.add_row([
            worker.worker.to_string(),
            optional(worker.pid),
            state(worker, view.lanes_per_worker),
            worker.vcon.clone().unwrap_or_default(),
            worker.seconds.map_or(String::new(), |s| format!("{s:.1}")),
            worker.done.to_string(),
            worker.failed.to_string(),
            worker.restarts.to_string(),
            worker.memory_bytes.map_or(String::new(), megabytes),
        ]);
    }
    if let Some(monitor) = &view.monitor {
        let mut row = vec![
            "monitor".to_owned(),
            optional(monitor.pid),
            monitor.state.clone(),
        ];
        row.resize(8, String::new());
        row.push(monitor.memory_bytes.map_or(String::new(), megabytes));
        table.add_row(row);
    }
    for column in [0, 1, 4, 5, 6, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(in crate::cli) fn state(worker: &WorkerStatus, lanes: usize) -> String {
    match worker.restart_in_seconds {
        Some(seconds) => format!("{} in {seconds:.1} s", worker.state),
        None if lanes > 1 && !worker.lanes.is_empty() => {
            format!("{} {}/{lanes}", worker.state, worker.lanes.len())
        }
        None => worker.state.clone(),
    }
}

/// What storages do not have: list, kind and length, for those only that miss something.
pub(in crate::cli) fn storage_rows(
    queues: &Queues,
) -> impl Iterator<Item = (String, &'static str, Option<u64>)> + '_ {
    queues.storages.iter().flat_map(|(name, queue)| {
        let list = || storage_letters_list(name);
        let row = |kind, length| (length > 0).then(|| (list(), kind, Some(length)));
        match queue {
            None => [Some((list(), "dead letters", None)), None],
            Some(queue) => [
                row("dead letters", queue.dead_letters),
                row("backlog", queue.backlog),
            ],
        }
        .into_iter()
        .flatten()
    })
}

fn queue_table(queues: &Queues) -> String {
    if let Some(error) = &queues.error {
        return format!("The lists are not known: {}", printable(error));
    }
    let mut table = new_table(&["List", "Kind", "Waiting"]);
    let mut add = |kind: &str, lists: &IndexMap<String, Option<u64>>| {
        for (name, length) in lists {
            let length = length.map_or("not a list".to_owned(), |length| length.to_string());
            table.add_row([name.clone(), kind.to_owned(), length]);
        }
    };
    add("ingress", &queues.ingress);
    add("egress", &queues.egress);
    add("dead letters", &queues.dead_letters);
    for (name, kind, length) in storage_rows(queues) {
        let length = length.map_or("not a list".to_owned(), |length| length.to_string());
        table.add_row([name, kind.to_owned(), length]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

pub(super) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

fn optional(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| pid.to_string())
}

pub(in crate::cli) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / f64::from(1 << 20))
}

/// `3 d 4 h`, `5 min 6 s`: the two largest units.
pub(in crate::cli) fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_have_their_two_largest_units() {
        let shown = [5.9, 65.0, 3661.0, 90_061.0].map(duration);
        assert_eq!(shown, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
