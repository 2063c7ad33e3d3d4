//! `conserver complete`: names for the completions of shells, from the configuration and from Redis.
//!
//! Hidden, quick and silent: what is not known in time is not offered.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::output::print_lines;
use super::status::find;
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{DeadLetters, QueueError, Raw, STORAGE_PREFIX, Server, storage_queue};
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::view::View;

/// How long somebody waits after Tab.
const LIMIT: Duration = Duration::from_secs(1);

/// The most UUIDs that are offered.
const MOST_UUIDS: usize = 200;

/// The entries of each list that are looked at.
const MOST_LOOKED_AT: u64 = 1000;

/// What to name.
#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// What to name: lists, chains, storages, queues, uuids; several with commas between them
    what: NameKinds,

    /// What the names begin with
    #[arg(allow_hyphen_values = true, default_value = "")]
    prefix: String,
}

/// Several of them.
#[derive(Debug, Clone)]
struct NameKinds(Vec<NameKind>);

impl FromStr for NameKinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kinds = text.split(',').map(|word| NameKind::from_str(word, false));
        kinds.collect::<Result<_, _>>().map(Self)
    }
}

/// What has names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NameKind {
    /// Ingress and egress lists.
    Lists,
    Chains,
    Storages,
    /// Dead letter queues, by their lists and storages.
    Queues,
    /// vCons: dead letters, those in work, then those that wait.
    Uuids,
}

impl CompleteArgs {
    /// Prints each name on a line of its own.
    pub fn run(&self, settings: &Settings) -> Exit {
        let daemon = find(settings).ok();
        let kept = daemon
            .as_ref()
            .and_then(|it| Plan::load_kept(&it.config).ok());
        let plan = kept.or_else(|| Plan::load(&settings.config_file).ok());
        let plan = plan.unwrap_or_default();
        let mut names = Names::new(&self.prefix);
        let mut uuids = Names::new(&self.prefix.to_ascii_lowercase());
        for kind in &self.what.0 {
            match kind {
                NameKind::Lists => {
                    names.add(plan.ingress_lists().iter().map(|list| list.as_str()));
                    names.add(plan.egress_lists().iter().map(|list| list.as_str()));
                }
                NameKind::Chains => names.add(plan.chains.iter().map(|chain| &chain.name)),
                NameKind::Storages => names.add(&plan.storages),
                NameKind::Queues => {
                    names.add(plan.ingress_lists().iter().map(|list| list.as_str()));
                    let queue = |storage| format!("{STORAGE_PREFIX}{storage}");
                    names.add(plan.storages.iter().map(queue));
                }
                NameKind::Uuids => {}
            }
        }
        let is_asked = |kind: NameKind| self.what.0.contains(&kind);
        if is_asked(NameKind::Uuids) {
            let view = daemon.map(|snapshot| View::new(&snapshot, Some(&plan), None));
            let workers = view.iter().flat_map(|view| &view.workers);
            let lanes = workers.flat_map(|worker| &worker.lanes);
            uuids.add_uuids(lanes.filter_map(|lane| lane.vcon.as_deref()));
        }
        if is_asked(NameKind::Uuids) || is_asked(NameKind::Queues) {
            let deadline = Instant::now() + LIMIT;
            let (sender, found) = mpsc::channel();
            let settings = settings.clone();
            let with_uuids = is_asked(NameKind::Uuids);
            // It ends with the process if Redis does not answer.
            let ask =
                move || ask_redis(&settings, &plan, with_uuids, &|it| sender.send(it).is_ok());
            let asks = thread::Builder::new().spawn(ask);
            while asks.is_ok()
                && !uuids.are_enough()
                && let Ok(more) =
                    found.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                match more {
                    InRedis::Queues(queues) if is_asked(NameKind::Queues) => names.add(&queues),
                    InRedis::Queues(_) => {}
                    InRedis::Uuids(entries) => uuids.add_uuids(entries.iter().map(String::as_str)),
                }
            }
        }
        let all: Vec<String> = names.found.into_iter().chain(uuids.found).collect();
        if !all.is_empty() {
            print_lines(all.join("\n"));
        }
        Exit::Ok
    }
}

