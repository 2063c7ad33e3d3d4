//! What an error of the file system means for the vCon, and what a person can do about it.
//!
//! An error of the directory or the disk affects every vCon alike and is waited out; otherwise a full disk
//! would fill the dead letter queue. An error that affects only this vCon does not pass by waiting: it is
//! refused, which counts as the vCon's fault unless others are refused too.
//!
//! | error | while | class |
//! |---|---|---|
//! | ENOSPC, EDQUOT, EROFS, EIO, ESTALE, EMFILE, ENFILE, ENOMEM, … | anything | transient |
//! | EACCES, EPERM | anything | transient: the directory's rights, which may be taken away between two steps of one save |
//! | EBUSY | moving over or removing the vCon's own file | refused: something is mounted on that file |
//! | ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EINVAL, EXDEV | anything | transient: `path`, a link or a mount in it |
//! | EISDIR | the vCon's own file | refused: a directory has its name |
//! | EFBIG | the vCon's own file | refused: the file system or a limit of the process has no larger files |
//! | a directory or symbolic link of another user | anything | transient: whoever has it can give it away |
//! | no regular file under the vCon's name | reading | permanent |
//! | a file that is not UTF-8, does not decompress, or is longer than `max_file_size` | reading | permanent |

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::failure::{Failure, FailureKind};

/// The step of an operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileStep {
    /// Making, listing or trying a directory.
    Directory,
    /// Writing or reading a document.
    Document,
    /// Renaming a draft to the vCon's own name, or removing a file.
    Name,
}

/// The failure of one step.
pub(super) fn failure(step: FileStep, what: &str, path: &Path, error: &io::Error) -> Failure {
    let mut message = format!("could not {what} {}: {error}", path.display());
    if let Some(advice) = advice(error) {
        message.push_str("; ");
        message.push_str(&advice);
    }
    Failure::new(kind(step, error.kind()), message)
}

/// The table in the module's head.
fn kind(step: FileStep, error: ErrorKind) -> FailureKind {
    match (step, error) {
        (
            FileStep::Document | FileStep::Name,
            ErrorKind::IsADirectory | ErrorKind::FileTooLarge,
        )
        | (FileStep::Name, ErrorKind::ResourceBusy) => FailureKind::Refused,
        (FileStep::Document | FileStep::Name, ErrorKind::InvalidData) => FailureKind::Permanent,
        _ => FailureKind::Transient,
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
    use crate::failure::FailureKind::{Permanent, Refused, Transient};

    #[test]
    fn faults_are_classified_as_the_table_says() {
        use FileStep::{Directory, Document, Name};
        let everywhere: &[FileStep] = &[Directory, Document, Name];
        let table: &[(FailureKind, &[FileStep], &[i32])] = &[
            (
                Transient,
                everywhere,
                &[
                    libc::ENOSPC,
                    libc::EDQUOT,
                    libc::EROFS,
                    libc::EIO,
                    libc::EMFILE,
                    libc::ENFILE,
                    libc::EINTR,
                    libc::EAGAIN,
                    libc::ENOENT,
                    libc::ESTALE,
                    libc::ENOTCONN,
                    libc::ETIMEDOUT,
                    libc::ENOMEM,
                    libc::ENOTDIR,
                    libc::ENAMETOOLONG,
                    libc::ELOOP,
                    libc::EINVAL,
                    libc::EXDEV,
                    libc::EACCES,
                    libc::EPERM,
                ],
            ),
            (Transient, &[Directory, Document], &[libc::EBUSY]),
            (Transient, &[Directory], &[libc::EISDIR, libc::EFBIG]),
            (Refused, &[Name], &[libc::EBUSY]),
            (Refused, &[Document, Name], &[libc::EISDIR, libc::EFBIG]),
        ];
        for (kind, steps, codes) in table {
            for (step, code) in steps
                .iter()
                .flat_map(|step| codes.iter().map(move |code| (*step, *code)))
            {
                let error = io::Error::from_raw_os_error(code);
                let failure = failure(step, "write", Path::new("/data/x"), &error);
                assert_eq!(failure.kind, *kind, "{step:?}: {failure}");
                assert!(failure.message.contains("/data/x"), "{failure}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_the_vcons() {
        let error = io::Error::from(ErrorKind::InvalidData);
        for (step, kind) in [
            (FileStep::Directory, Transient),
            (FileStep::Document, Permanent),
            (FileStep::Name, Permanent),
        ] {
            assert_eq!(failure(step, "read", Path::new("/x"), &error).kind, kind);
        }
    }

    #[test]
    fn a_failure_names_the_step_the_path_the_error_and_what_helps() {
        let user = format!(
            "; this process, user {} and group {}, needs the right to write there",
            nix::unistd::geteuid(),
            nix::unistd::getegid()
        );
        for (code, advice) in [
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
            (libc::EACCES, user.as_str()),
            (libc::EPERM, user.as_str()),
            (libc::ENOENT, ""),
        ] {
            let error = io::Error::from_raw_os_error(code);
            let failure = failure(FileStep::Name, "write", Path::new("/data/x"), &error);
            let expected = format!("could not write /data/x: {error}{advice}");
            assert_eq!(failure.message, expected);
        }
    }
}
