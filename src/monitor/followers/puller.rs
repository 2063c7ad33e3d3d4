//! The thread of one follower.
//!
//! ```text
//! lease ──► fetch what waits ──► is it time? ──► pop ──note──► fetch what waits ──► pause
//!   ▲                                                                                │
//!   └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A pop takes UUIDs off the other server's list, so nothing comes between it and the note in Redis, not even
//! the end of the daemon. Every other step can be broken off and is done again.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::remote::{Fetched, Popped, RemoteServer};
use super::spool::Spool;
use super::{Gate, LONGEST_FAREWELL, Manager, StatsByFollower};
use crate::backoff::Backoff;
use crate::config::Follower;
use crate::monitor::LIMIT;
use crate::queue::{
    Document, Expiry, FollowerQueue, PulledVcon, QueueError, Reason, SubmitOutcome,
};
use crate::vcon::{self, CreatedAt, Vcon, VconId};

/// How long one instance holds the lease on a follower without renewing it, besides the time of a document.
const LEASE: Duration = Duration::from_secs(90);

/// The pauses after failures double, from the first to the longest: ten times the time between two pulls, but
/// at most this.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pause between attempts to note in Redis what was popped.
const NOTE_PAUSE: Duration = Duration::from_millis(200);

/// UUIDs in one line of the log.
const IN_A_LINE: usize = 50;

/// UUIDs whose documents are fetched in one round.
const PAGE: usize = 1000;

/// No more are popped while this many wait, or as many as one pull asks for.
const MOST_WAITING: u64 = 20;

/// If this many documents in a row cannot be fetched, and none before, the server is at fault.
const MOST_FAILURES: usize = 5;

/// The thread of one follower.
pub(super) struct Puller {
    follower: Follower,
    remote: RemoteServer,
    pulls: FollowerQueue,
    spool: Spool,
    /// Whether Redis has everything that the spool held.
    is_unspooled: bool,
    stats: StatsByFollower,
    gate: Arc<Gate>,
    draining: Receiver<()>,
    ended: Receiver<()>,
    /// Dropped at the end of the thread.
    _end: Sender<()>,
    /// The puller gives a document up that it could not fetch in this many rounds in which it could fetch
    /// others; 0: never.
    most_tries: u32,
    /// When the last pop was.
    popped: Option<Instant>,
    /// The last error that was logged, until a round succeeds.
    logged_error: Option<String>,
    /// The instance that holds the lease instead of this one, as last logged.
    other_holder: Option<String>,
}

/// What still waits after an attempt to fetch all of it.
struct StillWaiting {
    count: u64,
    /// Why no document at all could be fetched, if that is so.
    error: Option<String>,
}

/// Why a round ended early.
enum RoundError {
    /// The monitor drains, or the follower was removed.
    Ended,
    /// Another instance holds the lease.
    HeldElsewhere,
    /// Something failed; the next round tries again.
    Failed(String),
}

