//! One connection: commands go out as they are packed, replies come back as values.
//!
//! Over TCP and Unix sockets this module reads the replies (RESP2) itself: a long string goes from the socket
//! into memory of its own length. The client library takes 8 KB at a time, and keeps a buffer as large as the
//! longest reply for as long as the connection lives. It still reads where there is TLS or where the server
//! sends push messages.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    Client, ConnectionAddr, ConnectionLike, ErrorKind, ProtocolVersion, RedisError, RedisResult,
    Value,
};

/// A connection to a server. After an error other than one that the server replied, it is of no more use.
pub struct Connection(Transport);

enum Transport {
    Direct(Direct),
    Library(Box<redis::Connection>),
}

/// A socket whose replies this module reads.
struct Direct {
    socket: Socket,
    replies: ReplyReader,
    is_open: bool,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Connects; each address of a name gets all of `timeout`. Logs in only if the client's settings say so.
    pub(super) fn open(client: &Client, timeout: Duration) -> RedisResult<Self> {
        let info = client.get_connection_info();
        let settings = info.redis_settings();
        let is_plain = settings.protocol() == ProtocolVersion::RESP2
            && settings.password().is_none()
            && settings.db() == 0;
        let socket = match info.addr() {
            ConnectionAddr::Tcp(host, port) if is_plain => {
                Socket::Tcp(connect(host, *port, timeout, info.tcp_settings())?)
            }
            ConnectionAddr::Unix(path) if is_plain => Socket::Unix(UnixStream::connect(path)?),
            _ => {
                let connection = client.get_connection_with_timeout(timeout)?;
                return Ok(Self(Transport::Library(Box::new(connection))));
            }
        };
        Ok(Self(Transport::Direct(Direct {
            socket,
            replies: ReplyReader::default(),
            is_open: true,
        })))
    }

    /// Whether memory of the length of the longest reply stays with the connection.
    pub fn keeps_buffers(&self) -> bool {
        matches!(self.0, Transport::Library(_))
    }

    /// Sends packed commands, and reads no reply.
    pub fn send_packed_command(&mut self, packed: &[u8]) -> RedisResult<()> {
        match &mut self.0 {
            Transport::Direct(direct) => direct.send(packed),
            Transport::Library(connection) => connection.send_packed_command(packed),
        }
    }

    /// Reads the next reply. An error that the server replied is a [`Value::ServerError`].
    pub fn recv_response(&mut self) -> RedisResult<Value> {
        match &mut self.0 {
            Transport::Direct(direct) => direct.receive(),
            Transport::Library(connection) => connection.recv_response(),
        }
    }

    /// Limits the time of each later read from the socket.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> RedisResult<()> {
        match &self.0 {
            Transport::Direct(direct) => {
                match &direct.socket {
                    Socket::Tcp(socket) => socket.set_read_timeout(limit)?,
                    Socket::Unix(socket) => socket.set_read_timeout(limit)?,
                }
                Ok(())
            }
            Transport::Library(connection) => connection.set_read_timeout(limit),
        }
    }

    /// Limits the time of each later write to the socket.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> RedisResult<()> {
        match &self.0 {
            Transport::Direct(direct) => {
                match &direct.socket {
                    Socket::Tcp(socket) => socket.set_write_timeout(limit)?,
                    Socket::Unix(socket) => socket.set_write_timeout(limit)?,
                }
                Ok(())
            }
            Transport::Library(connection) => connection.set_write_timeout(limit),
        }
    }
}

fn connect(
    host: &str,
    port: u16,
    timeout: Duration,
    settings: &TcpSettings,
) -> RedisResult<TcpStream> {
    let mut refused = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => {
                socket.set_nodelay(settings.nodelay())?;
                let options = socket2::SockRef::from(&socket);
                if let Some(keepalive) = settings.keepalive() {
                    options.set_tcp_keepalive(keepalive)?;
                }
                #[cfg(target_os = "linux")]
                options.set_tcp_user_timeout(settings.user_timeout())?;
                return Ok(socket);
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.map_or_else(
        || {
            let why = "could not resolve to any addresses";
            RedisError::from((ErrorKind::InvalidClientConfig, why))
        },
        RedisError::from,
    ))
}

impl Direct {
    fn send(&mut self, packed: &[u8]) -> RedisResult<()> {
        self.check_open()?;
        let sent = match &mut self.socket {
            Socket::Tcp(socket) => socket.write_all(packed),
            Socket::Unix(socket) => socket.write_all(packed),
        };
        self.is_open = sent.is_ok();
        Ok(sent?)
    }

