//! The runtime folder: it holds the scoreboard and the configuration in force while the daemon runs.
//!
//! `$RUNTIME_DIRECTORY` (set by systemd, see systemd.exec(5)), else `$XDG_RUNTIME_DIR/conserver`,
//! else a private folder under the one for temporary files.
//!
//! Whoever can write there could replace the configuration that workers are started with, and so
//! run programs as the daemon. So the folder, those above it and each file opened in it must belong
//! to this user (or root), and nobody else may write to them. The folder may be a link of root's, as
//! systemd makes one for `DynamicUser=`; what counts then is the folder that it leads to.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::{Gid, Group, User, geteuid};

use crate::procfs;

/// Where systemd makes the folder for a packaged daemon, and with `-NAME` behind it for an instance of one. Only
/// root can make a folder there, so its owner is who root says. `conserver status`, run by a person, looks there last.
const SYSTEM: &str = "/run/conserver";

/// Group and others may write.
const OTHERS_WRITE: u32 = 0o022;

/// Only the owner of an entry of such a folder may rename or remove it.
const STICKY: u32 = 0o1000;

/// Finds the folder for a daemon, and makes it if it is missing.
///
/// # Errors
/// If it cannot be made, or somebody else could write there.
pub fn make() -> io::Result<PathBuf> {
    let folder = match given() {
        Some(folder) => {
            let parents = folder.parent().unwrap_or(&folder);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parents)
                .map_err(|error| named(&folder, Whose::Daemons, &error.to_string()))?;
            folder
        }
        None => private(),
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(named(&folder, Whose::Daemons, &error.to_string())),
    }
    checked(&folder, Whose::Daemons)
}

/// Finds the state folder: the one for what must outlast the daemon and a reboot, unlike the
/// runtime folder. `None` unless systemd names one in `$STATE_DIRECTORY`.
///
/// # Errors
/// If it is missing, or somebody else could write there.
pub fn state() -> Option<io::Result<PathBuf>> {
    let folder: PathBuf = named_by_systemd("STATE_DIRECTORY")?.components().collect();
    Some(checked(&folder, Whose::State))
}

/// Every file that looks like a scoreboard in each possible folder, and why a folder that exists is
/// skipped.
pub fn scoreboards() -> (Vec<PathBuf>, Vec<io::Error>) {
    let folders = given().into_iter().chain([private()]).chain(of_services());
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for folder in folders {
        match scoreboards_in(&folder) {
            Ok(paths) => found.extend(paths),
            Err(fault) => faults.push(fault),
        }
    }
    found.sort();
    found.dedup();
    (found, faults)
}

/// Every file that looks like a scoreboard in a folder; none if there is no folder.
///
/// # Errors
/// If somebody else could write there, or this user may not look into the folder of a service. The text says what to do.
pub fn scoreboards_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_services(folder) => {
            return Err(io::Error::new(error.kind(), denied(folder)));
        }
        // One that this user cannot read is another's.
        Err(_) => return Ok(Vec::new()),
    };
    checked(folder, Whose::Readers)?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_scoreboard = |path: &PathBuf| path.extension().is_some_and(|end| end == "scoreboard");
    let mut paths: Vec<PathBuf> = paths.filter(is_scoreboard).collect();
    paths.sort();
    Ok(paths)
}

/// The folder of the packaged service, or of this instance of it.
pub fn of_service(instance: Option<&str>) -> PathBuf {
    match instance {
        Some(name) => format!("{SYSTEM}-{name}").into(),
        None => SYSTEM.into(),
    }
}

/// The owner of a folder, or of the one that a link of root's leads to.
pub fn owner(folder: &Path) -> io::Result<u32> {
    checked(folder, Whose::Readers).and_then(|folder| Ok(fs::metadata(folder)?.uid()))
}

/// The instances of the packaged service that have a folder, with it.
pub fn of_instances() -> Vec<(String, PathBuf)> {
    let name = |folder: &PathBuf| {
        let text = folder.to_str()?.strip_prefix(SYSTEM)?.strip_prefix('-')?;
        Some(text.to_owned())
    };
    let folders = of_services().into_iter();
    folders
        .filter_map(|folder| Some((name(&folder)?, folder)))
        .collect()
}

/// The folders of the packaged service and of its instances.
fn of_services() -> Vec<PathBuf> {
    let above = Path::new(SYSTEM).parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.retain(|folder| is_services(folder));
    folders.sort();
    folders
}

/// Whether this is the place of the folder of a service.
pub fn is_services(folder: &Path) -> bool {
    let text = folder.as_os_str().as_bytes();
    let behind = text.strip_prefix(SYSTEM.as_bytes());
    behind.is_some_and(|it| it.is_empty() || it.starts_with(b"-") && !it.contains(&b'/'))
}

