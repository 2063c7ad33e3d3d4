//! The links and storages of a configuration, as one lane has them open, each with its meter.
//!
//! A [`Stage`] names one of them, for everything that counts, holds or probes it. A link or storage that
//! panics is opened anew.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use indexmap::IndexMap;

use super::pipeline::FINISHING_SHARE;
use super::prober::guarded;
use crate::config::{Account, Budget, Chain, Config, ListName, ModuleConfig, StorageConfig};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::link::{Context, Link, LinkError, Next};
use crate::program::Clock;
use crate::python::{Hooks, Host};
use crate::scoreboard::{AnswerTimes, Meter, SeriesKind, Slot, chain_link_name};
use crate::settings::Settings;
use crate::storage::fan_out::Backend;
use crate::storage::{self, Storage};
use crate::vcon::{Vcon, VconId};

/// A part of a chain that may be unavailable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// A link, by its name in the configuration.
    Link(String),
    /// A storage, by its name in the configuration.
    Storage(String),
    /// An egress list, or one to which a link routes vCons.
    List(ListName),
    /// A tracer, by its name in the configuration. All chains with links need it.
    Tracer(String),
    /// A hook, by its function. All chains need it.
    Hook(&'static str),
}

impl Stage {
    /// Whether the chain needs it.
    pub fn is_in(&self, chain: &Chain, config: &Config) -> bool {
        match self {
            Self::Link(name) => chain.links.contains(name),
            Self::Storage(name) => chain.storages.contains(name),
            Self::Tracer(_) => !chain.links.is_empty(),
            Self::Hook(_) => true,
            Self::List(list) => {
                let routes = |link: &String| {
                    let link = config.links.get(link);
                    link.is_some_and(|link| link.routes.contains(list))
                };
                chain.egress_lists.contains(list) || chain.links.iter().any(routes)
            }
        }
    }

    /// Its budget, if it has one.
    pub fn budget<'a>(&self, config: &'a Config) -> Option<&'a Arc<Budget>> {
        match self {
            Self::Link(name) => config.links.get(name)?.limit.as_ref(),
            Self::Storage(name) => config.storages.get(name)?.limit.as_ref(),
            Self::List(_) | Self::Tracer(_) | Self::Hook(_) => None,
        }
    }

    /// Whether it is the same in two configurations: a link or storage whose entry has not changed.
    pub fn is_same(&self, one: &Config, other: &Config) -> bool {
        match self {
            Self::Link(name) => {
                let links = one.links.get(name).zip(other.links.get(name));
                links.is_some_and(|(one, other)| one.is_same(other))
            }
            Self::Storage(name) => {
                let storages = one.storages.get(name).zip(other.storages.get(name));
                storages.is_some_and(|(one, other)| one.is_same(other))
            }
            Self::List(_) | Self::Tracer(_) | Self::Hook(_) => false,
        }
    }

    /// The names of the enabled chains that need it.
    pub fn chains(&self, config: &Arc<Config>) -> Vec<String> {
        let chains = config.chains.iter();
        chains
            .filter(|chain| chain.enabled && self.is_in(chain, config))
            .map(|chain| chain.name.clone())
            .collect()
    }
}

/// Why an egress list cannot be used.
pub(super) fn not_a_list(list: &ListName) -> Failure {
    Failure::transient(format!("the key {list} holds something else"))
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Storage(name) => write!(f, "storage {name}"),
            Self::List(list) => write!(f, "list {list}"),
            Self::Tracer(name) => write!(f, "tracer {name}"),
            Self::Hook(name) => write!(f, "hook {name}"),
        }
    }
}

