//! From the tree of `config.yml` to [`Config`]: every section read, every fault kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;

use super::{
    Account, Budget, Chain, Config, ConfigWarnings, Follower, ListName, ModuleConfig, OnOutage,
    Open, OpenPython, Opener, Plan, Surroundings, Tracer, egress_lists, followers,
};
use super::{advice, budget};
use crate::options::error::{Fault, Findings, listed};
use crate::options::forms::OptionForms;
use crate::options::substitution::Environment;
use crate::options::yaml::{Entry, Mapping, Node, NodeKind, joined};
use crate::options::{Common, Lone, Options, scalars};
use crate::python::{HostSetup, ModuleKind, PythonModule};
use crate::secret::Secret;
use crate::settings::PythonSettings;
use crate::spelling::did_you_mean;
use crate::{link, storage};

/// The keys at the top of the file.
pub(super) const SECTIONS: [&str; 7] = [
    "links",
    "storages",
    "chains",
    "tracers",
    "followers",
    "imports",
    "ingress_auth",
];

/// What the names of sections begin with that only hold values for others to repeat.
pub(super) const OWN: &str = "x-";

/// Keys that the configurations of older deployments have in links.
const LISTS: [&str; 4] = [
    "ingress-lists",
    "egress-lists",
    "ingress_lists",
    "egress_lists",
];

/// The module whose links have routes.
const ROUTER: &str = "links.tag_router";

/// Reads the document; the configuration is whole only where there are no faults.
pub(super) fn config(
    document: Option<Node>,
    links: &[link::Module],
    storages: &[storage::Module],
    surroundings: &Surroundings,
) -> (Config, Findings) {
    let Surroundings {
        environment,
        python,
    } = surroundings;
    let mut findings = Findings::default();
    let sections = top(document, &mut findings);
    let links = Modules {
        section: "links",
        known: links.iter().map(|row| (row.name, row.open)).collect(),
        kind: ModuleKind::Link,
        open_python: |module, host| Box::new(link::PythonLink::new(module, host)),
        means_python: link::means_python,
        routes: |link| link.routes(),
        waits: |link| link.waits(),
        on_outage: |_| OnOutage::Hold,
        account: Account::Link,
        not_built_in: &[],
        environment,
        python,
    };
    let storages = Modules {
        section: "storages",
        known: storages.iter().map(|row| (row.name, row.open)).collect(),
        kind: ModuleKind::Storage,
        open_python: |module, host| Box::new(storage::PythonStorage::new(module, host)),
        means_python: |_, _| false,
        routes: |_| Vec::new(),
        waits: |_| Duration::ZERO,
        on_outage: OnOutage::read,
        account: Account::Storage,
        not_built_in: storage::NOT_BUILT_IN,
        environment,
        python,
    };
    let imports = PythonSection {
        section: "imports",
        kind: ModuleKind::Import,
        environment,
        python,
    };
    let tracers = PythonSection {
        section: "tracers",
        kind: ModuleKind::Tracer,
        ..imports
    };
    let (imports, mut secrets) = imports.read(&sections, &mut findings);
    let (tracers, of_tracers) = tracers.read(&sections, &mut findings);
    let (links, storages) = (
        links.read(&sections, &mut findings),
        storages.read(&sections, &mut findings),
    );
    let chains = chains(&sections, &mut findings);
    secrets.extend(of_tracers);
    secrets.extend(links.values().flat_map(|it| it.looked_up.iter().cloned()));
    secrets.extend(
        storages
            .values()
            .flat_map(|it| it.looked_up.iter().cloned()),
    );
    let setup = HostSetup {
        settings: python.clone(),
        imports,
        secrets,
        ..HostSetup::default()
    };
    let config = Config {
        links,
        storages,
        egress_lists: egress_lists(&chains, &routes(&sections)),
        chains,
        followers: followers::read(&sections, environment, &mut findings),
        tracers: tracers.into_iter().map(Tracer::of).collect(),
        python: Arc::new(setup),
        warnings: ConfigWarnings::default(),
    };
    let of_storages = budget::budgets_of(config.storages.values());
    let budgets = budget::budgets_of(config.links.values()).chain(of_storages);
    budget::compare(budgets, &mut findings);
    advice::on_chains(&config, &sections, &mut findings);
    shared_letters(&config, &sections, &mut findings);
    if !findings.missing.is_empty() {
        let missing = modules_missing(&findings.missing);
        findings.faults.push(missing);
    }
    (config, findings)
}

