//! The forkserver: a clean process of one thread, which makes copies of itself on request.
//!
//! ```text
//! supervisor ──Start, Release──► forkserver ──fork──► child
//!            ◄─Started, Failed, Ended──┘
//! ```
//!
//! The two speak JSON over a socket, one message a line. The supervisor's side never blocks. The
//! forkserver reaps a child only when the supervisor has released it: until then the child's PID is not
//! given to another process, which a signal of the supervisor would hit.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::start_method::{Started, execute, fork};
use crate::child::{Assignment, LONGEST_ASSIGNMENT};
use crate::sys::{self, CaughtSignals, End};

/// A longer line is no message of this protocol.
const LONGEST: usize = LONGEST_ASSIGNMENT + (1 << 10);

/// A message to the forkserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum ForkserverRequest {
    /// Start a child.
    Start(Box<Assignment>),
    /// The supervisor knows of the end of this child, and sends it no more signals: its PID may go to
    /// another process.
    Release { pid: i32 },
}

/// A message from the forkserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ForkserverReport {
    /// The child of this generation has this PID.
    Started { generation: u64, pid: i32 },
    /// The child of this generation could not be started.
    Failed { generation: u64, error: String },
    /// A child has ended, and waits to be released.
    Ended { pid: i32, end: End },
}

/// A message as a line.
fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The lines that come in over a non-blocking socket.
#[derive(Default)]
struct Lines {
    pending: Vec<u8>,
    /// How many of these bytes are known to hold no end of a line.
    searched: usize,
}

impl Lines {
    /// Reads what has come. Returns the whole messages, and whether the other side is still there. A
    /// line that is no message is left out.
    pub fn read<T: for<'de> Deserialize<'de>>(
        &mut self,
        socket: &mut UnixStream,
    ) -> (Vec<T>, bool) {
        let mut bytes = [0; 65_536];
        let alive = loop {
            match socket.read(&mut bytes) {
                Ok(0) => break false,
                Ok(count) => self.pending.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
            }
            if self.pending.len() > LONGEST {
                break false;
            }
        };
        let unseen = &self.pending[self.searched..];
        let end = unseen.iter().rposition(|byte| *byte == b'\n');
        let whole = end.map_or(0, |at| self.searched + at + 1);
        let lines: Vec<u8> = self.pending.drain(..whole).collect();
        self.searched = self.pending.len();
        let messages = lines
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok());
        (messages.collect(), alive)
    }
}

/// The supervisor's side: the forkserver, if one runs.
#[derive(Default)]
pub(super) struct ForkserverClient {
    running: Option<ForkserverProcess>,
}

struct ForkserverProcess {
    pid: Pid,
    socket: UnixStream,
    lines: Lines,
    /// What the socket has had no room for.
    outgoing: Vec<u8>,
    listens: bool,
}

impl ForkserverClient {
    /// Requests a child; starts a forkserver if none runs.
    pub fn request(&mut self, assignment: &Assignment) -> io::Result<()> {
        let message = line(&ForkserverRequest::Start(Box::new(assignment.clone())))?;
        let running = match &mut self.running {
            Some(running) => running,
            empty => empty.insert(ForkserverProcess::start()?),
        };
        running.outgoing.extend_from_slice(&message);
        running.flush()
    }

    /// Releases a child whose end it has reported.
    pub fn release(&mut self, pid: Pid) {
        let pid = pid.as_raw();
        if let Some(running) = &mut self.running
            && let Ok(message) = line(&ForkserverRequest::Release { pid })
        {
            running.outgoing.extend_from_slice(&message);
            // If that fails it is killed, and its end does the rest.
            let _ = running.flush();
        }
    }

