//! From the tree of `config.yml` to [`Config`]: every section read, every fault kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;

use super::environment::Environment;
use super::error::{Fault, did_you_mean, listed};
use super::options::{Lone, Options};
use super::yaml::{Entry, Kind, Mapping, Node, joined};
use super::{Chain, Config, Follower, ListName, ModuleConfig, OnOutage, Open, Plan, followers};
use crate::{link, storage};

/// The keys at the top of the file.
const SECTIONS: [&str; 7] = [
    "links",
    "storages",
    "chains",
    "tracers",
    "followers",
    "imports",
    "ingress_auth",
];

/// The module whose links have routes.
const ROUTER: &str = "links.tag_router";

/// The sections of the existing daemon that have no counterpart here, with what to do instead.
const NOT_RUN: [(&str, &str); 2] = [
    (
        "tracers",
        "tracers are not run: what they do can be a link of the chain, as links.exec or links.python",
    ),
    (
        "imports",
        "nothing is imported or installed at the start: name the folders of Python modules by the option `path` of each links.python",
    ),
];

/// Reads the document; the configuration is whole only where there are no faults.
pub(super) fn config(
    document: Option<Node>,
    links: &[link::Module],
    storages: &[storage::Module],
    environment: &Arc<Environment>,
) -> (Config, Vec<Fault>) {
    let mut faults = Vec::new();
    let sections = top(document, &mut faults);
    for (name, instead) in NOT_RUN {
        not_run(name, instead, sections.get(name), &mut faults);
    }
    let links = Modules {
        section: "links",
        known: links.iter().map(|row| (row.name, row.open)).collect(),
        routes: |link| link.routes(),
        on_outage: |_| OnOutage::Hold,
        hint: |module| {
            format!(
                "; to run a Python link of yours, say module: links.python with options: {{module: {module}}}"
            )
        },
        not_built_in: &[],
        environment,
    };
    let storages = Modules {
        section: "storages",
        known: storages.iter().map(|row| (row.name, row.open)).collect(),
        routes: |_| Vec::new(),
        on_outage: OnOutage::read,
        hint: |_| String::new(),
        not_built_in: storage::NOT_BUILT_IN,
        environment,
    };
    let config = Config {
        links: links.read(&sections, &mut faults),
        storages: storages.read(&sections, &mut faults),
        chains: chains(&sections, &mut faults),
        followers: followers::read(&sections, environment, &mut faults),
    };
    circles(&config, &sections, &mut faults);
    shared_letters(&config, &sections, &mut faults);
    (config, faults)
}

/// Reads the chains alone, and the names of links and storages.
pub(super) fn plan(document: Option<Node>) -> (Plan, Vec<Fault>) {
    let mut faults = Vec::new();
    let sections = top(document, &mut faults);
    let mut names = |section| -> Vec<String> {
        let entries = entries(&sections, section, &mut faults).into_iter();
        entries.map(|(name, ..)| name.to_owned()).collect()
    };
    let plan = Plan {
        links: names("links"),
        storages: names("storages"),
        deferring: deferring(&sections),
        chains: chains(&sections, &mut faults),
        routes: routes(&sections),
    };
    (plan, faults)
}

/// Reads the followers alone.
pub(super) fn followers(
    document: Option<Node>,
    environment: &Arc<Environment>,
) -> (Vec<Follower>, Vec<Fault>) {
    let mut faults = Vec::new();
    let sections = top(document, &mut faults);
    let followers = followers::read(&sections, environment, &mut faults);
    (followers, faults)
}

/// The lists that links may announce vCons on, as far as they stand in the file itself.
fn routes(sections: &Mapping) -> Vec<ListName> {
    let router = link::MODULES.iter().find(|row| row.name == ROUTER);
    // Whatever is wrong with a link is for those who read its options.
    let entries = entries(sections, "links", &mut Vec::new());
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
    let entries = entries(sections, "storages", &mut Vec::new()).into_iter();
    let defers = |(name, path, entry): (&str, String, &Entry)| {
        let mut keys = Options::new(&path, "key", entry.line, &entry.value);
        (OnOutage::read(&mut keys) == OnOutage::Defer).then(|| name.to_owned())
    };
    entries.filter_map(defers).collect()
}