/// Says once for all modules how they are found.
fn modules_missing(missing: &[String]) -> Fault {
    let mut names: Vec<&String> = Vec::new();
    for name in missing {
        if !names.contains(&name) && names.len() < 100 {
            names.push(name);
        }
    }
    Fault::of_file(format!(
        "not built in: {}; to run the Python modules of an existing deployment, set \
         CONSERVER_PYTHON_PATH to the folders that hold them, separated by colons, as in \
         CONSERVER_PYTHON_PATH=/app/conserver:/app/common",
        listed(names)
    ))
}

/// Reads the chains alone, and the names of links and storages.
pub(super) fn plan(document: Option<Node>) -> (Plan, Findings) {
    let mut findings = Findings::default();
    let sections = top(document, &mut findings);
    let plan = plan_of(&sections, &mut findings);
    (plan, findings)
}

/// The same for a file whose top has been read.
pub(super) fn plan_of(sections: &Mapping, findings: &mut Findings) -> Plan {
    let mut names = |section| -> Vec<String> {
        let entries = entries(sections, section, findings).into_iter();
        entries.map(|(name, ..)| name.to_owned()).collect()
    };
    Plan {
        links: names("links"),
        storages: names("storages"),
        tracers: names("tracers"),
        deferring: deferring(sections),
        chains: chains(sections, findings),
        routes: routes(sections),
    }
}

/// Reads the followers alone.
pub(super) fn followers(
    document: Option<Node>,
    environment: &Arc<Environment>,
) -> (Vec<Follower>, Vec<Fault>) {
    let mut findings = Findings::default();
    let sections = top(document, &mut findings);
    let followers = followers::read(&sections, environment, &mut findings);
    (followers, findings.faults)
}

/// The lists that links may announce vCons on, as far as they stand in the file itself.
fn routes(sections: &Mapping) -> Vec<ListName> {
    let router = link::MODULES.iter().find(|row| row.name == ROUTER);
    // Whatever is wrong with a link is for those who read its options.
    let entries = entries(sections, "links", &mut Findings::default());
    let of_link = |(_, path, entry): (&str, String, &Entry)| {
        let mut keys = Options::new(&path, "key", entry.line, &entry.value);
        let is_router = keys.string("module").as_deref() == Some(ROUTER);
        let (line, options) = keys.node("options").filter(|_| is_router)?;
        let mut options = Options::new(&path, "option", line, &options);
        router.map(|row| (row.open)(&mut options).routes())
    };
    let routes = entries.into_iter().filter_map(of_link).flatten();
    routes
        .filter(|list| !list.as_str().contains("${"))
        .collect()
}

/// The names of the storages that defer.
fn deferring(sections: &Mapping) -> Vec<String> {
    // Whatever is wrong with a storage is for those who read its options.
    let entries = entries(sections, "storages", &mut Findings::default()).into_iter();
    let defers = |(name, path, entry): (&str, String, &Entry)| {
        let mut keys = Options::new(&path, "key", entry.line, &entry.value);
        (OnOutage::read(&mut keys) == OnOutage::Defer).then(|| name.to_owned())
    };
    entries.filter_map(defers).collect()
}

/// The top of the file, as a mapping of known sections.
pub(super) fn top(document: Option<Node>, findings: &mut Findings) -> Mapping {
    let needs = "a configuration needs `chains:`, and the `links:` and `storages:` they name";
    let sections = match document.map(|node| (node.line, node.kind)) {
        None => {
            findings
                .faults
                .push(Fault::of_file(format!("is empty; {needs}")));
            return Mapping::new();
        }
        Some((_, NodeKind::Mapping(sections))) => sections,
        Some((line, other)) => {
            let message = format!("is {}, not a mapping; {needs}", other.described());
            findings.faults.push(Fault::at(line, "", message));
            return Mapping::new();
        }
    };
    for (name, entry) in &sections {
        let is_own = name.starts_with(OWN) || entry.value.kind.is_empty();
        if !is_own && !SECTIONS.contains(&name.as_str()) {
            let message = format!(
                "unknown section has no effect (known: {}, and names that begin with {OWN}){}",
                listed(SECTIONS),
                did_you_mean(name, SECTIONS)
            );
            findings.warnings.push(Fault::at(entry.line, name, message));
        }
    }
    match sections.get("chains") {
        None => findings
            .faults
            .push(Fault::of_file(format!("has no `chains:`; {needs}"))),
        Some(entry) if matches!(entry.value.kind, NodeKind::Null) => {
            findings
                .faults
                .push(Fault::at(entry.line, "chains", "names no chain"));
        }
        Some(_) => {}
    }
    sections
}

