//! Waiting until vCons that were submitted are done.
//!
//! A vCon is done if it is in no ingress list of a chain in service and no worker has it: its chain has
//! finished or halted, or it is a dead letter. All of that is read from Redis, so the daemon may be on any machine.
//! While Redis is unavailable, the wait goes on.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::output::{eprint_line, progress_bar};
use crate::config::{ListName, Plan};
use crate::queue::{
    Audit, AuditLists, DeadLetter, DeadLetters, QueueError, Raw, Server, StoredReason,
};
use crate::settings::Settings;
use crate::vcon::VconId;

/// The shortest and the longest pause between two checks.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Without a time limit, the wait for an unavailable Redis ends after this long. A restart that loads many
/// documents takes less, and so does a failover.
const LONGEST_OUTAGE: Duration = Duration::from_secs(300);

/// Dead letters looked up at once: with the longest reasons they take some 100 MB.
const BATCH: usize = 200;

/// Waits for vCons that are submitted after it was made.
pub(super) struct CompletionWait {
    server: Server,
    known: AuditLists,
    /// Whether the lists come from a configuration, and are therefore all there are.
    has_plan: bool,
    least_ttl: u64,
    /// `None` after Redis has failed.
    queries: Option<RedisQueries>,
    /// When it was made, by the clock of Redis.
    since: f64,
    /// Whether Redis has failed meanwhile.
    was_unavailable: bool,
}

/// The queries, over a connection each.
struct RedisQueries {
    audit: Audit,
    letters: DeadLetters,
}

/// The result of the wait.
pub(super) struct WaitResult {
    /// How many were not done in time.
    pub pending: usize,
    /// Those that went to a dead letter queue.
    pub dead: Vec<DeadLetter>,
    /// How many of those that are in no list have no document either, after Redis was unavailable: they have
    /// expired, or Redis has lost them.
    pub missing: usize,
}

impl CompletionWait {
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
            // A vCon in a list that only disabled chains take from stays there: it counts as done.
            known.ingress.extend(plan.ingress_lists());
            known.storages = plan.storages;
        }
        let mut completion = Self {
            server: Server::new(&settings.redis_url)?,
            known,
            has_plan,
            least_ttl: settings.redis_expiry,
            queries: None,
            since: 0.0,
            was_unavailable: false,
        };
        let mut queries = completion.open()?;
        completion.since = queries.letters.now()?;
        completion.queries = Some(queries);
        Ok(completion)
    }

    fn open(&self) -> Result<RedisQueries, QueueError> {
        let connect = || self.server.connect("conserver:submit");
        let mut audit = Audit::new(connect()?, &self.known, self.least_ttl)?;
        if self.has_plan {
            audit.wait_only_in(&self.known.ingress);
        }
        let letters = DeadLetters::new(connect()?, self.least_ttl);
        Ok(RedisQueries { audit, letters })
    }

    /// Waits until these are done, or the time is over.
    pub fn wait(
        mut self,
        ids: Vec<VconId>,
        timeout: Option<Duration>,
    ) -> Result<WaitResult, QueueError> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let bar = progress_bar(ids.len());
        let mut pending: HashSet<VconId> = ids.iter().cloned().collect();
        let all = pending.len();
        let mut pause = SHORTEST_PAUSE;
        loop {
            self.retry_while_unavailable(end, |queries| queries.strike_done(&mut pending))?;
            bar.set_position((all - pending.len()) as u64);
            let left = left_until(end);
            if pending.is_empty() || left.is_some_and(|left| left.is_zero()) {
                break;
            }
            thread::sleep(left.map_or(pause, |left| left.min(pause)));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        bar.finish_and_clear();
        let done: Vec<VconId> = ids.into_iter().filter(|id| !pending.contains(id)).collect();
        let (since, lists) = (self.since, self.known.ingress.clone());
        let dead =
            self.retry_while_unavailable(end, |queries| queries.dead(&lists, &done, since))?;
        let missing = if self.was_unavailable {
            self.retry_while_unavailable(end, |queries| queries.missing(&done))?
        } else {
            0
        };
        Ok(WaitResult {
            pending: pending.len(),
            dead,
            missing,
        })
    }

    /// Asks, and while Redis fails asks again over new connections: until `end`, or without one for
    /// [`LONGEST_OUTAGE`].
    fn retry_while_unavailable<T>(
        &mut self,
        end: Option<Instant>,
        mut query: impl FnMut(&mut RedisQueries) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let start = Instant::now();
        let mut is_told = false;
        loop {
            let opened = match self.queries.take() {
                Some(queries) => Ok(queries),
                None => self.open(),
            };
            let result = opened.and_then(|mut queries| {
                let answer = query(&mut queries)?;
                self.queries = Some(queries);
                Ok(answer)
            });
            let error = match result {
                Ok(answer) => {
                    if is_told {
                        eprint_line("Redis is back");
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let left = match end {
                Some(_) => left_until(end).unwrap_or_default(),
                None => LONGEST_OUTAGE.saturating_sub(start.elapsed()),
            };
            if left.is_zero() {
                return Err(error);
            }
            if !is_told && !error.is_interruption() {
                eprint_line(format_args!("{error}; trying again"));
                is_told = true;
                self.was_unavailable = true;
            }
            thread::sleep(left.min(LONGEST_PAUSE));
        }
    }
}

fn left_until(end: Option<Instant>) -> Option<Duration> {
    end.map(|end| end.saturating_duration_since(Instant::now()))
}

impl RedisQueries {
    fn strike_done(&mut self, pending: &mut HashSet<VconId>) -> Result<(), QueueError> {
        let mut resting = pending.clone();
        self.audit.strike_in_work(&mut resting)?;
        for id in resting {
            // A claim may have been returned to its list between the two queries.
            if !self.audit.is_in_work(&id)? {
                pending.remove(&id);
            }
        }
        Ok(())
    }

    fn missing(&mut self, done: &[VconId]) -> Result<usize, QueueError> {
        let mut missing = 0;
        for id in done {
            missing += usize::from(!self.audit.has_document(id)?);
        }
        Ok(missing)
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
            for some in done.chunks(BATCH) {
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
