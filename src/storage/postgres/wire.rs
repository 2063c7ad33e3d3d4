//! The way to the server, with TLS or without, what may come over it, and how long it is waited for.
//!
//! The client library believes its server: it collects each message whole, however long, keeps every
//! notice and notification, and sends the password in the form that the server asks for. So all bytes of
//! the server pass through here before the library sees them:
//!
//! | message | |
//! |---|---|
//! | until the session has begun | 64 KiB for all of them |
//! | after that, until the answer to a statement is complete | 1 MiB; while a document is read, as much as one may have |
//! | errors | cut to 64 KiB; the rest is read and dropped |
//! | notices, notifications, parameters | dropped: nobody here reads them |
//! | a request for the password in clear text | an error, unless the module `tls` allows it |
//!
//! The library hands out its socket only to code that begins TLS on it. Told that TLS begins at once
//! ("direct"), it hands the socket out before anything was sent; whether there is TLS is then decided here.
//! For a Unix socket it never does that: there is no limit over those, and calls run on a thread of their own.
//!
//! Nor has the library a limit on the time of a call: a server whose kernel answers while its program does
//! not would hold a lane for ever. So the stream fails once the call in work is over its time. Before that, it
//! has the server asked to cancel the statement, if the call has less time than the server knows of:
//!
//! ```text
//! lane    ├─call─┤  ├─call────────────────────────────────────── … ─┤ error
//! stream            waits ───────────┤ asks to cancel, waits ─── … ─┤ fails, and asks to cancel
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use postgres::config::{SslMode, SslNegotiation};
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use postgres::{CancelToken, Client, Config, Error, NoTls, Socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep_until, timeout_at};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::errors::{caught, reason};
use crate::vcon::LARGEST_DOCUMENT;

/// The most bytes of a server before a session has begun. A login takes some hundred.
const LOGIN: usize = 64 << 10;

/// The most bytes of an answer that has no document in it.
const SMALL: usize = 1 << 20;

/// The most bytes that are kept of an error.
const KEPT: usize = 64 << 10;

/// The most bytes that are dropped within one answer: as much as a server can hold in one value, such as
/// the message of a trigger that quotes the document.
const DROPPED: usize = 1 << 30;

/// How much is read at once.
const BUFFER: usize = 8 << 10;

/// The same within a long message.
const LONG_BUFFER: usize = 64 << 10;

/// The request for TLS: its length, and the number that stands for it.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The first bytes of a message: its kind and its length.
const HEAD: usize = 5;

/// How long a client that is dropped may wait for its server.
const ENDING: Duration = Duration::from_secs(5);

/// How long a request to cancel may take.
const CANCELLING: Duration = Duration::from_secs(10);

/// The limits of the calls in one session. The lane sets them, the session's stream keeps them.
#[derive(Clone, Default)]
pub(super) struct CallLimits(Arc<Limits>);

struct Limits {
    /// How many bytes the answer may have.
    most_bytes: AtomicUsize,
    clock: Mutex<CallClock>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            most_bytes: AtomicUsize::new(SMALL),
            clock: Mutex::default(),
        }
    }
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallTimes {
    /// After this, the server is asked to cancel it, if at all.
    pub(super) cancel: Option<Duration>,
    /// After this, its connection fails.
    pub(super) cut: Duration,
}

#[derive(Default)]
struct CallClock {
    /// When the server is to be asked to cancel the call in work.
    cancel_at: Option<Instant>,
    /// When the call in work is over its time.
    cut_at: Option<Instant>,
    /// The server has been asked to cancel a call.
    has_cancelled: bool,
    /// The connection has been given up.
    has_cut: bool,
    /// `None` if the server must not be asked to cancel.
    canceller: Option<Canceller>,
}

impl CallLimits {
    /// Makes the call, whose answer may have a document in it.
    pub(super) fn for_a_document<T>(&self, call: impl FnOnce() -> T) -> T {
        let most = usize::try_from(LARGEST_DOCUMENT).unwrap_or(usize::MAX);
        let most_bytes = &self.0.most_bytes;
        most_bytes.store(most.saturating_add(SMALL), Ordering::Relaxed);
        let answer = call();
        most_bytes.store(SMALL, Ordering::Relaxed);
        answer
    }

