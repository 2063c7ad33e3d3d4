//! A server process that ends with the test process, even when that is killed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs the server in the background and waits for the end of its own standard input, which is a
/// pipe from the test process.
const SCRIPT: &str = r#"
signal=$1 log=$2 folder=$3
shift 3
"$@" </dev/null >>"$log" 2>&1 &
echo $!
read -r _
kill -s "$signal" $! 2>/dev/null
wait $!
[ -z "$folder" ] || rm -rf "$folder"
"#;

/// A running server.
pub struct Guard {
    shell: Child,
    pid: Pid,
}

/// How a server is run.
pub struct Launch<'a> {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: &'a Path,
    /// What ends it, as in `INT`.
    pub signal: &'a str,
    /// The user and group it runs as, where not as ours.
    pub owner: Option<(u32, u32)>,
    /// A folder to remove after it.
    pub cleanup: Option<PathBuf>,
}

impl Guard {
    pub fn launch(launch: Launch<'_>) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", SCRIPT, "guard", launch.signal])
            .arg(launch.log)
            .arg(launch.cleanup.unwrap_or_default())
            .args(&launch.command)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some((user, group)) = launch.owner {
            shell.uid(user).gid(group);
        }
        let mut shell = shell.spawn().expect("/bin/sh");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("the server's pid");
        let pid = Pid::from_raw(line.trim().parse().expect("the server's pid"));
        Self { shell, pid }
    }

    /// The server's process.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// Sends the server a signal and waits until it is gone.
    pub fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.close();
    }

    fn close(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.close();
    }
}