/// The entries of a section with their paths; none where it is absent or not a mapping.
pub(super) fn entries<'a>(
    sections: &'a Mapping,
    section: &str,
    findings: &mut Findings,
) -> Vec<(&'a str, String, &'a Entry)> {
    let Some(entry) = sections.get(section) else {
        return Vec::new();
    };
    match &entry.value.kind {
        NodeKind::Mapping(entries) => entries
            .iter()
            .map(|(name, entry)| (name.as_str(), joined(section, name), entry))
            .collect(),
        empty if empty.is_empty() => Vec::new(),
        other => {
            let message = format!("is {}, not a mapping", other.described());
            findings
                .faults
                .push(Fault::at(entry.line, section, message));
            Vec::new()
        }
    }
}

/// A section of modules, `links` or `storages`, and what its entries can be made of.
struct Modules<'a, T: ?Sized> {
    section: &'static str,
    known: Vec<(&'static str, Open<T>)>,
    /// What a Python module in this section must have, and what it is opened by.
    kind: ModuleKind,
    open_python: OpenPython<T>,
    /// The lists on which an opened one may announce vCons.
    routes: fn(&T) -> Vec<ListName>,
    /// How long each run of an opened one waits at least.
    waits: fn(&T) -> Duration,
    /// Whether an entry with these options means the Python module, though one of its name is built in.
    means_python: fn(&str, &Mapping) -> bool,
    /// Reads the key that only storages have.
    on_outage: fn(&mut Options) -> OnOutage,
    /// Whose budget the `limit` of an entry is, unless it names an account.
    account: fn(String) -> Account,
    /// Modules that are known, with why there is none of them.
    not_built_in: &'static [(&'static str, &'static str)],
    environment: &'a Arc<Environment>,
    python: &'a PythonSettings,
}