    fn receive(&mut self) -> RedisResult<Value> {
        self.check_open()?;
        let reply = match &mut self.socket {
            Socket::Tcp(socket) => self.replies.next(socket),
            Socket::Unix(socket) => self.replies.next(socket),
        };
        self.is_open = reply.is_ok();
        reply
    }

    /// A part of a reply may have been read, or of a command sent: what follows cannot be told.
    fn check_open(&self) -> io::Result<()> {
        if self.is_open {
            return Ok(());
        }
        let why = "the connection has failed before";
        Err(io::Error::new(io::ErrorKind::NotConnected, why))
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        if let Transport::Library(connection) = &mut self.0 {
            return connection.req_packed_command(packed);
        }
        self.send_packed_command(packed)?;
        self.recv_response()
    }

    fn req_packed_commands(
        &mut self,
        packed: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        if let Transport::Library(connection) = &mut self.0 {
            return connection.req_packed_commands(packed, offset, count);
        }
        self.send_packed_command(packed)?;
        let mut replies: Vec<Value> = (0..offset + count)
            .map(|_| self.recv_response())
            .collect::<RedisResult<_>>()?;
        let wanted = replies.split_off(offset);
        // Those before say whether a transaction has taken the commands.
        for reply in replies {
            reply.extract_error()?;
        }
        Ok(wanted)
    }

    /// This module selects the database itself.
    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<String>(self).is_ok()
    }

    fn is_open(&self) -> bool {
        match &self.0 {
            Transport::Direct(direct) => direct.is_open,
            Transport::Library(connection) => connection.is_open(),
        }
    }
}

/// How many bytes are read at once where a string is not longer than that.
const BUFFER: usize = 16 << 10;

/// The longest line that is no string: an error, or the length of what follows.
const LONGEST_LINE: usize = 1 << 20;

/// How deep replies may be nested.
const DEEPEST: usize = 100;

/// What the first line of a reply says.
enum FirstLine {
    /// It is the whole reply.
    Whole(Value),
    /// A string of this length follows.
    String(usize),
    /// An array of this length follows.
    Array(usize),
}

fn first_line(line: &[u8]) -> RedisResult<FirstLine> {
    let Some((kind, text)) = line.split_first() else {
        return Err(unreadable("an empty line"));
    };
    let nothing = FirstLine::Whole(Value::Nil);
    Ok(match kind {
        b'+' if text == b"OK" => FirstLine::Whole(Value::Okay),
        b'+' => match std::str::from_utf8(text) {
            Ok(text) => FirstLine::Whole(Value::SimpleString(text.to_owned())),
            Err(_) => return Err(unreadable("a status that is not UTF-8")),
        },
        // Only the client library can make one.
        b'-' => FirstLine::Whole(redis::parse_redis_value(&[line, b"\r\n"].concat())?),
        b':' => FirstLine::Whole(Value::Int(number(text)?)),
        b'$' => usize::try_from(number(text)?).map_or(nothing, FirstLine::String),
        b'*' => usize::try_from(number(text)?).map_or(nothing, FirstLine::Array),
        _ => return Err(unreadable("an unknown kind of reply")),
    })
}

/// Makes values of the bytes of a socket.
#[derive(Default)]
struct ReplyReader {
    buffer: Vec<u8>,
    /// Where the bytes begin and end that are not taken yet.
    start: usize,
    end: usize,
}

impl ReplyReader {
    /// The next reply.
    fn next(&mut self, socket: &mut impl Read) -> RedisResult<Value> {
        self.value(socket, 0)
    }

    fn value(&mut self, socket: &mut impl Read, depth: usize) -> RedisResult<Value> {
        let line = self.line(socket)?;
        match first_line(&self.buffer[line])? {
            FirstLine::Whole(value) => Ok(value),
            FirstLine::String(length) => self.string(socket, length).map(Value::BulkString),
            FirstLine::Array(_) if depth >= DEEPEST => Err(unreadable("arrays nested too deep")),
            // Room is made as elements come, whatever the length says.
            FirstLine::Array(length) => (0..length)
                .map(|_| self.value(socket, depth + 1))
                .collect::<RedisResult<Vec<_>>>()
                .map(Value::Array),
        }
    }

