//! Waiting until vCons that were submitted are done.
//!
//! A vCon is done if it is in no ingress list of a chain in service and no worker has it: its chain has
//! finished or halted, or it is a dead letter. Redis tells all of it, so the daemon may be on any machine.
//! That Redis is away for a while ends nothing.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use super::progress;
use crate::cli::shown::complain;
use crate::config::{ListName, Plan};
use crate::queue::{
    Audit, AuditLists, DeadLetter, DeadLetters, QueueError, Raw, Server, StoredReason,
};
use crate::settings::Settings;
use crate::vcon::VconId;

/// The pauses between looks.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Without a time limit it waits so long for a Redis that is away: a restart that loads many documents, or
/// a failover, takes less.
const LONGEST_AWAY: Duration = Duration::from_secs(300);

/// So many reasons are asked for at once: with reasons as long as they may be, they take some 100 MB.
const PORTION: usize = 200;

/// A look-out for vCons that are submitted after it was made.
pub(super) struct Lookout {
    server: Server,
    known: AuditLists,
    /// Whether the lists are those of a configuration, so that there are no others.
    has_plan: bool,
    least_ttl: u64,
    /// `None` after Redis has failed.
    eyes: Option<Eyes>,
    /// When it was made, by Redis' clock.
    since: f64,
    /// Whether Redis has failed meanwhile.
    was_away: bool,
}

/// What looks, each over a connection of its own.
struct Eyes {
    audit: Audit,
    letters: DeadLetters,
}

/// How it ended.
pub(super) struct Outcome {
    /// Those that were not done in time.
    pub undone: usize,
    /// Those that went to a dead letter queue.
    pub dead: Vec<DeadLetter>,
    /// How many of those that are in no list have no document either, after Redis was away: they have
    /// expired, or Redis has lost them.
    pub gone: usize,
}

impl Lookout {
    /// Prepares to wait for vCons of `list`, and of the ingress lists to which their chains pass them
    /// on, as far as the configuration is known here.
    pub fn new(settings: &Settings, list: &ListName) -> Result<Self, QueueError> {
        let plan = Plan::load(&settings.config_file).ok();
        let mut known = AuditLists {
            ingress: vec![list.clone()],
            ..AuditLists::default()
        };
        let has_plan = plan.is_some();
        if let Some(plan) = plan {
            // What only a chain out of service takes stays where it is: it is done.
            known.ingress.extend(plan.ingress_lists());
            known.storages = plan.storages;
        }
        let mut lookout = Self {
            server: Server::new(&settings.redis_url)?,
            known,
            has_plan,
            least_ttl: settings.redis_expiry,
            eyes: None,
            since: 0.0,
            was_away: false,
        };
        let mut eyes = lookout.open()?;
        lookout.since = eyes.letters.now()?;
        lookout.eyes = Some(eyes);
        Ok(lookout)
    }

    fn open(&self) -> Result<Eyes, QueueError> {
        let connect = || self.server.connect("conserver:submit");
        let mut audit = Audit::new(connect()?, &self.known, self.least_ttl)?;
        if self.has_plan {
            audit.wait_only_in(&self.known.ingress);
        }
        let letters = DeadLetters::new(connect()?, self.least_ttl);
        Ok(Eyes { audit, letters })
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
            self.patiently(end, |eyes| eyes.strike_done(&mut undone))?;
            bar.set_position((all - undone.len()) as u64);
            let left = left_until(end);
            if undone.is_empty() || left.is_some_and(|left| left.is_zero()) {
                break;
            }
            thread::sleep(left.map_or(pause, |left| left.min(pause)));
            pause = (pause * 2).min(LONGEST);
        }
        bar.finish_and_clear();
        let done: Vec<VconId> = ids.into_iter().filter(|id| !undone.contains(id)).collect();
        let (since, lists) = (self.since, self.known.ingress.clone());
        let dead = self.patiently(end, |eyes| eyes.dead(&lists, &done, since))?;
        let gone = if self.was_away {
            self.patiently(end, |eyes| eyes.gone(&done))?
        } else {
            0
        };
        Ok(Outcome {
            undone: undone.len(),
            dead,
            gone,
        })
    }

    /// Looks, and while Redis fails looks again over new connections: until the end, or without one for
    /// [`LONGEST_AWAY`].
    fn patiently<T>(
        &mut self,
        end: Option<Instant>,
        mut look: impl FnMut(&mut Eyes) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let start = Instant::now();
        let mut is_told = false;
        loop {
            let opened = match self.eyes.take() {
                Some(eyes) => Ok(eyes),
                None => self.open(),
            };
            let seen = opened.and_then(|mut eyes| {
                let seen = look(&mut eyes)?;
                self.eyes = Some(eyes);
                Ok(seen)
            });
            let error = match seen {
                Ok(seen) => {
                    if is_told {
                        complain("Redis is back");
                    }
                    return Ok(seen);
                }
                Err(error) => error,
            };
            let left = match end {
                Some(_) => left_until(end).unwrap_or_default(),
                None => LONGEST_AWAY.saturating_sub(start.elapsed()),
            };
            if left.is_zero() {
                return Err(error);
            }
            if !is_told && !error.is_interruption() {
                complain(format_args!("{error}; trying again"));
                is_told = true;
                self.was_away = true;
            }
            thread::sleep(left.min(LONGEST));
        }
    }
}

fn left_until(end: Option<Instant>) -> Option<Duration> {
    end.map(|end| end.saturating_duration_since(Instant::now()))
}

impl Eyes {
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

    fn gone(&mut self, done: &[VconId]) -> Result<usize, QueueError> {
        let mut gone = 0;
        for id in done {
            gone += usize::from(!self.audit.has_document(id)?);
        }
        Ok(gone)
    }

    /// Those that have become dead letters of these and other lists since then.
    fn dead(
        &mut self,
        lists: &[ListName],
        done: &[VconId],
        since: f64,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        let mut queues = self.letters.recorded()?;
        queues.extend(lists.iter().map(|list| Raw::new(list.as_str())));
        let mut dead = Vec::new();
        for queue in queues {
            for some in done.chunks(PORTION) {
                let letters = self.letters.known_of(&queue, some)?.into_iter();
                dead.extend(letters.filter(|letter| is_new(letter, since)));
            }
        }
        Ok(dead)
    }
}

fn is_new(letter: &DeadLetter, since: f64) -> bool {
    matches!(&letter.reason, Some(StoredReason::Known { at, .. }) if *at >= since)
}