    /// Makes the call. It is cancelled and cut when it takes too long, and cut when it panics.
    pub(super) fn during<T>(&self, times: CallTimes, call: impl FnOnce() -> T) -> T {
        let now = Instant::now();
        let mut clock = self.clock();
        clock.cancel_at = times.cancel.map(|time| now + time);
        clock.cut_at = Some(now + times.cut);
        drop(clock);
        let _end = EndOfCall(self);
        call()
    }

    /// Gives the client a last time to end with its connection: it would wait for ever for what the server still owes.
    pub(super) fn limit_end(&self) {
        let mut clock = self.clock();
        clock.canceller = None;
        clock.cut_at = Some(Instant::now() + ENDING);
    }

    /// Allows requests to cancel calls from now on.
    pub(super) fn allow_to_cancel(&self, canceller: Canceller) {
        self.clock().canceller = Some(canceller);
    }

    /// Asks the server to cancel the call in work, unless it must not be asked.
    pub(super) fn cancel(&self) {
        self.clock().cancel();
    }

    /// Whether the server was asked to cancel a call before its time was over. The request may reach it
    /// after the answer to the call: the session must not be used for another call.
    pub(super) fn has_cancelled(&self) -> bool {
        self.clock().has_cancelled
    }

    /// Whether the connection was given up, and the session is of no use any more.
    pub(super) fn has_cut(&self) -> bool {
        self.clock().has_cut
    }

    /// Cancels or cuts the call if that is due, and returns when the next is due.
    fn keep(&self, now: Instant) -> io::Result<Option<Instant>> {
        let mut clock = self.clock();
        if !clock.has_cut && clock.cut_at.is_some_and(|at| at <= now) {
            clock.has_cut = true;
            clock.ask_aside();
        }
        if clock.has_cut {
            return Err(too_late());
        }
        if clock.cancel_at.is_some_and(|at| at <= now) {
            clock.cancel_at = None;
            clock.cancel();
        }
        Ok(clock.cancel_at.into_iter().chain(clock.cut_at).min())
    }

    fn clock(&self) -> MutexGuard<'_, CallClock> {
        // Nothing panics while it holds the lock.
        self.0.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the limits of a call.
struct EndOfCall<'a>(&'a CallLimits);

impl Drop for EndOfCall<'_> {
    fn drop(&mut self) {
        let mut clock = self.0.clock();
        (clock.cancel_at, clock.cut_at) = (None, None);
        // The client, which is dropped next, would wait for the answer.
        clock.has_cut |= thread::panicking();
    }
}

impl CallClock {
    fn cancel(&mut self) {
        if self.canceller.is_some() {
            self.has_cancelled = true;
            self.ask_aside();
        }
    }

    /// Asks on a thread of its own: a server that does not answer must not hold anybody up.
    fn ask_aside(&self) {
        let Some(canceller) = self.canceller.clone() else {
            return;
        };
        let ask = move || {
            if let Err(why) = few_at_once(|| canceller.ask()) {
                log::debug!("PostgreSQL could not be asked to cancel a call: {why}");
            }
        };
        let thread = thread::Builder::new().name("pg-cancel".to_owned());
        if let Err(why) = thread.spawn(ask) {
            log::debug!("PostgreSQL could not be asked to cancel a call: {why}");
        }
    }
}

/// Asks the server to cancel what it does in a session. It does not notice that its client is gone while
/// it waits for a standby, for example, and would collect such sessions until it runs out of them.
#[derive(Clone)]
pub(super) struct Canceller {
    token: CancelToken,
    wire: Option<Wire>,
}

impl Canceller {
    /// For a session that was opened through this wire; `None` over a Unix socket.
    pub(super) fn new(client: &Client, wire: Option<Wire>) -> Self {
        let token = client.cancel_token();
        let wire = wire.map(Wire::with_own_limits);
        Self { token, wire }
    }

