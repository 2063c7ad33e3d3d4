//! Programs that run as another user, and commands of root that become the service's user.

use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use nix::libc;
use nix::unistd::{Gid, Uid, User, geteuid, setgid, setgroups, setuid};

/// The capabilities needed: CAP_KILL to end such a program, CAP_SETGID and CAP_SETUID to start one
/// (capabilities(7)).
const NEEDED: [libc::c_ulong; 3] = [5, 6, 7];

/// Whether the service as whose user this process acts could run programs as other users.
static SERVICE_MAY_SWITCH: OnceLock<bool> = OnceLock::new();

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: libc::uid_t,
    /// The user's group.
    pub group: libc::gid_t,
    /// All further groups.
    pub groups: Vec<libc::gid_t>,
    /// Whether it can run programs as other users.
    pub may_switch: bool,
}

impl Credentials {
    /// Makes this process one of that user, for good: it executes nothing, so its descriptors stay open, and the
    /// kernel lets no other process of the user trace it or read its memory, as it had other rights before. It
    /// cannot start programs of other users; whether [`Account::check`] passes depends on the service, though, whose
    /// rights are in question then.
    ///
    /// # Errors
    /// If the system refuses that, or the process could become root again.
    pub fn take_on(&self) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        #[cfg(not(target_vendor = "apple"))]
        setgroups(&groups)?;
        #[cfg(target_vendor = "apple")]
        let _ = groups;
        // The group first: afterwards this process has no right to change it.
        setgid(Gid::from_raw(self.group))?;
        setuid(Uid::from_raw(self.user))?;
        if self.user != 0 && setuid(Uid::from_raw(0)).is_ok() {
            return Err(io::Error::other("this process could become root again"));
        }
        super::hide_memory();
        let _ = SERVICE_MAY_SWITCH.set(self.may_switch);
        Ok(())
    }
}

/// A user of this system, with everything that a program run as that user gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    name: String,
    user: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
    /// The home folder.
    pub home: PathBuf,
}

impl Account {
    /// The user of this name or id.
    ///
    /// # Errors
    /// A sentence on why there is none.
    pub fn find(user: &str) -> Result<Self, String> {
        let found = match user.parse() {
            Ok(id) => User::from_uid(Uid::from_raw(id)),
            Err(_) => User::from_name(user),
        };
        let unknown = || format!("this system knows no user {user:?}");
        let found = found
            .map_err(|error| format!("{}: {error}", unknown()))?
            .ok_or_else(unknown)?;
        let groups = groups(&found).map_err(|error| {
            format!(
                "could not find out the groups of user {}: {error}",
                found.name
            )
        })?;
        Ok(Self {
            user: found.uid.as_raw(),
            group: found.gid.as_raw(),
            groups,
            home: found.dir,
            name: found.name,
        })
    }

    /// As whom a process of this user runs.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            user: self.user,
            group: self.group,
            groups: self.groups.clone(),
            may_switch: self.user == 0,
        }
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this process runs as this user.
    pub fn is_own(&self) -> bool {
        self.user == geteuid().as_raw()
    }

    /// Fails if this process cannot start, or not end, programs of this user.
    ///
    /// # Errors
    /// A sentence that says what is needed.
    pub fn check(&self) -> Result<(), String> {
        if self.is_own() || may_switch() {
            return Ok(());
        }
        Err(format!(
            "user {} cannot run programs as user {}: that takes root, or the capabilities CAP_SETUID, \
             CAP_SETGID and CAP_KILL",
            geteuid(),
            self.name
        ))
    }

    /// Makes the program run as this user, with the user's groups and no others, and without this
    /// process's capabilities. The user becomes the owner of its first three descriptors, so that the
    /// program can open them again by name (`/dev/stdin`), if this process may give files away. Call it
    /// before anything that this user has no right to.
    pub fn take_on(&self, command: &mut Command) {
        if self.is_own() {
            return;
        }
        let Self { user, group, .. } = *self;
        let groups = self.groups.clone();
        let begin = move || {
            for descriptor in 0..=2 {
                // Without CAP_CHOWN the program can still use them, only not by name.
                // SAFETY: it changes the owner of a pipe that is open, and touches no memory.
                unsafe { libc::fchown(descriptor, user, libc::gid_t::MAX) };
            }
            #[cfg(target_os = "linux")]
            // Ambient capabilities stay with a program of any user until they are cleared.
            // SAFETY: it changes a set of the process's own credentials, and touches no memory.
            unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
                    0,
                    0,
                    0,
                )
            };
            // SAFETY: the list lives in this closure, and its length is its own.
            let set = unsafe { libc::setgroups(groups.len() as _, groups.as_ptr()) };
            // The group first: afterwards this process has no right to change it.
            // SAFETY: these change the process's own credentials, and touch no memory.
            if set != 0 || unsafe { libc::setgid(group) != 0 || libc::setuid(user) != 0 } {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: between fork and exec it only makes system calls, in a process with one thread:
        // fchown, prctl, setgroups, setgid, setuid; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(begin) };
    }
}

#[cfg(not(target_vendor = "apple"))]
fn groups(user: &User) -> Result<Vec<libc::gid_t>, String> {
    let name = CString::new(user.name.as_str()).map_err(|error| error.to_string())?;
    let groups = nix::unistd::getgrouplist(&name, user.gid).map_err(|error| error.to_string())?;
    Ok(groups.into_iter().map(nix::unistd::Gid::as_raw).collect())
}

/// The list has another type on these systems, so there is only the user's own group.
#[cfg(target_vendor = "apple")]
fn groups(user: &User) -> Result<Vec<libc::gid_t>, String> {
    Ok(vec![user.gid.as_raw()])
}

/// Whether this process, or the service that it acts for, has the needed capabilities, according to `/proc`.
fn may_switch() -> bool {
    if let Some(may_switch) = SERVICE_MAY_SWITCH.get() {
        return *may_switch;
    }
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return geteuid().is_root();
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.is_some_and(is_enough)
}

/// Whether these capabilities, as `/proc/PID/status` shows them, are those needed.
pub fn is_enough(capabilities: &str) -> bool {
    let bits = u64::from_str_radix(capabilities.trim(), 16).unwrap_or(0);
    NEEDED.iter().all(|number| bits >> number & 1 == 1)
}

/// Drops the ambient capabilities by which a program of a link could become another user. Only for use
/// between fork and exec.
pub(super) fn keep_no_switch() {
    #[cfg(target_os = "linux")]
    for capability in NEEDED {
        // SAFETY: it changes a set of the process's own credentials, and touches no memory.
        unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_LOWER as libc::c_ulong,
                capability,
                0,
                0,
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_id() {
        let root = Account::find("root").unwrap();
        assert_eq!(Account::find("0"), Ok(root.clone()));
        assert_eq!((root.user, root.group), (0, 0));
        assert_eq!(root.is_own(), geteuid().is_root());
        for unknown in ["no-such-user", "4294967", "", "-1", "a\0b"] {
            let said = Account::find(unknown).unwrap_err();
            assert!(said.contains("knows no user"), "{said}");
        }
    }

    #[test]
    fn who_cannot_switch_says_what_it_takes() {
        let other = if geteuid().is_root() {
            "nobody"
        } else {
            "root"
        };
        let account = Account::find(other).unwrap();
        match account.check() {
            Ok(()) => assert!(may_switch()),
            Err(said) => assert!(
                said.contains("CAP_SETUID") && said.contains(other),
                "{said}"
            ),
        }
    }
}