impl<T: ?Sized> Modules<'_, T> {
    fn read(
        &self,
        sections: &Mapping,
        findings: &mut Findings,
    ) -> IndexMap<String, ModuleConfig<T>> {
        let mut modules = IndexMap::new();
        for (name, path, entry) in entries(sections, self.section, findings) {
            if let Some(module) = self.module(name, &path, entry, findings) {
                modules.insert(name.to_owned(), module);
            }
        }
        modules
    }

    fn module(
        &self,
        name: &str,
        path: &str,
        entry: &Entry,
        findings: &mut Findings,
    ) -> Option<ModuleConfig<T>> {
        let mut keys = Options::new(path, "key", entry.line, &entry.value);
        let ModuleKeys {
            module,
            options,
            on_outage,
            pip_name,
            native,
        } = ModuleKeys::read(&mut keys, self.on_outage);
        let limit = Budget::read(&mut keys, (self.account)(name.to_owned()), findings);
        let limit = limit.map(Arc::new);

        let row = self.known.iter().find(|(known, _)| *known == module);
        if row.is_some() && !native && !self.python.is_set() {
            let message =
                "takes the Python module of that name, and CONSERVER_PYTHON_PATH is not set";
            keys.fault("native", message);
        }
        let is_unknown = row.is_none();
        let nothing = Mapping::new();
        let mapping = match options.as_ref().map(|(_, node)| &node.kind) {
            Some(NodeKind::Mapping(options)) => options,
            _ => &nothing,
        };
        let means_python = (self.means_python)(&module, mapping);
        let in_python = !native || means_python && self.python.is_set();
        let row = row.filter(|_| !in_python);
        let is_python = row.is_none() && !module.is_empty() && self.python.is_set();
        let timeout = if is_python {
            time_limit(&mut keys)
        } else {
            if row.is_none() {
                // It is right as soon as there is a path.
                keys.node("timeout");
            }
            None
        };
        keys.finish();
        if is_unknown && !module.is_empty() && !is_python {
            keys.fault("module", self.missing(&module));
            findings.missing.push(shown(&module));
        }
        let line_of_module = keys.line_of("module");
        findings.take(&mut keys);
        let has_options = options.is_some();
        let (line, options) = options.unwrap_or((
            entry.line,
            Node {
                line: entry.line,
                kind: NodeKind::Null,
                plain: false,
            },
        ));
        let key_of_module = joined(path, "module");
        let path = joined(path, "options");
        let options = Options::new(&path, "option", line, &options);
        let mut options = options.filled_from(self.environment);
        if is_python {
            let json = options.all_as_json();
            findings.take(&mut options);
            let python = PythonModule {
                module: module.clone(),
                kind: self.kind,
                entry: name.to_owned(),
                options: has_options.then_some(json),
                pip_name,
                timeout,
                key: key_of_module,
                line: line_of_module,
            };
            return Some(ModuleConfig {
                name: name.to_owned(),
                module,
                path,
                line,
                options: Mapping::new(),
                opener: Opener::Python(Arc::new(python), self.open_python),
                host: Arc::default(),
                looked_up: self.environment.take_looked_up().into(),
                common: Common::default(),
                routes: Vec::new(),
                waits: Duration::ZERO,
                timeout,
                on_outage,
                limit,
            });
        }
        let (_, open) = row?;
        let opened = open(&mut options);
        let (routes, waits) = ((self.routes)(&*opened), (self.waits)(&*opened));
        options.finish();
        let timeout = options.time_given("timeout");
        let looked_up = self.environment.take_looked_up().into();
        findings.take(&mut options);
        Some(ModuleConfig {
            name: name.to_owned(),
            module,
            path,
            line,
            options: options.into_entries(),
            opener: Opener::BuiltIn(*open),
            host: Arc::default(),
            looked_up,
            common: Common::default(),
            routes,
            waits,
            timeout,
            on_outage,
            limit,
        })
    }

    /// Why there is no such module.
    fn missing(&self, module: &str) -> String {
        let mut not_built_in = self.not_built_in.iter();
        if let Some((_, why)) = not_built_in.find(|(name, _)| *name == module) {
            return format!("`{module}` is not built in: {why}");
        }
        let known = self.known.iter().map(|(known, _)| *known);
        format!(
            "`{}` is not built in (built in: {}){}",
            shown(module),
            listed(known.clone()),
            did_you_mean(module, known),
        )
    }
}

/// The keys of an entry of `links` or `storages`, but for `timeout`.
struct ModuleKeys {
    module: String,
    options: Option<(usize, Node)>,
    on_outage: OnOutage,
    pip_name: Option<String>,
    native: bool,
}

impl ModuleKeys {
    fn read(keys: &mut Options, on_outage: fn(&mut Options) -> OnOutage) -> Self {
        let read = Self {
            module: keys.required_string("module"),
            options: keys.options_of_module(),
            on_outage: on_outage(keys),
            pip_name: keys.string("pip_name"),
            native: keys.bool_or("native", true),
        };
        for lists in LISTS {
            keys.without_effect(lists, "lists belong to chains");
        }
        read
    }
}

/// What is asked of an entry of each section but `followers`, for the schema of the file.
pub(super) fn forms_of_entries() -> [(&'static str, OptionForms); 4] {
    let of_module = |on_outage: fn(&mut Options) -> OnOutage| {
        OptionForms::of(|keys| {
            ModuleKeys::read(keys, on_outage);
            keys.nested(budget::KEY, "key");
            time_limit(keys);
        })
    };
    let of_chain = |keys: &mut Options| {
        chain(
            "",
            keys,
            &Mapping::new(),
            &mut HashMap::new(),
            String::new(),
        );
    };
    [
        ("links", of_module(|_| OnOutage::Hold)),
        ("storages", of_module(OnOutage::read)),
        ("chains", OptionForms::of(of_chain)),
        (
            "tracers",
            OptionForms::of(|keys| drop(PythonKeys::read(keys))),
        ),
    ]
}

/// The beginning of a name, for a message.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// Reads how long one call of a Python module may take.
fn time_limit(keys: &mut Options) -> Option<Duration> {
    let given = keys.is_given("timeout");
    let limit = keys.seconds_or("timeout", 0.0);
    if given && limit.is_zero() {
        keys.fault("timeout", "must be more than 0");
    }
    (!limit.is_zero()).then_some(limit)
}

/// A section whose modules are Python modules of the existing deployment, and nothing else.
#[derive(Clone, Copy)]
struct PythonSection<'a> {
    section: &'static str,
    kind: ModuleKind,
    environment: &'a Arc<Environment>,
    python: &'a PythonSettings,
}

