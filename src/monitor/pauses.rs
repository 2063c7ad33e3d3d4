//! A thread of the monitor that puts in force what operators have paused.
//!
//! ```text
//! conserver:paused ──look──► file beside the scoreboard ──► its version on the scoreboard ──► lanes
//!                                                                                              │
//! conserver:paused:confirmed ◄── confirm ◄── no request that follows older pauses is on its way ◄┘
//! ```
//!
//! If Redis is unavailable or the key cannot be read, the pauses in force stay; if this thread is not there, too. A worker
//! that starts before the first look reads the key itself.

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
use crate::visible::printable;

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// How long the lanes get to follow before the next look, and how often they are looked at.
const FOLLOW_TIME: Duration = Duration::from_millis(500);
const FOLLOW_PAUSE: Duration = Duration::from_millis(2);

/// Starts the thread; it lives until the monitor drains.
pub(super) fn start(child: &Child, settings: &Settings, server: &Server) -> io::Result<()> {
    let Some(slot) = child.slot.clone() else {
        return Ok(());
    };
    let version = slot.pauses_version();
    // What a former monitor has put in force stays so until Redis says otherwise.
    let in_force = (version > 0)
        .then(|| Pauses::load(slot.pauses_path()).ok())
        .flatten();
    let keeper = PauseKeeper {
        table: PauseTable::new(server.clone(), LIMIT),
        instance: settings.instance.clone(),
        draining: child.draining.clone(),
        slot,
        version,
        in_force,
        confirmed: None,
        fault: None,
    };
    let thread = thread::Builder::new().name("pauses".to_owned());
    thread.spawn(|| keeper.run())?;
    Ok(())
}

struct PauseKeeper {
    table: PauseTable,
    instance: String,
    draining: Receiver<()>,
    slot: Slot,
    /// The version of the pauses in force.
    version: u64,
    /// What the lanes follow; `None` before the first look, or if that is not known.
    in_force: Option<Pauses>,
    /// What Redis was told last.
    confirmed: Option<Pauses>,
    /// What the log says of the key.
    fault: Option<String>,
}

impl PauseKeeper {
    fn run(mut self) {
        loop {
            if let Err(error) = self.look() {
                log::debug!("could not look at what is paused: {error}");
            }
            if self.draining.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self) -> Result<(), QueueError> {
        match self.table.all() {
            Ok(found) => {
                self.fault = None;
                self.put_in_force(found);
            }
            Err(error) if is_of_the_key(&error) => self.note_fault(&error),
            Err(error) => return Err(error),
        }
        if self.in_force != self.confirmed && self.lanes_follow() {
            let pauses = self.in_force.clone().unwrap_or_default();
            self.table.confirm(&self.instance, &pauses)?;
            self.confirmed = Some(pauses);
        }
        Ok(())
    }

    /// The key is not a hash, or cannot be read. Without any pauses in force, nothing is paused.
    fn note_fault(&mut self, error: &QueueError) {
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
        self.put_in_force(self.in_force.clone().unwrap_or_default());
    }

    /// Makes the lanes follow these pauses. If that fails, they follow the former ones until the next look.
    fn put_in_force(&mut self, pauses: Pauses) {
        let path = self.slot.pauses_path();
        let is_shown = self.slot.pauses_version() == self.version && self.version > 0;
        // A service that clears temporary folders may have removed the file.
        if is_shown && self.in_force.as_ref() == Some(&pauses) && path.exists() {
            return;
        }
        let kept = serde_json::to_string(&pauses)
            .map_err(io::Error::from)
            .and_then(|text| runtime_dir::replace(path, &text));
        if let Err(error) = kept {
            log::error!("could not put in force what is paused: {error}");
            return;
        }
        self.version = self.version.max(self.slot.pauses_version()) + 1;
        self.slot.set_pauses_version(self.version);
        let former = self.in_force.replace(pauses).unwrap_or_default();
        self.log_changes(&former);
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
