//! One connection, from the first byte to the last, never waited for.
//!
//! ```text
//!           whole request          known              all sent            the other side has seen it
//! reading ───────────────► waiting ──────► writing ─────────────► lingering ───► over
//!    │                                        ▲
//!    └─────────── refused, or too slow ───────┘
//! ```
//!
//! Each state has a time limit. What has been sent is read away before the end: a connection that
//! is closed with something unread takes the answer back.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::cache::Topic;
use super::listener::Stream;
use super::request::{self, LONGEST, Request};
use super::response::{Answer, Status};

/// How long a request may take to come.
const READING: Duration = Duration::from_secs(5);

/// How long an answer may take to go.
const WRITING: Duration = Duration::from_secs(5);

/// How long, and for how many bytes more, the other side is listened to after the answer.
const LINGERING: Duration = Duration::from_secs(1);
const MOST_UNREAD: usize = 64 * 1024;

/// As long as no more of a request was there before, it is looked at with every byte, so that what
/// is none is answered at once; later, only when it may be whole.
const EAGER: usize = 256;

/// One connection.
pub(super) struct Connection {
    stream: Stream,
    state: State,
    /// When the state ends that it is in.
    until: Instant,
}

enum State {
    Reading(Vec<u8>),
    Waiting {
        topic: Topic,
        is_head: bool,
    },
    Writing {
        answer: Arc<Answer>,
        is_head: bool,
        sent: usize,
    },
    Lingering {
        read: usize,
    },
    Over,
}

