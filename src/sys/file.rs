//! What a process is given as its standard input, of any size.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::dup2_stdin;

/// Makes an empty file that nobody else can open; it goes with its last descriptor. In memory where
/// the system can, so that no disk has to have room.
pub fn nameless_file() -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        if let Ok(file) = memfd_create("conserver", MFdFlags::MFD_CLOEXEC) {
            return Ok(file.into());
        }
    }
    tempfile::tempfile()
}

/// Takes what this process was given as its standard input, which neither its children nor the
/// programs it starts find there any more.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let given = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(&File::open("/dev/null")?)?;
    Ok(given)
}