/// The links and storages of a configuration, open for one lane, and the meters of all its parts.
pub(super) struct LaneModules {
    config: Arc<Config>,
    links: HashMap<String, Box<dyn Link>>,
    /// `None` only while a storage is lent.
    storages: IndexMap<Arc<str>, Option<Box<dyn Storage>>>,
    /// Runs the lane's Python modules.
    host: Host,
    /// The hooks of the deployment, once the host has begun; nothing before it has to begin.
    hooks: Option<Hooks>,
    meters: Meters,
    /// The longest calls of all that share an account.
    longest: HashMap<Account, Duration>,
    /// Whether its saves may go together with those of other lanes.
    batches: bool,
}

impl LaneModules {
    /// Opens every link and storage of the configuration. None connects before it is used.
    pub fn open(
        config: Arc<Config>,
        slot: &Slot,
        drain: &Receiver<()>,
        settings: &Settings,
    ) -> Self {
        let meters = Meters::new(&config, slot);
        let drain_time = settings.drain_timeout.mul_f64(FINISHING_SHARE);
        let host = config.host().draining(drain, drain_time);
        Self::with(config, meters, host, settings.batches())
    }

    fn with(config: Arc<Config>, meters: Meters, host: Host, batches: bool) -> Self {
        let mut longest = HashMap::new();
        let mut note = |budget: Option<&Arc<Budget>>, call: Duration| {
            if let Some(budget) = budget {
                let known: &mut Duration = longest.entry(budget.account.clone()).or_default();
                *known = call.max(*known);
            }
        };
        let links: HashMap<_, _> = config
            .links
            .iter()
            .map(|(name, link)| (name.clone(), open_link(link, &host, &meters)))
            .collect();
        for (name, link) in &links {
            let entry = config.links.get(name);
            note(entry.and_then(|it| it.limit.as_ref()), link.longest_call());
        }
        let storages = config.storages.iter().map(|(name, storage)| {
            let storage = open_storage(storage, &host, batches, &meters);
            (name.as_str().into(), Some(storage))
        });
        let storages: IndexMap<_, _> = storages.collect();
        for (entry, storage) in config.storages.values().zip(storages.values()) {
            let call = storage.as_ref().map(|it| it.longest_call());
            note(entry.limit.as_ref(), call.unwrap_or_default());
        }
        Self {
            longest,
            links,
            storages,
            hooks: (!config.python.is_needed_at_start()).then(Hooks::default),
            host,
            meters,
            batches,
            config,
        }
    }

    /// The configuration that they belong to.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Starts the host, if imports or hooks make it necessary before the first vCon.
    ///
    /// # Errors
    /// It cannot begin, or an import fails.
    pub fn begin_python(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        if self.hooks.is_some() {
            return Ok(());
        }
        let hooks = begin_host(&self.host, drain)?;
        self.hooks = Some(hooks);
        let is_used = !self.config.python.imports.is_empty()
            || !hooks.is_empty()
            || !self.config.python_modules().is_empty();
        if !is_used {
            self.host.end();
        }
        Ok(())
    }

    /// The hooks that there are.
    pub fn hooks(&self) -> Hooks {
        self.hooks.unwrap_or_default()
    }

    /// The host of the lane's Python modules.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether one of these storages reads vCons in Redis by itself.
    pub fn reads_redis(&self, storages: &[String]) -> bool {
        let mut storages = storages.iter();
        storages.any(|name| {
            let storage = self.storages.get(name.as_str()).and_then(Option::as_ref);
            storage.is_some_and(|storage| storage.reads_redis())
        })
    }

    /// The meters of this configuration.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// The longest that one call of the chain's links and storages may take by its own limits.
    pub fn longest_call(&self, chain: &Chain) -> Duration {
        let links = chain.links.iter().filter_map(|name| self.links.get(name));
        let storages = chain.storages.iter();
        let storages = storages.filter_map(|name| self.storages.get(name.as_str())?.as_ref());
        let links = links.map(|link| link.longest_call());
        let storages = storages.map(|storage| storage.longest_call());
        links.chain(storages).max().unwrap_or_default()
    }