impl From<QueueError> for RoundError {
    fn from(error: QueueError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Puller {
    pub(super) fn new(manager: &Manager, follower: Follower, ended: Receiver<()>) -> Self {
        let settings = &manager.settings;
        Self {
            remote: RemoteServer::new(&follower, &settings.header_name),
            pulls: FollowerQueue::new(
                manager.server.clone(),
                Expiry::of(settings),
                &settings.instance,
                &follower.name,
                &follower.ingress_list,
                &settings.sorted_set,
                settings.redis_format,
            ),
            spool: Spool::new(
                manager.slot.board_path(),
                manager.state.as_deref(),
                &follower.name,
            ),
            is_unspooled: false,
            follower,
            stats: manager.stats.clone(),
            gate: Arc::clone(&manager.gate),
            draining: manager.draining.clone(),
            ended,
            _end: manager.end.clone(),
            most_tries: settings.max_rounds,
            popped: None,
            logged_error: None,
            other_holder: None,
        }
    }

    pub(super) fn run(mut self) {
        let Follower {
            name,
            url,
            egress_list,
            ingress_list,
            interval,
            ..
        } = &self.follower;
        log::info!(
            "follower {name}: pulls list {egress_list} of {url} onto list {ingress_list} every {interval:?}"
        );
        let longest = LONGEST_PAUSE.min(*interval * 10);
        let mut backoff = Backoff::new(FIRST_PAUSE, longest);
        loop {
            let wait = match self.round() {
                Ok(()) => {
                    self.log_recovery();
                    backoff.reset();
                    self.until_due()
                }
                Err(RoundError::HeldElsewhere) => LEASE / 3,
                Err(RoundError::Failed(why)) => {
                    self.log_error(why);
                    backoff.next_wait()
                }
                Err(RoundError::Ended) => break,
            };
            if self.sleeps_or_ends(wait) {
                break;
            }
        }
        // So that another instance need not wait until it expires.
        if let Err(error) = self.pulls.release_lease() {
            log::debug!(
                "could not release the lease on follower {}, it will expire: {error}",
                self.follower.name
            );
        }
    }

    /// Sleeps; returns true at once if the follower is to end.
    fn sleeps_or_ends(&self, time: Duration) -> bool {
        crossbeam_channel::select! {
            recv(self.draining) -> _ => true,
            recv(self.ended) -> _ => true,
            default(time) => false,
        }
    }

    fn is_to_end(&self) -> bool {
        self.sleeps_or_ends(Duration::ZERO)
    }

    /// The time until the next pop, at most as long as the lease can go without being renewed.
    fn until_due(&self) -> Duration {
        let since = self.popped.map_or(Duration::MAX, |popped| popped.elapsed());
        let left = self.follower.interval.saturating_sub(since);
        left.min(LEASE / 3)
    }

    fn round(&mut self) -> Result<(), RoundError> {
        self.unspool()?;
        self.renew_lease()?;
        let mut left = self.fetch_waiting()?;
        let most = u64::from(self.follower.limit).max(MOST_WAITING);
        // Also if none of those could be fetched: whether others can be shows who is at fault.
        if self.until_due().is_zero() && left.count < most && self.pop()? > 0 {
            left = self.fetch_waiting()?;
        }
        left.error
            .map_or(Ok(()), |why| Err(RoundError::Failed(why)))
    }

    fn renew_lease(&mut self) -> Result<(), RoundError> {
        if self.is_to_end() {
            return Err(RoundError::Ended);
        }
        let holder = self.pulls.take_lease(LEASE + self.follower.timeout)?;
        if holder != self.other_holder {
            let name = &self.follower.name;
            match &holder {
                Some(holder) => {
                    log::info!("follower {name}: instance \"{holder}\" holds the lease and pulls");
                }
                None => log::info!("follower {name}: this instance pulls from now on"),
            }
            self.other_holder.clone_from(&holder);
        }
        if holder.is_some() {
            return Err(RoundError::HeldElsewhere);
        }
        Ok(())
    }

    /// Takes UUIDs off the list of the other server, and notes them in Redis. Returns how many.
    fn pop(&mut self) -> Result<usize, RoundError> {
        // Redis has just taken a write, so most likely it takes the note too.
        let gate = Arc::clone(&self.gate);
        let Some(_pass) = gate.enter() else {
            return Err(RoundError::Ended);
        };
        let popped = self
            .remote
            .pop(self.follower.limit)
            .map_err(RoundError::Failed)?;
        self.popped = Some(Instant::now());
        self.log_popped(&popped);
        if !popped.ids.is_empty() {
            self.note(&popped.ids);
        }
        match popped.cut {
            None => Ok(popped.ids.len()),
            Some(why) => {
                let count = popped.ids.len();
                Err(RoundError::Failed(format!(
                    "the list of UUIDs broke off after {count}, and those behind are lost: {why}"
                )))
            }
        }
    }

    /// Notes popped UUIDs in Redis, however long that takes: nobody else has them. While Redis is unavailable,
    /// the spool keeps them. Once the daemon drains, this gives up when the daemon no longer waits.
    fn note(&mut self, ids: &[VconId]) {
        let mut is_spooled = false;
        let mut closing: Option<Instant> = None;
        while let Err(error) = self.pulls.record(ids) {
            self.log_error(format!(
                "could not note {} UUIDs that it took in Redis yet: {error}",
                ids.len()
            ));
            if !is_spooled {
                is_spooled = self.add_to_spool(ids);
            }
            if self.gate.is_closed() {
                let since = *closing.get_or_insert_with(Instant::now);
                if since.elapsed() + LIMIT > LONGEST_FAREWELL {
                    self.log_unkept(ids, is_spooled);
                    return;
                }
            }
            thread::sleep(NOTE_PAUSE);
        }
        if is_spooled {
            self.spool.remove();
        }
    }

    fn add_to_spool(&self, ids: &[VconId]) -> bool {
        match self.spool.add(ids) {
            Ok(()) => true,
            Err(error) => {
                let path = self.spool.path().display();
                log::warn!("could not write {path}: {error}");
                false
            }
        }
    }

    /// Logs which UUIDs did not reach Redis before the end.
    fn log_unkept(&self, ids: &[VconId], is_spooled: bool) {
        let name = &self.follower.name;
        let path = self.spool.path().display();
        if is_spooled {
            let count = ids.len();
            log::error!(
                "follower {name}: {count} UUIDs that it took did not reach Redis: the next start reads them from \
                 {path}, unless that is removed first; the log lists them after \"took\""
            );
            return;
        }
        let Follower {
            egress_list, url, ..
        } = &self.follower;
        for id in ids {
            log::error!(
                vcon_id = id.as_str();
                "{id}: follower {name} took its UUID, and it did not reach Redis: push it onto list \
                 {egress_list} of {url} again"
            );
        }
    }

    /// Notes in Redis what an earlier monitor could not.
    fn unspool(&mut self) -> Result<(), RoundError> {
        if self.is_unspooled {
            return Ok(());
        }
        let path = self.spool.path().display();
        let ids = self.spool.read();
        let ids =
            ids.map_err(|error| RoundError::Failed(format!("could not read {path}: {error}")))?;
        if !ids.is_empty() {
            self.pulls.record(&ids)?;
            let (name, count) = (&self.follower.name, ids.len());
            log::info!("follower {name}: found {count} UUIDs that were taken before");
            self.spool.remove();
        }
        self.is_unspooled = true;
        Ok(())
    }

    /// Logs popped UUIDs: until they are noted, nothing else has them.
    fn log_popped(&self, popped: &Popped) {
        let name = &self.follower.name;
        for ids in popped.ids.chunks(IN_A_LINE) {
            let ids: Vec<&str> = ids.iter().map(VconId::as_str).collect();
            log::info!(
                "follower {name}: took {} UUIDs: {}",
                ids.len(),
                ids.join(" ")
            );
        }
        for entry in &popped.refused {
            log::error!(
                "follower {name}: the other server sent \"{entry}\", which is not a UUID: refused"
            );
        }
        if popped.unshown > 0 {
            let count = popped.unshown;
            log::error!(
                "follower {name}: the other server sent {count} more entries that are not UUIDs: refused"
            );
        }
    }

    /// Fetches the documents of waiting UUIDs. Returns what still waits.
    fn fetch_waiting(&mut self) -> Result<StillWaiting, RoundError> {
        let (ids, _) = self.pulls.waiting(PAGE)?;
        let fetched = self.fetch(&ids);
        let (_, count) = self.pulls.waiting(0)?;
        self.stats
            .note(&self.follower.name, |it| it.waiting = count);
        let error = fetched?;
        Ok(StillWaiting { count, error })
    }

    /// Fetches these documents. Returns the last error if none of them could be fetched.
    fn fetch(&mut self, ids: &[VconId]) -> Result<Option<String>, RoundError> {
        let (mut done, mut failed) = (0, Vec::new());
        let mut stop = None;
        for id in ids {
            self.renew_lease()?;
            match self.remote.document(id) {
                Fetched::Document(text, created) => match self.hand_in(id, &text, created) {
                    Ok(()) => done += 1,
                    Err(why) => {
                        stop = Some(why);
                        break;
                    }
                },
                Fetched::Refused(why) => self.refuse(id, &why, 1)?,
                Fetched::Failed(why) => {
                    log::debug!("follower {}: {id}: {why}", self.follower.name);
                    failed.push((id, why));
                    if done == 0 && failed.len() >= MOST_FAILURES {
                        break;
                    }
                }
                Fetched::Unavailable(why) => {
                    stop = Some(RoundError::Failed(why));
                    break;
                }
            }
        }
        let last = failed.last().map(|(_, why)| why.clone());
        for (id, why) in failed {
            // If no document can be fetched, this one is not at fault.
            let tries = self.pulls.postpone(id, done > 0)?;
            if done > 0 && tries == 1 {
                let name = &self.follower.name;
                log::warn!(vcon_id = id.as_str(); "{id}: follower {name}: {why}; will retry");
            }
            if self.most_tries > 0 && tries >= self.most_tries {
                self.refuse(id, &why, tries)?;
            }
        }
        match stop {
            Some(stop) => Err(stop),
            None => Ok(last.filter(|_| done == 0)),
        }
    }

    /// Pushes a vCon with its document, or with the same one if that is here already, onto the ingress list.
    fn hand_in(
        &mut self,
        id: &VconId,
        text: &str,
        created: Option<CreatedAt>,
    ) -> Result<(), RoundError> {
        let digest = vcon::digest(text);
        let created = created.unwrap_or_else(|| {
            log::warn!(
                vcon_id = id.as_str();
                "vCon {id}: `created_at` is missing or unreadable, using the present time"
            );
            CreatedAt::now()
        });
        let pulled = PulledVcon {
            id,
            text,
            digest: &digest,
            created: created.unix,
        };
        loop {
            let handed_in = match self.pulls.submit(&pulled) {
                Err(QueueError::Document(why)) => {
                    let why = format!("Redis refuses the document: {why}");
                    return self.refuse(id, &why, 1);
                }
                Ok(SubmitOutcome::There) => match self.compare(&pulled)? {
                    Compared::Same => self.pulls.submit_existing(id, &digest)?,
                    Compared::Gone => continue,
                    Compared::Other => {
                        let key = self.pulls.keep_other(&pulled)?;
                        let why = format!(
                            "there is a document of this vCon already, with other content: it was kept as it \
                             is; the one at {} is in the key {key}",
                            self.remote.document_url(id)
                        );
                        return self.refuse(id, &why, 1);
                    }
                },
                handed_in => handed_in?,
            };
            let name = &self.follower.name;
            match handed_in {
                SubmitOutcome::Done => {
                    let list = &self.follower.ingress_list;
                    log::info!(vcon_id = id.as_str(); "{id}: follower {name} pulled it onto list {list}");
                    self.stats.note(name, |it| it.pulled += 1);
                }
                SubmitOutcome::NotOurs => log::debug!("{id}: another instance has pushed it"),
                SubmitOutcome::Gone | SubmitOutcome::There => continue,
                SubmitOutcome::Refused(why) => return Err(RoundError::Failed(why)),
            }
            return Ok(());
        }
    }

    /// Compares a pulled document with the one that is here. That one may contain changes made here, so it is
    /// never overwritten.
    fn compare(&mut self, pulled: &PulledVcon<'_>) -> Result<Compared, RoundError> {
        let (here, last) = self.pulls.document(pulled.id)?;
        let here = match here {
            Document::Missing => return Ok(Compared::Gone),
            Document::Found(_, bytes) => bytes,
            // Its key holds something that is not a document; a lane reports that when it loads it.
            Document::NotAnId | Document::Unusable(_) => Vec::new(),
        };
        if last.as_deref() == Some(pulled.digest) || is_same(pulled.id, &here, pulled.text) {
            return Ok(Compared::Same);
        }
        Ok(Compared::Other)
    }

    /// Dead-letters a UUID whose document cannot be fetched.
    fn refuse(&mut self, id: &VconId, why: &str, attempts: u32) -> Result<(), RoundError> {
        let name = &self.follower.name;
        let reason = Reason {
            stage: &format!("follower {name}"),
            error: why,
            attempts,
            worker: "Monitor",
        };
        match self.pulls.refuse(id, &reason)? {
            SubmitOutcome::Refused(why) => Err(RoundError::Failed(why)),
            SubmitOutcome::Done => {
                let list = &self.follower.ingress_list;
                log::error!(
                    vcon_id = id.as_str();
                    "{id}: follower {name} moved it to the dead letter queue of list {list}: {why}"
                );
                self.stats.note(name, |it| it.dead_lettered += 1);
                Ok(())
            }
            SubmitOutcome::NotOurs | SubmitOutcome::There | SubmitOutcome::Gone => Ok(()),
        }
    }

    /// Counts an error, and logs it unless it was the last one too.
    fn log_error(&mut self, why: String) {
        let name = &self.follower.name;
        self.stats.note(name, |it| {
            it.failures += 1;
            it.error = Some(why.clone());
        });
        if self.logged_error.as_ref() == Some(&why) {
            log::debug!("follower {name}: {why}");
        } else {
            log::warn!("follower {name}: {why}; will retry");
            self.logged_error = Some(why);
        }
    }

    fn log_recovery(&mut self) {
        let name = &self.follower.name;
        self.stats.note(name, |it| it.error = None);
        if self.logged_error.take().is_some() {
            log::info!("follower {name}: works again");
        }
    }
}

/// How the document that is here compares with the pulled one.
enum Compared {
    /// The same content, or what processing here made of it.
    Same,
    /// There is none any more.
    Gone,
    /// Other content.
    Other,
}

/// Whether two documents have the same content, apart from deprecated names of properties.
fn is_same(id: &VconId, here: &[u8], pulled: &str) -> bool {
    let Ok(here) = str::from_utf8(here) else {
        return false;
    };
    let written = |text: &str| {
        let vcon = Vcon::read(id.clone(), text).ok();
        vcon.map(|mut vcon| vcon::digest(&vcon.to_json()))
    };
    here == pulled || written(here).is_some_and(|here| written(pulled) == Some(here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_compared_by_their_content() {
        let id = VconId::random();
        let old = r#"{"vcon":"0.0.1","must_support":["a"],"parties":[]}"#;
        for (here, same) in [
            (old, true),
            (
                r#"{ "parties": [], "critical": ["a"], "vcon": "0.4.0"}"#,
                true,
            ),
            (
                r#"{"vcon":"0.0.1","must_support":["b"],"parties":[]}"#,
                false,
            ),
            ("{}", false),
            ("", false),
            ("[]", false),
        ] {
            assert_eq!(is_same(&id, here.as_bytes(), old), same, "{here}");
        }
        assert!(!is_same(&id, b"\xff", old));
        // What cannot be read as a vCon is the same if it is the same text.
        assert!(is_same(&id, b"{\"dialog\":7}", "{\"dialog\":7}"));
    }
}