    /// The socket, and the events to wait for.
    pub fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let running = self.running.as_ref().filter(|running| running.listens)?;
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !running.outgoing.is_empty());
        Some((running.socket.as_fd(), flags))
    }

    /// Goes on sending requests, and returns what the forkserver has reported.
    pub fn reports(&mut self) -> Vec<ForkserverReport> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        // If that fails it is killed, and its end does the rest.
        let _ = running.flush();
        let (reports, alive) = running.lines.read(&mut running.socket);
        // A closed socket stays readable, so it is not polled any more; SIGCHLD reports the end.
        running.listens = alive;
        reports
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

    /// Ends the forkserver, by closing this side of the socket.
    pub fn close(&mut self) {
        if let Some(running) = &mut self.running
            && running.listens
        {
            running.listens = false;
            let _ = running.socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

impl ForkserverProcess {
    fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let supervisor = std::process::id().to_string();
        let pid = execute(
            "forkserver",
            &[supervisor.as_ref()],
            OwnedFd::from(theirs).into(),
        )?;
        log::info!("Started the forkserver (PID {pid})");
        Ok(Self {
            pid,
            socket,
            lines: Lines::default(),
            outgoing: Vec::new(),
            listens: true,
        })
    }

    /// Writes as much as there is room for, without waiting.
    fn flush(&mut self) -> io::Result<()> {
        let written = write_some(&mut self.socket, &mut self.outgoing);
        if written.is_err() {
            // It has closed its end, and is of no use any more.
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

/// The signals that the forkserver catches. A terminal or a person sends them to all processes, and only
/// the supervisor acts on them; SIGCHLD wakes it.
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

/// What the supervisor knows of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChildLife {
    /// It runs, as far as anybody knows.
    Runs,
    /// Its end has been reported, and it waits to be released.
    Reported,
}

/// The forkserver's side: serves the supervisor, which is at the other end of standard input, until that
/// is closed. Returns the assignment in each new child, and `None` in the forkserver at its end.
pub fn serve(supervisor: Pid) -> io::Result<Option<Assignment>> {
    // On other systems that takes a thread, and a fork needs a process of one: there the forkserver
    // ends with its socket.
    if cfg!(target_os = "linux") && !sys::die_with_parent(supervisor)? {
        return Ok(None);
    }
    let mut signals = CaughtSignals::catch(SIGNALS)?;
    sys::release_signals()?;
    let mut socket = UnixStream::from(sys::take_stdin()?);
    socket.set_nonblocking(true)?;
    let mut lines = Lines::default();
    let mut children = BTreeMap::new();
    loop {
        signals.take();
        for (pid, life) in &mut children {
            if *life == ChildLife::Runs
                && let Some(end) = sys::peek(*pid)
            {
                *life = ChildLife::Reported;
                let pid = pid.as_raw();
                send(&mut socket, &ForkserverReport::Ended { pid, end })?;
            }
        }
        let (requests, alive): (Vec<ForkserverRequest>, bool) = lines.read(&mut socket);
        for request in requests {
            let assignment = match request {
                ForkserverRequest::Start(assignment) => *assignment,
                ForkserverRequest::Release { pid } => {
                    let pid = Pid::from_raw(pid);
                    if children.remove(&pid) == Some(ChildLife::Reported) {
                        sys::reap_child(pid);
                    }
                    continue;
                }
            };
            let generation = assignment.generation;
            let report = match fork() {
                Ok(Started::Running(pid)) => {
                    children.insert(pid, ChildLife::Runs);
                    let pid = pid.as_raw();
                    ForkserverReport::Started { generation, pid }
                }
                Ok(_) => return Ok(Some(assignment)),
                Err(error) => ForkserverReport::Failed {
                    generation,
                    error: error.to_string(),
                },
            };
            send(&mut socket, &report)?;
        }
        if !alive {
            return Ok(None);
        }
        wait(&signals, &socket)?;
    }
}

/// Sends a report, and waits until there is room for it: the supervisor reads at once, unless it has
/// ended or is stopped.
fn send(socket: &mut UnixStream, report: &ForkserverReport) -> io::Result<()> {
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

fn wait(signals: &CaughtSignals, socket: &UnixStream) -> io::Result<()> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::child::tests::recover;
    use crate::child::{OrphanedClaims, Task, WorkerTask};
    use crate::queue::Suspects;

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

    /// An assignment as the supervisor writes it.
    fn assignment() -> ForkserverRequest {
        let assignment = Assignment {
            task: Task::Work(WorkerTask {
                predecessor: OrphanedClaims {
                    worker: 3,
                    blame: Suspects::These(vec![uuid::Uuid::from_u128(5)]),
                    end: "killed by SIGKILL".to_owned(),
                },
                sweep_above: Some(4),
            }),
            ..recover(0, 0)
        };
        ForkserverRequest::Start(Box::new(assignment))
    }

    proptest! {
        #[test]
        fn no_damage_to_messages_makes_a_reader_fail(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3usize), 0..8),
            part in 1..600usize,
        ) {
            let mut bytes = line(&assignment()).unwrap();
            bytes.extend(line(&assignment()).unwrap());
            for (index, byte, kind) in &edits {
                let at = index.index(bytes.len());
                match kind {
                    0 => bytes[at] = *byte,
                    1 => bytes.insert(at, *byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            let (mut here, mut there) = UnixStream::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            let mut lines = Lines::default();
            let mut all: Vec<ForkserverRequest> = Vec::new();
            for part in bytes.chunks(part) {
                there.write_all(part).unwrap();
                let (requests, alive) = lines.read(&mut here);
                prop_assert!(alive);
                all.extend(requests);
            }
            prop_assert!(all.len() <= 2 + edits.len());
            if edits.is_empty() {
                prop_assert_eq!(all, [assignment(), assignment()]);
            }
            for text in bytes.split(|byte| *byte == b'\n') {
                let _ = serde_json::from_slice::<ForkserverReport>(text);
            }
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept_for_ever() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut lines = Lines::default();
        let mut alive = true;
        let part = vec![b'['; 65_536];
        for _ in 0..2 * LONGEST / part.len() {
            there.write_all(&part).unwrap();
            (_, alive) = lines.read::<ForkserverReport>(&mut here);
            if !alive {
                break;
            }
        }
        assert!(!alive && lines.pending.len() <= LONGEST + 65_536);
    }

    #[test]
    fn an_assignment_with_ten_thousand_vcons_comes_whole() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        // Far beyond the megabyte that was the limit once.
        let request = ForkserverRequest::Start(Box::new(recover(10, 10_000)));
        let bytes = line(&request).unwrap();
        assert!(bytes.len() > 3 << 20);
        let writer = std::thread::spawn(move || there.write_all(&bytes).map(|()| there));
        let mut lines = Lines::default();
        let mut all: Vec<ForkserverRequest> = Vec::new();
        while all.is_empty() {
            let (requests, alive) = lines.read(&mut here);
            assert!(alive);
            all.extend(requests);
        }
        assert!(all == [request]);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn messages_come_whole_however_they_were_cut() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let report = |pid| ForkserverReport::Ended {
            pid,
            end: End::Exited(9),
        };
        let bytes = [report(1), report(2)]
            .map(|report| line(&report).unwrap())
            .concat();
        let mut lines = Lines::default();
        let mut all: Vec<ForkserverReport> = Vec::new();
        for part in bytes.chunks(7) {
            there.write_all(part).unwrap();
            let (reports, alive) = lines.read(&mut here);
            all.extend(reports);
            assert!(alive);
        }
        there.write_all(b"rubbish\n").unwrap();
        drop(there);
        assert_eq!(
            lines.read::<ForkserverReport>(&mut here),
            (Vec::new(), false)
        );
        assert_eq!(all, [report(1), report(2)]);
    }
}
