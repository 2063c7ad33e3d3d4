//! `conserver status`: what the daemon on this machine does, read from its scoreboard.
//!
//! [`DaemonReader`] finds the daemon and reads it, for `top` too.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use indexmap::IndexMap;

use super::output::{
    align_right, counted, duration, eprint_lines, megabytes, rate, table, truncated,
};
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{Lengths, QueueError, Server, storage_letters_list};
use crate::runtime_dir;
use crate::scoreboard::Snapshot;
use crate::settings::Settings;
use crate::view::{
    DeadLetterGroupView, Figures, GroupCache, Hold, LaneStatus, ListNames, Outage, Pause, Queues,
    StageWait, View, WorkerStatus, short_time, since,
};
use crate::visible::{printable, printable_lines, visible_json};

/// The time limit for the lengths of lists in Redis.
const REDIS_LIMIT: Duration = Duration::from_secs(5);

/// Moves to the top left corner and clears the screen (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What to show, and how.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Show it again at this interval (2 without a number), until the daemon ends or Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,

    /// Also ask Redis for the length of every ingress, egress and dead letter list
    #[arg(long)]
    queues: bool,
}

impl StatusArgs {
    /// Whether it asks Redis for anything.
    pub fn asks_redis(&self) -> bool {
        self.queues
    }

    /// Shows the status once, or again and again.
    pub fn run(&self, settings: &Settings) -> Exit {
        let mut reader = DaemonReader::new(settings, REDIS_LIMIT);
        reader.groups = Some(GroupCache::default());
        loop {
            let view = match reader.read(self.queues) {
                Ok(view) => view,
                Err(why) => {
                    eprint_lines(why);
                    return Exit::Unavailable;
                }
            };
            // The reader has closed the pipe.
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
            printable_lines(&status_text(view))
        };
        let mut out = io::stdout().lock();
        if self.watch.is_some() && !self.json && out.is_terminal() {
            write!(out, "{CLEAR}")?;
        }
        writeln!(out, "{text}")?;
        out.flush()
    }
}

/// Success means that the daemon is alive, and that the lengths of lists are known if asked for.
fn exit(view: &View) -> Exit {
    match &view.queues {
        _ if view.stands_still() => Exit::Unavailable,
        Some(Queues { error: Some(_), .. }) => Exit::Unavailable,
        _ => Exit::Ok,
    }
}

/// Reads the scoreboard of a daemon, its configuration, and the lengths of its lists in Redis.
pub(super) struct DaemonReader {
    settings: Settings,
    /// The time redis_limit for Redis.
    redis_limit: Duration,
    lengths: Option<Lengths>,
    /// The dead letters in groups, if they are wanted.
    groups: Option<GroupCache>,
}

impl DaemonReader {
    pub fn new(settings: &Settings, redis_limit: Duration) -> Self {
        Self {
            settings: settings.clone(),
            redis_limit,
            lengths: None,
            groups: None,
        }
    }

    /// Reads the present state, with the lengths of lists if asked for.
    ///
    /// # Errors
    /// Lines that say why no daemon was found.
    pub fn read(&mut self, with_queues: bool) -> Result<View, String> {
        let snapshot = find(&self.settings)?;
        let plan = Plan::load_kept(&snapshot.config).ok();
        let queues = with_queues.then(|| self.queues(plan.as_ref()));
        Ok(View::new(&snapshot, plan.as_ref(), queues))
    }

    /// The lengths of the lists of the configuration in force, else of the one in the settings.
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
            None => Lengths::new(Server::new(&self.settings.redis_url)?, self.redis_limit),
        };
        let lists = ListNames::of(plan);
        let mut asked = lists.ask(&mut lengths);
        if let (Ok(queues), Some(groups)) = (&mut asked, &mut self.groups) {
            lists.add_groups(queues, &mut lengths, groups);
        }
        self.lengths = Some(lengths);
        asked
    }
}

