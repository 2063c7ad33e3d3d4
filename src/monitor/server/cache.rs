//! Responses that take time to make: `/readyz`, `/status`, `/history`, `/metrics`.
//!
//! One thread makes them: it reads the scoreboard, and asks the system and Redis. Each response serves every client
//! for a second, and Redis is asked at most once in that time, over one connection, however many clients ask. A
//! client waits for its response until a limit of its own, however long Redis takes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::exposition::ExpositionFormat;
use super::health;
use super::history::History;
use super::metrics::{self, MetricInputs};
use super::response::{Response, StatusCode};
use crate::config::Plan;
use crate::monitor::followers::StatsByFollower;
use crate::queue::{Lengths, Server};
use crate::scoreboard::Snapshot;
use crate::view::{self, GroupCache, ListNames, Queues, View};
use crate::visible::{printable, printable_lines, visible_json};

/// How long a response serves every client that asks.
const FRESH: Duration = Duration::from_secs(1);

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// The most clients that wait for responses. Others are told at once that there are too many.
pub(super) const MOST_WAITING: usize = 32;

/// What a response of the cache is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// Whether the daemon would take on work.
    Ready,
    /// What `conserver status --json --queues` prints.
    Status,
    /// The figures of the last hour.
    History,
    /// Every metric.
    Metrics(ExpositionFormat),
}

impl Topic {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 6] = [
        Self::Ready,
        Self::Status,
        Self::History,
        Self::Metrics(ExpositionFormat::Classic),
        Self::Metrics(ExpositionFormat::OpenMetrics),
        Self::Metrics(ExpositionFormat::Protobuf),
    ];

    /// Its index among all of them.
    fn number(self) -> usize {
        match self {
            Self::Ready => 0,
            Self::Status => 1,
            Self::History => 2,
            Self::Metrics(ExpositionFormat::Classic) => 3,
            Self::Metrics(ExpositionFormat::OpenMetrics) => 4,
            Self::Metrics(ExpositionFormat::Protobuf) => 5,
        }
    }

    /// How long a client waits for it.
    fn limit(self) -> Duration {
        match self {
            // Probes wait for a second.
            Self::Ready => Duration::from_millis(700),
            Self::Status | Self::History | Self::Metrics(_) => Duration::from_secs(5),
        }
    }

    /// What a client is told after that.
    fn why_not_in_time(self) -> &'static str {
        match self {
            Self::Ready => "Redis has not answered yet",
            Self::Status | Self::History | Self::Metrics(_) => "this is not known yet",
        }
    }
}

/// The responses, shared by the clients' threads and the thread that makes them.
pub(super) struct ResponseCache {
    state: Mutex<CacheState>,
    changed: Condvar,
    /// Takes each topic once, until its response is there.
    orders: Sender<Topic>,
}

#[derive(Default)]
struct CacheState {
    entries: [CacheEntry; Topic::ALL.len()],
    /// Clients that wait.
    waiting: usize,
}

#[derive(Default)]
struct CacheEntry {
    /// The last response, and when it was made.
    last: Option<(Instant, Arc<Response>)>,
    /// Whether the next one is being made.
    is_ordered: bool,
}

impl CacheState {
    /// The response of a topic, unless it was made before `since`.
    fn made_since(&self, topic: Topic, since: Option<Instant>) -> Option<Arc<Response>> {
        let (made, response) = self.entries[topic.number()].last.as_ref()?;
        let is_new = since.is_none_or(|since| *made >= since);
        is_new.then(|| Arc::clone(response))
    }
}

