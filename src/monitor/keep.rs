//! A thread of the monitor that keeps waiting vCons from running out, however long an outage, a
//! hold or a backlog lasts.

use std::io;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::child::Child;
use crate::config::{ListName, Plan};
use crate::queue::{Expiry, Keeper, Server};
use crate::scoreboard::Slot;
use crate::settings::Settings;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);

/// Starts the thread; it lives until the monitor drains.
pub(super) fn start(child: &Child, settings: &Settings, server: &Server) -> io::Result<()> {
    let Some(slot) = child.slot.clone() else {
        return Ok(());
    };
    let watch = Watch {
        keeper: Keeper::new(server.clone(), Expiry::of(settings)),
        draining: child.draining.clone(),
        // Documents are kept once half of their time has gone: several looks fall into the other.
        pause: Duration::from_secs(settings.redis_expiry / 6).clamp(SHORTEST, LONGEST),
        slot,
        generation: None,
        lists: Vec::new(),
        dead_letters: Vec::new(),
        storages: Vec::new(),
        deferring: Vec::new(),
    };
    let name = "keeper".to_owned();
    thread::Builder::new().name(name).spawn(|| watch.run())?;
    Ok(())
}

struct Watch {
    keeper: Keeper,
    draining: Receiver<()>,
    pause: Duration,
    slot: Slot,
    generation: Option<u64>,
    lists: Vec<ListName>,
    /// The lists of all chains, those out of service among them: of these the dead letters stay.
    dead_letters: Vec<ListName>,
    storages: Vec<String>,
    /// Those of them that have a backlog.
    deferring: Vec<String>,
}

impl Watch {
    fn run(mut self) {
        loop {
            let pause = if self.look() { self.pause } else { SHORTEST };
            if self.draining.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Looks once at every list that is served, and at every storage; false where something is left to be looked at.
    fn look(&mut self) -> bool {
        self.follow_configuration();
        for list in &self.lists {
            match self.keeper.keep(list) {
                Ok(0) => {}
                Ok(kept) => {
                    log::debug!("{kept} documents of list {list} were kept from running out")
                }
                Err(error) => {
                    log::debug!("the documents of list {list} could not be kept: {error}");
                    return false;
                }
            }
        }
        for storage in &self.deferring {
            match self.keeper.keep_backlog(storage) {
                Ok(0) => {}
                Ok(kept) => {
                    log::debug!(
                        "kept {kept} documents of the backlog of storage {storage} from running out"
                    );
                }
                Err(error) => {
                    log::debug!("could not keep the backlog of storage {storage}: {error}");
                    return false;
                }
            }
        }
        for storage in &self.storages {
            match self.keeper.forget_reasons(storage) {
                Ok(0) => {}
                Ok(dropped) => {
                    log::debug!("dropped {dropped} reasons of storage {storage} without entries");
                }
                Err(error) => {
                    log::debug!("could not drop reasons of storage {storage}: {error}");
                    return false;
                }
            }
        }
        for list in &self.dead_letters {
            match self.keeper.forget_reasons_of_list(list) {
                Ok(0) => {}
                Ok(dropped) => {
                    log::debug!("dropped {dropped} reasons of list {list} without entries");
                }
                Err(error) => {
                    log::debug!("could not drop reasons of list {list}: {error}");
                    return false;
                }
            }
        }
        self.generation.is_some()
    }

    fn follow_configuration(&mut self) {
        let generation = Some(self.slot.config_generation());
        if generation != self.generation
            && let Ok(plan) = Plan::load_kept(self.slot.config_path())
        {
            self.generation = generation;
            self.lists = plan.ingress_lists();
            let lists = plan.chains.iter().flat_map(|chain| &chain.ingress_lists);
            self.dead_letters = lists.cloned().collect();
            self.storages = plan.storages;
            self.deferring = plan.deferring;
        }
    }
}