/// What somebody is told who may not read what is for the service's group.
pub fn denied(path: &Path) -> String {
    let shown = path.display();
    let me = User::from_uid(geteuid()).ok().flatten();
    let me = me.map_or_else(|| geteuid().to_string(), |user| user.name);
    // What is in a folder that cannot be looked into has the group of that folder.
    let known = path.ancestors().find_map(|path| fs::metadata(path).ok());
    let group = known.filter(|meta| meta.gid() != 0 && meta.mode() & 0o040 != 0);
    let group = group.and_then(|meta| Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten());
    match group {
        Some(Group { name, .. }) => format!(
            "permission denied: {shown} is for the group {name}; add yourself to it (sudo usermod -aG {name} {me}, \
             then log in again), or use sudo"
        ),
        None => format!("permission denied: {shown} is for root; use sudo"),
    }
}

/// Opens a file in the folder: a regular file with one name that belongs to this user or root, and
/// that nobody else may write to. To root the owner of the folder is as good, because root looks at
/// the daemons of others too, and so it is to everybody in the folder of a service.
///
/// # Errors
/// If it cannot be opened, or is anything else. The text names owner, mode and what to do.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = open_regular(path, options)?;
    let meta = file.metadata()?;
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(refused(&meta, "others may write to it"));
    }
    Ok(file)
}

/// [`open`] for a file that is made anew if others may write to it.
///
/// # Errors
/// As for [`open`], but for the mode.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Non-blocking: opening a pipe would wait until somebody writes to it.
    let opened = options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            let meta = fs::symlink_metadata(path)?;
            return Err(refused(&meta, "it is a symbolic link"));
        }
        opened => opened?,
    };
    let meta = file.metadata()?;
    let kind = meta.file_type();
    let own = geteuid().as_raw();
    // Root looks at the daemons of others, and a member of a service's group at that service.
    let may_be_folders = own == 0 || path.parent().is_some_and(is_services);
    let is_ours = meta.uid() == own || meta.uid() == 0 || may_be_folders && is_folders(&meta, path);
    let fault = if kind.is_fifo() {
        "it is a pipe, not a file"
    } else if !kind.is_file() {
        "it is not a file"
    } else if !is_ours {
        "it belongs to another user"
    } else if meta.nlink() > 1 {
        "it is known by more than one name"
    } else {
        return Ok(file);
    };
    Err(refused(&meta, fault))
}

/// Replaces the content of a file in the folder in one step, through a draft beside it. Only this user can read it.
///
/// # Errors
/// If it cannot be written; the former content stays.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    replace_with_mode(path, text, 0o600)
}

/// [`replace`] for a file that the service's group may read, as it may read the scoreboard.
///
/// # Errors
/// As for [`replace`].
pub fn replace_for_group(path: &Path, text: &str) -> io::Result<()> {
    replace_with_mode(path, text, 0o640)
}

fn replace_with_mode(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push("-draft");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&draft, path)
}

/// Whether the file and its folder have the same owner.
fn is_folders(file: &Metadata, path: &Path) -> bool {
    let folder = path.parent().map(|folder| match is_services(folder) {
        // A link there is one of root's.
        true => fs::metadata(folder),
        false => fs::symlink_metadata(folder),
    });
    folder.is_some_and(|folder| folder.is_ok_and(|folder| folder.uid() == file.uid()))
}

fn refused(meta: &Metadata, fault: &str) -> io::Error {
    io::Error::other(format!(
        "{fault} ({}): remove it, or use another folder (RUNTIME_DIRECTORY, STATE_DIRECTORY)",
        owner_and_mode(meta)
    ))
}

fn owner_and_mode(meta: &Metadata) -> String {
    format!("owner {}, mode {:04o}", meta.uid(), meta.mode() & 0o7777)
}

/// The folder that the environment names.
fn given() -> Option<PathBuf> {
    let folder = named_by_systemd("RUNTIME_DIRECTORY").or_else(|| {
        let user = PathBuf::from(set("XDG_RUNTIME_DIR")?).join("conserver");
        user.is_absolute().then_some(user)
    })?;
    // Without a trailing slash: with one, a link would count as the folder that it leads to.
    Some(folder.components().collect())
}

/// The folder in this variable of systemd's. If there are several, the first is the service's own.
fn named_by_systemd(variable: &str) -> Option<PathBuf> {
    let first = env::split_paths(&set(variable)?).next()?;
    first.is_absolute().then_some(first)
}

fn set(variable: &str) -> Option<OsString> {
    env::var_os(variable).filter(|value| !value.is_empty())
}

