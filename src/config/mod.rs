//! `config.yml`: which links and storages there are, and the chains made of them.
//!
//! A [`Config`] has been checked as a whole: every name in it is defined, every module known,
//! every option read once by the module it is for. Whatever is wrong with a file is reported
//! together, each fault with its line.
//!
//! Values from variables and files are filled in when a file is read, by each process for itself,
//! and kept with the configuration: what is opened later is what was checked.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indexmap::{IndexMap, IndexSet};

use crate::link::{self, Link};
use crate::options::substitution::Environment;
use crate::options::{Common, scalars, yaml};
use crate::python::{Host, HostSetup, PythonModule, secrets_of};
use crate::secret::Secret;
use crate::settings::PythonSettings;
use crate::storage::{self, Storage};

pub use crate::list_name::{ListName, NotAListName};
pub use crate::options::Options;
pub use crate::options::error::{ConfigErrors, ConfigWarnings, Fault};
pub use budget::{Account, Budget};
pub use followers::Follower;
pub use outline::{NamedModule, Outline, Section};
pub use python::package_of;
pub use schema::{built_in_modules, json_schema};
pub use shown::{ShownConfig, ShownPlace, yaml_text};
pub use source::{Source, Stamp};

mod advice;
mod budget;
mod followers;
mod outline;
#[cfg(test)]
mod properties;
mod python;
mod read;
mod schema;
mod shown;
mod source;
#[cfg(test)]
mod tests;

/// A whole and checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The links by name, in the order of the file.
    pub links: IndexMap<String, ModuleConfig<dyn Link>>,
    /// The storages by name, in the order of the file.
    pub storages: IndexMap<String, StorageConfig>,
    /// The chains in the order of the file, those out of service among them.
    pub chains: Vec<Chain>,
    /// The lists of all chains that vCons are announced on, and then those that links may announce them on, as
    /// far as these stand in the file itself.
    pub egress_lists: IndexSet<ListName>,
    /// What should be looked at, though it keeps nobody from working.
    pub warnings: ConfigWarnings,
    /// The servers whose vCons are pulled, in the order of the file.
    pub followers: Vec<Follower>,
    /// What is called before the first link of every chain and after each, in the order of the file.
    pub tracers: Vec<Tracer>,
    /// What the host of Python modules begins with.
    pub python: Arc<HostSetup>,
}

/// One entry of `tracers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracer {
    /// Its module.
    pub module: Arc<PythonModule>,
    /// Whether a vCon fails with it: its option `dlq_vcon_on_error`.
    pub fails_vcon: bool,
}

/// One chain: what happens to the vCons of its ingress lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// The names of its links, in the order they run.
    pub links: Vec<String>,
    /// The names of the storages that keep what comes out.
    pub storages: Vec<String>,
    /// The lists it takes vCons from; no other enabled chain has one of them.
    pub ingress_lists: Vec<ListName>,
    /// The lists it puts vCons on when they are stored.
    pub egress_lists: Vec<ListName>,
    /// Whether it is in service.
    pub enabled: bool,
    /// The longest time one vCon may take.
    pub timeout: Option<Duration>,
    /// Its entry in the file as JSON, with its name, as hooks are told of it.
    pub details: String,
}

/// What makes a built-in link or storage from its options.
type Open<T> = fn(&mut Options) -> Box<T>;

/// What makes a link or storage of a Python module.
type OpenPython<T> = fn(&Arc<PythonModule>, &Host) -> Box<T>;

/// What a link or storage is made of.
enum Opener<T: ?Sized> {
    BuiltIn(Open<T>),
    Python(Arc<PythonModule>, OpenPython<T>),
}

impl<T: ?Sized> Clone for Opener<T> {
    fn clone(&self) -> Self {
        match self {
            Self::BuiltIn(open) => Self::BuiltIn(*open),
            Self::Python(module, open) => Self::Python(Arc::clone(module), *open),
        }
    }
}

/// One entry of `storages`.
pub type StorageConfig = ModuleConfig<dyn Storage>;

