//! What `/proc` says of processes.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, wait_until};

/// What is of interest here of a process.
struct Stat {
    state: char,
    parent: i32,
    group: i32,
}

impl Stat {
    /// Not one that only waits to be reaped.
    fn runs(&self) -> bool {
        self.state != 'Z' && self.state != 'X'
    }
}

/// Reads it, or nothing when the process is gone.
fn stat(pid: i32) -> Option<Stat> {
    stat_in(Path::new(&format!("/proc/{pid}")))
}

/// Reads that of the process or thread that has this folder.
fn stat_in(folder: &Path) -> Option<Stat> {
    let text = fs::read_to_string(folder.join("stat")).ok()?;
    // The name before it may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

fn pids() -> Vec<i32> {
    let entries = Path::new("/proc").read_dir().expect("/proc").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether a process runs; one that only waits to be reaped does not.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| stat.runs())
}

/// Stops a process, and waits until each of its threads has stopped. On a busy machine, threads may work on for a
/// while after the signal.
pub fn freeze(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it runs");
    wait_until("all its threads have stopped", PATIENCE, || {
        let threads = Path::new(&format!("/proc/{pid}/task")).read_dir();
        let mut threads = threads.expect("it runs").flatten();
        threads.all(|thread| stat_in(&thread.path()).is_some_and(|stat| stat.state == 'T'))
    });
}

/// The processes of a group that run.
pub fn running_in_group(group: i32) -> Vec<i32> {
    let belongs = |pid: &i32| stat(*pid).is_some_and(|stat| stat.group == group && stat.runs());
    pids().into_iter().filter(belongs).collect()
}

/// The children of a process that it has not reaped.
pub fn zombies_of(parent: i32) -> Vec<i32> {
    let is_zombie =
        |pid: &i32| stat(*pid).is_some_and(|stat| stat.state == 'Z' && stat.parent == parent);
    pids().into_iter().filter(is_zombie).collect()
}

/// The processes with `text` in their command line.
pub fn processes_mentioning(text: &str) -> Vec<i32> {
    let mentions = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    pids().into_iter().filter(mentions).collect()
}

/// The process, and all that descend from it.
pub fn family_of(pid: i32) -> Vec<i32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        family.extend(children_of(*parent));
        next += 1;
    }
    family
}

/// The children of a process.
pub fn children_of(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| stat(*pid).is_some_and(|stat| stat.parent == parent);
    pids().into_iter().filter(is_child).collect()
}

/// What the descriptors of a process above standard error stand for, as in `socket:[4711]`. Fails
/// where the process cannot be looked at: it would seem to have none.
pub fn descriptors_of(pid: i32) -> Vec<String> {
    let folder = format!("/proc/{pid}/fd");
    let entries: Vec<_> = Path::new(&folder)
        .read_dir()
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .flatten()
        .collect();
    assert!(!entries.is_empty(), "PID {pid} has no descriptor at all");
    let above_error = |name: &str| name.parse().is_ok_and(|number: i32| number > 2);
    (entries.iter())
        .filter(|entry| entry.file_name().to_str().is_some_and(above_error))
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// The name of a process, as `ps -o comm` shows it.
pub fn name_of(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// The command line of a process, as `ps -o args` shows it.
pub fn command_line_of(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.trim_end().to_owned()
}

/// The memory of a process that is in use, in bytes.
pub fn resident_set_of(pid: i32) -> u64 {
    memory_of(pid, "VmRSS:")
}

/// The most memory that a process has had in use, in bytes.
pub fn peak_memory_of(pid: i32) -> u64 {
    memory_of(pid, "VmHWM:")
}

fn memory_of(pid: i32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes * 1024)
}
