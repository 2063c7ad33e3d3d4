//! A program that runs: its pipes, and its end together with everything it has started.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{Trouble, reaper};
use crate::deadline::{Deadline, Limit};
use crate::secret::Secret;
use crate::sys::{self, End};
use crate::visible::printable;

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
        reaper::remember(this.pid());
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

    /// Forgets what it has said on standard error.
    pub fn forget_output(&mut self) {
        self.tail.clear();
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

    /// Kills the program, if it still runs, and its process group. Returns how the program ended.
    pub fn finish(&mut self) -> End {
        if let Some(end) = self.end {
            return end;
        }
        // As long as it is not collected, the group cannot be another's.
        sys::kill_group(self.pid());
        // It may have left its group.
        let _ = self.child.kill();
        self.read_errors();
        reaper::forget(self.pid());
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

/// The longest pause before the worker's drain is noticed.
const TICK: Duration = Duration::from_millis(50);

/// The time limit of one piece of work, and what is left of it when the worker drains.
pub struct Clock<'a> {
    limit: Limit,
    /// Nothing for work that a drain does not end.
    drain: Option<&'a Receiver<()>>,
    drain_time: Duration,
    /// When the time of the drain is over, where it has begun: one time for all work on a vCon.
    drain_end: Option<&'a Cell<Option<Instant>>>,
    draining_until: Option<Instant>,
    /// Whether a signal to end that this process has blocked ends the work.
    heeds_signals: bool,
}

impl<'a> Clock<'a> {
    /// Of work that has begun, and goes on when the worker drains.
    pub fn new(limit: Limit) -> Self {
        Self {
            limit,
            drain: None,
            drain_time: Duration::ZERO,
            drain_end: None,
            draining_until: None,
            heeds_signals: false,
        }
    }

    /// The same for work of a process that has blocked all signals: one to end ends the work too.
    pub fn heeding_signals(self) -> Self {
        Self {
            heeds_signals: true,
            ..self
        }
    }

    /// The same for work that goes on for `time` at most after the worker has begun to drain. The first to
    /// notice the drain sets when that time is over, for all that share `end`.
    pub fn draining(
        self,
        drain: &'a Receiver<()>,
        time: Duration,
        end: Option<&'a Cell<Option<Instant>>>,
    ) -> Self {
        Self {
            drain: Some(drain),
            drain_time: time,
            drain_end: end,
            ..self
        }
    }

    /// Starts now, for work that ends as soon as the worker drains.
    pub fn probing(limit: Duration, drain: &'a Receiver<()>) -> Self {
        Self {
            limit: Deadline::NONE.begin(limit),
            drain: Some(drain),
            drain_time: Duration::ZERO,
            drain_end: None,
            draining_until: None,
            heeds_signals: false,
        }
    }

    /// How much of the limit is left.
    pub fn left(&self) -> Duration {
        self.limit.left()
    }

    /// How long to wait at most before the next look at the clock.
    pub(super) fn tick(&mut self) -> Result<Duration, Trouble> {
        let now = Instant::now();
        let drains = |drain: &Receiver<()>| drain.try_recv() == Err(TryRecvError::Disconnected);
        if self.draining_until.is_none() && self.drain.is_some_and(drains) {
            self.draining_until = Some(self.drain_end_from(now));
        }
        if self.draining_until.is_some_and(|until| until <= now) {
            return Err(Trouble::Interrupted);
        }
        if self.heeds_signals && sys::end_is_pending() {
            return Err(Trouble::Interrupted);
        }
        if self.limit.is_over() {
            return Err(Trouble::TimedOut(self.limit));
        }
        Ok(TICK.min(self.limit.left()))
    }

    fn drain_end_from(&self, now: Instant) -> Instant {
        let known = self.drain_end.and_then(Cell::get);
        let end = known.unwrap_or_else(|| now + self.drain_time);
        if let Some(shared) = self.drain_end {
            shared.set(Some(end));
        }
        end
    }
}

/// The most bytes of standard error that are kept.
const KEPT: usize = 64 * 1024;

/// The most lines of standard error in the reason of a failure, and their most characters together.
const REASON_LINES: usize = 5;
const REASON_CHARACTERS: usize = 1000;

/// The most characters of a line that are logged.
const LOGGED_CHARACTERS: usize = 2000;

/// The end of what a program has said.
pub(super) struct Tail {
    program: String,
    secrets: Arc<[Secret]>,
    kept: Vec<u8>,
    /// Where the line begins that has not ended yet.
    line: usize,
}

impl Tail {
    /// Nothing yet. What the program was given in secret is not repeated.
    pub fn new(program: &str, secrets: &Arc<[Secret]>) -> Self {
        Self {
            program: program.to_owned(),
            secrets: Arc::clone(secrets),
            kept: Vec::new(),
            line: 0,
        }
    }

    /// More of it.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if log::log_enabled!(log::Level::Debug) {
            while let Some(length) = self.kept[self.line..].iter().position(|b| *b == b'\n') {
                let line = &self.kept[self.line..self.line + length];
                let text = self.clean(line, LOGGED_CHARACTERS);
                log::debug!("{}: {text}", self.program);
                self.line += length + 1;
            }
        }
        if self.kept.len() > 2 * KEPT {
            let over = self.kept.len() - KEPT;
            self.kept.drain(..over);
            self.line = self.line.saturating_sub(over);
        }
    }

    /// Forgets what belongs to work that is done.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.line = 0;
    }

    /// The last lines, as the end of a sentence; empty where nothing was said.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines: Vec<&str> = lines.collect();
        let last = &lines[lines.len().saturating_sub(REASON_LINES)..];
        let last: Vec<&str> = last.iter().map(|line| line.trim()).collect();
        let reason = self.clean(last.join(" | ").as_bytes(), usize::MAX);
        let excess = reason.chars().count().saturating_sub(REASON_CHARACTERS);
        match (reason.is_empty(), excess) {
            (true, _) => String::new(),
            (false, 0) => format!(": {reason}"),
            (false, _) => format!(": …{}", reason.chars().skip(excess).collect::<String>()),
        }
    }

    /// Any text of the program's, so that it can be shown.
    pub fn clean(&self, text: &[u8], most: usize) -> String {
        let text = String::from_utf8_lossy(text).into_owned();
        let secrets = self.secrets.iter();
        let text = secrets.fold(text, |text, secret| secret.hide_in(text));
        // What a program indents with tells nobody anything.
        let text = text.replace('\t', " ");
        printable(&text).chars().take(most).collect()
    }
}