impl PythonSection<'_> {
    /// Returns the modules, and the values from variables and files, which are not to be shown.
    fn read(
        &self,
        sections: &Mapping,
        findings: &mut Findings,
    ) -> (Vec<PythonModule>, Vec<Secret>) {
        let mut modules = Vec::new();
        for (name, path, entry) in entries(sections, self.section, findings) {
            let module = self.module(name, path, entry, findings);
            if module.module.is_empty() {
                continue;
            }
            if self.python.is_set() {
                modules.push(module);
            } else {
                let name = shown(&module.module);
                let message = format!("`{name}` is not built in");
                let fault = Fault::at(module.line, module.key, message);
                findings.faults.push(fault);
                findings.missing.push(name);
            }
        }
        (modules, self.environment.take_looked_up())
    }

    fn module(
        &self,
        name: &str,
        path: String,
        entry: &Entry,
        findings: &mut Findings,
    ) -> PythonModule {
        let mut module = PythonModule {
            module: String::new(),
            kind: self.kind,
            entry: name.to_owned(),
            options: None,
            pip_name: None,
            timeout: None,
            key: path.clone(),
            line: entry.line,
        };
        if let NodeKind::Scalar(text) = &entry.value.kind {
            // An older form.
            text.trim().clone_into(&mut module.module);
            return module;
        }
        let mut keys = Options::new(&path, "key", entry.line, &entry.value);
        let read = PythonKeys::read(&mut keys);
        module.module = read.module;
        module.pip_name = read.pip_name;
        module.timeout = read.timeout;
        module.key = joined(&path, "module");
        module.line = keys.line_of("module");
        if let Some((line, options)) = read.options {
            let path = joined(&path, "options");
            let options = Options::new(&path, "option", line, &options);
            let mut options = options.filled_from(self.environment);
            module.options = Some(options.all_as_json());
            findings.take(&mut options);
        }
        keys.finish();
        findings.take(&mut keys);
        module
    }
}

/// The keys of an entry of `tracers` or `imports`.
struct PythonKeys {
    module: String,
    pip_name: Option<String>,
    timeout: Option<Duration>,
    options: Option<(usize, Node)>,
}

impl PythonKeys {
    fn read(keys: &mut Options) -> Self {
        Self {
            module: keys.required_string("module"),
            pip_name: keys.string("pip_name"),
            timeout: time_limit(keys),
            options: keys.options_of_module(),
        }
    }
}

impl Tracer {
    fn of(module: PythonModule) -> Self {
        let options = module.options.as_deref();
        let options = options.and_then(|text| serde_json::from_str(text).ok());
        let options: serde_json::Value = options.unwrap_or_default();
        let says = options.get("dlq_vcon_on_error");
        Self {
            fails_vcon: says.is_some_and(is_truthy),
            module: Arc::new(module),
        }
    }
}

/// Whether Python takes a value for true.
fn is_truthy(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn chains(sections: &Mapping, findings: &mut Findings) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut taken = HashMap::new();
    for (name, path, entry) in entries(sections, "chains", findings) {
        let mut keys = Options::new(&path, "key", entry.line, &entry.value);
        let details = details(name, entry);
        chains.push(chain(name, &mut keys, sections, &mut taken, details));
        keys.finish();
        findings.take(&mut keys);
    }
    chains
}

/// One chain. `taken` are the lists of the enabled chains before it.
fn chain(
    name: &str,
    keys: &mut Options,
    sections: &Mapping,
    taken: &mut HashMap<ListName, (String, usize)>,
    details: String,
) -> Chain {
    let links = defined(keys, "links", "link", sections);
    let storages = defined(keys, "storages", "storage", sections);
    let ingress_lists = list_names(keys, "ingress_lists");
    let ingress_lists = each_once(keys, ingress_lists);
    let egress_lists = list_names(keys, "egress_lists");
    let enabled = keys.bool_or("enabled", true);
    let timeout = keys.seconds_or("timeout", 0.0);
    if enabled {
        for (line, list) in &ingress_lists {
            claim(taken, keys, name, *line, list);
        }
    }
    keys.without_effect("tracers", "a tracer runs for all chains");
    Chain {
        name: name.to_owned(),
        links,
        storages,
        ingress_lists: ingress_lists.into_iter().map(|(_, list)| list).collect(),
        egress_lists: egress_lists.into_iter().map(|(_, list)| list).collect(),
        enabled,
        timeout: (timeout > Duration::ZERO).then_some(timeout),
        details,
    }
}

