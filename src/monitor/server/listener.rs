//! Where connections come in: a TCP port or a Unix socket.
//!
//! A Unix socket has a file: made for its owner and group alone, taken over from a daemon that died, and removed
//! at the end.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

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
                listen_at_file(path).map(|(file, listener)| Self::Unix(file, listener))
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

/// Its owner and the group may connect.
const MODE: u32 = 0o660;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The file of a socket that is ours; its end removes it.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number.
    identity: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put another in its place.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // What is left behind is taken over by the next.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a socket of this path, in the place of one at which nobody listens.
fn listen_at_file(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
    make_way(path)?;
    let address = SockAddr::unix(path)?;
    let socket = bind(&address)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path)?,
    };
    // What the umask has taken away is given back. Nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((file, OwnedFd::from(socket).into()))
}

/// A socket whose file nobody but its owner and group can ever use, not even for a moment and whatever
/// the umask is.
fn bind(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets the mode of the socket. Systems that do not know that refuse it.
    #[cfg(target_os = "linux")]
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(MODE))?;
    socket.bind(address)?;
    Ok(socket)
}

/// Removes a socket that was left behind.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => {
            let message = "there is something that is no socket; remove it or choose another path";
            return Err(io::Error::other(message));
        }
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One that listens and has no room for more is not waited for.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let there = fs::symlink_metadata(path)?;
    Ok((there.dev(), there.ino()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_and_group_and_goes_with_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = listen_at_file(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_socket_is_made_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _socket = bind(&SockAddr::unix(&path).unwrap()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    }

    #[test]
    fn a_socket_at_which_somebody_listens_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _first = listen_at_file(&path).unwrap();
        let second = listen_at_file(&path).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_was_left_behind_is_taken_over_and_then_not_removed_by_the_former() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (former, listener) = listen_at_file(&path).unwrap();
        // Else its number could be given out again at once.
        fs::hard_link(&path, folder.path().join("held")).unwrap();
        drop(listener);
        let _second = listen_at_file(&path).unwrap();
        drop(former);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(listen_at_file(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(listen_at_file(&folder.path().join("none/s")).is_err());
    }
}
