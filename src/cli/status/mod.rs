//! `conserver status`: what the daemon on this machine does, read from its scoreboard.

mod figures;
mod table;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::config::{ConfigErrors, Plan};
use crate::exit::Exit;
use crate::queue::{Lengths, QueueError, Server};
use crate::runtime_dir;
use crate::scoreboard::{BoardError, Snapshot};
use crate::settings::Settings;
use crate::view::{Lists, Queues, View};
pub(super) use table::duration;

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
        loop {
            let snapshot = match find(settings) {
                Ok(snapshot) => snapshot,
                Err(why) => {
                    eprintln!("{why}");
                    return Exit::Unavailable;
                }
            };
            let plan = Plan::load(&snapshot.config);
            let queues = self.queues.then(|| queues(&plan, settings));
            let view = View::new(&snapshot, plan.as_ref().ok(), queues);
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
            serde_json::to_string(view)?
        } else {
            table::text(view)
        };
        let mut out = io::stdout().lock();
        if self.watch.is_some() && !self.json && out.is_terminal() {
            write!(out, "{CLEAR}")?;
        }
        writeln!(out, "{text}")?;
        out.flush()
    }
}

/// What the exit code says: that the queues that were asked for are known.
fn exit(view: &View) -> Exit {
    match &view.queues {
        Some(Queues { error: Some(_), .. }) => Exit::Unavailable,
        _ => Exit::Ok,
    }
}

/// Asks for the lists of the configuration in force, else of the one that this command would use.
fn queues(plan: &Result<Plan, ConfigErrors>, settings: &Settings) -> Queues {
    let ask = |plan: &Plan| -> Result<Queues, QueueError> {
        let server = Server::new(&settings.redis_url)?;
        Lists::of(plan).ask(&mut Lengths::new(server, LIMIT))
    };
    let asked = match plan {
        Ok(plan) => ask(plan).map_err(|error| error.to_string()),
        Err(_) => match Plan::load(&settings.config_file) {
            Ok(plan) => ask(&plan).map_err(|error| error.to_string()),
            Err(errors) => Err(errors.to_string()),
        },
    };
    asked.unwrap_or_else(Queues::unknown)
}

/// Finds the daemon that is meant: the one of the instance that is set, else the only one.
fn find(settings: &Settings) -> Result<Snapshot, String> {
    let mut alive = Vec::new();
    let mut faults = Vec::new();
    for path in runtime_dir::scoreboards() {
        match Snapshot::take(&path) {
            Ok(snapshot) => alive.push(snapshot),
            Err(error) => faults.push(error),
        }
    }
    let meant = |snapshot: &Snapshot| snapshot.header.instance == settings.instance;
    if let Some(found) = alive.iter().position(meant) {
        return Ok(alive.swap_remove(found));
    }
    if let ([_], false) = (&alive[..], settings.instance_is_set) {
        return Ok(alive.swap_remove(0));
    }
    Err(not_found(settings, &alive, &faults))
}

fn not_found(settings: &Settings, alive: &[Snapshot], faults: &[BoardError]) -> String {
    let mut lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let instance = &settings.instance;
    lines.push(format!(
        "no conserver with CONSERVER_INSTANCE={instance} runs on this machine, as far as this user can see"
    ));
    if !alive.is_empty() {
        let names: Vec<&str> = alive
            .iter()
            .map(|snapshot| snapshot.header.instance.as_str())
            .collect();
        let names = names.join(", ");
        lines.push(format!(
            "there is {names}: set CONSERVER_INSTANCE to one of them"
        ));
    }
    lines.join("\n")
}