/// Finds the daemon: that of the instance in the settings, else the only one on this machine.
pub(super) fn find(settings: &Settings) -> Result<Snapshot, String> {
    let mut alive = Vec::new();
    let (paths, errors) = runtime_dir::scoreboards();
    let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for path in paths {
        match Snapshot::take(&path) {
            Ok(snapshot) => alive.push(snapshot),
            Err(error) => errors.push(error.to_string()),
        }
    }
    let meant = |snapshot: &Snapshot| snapshot.header.instance == settings.instance;
    if let Some(found) = alive.iter().position(meant) {
        return Ok(alive.swap_remove(found));
    }
    if let ([_], false) = (&alive[..], settings.instance_is_set) {
        return Ok(alive.swap_remove(0));
    }
    Err(not_found(settings, &alive, errors))
}

fn not_found(settings: &Settings, alive: &[Snapshot], errors: Vec<String>) -> String {
    let mut lines = errors;
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
            "there is {names}: name one with --instance or CONSERVER_INSTANCE"
        ));
    }
    let lines: Vec<_> = lines.iter().map(|line| printable(line)).collect();
    lines.join("\n")
}

/// The status for people.
fn status_text(view: &View) -> String {
    let mut text = format!(
        "{} (PID {}): {}, {} of {} workers ready, start method {}, up {}\n{}",
        view.instance,
        view.pid,
        view.state,
        view.workers_ready,
        view.workers_wanted,
        view.start_method,
        duration(view.uptime_seconds),
        workers_table(view),
    );
    if let Some(redis) = redis_unavailable(view) {
        text.push('\n');
        text.push_str(&redis.line());
    }
    for worker in &view.workers {
        for lane in worker.lanes.iter().filter(|lane| lane.stuck) {
            text.push('\n');
            text.push_str(&stuck(worker, lane));
        }
    }
    for hold in &view.holds {
        text.push('\n');
        text.push_str(&on_hold(hold).line());
    }
    for it in &view.outages {
        text.push('\n');
        text.push_str(&outage(it, view.queues.as_ref()).line());
    }
    for wait in &view.waits {
        text.push('\n');
        text.push_str(&waits(wait));
    }
    if let Some(error) = &view.paused_error {
        text.push_str(&format!("\nPaused: not known: {error}"));
    }
    for pause in &view.paused {
        text.push('\n');
        text.push_str(&paused(pause));
    }
    if let Some(figures) = figures_table(view) {
        text.push_str(&format!("\n{figures}"));
    }
    if let Some(queues) = &view.queues {
        text.push('\n');
        text.push_str(&queue_table(queues));
    }
    text
}

/// What is unavailable, in a line, and why, in another, if that is known.
pub(super) struct Trouble {
    pub what: String,
    pub why: Option<String>,
}

impl Trouble {
    fn new(what: &str, why: Option<&str>) -> Self {
        Self {
            what: printable(what).into_owned(),
            why: why.map(|why| printable(why).into_owned()),
        }
    }

    /// All in one line.
    fn line(&self) -> String {
        match &self.why {
            Some(why) => format!("{}: {why}", self.what),
            None => self.what.clone(),
        }
    }
}

/// `Redis is unavailable (since 02:13, 12 s)`
pub(super) fn redis_unavailable(view: &View) -> Option<Trouble> {
    let since = since(view.redis_away_seconds?);
    let what = format!("Redis is unavailable ({since})");
    Some(Trouble::new(&what, view.redis_error.as_deref()))
}

/// `On hold: storage pg is unavailable (since 02:13, 12 s; workers 1, 2), chain main waits`
pub(super) fn on_hold(hold: &Hold) -> Trouble {
    let waiting = match &hold.chains[..] {
        [] => String::new(),
        [chain] => format!(", chain {chain} waits"),
        chains => format!(", chains {} wait", chains.join(", ")),
    };
    let what = format!(
        "On hold: {} ({}; {}){waiting}",
        hold.fault(),
        since(hold.seconds as f64),
        worker_numbers(&hold.workers)
    );
    Trouble::new(&what, hold.last.text().as_deref())
}

