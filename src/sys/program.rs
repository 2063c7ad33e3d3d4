//! Programs of links: they must not outlive this process, and their end is seen.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpid};

/// Prepares the program: before it begins, it leads a session and a process group of its own, writes its
/// PID to `watch` (four bytes in the machine's order), asks the kernel to be killed with this thread (on
/// Linux), unblocks signals, and keeps no descriptor but the first three.
///
/// With its own session it cannot type at the terminal of whoever runs this process: `sudo conserver check`
/// runs programs of the service's user from a terminal of root's.
///
/// The caller keeps `watch` open until the command is spawned.
pub fn bind(command: &mut Command, watch: Option<&Arc<OwnedFd>>) {
    let watch = watch.map(|watch| watch.as_fd().as_raw_fd());
    let parent = getpid();
    let begin = move || {
        nix::unistd::setsid()?;
        if let Some(watch) = watch {
            // SAFETY: the caller keeps it open, and this process has a copy of its table.
            let watch = unsafe { BorrowedFd::borrow_raw(watch) };
            // If nobody reads any more, the kernel's promise below remains.
            let _ = nix::unistd::write(watch, &getpid().as_raw().to_ne_bytes());
        }
        #[cfg(target_os = "linux")]
        if !super::die_with_parent(parent)? {
            return Err(io::Error::from(Errno::ESRCH));
        }
        #[cfg(not(target_os = "linux"))]
        let _ = parent;
        super::account::keep_no_switch();
        close_others();
        super::release_signals()
    };
    // SAFETY: between fork and exec it only makes system calls that may be made there, allocates
    // nothing and takes no lock: setsid, write, prctl, getpid, getppid, close_range, pthread_sigmask.
    unsafe { command.pre_exec(begin) };
}

/// Makes the program lead a session of its own, where it cannot type at the terminal of whoever runs this process,
/// and keep no descriptor but the first three. Root's command that has become another user needs that: others of
/// that user's processes may trace the program.
pub fn detach(command: &mut Command) {
    let begin = || {
        nix::unistd::setsid()?;
        close_others();
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls that may be made there: setsid, close_range.
    unsafe { command.pre_exec(begin) };
}

/// Makes the program keep no descriptor but the first three.
pub fn keep_standard_streams(command: &mut Command) {
    let begin = || {
        close_others();
        Ok(())
    };
    // SAFETY: between fork and exec it makes one system call that may be made there.
    unsafe { command.pre_exec(begin) };
}

/// Closes every descriptor but the first three when the program begins, also those that this process
/// inherited itself. Kernels before 5.11 cannot do that, and there these remain.
fn close_others() {
    #[cfg(target_os = "linux")]
    // SAFETY: it changes a flag of descriptors, and touches no memory.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Whether a child has ended. It is not collected by this, so that its PID stays taken.
pub fn has_ended(child: Pid) -> bool {
    super::peek(child).is_some()
}

/// How many bytes in a pipe are unread, also if no reader is left. `pipe` is the end that is written
/// to.
pub fn unread(pipe: &impl AsFd) -> Result<usize, Errno> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the request writes one int, which belongs to this function.
    let answer = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(answer)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Whether there is a process of this group.
pub fn is_group(leader: Pid) -> bool {
    killpg(leader, None) != Err(Errno::ESRCH)
}

/// Kills every process of a group, if there is any.
pub fn kill_group(leader: Pid) {
    match killpg(leader, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        // Some systems return this if only zombies are left.
        Err(Errno::EPERM) if !cfg!(target_os = "linux") => {}
        Err(error) => log::error!("could not kill the process group {leader}: {error}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_program_begins_in_a_group_of_its_own_and_hears_signals() {
        let held = crate::sys::hold_signals().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "ps -o pgid= -p $$; kill -TERM $$; echo still here"]);
        command.stdout(Stdio::piped());
        bind(&mut command, None);
        let child = command.spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        drop(held);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.trim(), pid.to_string());
    }

    #[test]
    fn a_detached_program_has_a_session_of_its_own_and_three_descriptors() {
        let (read, _write) = std::io::pipe().unwrap();
        let inherited = nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_DUPFD(77)).unwrap();
        let script = format!("ps -o sid= -p $$; test ! -e /dev/fd/{inherited} && echo closed");
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        // SAFETY: it has just been made, and belongs to nothing else.
        let _inherited = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(inherited) };
        command.stdout(Stdio::piped());
        detach(&mut command);
        let child = command.spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words, [&*pid.to_string(), "closed"]);
    }

    #[test]
    fn the_end_of_a_child_is_seen_and_left_to_be_collected() {
        let mut command = Command::new("sh");
        command.args(["-c", "read x; exit 3"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(!has_ended(pid));
        drop(child.stdin.take());
        while !has_ended(pid) {
            std::thread::yield_now();
        }
        assert!(has_ended(pid));
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert!(has_ended(pid));
    }

    #[test]
    fn a_program_announces_itself_before_it_begins() {
        use std::io::Read;
        let (mut read, write) = std::io::pipe().unwrap();
        let watch = Arc::new(OwnedFd::from(write));
        let mut command = Command::new("true");
        bind(&mut command, Some(&watch));
        let mut child = command.spawn().unwrap();
        drop(watch);
        let mut bytes = [0; 4];
        read.read_exact(&mut bytes).unwrap();
        assert_eq!(i32::from_ne_bytes(bytes), child.id().cast_signed());
        child.wait().unwrap();
        assert_eq!(read.read(&mut bytes).unwrap(), 0);
    }

    #[test]
    fn what_a_program_has_not_read_is_known_also_after_its_end() {
        for (script, left) in [
            ("exec sleep 1000", 6),
            ("exec head -c 2", 4),
            ("exec cat", 0),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            let mut child = command.spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            input.write_all(b"hello\n").unwrap();
            while unread(&input) != Ok(left) {
                std::thread::yield_now();
            }
            // One that has ended by itself is killed in vain.
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(unread(&input), Ok(left), "{script}");
        }
    }
}
