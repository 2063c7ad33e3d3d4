//! The title of this process as `ps` shows it.
//!
//! Linux shows the memory in which the command line was handed over. A longer title flows over
//! into the environment, which lies right behind it (`get_mm_cmdline` in the kernel's
//! fs/proc/base.c provides for that), so the environment is moved out of the way first.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;

/// The memory that shows the title; nothing where the system has no such place.
pub struct Title {
    area: Option<Area>,
}

struct Area {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to this value alone once it is made, and is there to the end of the
// process.
unsafe impl Send for Title {}

impl Title {
    /// Takes over the memory of the command line and of the environment, which stays as it is for
    /// this process. `std::env::args` is not to be used after it.
    ///
    /// # Errors
    /// Where this process has more than one thread: another could be reading the environment.
    pub fn take() -> io::Result<Self> {
        if super::fork::threads()? != 1 {
            return Err(io::Error::other("a title needs a process of one thread"));
        }
        let area = area().map(|area| {
            if move_environment() {
                area.whole
            } else {
                area.arguments
            }
        });
        Ok(Self { area })
    }

    /// One that is shown nowhere: a test has more than one thread.
    #[cfg(test)]
    pub fn nowhere() -> Self {
        Self { area: None }
    }

    /// Shows `text`, as much of it as there is room for.
    pub fn set(&mut self, text: &str) {
        if let Some(area) = &self.area {
            let shown = text.len().min(area.length - 1);
            // SAFETY: the area is mapped, writable and ours, `shown` is below its length, and
            // a string of this process does not lie in it since the environment was moved.
            unsafe {
                area.start.copy_from(NonNull::from(text).cast(), shown);
                area.start.add(shown).write_bytes(0, area.length - shown);
            }
        }
    }
}

/// Moves the environment out of the memory in which it was handed over. Answers whether all of it
/// was: whoever starts a program may hand over anything, and an entry without a name, or a second
/// one of a name, can only stay where it is.
fn move_environment() -> bool {
    let handed_over = std::fs::read("/proc/self/environ").unwrap_or_default();
    let entries = handed_over.split(|byte| *byte == 0);
    let count = entries.filter(|entry| !entry.is_empty()).count();
    let mut moved = BTreeSet::new();
    for (name, value) in env::vars_os() {
        if can_be_set(&name) && !moved.contains(&name) {
            // SAFETY: this is the only thread. The system copies name and value, so that
            // nothing refers to the old memory any more.
            unsafe { env::set_var(&name, value) };
            moved.insert(name);
        }
    }
    moved.len() == count
}

/// Whether `set_var` takes the name; it panics otherwise.
fn can_be_set(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.is_empty() && !name.contains(&b'=') && !name.contains(&0)
}

/// The memory of the command line, and that with the environment behind it.
struct Areas {
    arguments: Area,
    whole: Area,
}

#[cfg(target_os = "linux")]
fn area() -> Option<Areas> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program before it may hold anything. proc_pid_stat(5): arg_start is the
    // 48th field, then arg_end, env_start and env_end; what follows the name is the third.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(45);
    let mut address = || fields.next()?.parse::<usize>().ok();
    let (arg_start, arg_end) = (address()?, address()?);
    let (env_start, env_end) = (address()?, address()?);
    let end = if env_start == arg_end {
        env_end.max(arg_end)
    } else {
        arg_end
    };
    let start = NonNull::new(std::ptr::with_exposed_provenance_mut(arg_start))?;
    let up_to = |end: usize| {
        let length = end.checked_sub(arg_start).filter(|length| *length > 1)?;
        Some(Area { start, length })
    };
    Some(Areas {
        arguments: up_to(arg_end)?,
        whole: up_to(end)?,
    })
}

#[cfg(not(target_os = "linux"))]
fn area() -> Option<Areas> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_set_are_known() {
        for (name, expected) in [
            ("PATH", true),
            ("bash%%", true),
            ("", false),
            ("=foo", false),
            ("a=b", false),
            ("a\0b", false),
        ] {
            assert_eq!(can_be_set(OsStr::new(name)), expected, "{name:?}");
        }
    }
}