/// `link analyze waits for its budget (since 02:13, 12 s; worker 1), chain main waits with it`
pub(super) fn waits(wait: &StageWait) -> String {
    let waiting = match &wait.chains[..] {
        [] => String::new(),
        [chain] => format!(", chain {chain} waits with it"),
        chains => format!(", chains {} wait with it", chains.join(", ")),
    };
    let since = since(wait.seconds as f64);
    let workers = worker_numbers(&wait.workers);
    printable(&format!("{} ({since}; {workers}){waiting}", wait.text())).into_owned()
}

/// `Storage pg is unavailable (since 02:13, 12 s; worker 1), 5 vCons wait in its backlog, chains go on`
pub(super) fn outage(outage: &Outage, queues: Option<&Queues>) -> Trouble {
    let queue = queues.and_then(|queues| queues.storages.get(&outage.storage));
    let waiting = match queue {
        Some(Some(queue)) => match queue.backlog {
            1 => "1 vCon waits".to_owned(),
            more => format!("{more} vCons wait"),
        },
        _ => "its vCons wait".to_owned(),
    };
    let what = format!(
        "Storage {} is unavailable ({}; {}), {waiting} in its backlog, chains go on",
        outage.storage,
        since(outage.seconds as f64),
        worker_numbers(&outage.workers)
    );
    Trouble::new(&what, outage.last.text().as_deref())
}

/// `Paused: list default (by root@db3 since 2026-01-02T03:04:05Z)`
pub(super) fn paused(pause: &Pause) -> String {
    printable(&format!("Paused: {}", pause.told())).into_owned()
}

fn worker_numbers(workers: &[usize]) -> String {
    let workers: Vec<String> = workers.iter().map(usize::to_string).collect();
    match &workers[..] {
        [worker] => format!("worker {worker}"),
        workers => format!("workers {}", workers.join(", ")),
    }
}

/// `Stuck: worker 3, lane 2 has worked on 05cec3d4-… for 1 h 2 min`
fn stuck(worker: &WorkerStatus, lane: &LaneStatus) -> String {
    let vcon = lane.vcon.as_deref().unwrap_or("an entry that is no UUID");
    let (number, time) = (worker.worker, duration(lane.seconds));
    format!(
        "Stuck: worker {number}, lane {} has worked on {vcon} for {time}",
        lane.lane
    )
}

fn workers_table(view: &View) -> Table {
    let mut table = table(&[
        "Worker", "PID", "State", "vCon", "Seconds", "Done", "Failed", "Restarts", "Memory",
    ]);
    for worker in &view.workers {
        table.add_row([
            worker.worker.to_string(),
            optional(worker.pid),
            worker_state(worker, view.lanes_per_worker),
            worker.vcon.clone().unwrap_or_default(),
            worker.seconds.map_or(String::new(), |s| format!("{s:.1}")),
            worker.done.to_string(),
            worker.failed.to_string(),
            worker.restarts.to_string(),
            worker.memory_bytes.map_or(String::new(), megabytes),
        ]);
    }
    if let Some(monitor) = &view.monitor {
        let mut row = vec![
            "monitor".to_owned(),
            optional(monitor.pid),
            monitor.state.clone(),
        ];
        row.resize(8, String::new());
        row.push(monitor.memory_bytes.map_or(String::new(), megabytes));
        table.add_row(row);
    }
    align_right(&mut table, [0, 1, 4, 5, 6, 7, 8]);
    table
}

pub(super) fn worker_state(worker: &WorkerStatus, lanes: usize) -> String {
    match worker.restart_in_seconds {
        Some(seconds) => format!("{} in {seconds:.1} s", worker.state),
        None if lanes > 1 && !worker.lanes.is_empty() => {
            format!("{} {}/{lanes}", worker.state, worker.lanes.len())
        }
        None => worker.state.clone(),
    }
}

