//! Where connections come in, a TCP port or a Unix socket, and the streams of clients.
//!
//! A Unix socket has a file: made for its owner and group alone, taken over from a daemon that died, and removed
//! at the end. Reads and writes on a stream have a deadline: [`TimedStream`].

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::settings::HttpAddress;

/// Where connections come in.
pub(super) enum Listener {
    Tcp(TcpListener),
    /// The file is removed before the socket is closed, so that nobody takes over a socket that is about to go.
    Unix(SocketFile, UnixListener),
}

/// One connection.
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why the monitor cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("could not listen at {address} (CONSERVER_HTTP): {cause}")]
pub(super) struct ListenError {
    pub address: String,
    pub cause: io::Error,
}

impl ListenError {
    /// Whether another process listens there.
    pub fn is_in_use(&self) -> bool {
        self.cause.kind() == io::ErrorKind::AddrInUse
    }
}

impl Listener {
    /// Starts to listen; `None` if HTTP is off.
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

    /// Takes the next connection, without waiting for one.
    ///
    /// # Errors
    /// As of accept(2), if there is none, or none can be taken now.
    pub fn accept(&self) -> io::Result<ClientStream> {
        // Some systems hand the listener's flag on.
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(ClientStream::Tcp(stream))
            }
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(ClientStream::Unix(stream))
            }
        }
    }
}

/// Listens at the first of the host's addresses that is one of this machine's.
fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        // The library sets SO_REUSEADDR, so the port of a former monitor is free at once.
        match TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
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

impl ClientStream {
    /// Ends the sending side, the receiving side, or both; a thread that is blocked in it returns.
    pub fn shut_down(&self, side: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(side),
            Self::Unix(stream) => stream.shutdown(side),
        }
    }

    /// Who is at the other end, for the log: an address, or the user of a Unix socket.
    pub fn peer(&self) -> String {
        match self {
            Self::Tcp(stream) => match stream.peer_addr() {
                Ok(address) => address.ip().to_canonical().to_string(),
                Err(_) => "an unknown address".to_owned(),
            },
            Self::Unix(stream) => unix_peer(stream),
        }
    }

    /// Lets all reads and writes together take until `deadline`.
    pub fn until(&self, deadline: Instant) -> TimedStream<'_> {
        TimedStream {
            stream: self,
            deadline,
        }
    }
}

#[cfg(target_os = "linux")]
fn unix_peer(stream: &UnixStream) -> String {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) => format!("UID {} (PID {})", peer.uid(), peer.pid()),
        Err(_) => "an unknown user".to_owned(),
    }
}

#[cfg(not(target_os = "linux"))]
fn unix_peer(_: &UnixStream) -> String {
    "a user of the Unix socket".to_owned()
}

/// A stream on which all reads and writes together end by a deadline, however many there are.
pub(super) struct TimedStream<'a> {
    stream: &'a ClientStream,
    deadline: Instant,
}

impl TimedStream<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for TimedStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        match self.stream {
            ClientStream::Tcp(stream) => {
                stream.set_read_timeout(left)?;
                (&*stream).read(buffer)
            }
            ClientStream::Unix(stream) => {
                stream.set_read_timeout(left)?;
                (&*stream).read(buffer)
            }
        }
    }
}

impl Write for TimedStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        match self.stream {
            ClientStream::Tcp(stream) => {
                stream.set_write_timeout(left)?;
                (&*stream).write(bytes)
            }
            ClientStream::Unix(stream) => {
                stream.set_write_timeout(left)?;
                (&*stream).write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The owner and the group may connect.
const MODE: u32 = 0o660;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The file of the socket of this process; dropping it removes the file.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
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
        // Another process may have replaced it.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // The next daemon takes over a file that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a socket of this path, in place of one at which nobody listens.
fn listen_at_file(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
    make_way(path)?;
    let address = SockAddr::unix(path)?;
    let socket = bind(&address)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path)?,
    };
    // Gives back what the umask has taken away. Nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((file, OwnedFd::from(socket).into()))
}

/// A socket whose file nobody but its owner and group can use, not even for a moment, whatever the umask is.
fn bind(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets the mode of the socket. Other systems refuse to set it.
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
    // So that a full backlog does not block.
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

    #[test]
    fn many_small_reads_and_writes_do_not_extend_the_deadline() {
        let (near, far) = UnixStream::pair().unwrap();
        let far = ClientStream::Unix(far);
        let start = Instant::now();
        let deadline = start + Duration::from_millis(100);
        let writing = std::thread::spawn(move || {
            while (&near).write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut stream = far.until(deadline);
        while stream.read(&mut [0; 8]).is_ok() {}
        assert!(start.elapsed() >= Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(stream.write(b"x").is_err());
        drop(far);
        writing.join().unwrap();
    }
}