/// One entry of `links` or `storages`, checked by opening it once.
pub struct ModuleConfig<T: ?Sized> {
    /// The name chains know it by.
    pub name: String,
    /// The module, as in `storage.file`.
    pub module: String,
    path: String,
    line: usize,
    /// With the values from variables and files.
    options: yaml::Mapping,
    opener: Opener<T>,
    /// What its host begins with, if it is a Python module that is opened alone.
    host: Arc<HostSetup>,
    /// The values from variables and files, which are not to be shown.
    looked_up: Arc<[Secret]>,
    /// What all that is opened of it has in common.
    common: Common,
    /// The lists on which it may announce vCons, besides those of the chain.
    pub routes: Vec<ListName>,
    /// How long each run waits at least.
    waits: Duration,
    /// The limit that its option `timeout` sets, if it is given.
    timeout: Option<Duration>,
    /// What happens to vCons while it is unavailable; a link always holds its chains.
    pub on_outage: OnOutage,
    /// How often it may be asked.
    pub limit: Option<Arc<Budget>>,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Source::load(path).map(|source| source.config)
    }

    /// [`Config::load`] for the configuration in force, kept in the runtime folder.
    pub fn load_kept(path: &Path) -> Result<Self, ConfigErrors> {
        let text = source::read_kept(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        Self::parse(&text, path)
    }

    /// [`Config::load`] with these variables in place of the process's own.
    pub fn load_with(
        path: &Path,
        variables: HashMap<OsString, OsString>,
        python: &PythonSettings,
    ) -> Result<Self, ConfigErrors> {
        let text = source::read(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        let surroundings = Surroundings {
            environment: Arc::new(Environment::new(variables)),
            python: python.clone(),
        };
        Self::parse_with(&text, path, link::MODULES, storage::MODULES, &surroundings)
    }

    /// Checks `text`, the content of the file at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let surroundings = Surroundings {
            environment: Arc::new(Environment::of_process()),
            python: PythonSettings::from_env(),
        };
        Self::parse_with(text, path, link::MODULES, storage::MODULES, &surroundings)
    }

    fn parse_with(
        text: &str,
        path: &Path,
        links: &[link::Module],
        storages: &[storage::Module],
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigErrors> {
        let document = yaml::parse(text).map_err(|faults| ConfigErrors::new(path, faults))?;
        let (mut config, findings) = read::config(document, links, storages, surroundings);
        let warnings = ConfigWarnings::new(path, findings.warnings);
        if findings.faults.is_empty() {
            config.warnings = warnings;
            config.prepare_hosts(path);
            Ok(config)
        } else {
            Err(ConfigErrors::new(path, findings.faults).with(warnings))
        }
    }

    /// Says to everything that may be opened what its host begins with.
    fn prepare_hosts(&mut self, file: &Path) {
        let options = self.python_modules().into_iter();
        let options = options.filter_map(|(module, _)| module.options.as_deref());
        let secrets: Vec<Secret> = options.flat_map(secrets_of).collect();
        let setup = Arc::make_mut(&mut self.python);
        setup.secrets.extend(secrets);
        file.clone_into(&mut setup.config_file);
        for link in self.links.values_mut() {
            link.host = Arc::clone(&self.python);
        }
        for storage in self.storages.values_mut() {
            storage.host = Arc::clone(&self.python);
        }
    }

    /// The ingress lists of the chains in service, in the order of the file.
    pub fn ingress_lists(&self) -> Vec<ListName> {
        ingress_lists(&self.chains)
    }

    /// Whether a `limit` of a link or storage has a `concurrency`.
    pub fn leases_slots(&self) -> bool {
        let of_storages = budget::budgets_of(self.storages.values());
        let mut budgets = budget::budgets_of(self.links.values()).chain(of_storages);
        budgets.any(|budget| budget.concurrency.is_some())
    }

    /// A host for the Python modules of one lane, which has not begun.
    pub fn host(&self) -> Host {
        Host::new(&self.python)
    }

    /// The chain in service that takes from `list`.
    pub fn chain_for(&self, list: &ListName) -> Option<&Chain> {
        self.chains
            .iter()
            .find(|chain| chain.enabled && chain.ingress_lists.contains(list))
    }
}

/// The ingress lists of the chains in service, in their order.
fn ingress_lists(chains: &[Chain]) -> Vec<ListName> {
    let in_service = chains.iter().filter(|chain| chain.enabled);
    in_service
        .flat_map(|chain| chain.ingress_lists.iter().cloned())
        .collect()
}

