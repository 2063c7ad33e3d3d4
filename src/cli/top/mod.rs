//! `conserver top`: what the daemon on this machine does, live in a terminal.
//!
//! ```text
//! reader thread (scoreboard, Redis) ──┐
//!                                     ├─ events ─► loop ──► frame.rs ──► terminal
//! input thread (keys, new sizes)    ──┘
//! ```
//!
//! [`ViewHistory`] keeps the last minute, for rates and recent times.

mod frame;

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::errno::Errno;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Position, Rect};

use super::interruption;
use super::status::DaemonReader;
use crate::cli::output::{eprint_line, eprint_lines};
use crate::exit::Exit;
use crate::scoreboard::Histogram;
use crate::settings::Settings;
use crate::view::{Figures, Queues, View, WorkerStatus};

/// The time limit for the lengths of lists in Redis: the scoreboard is shown without them then.
const REDIS_LIMIT: Duration = Duration::from_secs(1);

/// A signal is noticed after at most this long.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// How far back rates and times go, in seconds.
const RECENT: f64 = 60.0;

/// How far back the rates of all chains together go, in seconds.
const NOW: f64 = 10.0;

/// How to show it.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The interval between two readings
    #[arg(long, value_name = "SECONDS", default_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
}

/// What the loop waits for.
enum TopEvent {
    /// A new view, or why there is none.
    View(Result<Box<View>, String>),
    /// Something happened at the terminal.
    Input(io::Result<Event>),
}

impl TopArgs {
    /// Shows the daemon until a key or a signal ends it.
    pub fn run(&self, settings: &Settings) -> Exit {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            eprint_line("top needs a terminal; `conserver status --watch` writes to anything");
            return Exit::Usage;
        }
        let mut reader = DaemonReader::new(settings, REDIS_LIMIT);
        let first = match reader.read(true) {
            Ok(view) => view,
            Err(why) => {
                eprint_lines(why);
                return Exit::Unavailable;
            }
        };
        match self.show(reader, first) {
            Ok(()) => Exit::Ok,
            // The terminal is gone.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Exit::Ok,
            Err(error) => {
                eprint_line(format_args!("could not use the terminal: {error}"));
                Exit::Internal
            }
        }
    }

    fn show(&self, reader: DaemonReader, first: View) -> io::Result<()> {
        let interrupted = interruption()?;
        let mut screen = Screen::open()?;
        let (sender, events) = crossbeam_channel::bounded(1);
        let (inputs, every) = (sender.clone(), Duration::from_secs(self.every));
        // Both end with the process: one may wait for Redis, the other waits for keys.
        thread::Builder::new()
            .name("reader".to_owned())
            .spawn(move || send_views(reader, every, &sender))?;
        thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || send_input(&inputs))?;
        let mut history = ViewHistory::default();
        history.add(first);
        let mut error = None;
        let mut shows_help = false;
        loop {
            screen.draw(&history, error.as_deref(), shows_help)?;
            match next_event(&events, &interrupted) {
                None => return Ok(()),
                Some(TopEvent::View(Ok(view))) => {
                    history.add(*view);
                    error = None;
                }
                Some(TopEvent::View(Err(why))) => error = Some(why),
                Some(TopEvent::Input(Err(error))) => return Err(error),
                Some(TopEvent::Input(Ok(Event::Key(key)))) => match TopKey::of(key, shows_help) {
                    TopKey::Quit => return Ok(()),
                    TopKey::ShowHelp => shows_help = true,
                    TopKey::HideHelp => shows_help = false,
                    TopKey::Redraw => screen.clear()?,
                },
                // Drawing adapts to a new size.
                Some(TopEvent::Input(Ok(_))) => {}
            }
        }
    }
}

fn send_views(mut reader: DaemonReader, every: Duration, events: &Sender<TopEvent>) {
    loop {
        thread::sleep(every);
        let view = reader.read(true).map(Box::new);
        if events.send(TopEvent::View(view)).is_err() {
            return;
        }
    }
}

fn send_input(events: &Sender<TopEvent>) {
    loop {
        let input = event::read();
        let is_last = input.is_err();
        if events.send(TopEvent::Input(input)).is_err() || is_last {
            return;
        }
    }
}

