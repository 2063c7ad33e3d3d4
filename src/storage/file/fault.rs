//! What a fault of the file system means for the vCon, and what a person can do about it.
//!
//! A fault of the place meets every vCon alike: it is waited out, whoever mends it, or a full disk
//! would fill the dead letter queue. What only this one vCon meets will not pass by waiting.
//!
//! | fault | met while | class |
//! |---|---|---|
//! | ENOSPC, EDQUOT, EROFS, EIO, ESTALE, EMFILE, ENFILE, ENOMEM, … | anything | transient |
//! | EACCES, EPERM | making directories or a draft, reading | transient: the directory's rights |
//! | EACCES, EPERM, EBUSY | moving over or removing the vCon's own file | permanent: that file is protected, as its directory lets us write |
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
        ErrorKind::PermissionDenied | ErrorKind::ResourceBusy => step == Step::Name,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The failure of a step by this error of the system.
    fn failed(step: Step, code: i32) -> Failure {
        fault(
            step,
            "move",
            Path::new("/data/x"),
            &io::Error::from_raw_os_error(code),
        )
    }

    #[test]
    fn what_a_person_can_do_is_said() {
        for (code, words) in [
            (libc::ENOSPC, "; make room on that disk"),
            (libc::EDQUOT, "; raise the quota, or make room"),
            (libc::EROFS, "; mount it writable"),
            (libc::ESTALE, "; mount the network file system anew"),
            (
                libc::ENOTDIR,
                "; `path` and all above it must be directories",
            ),
            (libc::ENAMETOOLONG, "; give a shorter `path`"),
            (libc::EISDIR, "; a directory has the name of the file"),
            (libc::ELOOP, "; mend the symbolic links in `path`"),
            (
                libc::EMFILE,
                "; raise the limit of open files (LimitNOFILE)",
            ),
            (
                libc::EIO,
                "; look for faults of the disk in the system's log",
            ),
            (libc::EACCES, "needs the right to write there"),
            (libc::EPERM, "needs the right to write there"),
            (libc::ENOMEM, "(os error 12)"),
            (libc::ENFILE, "(os error 23)"),
        ] {
            let failure = failed(Step::Directory, code);
            assert!(failure.message.ends_with(words), "{failure}");
            let start = "could not move /data/x: ";
            assert!(failure.message.starts_with(start), "{failure}");
        }
        let user = format!("; this process, user {} and", nix::unistd::geteuid());
        let failure = failed(Step::Document, libc::EACCES);
        assert!(failure.message.contains(&user), "{failure}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_the_fault_of_that_file() {
        let error = io::Error::new(ErrorKind::InvalidData, "it is not UTF-8");
        for (step, is_transient) in [
            (Step::Directory, true),
            (Step::Document, false),
            (Step::Name, false),
        ] {
            let failure = fault(step, "read", Path::new("/data/x"), &error);
            assert_eq!(failure.is_transient(), is_transient, "{step:?}");
            assert_eq!(failure.message, "could not read /data/x: it is not UTF-8");
        }
    }
}