/// All lists that vCons are announced on: those of chains, those out of service among them, then the routes.
fn egress_lists(chains: &[Chain], routes: &[ListName]) -> IndexSet<ListName> {
    let of_chains = chains.iter().flat_map(|chain| &chain.egress_lists);
    of_chains.chain(routes).cloned().collect()
}

/// What surrounds a process that reads a configuration.
struct Surroundings {
    environment: Arc<Environment>,
    python: PythonSettings,
}

impl<T: ?Sized> ModuleConfig<T> {
    fn opened(&self, host: Option<&Host>) -> Box<T> {
        let open = match &self.opener {
            Opener::BuiltIn(open) => open,
            Opener::Python(module, open) => {
                let host = host.map_or_else(|| Host::new(&self.host), Clone::clone);
                return open(module, &host);
            }
        };
        let node = yaml::Node {
            line: self.line,
            kind: yaml::NodeKind::Mapping(self.options.clone()),
            plain: false,
        };
        let mut options = Options::new(&self.path, "option", self.line, &node);
        options.set_owner(&self.name);
        options.set_looked_up(&self.looked_up);
        options.set_common(&self.common);
        open(&mut options)
    }

    /// Whether another configuration has the same entry, with the same values from variables and files.
    pub fn is_same(&self, other: &Self) -> bool {
        self.module == other.module
            && self.options_as_json() == other.options_as_json()
            && self.looked_up == other.looked_up
            && match (&self.limit, &other.limit) {
                (Some(one), Some(other)) => one.is_same(other),
                (one, other) => one.is_none() && other.is_none(),
            }
            && self.on_outage == other.on_outage
    }

    /// The Python module that it is, if it is one.
    pub fn python(&self) -> Option<&Arc<PythonModule>> {
        match &self.opener {
            Opener::BuiltIn(_) => None,
            Opener::Python(module, _) => Some(module),
        }
    }

    /// Its options as JSON, if it has any.
    pub fn options_as_json(&self) -> Option<String> {
        match &self.opener {
            Opener::BuiltIn(_) if self.options.is_empty() => None,
            Opener::BuiltIn(_) => Some(scalars::object(&self.options)),
            Opener::Python(module, _) => module.options.clone(),
        }
    }
}

impl ModuleConfig<dyn Storage> {
    /// A backend that is not connected yet. If it is a Python module, it has a host of its own.
    pub fn open_storage(&self) -> Box<dyn Storage> {
        self.opened(None)
    }

    /// The same for a lane, whose host runs it if it is a Python module.
    pub fn open_storage_of(&self, lane: &Host) -> Box<dyn Storage> {
        self.opened(Some(lane))
    }

    /// Whether it gets the version of `EGRESS_FORMAT_VERSION`.
    pub fn is_downgraded(&self) -> bool {
        storage::DOWNGRADED.contains(&self.module.as_str()) && self.python().is_none()
    }
}

impl ModuleConfig<dyn Link> {
    /// A link. If it is a Python module, it has a host of its own.
    pub fn open_link(&self) -> Box<dyn Link> {
        self.opened(None)
    }

    /// The same for a lane, whose host runs it if it is a Python module.
    pub fn open_link_of(&self, lane: &Host) -> Box<dyn Link> {
        self.opened(Some(lane))
    }
}

impl<T: ?Sized> Clone for ModuleConfig<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            module: self.module.clone(),
            path: self.path.clone(),
            line: self.line,
            options: self.options.clone(),
            opener: self.opener.clone(),
            host: Arc::clone(&self.host),
            looked_up: Arc::clone(&self.looked_up),
            common: self.common.clone(),
            routes: self.routes.clone(),
            waits: self.waits,
            timeout: self.timeout,
            on_outage: self.on_outage,
            limit: self.limit.clone(),
        }
    }
}

impl<T: ?Sized> fmt::Debug for ModuleConfig<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModuleConfig")
            .field("name", &self.name)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}