/// The next event; `None` after a signal.
fn next_event(events: &Receiver<TopEvent>, interrupted: &AtomicBool) -> Option<TopEvent> {
    while !interrupted.load(Ordering::Relaxed) {
        match events.recv_timeout(SIGNAL_CHECK) {
            Ok(event) => return Some(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// What each key does, as the help shows it.
const KEYS: [(&str, &str); 3] = [
    ("q, Esc, Ctrl-C", "end"),
    ("?, h", "show this help; any key hides it"),
    ("any other", "draw the screen again"),
];

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TopKey {
    Quit,
    ShowHelp,
    HideHelp,
    /// Repairs a screen that another program wrote on.
    Redraw,
}

impl TopKey {
    /// What this key does. While the help is shown, Esc hides it.
    fn of(key: KeyEvent, shows_help: bool) -> Self {
        let held = key.modifiers & (KeyModifiers::CONTROL | KeyModifiers::ALT);
        match key.code {
            KeyCode::Char('c') if held == KeyModifiers::CONTROL => Self::Quit,
            KeyCode::Char('q' | 'Q') if held.is_empty() => Self::Quit,
            _ if shows_help => Self::HideHelp,
            KeyCode::Esc if held.is_empty() => Self::Quit,
            KeyCode::Char('?' | 'h' | 'H') if held.is_empty() => Self::ShowHelp,
            _ => Self::Redraw,
        }
    }
}

/// The terminal in raw mode and on its alternate screen, restored on drop.
///
/// `ratatui`'s own drop reports a failure to standard error, and panics if that is a terminal that is
/// gone: it must not run.
struct Screen(ManuallyDrop<DefaultTerminal>);

impl Screen {
    fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| restore())?;
        let mut screen = Self(ManuallyDrop::new(terminal));
        screen.0.hide_cursor()?;
        Ok(screen)
    }

    fn draw(
        &mut self,
        history: &ViewHistory,
        error: Option<&str>,
        shows_help: bool,
    ) -> io::Result<()> {
        let draw = |frame: &mut ratatui::Frame<'_>| {
            frame::draw(frame, history, error);
            if shows_help {
                frame::draw_help(frame, &KEYS);
            }
        };
        self.0.draw(draw).map(|_| ())
    }

    /// Clears the screen, so that the next frame is drawn as a whole. `Terminal::clear` does not serve:
    /// it asks the terminal for the cursor, and the input thread would take the reply.
    fn clear(&mut self) -> io::Result<()> {
        let size = self.0.size()?;
        self.0.resize(Rect::from((Position::ORIGIN, size)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = self.0.show_cursor();
        restore();
    }
}

fn restore() {
    let _ = ratatui::try_restore();
}

/// Views of one daemon, the oldest first: enough for the last minute.
#[derive(Default)]
struct ViewHistory(VecDeque<View>);

/// The last minute of a chain, link or storage.
struct RecentFigures {
    /// vCons that came through per second; `None` until there are two views.
    rate: Option<f64>,
    /// The times these took.
    seconds: Histogram,
}

impl ViewHistory {
    /// Adds a view.
    fn add(&mut self, view: View) {
        if let Some(last) = self.0.back() {
            // Another daemon counts from zero.
            if last.pid != view.pid || view.uptime_seconds < last.uptime_seconds {
                self.0.clear();
            }
        }
        let from = view.uptime_seconds - RECENT;
        self.0.push_back(view);
        while self
            .0
            .get(1)
            .is_some_and(|next| next.uptime_seconds <= from)
        {
            self.0.pop_front();
        }
    }

    /// The latest view.
    fn now(&self) -> Option<&View> {
        self.0.back()
    }

    /// The latest view of at least this age, else the first.
    fn before(&self, seconds: f64) -> Option<&View> {
        let from = self.now()?.uptime_seconds - seconds;
        let old = self.0.iter().rev().find(|view| view.uptime_seconds <= from);
        old.or(self.0.front())
    }

    /// The rate of a count over the last `seconds`; `None` until there are two views.
    fn rate(&self, seconds: f64, count: impl Fn(&View) -> u64) -> Option<f64> {
        let (now, then) = (self.now()?, self.before(seconds)?);
        let time = now.uptime_seconds - then.uptime_seconds;
        let more = count(now).saturating_sub(count(then));
        (time > 0.0).then(|| more as f64 / time)
    }

    /// vCons done per second.
    fn done(&self) -> Option<f64> {
        self.rate(NOW, |view| view.chains.iter().map(Figures::through).sum())
    }

    /// vCons failed per second.
    fn failed(&self) -> Option<f64> {
        self.rate(NOW, |view| {
            view.chains.iter().map(|chain| chain.failed).sum()
        })
    }

    /// The share of a processor that a worker uses; `None` until the views span 10 s.
    fn cpu(&self, worker: &WorkerStatus) -> Option<f64> {
        let (now, then) = (self.now()?, self.before(RECENT)?);
        let time = now.uptime_seconds - then.uptime_seconds;
        let old = then.workers.iter().find(|it| it.worker == worker.worker)?;
        let used = (worker.cpu_seconds - old.cpu_seconds).max(0.0);
        (time >= NOW).then(|| used / time)
    }

    /// The lengths of the lists a minute ago.
    fn queues_before(&self) -> Option<&Queues> {
        self.before(RECENT)?.queues.as_ref()
    }

    /// The last minute of one of the chains, links or storages that `all` selects.
    fn recent(&self, figures: &Figures, all: impl Fn(&View) -> &[Figures]) -> RecentFigures {
        let old = |view: &View| {
            let old = all(view).iter().find(|it| it.name == figures.name);
            old.map_or((0, Histogram::default()), |old| {
                (old.through(), old.seconds.clone())
            })
        };
        let before = self.before(RECENT).map(old);
        let (_, seconds) = before.unwrap_or_default();
        RecentFigures {
            rate: self.rate(RECENT, |view| old(view).0),
            seconds: figures.seconds.since(&seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_does_what_the_help_says() {
        use KeyModifiers as Held;
        use TopKey::{HideHelp, Quit, Redraw, ShowHelp};

        for (code, held, does, with_help) in [
            (KeyCode::Char('q'), Held::NONE, Quit, Quit),
            (KeyCode::Char('Q'), Held::SHIFT, Quit, Quit),
            (KeyCode::Esc, Held::NONE, Quit, HideHelp),
            (KeyCode::Char('c'), Held::CONTROL, Quit, Quit),
            (KeyCode::Char('?'), Held::SHIFT, ShowHelp, HideHelp),
            (KeyCode::Char('h'), Held::NONE, ShowHelp, HideHelp),
            (KeyCode::Char('h'), Held::CONTROL, Redraw, HideHelp),
            (KeyCode::Char('c'), Held::NONE, Redraw, HideHelp),
            (KeyCode::Char('q'), Held::ALT, Redraw, HideHelp),
            (KeyCode::Up, Held::NONE, Redraw, HideHelp),
            (KeyCode::F(5), Held::NONE, Redraw, HideHelp),
        ] {
            let key = KeyEvent::new(code, held);
            assert_eq!(TopKey::of(key, false), does, "{code:?} {held:?}");
            assert_eq!(TopKey::of(key, true), with_help, "{code:?} {held:?}");
        }
    }
}
