//! Which vCons are in work at the same time as others of this worker.
//!
//! A vCon on which a worker has died is a suspect. Were it in work beside others when the next
//! one dies, these would have that death to their name too, and in the end they would be taken
//! for poison together. So suspects are worked on alone.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What the lanes of a worker have in hand.
#[derive(Default)]
pub(super) struct Company(RwLock<()>);

impl Company {
    /// Takes part, from before the claim to its end; waits while a suspect is in work.
    pub fn join(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing else is in work, and keeps it so.
    pub fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
