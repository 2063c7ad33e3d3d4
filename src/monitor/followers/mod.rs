//! Threads of the monitor that pull vCons from other servers into lists of ours: one for each entry of
//! `followers`, and one that starts and ends these as the configuration says.
//!
//! ```text
//! turn ──► fetch what waits ──► is it time? ──► pop ──note──► fetch what waits ──► pause
//!   ▲                                                                               │
//!   └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A pop takes UUIDs off the other server's list, so nothing else comes between it and the note in
//! Redis, not even the end of the daemon; all else can be broken off and is done again.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod remote;
mod spool;
mod tallies;

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

pub use self::tallies::{Tallies, Tally};

use self::remote::{Fetched, Popped, Remote};
use self::spool::Spool;
use super::LIMIT;
use crate::backoff::Backoff;
use crate::child::Child;
use crate::config::Follower;
use crate::queue::{
    Document, Expiry, FollowerQueue, PulledVcon, QueueError, Reason, Server, SubmitOutcome,
    left_by_followers,
};
use crate::scoreboard::Slot;
use crate::settings::Settings;
use crate::vcon::{self, CreatedAt, Vcon, VconId};

/// The end of the daemon waits for a pop for so long.
pub const LONGEST_FAREWELL: Duration = Duration::from_secs(10);

/// How often the configuration is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// For how long one instance has the turn without a sign of life, beside the time of a document.
const TURN: Duration = Duration::from_secs(90);

/// The pauses after failures double, from the first to the longest: ten times the time between two
/// pulls, but not more than this.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pause between attempts to note what was popped.
const NOTE_PAUSE: Duration = Duration::from_millis(200);

/// UUIDs in one line of the log.
const IN_A_LINE: usize = 50;

/// UUIDs looked at in one round.
const PAGE: usize = 1000;

/// No more are popped while so many wait, or as many as one pull asks for.
const MOST_WAITING: u64 = 20;

/// If so many documents in a row cannot be had, and none before, that is the server's fault.
const MOST_FAILURES: usize = 5;

/// The threads at work.
pub(super) struct Followers {
    gate: Arc<Gate>,
}

/// Starts the threads; they live until the monitor drains.
pub(super) fn start(
    child: &Child,
    settings: &Settings,
    server: &Server,
    tallies: &Tallies,
) -> io::Result<Followers> {
    let gate = Arc::new(Gate::default());
    if let Some(slot) = child.slot.clone() {
        let manager = Manager {
            slot,
            draining: child.draining.clone(),
            server: server.clone(),
            settings: settings.clone(),
            tallies: tallies.clone(),
            gate: Arc::clone(&gate),
            generation: None,
            has_looked: false,
            unread: None,
            running: Vec::new(),
        };
        let name = "followers".to_owned();
        thread::Builder::new().name(name).spawn(|| manager.run())?;
    }
    Ok(Followers { gate })
}

impl Followers {
    /// Lets no pop begin any more, and waits for those under way.
    pub(super) fn close(self) {
        if !self.gate.close(LONGEST_FAREWELL) {
            log::error!(
                "a follower still waits for UUIDs at the end; what the other server takes off its \
                 list for this answer is lost"
            );
        }
    }
}

/// Keeps the end of the daemon from coming between a pop and its note.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_closed: bool,
    inside: usize,
}

