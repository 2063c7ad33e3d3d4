//! Wakes the thread that waits for connections.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Wakes the sleeper it was made with; cheap to clone.
#[derive(Clone)]
pub(super) struct Waker(Arc<UnixStream>);

/// What can be waited for.
pub(super) struct Sleeper(UnixStream);

/// A sleeper and its waker.
pub(super) fn pair() -> io::Result<(Waker, Sleeper)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((Waker(Arc::new(near)), Sleeper(far)))
}

impl Waker {
    /// Ends the sleep, or the next one.
    pub fn wake(&self) {
        // One that is full has enough in it to wake anybody.
        let _ = (&*self.0).write(&[0]);
    }
}

impl Sleeper {
    /// Forgets every wake so far.
    pub fn rest(&mut self) {
        let mut bytes = [0; 64];
        while matches!(self.0.read(&mut bytes), Ok(count) if count == bytes.len()) {}
    }
}

impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
