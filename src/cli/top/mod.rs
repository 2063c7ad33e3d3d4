//! `conserver top`: what the daemon on this machine does, live in a terminal.
//!
//! ```text
//! readings (a thread: scoreboard, Redis) ──view──► the screen ◄── keys, size, signals
//! ```

mod frame;
mod history;
mod screen;
mod section;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;

use self::history::History;
use self::screen::{Screen, Wake, Waker};
use super::status::DaemonReader;
use crate::cli::output::{eprint_line, eprint_lines};
use crate::exit::Exit;
use crate::settings::Settings;
use crate::view::View;

/// How long Redis may take to answer: figures of the scoreboard do not wait longer for it.
const LIMIT: Duration = Duration::from_secs(1);

/// A reading, or why there is none.
type Reading = Result<View, String>;

/// How to show it.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Look again every so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
}

impl TopArgs {
    /// Shows it until a key or a signal ends it.
    pub fn run(&self, settings: &Settings) -> Exit {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            eprint_line("top needs a terminal; `conserver status --watch` writes to anything");
            return Exit::Usage;
        }
        let mut source = DaemonReader::new(settings, LIMIT);
        let first = match source.read(true) {
            Ok(view) => view,
            Err(why) => {
                eprint_lines(why);
                return Exit::Unavailable;
            }
        };
        match self.show(source, first) {
            Ok(()) => Exit::Ok,
            // The terminal is gone, and nobody is left to be told.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Exit::Ok,
            Err(error) => {
                eprint_line(format_args!("the terminal could not be used: {error}"));
                Exit::Internal
            }
        }
    }

    fn show(&self, source: DaemonReader, first: View) -> io::Result<()> {
        let mut screen = Screen::open()?;
        let (sender, readings) = crossbeam_channel::bounded(1);
        let (waker, every) = (screen.waker(), Duration::from_secs(self.every));
        // Ends with the process: it may be waiting for Redis.
        thread::Builder::new()
            .name("readings".to_owned())
            .spawn(move || read(source, every, &sender, &waker))?;
        watch(&mut screen, &readings, first)
    }
}

fn read(mut source: DaemonReader, every: Duration, readings: &Sender<Reading>, waker: &Arc<Waker>) {
    loop {
        thread::sleep(every);
        if readings.send(source.read(true)).is_err() {
            return;
        }
        waker.wake();
    }
}

fn watch(screen: &mut Screen, readings: &Receiver<Reading>, first: View) -> io::Result<()> {
    let mut history = History::default();
    history.add(first);
    let mut fault = None;
    loop {
        screen.draw(|size| frame::lines(&history, fault.as_deref(), size))?;
        if screen.wait()? == Wake::End {
            return Ok(());
        }
        for reading in readings.try_iter() {
            fault = match reading {
                Ok(view) => {
                    history.add(view);
                    None
                }
                Err(why) => Some(why),
            };
        }
    }
}
