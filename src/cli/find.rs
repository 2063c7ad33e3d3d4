//! `conserver where`: the places where a vCon is, in Redis, in the daemons of this machine and in the storages; and
//! the part of that which `get` tells.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::dlq::ReasonView;
use super::load_config;
use super::output::{
    LONGEST_ERROR, byte_size, counted, duration, eprint_line, output_failed, remaining_ttl,
    shell_word, time_and_age, truncated,
};
use super::storage_access::StorageHandle;
use crate::config::{Config, ListName, OnOutage, Plan};
use crate::exit::Exit;
use crate::queue::{
    FindLists, FoundClaim, FoundDocument, FoundLetter, ListPosition, QueueError, Raw,
    STORAGE_PREFIX, Server, VconFinder, VconPlaces, VconQueues,
};
use crate::runtime_dir;
use crate::scoreboard::Snapshot;
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::view::{self, LaneStatus};
use crate::visible::{Printable, printable, visible_json};

/// Which vCons to look for, and how to tell.
#[derive(Debug, Args)]
pub struct WhereArgs {
    /// The vCons' UUIDs
    #[arg(required = true, value_name = "UUID")]
    uuids: Vec<VconId>,

    /// Print one JSON object on each line
    #[arg(long)]
    json: bool,
}

impl WhereArgs {
    /// Looks for each of them, and prints where it is.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match load_config(settings) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        let storages = config.storages.values().map(StorageHandle::open);
        let mut search = Search {
            storages: storages.collect(),
            ..Search::new(settings, &config)
        };
        let (mut is_missing, mut is_unknown) = (false, false);
        for id in &self.uuids {
            let report = search.report(id);
            for error in &report.errors {
                eprint_line(format_args!("{id}: {error}"));
            }
            match report.state {
                State::Nowhere => is_missing = true,
                State::Unknown => is_unknown = true,
                _ => {}
            }
            if let Err(error) = self.print(&report, search.now) {
                return output_failed(&error);
            }
        }
        match (is_unknown, is_missing) {
            (true, _) => Exit::Unavailable,
            (false, true) => Exit::Data,
            (false, false) => Exit::Ok,
        }
    }

    fn print(&self, report: &VconReport, now: f64) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(report)?))?;
        } else {
            writeln!(out, "vCon {}", report.uuid)?;
            for line in report.lines(now) {
                writeln!(out, "  {}", Printable(line))?;
            }
        }
        out.flush()
    }
}

/// Where else than in a store the vCon is at this moment, for `get`: waiting, in work or dead. Nothing if Redis does
/// not tell.
pub(super) fn in_queues(settings: &Settings, config: &Config, id: &VconId) -> Vec<String> {
    let mut search = Search::new(settings, config);
    let queues = match &mut search.finder {
        Ok(finder) => finder.queues(id),
        Err(_) => return Vec::new(),
    };
    let Ok(queues) = queues else {
        return Vec::new();
    };
    let mut report = VconReport::new(id);
    search.add_queues(&mut report, id, queues);
    report.queue_lines(search.now)
}

/// What a vCon is about at this moment, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// A worker has it.
    InWork,
    /// It is on an ingress list.
    Waiting,
    /// A follower has taken it from another server, and fetches its document.
    Pulled,
    /// It is in a dead letter queue.
    DeadLetter,
    /// It is in the backlog of a storage.
    WaitingForStorage,
    /// Nothing is left to do.
    Finished,
    /// Only its document is there: it may be lost.
    DocumentOnly,
    /// It is nowhere.
    Nowhere,
    /// It was not found, and not every place could be asked.
    Unknown,
}

/// Everywhere that a vCon is.
#[derive(Debug, Serialize)]
struct VconReport {
    uuid: String,
    state: State,
    in_work: Vec<InWork>,
    waiting: Vec<Waiting>,
    pulled: Vec<Entry>,
    dead_letters: Vec<Dead>,
    backlog: Vec<Entry>,
    progress: Vec<Progress>,
    /// Rounds of attempts that failed, while the backend took others.
    rounds: Option<FailedRounds>,
    /// How many workers died while they had it.
    deaths: u64,
    egress: Vec<Entry>,
    document: Option<Kept>,
    /// Whether the sorted set of all vCons has it, if that could be asked.
    sorted_set: Option<bool>,
    storages: Vec<InStorage>,
    errors: Vec<String>,
}