    fn ask(&self) -> Result<(), String> {
        let asked = match &self.wire {
            Some(wire) => {
                let times = CallTimes {
                    cancel: None,
                    cut: CANCELLING,
                };
                let wire = wire.clone().with_own_limits();
                let limits = wire.limits.clone();
                limits.during(times, || self.token.cancel_query(wire))
            }
            None => self.token.cancel_query(NoTls),
        };
        asked.map_err(|e| reason(&e))
    }
}

/// Makes the request, unless too many are still unanswered: over a Unix socket, requests to a server
/// that does not answer never end.
fn few_at_once(ask: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    const MOST: usize = 4;
    static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
    if UNDER_WAY.fetch_add(1, Ordering::Relaxed) >= MOST {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
        return Err(format!(
            "{MOST} earlier requests are still without an answer"
        ));
    }
    let asked = caught(ask);
    UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    asked
}

/// Fails what waits for the server once the call in work is over its time.
struct CallTimer {
    limits: CallLimits,
    /// Wakes the task that waits. It may be set for an earlier call, and is then set anew.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl CallTimer {
    fn keep<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        while let Some(next) = self.limits.keep(Instant::now())? {
            let next = tokio::time::Instant::from_std(next);
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(next)));
            if next < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(next);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// The part of an answer that this side rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RejectedAnswer {
    #[error("the answer is longer than {0} bytes, the most that it may have here")]
    TooLong(usize),
    #[error(
        "it asks for the password in clear text, which is refused: the host is not local, and its \
         certificate is not verified; set `sslmode: verify-full`, or let the server ask for \
         scram-sha-256 (pg_hba.conf); only a written `sslmode: prefer` or `disable` allows it"
    )]
    ClearText,
    #[error("the answer is none of PostgreSQL")]
    NotPostgres,
}

impl From<RejectedAnswer> for io::Error {
    fn from(refused: RejectedAnswer) -> Self {
        Self::new(io::ErrorKind::InvalidData, refused)
    }
}

/// How a server is reached.
#[derive(Clone)]
pub(super) struct Wire {
    /// `None`: without TLS.
    pub(super) tls: Option<MakeRustlsConnect>,
    /// A server that has no TLS will do.
    pub(super) is_optional: bool,
    /// The server may have the password in clear text.
    pub(super) allows_clear_text: bool,
    pub(super) limits: CallLimits,
}

impl Wire {
    /// Opens a session.
    pub(super) fn connect(&self, mut config: Config) -> Result<Client, Error> {
        config
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        config.connect(self.clone())
    }

    /// The same way, with limits that no session has.
    fn with_own_limits(self) -> Self {
        Self {
            limits: CallLimits::default(),
            ..self
        }
    }
}

impl MakeTlsConnect<Socket> for Wire {
    type Stream = SessionStream;
    type TlsConnect = Handshake;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Self::Error> {
        let tls = self.tls.as_mut();
        let make = |tls: &mut MakeRustlsConnect| {
            <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(tls, host)
        };
        Ok(Handshake {
            tls: tls.map(make).transpose()?,
            is_optional: self.is_optional,
            filter: AnswerFilter::new(self.allows_clear_text, self.limits.clone()),
            limits: self.limits.clone(),
        })
    }
}

type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
type RustlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// One connection that is about to be made.
pub(super) struct Handshake {
    tls: Option<Rustls>,
    is_optional: bool,
    filter: AnswerFilter,
    limits: CallLimits,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = SessionStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<SessionStream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let cut_at = self.limits.clock().cut_at;
        let begun = self.begin(socket);
        Box::pin(async move {
            match cut_at {
                Some(at) => timeout_at(at.into(), begun)
                    .await
                    .unwrap_or_else(|_| Err(too_late())),
                None => begun.await,
            }
        })
    }
}