/// The top of the file, as a mapping of known sections.
fn top(document: Option<Node>, faults: &mut Vec<Fault>) -> Mapping {
    let needs = "a configuration needs `chains:`, and the `links:` and `storages:` they name";
    let sections = match document.map(|node| (node.line, node.kind)) {
        None => {
            faults.push(Fault::of_file(format!("is empty; {needs}")));
            return Mapping::new();
        }
        Some((_, Kind::Mapping(sections))) => sections,
        Some((line, other)) => {
            let message = format!("is {}, not a mapping; {needs}", other.described());
            faults.push(Fault::at(line, "", message));
            return Mapping::new();
        }
    };
    for (name, entry) in &sections {
        if !SECTIONS.contains(&name.as_str()) {
            let message = format!(
                "unknown section (known: {}){}",
                listed(SECTIONS),
                did_you_mean(name, SECTIONS)
            );
            faults.push(Fault::at(entry.line, name, message));
        }
    }
    match sections.get("chains") {
        None => faults.push(Fault::of_file(format!("has no `chains:`; {needs}"))),
        Some(entry) if matches!(entry.value.kind, Kind::Null) => {
            faults.push(Fault::at(entry.line, "chains", "names no chain"));
        }
        Some(_) => {}
    }
    sections
}

fn not_run(name: &str, instead: &str, entry: Option<&Entry>, faults: &mut Vec<Fault>) {
    let Some(entry) = entry else { return };
    let is_empty = match &entry.value.kind {
        Kind::Null => true,
        Kind::Scalar(_) => false,
        Kind::Sequence(items) => items.is_empty(),
        Kind::Mapping(entries) => entries.is_empty(),
    };
    if !is_empty {
        let message = format!("{instead}; remove the section");
        faults.push(Fault::at(entry.line, name, message));
    }
}

/// The entries of a section with their paths; none where it is absent or not a mapping.
pub(super) fn entries<'a>(
    sections: &'a Mapping,
    section: &str,
    faults: &mut Vec<Fault>,
) -> Vec<(&'a str, String, &'a Entry)> {
    let Some(entry) = sections.get(section) else {
        return Vec::new();
    };
    match &entry.value.kind {
        Kind::Null => Vec::new(),
        Kind::Mapping(entries) => entries
            .iter()
            .map(|(name, entry)| (name.as_str(), joined(section, name), entry))
            .collect(),
        other => {
            let message = format!("is {}, not a mapping", other.described());
            faults.push(Fault::at(entry.line, section, message));
            Vec::new()
        }
    }
}

/// A section of modules, `links` or `storages`, and what its entries can be made of.
struct Modules<'a, T: ?Sized> {
    section: &'static str,
    known: Vec<(&'static str, Open<T>)>,
    /// The lists on which an opened one may announce vCons.
    routes: fn(&T) -> Vec<ListName>,
    /// Reads the key that only storages have.
    on_outage: fn(&mut Options) -> OnOutage,
    hint: fn(&str) -> String,
    /// Modules that are known, with why there is none of them.
    not_built_in: &'static [(&'static str, &'static str)],
    environment: &'a Arc<Environment>,
}