/// A claim on it.
#[derive(Debug, Serialize)]
struct InWork {
    instance: String,
    worker: u32,
    lane: String,
    list: String,
    /// Seconds since 1970.
    since: Option<f64>,
    seconds: Option<f64>,
    /// The step of the chain, if the daemon runs on this machine.
    step: Option<String>,
    /// Whether a daemon of that name is alive.
    alive: bool,
}

/// An entry of an ingress list.
#[derive(Debug, Serialize)]
struct Waiting {
    #[serde(flatten)]
    entry: Entry,
    /// The chain in service that takes it.
    chain: Option<String>,
    /// Why that chain is on hold on this machine.
    holds: Vec<String>,
}

/// An entry of a list, or of the backlog of a storage.
#[derive(Debug, Serialize)]
struct Entry {
    /// The list, the storage or the follower.
    name: String,
    /// From 1 for the head.
    number: u64,
    of: u64,
    /// The number of the last one, if it is there more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Dead {
    #[serde(flatten)]
    entry: Entry,
    #[serde(flatten)]
    reason: ReasonView,
}

#[derive(Debug, Serialize)]
struct Progress {
    list: String,
    links_done: usize,
    links: usize,
    storages_done: Vec<String>,
    storages: usize,
}

#[derive(Debug, Serialize)]
struct FailedRounds {
    rounds: u64,
    stage: String,
    /// Seconds since 1970.
    at: f64,
}

#[derive(Debug, Serialize)]
struct Kept {
    kind: String,
    bytes: Option<u64>,
    ttl_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
struct InStorage {
    storage: String,
    /// `None` if it could not be asked, or keeps no documents.
    has: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What the command asks, for one vCon after the other.
struct Search<'a> {
    settings: &'a Settings,
    config: &'a Config,
    /// Or why Redis cannot be asked.
    finder: Result<VconFinder, String>,
    /// The time by Redis' clock.
    now: f64,
    storages: Vec<StorageHandle>,
    /// The daemons of this machine, with their configurations.
    daemons: Vec<(Snapshot, Option<Plan>)>,
}

impl<'a> Search<'a> {
    fn new(settings: &'a Settings, config: &'a Config) -> Self {
        let mut finder = finder(settings, config).map_err(|error| error.to_string());
        let now = finder.as_mut().map(VconFinder::now);
        let (boards, _) = runtime_dir::scoreboards();
        let daemons = boards.iter().filter_map(|path| {
            let snapshot = Snapshot::without_figures(path).ok()?;
            let plan = Plan::load_kept(&snapshot.config).ok();
            Some((snapshot, plan))
        });
        Self {
            settings,
            config,
            // Without an answer, nothing that has a time is found.
            now: now.ok().and_then(Result::ok).unwrap_or(0.0),
            finder,
            storages: Vec::new(),
            daemons: daemons.collect(),
        }
    }