impl Handshake {
    async fn begin(self, mut socket: Socket) -> io::Result<SessionStream> {
        let inner = match self.tls {
            None => Transport::Plain(socket),
            Some(tls) => {
                socket.write_all(&TLS_REQUEST).await?;
                // No byte more: what follows belongs to TLS.
                if socket.read_u8().await? == b'S' {
                    Transport::Tls(Box::new(tls.connect(socket).await?))
                } else if self.is_optional {
                    Transport::Plain(socket)
                } else {
                    return Err(io::Error::other("server does not support TLS"));
                }
            }
        };
        Ok(SessionStream {
            inner,
            filter: self.filter,
            timer: CallTimer {
                limits: self.limits,
                sleep: None,
            },
            input: Box::new([0; BUFFER]),
            ready: BytesMut::new(),
        })
    }
}

/// What the library reads and writes.
pub(super) struct SessionStream {
    inner: Transport,
    filter: AnswerFilter,
    timer: CallTimer,
    input: Box<[u8; BUFFER]>,
    /// What the library has not read yet.
    ready: BytesMut,
}

enum Transport {
    Plain(Socket),
    Tls(Box<RustlsStream>),
}

impl Transport {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, io::Error>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = match self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        };
        read.map_ok(|()| buffer.filled().len())
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let room = buffer.remaining();
            if !this.ready.is_empty() || room == 0 {
                let length = this.ready.len().min(room);
                buffer.put_slice(&this.ready[..length]);
                this.ready.advance(length);
                return Poll::Ready(Ok(()));
            }
            // Most of a long message need not be looked at.
            let passing = this.filter.passing().min(room).min(LONG_BUFFER);
            if passing > BUFFER {
                let part = buffer.initialize_unfilled_to(passing);
                let read = this.inner.poll_read(cx, part);
                let length = ready!(this.timer.keep(cx, read))?;
                this.filter.pass(length);
                buffer.advance(length);
                return Poll::Ready(Ok(()));
            }
            let read = this.inner.poll_read(cx, &mut this.input[..]);
            let length = ready!(this.timer.keep(cx, read))?;
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            this.filter.feed(&this.input[..length], &mut this.ready)?;
        }
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = match &mut this.inner {
            Transport::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.timer.keep(cx, done)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = match &mut this.inner {
            Transport::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        this.timer.keep(cx, done)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = match &mut this.inner {
            Transport::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        this.timer.keep(cx, done)
    }
}

impl TlsStream for SessionStream {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.inner {
            Transport::Plain(_) => ChannelBinding::none(),
            Transport::Tls(stream) => stream.channel_binding(),
        }
    }
}

/// Lets through what a server may send. It never holds more than [`KEPT`] bytes and a head.
struct AnswerFilter {
    allows_clear_text: bool,
    limits: CallLimits,
    /// No session has begun yet.
    is_login: bool,
    /// The bytes that were let through, and those that were dropped, since the last complete answer.
    passed: usize,
    dropped: usize,
    /// The head of the message at hand, as far as it has come.
    head: Vec<u8>,
    fate: MessageFate,
    /// How much of the message is still to come after its head.
    left: usize,
    /// The message, if it is looked at.
    kept: Vec<u8>,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MessageFate {
    Pass,
    /// It is looked at before it passes.
    Keep,
    Drop,
}

impl AnswerFilter {
    fn new(allows_clear_text: bool, limits: CallLimits) -> Self {
        Self {
            allows_clear_text,
            limits,
            is_login: true,
            passed: 0,
            dropped: 0,
            head: Vec::with_capacity(HEAD),
            fate: MessageFate::Pass,
            left: 0,
            kept: Vec::new(),
        }
    }

    /// How many of the next bytes pass, whatever they are.
    fn passing(&self) -> usize {
        let is_passing = self.head.len() == HEAD && self.fate == MessageFate::Pass;
        if is_passing { self.left } else { 0 }
    }

    /// Notes that this many of those bytes have passed.
    fn pass(&mut self, length: usize) {
        self.left -= length;
        if self.left == 0 {
            self.end_of_passed();
        }
    }