    /// Whether a link reads and writes the vCon in Redis by itself.
    pub fn works_in_redis(&self, link: &str) -> bool {
        self.links.get(link).is_some_and(|l| l.works_in_redis())
    }

    /// The budget of a stage, if it has one, and the longest that a call takes for which it is asked.
    pub fn budget_of(&self, stage: &Stage) -> Option<(Arc<Budget>, Duration)> {
        let budget = stage.budget(&self.config)?;
        let longest = self.longest.get(&budget.account).copied();
        Some((Arc::clone(budget), longest.unwrap_or_default()))
    }

    /// Whether a link asks for a permit for each of its requests.
    pub fn counts_requests(&self, link: &str) -> bool {
        self.links.get(link).is_some_and(|it| it.counts_requests())
    }

    /// Whether a link would write another vCon than it is given.
    pub fn rewrites(&self, link: &str) -> bool {
        self.links.get(link).is_some_and(|link| link.rewrites())
    }

    /// Runs a link on a vCon. A panic is a permanent failure, and the link is opened anew.
    pub fn run_link(
        &mut self,
        name: &str,
        vcon: &mut Vcon,
        context: &mut Context<'_>,
    ) -> Result<Next, LinkError> {
        let Some(link) = self.links.get_mut(name) else {
            return Err(Failure::permanent("it is not in the configuration").into());
        };
        match catch_unwind(AssertUnwindSafe(|| link.run(vcon, context))) {
            Ok(ran) => ran,
            Err(panic) => {
                if let Some(link) = self.config.links.get(name) {
                    let link = open_link(link, &self.host, &self.meters);
                    self.links.insert(name.to_owned(), link);
                }
                Err(Failure::permanent(format!("it panicked: {}", panic_text(&*panic))).into())
            }
        }
    }

    /// Lends the storages of these names, in the order of the configuration.
    pub fn lend(&mut self, names: &[String]) -> Vec<Backend> {
        let storages = self.storages.iter_mut();
        let wanted = storages.filter(|(name, _)| names.iter().any(|wanted| **wanted == ***name));
        let config = &self.config.storages;
        let lent = wanted.filter_map(|(name, storage)| {
            Some(Backend {
                name: Arc::clone(name),
                storage: storage.take()?,
                is_downgraded: config
                    .get(&**name)
                    .is_some_and(StorageConfig::is_downgraded),
            })
        });
        lent.collect()
    }

    /// Takes back a storage that was lent. Without it (it has panicked), opens it anew.
    pub fn return_storage(&mut self, name: &str, storage: Option<Box<dyn Storage>>) {
        let anew = || {
            let storage = self.config.storages.get(name)?;
            let opened = open_storage(storage, &self.host, self.batches, &self.meters);
            Some(opened)
        };
        let storage = storage.or_else(anew);
        if let Some(slot) = self.storages.get_mut(name) {
            *slot = storage;
        }
    }

    /// Probes a link or storage: could it be used now?
    pub fn probe(&mut self, stage: &Stage, drain: &Receiver<()>) -> Result<(), Failure> {
        let unknown = || Err(Failure::permanent("it is not in the configuration"));
        match stage {
            Stage::Link(name) => {
                let link = self.links.get_mut(name);
                link.map_or_else(unknown, |link| guarded(|| link.probe(drain)))
            }
            Stage::Storage(name) => {
                let storage = self.storages.get_mut(name.as_str());
                let storage = storage.and_then(Option::as_mut);
                storage.map_or_else(unknown, |storage| guarded(|| storage.probe()))
            }
            // Redis has just refused to push to it.
            Stage::List(list) => Err(not_a_list(list)),
            Stage::Tracer(_) | Stage::Hook(_) => begin_host(&self.host, drain).map(drop),
        }
    }

    /// A copy of a storage for the prober's thread, if it must share with that what the server has told
    /// this one. Without it, the prober opens its own.
    pub fn prober(&self, stage: &Stage) -> Option<Box<dyn Storage>> {
        match stage {
            Stage::Storage(name) => self.storages.get(name.as_str())?.as_ref()?.prober(),
            _ => None,
        }
    }

