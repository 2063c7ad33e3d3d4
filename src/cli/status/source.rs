//! Where a view of a daemon comes from: its scoreboard, its configuration, and Redis.

use std::time::Duration;

use crate::config::Plan;
use crate::queue::{Lengths, QueueError, Server};
use crate::runtime_dir;
use crate::scoreboard::Snapshot;
use crate::settings::Settings;
use crate::view::{ListNames, Queues, View};
use crate::visible::printable;

/// Looks at the daemon that is meant, again and again.
pub(in crate::cli) struct Source {
    settings: Settings,
    /// How long Redis may take to answer.
    limit: Duration,
    lengths: Option<Lengths>,
}

impl Source {
    pub fn new(settings: &Settings, limit: Duration) -> Self {
        Self {
            settings: settings.clone(),
            limit,
            lengths: None,
        }
    }

    /// What the daemon does now, with the lengths of its lists where they are wanted.
    ///
    /// # Errors
    /// Sentences on why no daemon could be found.
    pub fn look(&mut self, with_queues: bool) -> Result<View, String> {
        let snapshot = find(&self.settings)?;
        let plan = Plan::load_kept(&snapshot.config).ok();
        let queues = with_queues.then(|| self.queues(plan.as_ref()));
        Ok(View::new(&snapshot, plan.as_ref(), queues))
    }

    /// Asks for the lists of the configuration in force, else of the one that this command would
    /// use.
    fn queues(&mut self, plan: Option<&Plan>) -> Queues {
        let asked = match plan {
            Some(plan) => self.ask(plan).map_err(|error| error.to_string()),
            None => match Plan::load(&self.settings.config_file) {
                Ok(plan) => self.ask(&plan).map_err(|error| error.to_string()),
                Err(errors) => Err(errors.to_string()),
            },
        };
        asked.unwrap_or_else(Queues::unknown)
    }

    fn ask(&mut self, plan: &Plan) -> Result<Queues, QueueError> {
        let mut lengths = match self.lengths.take() {
            Some(lengths) => lengths,
            None => Lengths::new(Server::new(&self.settings.redis_url)?, self.limit),
        };
        let asked = ListNames::of(plan).ask(&mut lengths);
        self.lengths = Some(lengths);
        asked
    }
}

/// Finds the daemon that is meant: the one of the instance that is set, else the only one.
fn find(settings: &Settings) -> Result<Snapshot, String> {
    let mut alive = Vec::new();
    let (paths, faults) = runtime_dir::scoreboards();
    let mut faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for path in paths {
        match Snapshot::take(&path) {
            Ok(snapshot) => alive.push(snapshot),
            Err(error) => faults.push(error.to_string()),
        }
    }
    let meant = |snapshot: &Snapshot| snapshot.header.instance == settings.instance;
    if let Some(found) = alive.iter().position(meant) {
        return Ok(alive.swap_remove(found));
    }
    if let ([_], false) = (&alive[..], settings.instance_is_set) {
        return Ok(alive.swap_remove(0));
    }
    Err(not_found(settings, &alive, faults))
}

fn not_found(settings: &Settings, alive: &[Snapshot], faults: Vec<String>) -> String {
    let mut lines = faults;
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
    let lines: Vec<_> = lines.iter().map(|line| printable(line)).collect();
    lines.join("\n")
}
