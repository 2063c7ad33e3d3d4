//! The monitor of a daemon as somebody sees it who asks it by HTTP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{PATIENCE, free_port, wait_until};

/// Longer than any answer takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Where the monitor of one daemon answers.
#[derive(Debug, Clone)]
pub enum Monitor {
    Port(u16),
    Socket(PathBuf),
}

/// What it has answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Reads one; nothing where there is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some(Self {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The body, which has to be JSON.
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.body);
        parsed.unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A connection to it.
pub trait Stream: Read + Write + Send {
    /// Nothing more will be sent.
    fn half_close(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn half_close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn half_close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Monitor {
    /// At a port of its own.
    pub fn at_a_port() -> Self {
        Self::Port(free_port())
    }

    /// What `CONSERVER_HTTP` is to be for it.
    pub fn setting(&self) -> String {
        match self {
            Self::Port(port) => format!("127.0.0.1:{port}"),
            Self::Socket(path) => format!("unix:{}", path.display()),
        }
    }

    /// Connects to it.
    pub fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Port(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                Ok(Box::new(stream))
            }
            Self::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                Ok(Box::new(stream))
            }
        }
    }

    /// Sends these bytes; what comes back until it closes, nothing where that is no answer.
    pub fn send(&self, bytes: &[u8]) -> Option<Answer> {
        let mut stream = self.connect().ok()?;
        // It may have its answer before it has seen everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Answer::parse(&answer)
    }

    /// Asks for a path, if it answers.
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
    }

    /// Asks for a path, as soon as the monitor answers: it may have just been started.
    pub fn get(&self, path: &str) -> Answer {
        self.get_until(path, &format!("{path} is answered"), |_| true)
    }

    /// Waits until it answers with this status at this path.
    pub fn wait_for(&self, path: &str, status: u16) -> Answer {
        let what = format!("{path} is {status}");
        self.get_until(path, &what, |answer| answer.status == status)
    }

    fn get_until(&self, path: &str, what: &str, is_it: impl Fn(&Answer) -> bool) -> Answer {
        let mut last = None;
        wait_until(what, PATIENCE, || {
            last = self.try_get(path);
            last.as_ref().is_some_and(&is_it)
        });
        last.expect("an answer")
    }
}