    /// Looks for a vCon in all storages, in the order of the configuration. Returns the name of the first
    /// storage that has it, and the document.
    ///
    /// # Errors
    /// None has it, and one is unavailable, so that the vCon may be there. If all are available, one that
    /// cannot return what it has, in a final failure.
    pub fn find(
        &mut self,
        id: &VconId,
        deadline: Deadline,
    ) -> Result<Option<(String, String)>, (Stage, Failure)> {
        let (mut unavailable, mut refusal) = (None, None);
        for (name, storage) in &mut self.storages {
            // None is lent now: documents are looked for before the save.
            let Some(storage) = storage else { continue };
            match catch_unwind(AssertUnwindSafe(|| {
                storage::get(storage.as_mut(), id, deadline)
            })) {
                Ok(Ok(Some(json))) => return Ok(Some((name.to_string(), json))),
                Ok(Ok(None)) => {}
                Ok(Err(failure)) if failure.is_transient() => {
                    unavailable = Some((Stage::Storage(name.to_string()), failure));
                }
                Ok(Err(failure)) => {
                    log::warn!("could not get {id} from {name}: {failure}");
                    refusal = Some((Stage::Storage(name.to_string()), failure));
                }
                Err(panic) => {
                    log::error!("storage {name} panicked: {}", panic_text(&*panic));
                }
            }
        }
        unavailable.or(refusal).map_or(Ok(None), Err)
    }
}

fn open_link(link: &ModuleConfig<dyn Link>, host: &Host, meters: &Meters) -> Box<dyn Link> {
    let mut link = link.open_link_of(host);
    if let Some(times) = &meters.answers {
        link.count_answers(times);
    }
    link
}

fn open_storage(
    storage: &StorageConfig,
    host: &Host,
    batches: bool,
    meters: &Meters,
) -> Box<dyn Storage> {
    let mut storage = storage.open_storage_of(host);
    if batches {
        storage.batch_saves();
    }
    if let Some(times) = &meters.answers {
        storage.count_answers(times);
    }
    storage
}

/// Starts a host of Python modules, unless it runs; not for longer than until the worker drains.
pub(super) fn begin_host(host: &Host, drain: &Receiver<()>) -> Result<Hooks, Failure> {
    let limit = host.setup().settings.timeout;
    let begun = host.begin(&mut Clock::probing(limit, drain));
    begun.map_err(Failure::from)
}

/// The message of a panic.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Those that count.
fn heard(meters: impl Iterator<Item = (String, Meter)>) -> HashMap<String, Meter> {
    meters.filter(|(_, meter)| !meter.is_silent()).collect()
}

/// The meters of the chains, links and storages of one configuration, by their names.
#[derive(Default)]
pub(super) struct Meters {
    chains: HashMap<String, Meter>,
    links: HashMap<String, Meter>,
    storages: HashMap<String, Meter>,
    /// Those for a collector of metrics; empty if there is none.
    lists: HashMap<String, Meter>,
    chain_links: HashMap<String, HashMap<String, Meter>>,
    storage_failures: HashMap<String, Meter>,
    /// Where the times of webhooks' answers are counted; `None` in tests alone.
    answers: Option<AnswerTimes>,
}