fn private() -> PathBuf {
    env::temp_dir().join(format!("conserver-{}", geteuid()))
}

/// Whose folder it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This user's, or root's.
    Daemons,
    /// For root, which looks at the daemons of others, anybody's; for others also the one of a service.
    Readers,
    /// This user's, or root's: the state folder.
    State,
}

impl Whose {
    /// What the folder is called, and the variable that names it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Daemons | Self::Readers => ("runtime folder", "RUNTIME_DIRECTORY"),
            Self::State => ("state folder", "STATE_DIRECTORY"),
        }
    }
}

/// The path of the folder without links, if nobody but its owner and root can change what is in it.
fn checked(folder: &Path, whose: Whose) -> io::Result<PathBuf> {
    let fault = |what: String| named(folder, whose, &what);
    let seen = |path: &Path| {
        fs::symlink_metadata(path).map_err(|error| fault(format!("{}: {error}", path.display())))
    };
    let own = geteuid().as_raw();
    // Resolved once, and used by that path: changing the link later has no effect.
    let followed = match is_roots_link(folder) {
        true => fs::canonicalize(folder).map_err(|error| fault(error.to_string()))?,
        false => folder.to_owned(),
    };
    let meta = seen(&followed)?;
    let is_readable = whose == Whose::Readers && (own == 0 || is_services(folder));
    let is_ours = meta.uid() == own || meta.uid() == 0 || is_readable;
    let what = if meta.is_symlink() {
        "it is a symbolic link"
    } else if !meta.is_dir() {
        "it is not a folder"
    } else if !is_ours {
        "it belongs to another user"
    } else if meta.mode() & OTHERS_WRITE != 0 {
        "others may write to it"
    } else {
        ""
    };
    if !what.is_empty() {
        let seen = owner_and_mode(&meta);
        return Err(fault(format!(
            "{what} ({seen}), and could put their files in the place of the daemon's; {}",
            advice(own, whose)
        )));
    }
    // Without links, which could lead elsewhere later.
    let folder = fs::canonicalize(followed).map_err(|error| fault(error.to_string()))?;
    let owner = meta.uid();
    for above in folder.ancestors().skip(1) {
        let meta = seen(above)?;
        let is_trusted = [0, own, owner].contains(&meta.uid()) || is_unmapped(meta.uid());
        if !is_trusted || meta.mode() & OTHERS_WRITE != 0 && meta.mode() & STICKY == 0 {
            let (above, seen) = (above.display(), owner_and_mode(&meta));
            return Err(fault(format!(
                "others can rename it in {above} ({seen}); {}",
                advice(own, whose)
            )));
        }
    }
    Ok(folder)
}

/// Whether it is a link made by root, in a folder where only root can make one.
fn is_roots_link(path: &Path) -> bool {
    let is_roots = |meta: &Metadata| meta.uid() == 0 || is_unmapped(meta.uid());
    let Ok(link) = fs::symlink_metadata(path) else {
        return false;
    };
    let above = path.parent().and_then(|above| fs::metadata(above).ok());
    link.is_symlink()
        && is_roots(&link)
        && above.is_some_and(|it| is_roots(&it) && it.mode() & OTHERS_WRITE == 0)
}

fn advice(own: u32, whose: Whose) -> String {
    let (_, variable) = whose.words();
    format!(
        "set {variable} to a folder that belongs to user {own} and that only this user can write to (mode 0750 or 0700)"
    )
}

/// Whether files have this owner because the user is not known in this user namespace, as root is
/// not in a container of another user's. Nobody in here can be such a user.
fn is_unmapped(owner: u32) -> bool {
    procfs::unmapped_owner() == Some(owner)
}

