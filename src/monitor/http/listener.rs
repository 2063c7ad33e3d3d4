//! Where connections come in: a port or a Unix socket, and what comes of each.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use super::socket_file::{self, SocketFile};
use crate::settings::HttpAddress;

/// A place where connections come in.
pub(super) enum Listener {
    Tcp(TcpListener),
    /// The file is removed before the socket is closed: nobody takes over one that goes.
    Unix(SocketFile, UnixListener),
}

/// One connection. It is never waited for.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why nothing can come in.
#[derive(Debug, thiserror::Error)]
#[error("could not listen at {address} (CONSERVER_HTTP): {cause}")]
pub(super) struct ListenError {
    pub address: String,
    pub cause: io::Error,
}

impl ListenError {
    /// Whether somebody else listens there.
    pub fn is_in_use(&self) -> bool {
        self.cause.kind() == io::ErrorKind::AddrInUse
    }
}

impl Listener {
    /// Begins to listen; `None` where there is to be no listener.
    pub fn open(address: &HttpAddress) -> Result<Option<Self>, ListenError> {
        let opened = match address {
            HttpAddress::Off => return Ok(None),
            HttpAddress::Tcp { host, port } => listen(host, *port).map(Self::Tcp),
            HttpAddress::Unix(path) => {
                socket_file::listen(path).map(|(file, listener)| Self::Unix(file, listener))
            }
        };
        opened.map(Some).map_err(|cause| ListenError {
            address: address.to_string(),
            cause,
        })
    }

    /// The next connection that has come in.
    ///
    /// # Errors
    /// As of accept(2), when there is none, or none can be taken now.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
        }
    }
}

/// Listens at the first of the host's addresses that is one of this machine's.
fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut fault = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        // A port that a former monitor has used is free at once: the library says SO_REUSEADDR.
        match TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => fault = error,
        }
    }
    Err(fault)
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}/"),
                Err(_) => f.write_str("a port"),
            },
            Self::Unix(file, _) => write!(f, "unix:{}", file.path().display()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(_, listener) => listener.as_fd(),
        }
    }
}

impl Stream {
    /// Says that nothing more will be sent.
    pub fn end(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
