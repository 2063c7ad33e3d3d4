//! Standard error: each line in one write, and without waiting where that was asked for.
//!
//! A worker waits for a log that is full: it is better slow than silent, and can be killed. The
//! supervisor must not, or nobody would reap or stop anything as long as nobody reads the log: it
//! leaves lines out, and says later how many.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use socket2::SockRef;

/// As much as a pipe takes in one piece or not at all (PIPE_BUF on Linux).
const WHOLE: usize = 4096;

/// What a line that was cut ends in.
const CUT: &[u8] = b"...\n";

static IMPATIENT: AtomicBool = AtomicBool::new(false);
static OUTLET: Mutex<Option<Outlet>> = Mutex::new(None);
static LOST: AtomicU64 = AtomicU64::new(0);

/// A way to write that does not wait.
enum Outlet {
    /// A file, which never makes anyone wait for a reader.
    File,
    /// A pipe or a terminal, opened once more: not to wait is a property of the opening, and the
    /// one that was handed to us is shared with all other processes.
    Own(File),
    /// A socket, which can be told with each message.
    Socket,
    /// What cannot be opened again: it is asked first whether it has room. Another process may be
    /// faster in between, so this is the last resort.
    Asked,
}

/// From now on this process leaves lines out rather than wait for standard error.
pub fn never_wait() {
    let mut outlet = OUTLET.lock().unwrap_or_else(PoisonError::into_inner);
    *outlet = Some(Outlet::find());
    IMPATIENT.store(true, Ordering::Relaxed);
}

/// From now on this process waits for standard error, also where the one it was forked from did
/// not.
pub fn may_wait() {
    IMPATIENT.store(false, Ordering::Relaxed);
    *OUTLET.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Says how many lines were left out since the last call, where there is room for it now.
pub fn report_lost() {
    let lost = LOST.swap(0, Ordering::Relaxed);
    if lost > 0 {
        log::warn!("{lost} lines of this log were lost: standard error did not take them");
        if LOST.load(Ordering::Relaxed) > 0 {
            LOST.store(lost, Ordering::Relaxed);
        }
    }
}

/// Writes one line, which ends in a line break.
pub(super) fn write_line(line: &[u8]) {
    if !IMPATIENT.load(Ordering::Relaxed) {
        // There is nowhere left to say that the log cannot be written.
        let _ = io::stderr().write_all(line);
        return;
    }
    let outlet = OUTLET.lock().unwrap_or_else(PoisonError::into_inner);
    let written = outlet.as_ref().is_none_or(|outlet| outlet.write(line));
    if !written {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

impl Outlet {
    fn find() -> Self {
        let kind = fstat(io::stderr()).map_or(0, |stat| stat.st_mode) & SFlag::S_IFMT.bits();
        match SFlag::from_bits_truncate(kind) {
            SFlag::S_IFREG => Self::File,
            SFlag::S_IFSOCK => Self::Socket,
            _ => reopen().map_or(Self::Asked, Self::Own),
        }
    }

    /// Answers whether the line was written.
    fn write(&self, line: &[u8]) -> bool {
        let written = match self {
            Self::File => io::stderr().write_all(line).map(|()| line.len()),
            Self::Own(file) => (&mut &*file).write(&cut(line)),
            Self::Socket => send(&io::stderr(), &cut(line)),
            Self::Asked if has_room() => io::stderr().write(&cut(line)),
            Self::Asked => return false,
        };
        written.is_ok()
    }
}

fn send(socket: &impl AsFd, line: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send_with_flags(line, libc::MSG_DONTWAIT)
}

#[cfg(target_os = "linux")]
fn reopen() -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/proc/self/fd/2")
}

/// Elsewhere such a name stands for the descriptor itself.
#[cfg(not(target_os = "linux"))]
fn reopen() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

fn has_room() -> bool {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut room, PollTimeout::ZERO), Ok(1))
}

/// The line, shortened to what is written in one piece.
fn cut(line: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if line.len() <= WHOLE {
        return line.into();
    }
    let mut end = WHOLE - CUT.len();
    // Not in the middle of a character.
    while end > 0 && line[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    [&line[..end], CUT].concat().into()
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_that_nobody_reads_refuses_rather_than_waits() {
        let (here, there) = UnixStream::pair().expect("a socket");
        let line = [b'x'; 1000];
        let refusal = loop {
            if let Err(error) = send(&here, &line) {
                break error;
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
        drop(there);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let short = b"short\n";
        assert_eq!(*cut(short), *short);
        for shift in 0..4 {
            let long = "x".repeat(shift) + &"\u{1F600}".repeat(2000) + "\n";
            let cut = cut(long.as_bytes()).into_owned();
            assert!(cut.len() <= WHOLE && cut.len() > WHOLE - 8);
            let text = String::from_utf8(cut).unwrap_or_default();
            assert!(text.ends_with("\u{1F600}...\n"));
        }
    }
}
