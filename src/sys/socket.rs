//! A socket that a library keeps to itself, found by a mark among its options. Only Linux has
//! `TCP_USER_TIMEOUT`, by which sockets can be told apart; elsewhere none is ever found.

#[cfg(target_os = "linux")]
pub use linux::SocketHold;
#[cfg(not(target_os = "linux"))]
pub use other::SocketHold;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
    use std::path::PathBuf;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::socket::{Shutdown, getsockopt, setsockopt, shutdown, sockopt};

    /// A second descriptor of a socket whose owner does not hand it out, to cut its connection with.
    pub struct SocketHold(OwnedFd);

    impl SocketHold {
        /// Finds the TCP socket of this process whose `TCP_USER_TIMEOUT` is `mark` milliseconds, and
        /// sets it to `rest`, so that the mark is free again. `None` if there is none (a Unix
        /// socket), if several have it, or if `/proc` does not show them.
        pub fn find(mark: u32, rest: u32) -> Option<Self> {
            let marked: Vec<OwnedFd> = std::fs::read_dir("/proc/self/fd")
                .ok()?
                .flatten()
                // No other file is touched: closing a second descriptor of one lets go of its locks.
                .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(is_socket))
                .filter_map(|entry| duplicate(entry.file_name().to_str()?.parse().ok()?))
                .filter(|socket| getsockopt(socket, sockopt::TcpUserTimeout) == Ok(mark))
                .collect();
            for socket in &marked {
                setsockopt(socket, sockopt::TcpUserTimeout, &rest).ok()?;
            }
            let [socket] = <[OwnedFd; 1]>::try_from(marked).ok()?;
            Some(Self(socket))
        }

        /// Ends the connection in both directions: whoever reads or writes has an error at once.
        pub fn cut(&self) {
            // Fails only where the connection has ended already.
            let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
        }
    }

    fn is_socket(target: PathBuf) -> bool {
        target
            .as_os_str()
            .as_encoded_bytes()
            .starts_with(b"socket:")
    }

    /// Another descriptor of the same file. It is looked at only through this one, which nobody else
    /// closes.
    fn duplicate(fd: RawFd) -> Option<OwnedFd> {
        // SAFETY: it is borrowed for one system call only. Another thread may close it meanwhile, and a
        // third open a file of the same number: the call then fails, or returns a descriptor of that
        // file, which belongs to this process too.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let own = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(3)).ok()?;
        // SAFETY: the call above has opened it, and nobody else knows of it.
        Some(unsafe { OwnedFd::from_raw_fd(own) })
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::expect_used)]

        use std::io::Read;
        use std::net::{TcpListener, TcpStream};

        use super::*;

        #[test]
        fn a_socket_is_found_by_its_mark_and_a_cut_ends_what_waits_for_it() {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("its address");
            let mut marked = TcpStream::connect(address).expect("a connection");
            let _other_end = listener.accept().expect("its other end");
            let _unmarked = TcpStream::connect(address).expect("a connection");
            setsockopt(&marked, sockopt::TcpUserTimeout, &4_321).expect("an option");
            assert!(SocketHold::find(4_322, 4_000).is_none());
            let twin = TcpStream::connect(address).expect("a connection");
            setsockopt(&twin, sockopt::TcpUserTimeout, &4_321).expect("an option");
            assert!(SocketHold::find(4_321, 4_000).is_none());
            setsockopt(&marked, sockopt::TcpUserTimeout, &4_321).expect("an option");
            let hold = SocketHold::find(4_321, 4_000).expect("the socket");
            assert!(SocketHold::find(4_321, 4_000).is_none());
            let reader = std::thread::spawn(move || marked.read(&mut [0; 1]).ok());
            hold.cut();
            assert_eq!(reader.join().expect("no panic"), Some(0));
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    /// A second descriptor of a socket whose owner does not hand it out: never had here.
    pub enum SocketHold {}

    impl SocketHold {
        /// Finds nothing.
        pub fn find(_: u32, _: u32) -> Option<Self> {
            None
        }

        /// There is nothing to end.
        pub fn cut(&self) {
            match *self {}
        }
    }
}
