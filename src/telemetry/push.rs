//! The monitor's thread that sends metrics: reads the scoreboard and asks Redis each interval, in the time of nobody else.

use std::io;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

use super::collector::Collector;
use super::metrics::{MetricInputs, request};
use super::resource::resource;
use crate::child::Child;
use crate::config::Plan;
use crate::queue::{Lengths, Server};
use crate::scoreboard::{Slot, Snapshot};
use crate::settings::Settings;
use crate::spelling::counted;
use crate::view::ListNames;

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// How long the end of the daemon waits for the last metrics.
const FAREWELL: Duration = Duration::from_millis(300);

/// The log names exports that have failed at most once in this time.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// The running thread.
pub struct PushThread(Receiver<()>);

impl PushThread {
    /// Waits for the last metrics to be sent, once the monitor drains, but not for long.
    pub fn close(self) {
        // The thread closes the channel at its end.
        let _: Result<(), RecvTimeoutError> = self.0.recv_timeout(FAREWELL);
    }
}

/// Starts the thread, if metrics are sent anywhere; it lives until the monitor drains.
///
/// # Errors
/// There is no thread to be had.
pub fn start(
    child: &Child,
    settings: &Settings,
    server: &Server,
) -> io::Result<Option<PushThread>> {
    let telemetry = &settings.telemetry;
    let (Some(url), Some(slot)) = (&telemetry.metrics, child.slot.clone()) else {
        return Ok(None);
    };
    let Some(collector) = Collector::new(url, telemetry) else {
        log::error!("metrics are not sent: the collector's settings cannot be used");
        return Ok(None);
    };
    let push = Push {
        resource: ResourceAttributesWithSchema::from(&resource(telemetry)),
        collector,
        slot,
        lengths: Lengths::new(server.clone(), LIMIT),
        plan: None,
        started: None,
        failed: 0,
        failing_since: None,
        logged: None,
    };
    let (end, ended) = bounded::<()>(0);
    let (draining, interval) = (child.draining.clone(), telemetry.interval);
    let work = move || {
        push.run(&draining, interval);
        drop(end);
    };
    let name = "telemetry".to_owned();
    thread::Builder::new().name(name).spawn(work)?;
    Ok(Some(PushThread(ended)))
}

struct Push {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    slot: Slot,
    lengths: Lengths,
    /// The configuration in force, and its number.
    plan: Option<(u64, Plan)>,
    /// When the supervisor was started, in nanoseconds since 1970: computed once, because clocks drift.
    started: Option<u64>,
    /// Exports that have failed and that the log has not named.
    failed: u64,
    failing_since: Option<Instant>,
    logged: Option<Instant>,
}

impl Push {
    fn run(mut self, draining: &Receiver<()>, interval: Duration) {
        let mut next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let is_over = draining.recv_timeout(left) != Err(RecvTimeoutError::Timeout);
            if is_over && self.failing_since.is_some() {
                return;
            }
            self.export();
            if is_over {
                return;
            }
            // One that took long is not made up for.
            next = (next + interval).max(Instant::now());
        }
    }

    fn export(&mut self) {
        let sent = self.gather_and_send();
        let rejected = self.collector.take_rejected();
        match sent {
            Ok(()) if rejected == 0 => {
                self.slot.count_telemetry_sent(1);
                if let Some(since) = self.failing_since.take() {
                    let url = self.collector.url();
                    log::info!("{url} takes metrics again, after {:.0?}", since.elapsed());
                }
            }
            sent => {
                self.slot.count_telemetry_dropped(1);
                self.failed += 1;
                self.failing_since.get_or_insert_with(Instant::now);
                if self.logged.is_none_or(|at| at.elapsed() >= LOG_PAUSE) {
                    let failed = std::mem::take(&mut self.failed);
                    let why = sent.err().unwrap_or_else(|| self.collector.last_failure());
                    log::warn!("{} of metrics failed: {why}", counted(failed, "export"));
                    self.logged = Some(Instant::now());
                }
            }
        }
    }

    fn gather_and_send(&mut self) -> Result<(), String> {
        let snapshot = Snapshot::take(self.slot.board_path()).map_err(|error| error.to_string())?;
        self.follow_configuration(&snapshot);
        let plan = self.plan.as_ref().map(|(_, plan)| plan);
        let lists = plan.map(ListNames::of).unwrap_or_default();
        // While Redis is away, metrics go without what it alone knows.
        let queues = lists.ask(&mut self.lengths).ok();
        let memory = queues.as_ref().and_then(|_| self.lengths.memory().ok()?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
        let age = snapshot.taken.saturating_sub(snapshot.header.started);
        let started = now.saturating_sub(age.saturating_mul(1_000_000));
        let inputs = MetricInputs {
            plan,
            queues: queues.as_ref(),
            memory,
            started: *self.started.get_or_insert(started),
            now,
            snapshot: &snapshot,
        };
        self.collector.send(&request(&self.resource, &inputs))
    }

    fn follow_configuration(&mut self, snapshot: &Snapshot) {
        let generation = snapshot.header.config;
        if self.plan.as_ref().is_none_or(|(of, _)| *of != generation) {
            // The former one stays while this one cannot be read.
            if let Ok(plan) = Plan::load_kept(&snapshot.config) {
                self.plan = Some((generation, plan));
            }
        }
    }
}