    fn report(&mut self, id: &VconId) -> VconReport {
        let mut report = VconReport::new(id);
        let places = match &mut self.finder {
            Ok(finder) => finder
                .find(id, &self.settings.sorted_set)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        let is_redis_away = match places {
            Ok(places) => {
                self.add_places(&mut report, id, places);
                false
            }
            Err(error) => {
                report.errors.push(error);
                // A daemon of this machine may tell.
                self.add_lanes(&mut report, id);
                true
            }
        };
        let mut is_storage_away = false;
        for storage in &mut self.storages {
            let mut found = InStorage {
                storage: storage.name.clone(),
                has: None,
                error: None,
            };
            if storage.keeps_documents() {
                match storage.has(id, None) {
                    Ok(has) => found.has = Some(has),
                    Err(failure) => {
                        is_storage_away |= failure.is_transient();
                        let error = truncated(&failure.to_string(), LONGEST_ERROR);
                        report
                            .errors
                            .push(format!("storage {}: {error}", storage.name));
                        found.error = Some(error);
                    }
                }
            }
            report.storages.push(found);
        }
        report.state = report.state(is_redis_away || is_storage_away);
        report
    }

    fn add_places(&self, report: &mut VconReport, id: &VconId, places: VconPlaces) {
        self.add_queues(report, id, places.queues);
        let progress = places.progress.into_iter().map(|it| Progress {
            list: it.list,
            links_done: it.links_done,
            links: it.links.len(),
            storages_done: it.stored,
            storages: it.storages.len(),
        });
        report.progress = progress.collect();
        report.rounds = places.rounds.map(|it| FailedRounds {
            rounds: it.count,
            stage: it.stage,
            at: it.at,
        });
        report.deaths = places.deaths;
        report.document = places.document.map(|it| {
            let FoundDocument { kind, bytes, ttl } = it;
            Kept {
                kind,
                bytes,
                ttl_seconds: ttl,
            }
        });
        report.sorted_set = places.is_in_sorted_set;
    }

    fn add_queues(&self, report: &mut VconReport, id: &VconId, queues: VconQueues) {
        let entries = |found: Vec<ListPosition>| found.iter().map(Entry::new).collect();
        report.pulled = entries(queues.pulled);
        report.egress = entries(queues.announced);
        let waiting = queues.waiting.iter().map(|it| self.waiting(it));
        report.waiting = waiting.collect();
        let claims = queues.claims.iter().map(|claim| self.in_work(claim, id));
        report.in_work = claims.collect();
        for letter in queues.letters {
            match self.deferring_storage(&letter) {
                Some(storage) => report.backlog.push(Entry {
                    name: storage,
                    ..Entry::new(&letter.position)
                }),
                None => report.dead_letters.push(Dead::new(letter)),
            }
        }
        report.errors.extend(queues.errors);
    }

    /// The storage in whose backlog the entry waits; `None` if it is a dead letter.
    fn deferring_storage(&self, letter: &FoundLetter) -> Option<String> {
        let name = letter.position.list.as_bytes();
        let name = name.strip_prefix(STORAGE_PREFIX.as_bytes())?;
        let name = std::str::from_utf8(name).ok()?;
        let storage = self.config.storages.get(name)?;
        (letter.reason.is_none() && storage.on_outage == OnOutage::Defer).then(|| name.to_owned())
    }

    fn waiting(&self, position: &ListPosition) -> Waiting {
        let name = position.list.to_string();
        let chain = name.parse().ok();
        let chain = chain.and_then(|list| self.config.chain_for(&list));
        let chain = chain.map(|chain| chain.name.clone());
        let mut holds = Vec::new();
        for (snapshot, plan) in &self.daemons {
            let of_chain = view::holds(snapshot, plan.as_ref()).into_iter();
            let of_chain = of_chain.filter(|hold| {
                let chain = chain.as_ref();
                chain.is_some_and(|chain| hold.chains.contains(chain))
            });
            holds.extend(of_chain.map(|hold| hold.fault()));
        }
        holds.dedup();
        Waiting {
            entry: Entry::new(position),
            chain,
            holds,
        }
    }

    fn in_work(&self, claim: &FoundClaim, id: &VconId) -> InWork {
        let instance = printable(&claim.instance).into_owned();
        let mut lanes = self.lanes(id).into_iter();
        let lane = lanes.find(|(at, worker, lane)| {
            *at == instance && *worker == claim.worker && lane.lane.to_string() == claim.lane
        });
        let since = Some(claim.since).filter(|since| *since > 0.0);
        InWork {
            instance,
            worker: claim.worker,
            lane: claim.lane.clone(),
            list: claim.list.to_string(),
            since,
            seconds: since.map(|since| (self.now - since).max(0.0)),
            step: lane.map(|(_, _, lane)| lane.step),
            alive: claim.is_held,
        }
    }

    /// The lanes of this machine that have the vCon, with the names of their instances and their workers' numbers.
    fn lanes(&self, id: &VconId) -> Vec<(String, u32, LaneStatus)> {
        let mut found = Vec::new();
        for (snapshot, plan) in &self.daemons {
            let stuck_after = snapshot.header.stuck_after;
            for (number, slot) in (0u32..).zip(&snapshot.slots) {
                let lanes = slot.worker.as_ref().map_or(&[][..], |worker| &worker.lanes);
                for lane in lanes.iter().filter(|lane| lane.vcon == Some(id.uuid())) {
                    let shown = LaneStatus::new(lane, snapshot.taken, stuck_after, plan.as_ref());
                    found.push((snapshot.header.instance.clone(), number, shown));
                }
            }
        }
        found
    }

    fn add_lanes(&self, report: &mut VconReport, id: &VconId) {
        let lanes = self.lanes(id).into_iter();
        let in_work = lanes.map(|(instance, worker, lane)| InWork {
            instance,
            worker,
            lane: lane.lane.to_string(),
            list: String::new(),
            since: None,
            seconds: Some(lane.seconds),
            step: Some(lane.step),
            alive: true,
        });
        report.in_work = in_work.collect();
    }
}

fn finder(settings: &Settings, config: &Config) -> Result<VconFinder, QueueError> {
    let connection = Server::new(&settings.redis_url)?.connect("conserver:where")?;
    let raw = |list: &ListName| Raw::new(list.as_str());
    let chains = config.chains.iter();
    let lists = FindLists {
        ingress: chains
            .flat_map(|it| it.ingress_lists.iter().map(raw))
            .collect(),
        egress: config.egress_lists.iter().map(raw).collect(),
        storages: config.storages.keys().cloned().collect(),
    };
    VconFinder::new(connection, &lists)
}

impl Entry {
    fn new(position: &ListPosition) -> Self {
        Self {
            name: position.list.to_string(),
            number: position.number,
            of: position.of,
            last: position.last,
        }
    }