impl Connection {
    /// One that has just come in.
    pub fn new(stream: Stream, now: Instant) -> Self {
        Self {
            stream,
            state: State::Reading(Vec::new()),
            until: now + READING,
        }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What it waits for to happen to its stream, besides its end.
    pub fn events(&self) -> PollFlags {
        match self.state {
            State::Reading(_) | State::Lingering { .. } => PollFlags::POLLIN,
            State::Writing { .. } => PollFlags::POLLOUT,
            State::Waiting { .. } | State::Over => PollFlags::empty(),
        }
    }

    /// When it is to be seen to even if nothing happens.
    pub fn until(&self) -> Instant {
        self.until
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// What it waits for to be known, and whether only for the head of that.
    pub fn awaits(&self) -> Option<(Topic, bool)> {
        match self.state {
            State::Waiting { topic, is_head } => Some((topic, is_head)),
            _ => None,
        }
    }

    /// How willingly it is given up for another, the greatest first: one whose request has not
    /// come yet, and of those the oldest.
    pub fn expendability(&self) -> (bool, std::cmp::Reverse<Instant>) {
        let is_reading = matches!(self.state, State::Reading(_));
        (is_reading, std::cmp::Reverse(self.until))
    }

    /// Does what can be done now. Answers a request that is whole, once.
    pub fn advance(&mut self, happened: PollFlags, now: Instant) -> Option<Request> {
        let hung_up = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        let done = match &mut self.state {
            State::Reading(_) => return self.read(now),
            State::Writing { .. } => self.write(now),
            State::Lingering { .. } => self.linger(),
            State::Waiting { .. } if happened.intersects(hung_up) => {
                Err(ErrorKind::NotConnected.into())
            }
            State::Waiting { .. } | State::Over => Ok(()),
        };
        // Whoever is gone needs no answer.
        if done.is_err() {
            self.state = State::Over;
        }
        None
    }

    /// Waits until something is known, at the longest until `until`.
    pub fn wait_for(&mut self, topic: Topic, is_head: bool, until: Instant) {
        self.state = State::Waiting { topic, is_head };
        self.until = until;
    }

    /// Begins to send the answer.
    pub fn answer(&mut self, answer: Arc<Answer>, is_head: bool, now: Instant) {
        self.state = State::Writing {
            answer,
            is_head,
            sent: 0,
        };
        self.until = now + WRITING;
        self.advance(PollFlags::empty(), now);
    }

    /// Ends the state it is in when its time is over.
    pub fn expire(&mut self, now: Instant) {
        if now < self.until {
            return;
        }
        let answer = match &self.state {
            State::Reading(bytes) if !bytes.is_empty() => {
                Answer::text(Status::TooSlow, "the request did not come in time")
            }
            State::Waiting { topic, .. } => {
                Answer::text(Status::Unavailable, topic.why_not_in_time())
            }
            _ => {
                self.state = State::Over;
                return;
            }
        };
        let is_head = self.awaits().is_some_and(|(_, is_head)| is_head);
        self.answer(Arc::new(answer), is_head, now);
    }

    fn read(&mut self, now: Instant) -> Option<Request> {
        let State::Reading(bytes) = &mut self.state else {
            return None;
        };
        let mut room = [0; LONGEST];
        let before = bytes.len();
        let wanted = LONGEST - before;
        let refusal = match self.stream.read(&mut room[..wanted]) {
            Ok(0) => {
                self.state = State::Over;
                return None;
            }
            Ok(count) => {
                bytes.extend_from_slice(&room[..count]);
                if !is_worth_a_look(bytes, before) {
                    return None;
                }
                match request::read(bytes)? {
                    Ok(request) => return Some(request),
                    Err(refusal) => refusal,
                }
            }
            Err(error) if is_for_later(&error) => return None,
            Err(_) => {
                self.state = State::Over;
                return None;
            }
        };
        self.answer(Arc::new(Answer::refusal(refusal)), false, now);
        None
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        let State::Writing {
            answer,
            is_head,
            sent,
        } = &mut self.state
        else {
            return Ok(());
        };
        let bytes = answer.bytes(*is_head);
        while *sent < bytes.len() {
            match self.stream.write(&bytes[*sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => *sent += count,
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.stream.end()?;
        self.state = State::Lingering { read: 0 };
        self.until = now + LINGERING;
        self.linger()
    }

    fn linger(&mut self) -> io::Result<()> {
        let State::Lingering { read } = &mut self.state else {
            return Ok(());
        };
        let mut room = [0; LONGEST];
        loop {
            match self.stream.read(&mut room) {
                Ok(count) if count > 0 && *read < MOST_UNREAD => *read += count,
                Ok(_) => break,
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.state = State::Over;
        Ok(())
    }
}

/// Whether a request may be whole, or seen to be none, after what has come since it had `before`
/// bytes. One that comes byte by byte is not read from its begin with each of them.
fn is_worth_a_look(bytes: &[u8], before: usize) -> bool {
    let new = &bytes[before.saturating_sub(3)..];
    let ends = |line_end: &[u8]| new.windows(line_end.len()).any(|part| part == line_end);
    before <= EAGER || bytes.len() == LONGEST || ends(b"\n\r\n") || ends(b"\n\n")
}

/// Whether it can be tried again when the stream is ready.
fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, Connection, Instant) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let now = Instant::now();
        (near, Connection::new(Stream::Unix(far), now), now)
    }

    fn send(near: &mut UnixStream, connection: &mut Connection, bytes: &[u8]) -> Option<Request> {
        near.write_all(bytes).unwrap();
        connection.advance(PollFlags::POLLIN, Instant::now())
    }

    fn answered(mut near: UnixStream) -> String {
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_request_may_come_byte_by_byte() {
        let (mut near, mut connection, now) = pair();
        let filler = "a".repeat(2 * EAGER);
        let text = format!("GET /x HTTP/1.1\r\nHost: a\r\nFiller: {filler}\r\n\r\n");
        let (last, all_but) = text.as_bytes().split_last().unwrap();
        for byte in all_but {
            assert_eq!(send(&mut near, &mut connection, &[*byte]), None);
        }
        let request = send(&mut near, &mut connection, &[*last]).unwrap();
        assert_eq!(request.path, "/x");
        connection.answer(Arc::new(Answer::text(Status::Ok, "yes")), false, now);
        assert!(answered(near).ends_with("\r\n\r\nyes\n"));
    }

    #[test]
    fn what_is_no_request_is_refused_at_once() {
        for bytes in [&b"\x16\x03\x01"[..], &[0; 2 * EAGER]] {
            let (mut near, mut connection, _) = pair();
            send(&mut near, &mut connection, bytes);
            assert!(answered(near).starts_with("HTTP/1.1 400 "));
        }
    }

    #[test]
    fn a_request_that_never_ends_is_refused_at_its_longest() {
        let (mut near, mut connection, _) = pair();
        send(&mut near, &mut connection, b"GET / HTTP/1.1\r\nFiller: ");
        send(&mut near, &mut connection, &[b'a'; LONGEST]);
        assert!(answered(near).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn a_request_that_takes_too_long_is_told_so_and_silence_is_not() {
        let (mut near, mut connection, now) = pair();
        send(&mut near, &mut connection, b"GET /");
        connection.expire(now + READING - Duration::from_millis(1));
        assert_eq!(connection.events(), PollFlags::POLLIN);
        connection.expire(now + READING);
        assert!(answered(near).starts_with("HTTP/1.1 408 "));
        let (near, mut silent, now) = pair();
        silent.expire(now + READING);
        assert!(silent.is_over());
        drop(silent);
        assert_eq!(answered(near), "");
    }

    #[test]
    fn what_is_not_known_in_time_is_not_waited_for() {
        let (near, mut connection, now) = pair();
        connection.wait_for(Topic::Ready, false, now);
        assert_eq!(connection.awaits(), Some((Topic::Ready, false)));
        connection.expire(now);
        assert!(answered(near).starts_with("HTTP/1.1 503 "));
    }

    #[test]
    fn one_that_sends_without_end_is_listened_to_only_for_a_while() {
        let (mut near, mut connection, now) = pair();
        let request = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(send(&mut near, &mut connection, request), None);
        let mut sent = 0;
        while !connection.is_over() {
            assert!(sent <= 2 * MOST_UNREAD);
            sent += near.write(&[b'x'; 4096]).unwrap();
            connection.advance(PollFlags::POLLIN, now);
        }
        drop(connection);
        let mut answer = [0; 12];
        near.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 405");
    }

    #[test]
    fn a_silent_one_is_given_up_before_one_that_is_being_answered() {
        let (_near, older, now) = pair();
        let (_other, mut busy, _) = pair();
        let (far, _) = UnixStream::pair().unwrap();
        let newer = Connection::new(Stream::Unix(far), now + Duration::from_secs(1));
        busy.wait_for(Topic::Ready, false, now);
        assert!(older.expendability() > newer.expendability());
        assert!(newer.expendability() > busy.expendability());
    }
}
