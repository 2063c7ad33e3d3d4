//! Facts about a process, this machine and this boot, mostly from `/proc`. Systems without it, or where
//! it is not mounted, have fewer.

use std::collections::hash_map::DefaultHasher;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::{fs, io};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::sys::{self, Credentials};

/// `overflowuid` where nobody has changed it (proc_sys_kernel(5)).
const NOBODY: u32 = 65534;

/// Whether `/proc` is mounted.
pub fn is_there() -> bool {
    fs::symlink_metadata("/proc/self").is_ok()
}

/// The memory of a process and its share of the memory that it shares with others (proportional set
/// size), in bytes. If the process hides its memory, only itself and root can read this.
pub fn proportional_set_size(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    kilobytes(line)
}

/// [`proportional_set_size`] of this process.
pub fn own_proportional_set_size() -> Option<u64> {
    proportional_set_size(i32::try_from(std::process::id()).ok()?)
}

/// The memory of this process that is in use (resident set size), in bytes.
pub fn own_resident_set_size() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    kilobytes(line)
}

fn kilobytes(line: &str) -> Option<u64> {
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(number * 1024)
}

/// Whether there is a process with a PID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No process, or one that has ended and only waits to be reaped.
    Gone,
    /// A process.
    Alive {
        /// When it was started, in ticks since boot, if that is known.
        start: Option<u64>,
    },
}

/// Looks whether there is a process with this PID in this process's PID namespace.
pub fn presence(pid: i32) -> Presence {
    // 0 and below stand for groups of processes.
    if pid <= 0 || nix::sys::signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return Presence::Gone;
    }
    // If /proc hides the processes of other users, only the signal finds them.
    match stat(pid) {
        Some((b'Z' | b'X', _)) => Presence::Gone,
        Some((_, start)) => Presence::Alive { start: Some(start) },
        None => Presence::Alive { start: None },
    }
}

/// When a process was started, in ticks since boot.
pub fn start_of(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, start)| start)
}

/// The state of a process and its start, as in proc_pid_stat(5).
fn stat(pid: i32) -> Option<(u8, u64)> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses before it may hold anything.
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(&bytes[end + 1..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// A process whose facts are of this very one, also if another gets its PID meanwhile.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process that has this PID now.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(&*format!("/proc/{pid}"), flags, Mode::empty())?))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut bytes = Vec::new();
        File::from(openat(&self.0, name, flags, Mode::empty())?).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// As whom it runs, and the mask of its new files; nothing if it runs as more than one user at a time.
    pub fn identity(&self) -> Option<(Credentials, Option<u32>)> {
        let status = self.read("status").ok()?;
        parse_identity(&String::from_utf8_lossy(&status))
    }

    /// The environment that it was started with.
    ///
    /// # Errors
    /// If this user may not read it: of a process that hides its memory, only root may.
    pub fn environment(&self) -> io::Result<Vec<(OsString, OsString)>> {
        let bytes = self.read("environ")?;
        let variables = bytes.split(|byte| *byte == 0).filter_map(|variable| {
            let end = variable.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (&variable[..end], &variable[end + 1..]);
            (!name.is_empty()).then(|| (text(name), text(value)))
        });
        Ok(variables.collect())
    }

    /// The arguments that it was started with, its name among them.
    ///
    /// # Errors
    /// If it has ended.
    pub fn arguments(&self) -> io::Result<Vec<OsString>> {
        let bytes = self.read("cmdline")?;
        let arguments = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        Ok(arguments.split(|byte| *byte == 0).map(text).collect())
    }

    /// Its working directory.
    ///
    /// # Errors
    /// As for [`environment`](Self::environment).
    pub fn working_directory(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.0, "cwd")?.into())
    }
}

fn text(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}

fn parse_identity(status: &str) -> Option<(Credentials, Option<u32>)> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let ids = |name| -> Option<Vec<u32>> {
        let ids = line(name)?.split_whitespace().map(str::parse);
        ids.collect::<Result<_, _>>().ok()
    };
    // Real, effective, saved, of the file system.
    let only = |ids: Vec<u32>| match ids[..] {
        [id, a, b, c] if [a, b, c] == [id; 3] => Some(id),
        _ => None,
    };
    let credentials = Credentials {
        user: only(ids("Uid:")?)?,
        group: only(ids("Gid:")?)?,
        groups: ids("Groups:")?,
        may_switch: line("CapEff:").is_some_and(sys::may_switch_with),
    };
    let mask = line("Umask:").and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok());
    Some((credentials, mask))
}

