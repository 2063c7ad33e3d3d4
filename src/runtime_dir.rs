//! The folder for what lives as long as the daemon runs.
//!
//! `$RUNTIME_DIRECTORY` (set by systemd, see systemd.exec(5)), else `$XDG_RUNTIME_DIR/conserver`,
//! else a private folder under the one for temporary files.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Where packages let systemd make the folder; looked at last, by a person's `conserver status`.
const SYSTEM: &str = "/run/conserver";

/// Finds the folder for a daemon, and makes it where it is missing.
///
/// # Errors
/// Where it cannot be made, or the one under the temporary folder is not private.
pub fn make() -> io::Result<PathBuf> {
    if let Some(folder) = given() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| named(&folder, &error.to_string()))?;
        return Ok(folder);
    }
    let folder = private();
    match DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(named(&folder, &error.to_string())),
    }
    if is_private(&folder) {
        Ok(folder)
    } else {
        Err(named(
            &folder,
            "it is not a folder that only its owner can use; set RUNTIME_DIRECTORY",
        ))
    }
}

/// Every file that looks like a scoreboard, in each folder where one may be.
pub fn scoreboards() -> Vec<PathBuf> {
    let folders = given()
        .into_iter()
        .chain(Some(private()).filter(|folder| is_private(folder)))
        .chain([PathBuf::from(SYSTEM)]);
    let mut found: Vec<PathBuf> = folders
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "scoreboard"))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The folder the environment names.
fn given() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    // Of several, the first is the service's own.
    let systemd = set("RUNTIME_DIRECTORY")
        .and_then(|folders| env::split_paths(&folders).next())
        .filter(|folder| folder.is_absolute());
    systemd.or_else(|| {
        let user = PathBuf::from(set("XDG_RUNTIME_DIR")?).join("conserver");
        user.is_absolute().then_some(user)
    })
}

fn private() -> PathBuf {
    env::temp_dir().join(format!("conserver-{}", geteuid()))
}

/// Whether it is a folder, not a link to one, that is ours and that nobody else can use.
fn is_private(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
    })
}

fn named(folder: &Path, what: &str) -> io::Error {
    let folder = folder.display();
    io::Error::other(format!(
        "the runtime folder {folder} cannot be used: {what}"
    ))
}