impl Meters {
    /// The meters in a worker's slot; what the slot has no room for is not counted.
    fn new(config: &Config, slot: &Slot) -> Self {
        let known = &slot.meters();
        let meter = |kind| move |name: &String| (name.clone(), known.of(kind, name));
        let chains = config.chains.iter().map(|chain| &chain.name);
        Self {
            chains: chains.map(meter(SeriesKind::Chain)).collect(),
            links: config.links.keys().map(meter(SeriesKind::Link)).collect(),
            storages: config
                .storages
                .keys()
                .map(meter(SeriesKind::Storage))
                .collect(),
            lists: heard(config.ingress_lists().iter().map(|list| {
                let name = list.to_string();
                let meter = known.of(SeriesKind::List, &name);
                (name, meter)
            })),
            chain_links: config
                .chains
                .iter()
                .map(|chain| {
                    let links = chain.links.iter().map(|link| {
                        let name = chain_link_name(&chain.name, link);
                        (link.clone(), known.of(SeriesKind::ChainLink, &name))
                    });
                    (chain.name.clone(), heard(links))
                })
                .filter(|(_, links)| !links.is_empty())
                .collect(),
            storage_failures: heard(
                config
                    .storages
                    .keys()
                    .map(meter(SeriesKind::StorageFailure)),
            ),
            answers: Some(slot.answer_times()),
        }
    }

    /// The meter of a chain.
    pub fn chain(&self, name: &str) -> &Meter {
        self.chains.get(name).unwrap_or(Meter::SILENT)
    }

    /// The meter of a link.
    pub fn link(&self, name: &str) -> &Meter {
        self.links.get(name).unwrap_or(Meter::SILENT)
    }

    /// The meter of a storage.
    pub fn storage(&self, name: &str) -> &Meter {
        self.storages.get(name).unwrap_or(Meter::SILENT)
    }

    /// The meter of what comes from an ingress list.
    pub fn list(&self, list: &ListName) -> &Meter {
        self.lists.get(list.as_str()).unwrap_or(Meter::SILENT)
    }

    /// The meter of a link in one chain.
    pub fn chain_link(&self, chain: &str, link: &str) -> &Meter {
        let links = self.chain_links.get(chain);
        links
            .and_then(|links| links.get(link))
            .unwrap_or(Meter::SILENT)
    }

    /// The meter of the failures of a storage alone.
    pub fn storage_failures(&self, name: &str) -> &Meter {
        self.storage_failures.get(name).unwrap_or(Meter::SILENT)
    }

