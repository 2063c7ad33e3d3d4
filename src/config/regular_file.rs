//! Reading a file that anything may stand in the place of.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// The bytes of a regular file of at most `most` bytes. Neither a pipe nor a device keeps the
/// caller waiting.
pub(super) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Without waiting: a pipe would keep us until someone writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    read_all(file, most)
}

/// The bytes of a file that is open.
pub(super) fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let megabytes = most >> 20;
        return Err(io::Error::other(format!(
            "it is larger than {megabytes} MiB, the most that is read of such a file"
        )));
    }
    Ok(bytes)
}
