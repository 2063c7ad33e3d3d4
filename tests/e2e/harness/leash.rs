//! A process that ends with the test process, even when that is killed.
//!
//! The system could see to that itself (`PR_SET_PDEATHSIG`), but counts the end of the thread that
//! has started a process for the end of its parent.

use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its own standard input, which is a pipe from the test process, and kills the
/// process group.
const SCRIPT: &str = "read -r _; kill -s KILL -- \"-$1\" 2>/dev/null";

/// A child process that leads a process group, which is killed if the test process ends before this
/// has been dropped.
pub struct Leashed {
    child: Child,
    watcher: Child,
}

impl Leashed {
    /// Starts the command in a group of its own.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.process_group(0).spawn().expect("the program");
        let watcher = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "leash", &child.id().to_string()])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Whoever interrupts the tests from a terminal means all of their group.
            .process_group(0)
            .spawn()
            .expect("/bin/sh");
        Self { child, watcher }
    }
}

impl Deref for Leashed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Leashed {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        // Before its input ends: the number of the group may be another's by then.
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}
