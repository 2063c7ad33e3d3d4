//! What a fault of the file system means for the vCon, and what a person can do about it.
//!
//! A fault of the place meets every vCon alike: it is waited out, whoever mends it, or a full disk
//! would fill the dead letter queue. What only this one vCon meets will not pass by waiting.
//!
//! | fault | met while | class |
//! |---|---|---|
//! | ENOSPC, EDQUOT, EROFS, EIO, ESTALE, EMFILE, ENFILE, ENOMEM, … | anything | transient |
//! | EACCES, EPERM | anything | transient: the directory's rights, which may be taken away between two steps of one save |
//! | EBUSY | moving over or removing the vCon's own file | permanent: something is mounted on that file |
//! | ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EINVAL, EXDEV | anything | transient: `path`, a link or a mount in it |
//! | EISDIR | the vCon's own file | permanent: a directory has its name |
//! | EFBIG | the vCon's own file | permanent: the file system or a limit of the process has no larger files |
//! | a file that is not UTF-8 or does not decompress | reading | permanent |

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::failure::Failure;

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Making, listing or trying a directory.
    Directory,
    /// Writing or reading a document.
    Document,
    /// Moving a whole draft over the vCon's own name, or removing what is there.
    Name,
}

/// The failure of one step.
pub(super) fn fault(step: Step, what: &str, path: &Path, error: &io::Error) -> Failure {
    let mut message = format!("could not {what} {}: {error}", path.display());
    if let Some(advice) = advice(error) {
        message.push_str("; ");
        message.push_str(&advice);
    }
    if is_the_vcons(step, error.kind()) {
        Failure::permanent(message)
    } else {
        Failure::transient(message)
    }
}

/// The table in the module's head.
fn is_the_vcons(step: Step, kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::IsADirectory | ErrorKind::FileTooLarge | ErrorKind::InvalidData => {
            step != Step::Directory
        }
        ErrorKind::ResourceBusy => step == Step::Name,
        _ => false,
    }
}

fn advice(error: &io::Error) -> Option<String> {
    let text = match (error.kind(), error.raw_os_error()) {
        (ErrorKind::StorageFull, _) => "make room on that disk",
        (ErrorKind::QuotaExceeded, _) => "raise the quota, or make room",
        (ErrorKind::ReadOnlyFilesystem, _) => "mount it writable",
        (ErrorKind::StaleNetworkFileHandle, _) => "mount the network file system anew",
        (ErrorKind::NotADirectory, _) => "`path` and all above it must be directories",
        (ErrorKind::InvalidFilename, _) => "give a shorter `path`",
        (ErrorKind::IsADirectory, _) => "a directory has the name of the file",
        (_, Some(libc::ELOOP)) => "mend the symbolic links in `path`",
        (_, Some(libc::EMFILE)) => "raise the limit of open files (LimitNOFILE)",
        (_, Some(libc::EIO)) => "look for faults of the disk in the system's log",
        (ErrorKind::PermissionDenied, _) => {
            let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
            return Some(format!(
                "this process, user {user} and group {group}, needs the right to write there"
            ));
        }
        _ => return None,
    };
    Some(text.to_owned())
}