    /// Takes the next line. Returns where it is in the buffer, without its end.
    fn line(&mut self, socket: &mut impl Read) -> RedisResult<Range<usize>> {
        let mut searched = 0;
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some(at) = bytes[searched..].iter().position(|byte| *byte == b'\n') {
                let (start, end) = (self.start, self.start + searched + at);
                self.start = end + 1;
                if !self.buffer[start..end].ends_with(b"\r") {
                    return Err(unreadable("a line without a proper end"));
                }
                return Ok(start..end - 1);
            }
            searched = bytes.len();
            self.fill(socket)?;
        }
    }

    /// A string of this length, and the end of its line.
    fn string(&mut self, socket: &mut impl Read, length: usize) -> RedisResult<Vec<u8>> {
        let mut string = Vec::new();
        let room = string.try_reserve_exact(length);
        room.map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        let buffered = length.min(self.end - self.start);
        string.extend_from_slice(&self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        if buffered < length {
            let rest = (length - buffered) as u64;
            socket.take(rest).read_to_end(&mut string)?;
            if string.len() < length {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        while self.end - self.start < 2 {
            self.fill(socket)?;
        }
        if self.buffer[self.start..].starts_with(b"\r\n") {
            self.start += 2;
            Ok(string)
        } else {
            Err(unreadable("a string longer than its length"))
        }
    }

    /// Reads at least one more byte into the buffer.
    fn fill(&mut self, socket: &mut impl Read) -> RedisResult<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == 0 && self.buffer.len() > BUFFER {
            self.buffer = Vec::new();
        }
        if self.end == self.buffer.len() {
            if self.end >= LONGEST_LINE {
                return Err(unreadable("a line without an end"));
            }
            self.buffer.resize((2 * self.end).max(BUFFER), 0);
        }
        match socket.read(&mut self.buffer[self.end..])? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }
}

fn number(text: &[u8]) -> RedisResult<i64> {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|it| it.parse().ok());
    number.ok_or_else(|| unreadable("a number that is none"))
}

fn unreadable(what: &'static str) -> RedisError {
    (
        ErrorKind::Parse,
        "the reply cannot be read",
        what.to_owned(),
    )
        .into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Returns these bytes, at most so many at once.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = into.len().min(self.1).min(self.0.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn all(bytes: &[u8], at_once: usize) -> (Vec<Value>, RedisError) {
        let (mut socket, mut reader) = (Trickle(bytes, at_once), ReplyReader::default());
        let mut values = Vec::new();
        loop {
            match reader.next(&mut socket) {
                Ok(value) => values.push(value),
                Err(error) => return (values, error),
            }
        }
    }

    #[test]
    fn replies_are_read_as_the_client_library_reads_them_however_they_come() {
        let long = "x".repeat(3 * BUFFER);
        let stream = format!(
            "+OK\r\n+QUEUED\r\n:-7\r\n$-1\r\n*-1\r\n$0\r\n\r\n*3\r\n:1\r\n*2\r\n$4\r\na\r\nb\r\n+s\r\n\
             ${}\r\n{long}\r\n-NOSCRIPT No matching script.\r\n-ERR {long}\r\n-MISCONF\r\n*0\r\n",
            long.len()
        );
        let stream = stream.as_bytes();
        let mut library = redis::Parser::new();
        let mut source = stream;
        let expected: Vec<Value> = (0..11)
            .map(|_| library.parse_value(&mut source).unwrap())
            .collect();
        for at_once in [1, 2, 7, BUFFER - 1, usize::MAX] {
            let (values, end) = all(stream, at_once);
            assert!(values == expected, "{at_once} at once");
            assert!(end.is_connection_dropped(), "{end}");
        }
    }

    #[test]
    fn what_is_no_reply_ends_the_connection_and_takes_no_memory() {
        let deep = "*1\r\n".repeat(DEEPEST + 1);
        let endless = "+".repeat(2 * LONGEST_LINE);
        for (bytes, kind) in [
            ("\r\n", ErrorKind::Parse),
            ("\n", ErrorKind::Parse),
            ("?1\r\n", ErrorKind::Parse),
            (":x\r\n", ErrorKind::Parse),
            ("$2\r\nabc\r\n", ErrorKind::Parse),
            (&deep, ErrorKind::Parse),
            (&endless, ErrorKind::Parse),
            ("$5\r\nabc", ErrorKind::Io),
            ("$9223372036854775807\r\nabc", ErrorKind::Io),
            ("*9223372036854775807\r\n", ErrorKind::Io),
        ] {
            let (values, error) = all(bytes.as_bytes(), usize::MAX);
            let shown: String = bytes.chars().take(30).collect();
            assert_eq!((values.len(), error.kind()), (0, kind), "{shown:?}");
        }
    }

    #[test]
    fn a_long_string_leaves_a_short_buffer() {
        let long = format!("${}\r\n{}\r\n", 4 << 20, "x".repeat(4 << 20));
        let (mut socket, mut reader) = (Trickle(long.as_bytes(), 100_000), ReplyReader::default());
        let Value::BulkString(string) = reader.next(&mut socket).unwrap() else {
            unreachable!("it is a string");
        };
        assert_eq!((string.len(), string.capacity()), (4 << 20, 4 << 20));
        assert_eq!(reader.buffer.len(), BUFFER);
    }
}
