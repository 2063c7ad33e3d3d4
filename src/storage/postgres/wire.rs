//! The way to the server, with TLS or without, and what may come over it.
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
//! For a Unix socket it never does that: there is no limit over those.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use postgres::config::{SslMode, SslNegotiation};
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use postgres::{CancelToken, Client, Config, Error, Socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres_rustls::MakeRustlsConnect;

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

/// How many bytes the answer to a statement may have, for one session.
#[derive(Debug, Clone)]
pub(super) struct Allowance(Arc<AtomicUsize>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(SMALL)))
    }
}

impl Allowance {
    /// Makes the call, whose answer may have a document in it.
    pub(super) fn for_a_document<T>(&self, call: impl FnOnce() -> T) -> T {
        let most = usize::try_from(LARGEST_DOCUMENT).unwrap_or(usize::MAX);
        self.0.store(most.saturating_add(SMALL), Ordering::Relaxed);
        let answer = call();
        self.0.store(SMALL, Ordering::Relaxed);
        answer
    }
}

/// What the server sent and this side does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the answer is longer than {0} bytes, the most that it may have here")]
    TooLong(usize),
    #[error(
        "it asks for the password in clear text, which is refused: the host is not local, and its \
         certificate is not verified; set `sslmode: verify-full`, or let the server ask for \
         scram-sha-256 (pg_hba.conf); only a written `sslmode: prefer` or `disable` allows it"
    )]
    ClearText,
    #[error("the answer is none of PostgreSQL")]
    Stranger,
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
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
    pub(super) allowance: Allowance,
}

impl Wire {
    /// Opens a session.
    pub(super) fn connect(&self, mut config: Config) -> Result<Client, Error> {
        config
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        config.connect(self.clone())
    }

    /// Asks the server to cancel what it does in a session that was opened in this way.
    pub(super) fn cancel(&self, token: &CancelToken) -> Result<(), Error> {
        token.cancel_query(self.clone())
    }
}

impl MakeTlsConnect<Socket> for Wire {
    type Stream = Stream;
    type TlsConnect = Connect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connect, Self::Error> {
        let tls = self.tls.as_mut();
        let make = |tls: &mut MakeRustlsConnect| {
            <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(tls, host)
        };
        Ok(Connect {
            tls: tls.map(make).transpose()?,
            is_optional: self.is_optional,
            filter: Filter::new(self.allows_clear_text, self.allowance.clone()),
        })
    }
}

type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
type RustlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// One connection that is about to be made.
pub(super) struct Connect {
    tls: Option<Rustls>,
    is_optional: bool,
    filter: Filter,
}

impl TlsConnect<Socket> for Connect {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(self.begin(socket))
    }
}

impl Connect {
    async fn begin(self, mut socket: Socket) -> io::Result<Stream> {
        let inner = match self.tls {
            None => Inner::Plain(socket),
            Some(tls) => {
                socket.write_all(&TLS_REQUEST).await?;
                // No byte more: what follows belongs to TLS.
                if socket.read_u8().await? == b'S' {
                    Inner::Tls(Box::new(tls.connect(socket).await?))
                } else if self.is_optional {
                    Inner::Plain(socket)
                } else {
                    return Err(io::Error::other("server does not support TLS"));
                }
            }
        };
        Ok(Stream {
            inner,
            filter: self.filter,
            input: Box::new([0; BUFFER]),
            ready: BytesMut::new(),
        })
    }
}

/// What the library reads and writes.
pub(super) struct Stream {
    inner: Inner,
    filter: Filter,
    input: Box<[u8; BUFFER]>,
    /// What the library has not read yet.
    ready: BytesMut,
}

enum Inner {
    Plain(Socket),
    Tls(Box<RustlsStream>),
}

impl Inner {
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

impl AsyncRead for Stream {
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
                let length = ready!(this.inner.poll_read(cx, part))?;
                this.filter.pass(length);
                buffer.advance(length);
                return Poll::Ready(Ok(()));
            }
            let length = ready!(this.inner.poll_read(cx, &mut this.input[..]))?;
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            this.filter.feed(&this.input[..length], &mut this.ready)?;
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Inner::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.inner {
            Inner::Plain(_) => ChannelBinding::none(),
            Inner::Tls(stream) => stream.channel_binding(),
        }
    }
}

/// Lets through what a server may send. It never holds more than [`KEPT`] bytes and a head.
struct Filter {
    allows_clear_text: bool,
    allowance: Allowance,
    /// No session has begun yet.
    is_login: bool,
    /// The bytes that were let through, and those that were dropped, since the last complete answer.
    passed: usize,
    dropped: usize,
    /// The head of the message at hand, as far as it has come.
    head: Vec<u8>,
    fate: Fate,
    /// How much of the message is still to come after its head.
    left: usize,
    /// The message, if it is looked at.
    kept: Vec<u8>,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    /// It is looked at before it passes.
    Keep,
    Drop,
}

impl Filter {
    fn new(allows_clear_text: bool, allowance: Allowance) -> Self {
        Self {
            allows_clear_text,
            allowance,
            is_login: true,
            passed: 0,
            dropped: 0,
            head: Vec::with_capacity(HEAD),
            fate: Fate::Pass,
            left: 0,
            kept: Vec::new(),
        }
    }

    /// How many of the next bytes pass, whatever they are.
    fn passing(&self) -> usize {
        let is_passing = self.head.len() == HEAD && self.fate == Fate::Pass;
        if is_passing { self.left } else { 0 }
    }

