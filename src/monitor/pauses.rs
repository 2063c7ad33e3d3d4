//! A thread of the monitor that puts in force what operators have paused.
//!
//! ```text
//! conserver:paused ──look──► file beside the scoreboard ──► its version on the scoreboard ──► lanes
//!                                                                                              │
//! conserver:paused:confirmed ◄── confirm ◄── no request that follows older pauses is on its way ◄┘
//! ```
//!
//! If Redis is unavailable or the key cannot be read, the pauses in force stay. Each good look is shown on the scoreboard:
//! without a recent one (at the start, if this process is frozen or dead, or when Redis was away) a lane claims nothing
//! before it has read the key itself.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::LIMIT;
use crate::child::Child;
use crate::queue::{PauseTable, Pauses, QueueError, Server, is_of_the_key};
use crate::runtime_dir;
use crate::scoreboard::Slot;
use crate::settings::Settings;
use crate::sys;
use crate::visible::printable;

/// The pause between two looks; shorter if the lease lives so short that the lanes would find a look too old.
const LOOK: Duration = Duration::from_millis(500);

/// How long the lanes get to follow before the next look, and how often they are looked at.
const FOLLOW_TIME: Duration = Duration::from_millis(500);
const FOLLOW_PAUSE: Duration = Duration::from_millis(2);

/// After so long, pauses are confirmed again.
const CONFIRMED_TIME: Duration = Duration::from_secs(10);

/// Starts the thread; it lives until the monitor drains.
pub(super) fn start(child: &Child, settings: &Settings, server: &Server) -> io::Result<()> {
    let Some(slot) = child.slot.clone() else {
        return Ok(());
    };
    let keeper = PauseKeeper::new(settings, server, child.draining.clone(), slot);
    let thread = thread::Builder::new().name("pauses".to_owned());
    thread.spawn(|| keeper.run())?;
    Ok(())
}

struct PauseKeeper {
    table: PauseTable,
    instance: String,
    draining: Receiver<()>,
    /// The pause between two looks.
    pause: Duration,
    slot: Slot,
    /// The version of the pauses in force, once this monitor has put them in force.
    version: u64,
    /// What the lanes follow; `None` before the first look, or if that is not known.
    in_force: Option<Pauses>,
    /// What Redis was told last, and when; `None` if it may not have that.
    confirmed: Option<(Pauses, Instant)>,
    /// What the log says of the key.
    fault: Option<String>,
    /// What the log says of the file.
    file_fault: Option<String>,
}

impl PauseKeeper {
    fn new(settings: &Settings, server: &Server, draining: Receiver<()>, slot: Slot) -> Self {
        // What a former monitor has put in force stays so until Redis says otherwise. Its version may be older than its
        // file, if it was killed between the two: so the first look raises the version in any case.
        let in_force = (slot.pauses_version() > 0)
            .then(|| Pauses::load(slot.pauses_path()).ok())
            .flatten();
        Self {
            table: PauseTable::new(server.clone(), LIMIT),
            instance: settings.instance.clone(),
            draining,
            pause: LOOK.min(settings.heartbeat_ttl / 8),
            slot,
            version: 0,
            in_force,
            confirmed: None,
            fault: None,
            file_fault: None,
        }
    }

