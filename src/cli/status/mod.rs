//! `conserver status`: what the daemon on this machine does, read from its scoreboard.

mod figures;
mod source;
mod table;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::cli::shown::complain_lines;
use crate::exit::Exit;
use crate::settings::Settings;
use crate::view::{Queues, View};
use crate::visible::{printable_lines, visible_json};
pub(super) use figures::rate;
pub(super) use source::Source;
pub(super) use table::{deferring, duration, megabytes, on_hold, redis_away, state, storage_rows};

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// From the top left corner, an empty screen (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What to show, and how.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Show it again every so many seconds, until the daemon ends or Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,

    /// Also ask Redis for the length of every ingress, egress and dead letter list
    #[arg(long)]
    queues: bool,
}

impl Status {
    /// Shows the status once, or again and again.
    pub fn run(&self, settings: &Settings) -> Exit {
        let mut source = Source::new(settings, LIMIT);
        loop {
            let view = match source.look(self.queues) {
                Ok(view) => view,
                Err(why) => {
                    complain_lines(why);
                    return Exit::Unavailable;
                }
            };
            // A reader that has seen enough ends us.
            if self.show(&view).is_err() {
                return Exit::Ok;
            }
            let Some(seconds) = self.watch else {
                return exit(&view);
            };
            thread::sleep(Duration::from_secs(seconds));
        }
    }

    fn show(&self, view: &View) -> io::Result<()> {
        let text = if self.json {
            visible_json(&serde_json::to_string(view)?)
        } else {
            printable_lines(&table::text(view))
        };
        let mut out = io::stdout().lock();
        if self.watch.is_some() && !self.json && out.is_terminal() {
            write!(out, "{CLEAR}")?;
        }
        writeln!(out, "{text}")?;
        out.flush()
    }
}

/// What the exit code says: that the daemon answers, and that the queues that were asked for are
/// known.
fn exit(view: &View) -> Exit {
    match &view.queues {
        _ if view.stands_still() => Exit::Unavailable,
        Some(Queues { error: Some(_), .. }) => Exit::Unavailable,
        _ => Exit::Ok,
    }
}