    /// `number 3 of 120 on list default`
    fn text(&self, what: &str) -> String {
        let Self {
            name, number, of, ..
        } = self;
        let again = match self.last {
            Some(last) => format!(", and again as number {last}"),
            None => String::new(),
        };
        format!("number {number} of {of} {what}{name}{again}")
    }
}

impl Dead {
    fn new(letter: FoundLetter) -> Self {
        Self {
            entry: Entry::new(&letter.position),
            reason: ReasonView::new(letter.reason),
        }
    }
}

impl VconReport {
    fn new(id: &VconId) -> Self {
        Self {
            uuid: id.to_string(),
            state: State::Unknown,
            in_work: Vec::new(),
            waiting: Vec::new(),
            pulled: Vec::new(),
            dead_letters: Vec::new(),
            backlog: Vec::new(),
            progress: Vec::new(),
            rounds: None,
            deaths: 0,
            egress: Vec::new(),
            document: None,
            sorted_set: None,
            storages: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// The state, from all that was found. `is_partial` says that not every place could be asked.
    fn state(&self, is_partial: bool) -> State {
        let mut asked = self.storages.iter().filter_map(|storage| storage.has);
        let is_stored = asked.clone().any(|has| has);
        if !self.in_work.is_empty() {
            State::InWork
        } else if !self.waiting.is_empty() {
            State::Waiting
        } else if !self.pulled.is_empty() {
            State::Pulled
        } else if !self.dead_letters.is_empty() {
            State::DeadLetter
        } else if !self.backlog.is_empty() {
            State::WaitingForStorage
        } else if is_stored || !self.egress.is_empty() {
            State::Finished
        } else if self.document.is_some() {
            // Without a storage that could have it, or with one that could not be asked, it may be finished.
            let could_be_elsewhere = is_partial || asked.next().is_none();
            match could_be_elsewhere {
                true => State::Finished,
                false => State::DocumentOnly,
            }
        } else if is_partial {
            State::Unknown
        } else {
            State::Nowhere
        }
    }

    /// What is to be told, a line for each place.
    fn lines(&self, now: f64) -> Vec<String> {
        let mut lines = self.queue_lines(now);
        for it in &self.progress {
            let storages = match &it.storages_done[..] {
                [] => String::new(),
                names => format!(" ({})", names.join(", ")),
            };
            lines.push(format!(
                "progress: {} of {} links and {} of {} storages{storages} are done, for its next turn on list {}",
                it.links_done,
                it.links,
                it.storages_done.len(),
                it.storages,
                it.list
            ));
        }
        if let Some(FailedRounds { rounds, stage, at }) = &self.rounds {
            let rounds = counted(*rounds, "round");
            let when = time_and_age(*at, now);
            lines.push(format!(
                "failed so far: {rounds} of attempts, the last one {when}: {stage}"
            ));
        }
        if self.deaths > 0 {
            let deaths = counted(self.deaths, "worker");
            lines.push(format!("deaths: {deaths} died while they had it"));
        }
        for entry in &self.egress {
            lines.push(format!("finished: {}", entry.text("on egress list ")));
        }
        if let Some(document) = &self.document {
            lines.push(format!("document: in Redis, {}", document.text()));
        }
        if self.sorted_set == Some(true) {
            lines.push("sorted set: it has an entry".to_owned());
        }
        for InStorage {
            storage,
            has,
            error,
        } in &self.storages
        {
            let says = match (has, error) {
                (Some(true), _) => "has it".to_owned(),
                (Some(false), _) => "does not have it".to_owned(),
                (None, Some(error)) => format!("not known: {error}"),
                (None, None) => "keeps nothing that could be asked for".to_owned(),
            };
            lines.push(format!("storage {storage}: {says}"));
        }
        lines.extend(self.verdict().map(str::to_owned));
        lines
    }

    fn verdict(&self) -> Option<&'static str> {
        match self.state {
            State::Finished if self.egress.is_empty() => {
                Some("finished: nobody works on it, and it waits nowhere")
            }
            State::DocumentOnly => Some(
                "in no list, with no worker and in no storage: a link has ended its chain, or it is lost \
                 (conserver audit)",
            ),
            State::Nowhere => Some("nowhere"),
            State::Unknown => Some("not found, and not every place could be asked"),
            _ => None,
        }
    }

    /// The lines about lists and claims.
    fn queue_lines(&self, now: f64) -> Vec<String> {
        let mut lines: Vec<String> = self.in_work.iter().map(|it| it.text(now)).collect();
        lines.extend(self.waiting.iter().map(Waiting::text));
        for entry in &self.pulled {
            let place = entry.text("in what is fetched by follower ");
            lines.push(format!("waiting: {place}"));
        }
        for entry in &self.backlog {
            let place = entry.text("in the backlog of storage ");
            lines.push(format!("waiting for a storage: {place}"));
        }
        lines.extend(self.dead_letters.iter().map(|it| it.text(&self.uuid, now)));
        lines
    }
}

impl InWork {
    fn text(&self, now: f64) -> String {
        let Self {
            instance,
            worker,
            lane,
            list,
            ..
        } = self;
        if *worker == 0 {
            return format!(
                "in work: a claim of instance {instance} that could not be returned to list {list}"
            );
        }
        let mut text = format!("in work: worker {worker} of instance {instance}, lane {lane}");
        if let Some(step) = &self.step {
            text.push_str(&format!(", at {step}"));
        }
        if !list.is_empty() {
            text.push_str(&format!(", from list {list}"));
        }
        match (self.since, self.seconds) {
            (Some(since), _) => text.push_str(&format!(", since {}", time_and_age(since, now))),
            (None, Some(seconds)) => text.push_str(&format!(", for {}", duration(seconds))),
            (None, None) => {}
        }
        if !self.alive {
            text.push_str("; no daemon of that name is alive: another one returns it to its list");
        }
        text
    }
}

impl Waiting {
    fn text(&self) -> String {
        let place = self.entry.text("on list ");
        let chain = match &self.chain {
            Some(chain) => format!("for chain {chain}"),
            None => "which no enabled chain takes from".to_owned(),
        };
        let holds = match &self.holds[..] {
            [] => String::new(),
            holds => format!("; the chain is on hold: {}", holds.join(", ")),
        };
        format!("waiting: {place}, {chain}{holds}")
    }
}

impl Dead {
    fn text(&self, uuid: &str, now: f64) -> String {
        let place = self.entry.text("in DLQ:");
        let stage = self
            .reason
            .stage
            .as_ref()
            .map_or(String::new(), |it| format!("{it}: "));
        let error = self.reason.error.as_deref().unwrap_or(view::NO_REASON);
        let error = truncated(error, LONGEST_ERROR);
        let since = self.reason.at.map_or(String::new(), |at| {
            format!(", since {}", time_and_age(at, now))
        });
        let queue = shell_word(&self.entry.name);
        format!(
            "dead letter: {place}{since}; {stage}{error}; again: conserver dlq retry {queue} {uuid}"
        )
    }
}

impl Kept {
    fn text(&self) -> String {
        let verb = if self.ttl_seconds.is_some() {
            "expires in"
        } else {
            "lives"
        };
        let ttl = remaining_ttl(self.ttl_seconds);
        let what = match (self.kind.as_str(), self.bytes) {
            (_, Some(bytes)) => byte_size(usize::try_from(bytes).unwrap_or(usize::MAX)),
            ("json", None) => "as RedisJSON".to_owned(),
            (kind, None) => format!("a {kind}, which is no document"),
        };
        format!("{what}, {verb} {ttl}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            number: 3,
            of: 120,
            last: None,
        }
    }