/// A chain's entry as JSON, with its name, if it does not say another.
fn details(name: &str, entry: &Entry) -> String {
    let NodeKind::Mapping(keys) = &entry.value.kind else {
        return "{}".to_owned();
    };
    let members = scalars::object(keys);
    // Writing a string to memory does not fail.
    let name = serde_json::to_string(name).unwrap_or_default();
    match members.strip_prefix('{') {
        Some("}") => format!("{{\"name\":{name}}}"),
        Some(_) if keys.contains_key("name") => members,
        Some(members) => format!("{{\"name\":{name},{members}"),
        None => members,
    }
}

/// Records ingress lists whose dead letter queue is that of a storage: `DLQ:storage:x` cannot be
/// both.
fn shared_letters(config: &Config, sections: &Mapping, findings: &mut Findings) {
    for (name, path, entry) in entries(sections, "chains", &mut Findings::default()) {
        let chains = config.chains.iter().filter(|chain| chain.name == name);
        for list in chains.flat_map(|chain| &chain.ingress_lists) {
            let storage = list.as_str().strip_prefix("storage:");
            if let Some(storage) = storage.filter(|it| config.storages.contains_key(*it)) {
                let message = format!(
                    "list `{list}` and storage `{storage}` would share the dead letter queue \
                     `DLQ:{list}`; give one of them another name"
                );
                findings.faults.push(Fault::at(
                    entry.line,
                    joined(&path, "ingress_lists"),
                    message,
                ));
            }
        }
    }
}

/// Records that `chain` takes from `list`, which no enabled chain before it may do.
fn claim(
    taken: &mut HashMap<ListName, (String, usize)>,
    keys: &mut Options,
    chain: &str,
    line: usize,
    list: &ListName,
) {
    match taken.get(list) {
        Some((other, before)) => {
            let message = format!(
                "list `{list}` of chain `{chain}` (line {line}) is already an ingress list of \
                 chain `{other}` (line {before})"
            );
            keys.fault_at(line, "ingress_lists", message);
        }
        None => {
            taken.insert(list.clone(), (chain.to_owned(), line));
        }
    }
}

/// The ingress lists without those that stand there again.
fn each_once(keys: &mut Options, lists: Vec<(usize, ListName)>) -> Vec<(usize, ListName)> {
    let mut seen = HashSet::new();
    let mut once = Vec::new();
    for (line, list) in lists {
        if seen.insert(list.clone()) {
            once.push((line, list));
        } else {
            let message = format!("list `{list}` stands here twice");
            keys.warn_at(line, "ingress_lists", message);
        }
    }
    once
}

fn list_names(keys: &mut Options, key: &str) -> Vec<(usize, ListName)> {
    let mut names = Vec::new();
    for (line, text) in keys.items(key, Lone::Refused) {
        match text.parse::<ListName>() {
            Ok(name) => names.push((line, name)),
            Err(error) => keys.fault_at(line, key, error.to_string()),
        }
    }
    names
}

/// The names of links or storages in a chain, each checked to be an entry of that section.
fn defined(keys: &mut Options, section: &str, noun: &str, sections: &Mapping) -> Vec<String> {
    let known = match sections.get(section).map(|entry| &entry.value.kind) {
        Some(NodeKind::Mapping(entries)) => Some(entries),
        _ => None,
    };
    let mut names = Vec::new();
    for (line, name) in keys.items(section, Lone::Refused) {
        if !known.is_some_and(|known| known.contains_key(&name)) {
            let message = format!(
                "{noun} `{name}` is not defined (defined: {})",
                listed(known.into_iter().flat_map(|known| known.keys()))
            );
            keys.fault_at(line, section, message);
        }
        names.push(name);
    }
    names
}