/// Which chains there are and what they are made of.
///
/// Options are not looked at: values from variables and files that only the daemon has need not be
/// there.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The names of the links, in the order of the file.
    pub links: Vec<String>,
    /// The names of the storages, in the order of the file.
    pub storages: Vec<String>,
    /// Those of them that have `on_outage: defer`.
    pub deferring: Vec<String>,
    /// The names of the tracers, in the order of the file.
    pub tracers: Vec<String>,
    /// The chains in the order of the file, those out of service among them.
    pub chains: Vec<Chain>,
    /// The lists that links may announce vCons on, besides those of their chains, as far as they
    /// stand in the file itself.
    pub routes: Vec<ListName>,
}

impl Plan {
    /// Reads `text`, the content of the file at `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let document = yaml::parse(text).map_err(|faults| ConfigErrors::new(path, faults))?;
        let (plan, findings) = read::plan(document);
        if findings.faults.is_empty() {
            Ok(plan)
        } else {
            Err(ConfigErrors::new(path, findings.faults))
        }
    }

    /// The ingress lists of the chains in service, in the order of the file.
    pub fn ingress_lists(&self) -> Vec<ListName> {
        ingress_lists(&self.chains)
    }

    /// All lists that vCons are announced on, in the same order as in [`Config::egress_lists`].
    pub fn egress_lists(&self) -> IndexSet<ListName> {
        egress_lists(&self.chains, &self.routes)
    }
}

/// The key in an entry of `storages`.
const KEY: &str = "on_outage";

/// What happens to vCons while a storage is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOutage {
    /// The chains that need it are put on hold.
    #[default]
    Hold,
    /// The chains go on. What the storage misses waits in its backlog and is saved later.
    Defer,
}

impl OnOutage {
    /// The word in `config.yml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Defer => "defer",
        }
    }

    /// Reads it from the keys of a storage.
    pub(super) fn read(keys: &mut Options) -> Self {
        let known = [Self::Hold, Self::Defer];
        let word = keys.word_or(KEY, Self::default().as_str(), &known.map(Self::as_str));
        let meant = known.into_iter().find(|it| Some(it.as_str()) == word);
        meant.unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_of_plan {
    use super::*;

    #[test]
    fn a_plan_has_the_routes_of_links() {
        let text = "\
links:
  router: {module: links.tag_router, options: {tag_routes: {a: one, b: two, c: '${ELSEWHERE}'}}}
  broken: {module: links.tag_router, options: 7}
  other: {module: links.tag, options: {tag_routes: {a: three}}}
chains: {main: {links: [router], ingress_lists: [in]}}
";
        let plan = Plan::parse(text, Path::new("config.yml")).unwrap();
        let routes = plan.routes.iter().map(ListName::as_str);
        assert_eq!(routes.collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn a_plan_knows_which_storages_defer() {
        let text = "\
storages:
  pg: {module: storage.postgres, on_outage: defer, options: {password_file: /none/there}}
  s3: {module: storage.s3, on_outage: hold}
  file: {module: storage.file}
  odd: {on_outage: later}
chains: {main: {storages: [pg, s3, file, odd], ingress_lists: [in]}}
";
        let plan = Plan::parse(text, Path::new("config.yml")).unwrap();
        assert_eq!(plan.deferring, ["pg"]);
    }

    #[test]
    fn a_plan_needs_no_values_from_elsewhere() {
        let text = "\
links: {tagger: {module: links.tag, options: {tags: ['${CONSERVER_NOT_SET}']}}}
storages: {pg: {module: storage.postgres, options: {password_file: /none/there}}, s3: {}}
chains:
  main: {links: [tagger], storages: [s3, pg], ingress_lists: [a, b]}
  spare: {ingress_lists: [c], enabled: 0}
";
        let plan = Plan::parse(text, Path::new("config.yml")).unwrap();
        assert_eq!(
            (plan.links, plan.storages),
            (
                vec!["tagger".to_owned()],
                vec!["pg".to_owned(), "s3".to_owned()]
            )
        );
        assert_eq!(plan.chains.len(), 2);
        let text = text.replace("storages: [s3, pg]", "storages: [s4]");
        let errors = Plan::parse(&text, Path::new("config.yml")).unwrap_err();
        assert!(
            errors.to_string().contains("storage `s4` is not defined"),
            "{errors}"
        );
    }
}