/// A pop under way.
struct Pass<'a>(&'a Gate);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing once it is closed.
    fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.inside += 1;
        Some(Pass(self))
    }

    fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Closes it; returns whether all have left it within `limit`.
    fn close(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.is_closed = true;
        let is_inside = |state: &mut GateState| state.inside > 0;
        let waited = self.changed.wait_timeout_while(state, limit, is_inside);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.inside == 0
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

/// The thread that starts and ends the others.
struct Manager {
    slot: Slot,
    draining: Receiver<()>,
    server: Server,
    settings: Settings,
    tallies: Tallies,
    gate: Arc<Gate>,
    generation: Option<u64>,
    /// Whether what former followers have left was looked for.
    has_looked: bool,
    /// The configuration that could not be read, as it was logged.
    unread: Option<u64>,
    /// Each ends when its sender is dropped.
    running: Vec<(Follower, Sender<()>)>,
}

impl Manager {
    fn run(mut self) {
        loop {
            let generation = Some(self.slot.config_generation());
            if generation != self.generation {
                self.read(generation);
            }
            if !self.has_looked {
                self.has_looked = self.looks_for_left();
            }
            if self.draining.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn read(&mut self, generation: Option<u64>) {
        match Follower::load_all(self.slot.config_path()) {
            Ok(followers) => {
                self.generation = generation;
                self.unread = None;
                self.follow(followers);
            }
            // The supervisor could read it: a file that it names may be gone since.
            Err(errors) if self.unread != generation => {
                self.unread = generation;
                log::error!("the followers could not be read, the former ones stay:");
                errors.lines().for_each(|line| log::error!("{line}"));
            }
            Err(_) => {}
        }
    }

    /// Starts what is new, ends what is gone, and leaves alone what is as it was.
    fn follow(&mut self, followers: Vec<Follower>) {
        self.running.retain(|(running, _)| {
            let stays = followers.contains(running);
            if !stays {
                log::info!("follower {}: ends", running.name);
            }
            stays
        });
        let names: Vec<&str> = followers.iter().map(|it| it.name.as_str()).collect();
        self.tallies.keep_only(&names);
        self.has_looked = false;
        for follower in followers {
            if self.running.iter().any(|(running, _)| *running == follower) {
                continue;
            }
            let (hold, ended) = bounded(0);
            let puller = Puller::new(self, follower.clone(), ended);
            let name = "follower".to_owned();
            match thread::Builder::new().name(name).spawn(|| puller.run()) {
                Ok(_) => self.running.push((follower, hold)),
                Err(error) => {
                    log::error!(
                        "follower {}: could not start a thread: {error}",
                        follower.name
                    );
                    // The next look tries again.
                    self.generation = None;
                }
            }
        }
    }

    /// Names what Redis and files hold for followers that are in the configuration no more; false if that
    /// is not known yet.
    fn looks_for_left(&self) -> bool {
        if self.generation.is_none() {
            return false;
        }
        let running = self.running.iter();
        let names: Vec<&str> = running.map(|(it, _)| it.name.as_str()).collect();
        let left = match left_by_followers(&self.server, &self.settings.instance, &names) {
            Ok(left) => left,
            Err(error) => {
                log::debug!("could not look for what former followers have left: {error}");
                return false;
            }
        };
        for (name, count) in left {
            log::warn!(
                "{count} vCons that follower \"{name}\" has pulled are still to be fetched, and it is in the \
                 configuration no more: their UUIDs stay in conserver:follower:{name}"
            );
        }
        warn_of_left_spools(self.slot.board_path(), &names);
        true
    }
}

/// Logs which files still hold UUIDs of followers that are none of these.
fn warn_of_left_spools(board: &Path, followers: &[&str]) {
    let left = match Spool::left_beside(board, followers) {
        Ok(left) => left,
        Err(error) => {
            let board = board.display();
            log::warn!("could not look for files of former followers beside {board}: {error}");
            return;
        }
    };
    for (name, spool) in left {
        let path = spool.path().display();
        match spool.read() {
            Ok(ids) if ids.is_empty() => {}
            Ok(ids) => log::warn!(
                "{path} still holds {} UUIDs that follower \"{name}\" took, and it is no longer in the \
                 configuration: add it again under this name to have them fetched",
                ids.len()
            ),
            Err(error) => {
                log::warn!("could not read {path} of the former follower \"{name}\": {error}");
            }
        }
    }
}

/// The thread of one follower.
struct Puller {
    follower: Follower,
    remote: Remote,
    pulls: FollowerQueue,
    spool: Spool,
    /// Whether the spool was read, and nothing of it is left.
    is_unspooled: bool,
    tallies: Tallies,
    gate: Arc<Gate>,
    draining: Receiver<()>,
    ended: Receiver<()>,
    /// A document that cannot be had in so many rounds in which others could is given up; 0: never.
    most_tries: u32,
    /// When the last pop was.
    popped: Option<Instant>,
    /// What went wrong last, as it was logged.
    trouble: Option<String>,
    /// Which instance has the turn, as it was logged.
    other: Option<String>,
}

/// What still waits after a look at all of it.
struct Left {
    count: u64,
    /// Why no document could be had, if that is so.
    trouble: Option<String>,
}

/// Why a round was not brought to its end.
enum Stop {
    /// The follower is to end.
    Ended,
    /// It is another instance's turn.
    NotOurTurn,
    /// Something does not work at present.
    Trouble(String),
}

impl From<QueueError> for Stop {
    fn from(error: QueueError) -> Self {
        Self::Trouble(error.to_string())
    }
}

impl Puller {
    fn new(manager: &Manager, follower: Follower, ended: Receiver<()>) -> Self {
        let settings = &manager.settings;
        Self {
            remote: Remote::new(&follower, &settings.header_name),
            pulls: FollowerQueue::new(
                manager.server.clone(),
                Expiry::of(settings),
                &settings.instance,
                &follower.name,
                &follower.ingress_list,
                &settings.sorted_set,
                settings.redis_format,
            ),
            spool: Spool::beside(manager.slot.board_path(), &follower.name),
            is_unspooled: false,
            follower,
            tallies: manager.tallies.clone(),
            gate: Arc::clone(&manager.gate),
            draining: manager.draining.clone(),
            ended,
            most_tries: settings.max_rounds,
            popped: None,
            trouble: None,
            other: None,
        }
    }

    fn run(mut self) {
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
                    self.works();
                    backoff.reset();
                    self.until_due()
                }
                Err(Stop::NotOurTurn) => TURN / 3,
                Err(Stop::Trouble(why)) => {
                    self.tell(why);
                    backoff.next_wait()
                }
                Err(Stop::Ended) => break,
            };
            if self.rests(wait) {
                break;
            }
        }
        // Another instance need not wait until it expires.
        if let Err(error) = self.pulls.release_lease() {
            log::debug!(
                "the turn of follower {} will expire: {error}",
                self.follower.name
            );
        }
    }

    /// Waits; returns whether the follower is to end.
    fn rests(&self, time: Duration) -> bool {
        crossbeam_channel::select! {
            recv(self.draining) -> _ => true,
            recv(self.ended) -> _ => true,
            default(time) => false,
        }
    }

    fn is_to_end(&self) -> bool {
        self.rests(Duration::ZERO)
    }

    /// The time until the next pop, but not longer than the turn can go without being renewed.
    fn until_due(&self) -> Duration {
        let since = self.popped.map_or(Duration::MAX, |popped| popped.elapsed());
        let left = self.follower.interval.saturating_sub(since);
        left.min(TURN / 3)
    }

    fn round(&mut self) -> Result<(), Stop> {
        self.unspool()?;
        self.renew_turn()?;
        let mut left = self.fetch_waiting()?;
        let most = u64::from(self.follower.limit).max(MOST_WAITING);
        // Also if none of those could be had: whether others can shows whose fault that is.
        if self.until_due().is_zero() && left.count < most && self.pop()? > 0 {
            left = self.fetch_waiting()?;
        }
        left.trouble.map_or(Ok(()), |why| Err(Stop::Trouble(why)))
    }

    fn renew_turn(&mut self) -> Result<(), Stop> {
        if self.is_to_end() {
            return Err(Stop::Ended);
        }
        let holder = self.pulls.take_lease(TURN + self.follower.timeout)?;
        if holder != self.other {
            let name = &self.follower.name;
            match &holder {
                Some(holder) => {
                    log::info!("follower {name}: instance \"{holder}\" pulls at present");
                }
                None => log::info!("follower {name}: this instance pulls from now on"),
            }
            self.other.clone_from(&holder);
        }
        if holder.is_some() {
            return Err(Stop::NotOurTurn);
        }
        Ok(())
    }

    /// Has the other server hand out UUIDs, and notes them. Returns how many.
    fn pop(&mut self) -> Result<usize, Stop> {
        // Redis has just taken a write. From here to the note nothing is in the way.
        let gate = Arc::clone(&self.gate);
        let Some(_pass) = gate.enter() else {
            return Err(Stop::Ended);
        };
        let popped = self
            .remote
            .pop(self.follower.limit)
            .map_err(Stop::Trouble)?;
        self.popped = Some(Instant::now());
        self.tell_popped(&popped);
        if !popped.ids.is_empty() {
            self.note(&popped.ids);
        }
        match popped.cut {
            None => Ok(popped.ids.len()),
            Some(why) => {
                let count = popped.ids.len();
                Err(Stop::Trouble(format!(
                    "the list of UUIDs broke off after {count}, and those behind are lost: {why}"
                )))
            }
        }
    }

    /// Notes what was popped, however long that takes: nobody else has it. If Redis is away, the spool
    /// keeps it meanwhile. Once the daemon is to end, this waits no longer than the daemon does.
    fn note(&mut self, ids: &[VconId]) {
        let mut is_spooled = false;
        let mut closing: Option<Instant> = None;
        while let Err(error) = self.pulls.record(ids) {
            self.tell(format!(
                "{} UUIDs that it took could not be kept yet: {error}",
                ids.len()
            ));
            if !is_spooled {
                is_spooled = self.add_to_spool(ids);
            }
            if self.gate.is_closed() {
                let since = *closing.get_or_insert_with(Instant::now);
                if since.elapsed() + LIMIT > LONGEST_FAREWELL {
                    self.tell_unkept(ids, is_spooled);
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

    /// Logs what Redis did not keep before the end.
    fn tell_unkept(&self, ids: &[VconId], is_spooled: bool) {
        let name = &self.follower.name;
        let path = self.spool.path().display();
        if is_spooled {
            let count = ids.len();
            log::error!(
                "follower {name}: Redis did not keep {count} UUIDs that it took: the next start finds them in \
                 {path}, unless that is removed first; the log has them after \"took\""
            );
            return;
        }
        let Follower {
            egress_list, url, ..
        } = &self.follower;
        for id in ids {
            log::error!(
                vcon_id = id.as_str();
                "{id}: follower {name} took its UUID, and Redis did not keep it: push it onto list \
                 {egress_list} of {url} again"
            );
        }
    }

    /// Notes what an earlier monitor could not.
    fn unspool(&mut self) -> Result<(), Stop> {
        if self.is_unspooled {
            return Ok(());
        }
        let path = self.spool.path().display();
        let ids = self.spool.read();
        let ids = ids.map_err(|error| Stop::Trouble(format!("could not read {path}: {error}")))?;
        if !ids.is_empty() {
            self.pulls.record(&ids)?;
            let (name, count) = (&self.follower.name, ids.len());
            log::info!("follower {name}: found {count} UUIDs that were taken before");
            self.spool.remove();
        }
        self.is_unspooled = true;
        Ok(())
    }

    /// Logs what was popped: until it is noted, nothing else has it.
    fn tell_popped(&self, popped: &Popped) {
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
                "follower {name}: the other server has sent \"{entry}\", which is not a UUID: refused"
            );
        }
        if popped.unshown > 0 {
            let count = popped.unshown;
            log::error!(
                "follower {name}: the other server has sent {count} more entries that are not UUIDs: refused"
            );
        }
    }

    /// Fetches the documents of what waits. Returns what still does.
    fn fetch_waiting(&mut self) -> Result<Left, Stop> {
        let (ids, _) = self.pulls.waiting(PAGE)?;
        let fetched = self.fetch(&ids);
        let (_, count) = self.pulls.waiting(0)?;
        self.tallies
            .note(&self.follower.name, |it| it.waiting = count);
        let trouble = fetched?;
        Ok(Left { count, trouble })
    }

    /// Fetches these documents. Returns why none of them could be had, if that is so.
    fn fetch(&mut self, ids: &[VconId]) -> Result<Option<String>, Stop> {
        let (mut done, mut failed) = (0, Vec::new());
        let mut stop = None;
        for id in ids {
            self.renew_turn()?;
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
                Fetched::Away(why) => {
                    stop = Some(Stop::Trouble(why));
                    break;
                }
            }
        }
        let last = failed.last().map(|(_, why)| why.clone());
        for (id, why) in failed {
            // If no document can be had, that is no fault of this one.
            let tries = self.pulls.postpone(id, done > 0)?;
            if done > 0 && tries == 1 {
                let name = &self.follower.name;
                log::warn!(vcon_id = id.as_str(); "{id}: follower {name}: {why}; it tries again");
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

    /// Hands a vCon in with its document, or with the one that is here already.
    fn hand_in(&mut self, id: &VconId, text: &str, created: Option<CreatedAt>) -> Result<(), Stop> {
        let digest = vcon::digest(text);
        let created = created.unwrap_or_else(|| {
            log::warn!(
                vcon_id = id.as_str();
                "vCon {id}: `created_at` is missing or unreadable, the present time is used"
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
                    Compared::Other(why) => return self.refuse(id, &why, 1),
                },
                handed_in => handed_in?,
            };
            let name = &self.follower.name;
            match handed_in {
                SubmitOutcome::Done => {
                    let list = &self.follower.ingress_list;
                    log::info!(vcon_id = id.as_str(); "{id}: follower {name} pulled it onto list {list}");
                    self.tallies.note(name, |it| it.pulled += 1);
                }
                SubmitOutcome::NotOurs => log::debug!("{id}: another instance has handed it in"),
                SubmitOutcome::Gone | SubmitOutcome::There => continue,
                SubmitOutcome::Refused(why) => return Err(Stop::Trouble(why)),
            }
            return Ok(());
        }
    }

    /// Compares a pulled document with the one that is here. That one may have changes of ours in it,
    /// so it is never written over.
    fn compare(&mut self, pulled: &PulledVcon<'_>) -> Result<Compared, Stop> {
        let (here, last) = self.pulls.document(pulled.id)?;
        let here = match here {
            Document::Missing => return Ok(Compared::Gone),
            Document::Found(_, bytes) => bytes,
            // Then its key holds something else: what a lane makes of that is said there.
            Document::NotAnId | Document::Unusable(_) => Vec::new(),
        };
        if last.as_deref() == Some(pulled.digest) || is_same(pulled.id, &here, pulled.text) {
            return Ok(Compared::Same);
        }
        Ok(Compared::Other(format!(
            "there is a document of this vCon already, with other content: it was kept as it is, and not \
             replaced by the one at {}",
            self.remote.document_url(pulled.id)
        )))
    }

    /// Makes a dead letter of a UUID whose document cannot be had.
    fn refuse(&mut self, id: &VconId, why: &str, attempts: u32) -> Result<(), Stop> {
        let name = &self.follower.name;
        let reason = Reason {
            stage: &format!("follower {name}"),
            error: why,
            attempts,
            worker: "Monitor",
        };
        match self.pulls.refuse(id, &reason)? {
            SubmitOutcome::Refused(why) => Err(Stop::Trouble(why)),
            SubmitOutcome::Done => {
                let list = &self.follower.ingress_list;
                log::error!(
                    vcon_id = id.as_str();
                    "{id}: follower {name} moved it to the dead letter queue of list {list}: {why}"
                );
                self.tallies.note(name, |it| it.dead_lettered += 1);
                Ok(())
            }
            SubmitOutcome::NotOurs | SubmitOutcome::There | SubmitOutcome::Gone => Ok(()),
        }
    }

    /// Logs what goes wrong, once as long as it is the same.
    fn tell(&mut self, why: String) {
        let name = &self.follower.name;
        self.tallies.note(name, |it| {
            it.failures += 1;
            it.error = Some(why.clone());
        });
        if self.trouble.as_ref() == Some(&why) {
            log::debug!("follower {name}: {why}");
        } else {
            log::warn!("follower {name}: {why}; it tries again");
            self.trouble = Some(why);
        }
    }

    fn works(&mut self) {
        let name = &self.follower.name;
        self.tallies.note(name, |it| it.error = None);
        if self.trouble.take().is_some() {
            log::info!("follower {name}: works again");
        }
    }
}

/// What the document that is here is to the one that was pulled.
enum Compared {
    /// The same content, or what became of it here.
    Same,
    /// It is here no more.
    Gone,
    /// Another one; says so.
    Other(String),
}

/// Whether two documents have the same content, whatever the age of their property names.
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
    fn the_end_waits_for_a_pop_under_way_and_lets_none_begin() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter();
        assert!(pass.is_some());
        assert!(!gate.close(Duration::from_millis(20)));
        assert!(gate.is_closed() && gate.enter().is_none());
        let closing = Arc::clone(&gate);
        let closes = thread::spawn(move || closing.close(Duration::from_secs(60)));
        drop(pass);
        assert_eq!(closes.join().ok(), Some(true));
        assert!(gate.close(Duration::ZERO));
    }

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
