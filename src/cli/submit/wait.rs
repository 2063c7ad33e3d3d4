//! Waiting until vCons that were submitted are done.
//!
//! A vCon is done if it is in no ingress list and no worker has it: its chain has finished or halted,
//! or it is a dead letter. Redis tells all of it, so the daemon may be on any machine.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use super::progress;
use crate::config::{ListName, Plan};
use crate::queue::{Audit, DeadLetters, KeptReason, Letter, Lists, QueueError, Raw, Server};
use crate::settings::Settings;
use crate::vcon::VconId;

/// The pauses between looks.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// So many reasons are asked for at once.
const PORTION: usize = 1000;

/// A look-out for vCons that are submitted after it was made.
pub(super) struct Lookout {
    audit: Audit,
    letters: DeadLetters,
    /// When it was made, by Redis' clock.
    since: f64,
    lists: Vec<ListName>,
}

/// How it ended.
pub(super) struct Outcome {
    /// Those that were not done in time.
    pub undone: usize,
    /// Those that went to a dead letter queue.
    pub dead: Vec<Letter>,
}

impl Lookout {
    /// Prepares to wait for vCons of `list`, and of the ingress lists to which their chains pass them
    /// on, as far as the configuration is known here.
    pub fn new(settings: &Settings, list: &ListName) -> Result<Self, QueueError> {
        let server = Server::new(&settings.redis_url)?;
        let mut lists = vec![list.clone()];
        let mut storages = Vec::new();
        if let Ok(plan) = Plan::load(&settings.config_file) {
            let ingress = plan.chains.iter().flat_map(|chain| &chain.ingress_lists);
            lists.extend(ingress.cloned());
            storages = plan.storages;
        }
        let known = Lists {
            ingress: lists.clone(),
            storages,
            ..Lists::default()
        };
        let audit = Audit::new(
            server.connect("conserver:submit")?,
            &known,
            settings.redis_expiry,
        )?;
        let letters = server.connect("conserver:submit")?;
        let mut letters = DeadLetters::new(letters, settings.redis_expiry);
        let since = letters.now()?;
        Ok(Self {
            audit,
            letters,
            since,
            lists,
        })
    }

    /// Waits until these are done, or the time is over.
    pub fn wait(
        mut self,
        ids: Vec<VconId>,
        timeout: Option<Duration>,
    ) -> Result<Outcome, QueueError> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let bar = progress(ids.len());
        let mut undone: HashSet<VconId> = ids.iter().cloned().collect();
        let all = undone.len();
        let mut pause = SHORTEST;
        loop {
            self.strike_done(&mut undone)?;
            bar.set_position((all - undone.len()) as u64);
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if undone.is_empty() || left.is_some_and(|left| left.is_zero()) {
                break;
            }
            thread::sleep(left.map_or(pause, |left| left.min(pause)));
            pause = (pause * 2).min(LONGEST);
        }
        bar.finish_and_clear();
        let done: Vec<VconId> = ids.into_iter().filter(|id| !undone.contains(id)).collect();
        Ok(Outcome {
            undone: undone.len(),
            dead: self.dead(&done)?,
        })
    }

    fn strike_done(&mut self, undone: &mut HashSet<VconId>) -> Result<(), QueueError> {
        let mut resting = undone.clone();
        self.audit.strike_in_work(&mut resting)?;
        for id in resting {
            // A claim may have been returned to its list between the looks at both.
            if !self.audit.is_in_work(&id)? {
                undone.remove(&id);
            }
        }
        Ok(())
    }

    /// Those that have become dead letters since.
    fn dead(&mut self, done: &[VconId]) -> Result<Vec<Letter>, QueueError> {
        let mut queues = self.letters.lists()?;
        queues.extend(self.lists.iter().map(|list| Raw::new(list.as_str())));
        let mut dead = Vec::new();
        for queue in queues {
            for some in done.chunks(PORTION) {
                let letters = self.letters.known_of(&queue, some)?.into_iter();
                dead.extend(letters.filter(|letter| self.is_new(letter)));
            }
        }
        Ok(dead)
    }

    fn is_new(&self, letter: &Letter) -> bool {
        matches!(&letter.reason, Some(KeptReason::Known { at, .. }) if *at >= self.since)
    }
}