    fn run(mut self) {
        loop {
            if let Err(error) = self.look() {
                // While Redis was away, another daemon may have removed it.
                self.confirmed = None;
                log::debug!("could not look at what is paused: {error}");
            }
            if self.draining.recv_timeout(self.pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self) -> Result<(), QueueError> {
        // Before the look. While the lease is not renewed, no look counts: whoever pauses something takes this instance
        // for dead once it has run out, and does not wait for it.
        let looked = sys::monotonic_ms().min(self.slot.lease_renewed());
        let is_in_force = match self.table.all() {
            Ok(found) => {
                self.fault = None;
                self.put_in_force(found)
            }
            Err(error) if is_of_the_key(&error) => self.note_fault(&error),
            Err(error) => return Err(error),
        };
        if is_in_force {
            self.slot.note_pauses_look(looked);
        }
        if !self.is_confirmed() && self.lanes_follow() {
            let pauses = self.in_force.clone().unwrap_or_default();
            self.table.confirm(&self.instance, &pauses)?;
            self.confirmed = Some((pauses, Instant::now()));
        }
        Ok(())
    }

    /// Whether Redis has what is in force. Now and then that is not certain: another daemon that took this one for dead
    /// has removed it, or a failover has lost it.
    fn is_confirmed(&self) -> bool {
        self.confirmed.as_ref().is_some_and(|(pauses, at)| {
            Some(pauses) == self.in_force.as_ref()
                && (pauses.is_empty() || at.elapsed() < CONFIRMED_TIME)
        })
    }

    /// The key is not a hash, or cannot be read. Without any pauses in force, nothing is paused.
    fn note_fault(&mut self, error: &QueueError) -> bool {
        let fault = error.to_string();
        if self.fault.as_ref() != Some(&fault) {
            log::error!(
                "could not read what is paused (conserver:paused): {fault}; {}",
                match &self.in_force {
                    Some(_) => "the pauses in force stay",
                    None => "nothing is paused",
                }
            );
            self.fault = Some(fault);
        }
        self.put_in_force(self.in_force.clone().unwrap_or_default())
    }

    /// Makes the lanes follow these pauses. Returns false if that fails: they follow the former ones until the next look.
    fn put_in_force(&mut self, pauses: Pauses) -> bool {
        let path = self.slot.pauses_path();
        let is_shown = self.slot.pauses_version() == self.version && self.version > 0;
        // A service that clears temporary folders may have removed the file.
        let is_kept = || Pauses::load(path).is_ok_and(|kept| kept == pauses);
        if is_shown && self.in_force.as_ref() == Some(&pauses) && is_kept() {
            return true;
        }
        let kept = serde_json::to_string(&pauses)
            .map_err(io::Error::from)
            .and_then(|text| runtime_dir::replace_for_group(path, &text));
        if let Err(error) = kept {
            let fault = error.to_string();
            if self.file_fault.as_ref() != Some(&fault) {
                log::error!("could not put in force what is paused, trying again: {fault}");
                self.file_fault = Some(fault);
            }
            return false;
        }
        self.file_fault = None;
        self.version = self.version.max(self.slot.pauses_version()) + 1;
        self.slot.set_pauses_version(self.version);
        let former = self.in_force.replace(pauses).unwrap_or_default();
        self.log_changes(&former);
        true
    }

    fn log_changes(&self, former: &Pauses) {
        let now = self.in_force.iter().flat_map(Pauses::iter);
        for (target, record) in now.filter(|(target, record)| former.get(target) != Some(record)) {
            let by = match &*record.by {
                "" => String::new(),
                by => format!(" by {by}"),
            };
            let since = match &*record.since {
                "" => String::new(),
                since => format!(" since {since}"),
            };
            log::warn!("{}", printable(&format!("{} is paused{by}{since}", target)));
        }
        let is_paused = |target| {
            self.in_force
                .as_ref()
                .is_some_and(|it| it.get(target).is_some())
        };
        for (target, _) in former.iter().filter(|(target, _)| !is_paused(target)) {
            log::info!("{}", printable(&format!("{} is resumed", target)));
        }
    }

    /// Waits a little until no request that follows older pauses is on its way.
    fn lanes_follow(&self) -> bool {
        let begun = Instant::now();
        loop {
            if self.slot.all_claims_follow(self.version) {
                return true;
            }
            if begun.elapsed() >= FOLLOW_TIME
                || self.draining.recv_timeout(FOLLOW_PAUSE) != Err(RecvTimeoutError::Timeout)
            {
                return false;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use crossbeam_channel::never;
    use tempfile::TempDir;

    use super::*;
    use crate::queue::PauseTarget;
    use crate::scoreboard::{Board, Shape};

    /// A keeper whose Redis nobody asks.
    fn keeper() -> (TempDir, Board, PauseKeeper) {
        let folder = tempfile::tempdir().unwrap();
        let mut board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
        board.prepare(0).unwrap();
        let slot = Slot::attach(board.id(), 0, 1).unwrap();
        let keeper = successor(slot);
        (folder, board, keeper)
    }

    fn successor(slot: Slot) -> PauseKeeper {
        let settings = Settings::from_lookup(&|_| None).unwrap();
        let server = Server::new(&settings.redis_url).unwrap();
        PauseKeeper::new(&settings, &server, never(), slot)
    }

    fn paused(list: &str) -> Pauses {
        [PauseTarget::List(list.parse().unwrap())].into()
    }

    #[test]
    fn each_change_has_a_version_and_a_new_monitor_raises_it() {
        let (_folder, _board, mut keeper) = keeper();
        let slot = keeper.slot.clone();
        assert!(keeper.put_in_force(paused("a")));
        assert!(keeper.put_in_force(paused("a")));
        assert_eq!(slot.pauses_version(), 1);
        let mode = fs::metadata(slot.pauses_path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o640, "the group may read it");
        assert!(keeper.put_in_force(paused("b")));
        assert_eq!(slot.pauses_version(), 2);
        fs::write(slot.pauses_path(), "{}").unwrap();
        assert!(keeper.put_in_force(paused("b")));
        assert_eq!(slot.pauses_version(), 3, "the file was changed");
        // A monitor is killed after it has written the file, and before it shows the version.
        let text = serde_json::to_string(&paused("c")).unwrap();
        runtime_dir::replace(slot.pauses_path(), &text).unwrap();
        let mut next = successor(slot.clone());
        assert_eq!(next.in_force, Some(paused("c")));
        assert!(next.put_in_force(paused("c")));
        assert_eq!(slot.pauses_version(), 4);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_logged_once_and_tried_again() {
        let (_folder, _board, mut keeper) = keeper();
        let slot = keeper.slot.clone();
        let path = slot.pauses_path();
        fs::create_dir(path).unwrap();
        assert!(!keeper.put_in_force(paused("a")));
        let fault = keeper.file_fault.clone();
        assert!(fault.is_some() && slot.pauses_version() == 0);
        assert!(!keeper.put_in_force(paused("a")));
        assert_eq!(keeper.file_fault, fault);
        fs::remove_dir(path).unwrap();
        assert!(keeper.put_in_force(paused("a")));
        assert_eq!((keeper.file_fault, slot.pauses_version()), (None, 1));
    }

    #[test]
    fn what_redis_was_told_is_told_again_after_some_time() {
        let (_folder, _board, mut keeper) = keeper();
        assert!(!keeper.is_confirmed());
        let long_ago = Instant::now().checked_sub(CONFIRMED_TIME).unwrap();
        for (pauses, at, expected) in [
            (paused("a"), Instant::now(), true),
            (paused("a"), long_ago, false),
            (Pauses::default(), long_ago, true),
        ] {
            keeper.in_force = Some(pauses.clone());
            keeper.confirmed = Some((pauses, at));
            assert_eq!(keeper.is_confirmed(), expected);
        }
        keeper.in_force = Some(paused("b"));
        assert!(!keeper.is_confirmed());
    }
}
