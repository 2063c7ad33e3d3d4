//! The links and storages of a configuration, opened for one lane and kept open.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use indexmap::IndexMap;

use super::Meters;
use super::circuit_breaker::guarded;
use super::fault::Stage;
use crate::config::{Chain, Config, StorageConfig};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::link::{Context, Link, LinkError, Next};
use crate::storage::fan_out::Backend;
use crate::storage::{self, Storage};
use crate::vcon::{Vcon, VconId};

/// The links and storages of a configuration, opened for one lane and kept open.
pub(super) struct Modules {
    config: Arc<Config>,
    links: HashMap<String, Box<dyn Link>>,
    /// Each is missing only while it is lent.
    storages: IndexMap<Arc<str>, Option<Box<dyn Storage>>>,
    meters: Meters,
}

impl Modules {
    /// Opens every link and storage; none connects before it is used.
    pub fn open(config: Arc<Config>, meters: Meters) -> Self {
        let links = config
            .links
            .iter()
            .map(|(name, link)| (name.clone(), link.open_link()));
        let storages = config
            .storages
            .iter()
            .map(|(name, storage)| (name.as_str().into(), Some(storage.open_storage())));
        Self {
            links: links.collect(),
            storages: storages.collect(),
            meters,
            config,
        }
    }

    /// The configuration these were made for.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
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

    /// Whether a link would write another vCon than it is given.
    pub fn rewrites(&self, link: &str) -> bool {
        self.links.get(link).is_some_and(|link| link.rewrites())
    }

    /// Runs a link on a vCon; one that panics is opened anew.
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
                    self.links.insert(name.to_owned(), link.open_link());
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

    /// Takes a storage back; one that has panicked is opened anew.
    pub fn take_back(&mut self, name: &str, storage: Option<Box<dyn Storage>>) {
        let anew = || Some(self.config.storages.get(name)?.open_storage());
        let storage = storage.or_else(anew);
        if let Some(slot) = self.storages.get_mut(name) {
            *slot = storage;
        }
    }

    /// Asks a link or storage whether it could be used now.
    pub fn probe(&mut self, stage: &Stage, drain: &Receiver<()>) -> Result<(), Failure> {
        let gone = || Err(Failure::permanent("it is not in the configuration"));
        match stage {
            Stage::Link(name) => {
                let link = self.links.get_mut(name);
                link.map_or_else(gone, |link| guarded(|| link.probe(drain)))
            }
            Stage::Storage(name) => {
                let storage = self.storages.get_mut(name.as_str());
                let storage = storage.and_then(Option::as_mut);
                storage.map_or_else(gone, |storage| guarded(|| storage.probe()))
            }
            // Redis has just said that it is no list.
            Stage::List(list) => Err(Failure::transient(format!("{list} is no list"))),
        }
    }

    /// What another thread probes a storage with, if that is to know what this one has been refused.
    pub fn prober(&self, stage: &Stage) -> Option<Box<dyn Storage>> {
        match stage {
            Stage::Storage(name) => self.storages.get(name.as_str())?.as_ref()?.prober(),
            Stage::Link(_) | Stage::List(_) => None,
        }
    }

    /// Looks for a vCon in the storages, in the order of the configuration. Returns the name of the
    /// storage that has it, and the document.
    ///
    /// # Errors
    /// A storage that is unavailable: the vCon may be there, so nothing is known. If there is none, a
    /// storage that has something there which is no document, in a failure that is final.
    pub fn find(
        &mut self,
        id: &VconId,
        deadline: Deadline,
    ) -> Result<Option<(String, String)>, (Stage, Failure)> {
        let (mut doubt, mut refusal) = (None, None);
        for (name, storage) in &mut self.storages {
            // Nothing is lent while a document is looked for.
            let Some(storage) = storage else { continue };
            match catch_unwind(AssertUnwindSafe(|| {
                storage::get(storage.as_mut(), id, deadline)
            })) {
                Ok(Ok(Some(json))) => return Ok(Some((name.to_string(), json))),
                Ok(Ok(None)) => {}
                Ok(Err(failure)) if failure.is_transient() => {
                    doubt = Some((Stage::Storage(name.to_string()), failure));
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
        doubt.or(refusal).map_or(Ok(None), Err)
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::path::Path;

    use crossbeam_channel::never;

    use super::*;
    use crate::vcon::{Outgoing, Version};

    struct Panics;

    impl Link for Panics {
        fn run(&mut self, _: &mut Vcon, _: &mut Context<'_>) -> Result<Next, LinkError> {
            panic!("no good")
        }

        fn longest_call(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn open(text: &str) -> Modules {
        let config = Config::parse(text, Path::new("config.yml")).unwrap();
        Modules::open(Arc::new(config), Meters::default())
    }

    #[test]
    fn a_link_that_panics_says_so_and_is_opened_anew() {
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

    /// A storage that answers a question in this way.
    #[derive(Clone, Copy)]
    enum Answers {
        Has,
        HasNone,
        IsAway,
        Refuses,
        Panics,
    }

    impl Storage for Answers {
        fn save(&mut self, _: &Outgoing, _: Deadline) -> Result<(), Failure> {
            Ok(())
        }

        fn get(&mut self, id: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
            match self {
                Self::Has => Ok(Some(id.to_string())),
                Self::HasNone => Ok(None),
                Self::IsAway => Err(Failure::transient("away")),
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
    fn asked(answers: &[Answers]) -> Modules {
        let mut modules = open("chains: {}\n");
        for (name, answers) in ["a", "b", "c", "d"].into_iter().zip(answers) {
            let storage: Box<dyn Storage> = Box::new(*answers);
            modules.storages.insert(name.into(), Some(storage));
        }
        modules
    }

    #[test]
    fn a_vcon_is_in_the_first_storage_that_has_it_and_nowhere_if_none_says_otherwise() {
        use Answers::{Has, HasNone, IsAway, Panics, Refuses};
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
            (&[HasNone, Has, Has][..], has("b")),
            (&[IsAway, Refuses, Panics, Has], has("d")),
            (&[HasNone, HasNone], Ok(None)),
            (&[Panics, HasNone], Ok(None)),
            (&[Refuses, Panics, HasNone], refused("a")),
            (&[IsAway, Refuses], away("a")),
            (&[HasNone, IsAway, HasNone], away("b")),
            (&[], Ok(None)),
        ] {
            let found = asked(answers).find(&id, Deadline::after(None));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_is_not_there_or_panics_does_not_answer_a_probe() {
        let mut modules = asked(&[Answers::Has, Answers::IsAway, Answers::Panics]);
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
    fn what_was_lent_is_lent_to_nobody_else_until_it_is_back() {
        let mut modules = asked(&[Answers::Has, Answers::HasNone, Answers::IsAway]);
        let names = |lent: &[Backend]| -> Vec<String> {
            lent.iter().map(|it| it.name.to_string()).collect()
        };
        let [a, c] = ["a", "c"].map(str::to_owned);
        let lent = modules.lend(&[c.clone(), a.clone()]);
        assert_eq!(names(&lent), ["a", "c"]);
        assert_eq!(names(&modules.lend(&[a.clone(), "b".to_owned()])), ["b"]);
        for backend in lent {
            modules.take_back(&backend.name, Some(backend.storage));
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