/// Name, kind and length of the lists of vCons that storages miss, without those that miss none.
pub(super) fn storage_rows(
    queues: &Queues,
) -> impl Iterator<Item = (String, &'static str, Option<u64>)> + '_ {
    queues.storages.iter().flat_map(|(name, queue)| {
        let list = || storage_letters_list(name);
        let row = |kind, length| (length > 0).then(|| (list(), kind, Some(length)));
        match queue {
            None => [Some((list(), "dead letters", None)), None],
            Some(queue) => [
                row("dead letters", queue.dead_letters),
                row("backlog", queue.backlog),
            ],
        }
        .into_iter()
        .flatten()
    })
}

fn queue_table(queues: &Queues) -> String {
    if let Some(error) = &queues.error {
        return format!("The lists are not known: {}", printable(error));
    }
    let mut table = table(&["List", "Kind", "Waiting"]);
    let mut add = |kind: &str, lists: &IndexMap<String, Option<u64>>| {
        for (name, length) in lists {
            let length = length.map_or("not a list".to_owned(), |length| length.to_string());
            table.add_row([name.clone(), kind.to_owned(), length]);
        }
    };
    add("ingress", &queues.ingress);
    add("egress", &queues.egress);
    add("dead letters", &queues.dead_letters);
    for (name, kind, length) in storage_rows(queues) {
        let length = length.map_or("not a list".to_owned(), |length| length.to_string());
        table.add_row([name, kind.to_owned(), length]);
    }
    align_right(&mut table, [2]);
    let mut text = table.to_string();
    for line in group_lines(queues) {
        text.push('\n');
        text.push_str(&line);
    }
    text
}

/// How many groups of each queue are shown.
const GROUPS_SHOWN: usize = 3;

/// The largest groups of dead letters of each queue, a line for each.
fn group_lines(queues: &Queues) -> Vec<String> {
    let mut by_queue: IndexMap<&str, Vec<&DeadLetterGroupView>> = IndexMap::new();
    for group in &queues.dead_letter_groups {
        by_queue.entry(&group.queue).or_default().push(group);
    }
    let mut lines = Vec::new();
    for (queue, groups) in by_queue {
        for group in groups.iter().take(GROUPS_SHOWN) {
            let age = group.newest_seconds.map_or(String::new(), |seconds| {
                format!(", the last {} ago", duration(seconds as f64))
            });
            let why = truncated(&printable(&group.summary()), LONGEST_GROUP);
            let count = counted(group.count, "dead letter");
            lines.push(format!("DLQ:{queue}: {count}: {why}{age}"));
        }
        let more = groups.len().saturating_sub(GROUPS_SHOWN);
        if more > 0 {
            let more = counted(more as u64, "more kind");
            lines.push(format!("DLQ:{queue}: {more} (conserver dlq ls)"));
        }
    }
    lines
}

/// The most characters of a group's step and error in the status.
const LONGEST_GROUP: usize = 200;

/// A table of all chains, links and storages that received vCons; `None` if none did.
fn figures_table(view: &View) -> Option<Table> {
    let mut table = table(&[
        "",
        "Name",
        "Done",
        "Per second",
        "Failed",
        "Dead letters",
        "Mean",
        "p50",
        "p99",
    ]);
    for (kind, all) in [
        ("chain", &view.chains),
        ("link", &view.links),
        ("storage", &view.storages),
    ] {
        for figures in all.iter().filter(|figures| figures.received > 0) {
            table.add_row(figures_row(kind, figures, view.uptime_seconds));
        }
    }
    align_right(&mut table, 2..9);
    (!table.is_empty()).then_some(table)
}

fn figures_row(kind: &str, figures: &Figures, uptime: f64) -> [String; 9] {
    let quantile = |q| {
        let quantile = figures.seconds.quantile(q);
        quantile.map_or(String::new(), |it| it.to_string())
    };
    let former = if figures.in_force { "" } else { " (former)" };
    [
        kind.to_owned(),
        format!("{}{former}", figures.name),
        figures.through().to_string(),
        rate(figures.through() as f64 / uptime.max(0.001)),
        figures.failed.to_string(),
        figures.dead_lettered.to_string(),
        figures.seconds.mean().map_or(String::new(), short_time),
        quantile(0.5),
        quantile(0.99),
    ]
}

fn optional(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| pid.to_string())
}
