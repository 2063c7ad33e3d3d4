//! A command in a terminal of its own, as somebody sees it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, ttyname};
use vt100::Parser;

use super::{Conserver, PATIENCE, children_of, program, wait_until};

/// A terminal with a command in it, and what stands on its screen.
pub struct Terminal {
    master: Option<File>,
    reader: Option<JoinHandle<()>>,
    hung_up: Arc<AtomicBool>,
    screen: Arc<Mutex<Parser>>,
    name: PathBuf,
    /// `setsid`, whose child the command is.
    child: Child,
}

impl Terminal {
    /// Runs a command in a terminal of this size.
    pub fn run(conserver: &Conserver, arguments: &[&str], (columns, rows): (u16, u16)) -> Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(&size, None).expect("a terminal");
        // A process that has our side too would keep its own terminal from going away.
        for side in [&terminal.master, &terminal.slave] {
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a descriptor");
        }
        let name = ttyname(&terminal.slave).expect("a terminal");
        let ours = conserver.again().program(program("setsid", &[]));
        let mut line = vec!["--ctty", "--wait", env!("CARGO_BIN_EXE_conserver")];
        line.extend(arguments);
        let mut command = ours.command(&line, "terminal");
        command.current_dir(conserver.folder());
        command.stdin(terminal.slave.try_clone().expect("a descriptor"));
        command.stdout(terminal.slave.try_clone().expect("a descriptor"));
        command.stderr(terminal.slave);
        let child = command.spawn().expect("the program");
        let master = File::from(terminal.master);
        let screen = Arc::new(Mutex::new(Parser::new(whole(rows), whole(columns), 0)));
        let hung_up = Arc::new(AtomicBool::new(false));
        let output = master.try_clone().expect("a descriptor");
        let (shown, ends) = (Arc::clone(&screen), Arc::clone(&hung_up));
        let reader = thread::spawn(move || read(output, &shown, &ends));
        Self {
            master: Some(master),
            reader: Some(reader),
            hung_up,
            screen,
            name,
            child,
        }
    }
}

impl Terminal {
    /// What stands on the screen now, a line for each row.
    pub fn lines(&self) -> Vec<String> {
        let text = self.seen(|screen| screen.contents());
        text.lines().map(str::to_owned).collect()
    }

    /// Asks something of the screen.
    pub fn seen<T>(&self, ask: impl FnOnce(&vt100::Screen) -> T) -> T {
        let parser = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        ask(parser.screen())
    }

    /// Waits until a line holds all of these.
    pub fn wait_for(&self, parts: &[&str]) -> String {
        let mut found = String::new();
        wait_until(&format!("the screen says {parts:?}"), PATIENCE, || {
            let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
            let line = self.lines().into_iter().find(has_all);
            found = line.clone().unwrap_or_default();
            line.is_some()
        });
        found
    }

    fn master(&self) -> &File {
        self.master.as_ref().expect("a terminal")
    }

    /// The terminal goes away, as when its window is closed.
    pub fn hang_up(&mut self) {
        self.hung_up.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a thread");
        }
        self.master = None;
    }

    /// Types something.
    pub fn type_keys(&self, keys: &[u8]) {
        self.master().write_all(keys).expect("a terminal");
    }

    /// Gives the terminal another size, of which the system tells the command.
    pub fn resize(&self, (columns, rows): (u16, u16)) {
        let mut parser = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        parser.screen_mut().set_size(whole(rows), whole(columns));
        drop(parser);
        let status = Command::new("stty")
            .arg("-F")
            .arg(&self.name)
            .args(["columns", &columns.to_string(), "rows", &rows.to_string()])
            .status();
        assert!(status.expect("stty").success());
    }

    /// How the terminal treats what is typed.
    pub fn modes(&self) -> Termios {
        tcgetattr(self.master()).expect("a terminal")
    }

    /// The command.
    fn command(&self) -> Option<Pid> {
        let children = children_of(self.child.id().cast_signed());
        children.first().copied().map(Pid::from_raw)
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.command().expect("it runs"), signal).expect("it runs");
    }

    /// Waits for the end of the command; gives its exit code, -1 where a signal ended it.
    pub fn wait_exit(&mut self) -> i32 {
        let mut status = None;
        wait_until("the command has ended", PATIENCE, || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.and_then(|status| status.code()).unwrap_or(-1)
    }
}

/// Puts what comes onto the screen, until nothing more can come.
fn read(mut output: File, screen: &Mutex<Parser>, ends: &AtomicBool) {
    let mut bytes = [0; 4096];
    while !ends.load(Ordering::Relaxed) {
        let mut source = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut source, 20_u8) == Ok(0) {
            continue;
        }
        let Ok(count @ 1..) = output.read(&mut bytes) else {
            return;
        };
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        screen.process(&bytes[..count]);
    }
}

fn whole(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).expect("a size")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The end of setsid alone would not be the command's.
        if let Some(command) = self.command() {
            let _ = kill(command, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.hung_up.store(true, Ordering::Relaxed);
    }
}