impl<T: ?Sized> Modules<'_, T> {
    fn read(
        &self,
        sections: &Mapping,
        faults: &mut Vec<Fault>,
    ) -> IndexMap<String, ModuleConfig<T>> {
        let mut modules = IndexMap::new();
        for (name, path, entry) in entries(sections, self.section, faults) {
            if let Some(module) = self.module(name, &path, entry, faults) {
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
        faults: &mut Vec<Fault>,
    ) -> Option<ModuleConfig<T>> {
        let mut keys = Options::new(path, "key", entry.line, &entry.value);
        let module = keys.required_string("module");
        let options = keys.node("options");
        let on_outage = (self.on_outage)(&mut keys);
        // The package a Python module comes from.
        keys.node("pip_name");
        keys.finish();

        let row = self.known.iter().find(|(known, _)| *known == module);
        if row.is_none() && !module.is_empty() {
            keys.fault("module", self.missing(&module));
        }
        faults.append(&mut keys.into_faults());

        let (_, open) = row?;
        let (line, options) = options.unwrap_or((
            entry.line,
            Node {
                line: entry.line,
                kind: Kind::Null,
                plain: false,
            },
        ));
        let path = joined(path, "options");
        let options = Options::new(&path, "option", line, &options);
        let mut options = options.filled_from(self.environment);
        let routes = (self.routes)(&*open(&mut options));
        options.finish();
        let looked_up = self.environment.take_looked_up().into();
        let (options, mut found) = options.into_parts();
        faults.append(&mut found);
        Some(ModuleConfig {
            name: name.to_owned(),
            module,
            path,
            line,
            options,
            open: *open,
            looked_up,
            routes,
            on_outage,
        })
    }

    /// Why there is no such module.
    fn missing(&self, module: &str) -> String {
        let mut not_built_in = self.not_built_in.iter();
        if let Some((_, why)) = not_built_in.find(|(name, _)| *name == module) {
            return format!("`{module}` is not built in: {why}");
        }
        let known = self.known.iter().map(|(known, _)| *known);
        let shown: String = module.chars().take(80).collect();
        format!(
            "`{shown}` is not a module of this version (known: {}){}{}",
            listed(known.clone()),
            did_you_mean(module, known),
            (self.hint)(&shown)
        )
    }
}

fn chains(sections: &Mapping, faults: &mut Vec<Fault>) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut taken = HashMap::new();
    for (name, path, entry) in entries(sections, "chains", faults) {
        let mut keys = Options::new(&path, "key", entry.line, &entry.value);
        let links = defined(&mut keys, "links", "link", sections);
        let storages = defined(&mut keys, "storages", "storage", sections);
        let ingress_lists = list_names(&mut keys, "ingress_lists");
        let egress_lists = list_names(&mut keys, "egress_lists");
        let enabled = keys.bool_or("enabled", true);
        let timeout = keys.seconds_or("timeout", 0.0);
        if enabled {
            for (line, list) in &ingress_lists {
                claim(&mut taken, &mut keys, name, *line, list);
            }
        }
        keys.finish();
        faults.append(&mut keys.into_faults());
        chains.push(Chain {
            name: name.to_owned(),
            links,
            storages,
            ingress_lists: ingress_lists.into_iter().map(|(_, list)| list).collect(),
            egress_lists: egress_lists.into_iter().map(|(_, list)| list).collect(),
            enabled,
            timeout: (timeout > Duration::ZERO).then_some(timeout),
        });
    }
    chains
}

/// Records links that would put vCons back on a list that their own chain takes from.
fn circles(config: &Config, sections: &Mapping, faults: &mut Vec<Fault>) {
    // What is wrong with them has been recorded.
    for (name, path, entry) in entries(sections, "chains", &mut Vec::new()) {
        let chains = config.chains.iter().filter(|chain| chain.enabled);
        for chain in chains.filter(|chain| chain.name == name) {
            let links = chain.links.iter().filter_map(|link| config.links.get(link));
            for (link, list) in
                links.flat_map(|link| link.routes.iter().map(move |list| (link, list)))
            {
                if chain.ingress_lists.contains(list) {
                    let link = &link.name;
                    let message = format!(
                        "link `{link}` has a route to list `{list}`, which this chain takes from: \
                         a vCon would go round for ever; give it a list of another chain"
                    );
                    faults.push(Fault::at(entry.line, joined(&path, "links"), message));
                }
            }
        }
    }
}

/// Records ingress lists whose dead letter queue is that of a storage: `DLQ:storage:x` cannot be
/// both.
fn shared_letters(config: &Config, sections: &Mapping, faults: &mut Vec<Fault>) {
    for (name, path, entry) in entries(sections, "chains", &mut Vec::new()) {
        let chains = config.chains.iter().filter(|chain| chain.name == name);
        for list in chains.flat_map(|chain| &chain.ingress_lists) {
            let storage = list.as_str().strip_prefix("storage:");
            if let Some(storage) = storage.filter(|it| config.storages.contains_key(*it)) {
                let message = format!(
                    "list `{list}` and storage `{storage}` would share the dead letter queue \
                     `DLQ:{list}`; give one of them another name"
                );
                faults.push(Fault::at(
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
        Some(Kind::Mapping(entries)) => Some(entries),
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