impl ResponseCache {
    /// An empty cache, and the topics that clients order.
    fn new() -> (Self, Receiver<Topic>) {
        // Each topic is ordered at most once at a time.
        let (orders, ordered) = bounded(Topic::ALL.len());
        let cache = Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            orders,
        };
        (cache, ordered)
    }

    /// A cache whose responses `maker` makes in a thread, which lives as long as the process.
    pub fn start(mut maker: ResponseMaker) -> io::Result<Arc<Self>> {
        let (cache, ordered) = Self::new();
        let cache = Arc::new(cache);
        let filled = Arc::clone(&cache);
        let work = move || {
            for topic in ordered {
                filled.put(topic, maker.make(topic));
            }
        };
        let name = "responses".to_owned();
        thread::Builder::new().name(name).spawn(work)?;
        Ok(cache)
    }

    /// The response of a topic, not older than a second; waits for it until the topic's limit.
    pub fn get(&self, topic: Topic) -> Arc<Response> {
        let asked = Instant::now();
        let mut state = self.lock();
        if let Some(response) = state.made_since(topic, asked.checked_sub(FRESH)) {
            return response;
        }
        if state.waiting >= MOST_WAITING {
            let why = "too many clients wait for this";
            return Arc::new(Response::text(StatusCode::Unavailable, why));
        }
        self.order_from(&mut state, topic);
        state.waiting += 1;
        let is_old = |state: &mut CacheState| state.made_since(topic, Some(asked)).is_none();
        let waited = (self.changed).wait_timeout_while(state, topic.limit(), is_old);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.made_since(topic, Some(asked)).unwrap_or_else(|| {
            let why = topic.why_not_in_time();
            Arc::new(Response::text(StatusCode::Unavailable, why))
        })
    }

    /// Has a response made, without waiting for it.
    pub fn order(&self, topic: Topic) {
        self.order_from(&mut self.lock(), topic);
    }

    fn order_from(&self, state: &mut CacheState, topic: Topic) {
        let entry = &mut state.entries[topic.number()];
        if !entry.is_ordered {
            entry.is_ordered = self.orders.try_send(topic).is_ok();
        }
    }

    fn put(&self, topic: Topic, response: Response) {
        self.lock().entries[topic.number()] = CacheEntry {
            last: Some((Instant::now(), Arc::new(response))),
            is_ordered: false,
        };
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        // No change of the state is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the responses.
pub(super) struct ResponseMaker {
    board: PathBuf,
    lengths: Lengths,
    /// Whether the last heartbeat reached Redis.
    has_heartbeat: Arc<AtomicBool>,
    followers: StatsByFollower,
    /// The configuration in force, and its number.
    plan: Option<(u64, Plan)>,
    /// The lengths of the queues, and when Redis was asked for them.
    queues: Option<(Instant, Queues)>,
    /// The dead letters in groups.
    groups: GroupCache,
    /// When the supervisor was started, in seconds since 1970: computed once, because clocks drift.
    started: Option<f64>,
    history: History,
}

impl ResponseMaker {
    pub fn new(
        board: &Path,
        server: &Server,
        has_heartbeat: Arc<AtomicBool>,
        followers: StatsByFollower,
    ) -> Self {
        Self {
            board: board.to_owned(),
            lengths: Lengths::new(server.clone(), LIMIT),
            has_heartbeat,
            followers,
            plan: None,
            queues: None,
            groups: GroupCache::default(),
            started: None,
            history: History::default(),
        }
    }

    fn make(&mut self, topic: Topic) -> Response {
        let snapshot = match Snapshot::take(&self.board) {
            Ok(snapshot) => snapshot,
            Err(error) => return Response::text(StatusCode::Unavailable, &error.to_string()),
        };
        self.follow_configuration(&snapshot);
        let mut queues = self.ask_queues();
        if topic == Topic::Status {
            self.add_groups(&mut queues);
        }
        let plan = self.plan.as_ref().map(|(_, plan)| plan);
        match topic {
            Topic::Ready => {
                let redis = queues.error.as_deref().map_or(Ok(()), Err);
                let holds = view::holds(&snapshot, plan);
                let has_heartbeat = self.has_heartbeat.load(Ordering::Relaxed);
                verdict(health::readiness(
                    snapshot.header.phase,
                    &holds,
                    &view::paused(&snapshot).unwrap_or_default(),
                    redis,
                    has_heartbeat,
                ))
            }
            Topic::Status => {
                let view = View::new(&snapshot, plan, Some(queues));
                match serde_json::to_string(&view) {
                    Ok(json) => {
                        let json = visible_json(&json) + "\n";
                        Response::new(StatusCode::Ok, "application/json", &json)
                    }
                    Err(error) => Response::text(StatusCode::Unavailable, &error.to_string()),
                }
            }
            Topic::History => {
                let json = visible_json(&self.history.tell(&snapshot, &queues)) + "\n";
                Response::new(StatusCode::Ok, "application/json", &json)
            }
            Topic::Metrics(format) => {
                let holds = view::holds(&snapshot, plan);
                let waits = view::waits(&snapshot, plan);
                let figures = MetricInputs {
                    started: *self.started.get_or_insert_with(|| started(&snapshot)),
                    memory: metrics::memory(&snapshot),
                    paused: view::paused(&snapshot).unwrap_or_default(),
                    snapshot,
                    queues,
                    holds,
                    waits,
                    followers: self.followers.all(),
                };
                match format.write(figures) {
                    Ok(body) => Response::new(StatusCode::Ok, format.content_type(), body),
                    Err(error) => Response::text(StatusCode::Unavailable, &error.to_string()),
                }
            }
        }
    }

    fn follow_configuration(&mut self, snapshot: &Snapshot) {
        let generation = snapshot.header.config;
        if self.plan.as_ref().is_none_or(|(of, _)| *of != generation) {
            // The former one stays while this one cannot be read.
            if let Ok(plan) = Plan::load_kept(&snapshot.config) {
                self.plan = Some((generation, plan));
                self.queues = None;
            }
        }
    }

    fn ask_queues(&mut self) -> Queues {
        if let Some((at, queues)) = &self.queues
            && at.elapsed() < FRESH
        {
            return queues.clone();
        }
        let plan = self.plan.as_ref().map(|(_, plan)| plan);
        let lists = plan.map(ListNames::of).unwrap_or_default();
        let asked = lists.ask(&mut self.lengths);
        let queues = asked.unwrap_or_else(|error| Queues::unknown(error.to_string()));
        self.queues = Some((Instant::now(), queues.clone()));
        queues
    }

    fn add_groups(&mut self, queues: &mut Queues) {
        if let Some((_, plan)) = &self.plan {
            let lists = ListNames::of(plan);
            lists.add_groups(queues, &mut self.lengths, &mut self.groups);
        }
    }
}

/// When the supervisor was started, in seconds since 1970.
fn started(snapshot: &Snapshot) -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(0, |since| since.as_millis());
    let age = snapshot.taken.saturating_sub(snapshot.header.started);
    now.saturating_sub(age.into()) as f64 / 1e3
}

