//! The thread for answers that take time: it reads the scoreboard, asks the system and Redis, and
//! writes what it has found.
//!
//! Each topic is read once for everybody who asks within a second, and Redis is asked at most once
//! in that time, over one connection, however many ask.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};

use super::health;
use super::metrics::{self, ExpositionFormat, MetricInputs};
use super::response::{Answer, Status};
use super::waker::Waker;
use crate::config::Plan;
use crate::monitor::followers::StatsByFollower;
use crate::queue::{Lengths, Server};
use crate::scoreboard::Snapshot;
use crate::view::{self, Lists, Queues, View};

/// How long what has been read counts as what is.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// Whether the daemon would take on work.
    Ready,
    /// What `conserver status --json --queues` prints.
    Status,
    /// Every metric.
    Metrics(ExpositionFormat),
}

impl Topic {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Ready,
        Self::Status,
        Self::Metrics(ExpositionFormat::Classic),
        Self::Metrics(ExpositionFormat::OpenMetrics),
    ];

    /// Its place among all of them.
    pub fn number(self) -> usize {
        match self {
            Self::Ready => 0,
            Self::Status => 1,
            Self::Metrics(ExpositionFormat::Classic) => 2,
            Self::Metrics(ExpositionFormat::OpenMetrics) => 3,
        }
    }

    /// How long whoever asks waits for it.
    pub fn patience(self) -> Duration {
        match self {
            // Probes wait for a second.
            Self::Ready => Duration::from_millis(700),
            Self::Status | Self::Metrics(_) => Duration::from_secs(5),
        }
    }

    /// What is answered after that.
    pub fn why_not_in_time(self) -> &'static str {
        match self {
            Self::Ready => "Redis has not answered yet",
            Self::Status | Self::Metrics(_) => "this is not known yet",
        }
    }
}

/// What has been read.
pub(super) struct Reading {
    pub topic: Topic,
    pub answer: Arc<Answer>,
}

/// The two ends at the thread that asks.
pub(super) struct Desk {
    /// Takes what is wanted; each topic once, until its reading is there.
    pub orders: Sender<Topic>,
    /// Brings what has been read.
    pub readings: Receiver<Reading>,
}

/// Reads what is asked for.
pub(super) struct Reader {
    board: PathBuf,
    lengths: Lengths,
    /// Whether this instance could show in Redis, the last time, that it is alive.
    shows_itself: Arc<AtomicBool>,
    stats: StatsByFollower,
    plan: Option<(u64, Plan)>,
    asked: Option<(Instant, Queues)>,
    /// When the supervisor was started, in seconds since 1970: the same whoever asks, while clocks
    /// drift.
    started: Option<f64>,
}

impl Reader {
    pub fn new(
        board: &Path,
        server: &Server,
        shows_itself: Arc<AtomicBool>,
        stats: StatsByFollower,
    ) -> Self {
        Self {
            board: board.to_owned(),
            lengths: Lengths::new(server.clone(), LIMIT),
            shows_itself,
            stats,
            plan: None,
            asked: None,
            started: None,
        }
    }

    /// Starts the thread; it lives until the desk is gone.
    pub fn start(mut self, waker: Waker) -> io::Result<Desk> {
        // No more than one order of each topic is under way.
        let (orders, wanted) = crossbeam_channel::bounded(Topic::ALL.len());
        let (done, readings) = crossbeam_channel::bounded(Topic::ALL.len());
        let work = move || {
            for topic in wanted {
                let answer = Arc::new(self.read(topic));
                if done.send(Reading { topic, answer }).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let name = "readings".to_owned();
        thread::Builder::new().name(name).spawn(work)?;
        Ok(Desk { orders, readings })
    }

    fn read(&mut self, topic: Topic) -> Answer {
        let snapshot = match Snapshot::take(&self.board) {
            Ok(snapshot) => snapshot,
            Err(error) => return Answer::text(Status::Unavailable, &error.to_string()),
        };
        self.follow_configuration(&snapshot);
        let queues = self.queues();
        let plan = self.plan.as_ref().map(|(_, plan)| plan);
        match topic {
            Topic::Ready => {
                let redis = queues.error.as_deref().map_or(Ok(()), Err);
                let holds = view::holds(&snapshot, plan);
                let shows_itself = self.shows_itself.load(Ordering::Relaxed);
                verdict(health::readiness(
                    snapshot.header.phase,
                    &holds,
                    redis,
                    shows_itself,
                ))
            }
            Topic::Status => {
                let view = View::new(&snapshot, plan, Some(queues));
                match serde_json::to_string(&view) {
                    Ok(json) => Answer::new(Status::Ok, "application/json", &(json + "\n")),
                    Err(error) => Answer::text(Status::Unavailable, &error.to_string()),
                }
            }
            Topic::Metrics(format) => {
                let holds = view::holds(&snapshot, plan);
                let figures = MetricInputs {
                    started: *self.started.get_or_insert_with(|| started(&snapshot)),
                    memory: metrics::memory(&snapshot),
                    snapshot,
                    queues,
                    holds,
                    followers: self.stats.all(),
                };
                match format.write(figures) {
                    Ok(text) => Answer::new(Status::Ok, format.content_type(), &text),
                    Err(error) => Answer::text(Status::Unavailable, &error.to_string()),
                }
            }
        }
    }

    fn follow_configuration(&mut self, snapshot: &Snapshot) {
        let generation = snapshot.header.config;
        if self.plan.as_ref().is_none_or(|(of, _)| *of != generation) {
            // The former stays where this one cannot be read at the moment.
            if let Ok(plan) = Plan::load_kept(&snapshot.config) {
                self.plan = Some((generation, plan));
                self.asked = None;
            }
        }
    }

    fn queues(&mut self) -> Queues {
        if let Some((at, queues)) = &self.asked
            && at.elapsed() < FRESH
        {
            return queues.clone();
        }
        let plan = self.plan.as_ref().map(|(_, plan)| plan);
        let lists = plan.map(Lists::of).unwrap_or_default();
        let asked = lists.ask(&mut self.lengths);
        let queues = asked.unwrap_or_else(|error| Queues::unknown(error.to_string()));
        self.asked = Some((Instant::now(), queues.clone()));
        queues
    }
}

/// When the supervisor was started, in seconds since 1970.
fn started(snapshot: &Snapshot) -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(0, |since| since.as_millis());
    let age = snapshot.taken.saturating_sub(snapshot.header.started);
    now.saturating_sub(age.into()) as f64 / 1e3
}

/// Good, or a line for each fault.
pub(super) fn verdict(judged: Result<String, Vec<String>>) -> Answer {
    match judged {
        Ok(line) => Answer::text(Status::Ok, &line),
        Err(faults) => Answer::text(Status::Unavailable, &faults.join("\n")),
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
}
