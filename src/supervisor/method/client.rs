//! The supervisor's side of the forkserver.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Event;
use super::protocol::{Lines, Report, line};
use super::spawn::{command, pid_of};
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
    listens: bool,
}

impl Forkserver {
    /// Asks for a child; brings up a forkserver where none runs.
    pub fn ask(&mut self, assignment: &Assignment) -> io::Result<()> {
        let message = line(assignment)?;
        let running = match &mut self.running {
            Some(running) => running,
            empty => empty.insert(Running::start()?),
        };
        // A forkserver that does not read what it is asked is as good as dead.
        let written = running.socket.write_all(&message);
        if written.is_err() {
            sys::kill(running.pid, Signal::SIGKILL);
        }
        written
    }

    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        let running = self.running.as_ref().filter(|running| running.listens)?;
        Some(running.socket.as_fd())
    }

    pub fn events(&mut self) -> Vec<Event> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
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
        let child = command("forkserver")?
            .arg(supervisor)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        let pid = pid_of(&child);
        log::info!("Started the forkserver (PID {pid})");
        Ok(Self {
            pid,
            socket,
            lines: Lines::default(),
            listens: true,
        })
    }
}

fn event(report: Report) -> Event {
    match report {
        Report::Started { generation, pid } => Event::Started(generation, Pid::from_raw(pid)),
        Report::Failed { generation, error } => Event::Failed(generation, error),
        Report::Ended { pid, end } => Event::Ended(Pid::from_raw(pid), end),
    }
}