/// 200 with a text, or 503 with a line for each fault.
pub(super) fn verdict(judged: Result<String, Vec<String>>) -> Response {
    match judged {
        Ok(text) => Response::text(StatusCode::Ok, &printable_lines(&text)),
        Err(faults) => {
            let lines: Vec<_> = faults.iter().map(|fault| printable(fault)).collect();
            Response::text(StatusCode::Unavailable, &lines.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_a_number_of_its_own() {
        let numbers = Topic::ALL.map(Topic::number);
        assert_eq!(numbers, std::array::from_fn(|number| number));
    }

    fn text(line: &str) -> Response {
        Response::text(StatusCode::Ok, line)
    }

    #[test]
    fn a_response_serves_everybody_for_a_second() {
        let (cache, ordered) = ResponseCache::new();
        let made = thread::scope(|scope| {
            let asking: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| cache.get(Topic::Status)))
                .collect();
            assert_eq!(ordered.recv().ok(), Some(Topic::Status));
            while cache.lock().waiting < 3 {
                thread::yield_now();
            }
            cache.put(Topic::Status, text("one"));
            asking
                .into_iter()
                .map(|it| it.join().ok())
                .collect::<Vec<_>>()
        });
        let first = cache.get(Topic::Status);
        assert!(made.iter().all(|it| it.as_deref() == Some(&*first)));
        assert!(ordered.is_empty());
        // A second later, it is made again.
        let old = Instant::now().checked_sub(FRESH);
        cache.lock().entries[Topic::Status.number()].last = old.map(|at| (at, first));
        thread::scope(|scope| {
            let asking = scope.spawn(|| cache.get(Topic::Status));
            assert_eq!(ordered.recv().ok(), Some(Topic::Status));
            cache.put(Topic::Status, text("two"));
            assert!(asking.join().is_ok());
        });
    }

    #[test]
    fn a_client_does_not_wait_for_what_is_not_made_in_time_or_among_too_many() {
        let is_unavailable = |response: Arc<Response>| {
            let head = response.bytes(true);
            assert!(head.starts_with(b"HTTP/1.1 503 "));
        };
        let (cache, ordered) = ResponseCache::new();
        is_unavailable(cache.get(Topic::Ready));
        assert_eq!(ordered.try_recv().ok(), Some(Topic::Ready));
        cache.lock().waiting = MOST_WAITING;
        let start = Instant::now();
        is_unavailable(cache.get(Topic::Status));
        assert!(start.elapsed() < Topic::Status.limit() / 2);
    }
}
