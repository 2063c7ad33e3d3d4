//! The supervisor's side of the forkserver.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Event;
use super::protocol::{Lines, Report, Request, line};
use super::spawn::pid_of;
use crate::child::Assignment;
use crate::sys;

/// The forkserver, where one runs.
#[derive(Default)]
pub(in crate::supervisor) struct Forkserver {
    running: Option<Running>,
}

struct Running {
    pid: Pid,
    socket: UnixStream,
    lines: Lines,
    /// What the socket had no room for yet.
    outgoing: Vec<u8>,
    listens: bool,
}

impl Forkserver {
    /// Asks for a child; brings up a forkserver where none runs.
    pub fn ask(&mut self, assignment: &Assignment) -> io::Result<()> {
        let message = line(&Request::Start(Box::new(assignment.clone())))?;
        let running = match &mut self.running {
            Some(running) => running,
            empty => empty.insert(Running::start()?),
        };
        running.outgoing.extend_from_slice(&message);
        running.flush()
    }

    /// Lets it forget a child that it has told the end of.
    pub fn release(&mut self, pid: Pid) {
        let pid = pid.as_raw();
        if let Some(running) = &mut self.running
            && let Ok(message) = line(&Request::Release { pid })
        {
            running.outgoing.extend_from_slice(&message);
            // Where that fails it is killed, and its end says the rest.
            let _ = running.flush();
        }
    }

    /// The socket, and what it is to be waited for.
    pub fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let running = self.running.as_ref().filter(|running| running.listens)?;
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !running.outgoing.is_empty());
        Some((running.socket.as_fd(), flags))
    }

    /// Goes on with what it is asked, and takes in what it has told.
    pub fn events(&mut self) -> Vec<Event> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        // Where that fails it is killed, and its end says the rest.
        let _ = running.flush();
        let (reports, alive) = running.lines.read(&mut running.socket);
        // What has been closed stays readable; its end is told by SIGCHLD.
        running.listens = alive;
        reports.into_iter().map(event).collect()
    }

    pub fn note_end(&mut self, pid: Pid) -> bool {
        let was = self.pid() == Some(pid);
        if was {
            self.running = None;
        }
        was
    }

    pub fn pid(&self) -> Option<Pid> {
        self.running.as_ref().map(|running| running.pid)
    }

    /// It ends when nobody can ask it any more.
    pub fn close(&mut self) {
        if let Some(running) = &mut self.running
            && running.listens
        {
            running.listens = false;
            let _ = running.socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let supervisor = std::process::id().to_string();
        // It holds them back until it is ready for its own.
        let held = sys::hold_signals()?;
        let child = sys::this_program("forkserver")?
            .arg(supervisor)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn();
        drop(held);
        let pid = pid_of(&child?);
        log::info!("Started the forkserver (PID {pid})");
        Ok(Self {
            pid,
            socket,
            lines: Lines::default(),
            outgoing: Vec::new(),
            listens: true,
        })
    }

    /// Writes as much as there is room for: the supervisor never waits for that.
    fn flush(&mut self) -> io::Result<()> {
        let written = write_some(&mut self.socket, &mut self.outgoing);
        if written.is_err() {
            // It has closed its end, and is as good as dead.
            self.outgoing.clear();
            sys::kill(self.pid, Signal::SIGKILL);
        }
        written
    }
}

/// Writes what the socket has room for, and keeps the rest.
fn write_some(socket: &mut UnixStream, outgoing: &mut Vec<u8>) -> io::Result<()> {
    while !outgoing.is_empty() {
        match socket.write(outgoing) {
            Ok(count) => drop(outgoing.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn event(report: Report) -> Event {
    match report {
        Report::Started { generation, pid } => Event::Started(generation, Pid::from_raw(pid)),
        Report::Failed { generation, error } => Event::Failed(generation, error),
        Report::Ended { pid, end } => Event::Ended(Pid::from_raw(pid), end),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn more_than_the_socket_takes_is_kept_and_goes_out_in_order() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&here)
            .set_send_buffer_size(4096)
            .unwrap();
        let all: Vec<u8> = (0..200_000_u32).flat_map(u32::to_ne_bytes).collect();
        let mut outgoing = all.clone();
        write_some(&mut here, &mut outgoing).unwrap();
        assert!(!outgoing.is_empty(), "the test needs a socket that is full");
        let mut read = Vec::new();
        while read.len() < all.len() {
            let mut bytes = [0; 8192];
            let count = there.read(&mut bytes).unwrap();
            read.extend_from_slice(&bytes[..count]);
            write_some(&mut here, &mut outgoing).unwrap();
        }
        assert!(read == all);
        // A process that another test is just starting may have it too.
        there.shutdown(std::net::Shutdown::Both).unwrap();
        outgoing.push(0);
        assert!(write_some(&mut here, &mut outgoing).is_err());
    }
}