/// The initial PID namespace, the same on each system (`PROC_PID_INIT_INO`).
pub const SYSTEM_NAMESPACE: &str = "pid:[4026531836]";

/// The PID namespace of this process, as in `pid:[4026531836]`.
pub fn pid_namespace() -> Option<String> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(link.to_str()?.to_owned())
}

/// The owner that files seem to have if their real one is not mapped in this user namespace; `None` if all
/// users are mapped.
pub fn unmapped_owner() -> Option<u32> {
    if cfg!(not(target_os = "linux")) {
        return None;
    }
    let everybody = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
    // Unknown if /proc is not mounted.
    if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| everybody(&map)) {
        return None;
    }
    let told = fs::read_to_string("/proc/sys/kernel/overflowuid");
    Some(
        told.ok()
            .and_then(|id| id.trim().parse().ok())
            .unwrap_or(NOBODY),
    )
}

/// Distinguishes this boot of the system from earlier ones.
pub fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Distinguishes this machine from others, also over a reboot. The machine's id itself must not leave it
/// (machine-id(5)), so this is a hash.
pub fn machine() -> Option<u64> {
    let text = fs::read_to_string("/etc/machine-id").ok()?;
    let id = text.trim();
    let known = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    known.then(|| {
        let mut hasher = DefaultHasher::new();
        ("conserver", id).hash(&mut hasher);
        hasher.finish()
    })
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(proportional_set_size(own_pid()) > Some(100_000));
        assert!(own_resident_set_size() > Some(100_000));
        assert_eq!(proportional_set_size(-1), None);
    }

    #[test]
    fn a_process_that_runs_as_two_users_has_no_identity() {
        let status = |saved| {
            format!(
                "Name:\tx\nUmask:\t0077\nUid:\t7\t7\t{saved}\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \nCapEff:\t00000000000000e0\n"
            )
        };
        let (found, mask) = parse_identity(&status(7)).unwrap();
        assert_eq!((found.user, found.group, mask), (7, 8, Some(0o77)));
        assert_eq!((found.groups, found.may_switch), (vec![8, 9], true));
        assert_eq!(parse_identity(&status(0)), None);
    }

    #[test]
    fn what_is_read_of_a_process_is_of_that_one() {
        let own = Process::open(own_pid()).unwrap();
        let (identity, _) = own.identity().unwrap();
        assert_eq!(identity.user, nix::unistd::geteuid().as_raw());
        let variables = own.environment().unwrap();
        assert!(variables.iter().any(|(name, _)| name == "PATH"));
        let arguments: Vec<OsString> = std::env::args_os().collect();
        assert_eq!(own.arguments().unwrap(), arguments);
        let folder = std::env::current_dir().unwrap();
        assert_eq!(own.working_directory().unwrap(), folder);
        let mut child = std::process::Command::new("cat");
        let child = child.stdin(std::process::Stdio::piped()).spawn();
        let mut child = child.unwrap();
        let seen = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(seen.identity().is_some());
        drop(child.stdin.take());
        child.wait().unwrap();
        // Whoever has the PID now.
        assert_eq!(seen.identity(), None);
        assert!(seen.environment().is_err() && seen.working_directory().is_err());
        assert!(Process::open(-1).is_err());
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let start = start_of(own_pid());
        assert!(start.is_some());
        assert_eq!(presence(own_pid()), Presence::Alive { start });
        assert!(matches!(presence(1), Presence::Alive { .. }));
        assert!(pid_namespace().unwrap().starts_with("pid:["));
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn a_process_that_has_ended_is_gone_before_it_is_reaped() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while presence(pid) != Presence::Gone {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(presence(pid), Presence::Gone);
        assert_eq!(presence(0), Presence::Gone);
        assert_eq!(presence(-1), Presence::Gone);
    }
}