fn named(folder: &Path, whose: Whose, what: &str) -> io::Error {
    let ((name, _), folder) = (whose.words(), folder.display());
    io::Error::other(format!("the {name} {folder} cannot be used: {what}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use nix::unistd::{Gid, Uid, chown, mkfifo};

    use super::*;

    fn allow(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("run");
        fs::create_dir(&folder).unwrap();
        allow(&folder, 0o750);
        (top, folder)
    }

    fn refusal(folder: &Path) -> String {
        checked(folder, Whose::Daemons).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let (top, folder) = folder();
        checked(&folder, Whose::Daemons).unwrap();
        for mode in [0o770, 0o702, 0o777, 0o1777] {
            allow(&folder, mode);
            let said = refusal(&folder);
            let shown = format!("owner {}, mode {mode:04o}", geteuid());
            for word in [&*shown, &folder.display().to_string(), "RUNTIME_DIRECTORY"] {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
        let state = checked(&folder, Whose::State).unwrap_err().to_string();
        assert!(state.starts_with("the state folder "), "{state}");
        assert!(state.contains("set STATE_DIRECTORY to"), "{state}");
        allow(&folder, 0o700);
        allow(top.path(), 0o777);
        let said = refusal(&folder);
        assert!(said.contains("others can rename it in"), "{said}");
        allow(top.path(), 0o1777);
        checked(&folder, Whose::Daemons).unwrap();
    }

    #[test]
    fn a_link_and_a_file_are_no_folder_and_links_above_are_resolved() {
        let (top, folder) = folder();
        let link = top.path().join("link");
        symlink(&folder, &link).unwrap();
        if geteuid().is_root() {
            lchown(&link, Some(12345), Some(12345)).unwrap();
        }
        assert!(refusal(&link).contains("it is a symbolic link"));
        let file = top.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("it is not a folder"));
        let above = top.path().join("above");
        symlink(top.path(), &above).unwrap();
        let found = checked(&above.join("run"), Whose::Daemons).unwrap();
        assert_eq!(found, fs::canonicalize(&folder).unwrap());
    }

    #[test]
    fn a_link_that_only_root_can_have_made_is_followed_to_a_folder_of_ours() {
        if !geteuid().is_root() {
            return;
        }
        let (top, folder) = folder();
        let link = top.path().join("link");
        symlink(&folder, &link).unwrap();
        let found = checked(&link, Whose::Daemons).unwrap();
        assert_eq!(found, fs::canonicalize(&folder).unwrap());
        allow(&folder, 0o777);
        assert!(refusal(&link).contains("others may write to it"));
        allow(&folder, 0o700);
        lchown(&folder, Some(12345), None).unwrap();
        assert!(refusal(&link).contains("another user"));
        lchown(&folder, Some(0), None).unwrap();
        // Where others can make one too, it says nothing that root has.
        allow(top.path(), 0o1777);
        assert!(refusal(&link).contains("it is a symbolic link"));
        allow(top.path(), 0o700);
        let private = top.path().join("private");
        fs::create_dir(&private).unwrap();
        fs::rename(&folder, private.join("run")).unwrap();
        allow(&private, 0o777);
        fs::remove_file(&link).unwrap();
        symlink("private/run", &link).unwrap();
        assert!(refusal(&link).contains("others can rename it in"));
        allow(&private, 0o700);
        checked(&link, Whose::Readers).unwrap();
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        if !geteuid().is_root() {
            return;
        }
        let (top, folder) = folder();
        let other = |path: &Path| {
            chown(path, Some(Uid::from_raw(12345)), Some(Gid::from_raw(12345))).unwrap();
        };
        other(&folder);
        let said = refusal(&folder);
        assert!(
            said.contains("another user (owner 12345, mode 0750)"),
            "{said}"
        );
        // Root may look at the daemons of others, but uses none of their folders.
        checked(&folder, Whose::Readers).unwrap();
        let file = folder.join("here.config");
        fs::write(&file, "").unwrap();
        other(&file);
        open(&file, OpenOptions::new().read(true)).unwrap();
        chown(&folder, Some(Uid::from_raw(0)), None).unwrap();
        let said = open(&file, OpenOptions::new().read(true)).unwrap_err();
        let said = said.to_string();
        assert!(
            said.contains("another user (owner 12345, mode 0644)"),
            "{said}"
        );
        other(top.path());
        assert!(refusal(&folder).contains("others can rename it in"));
    }

    #[test]
    fn a_file_that_another_could_have_made_or_can_change_is_refused() {
        let (_top, folder) = folder();
        let refusal = |path: &Path| {
            let opened = open(path, OpenOptions::new().read(true));
            opened.unwrap_err().to_string()
        };
        let file = folder.join("here.config");
        fs::write(&file, "").unwrap();
        for mode in [0o620, 0o602, 0o666] {
            allow(&file, mode);
            let said = refusal(&file);
            let shown = format!(
                "others may write to it (owner {}, mode {mode:04o})",
                geteuid()
            );
            assert!(said.contains(&shown), "{said}");
            open_regular(&file, OpenOptions::new().read(true)).unwrap();
        }
        allow(&file, 0o644);
        open(&file, OpenOptions::new().read(true)).unwrap();
        let link = folder.join("link");
        symlink(&file, &link).unwrap();
        assert!(refusal(&link).contains("it is a symbolic link"));
        let pipe = folder.join("pipe");
        mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refusal(&pipe).contains("it is a pipe"));
        assert!(refusal(&folder).contains("it is not a file"));
        fs::hard_link(&file, folder.join("second")).unwrap();
        assert!(refusal(&file).contains("more than one name"));
    }
}