    /// Reads what has come, and adds to `ready` what the library gets of it.
    fn feed(&mut self, mut input: &[u8], ready: &mut BytesMut) -> Result<(), RejectedAnswer> {
        while !input.is_empty() {
            let is_head = self.head.len() < HEAD;
            let wanted = if is_head {
                HEAD - self.head.len()
            } else {
                self.left
            };
            let (part, rest) = input.split_at(wanted.min(input.len()));
            input = rest;
            if is_head {
                self.head.extend_from_slice(part);
                if self.head.len() < HEAD {
                    return Ok(());
                }
                self.begin(ready)?;
            } else {
                self.left -= part.len();
                match self.fate {
                    MessageFate::Pass => ready.extend_from_slice(part),
                    MessageFate::Keep => {
                        let room = KEPT - self.kept.len();
                        self.kept.extend_from_slice(&part[..room.min(part.len())]);
                    }
                    MessageFate::Drop => {}
                }
            }
            if self.left == 0 {
                self.end(ready)?;
            }
        }
        Ok(())
    }

    /// The head of a message is there.
    fn begin(&mut self, ready: &mut BytesMut) -> Result<(), RejectedAnswer> {
        let (kind, length) = (self.head[0], &self.head[1..]);
        let length = length
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        self.left = length
            .checked_sub(HEAD - 1)
            .ok_or(RejectedAnswer::NotPostgres)?;
        self.fate = match kind {
            b'A' | b'N' | b'S' => MessageFate::Drop,
            b'E' | b'R' => MessageFate::Keep,
            _ => MessageFate::Pass,
        };
        let all = self.left.saturating_add(HEAD);
        let passes = match (self.fate, kind) {
            (MessageFate::Drop, _) => 0,
            (_, b'E') => all.min(KEPT),
            _ => all,
        };
        self.passed = self.passed.saturating_add(passes);
        self.dropped = self.dropped.saturating_add(all - passes);
        let (most, most_dropped) = if self.is_login {
            (LOGIN, LOGIN)
        } else {
            (self.limits.0.most_bytes.load(Ordering::Relaxed), DROPPED)
        };
        if self.passed > most {
            return Err(RejectedAnswer::TooLong(most));
        }
        if self.dropped > most_dropped {
            return Err(RejectedAnswer::TooLong(most_dropped));
        }
        if self.fate == MessageFate::Pass {
            ready.extend_from_slice(&self.head);
        }
        Ok(())
    }

    /// The message is complete.
    fn end(&mut self, ready: &mut BytesMut) -> Result<(), RejectedAnswer> {
        if self.fate == MessageFate::Keep {
            let kind = self.head[0];
            // The third way to log in.
            if kind == b'R' && self.kept.starts_with(&[0, 0, 0, 3]) && !self.allows_clear_text {
                return Err(RejectedAnswer::ClearText);
            }
            let mut body = std::mem::take(&mut self.kept);
            if kind == b'E' && body.len() == KEPT {
                body = shortened(&body);
            }
            let length =
                u32::try_from(body.len() + HEAD - 1).map_err(|_| RejectedAnswer::NotPostgres)?;
            ready.extend_from_slice(&[kind]);
            ready.extend_from_slice(&length.to_be_bytes());
            ready.extend_from_slice(&body);
        }
        self.end_of_passed();
        Ok(())
    }