    /// Notes that so many bytes of those have passed by.
    fn pass(&mut self, length: usize) {
        self.left -= length;
        if self.left == 0 {
            self.end_of_passed();
        }
    }

    /// Reads what has come, and adds to `ready` what the library gets of it.
    fn feed(&mut self, mut input: &[u8], ready: &mut BytesMut) -> Result<(), Refused> {
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
                    Fate::Pass => ready.extend_from_slice(part),
                    Fate::Keep => {
                        let room = KEPT - self.kept.len();
                        self.kept.extend_from_slice(&part[..room.min(part.len())]);
                    }
                    Fate::Drop => {}
                }
            }
            if self.left == 0 {
                self.end(ready)?;
            }
        }
        Ok(())
    }

    /// The head of a message is there.
    fn begin(&mut self, ready: &mut BytesMut) -> Result<(), Refused> {
        let (kind, length) = (self.head[0], &self.head[1..]);
        let length = length
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        self.left = length.checked_sub(HEAD - 1).ok_or(Refused::Stranger)?;
        self.fate = match kind {
            b'A' | b'N' | b'S' => Fate::Drop,
            b'E' | b'R' => Fate::Keep,
            _ => Fate::Pass,
        };
        let all = self.left.saturating_add(HEAD);
        let passes = match (self.fate, kind) {
            (Fate::Drop, _) => 0,
            (_, b'E') => all.min(KEPT),
            _ => all,
        };
        self.passed = self.passed.saturating_add(passes);
        self.dropped = self.dropped.saturating_add(all - passes);
        let (most, most_dropped) = if self.is_login {
            (LOGIN, LOGIN)
        } else {
            (self.allowance.0.load(Ordering::Relaxed), DROPPED)
        };
        if self.passed > most {
            return Err(Refused::TooLong(most));
        }
        if self.dropped > most_dropped {
            return Err(Refused::TooLong(most_dropped));
        }
        if self.fate == Fate::Pass {
            ready.extend_from_slice(&self.head);
        }
        Ok(())
    }

    /// The message is complete.
    fn end(&mut self, ready: &mut BytesMut) -> Result<(), Refused> {
        if self.fate == Fate::Keep {
            let kind = self.head[0];
            // The third way to log in.
            if kind == b'R' && self.kept.starts_with(&[0, 0, 0, 3]) && !self.allows_clear_text {
                return Err(Refused::ClearText);
            }
            let mut body = std::mem::take(&mut self.kept);
            if kind == b'E' && body.len() == KEPT {
                body = shortened(&body);
            }
            let length = u32::try_from(body.len() + HEAD - 1).map_err(|_| Refused::Stranger)?;
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
pub(super) fn filtered(bytes: &[u8], size: usize) -> Result<Vec<u8>, Refused> {
    let mut filter = Filter::new(false, Allowance::default());
    let mut ready = BytesMut::new();
    for piece in bytes.chunks(size) {
        filter.feed(piece, &mut ready)?;
        assert!(filter.kept.len() <= KEPT && filter.head.len() <= HEAD);
    }
    Ok(ready.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = head(kind, body.len());
        message.extend_from_slice(body);
        message
    }

    fn head(kind: u8, body: usize) -> Vec<u8> {
        let length = u32::try_from(body + 4).unwrap();
        [&[kind][..], &length.to_be_bytes()].concat()
    }

    fn filter() -> Filter {
        Filter::new(false, Allowance::default())
    }

    /// A filter of a session that has begun.
    fn begun() -> Filter {
        let mut filter = filter();
        let login = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        filter.feed(&login, &mut BytesMut::new()).unwrap();
        filter
    }

    fn fed(filter: &mut Filter, input: &[u8]) -> Result<Vec<u8>, Refused> {
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
            assert_eq!(found, Err(Refused::TooLong(LOGIN)), "{kind}");
        }
        let found = fed(&mut begun(), &head(b'D', SMALL));
        assert_eq!(found, Err(Refused::TooLong(SMALL)));
        for kind in [b'E', b'N'] {
            let found = fed(&mut begun(), &head(kind, two_gib));
            assert_eq!(found, Err(Refused::TooLong(DROPPED)), "{kind}");
        }
        let mut session = begun();
        let allowance = session.allowance.clone();
        let document = usize::try_from(LARGEST_DOCUMENT).unwrap();
        allowance.for_a_document(|| {
            let found = fed(&mut session, &head(b'D', document));
            assert_eq!(found, Ok(head(b'D', document)));
            let found = fed(&mut begun(), &head(b'D', document));
            assert_eq!(found, Err(Refused::TooLong(SMALL)));
        });
        assert_eq!(fed(&mut filter(), b"R\0\0\0\x03"), Err(Refused::Stranger));
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
        assert_eq!(refused, Some(Refused::TooLong(SMALL)));

        let notice = message(b'N', &[0; 1_000]);
        let mut login = filter();
        let mut notices = (0..100).map(|_| fed(&mut login, &notice));
        let refused = notices.find_map(Result::err);
        assert_eq!(refused, Some(Refused::TooLong(LOGIN)));
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
            assert_eq!(found, Err(Refused::ClearText));
        }
        let mut allowed = Filter::new(true, Allowance::default());
        assert_eq!(fed(&mut allowed, &asks).unwrap(), asks);
        // MD5 and SASL.
        for way in [5, 10] {
            let asks = message(b'R', &[0, 0, 0, way]);
            assert_eq!(fed(&mut filter(), &asks).unwrap(), asks);
        }
    }
}
