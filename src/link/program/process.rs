//! A program that runs: its pipes, and its end together with everything it has started.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::tail::Tail;
use super::{Clock, Trouble, warden};
use crate::sys::{self, End};

/// So much is read at once: what a pipe holds.
const PORTION: usize = 64 * 1024;

/// How long a program that is told to end by the end of its input may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// The first pause in waiting for an end that is near.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// A line on standard output.
    Line,
    /// The program's end.
    End,
}

/// A program that runs. It is killed and collected, with its whole process group, when the value
/// is dropped.
pub(super) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    tail: Tail,
    end: Option<End>,
    /// How much of the present input is in the pipe or was, and how much was never read.
    written: usize,
    unread: usize,
}

impl Process {
    /// Takes over a child whose three streams are pipes.
    pub fn new(mut child: Child, tail: Tail) -> Result<Self, Errno> {
        let (input, output, errors) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let this = Self {
            child,
            input,
            output,
            errors,
            tail,
            end: None,
            written: 0,
            unread: 0,
        };
        warden::remember(this.pid());
        let pipes = [
            this.input.as_ref().map(AsFd::as_fd),
            this.output.as_ref().map(AsFd::as_fd),
            this.errors.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(this)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The last it said on standard error.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Whether it waits for a request: it runs, and has said nothing without being asked.
    pub fn is_idle(&mut self) -> bool {
        let mut nothing = Vec::new();
        self.read_errors();
        self.read_output(&mut nothing, 0) == Ok(false)
            && nothing.is_empty()
            && self.output.is_some()
            && !sys::has_ended(self.pid())
    }

    /// Gives the program `input` and takes at most `most` bytes of what it puts out, at the same
    /// time: neither side waits for the other with a full pipe.
    ///
    /// With [`Until::End`] that is the end of the input; [`Self::end`] says how it ended.
    pub fn exchange(
        &mut self,
        input: &[u8],
        until: Until,
        most: usize,
        clock: &mut Clock<'_>,
    ) -> Result<Vec<u8>, Trouble> {
        self.tail.clear();
        (self.written, self.unread) = (0, 0);
        let mut rest = input;
        let mut received = Vec::new();
        let mut pause = FIRST_PAUSE;
        let mut silent: Option<Instant> = None;
        loop {
            let over = sys::has_ended(self.pid());
            if over {
                // What it has started itself may hold its output open.
                sys::kill_group(self.pid());
            }
            self.write_input(&mut rest, until);
            self.read_errors();
            let before = received.len();
            let more = self.read_output(&mut received, most)?;
            if until == Until::Line
                && let Some(place) = received[before..].iter().position(|b| *b == b'\n')
            {
                let line = before + place;
                if line + 1 < received.len() {
                    return Err(Trouble::Talkative);
                }
                received.truncate(line);
                return Ok(received);
            }
            let wait = clock.tick()?;
            if more {
                continue;
            }
            match until {
                _ if over && until == Until::End => return Ok(received),
                _ if over => {
                    let had_begun = self.has_read();
                    let end = self.finish();
                    return Err(Trouble::Ended { end, had_begun });
                }
                // It ends a moment after its output does.
                Until::Line if self.output.is_none() => {
                    let since = *silent.get_or_insert_with(Instant::now);
                    if since.elapsed() > FAREWELL {
                        return Err(Trouble::Silent);
                    }
                }
                _ => {}
            }
            // Without an output to wait for, its end is near.
            let wait = if self.output.is_some() {
                wait
            } else {
                pause = (pause * 2).min(wait);
                pause
            };
            self.wait(!rest.is_empty(), wait);
        }
    }

    /// Waits until one of the pipes can be used.
    fn wait(&self, writes: bool, time: Duration) {
        let input = self.input.as_ref().filter(|_| writes);
        let mut pipes: Vec<PollFd<'_>> = Vec::with_capacity(3);
        pipes.extend(input.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
        let output = self.output.as_ref().map(AsFd::as_fd);
        let errors = self.errors.as_ref().map(AsFd::as_fd);
        for fd in [output, errors].into_iter().flatten() {
            pipes.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        let time = time.max(FIRST_PAUSE);
        let millis = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
        match poll(&mut pipes, millis) {
            Ok(_) | Err(Errno::EINTR) => {}
            // No memory for it: the pipes are looked at all the same.
            Err(_) => thread::sleep(FIRST_PAUSE),
        }
    }

    fn write_input(&mut self, rest: &mut &[u8], until: Until) {
        while let Some(input) = &mut self.input {
            if rest.is_empty() {
                if until == Until::End {
                    self.input = None;
                }
                return;
            }
            match input.write(rest) {
                Ok(written) => {
                    *rest = &rest[written..];
                    self.written += written;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // It does not want to read (any more), which is its own affair.
                Err(_) => {
                    self.unread = sys::unread(input).unwrap_or(usize::MAX);
                    self.input = None;
                }
            }
        }
        *rest = &[];
    }

    /// Whether it has read anything of the present input: a program that could not begin has not.
    fn has_read(&mut self) -> bool {
        if let Some(input) = &self.input {
            self.unread = sys::unread(input).unwrap_or(usize::MAX);
        }
        self.written > self.unread
    }

    /// Answers whether there may be more at once.
    fn read_output(&mut self, received: &mut Vec<u8>, most: usize) -> Result<bool, Trouble> {
        let Some(output) = &mut self.output else {
            return Ok(false);
        };
        let mut portion = [0; PORTION];
        match output.read(&mut portion) {
            Ok(0) => self.output = None,
            Ok(length) => {
                if received.len().saturating_add(length) > most {
                    return Err(Trouble::TooMuch);
                }
                received.extend_from_slice(&portion[..length]);
                return Ok(true);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.output = None,
        }
        Ok(false)
    }

    fn read_errors(&mut self) {
        let mut portion = [0; 4096];
        // What fills the pipe faster than it is read here gets its turn again.
        for _ in 0..PORTION / portion.len() {
            let Some(errors) = &mut self.errors else {
                return;
            };
            match errors.read(&mut portion) {
                Ok(0) => self.errors = None,
                Ok(length) => self.tail.push(&portion[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.errors = None,
            }
        }
    }

    /// Kills what is left of it and of its process group; answers how it ended.
    pub fn finish(&mut self) -> End {
        if let Some(end) = self.end {
            return end;
        }
        // As long as it is not collected, the group cannot be another's.
        sys::kill_group(self.pid());
        self.read_errors();
        warden::forget(self.pid());
        let end = match self.child.wait() {
            Ok(status) => end_of(status),
            Err(error) => {
                log::error!("could not wait for PID {}: {error}", self.pid());
                End::Unseen
            }
        };
        self.end = Some(end);
        end
    }

    /// Lets it end by itself, which the end of its input tells it to do, within a short time.
    pub fn dismiss(&mut self) {
        if self.end.is_some() {
            return;
        }
        self.input = None;
        let until = Instant::now() + FAREWELL;
        let mut pause = FIRST_PAUSE;
        while !sys::has_ended(self.pid()) && Instant::now() < until {
            self.read_errors();
            thread::sleep(pause);
            pause = (pause * 2).min(FAREWELL / 10);
        }
        self.finish();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.finish();
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, Some(signal)) => End::Killed {
            signal,
            core: status.core_dumped(),
        },
        (None, None) => End::Unseen,
    }
}
