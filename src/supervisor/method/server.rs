//! The forkserver: a clean process of one thread, which makes copies of itself on request.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::protocol::{Lines, Report, Request, line};
use super::{Started, fork};
use crate::child::Assignment;
use crate::supervisor::signals::Signals;
use crate::sys;

/// What a terminal or a person sends to all processes; the supervisor alone acts on it.
const SIGNALS: &[Signal] = &[
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// A child, as far as the supervisor knows. It is collected only when that has been told of its
/// end: until then the supervisor may send it a signal, which must not hit another process that
/// has its PID by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Runs,
    Told,
}

/// Serves the supervisor, which is at the other end of standard input, until it closes that.
/// Answers in each new child, what it is to do; and in the forkserver nothing, at the end.
pub fn run(supervisor: Pid) -> io::Result<Option<Assignment>> {
    // Elsewhere that would take a thread, and a fork needs a process of one: the end of the
    // socket has to do.
    if cfg!(target_os = "linux") && !sys::die_with_parent(supervisor)? {
        return Ok(None);
    }
    let mut signals = Signals::catch(SIGNALS)?;
    sys::release_signals()?;
    let mut socket = UnixStream::from(sys::take_stdin()?);
    socket.set_nonblocking(true)?;
    let mut lines = Lines::default();
    let mut children = BTreeMap::new();
    loop {
        signals.take();
        for (pid, life) in &mut children {
            if *life == Life::Runs
                && let Some(end) = sys::peek(*pid)
            {
                *life = Life::Told;
                let pid = pid.as_raw();
                tell(&mut socket, &Report::Ended { pid, end })?;
            }
        }
        let (requests, alive): (Vec<Request>, bool) = lines.read(&mut socket);
        for request in requests {
            let assignment = match request {
                Request::Start(assignment) => *assignment,
                Request::Release { pid } => {
                    let pid = Pid::from_raw(pid);
                    if children.remove(&pid) == Some(Life::Told) {
                        sys::reap_child(pid);
                    }
                    continue;
                }
            };
            let generation = assignment.generation;
            let report = match fork::start() {
                Ok(Started::There(pid)) => {
                    children.insert(pid, Life::Runs);
                    let pid = pid.as_raw();
                    Report::Started { generation, pid }
                }
                Ok(_) => return Ok(Some(assignment)),
                Err(error) => Report::Failed {
                    generation,
                    error: error.to_string(),
                },
            };
            tell(&mut socket, &report)?;
        }
        if !alive {
            return Ok(None);
        }
        wait(&signals, &socket)?;
    }
}

/// The supervisor reads at once whatever comes; where it does not, it is gone or stopped, and
/// waiting for it is right.
fn tell(socket: &mut UnixStream, report: &Report) -> io::Result<()> {
    let mut rest = &line(report)?[..];
    while !rest.is_empty() {
        match socket.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                ignore_interrupts(poll(&mut room, PollTimeout::NONE))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(signals: &Signals, socket: &UnixStream) -> io::Result<()> {
    let mut sources = [
        PollFd::new(signals.readable(), PollFlags::POLLIN),
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
    ];
    ignore_interrupts(poll(&mut sources, PollTimeout::NONE))
}

fn ignore_interrupts(polled: nix::Result<i32>) -> io::Result<()> {
    match polled {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