    /// The meter of a link or storage; lists have none.
    pub fn stage(&self, stage: &Stage) -> Option<&Meter> {
        match stage {
            Stage::Link(name) => Some(self.link(name)),
            Stage::Storage(name) => Some(self.storage(name)),
            Stage::List(_) | Stage::Tracer(_) | Stage::Hook(_) => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::path::Path;

    use crossbeam_channel::never;

    use super::super::shared::tests::{TestWorker, parse};
    use super::*;
    use crate::vcon::{Outgoing, Version};

    #[test]
    fn a_stage_is_in_the_chains_that_need_it() {
        let config = parse(
            "links: {same: {module: links.tag, options: {tags: [x]}}, \
                     route: {module: links.tag_router, options: {tag_routes: {x: there}}}}\n\
             storages: {same: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
             chains: {links: {links: [same], ingress_lists: [a], egress_lists: [b]}, \
                      stores: {storages: [same], ingress_lists: [c], egress_lists: [there]}, \
                      routes: {links: [route], ingress_lists: [d]}, \
                      off: {links: [same, route], storages: [same], ingress_lists: [e], egress_lists: [b], enabled: false}}\n",
        );
        let list = |name: &str| name.parse().map(Stage::List);
        for (stage, expected) in [
            (Ok(Stage::Link("same".to_owned())), &["links"][..]),
            (Ok(Stage::Storage("same".to_owned())), &["stores"]),
            (list("there"), &["stores", "routes"]),
            (list("b"), &["links"]),
            (list("a"), &[]),
        ] {
            assert_eq!(
                stage.map(|stage| stage.chains(&config)),
                Ok(expected.iter().map(|it| (*it).to_owned()).collect())
            );
        }
    }

    #[test]
    fn a_stage_counts_in_its_own_meter_and_a_list_has_none() {
        let worker = TestWorker::with(
            "links: {same: {module: links.tag, options: {tags: [x]}}}\n\
             storages: {same: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
             chains: {main: {links: [same], storages: [same], ingress_lists: [in]}}\n",
            &[],
        );
        let meters = Meters::new(&worker.config(), &worker.shared.slot);
        let [link, storage] = [Stage::Link, Stage::Storage].map(|of| of("same".to_owned()));
        let is = |stage: &Stage, meter: &Meter| {
            let found = meters.stage(stage);
            found.is_some_and(|found| std::ptr::eq(found, meter))
        };
        assert!(is(&link, meters.link("same")));
        assert!(is(&storage, meters.storage("same")));
        assert!(!std::ptr::eq(meters.link("same"), meters.storage("same")));
        let config = worker.config();
        let list = config.chains[0].ingress_lists[0].clone();
        assert!(meters.stage(&Stage::List(list)).is_none());
        let unknown = Stage::Link("other".to_owned());
        assert!(is(&unknown, Meter::SILENT));
    }

    struct Panics;

    impl Link for Panics {
        fn run(&mut self, _: &mut Vcon, _: &mut Context<'_>) -> Result<Next, LinkError> {
            panic!("no good")
        }

        fn longest_call(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn open(text: &str) -> LaneModules {
        let config = Config::parse(text, Path::new("config.yml")).unwrap();
        let host = config.host();
        LaneModules::with(Arc::new(config), Meters::default(), host, false)
    }

    #[test]
    fn a_link_that_panics_fails_with_its_message_and_is_opened_anew() {
        let mut modules = open(
            "links: {first: {module: links.tag, options: {tags: [x]}}}\n\
             chains: {main: {links: [first], ingress_lists: [default]}}\n",
        );
        modules.links.insert("first".to_owned(), Box::new(Panics));
        let drain = never();
        let mut vcon = Vcon::read(VconId::random(), "{}").unwrap();
        let mut run = |name: &str| {
            let mut context = Context::new(&drain, Version::Current);
            modules.run_link(name, &mut vcon, &mut context)
        };
        let failed = run("first").unwrap_err();
        assert_eq!(failed.to_string(), "it panicked: no good");
        assert_eq!(run("first"), Ok(Next::Continue));
        assert!(run("other").is_err());
    }

    /// A storage that answers like this.
    #[derive(Clone, Copy)]
    enum FakeStorage {
        Has,
        HasNot,
        Unavailable,
        Refuses,
        Panics,
    }

    impl Storage for FakeStorage {
        fn save(&mut self, _: &Outgoing, _: Deadline) -> Result<(), Failure> {
            Ok(())
        }

        fn get(&mut self, id: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
            match self {
                Self::Has => Ok(Some(id.to_string())),
                Self::HasNot => Ok(None),
                Self::Unavailable => Err(Failure::transient("away")),
                Self::Refuses => Err(Failure::permanent("no")),
                Self::Panics => panic!("no good"),
            }
        }

        fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
            Ok(())
        }

        fn probe(&mut self) -> Result<(), Failure> {
            match self {
                Self::Has => Ok(()),
                Self::Panics => panic!("no good"),
                _ => Err(Failure::transient("away")),
            }
        }

        fn longest_call(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// Storages `a`, `b` and so on that answer like this.
    fn with_storages(answers: &[FakeStorage]) -> LaneModules {
        let mut modules = open("chains: {}\n");
        for (name, answers) in ["a", "b", "c", "d"].into_iter().zip(answers) {
            let storage: Box<dyn Storage> = Box::new(*answers);
            modules.storages.insert(name.into(), Some(storage));
        }
        modules
    }

    #[test]
    fn a_vcon_is_in_the_first_storage_that_has_it_and_nowhere_if_none_says_otherwise() {
        use FakeStorage::{Has, HasNot, Panics, Refuses, Unavailable};
        let id = VconId::random();
        let has = |name: &str| Ok(Some((name.to_owned(), id.to_string())));
        let away = |name: &str| {
            let stage = Stage::Storage(name.to_owned());
            Err((stage, Failure::transient("away")))
        };
        let refused = |name: &str| {
            let stage = Stage::Storage(name.to_owned());
            Err((stage, Failure::permanent("no")))
        };
        for (answers, expected) in [
            (&[HasNot, Has, Has][..], has("b")),
            (&[Unavailable, Refuses, Panics, Has], has("d")),
            (&[HasNot, HasNot], Ok(None)),
            (&[Panics, HasNot], Ok(None)),
            (&[Refuses, Panics, HasNot], refused("a")),
            (&[Unavailable, Refuses], away("a")),
            (&[HasNot, Unavailable, HasNot], away("b")),
            (&[], Ok(None)),
        ] {
            let found = with_storages(answers).find(&id, Deadline::after(None));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_stage_that_does_not_exist_or_panics_fails_its_probe() {
        let mut modules = with_storages(&[
            FakeStorage::Has,
            FakeStorage::Unavailable,
            FakeStorage::Panics,
        ]);
        let drain = never();
        for (name, expected) in [
            ("a", None),
            ("b", Some("away")),
            ("c", Some("its probe panicked")),
            ("d", Some("it is not in the configuration")),
        ] {
            let stages = [
                Stage::Storage(name.to_owned()),
                Stage::Link(name.to_owned()),
            ];
            let [storage, link] = stages.map(|stage| modules.probe(&stage, &drain).err());
            assert_eq!(
                storage.map(|it| it.message),
                expected.map(str::to_owned),
                "{name}"
            );
            assert!(link.is_some());
        }
        let list = Stage::List("in".parse().unwrap());
        let failure = modules.probe(&list, &drain).unwrap_err();
        assert!(failure.is_transient());
    }

    #[test]
    fn a_storage_that_is_lent_is_lent_to_nobody_else_until_it_is_back() {
        let mut modules = with_storages(&[
            FakeStorage::Has,
            FakeStorage::HasNot,
            FakeStorage::Unavailable,
        ]);
        let names = |lent: &[Backend]| -> Vec<String> {
            lent.iter().map(|it| it.name.to_string()).collect()
        };
        let [a, c] = ["a", "c"].map(str::to_owned);
        let lent = modules.lend(&[c.clone(), a.clone()]);
        assert_eq!(names(&lent), ["a", "c"]);
        assert_eq!(names(&modules.lend(&[a.clone(), "b".to_owned()])), ["b"]);
        for backend in lent {
            modules.return_storage(&backend.name, Some(backend.storage));
        }
        assert_eq!(names(&modules.lend(&[a, c])), ["a", "c"]);
    }

    #[test]
    fn the_longest_call_of_a_chain_is_that_of_its_slowest_link_or_storage() {
        let modules = open(
            "links: {tag: {module: links.tag, options: {tags: [x]}}, \
             wait: {module: links.delay, options: {seconds: 600}}, \
             hook: {module: links.webhook, options: {webhook-urls: ['http://h', 'http://i'], timeout: 7}}, \
             run: {module: links.exec, options: {command: [cat], timeout: 20}}}\n\
             storages: {s3: {module: storage.webhook, options: {webhook-urls: ['http://h'], timeout: 15}}}\n\
             chains: {none: {links: [tag, wait], ingress_lists: [a]}, \
             hook: {links: [tag, hook], ingress_lists: [b]}, \
             stored: {links: [hook], storages: [s3], ingress_lists: [c]}, \
             all: {links: [run, hook], storages: [s3], ingress_lists: [d]}}\n",
        );
        for (name, seconds) in [("none", 0), ("hook", 14), ("stored", 15), ("all", 20)] {
            let mut chains = modules.config.chains.iter();
            let chain = chains.find(|chain| chain.name == name).unwrap();
            assert_eq!(
                modules.longest_call(chain),
                Duration::from_secs(seconds),
                "{name}"
            );
        }
    }
}