#[cfg(test)]
mod tests_of_tail {
    use super::*;

    fn tail(secrets: &[&str]) -> Tail {
        Tail::new(
            "x",
            &secrets.iter().map(|text| Secret::new(*text)).collect(),
        )
    }

    #[test]
    fn the_reason_is_the_last_lines_in_one() {
        let mut tail = tail(&[]);
        assert_eq!(tail.reason(), "");
        tail.push(b"1\n2\n\n 3\t\n4\r\n5\n");
        tail.push(b"6 \x1b[1mno");
        assert_eq!(tail.reason(), r": 2 | 3 | 4 | 5 | 6 \u{1b}[1mno");
        tail.clear();
        assert_eq!(tail.reason(), "");
    }

    #[test]
    fn the_lines_of_a_secret_are_not_repeated_one_by_one() {
        let mut tail = tail(&["first line\n  second line\n}"]);
        tail.push(b"it is second line }\nfirst line\n");
        assert_eq!(tail.reason(), ": it is *** } | ***");
    }

    #[test]
    fn secrets_are_not_repeated() {
        let mut tail = tail(&["hunter2", "", "a"]);
        tail.push(b"at hunter2 and xhunter2x");
        assert_eq!(tail.reason(), ": at *** and x***x");
    }

    #[test]
    fn of_much_only_the_end_is_kept() {
        let mut tail = tail(&[]);
        for _ in 0..100 {
            tail.push(&[b'x'; 10_000]);
            tail.push(b"\n");
        }
        assert!(tail.kept.len() <= 2 * KEPT + 1);
        tail.push("\u{e9}".repeat(2000).as_bytes());
        assert_eq!(tail.reason().chars().count(), 3 + REASON_CHARACTERS);
        tail.push(b"\n\xff\xfe\n");
        assert!(tail.reason().ends_with("\u{fffd}\u{fffd}"));
    }
}