    fn report() -> VconReport {
        VconReport::new(&ID.parse().unwrap())
    }

    fn storage(has: Option<bool>) -> InStorage {
        InStorage {
            storage: "pg".to_owned(),
            has,
            error: None,
        }
    }

    #[test]
    fn what_is_left_to_do_comes_before_what_is_done() {
        let mut report = report();
        assert_eq!(report.state(false), State::Nowhere);
        assert_eq!(report.state(true), State::Unknown);
        report.document = Some(Kept {
            kind: "text".to_owned(),
            bytes: Some(7),
            ttl_seconds: None,
        });
        // There is no storage that could have it.
        assert_eq!(report.state(false), State::Finished);
        report.storages = vec![storage(Some(false)), storage(None)];
        assert_eq!(report.state(false), State::DocumentOnly);
        assert_eq!(report.state(true), State::Finished);
        report.storages = vec![storage(Some(true))];
        assert_eq!(report.state(false), State::Finished);
        report.backlog = vec![entry("pg")];
        assert_eq!(report.state(false), State::WaitingForStorage);
        report.waiting = vec![Waiting {
            entry: entry("default"),
            chain: None,
            holds: Vec::new(),
        }];
        assert_eq!(report.state(false), State::Waiting);
    }

    #[test]
    fn each_place_has_a_line() {
        let mut report = report();
        report.waiting = vec![Waiting {
            entry: Entry {
                last: Some(7),
                ..entry("default")
            },
            chain: Some("main".to_owned()),
            holds: vec!["storage pg is unavailable".to_owned()],
        }];
        report.in_work = vec![InWork {
            instance: "here".to_owned(),
            worker: 3,
            lane: "2".to_owned(),
            list: "default".to_owned(),
            since: None,
            seconds: Some(65.0),
            step: Some("link slowly".to_owned()),
            alive: false,
        }];
        report.backlog = vec![entry("pg")];
        report.dead_letters = vec![Dead {
            entry: entry("of another"),
            reason: ReasonView {
                stage: Some("parse".to_owned()),
                error: Some("no".to_owned()),
                ..ReasonView::default()
            },
        }];
        report.egress = vec![entry("done")];
        report.state = report.state(false);
        assert_eq!(
            report.lines(0.0),
            [
                "in work: worker 3 of instance here, lane 2, at link slowly, from list default, for 1 min 5 s; \
                 no daemon of that name is alive: another one returns it to its list",
                "waiting: number 3 of 120 on list default, and again as number 7, for chain main; \
                 the chain is on hold: storage pg is unavailable",
                "waiting for a storage: number 3 of 120 in the backlog of storage pg",
                &format!(
                    "dead letter: number 3 of 120 in DLQ:of another; parse: no; again: \
                     conserver dlq retry 'of another' {ID}"
                ),
                "finished: number 3 of 120 on egress list done",
            ]
        );
    }
}
