//! One thread that wakes idle lanes.
//!
//! ```text
//! lane: nothing to claim ──idle──► doorbell: until a list holds work, or the tick ──ring──► one lane
//! ```

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Outage, Shared, Turn};
use crate::queue::{Bell, QueueError, Server};

/// The lanes' side of the doorbell.
#[derive(Clone)]
pub(super) struct Doorbell {
    idle: Sender<()>,
    rings: Sender<()>,
    ring: Receiver<()>,
    lanes: usize,
}

impl Doorbell {
    /// Starts the thread; it lives as long as the process.
    pub fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let lanes = shared.settings.concurrency as usize;
        let (idle, idles) = bounded(lanes);
        let (rings, ring) = bounded(lanes);
        let (shared, ringing) = (Arc::clone(shared), rings.clone());
        thread::Builder::new()
            .name("doorbell".to_owned())
            .spawn(move || watch(&shared, &idles, &ringing))?;
        Ok(Self {
            idle,
            rings,
            ring,
            lanes,
        })
    }

    /// Tells that this lane found nothing to do, and gives the channel on which it is rung.
    ///
    /// A ring is a hint: there may be work, or another lane may have been faster.
    pub fn idle(&self) -> &Receiver<()> {
        // A full channel holds a token for every lane already.
        let _ = self.idle.try_send(());
        &self.ring
    }

    /// Has every idle lane look for work.
    pub fn ring_all(&self) {
        for _ in 0..self.lanes {
            // A full channel will wake every lane already.
            let _ = self.rings.try_send(());
        }
    }
}

fn watch(shared: &Shared, idles: &Receiver<()>, rings: &Sender<()>) {
    let mut outage = Outage::new(
        "Redis (for waking idle lanes)",
        &shared.settings,
        &Arc::default(),
    );
    // The drain does not end this thread, the end of the process does.
    let drain = crossbeam_channel::never();
    let turn = Turn::idle(&drain, None);
    let mut bell = None;
    while idles.recv().is_ok() {
        match wait(&mut bell, shared) {
            Ok(()) => outage.over(),
            Err(error) => {
                bell = None;
                // Nothing drains this turn.
                let _ = outage.insist(&error, &turn);
            }
        }
        // Rung after a fault too: without a doorbell the lanes still look now and then. A full
        // channel will wake every lane already.
        let _ = rings.try_send(());
    }
}

fn wait(bell: &mut Option<Bell>, shared: &Shared) -> Result<(), QueueError> {
    let bell = match bell {
        Some(bell) => bell,
        None => {
            let server = Server::with_pushes(&shared.settings.redis_url)?;
            let name = format!("conserver:{}:doorbell", shared.name);
            // Shorter than a second, a busy server's pauses would look like a fault.
            let tick = shared.settings.tick.max(Duration::from_secs(1));
            bell.insert(Bell::connect(&server, &name, tick)?)
        }
    };
    bell.wait(&|| {
        let lists = shared.holds.lists(&shared.current.get());
        (lists.open, lists.held)
    })
}
