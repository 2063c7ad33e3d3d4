//! What was seen in the last minute, and what has changed since.

use std::collections::VecDeque;

use crate::view::{Figures, Queues, Seconds, View, WorkerStatus};

/// How far back rates and times go, in seconds.
const RECENT: f64 = 60.0;

/// The same for the throughput of everything together.
const NOW: f64 = 10.0;

/// Views of one daemon, the oldest first.
#[derive(Default)]
pub(super) struct History(VecDeque<View>);

/// What has changed for a chain, link or storage.
pub(super) struct Recent {
    /// What came to its end, in a second; nothing before there are two views.
    pub rate: Option<f64>,
    /// How long it took.
    pub seconds: Seconds,
}

impl History {
    /// Takes note of what was seen.
    pub fn add(&mut self, view: View) {
        if let Some(last) = self.0.back() {
            // Another daemon, which counts from the beginning.
            if last.pid != view.pid || view.uptime_seconds < last.uptime_seconds {
                self.0.clear();
            }
        }
        let from = view.uptime_seconds - RECENT;
        self.0.push_back(view);
        while self
            .0
            .get(1)
            .is_some_and(|next| next.uptime_seconds <= from)
        {
            self.0.pop_front();
        }
    }

    /// What was seen last.
    pub fn now(&self) -> Option<&View> {
        self.0.back()
    }

    /// The last view that is at least so old, else the first.
    fn before(&self, seconds: f64) -> Option<&View> {
        let from = self.now()?.uptime_seconds - seconds;
        let old = self.0.iter().rev().find(|view| view.uptime_seconds <= from);
        old.or(self.0.front())
    }

    /// How much of something there was in a second of late; nothing before there are two views.
    fn pace(&self, seconds: f64, count: impl Fn(&View) -> u64) -> Option<f64> {
        let (now, then) = (self.now()?, self.before(seconds)?);
        let time = now.uptime_seconds - then.uptime_seconds;
        let more = count(now).saturating_sub(count(then));
        (time > 0.0).then(|| more as f64 / time)
    }

    /// vCons done in a second.
    pub fn done(&self) -> Option<f64> {
        self.pace(NOW, |view| view.chains.iter().map(Figures::through).sum())
    }

    /// vCons failed in a second.
    pub fn failed(&self) -> Option<f64> {
        self.pace(NOW, |view| {
            view.chains.iter().map(|chain| chain.failed).sum()
        })
    }

    /// The share of a processor that a worker has used; nothing before it had time to say.
    pub fn cpu(&self, worker: &WorkerStatus) -> Option<f64> {
        let (now, then) = (self.now()?, self.before(RECENT)?);
        let time = now.uptime_seconds - then.uptime_seconds;
        let old = then.workers.iter().find(|it| it.worker == worker.worker)?;
        let used = (worker.cpu_seconds - old.cpu_seconds).max(0.0);
        (time >= NOW).then(|| used / time)
    }

    /// The lengths of the lists a minute ago.
    pub fn queues_before(&self) -> Option<&Queues> {
        self.before(RECENT)?.queues.as_ref()
    }

    /// What has changed for one of those that `all` gives.
    pub fn recent(&self, figures: &Figures, all: impl Fn(&View) -> &[Figures]) -> Recent {
        let old = |view: &View| {
            let old = all(view).iter().find(|it| it.name == figures.name);
            old.map_or((0, Seconds::default()), |old| {
                (old.through(), old.seconds.clone())
            })
        };
        let before = self.before(RECENT).map(old);
        let (_, seconds) = before.unwrap_or_default();
        Recent {
            rate: self.pace(RECENT, |view| old(view).0),
            seconds: figures.seconds.since(&seconds),
        }
    }
}
