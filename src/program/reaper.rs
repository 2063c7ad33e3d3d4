//! The reaper: a process beside a worker that outlives it, to kill what it has left running.
//!
//! The kernel kills a program together with its worker, but not what the program has started
//! itself. So each worker that runs programs has a reaper, which holds the other end of a pipe:
//!
//! ```text
//! worker ── pipe: +PID when a program begins, -PID when it has been killed ──► reaper
//!    └─ dies: the pipe ends ──────────────────────────────► kills the groups that are left, ends
//! ```
//!
//! A program announces itself, before it begins, so that none is missed; it is forgotten before
//! its PID can be another's. One that has announced itself and could not begin is known by nobody
//! but the reaper, which is told to look for such.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;

use crate::sys;

/// The environment of a reaper.
const FOR_THE_LOG: [&str; 4] = [
    "LOG_LEVEL",
    "CONSERVER_LOG_FORMAT",
    "JOURNAL_STREAM",
    "NO_COLOR",
];

/// This process's reaper; it is started with the first program.
static REAPER: Mutex<Reaper> = Mutex::new(Reaper {
    wanted: false,
    post: None,
    alive: BTreeSet::new(),
});

struct Reaper {
    wanted: bool,
    post: Option<ReaperProcess>,
    /// The programs that run, for a reaper that takes the place of another.
    alive: BTreeSet<i32>,
}

struct ReaperProcess {
    process: Child,
    pipe: Arc<OwnedFd>,
}

/// From now on, programs of this process are watched by a reaper.
pub fn appoint() {
    lock().wanted = true;
}

/// Ends the reaper of a process that is about to end, and has ended its programs.
pub fn dismiss() {
    let post = {
        let mut reaper = lock();
        reaper.wanted = false;
        reaper.post.take()
    };
    // The pipe may be held by a program that is just beginning, which needs the lock for it.
    if let Some(ReaperProcess { mut process, pipe }) = post {
        drop(pipe);
        if let Err(error) = process.wait() {
            log::error!("could not wait for the reaper: {error}");
        }
    }
}

/// Where a program announces itself; nothing in a process without a reaper.
pub(super) fn watch() -> io::Result<Option<Arc<OwnedFd>>> {
    let mut reaper = lock();
    if !reaper.wanted {
        return Ok(None);
    }
    if let Some(post) = &mut reaper.post
        && let Ok(Some(end)) = post.process.try_wait()
    {
        log::warn!("the reaper of this worker has ended ({end}) and is started again");
        reaper.post = None;
    }
    let post = match reaper.post.take() {
        Some(post) => post,
        None => start(&reaper.alive)?,
    };
    let pipe = Arc::clone(&post.pipe);
    reaper.post = Some(post);
    Ok(Some(pipe))
}

/// A program has begun. It has announced itself, but perhaps to a reaper that has ended.
pub(super) fn remember(pid: Pid) {
    let mut reaper = lock();
    reaper.alive.insert(pid.as_raw());
    if let Some(post) = &reaper.post {
        tell(&post.pipe, pid.as_raw());
    }
}

/// A program and its group have been killed. To be called before the program is collected.
pub(super) fn forget(pid: Pid) {
    let mut reaper = lock();
    reaper.alive.remove(&pid.as_raw());
    if let Some(post) = &reaper.post {
        tell(&post.pipe, -pid.as_raw());
    }
}

/// A program may have announced itself and not begun.
pub(super) fn look_around() {
    if let Some(post) = &lock().post {
        tell(&post.pipe, 0);
    }
}

fn lock() -> MutexGuard<'static, Reaper> {
    REAPER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(alive: &BTreeSet<i32>) -> io::Result<ReaperProcess> {
    let (read, write) = io::pipe()?;
    let mut command = sys::this_program("reaper")?;
    // For a moment others of this user can read what it is given: nothing but how to log.
    let needed = FOR_THE_LOG.map(|name| (name, env::var_os(name)));
    let needed = needed
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    command.env_clear().envs(needed);
    command.stdin(read).stdout(Stdio::null()).process_group(0);
    sys::keep_standard_streams(&mut command);
    let process = command.spawn()?;
    let pipe = Arc::new(OwnedFd::from(write));
    for pid in alive {
        tell(&pipe, *pid);
    }
    Ok(ReaperProcess { process, pipe })
}

/// A reaper that has ended is noticed when the next program starts.
fn tell(pipe: &OwnedFd, word: i32) {
    let _ = nix::unistd::write(pipe, &word.to_ne_bytes());
}

/// The reaper's whole work: listens on standard input to its end, then kills.
pub fn serve() -> io::Result<()> {
    // It ends when the worker does, whatever anyone sends to all processes.
    sys::hold_signals()?.keep();
    let is_there = |group: i32| sys::is_group(Pid::from_raw(group));
    for group in listen(io::stdin().lock(), is_there) {
        sys::kill_group(Pid::from_raw(group));
    }
    Ok(())
}

/// What has been announced and not been forgotten at the end.
fn listen(mut input: impl Read, is_there: impl Fn(i32) -> bool) -> BTreeSet<i32> {
    let mut groups = BTreeSet::new();
    let mut word = [0; 4];
    while input.read_exact(&mut word).is_ok() {
        let word = i32::from_ne_bytes(word);
        // 1 is everybody's, and no group is 0.
        if word > 1 {
            groups.insert(word);
        } else if word == 0 {
            groups.retain(|group| is_there(*group));
        } else if let Some(pid) = word.checked_neg() {
            groups.remove(&pid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(words: &[i32]) -> Vec<i32> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let is_there = |group| group != 13;
        listen(bytes.as_slice(), is_there).into_iter().collect()
    }

    #[test]
    fn what_was_announced_and_not_forgotten_is_left() {
        assert_eq!(heard(&[]), [0; 0]);
        assert_eq!(heard(&[7, 8, -7, 9, -9, 9]), [8, 9]);
        assert_eq!(heard(&[-7, 0, 1, i32::MIN, 7]), [7]);
    }

    #[test]
    fn what_did_not_begin_is_forgotten_when_the_reaper_looks_around() {
        assert_eq!(heard(&[7, 13]), [7, 13]);
        assert_eq!(heard(&[7, 13, 0]), [7]);
        assert_eq!(heard(&[13, 0, 13]), [13]);
    }

    #[test]
    fn half_a_word_is_none() {
        assert!(listen(&[7_u8, 0, 0][..], |_| true).is_empty());
    }
}
