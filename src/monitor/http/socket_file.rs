//! A Unix socket in the file system: made, taken over from one that has died, and removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

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
pub(super) fn listen(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
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
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_and_group_and_goes_with_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = listen(&path).unwrap();
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
        let _first = listen(&path).unwrap();
        let second = listen(&path).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_was_left_behind_is_taken_over_and_then_not_removed_by_the_former() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (former, listener) = listen(&path).unwrap();
        // Else its number could be given out again at once.
        fs::hard_link(&path, folder.path().join("held")).unwrap();
        drop(listener);
        let _second = listen(&path).unwrap();
        drop(former);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(listen(&folder.path().join("none/s")).is_err());
    }
}