    fn end_of_passed(&mut self) {
        // The server is ready for the next statement.
        if self.head.first() == Some(&b'Z') {
            (self.is_login, self.passed, self.dropped) = (false, 0, 0);
        }
        self.head.clear();
    }
}

/// The fields of an error of which only the beginning is there. Each is its kind, a text and a NUL; after
/// the last one, there is a NUL more. Of the fields that are not whole, only the message is of use.
fn shortened(beginning: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut rest = beginning;
    while let [kind, text @ ..] = rest
        && *kind != 0
    {
        match text.iter().position(|byte| *byte == 0) {
            Some(end) => {
                let (field, others) = rest.split_at(end + 2);
                fields.extend_from_slice(field);
                rest = others;
            }
            None => {
                if *kind == b'M' {
                    fields.extend_from_slice(rest);
                    fields.push(0);
                }
                break;
            }
        }
    }
    fields.push(0);
    fields
}

/// What the library gets of these bytes of a server, if they come in pieces of this size.
#[cfg(any(test, fuzzing))]
pub(super) fn filtered(bytes: &[u8], size: usize) -> Result<Vec<u8>, RejectedAnswer> {
    let mut filter = AnswerFilter::new(false, CallLimits::default());
    let mut ready = BytesMut::new();
    for piece in bytes.chunks(size) {
        filter.feed(piece, &mut ready)?;
        assert!(filter.kept.len() <= KEPT && filter.head.len() <= HEAD);
    }
    Ok(ready.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::{Receiver, channel};

    use super::super::tls::Tls;
    use super::*;
    use crate::options::Options;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = head(kind, body.len());
        message.extend_from_slice(body);
        message
    }

    fn head(kind: u8, body: usize) -> Vec<u8> {
        let length = u32::try_from(body + 4).unwrap();
        [&[kind][..], &length.to_be_bytes()].concat()
    }

    fn filter() -> AnswerFilter {
        AnswerFilter::new(false, CallLimits::default())
    }

    /// A filter of a session that has begun.
    fn begun() -> AnswerFilter {
        let mut filter = filter();
        let login = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        filter.feed(&login, &mut BytesMut::new()).unwrap();
        filter
    }

    fn fed(filter: &mut AnswerFilter, input: &[u8]) -> Result<Vec<u8>, RejectedAnswer> {
        let mut ready = BytesMut::new();
        filter.feed(input, &mut ready)?;
        Ok(ready.to_vec())
    }

    #[test]
    fn what_nobody_reads_is_dropped_and_all_else_passes_in_whatever_pieces_it_comes() {
        let (mut all, mut expected) = (Vec::new(), Vec::new());
        for (kind, body, passes) in [
            (b'R', &[0, 0, 0, 0][..], true),
            (b'S', b"server_version\x0016\0", false),
            (b'N', b"SNOTICE\0Mhello\0\0", false),
            (b'K', b"pid, key", true),
            (b'Z', b"I", true),
            (b'1', b"", true),
            (b'A', b"\0\0\0\x01channel\0\0", false),
            (b'N', b"", false),
            (b'D', &[7; 20_000], true),
            (b'E', b"SERROR\0C22P05\0Mno\0\0", true),
            (b'Z', b"I", true),
        ] {
            all.extend(message(kind, body));
            if passes {
                expected.extend(message(kind, body));
            }
        }
        for size in [1, 2, 3, 7, 4_096, all.len()] {
            let mut filter = filter();
            let mut ready = BytesMut::new();
            for mut piece in all.chunks(size) {
                // As the stream does it where it can.
                let passing = filter.passing().min(piece.len());
                if passing > 0 && size == 4_096 {
                    ready.extend_from_slice(&piece[..passing]);
                    filter.pass(passing);
                    piece = &piece[passing..];
                }
                filter.feed(piece, &mut ready).unwrap();
            }
            assert!(ready == expected, "{size}");
            assert!(!filter.is_login && filter.passed == 0, "{size}");
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_by_its_head() {
        let two_gib = 0x7fff_fff0;
        for kind in [b'E', b'N', b'S', b'R', b'D', b'?'] {
            let found = fed(&mut filter(), &head(kind, two_gib));
            assert_eq!(found, Err(RejectedAnswer::TooLong(LOGIN)), "{kind}");
        }
        let found = fed(&mut begun(), &head(b'D', SMALL));
        assert_eq!(found, Err(RejectedAnswer::TooLong(SMALL)));
        for kind in [b'E', b'N'] {
            let found = fed(&mut begun(), &head(kind, two_gib));
            assert_eq!(found, Err(RejectedAnswer::TooLong(DROPPED)), "{kind}");
        }
        let mut session = begun();
        let limits = session.limits.clone();
        let document = usize::try_from(LARGEST_DOCUMENT).unwrap();
        limits.for_a_document(|| {
            let found = fed(&mut session, &head(b'D', document));
            assert_eq!(found, Ok(head(b'D', document)));
            let found = fed(&mut begun(), &head(b'D', document));
            assert_eq!(found, Err(RejectedAnswer::TooLong(SMALL)));
        });
        assert_eq!(
            fed(&mut filter(), b"R\0\0\0\x03"),
            Err(RejectedAnswer::NotPostgres)
        );
    }

    #[test]
    fn many_short_messages_are_too_long_together_until_the_answer_is_complete() {
        let (row, end) = (message(b'D', &[0; 1_000]), message(b'Z', b"I"));
        let mut session = begun();
        for _ in 0..3 {
            for _ in 0..1_000 {
                fed(&mut session, &row).unwrap();
            }
            fed(&mut session, &end).unwrap();
        }
        let mut rows = (0..1_100).map(|_| fed(&mut session, &row));
        let refused = rows.find_map(Result::err);
        assert_eq!(refused, Some(RejectedAnswer::TooLong(SMALL)));

        let notice = message(b'N', &[0; 1_000]);
        let mut login = filter();
        let mut notices = (0..100).map(|_| fed(&mut login, &notice));
        let refused = notices.find_map(Result::err);
        assert_eq!(refused, Some(RejectedAnswer::TooLong(LOGIN)));
    }

    #[test]
    fn of_a_long_error_the_state_and_the_beginning_of_its_message_are_kept() {
        let mut session = begun();
        let size = 10 << 20;
        let fields = b"SERROR\0VERROR\0CP0001\0Mno: ";
        let mut found = fed(&mut session, &head(b'E', size)).unwrap();
        found.extend(fed(&mut session, fields).unwrap());
        for left in (0..size - fields.len()).step_by(4_096) {
            let length = (size - fields.len() - left).min(4_096);
            found.extend(fed(&mut session, &vec![b'x'; length]).unwrap());
        }
        assert!(session.kept.capacity() < 4 * KEPT);
        assert!(found.len() <= KEPT + HEAD + 2, "{}", found.len());
        assert_eq!(found[..HEAD], head(b'E', found.len() - HEAD));
        assert!(found[HEAD..].starts_with(fields) && found.ends_with(b"xx\0\0"));
        assert_eq!(
            fed(&mut session, &message(b'Z', b"I")).unwrap(),
            message(b'Z', b"I")
        );
        for (cut, expected) in [
            (&b"SERROR\0CP00"[..], &b"SERROR\0\0"[..]),
            (b"SERROR\0C1\0Mno", b"SERROR\0C1\0Mno\0\0"),
            (b"SERROR\0M", b"SERROR\0M\0\0"),
            (b"SERROR\0", b"SERROR\0\0"),
            (b"SERROR\0\0", b"SERROR\0\0"),
            (b"Dprivate", b"\0"),
        ] {
            assert_eq!(shortened(cut), expected);
        }
    }

    #[test]
    fn the_password_in_clear_text_is_refused_where_it_is_not_allowed() {
        let asks = message(b'R', &[0, 0, 0, 3]);
        for size in [1, asks.len()] {
            let mut refused = filter();
            let found: Result<Vec<_>, _> =
                asks.chunks(size).map(|it| fed(&mut refused, it)).collect();
            assert_eq!(found, Err(RejectedAnswer::ClearText));
        }
        let mut allowed = AnswerFilter::new(true, CallLimits::default());
        assert_eq!(fed(&mut allowed, &asks).unwrap(), asks);
        // MD5 and SASL.
        for way in [5, 10] {
            let asks = message(b'R', &[0, 0, 0, way]);
            assert_eq!(fed(&mut filter(), &asks).unwrap(), asks);
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    const SHORT: Duration = Duration::from_millis(20);

    fn cut_after(cut: Duration) -> CallTimes {
        CallTimes { cancel: None, cut }
    }

    /// Whoever has come to the server.
    enum Came {
        /// A client that was let in, and gets no answers.
        Session(TcpStream),
        /// A request to cancel.
        Cancel,
    }

    /// A server that lets clients in and answers nothing.
    fn silent_server() -> (Config, Receiver<Came>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::new();
        config.host("127.0.0.1").user("u");
        config.port(listener.local_addr().unwrap().port());
        let (tell, came) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 4];
                stream.read_exact(&mut length).unwrap();
                let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
                stream.read_exact(&mut packet).unwrap();
                let who = if packet.starts_with(&80_877_102_u32.to_be_bytes()) {
                    Came::Cancel
                } else {
                    let login = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
                    stream.write_all(login).unwrap();
                    Came::Session(stream)
                };
                if tell.send(who).is_err() {
                    return;
                }
            }
        });
        (config, came)
    }

    /// A session with that server, the server's end of it, and the requests to cancel.
    fn session() -> (Client, CallLimits, TcpStream, Receiver<Came>) {
        let (config, came) = silent_server();
        let limits = CallLimits::default();
        let wire = Wire {
            tls: None,
            is_optional: true,
            allows_clear_text: false,
            limits: limits.clone(),
        };
        let client = wire.connect(config).unwrap();
        limits.allow_to_cancel(Canceller::new(&client, Some(wire)));
        match came.recv_timeout(LONG) {
            Ok(Came::Session(stream)) => (client, limits, stream, came),
            _ => panic!("no session"),
        }
    }

    fn is_cancelled(came: &Receiver<Came>) -> bool {
        matches!(came.recv_timeout(LONG), Ok(Came::Cancel))
    }

    #[test]
    fn a_call_over_its_time_fails_and_is_cancelled_also_after_one_with_more_time() {
        let (mut client, limits, _server, came) = session();
        let over = limits.during(cut_after(SHORT), || client.batch_execute("SELECT 1"));
        let cause = reason(&over.unwrap_err());
        assert!(cause.ends_with("no answer in time"), "{cause}");
        assert!(limits.has_cut() && !limits.has_cancelled());
        assert!(is_cancelled(&came));
        let again = limits.during(cut_after(LONG), || client.batch_execute("SELECT 1"));
        assert!(again.is_err());
    }

    #[test]
    fn a_call_is_cancelled_in_its_time_and_cut_only_when_that_does_not_help() {
        let (mut client, limits, mut server, came) = session();
        let times = |cut| CallTimes {
            cancel: Some(SHORT),
            cut,
        };
        let answer = thread::spawn(move || {
            assert!(is_cancelled(&came));
            let error = message(b'E', b"SERROR\0VERROR\0C57014\0Mno\0\0");
            server.write_all(&error).unwrap();
            server.write_all(&message(b'Z', b"I")).unwrap();
            (server, came)
        });
        let ended = limits.during(times(LONG), || client.batch_execute("SELECT 1"));
        assert!(ended.unwrap_err().as_db_error().is_some());
        assert!(limits.has_cancelled() && !limits.has_cut());
        let (_server, came) = answer.join().unwrap();

        let over = limits.during(times(2 * SHORT), || client.batch_execute("SELECT 1"));
        assert!(over.unwrap_err().as_db_error().is_none());
        assert!(limits.has_cut());
        // Before the cut and after it, or only after it if both were due at once.
        assert!(is_cancelled(&came));
    }

    #[test]
    fn a_call_that_panics_leaves_nothing_to_wait_for() {
        let (mut client, limits, _server, _came) = session();
        let call = AssertUnwindSafe(|| limits.during(cut_after(LONG), || panic!("inside")));
        assert!(catch_unwind(call).is_err());
        assert!(limits.has_cut());
        assert!(client.batch_execute("SELECT 1").is_err());
    }

    #[test]
    fn a_server_that_does_not_answer_a_login_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::new();
        config.host("127.0.0.1").user("u");
        config.port(listener.local_addr().unwrap().port());
        for sslmode in ["disable", "require"] {
            let tls = Tls::read(&mut Options::from_yaml(&format!("sslmode: {sslmode}")));
            let limits = CallLimits::default();
            let wire = tls.wire(true, &limits).unwrap();
            let connect = || wire.connect(config.clone());
            assert!(
                limits.during(cut_after(SHORT), connect).is_err(),
                "{sslmode}"
            );
        }
    }
}
