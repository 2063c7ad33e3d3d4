//! Locks whose content is whole at any time, so that a panic elsewhere does no harm to it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what no panic leaves half done.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