/// What Redis has.
enum InRedis {
    Queues(Vec<String>),
    Uuids(Vec<String>),
}

/// Asks Redis for queues and UUIDs, dead letters first; `tell` returns whether more is wanted.
fn ask_redis(
    settings: &Settings,
    plan: &Plan,
    with_uuids: bool,
    tell: &dyn Fn(InRedis) -> bool,
) -> Result<(), QueueError> {
    let server = Server::new(&settings.redis_url)?;
    let connect = || server.connect_for("conserver:complete", LIMIT);
    let mut letters = DeadLetters::new(connect()?, settings.redis_expiry);
    let mut queues = letters.recorded()?;
    let recorded = queues.iter().map(ToString::to_string).collect();
    if !tell(InRedis::Queues(recorded)) || !with_uuids {
        return Ok(());
    }
    let ingress = plan.ingress_lists();
    queues.extend(ingress.iter().map(|list| Raw::new(list.as_str())));
    let storages = plan.storages.iter();
    queues.extend(storages.map(|name| storage_queue(name)));
    for queue in &queues {
        // The key may hold another type.
        let Ok(entries) = letters.entries(queue, 0, MOST_LOOKED_AT) else {
            continue;
        };
        let entries = entries.iter().map(|letter| letter.entry.to_string());
        if !tell(InRedis::Uuids(entries.collect())) {
            return Ok(());
        }
    }
    let mut connection = connect()?;
    for list in &ingress {
        let mut read = redis::cmd("LRANGE");
        read.arg(list.as_str()).arg(0).arg(MOST_LOOKED_AT);
        let Ok(entries) = read.query::<Vec<Vec<u8>>>(&mut *connection) else {
            continue;
        };
        let entries = entries
            .iter()
            .map(|entry| String::from_utf8_lossy(entry).into_owned());
        if !tell(InRedis::Uuids(entries.collect())) {
            return Ok(());
        }
    }
    Ok(())
}

/// Names that begin as they should, each once.
///
/// A shell may expand what it is offered (bash does), and anybody may have named a list: names with anything that
/// a shell could take for something else are left out.
struct Names {
    prefix: String,
    found: Vec<String>,
    seen: BTreeSet<String>,
}

impl Names {
    fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            found: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    fn add<S: AsRef<str>>(&mut self, names: impl IntoIterator<Item = S>) {
        for name in names {
            let name = name.as_ref();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/@%+=,".contains(c);
            let is_safe = !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain);
            if is_safe && name.starts_with(&self.prefix) && self.seen.insert(name.to_owned()) {
                self.found.push(name.to_owned());
            }
        }
    }

    /// Adds the entries that are UUIDs, as long as there are not too many.
    fn add_uuids<'a>(&mut self, entries: impl Iterator<Item = &'a str>) {
        for entry in entries {
            if let Ok(id) = entry.parse::<VconId>()
                && !self.are_enough()
            {
                self.add([id.as_str()]);
            }
        }
    }

    fn are_enough(&self) -> bool {
        self.found.len() >= MOST_UUIDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_shell_could_take_for_something_else_are_not_offered() {
        let mut names = Names::new("a");
        names.add([
            "a", "b", "a:b", "a$(x)", "a b", "a`x`", "a;x", "a", "a*", "a\n",
        ]);
        assert_eq!(names.found, ["a", "a:b"]);
        let mut names = Names::new("");
        names.add(["-x", "", "x"]);
        assert_eq!(names.found, ["x"]);
    }

    #[test]
    fn at_most_so_many_uuids_are_offered_and_nothing_else() {
        let mut uuids = Names::new("0");
        let all: Vec<String> = (0..300)
            .map(|n| format!("{n:08x}-0000-4000-8000-000000000000"))
            .collect();
        uuids.add_uuids(["0 no UUID"].into_iter());
        uuids.add_uuids(all.iter().map(String::as_str));
        assert_eq!(uuids.found, all[..MOST_UUIDS]);
    }
}
