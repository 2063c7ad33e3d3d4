//! What a configuration file names, whether or not it can be used: for those who look at the file of another
//! worker.

use std::path::Path;

use super::read::{entries, plan_of, top};
use super::{ConfigErrors, Plan, source};
use crate::options::Options;
use crate::options::error::Findings;
use crate::options::yaml::{self, Entry, Mapping, Node, NodeKind};
use crate::{link, storage};

/// What a file names. Whatever is wrong with it is left to [`super::Config::load`].
#[derive(Debug, Clone, Default)]
pub struct Outline {
    /// The entries of `links`, `storages`, `tracers` and `imports`, in this order.
    pub modules: Vec<NamedModule>,
    /// The names of the followers.
    pub followers: Vec<String>,
    /// The chains, and the lists.
    pub plan: Plan,
    /// The variables that its text names as `${NAME}`.
    pub variables: Vec<String>,
}

/// A section whose entries name modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `links`
    Links,
    /// `storages`
    Storages,
    /// `tracers`
    Tracers,
    /// `imports`
    Imports,
}

/// One entry that names a module.
#[derive(Clone)]
pub struct NamedModule {
    /// Where it stands.
    pub section: Section,
    /// Its name.
    pub name: String,
    /// The module; empty if the entry names none.
    pub module: String,
    /// The package to install if Python does not have the module.
    pub package: Option<String>,
    /// Whether a built-in module of that name is taken.
    pub native: bool,
    options: Mapping,
}

impl Section {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Links, Self::Storages, Self::Tracers, Self::Imports];

    /// The key in the file.
    pub fn key(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Storages => "storages",
            Self::Tracers => "tracers",
            Self::Imports => "imports",
        }
    }

    /// What one of its entries is called.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Links => "link",
            Self::Storages => "storage",
            Self::Tracers => "tracer",
            Self::Imports => "import",
        }
    }
}

impl Outline {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is not YAML.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = source::read(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        Self::parse(&text, path)
    }

    /// Reads `text`, the content of the file at `path`.
    ///
    /// # Errors
    /// It is not YAML.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let document = yaml::parse(text).map_err(|faults| ConfigErrors::new(path, faults))?;
        let mut ignored = Findings::default();
        let sections = top(document, &mut ignored);
        let of_section = |section: Section| {
            let entries = entries(&sections, section.key(), &mut Findings::default());
            let read = move |(name, _, entry): (&str, String, &Entry)| {
                NamedModule::read(section, name, &entry.value)
            };
            entries.into_iter().map(read).collect::<Vec<_>>()
        };
        let followers = entries(&sections, "followers", &mut ignored);
        Ok(Self {
            modules: Section::ALL.into_iter().flat_map(of_section).collect(),
            followers: (followers.into_iter())
                .map(|(name, ..)| name.to_owned())
                .collect(),
            plan: plan_of(&sections, &mut ignored),
            variables: named_variables(text),
        })
    }

    /// Whether something in service needs the module.
    pub fn is_needed(&self, module: &NamedModule) -> bool {
        let chains = self.plan.chains.iter().filter(|chain| chain.enabled);
        let mut names = chains.map(|chain| chain.name.as_str());
        let is_for_all = matches!(module.section, Section::Tracers | Section::Imports);
        is_for_all || names.any(|name| self.chains_of(module).contains(&name))
    }

    /// The chains that name the module, those out of service among them.
    pub fn chains_of(&self, module: &NamedModule) -> Vec<&str> {
        let names_it = |chain: &&super::Chain| match module.section {
            Section::Links => chain.links.contains(&module.name),
            Section::Storages => chain.storages.contains(&module.name),
            // They count for every chain.
            Section::Tracers | Section::Imports => true,
        };
        let chains = self.plan.chains.iter().filter(names_it);
        chains.map(|chain| chain.name.as_str()).collect()
    }
}

impl NamedModule {
    fn read(section: Section, name: &str, node: &Node) -> Self {
        let mut module = Self {
            section,
            name: name.to_owned(),
            module: String::new(),
            package: None,
            native: true,
            options: Mapping::new(),
        };
        if let NodeKind::Scalar(text) = &node.kind {
            // An older form of an import.
            text.trim().clone_into(&mut module.module);
            return module;
        }
        let mut keys = Options::new(name, "key", node.line, node);
        module.module = keys.string("module").unwrap_or_default();
        module.package = keys.filled_string("pip_name");
        module.native = keys.bool_or("native", true);
        if let Some((_, options)) = keys.node("options")
            && let NodeKind::Mapping(options) = options.kind
        {
            module.options = options;
        }
        module
    }

    /// Whether it is one that is built in.
    pub fn is_built_in(&self) -> bool {
        let is_known = match self.section {
            Section::Links => link::MODULES.iter().any(|row| row.name == self.module),
            Section::Storages => storage::MODULES.iter().any(|row| row.name == self.module),
            Section::Tracers | Section::Imports => false,
        };
        let means_python =
            self.section == Section::Links && link::means_python(&self.module, &self.options);
        self.native && is_known && !means_python
    }

    /// Whether it is a module that Python has to have.
    pub fn is_python(&self) -> bool {
        !self.is_built_in() && !self.module.is_empty()
    }

    /// Whether the option is there and holds something.
    pub fn has_option(&self, key: &str) -> bool {
        let entry = self.options.get(key);
        entry.is_some_and(|entry| !entry.value.kind.is_empty())
    }

    /// The option, if it is a single value.
    pub fn option(&self, key: &str) -> Option<&str> {
        match &self.options.get(key)?.value.kind {
            NodeKind::Scalar(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// The single values in the option, if it is a mapping.
    pub fn values_in(&self, key: &str) -> Vec<String> {
        let Some(NodeKind::Mapping(entries)) = self.options.get(key).map(|it| &it.value.kind)
        else {
            return Vec::new();
        };
        let text = |entry: &Entry| match &entry.value.kind {
            NodeKind::Scalar(text) => Some(text.clone()),
            _ => None,
        };
        entries.values().filter_map(text).collect()
    }
}

/// The options may hold secrets.
impl std::fmt::Debug for NamedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedModule")
            .field("section", &self.section)
            .field("name", &self.name)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}

/// The names in `${NAME}`, each once.
fn named_variables(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for rest in text.split("${").skip(1) {
        let name = rest.split('}').next().unwrap_or_default();
        let is_name = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if is_name && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_with_faults_still_tells_what_it_names() {
        let text = "\
imports: {helper: {module: toothworks.helper, pip_name: toothworks}, older: visit_rating}
tracers: {audit: {module: tracers.jlinc}}
links:
  tag: {module: links.tag, options: {tags: 7, nothing: []}}
  own: {module: links.tag, native: false}
  far: {module: links.scitt, options: {key: '${OPENAI_API_KEY}${OPENAI_API_KEY}${2}'}}
  none: {}
storages: {mongo: {module: storage.mongo}, files: {module: storage.file}}
followers: {branch: {}}
chains:
  main: {links: [tag, gone], storages: [files], ingress_lists: [in]}
  old: {links: [tag], ingress_lists: [in], enabled: 0}
";
        let outline = Outline::parse(text, Path::new("config.yml")).unwrap();
        let shown: Vec<String> = (outline.modules.iter())
            .map(|it| {
                let built_in = if it.is_built_in() { "*" } else { "" };
                format!("{} {} {}{built_in}", it.section.noun(), it.name, it.module)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "link tag links.tag*",
                "link own links.tag",
                "link far links.scitt",
                "link none ",
                "storage mongo storage.mongo",
                "storage files storage.file*",
                "tracer audit tracers.jlinc",
                "import helper toothworks.helper",
                "import older visit_rating",
            ]
        );
        let tag = &outline.modules[0];
        assert_eq!(outline.chains_of(tag), ["main", "old"]);
        assert!(outline.chains_of(&outline.modules[1]).is_empty());
        assert!(tag.has_option("tags") && !tag.has_option("nothing"));
        assert_eq!(tag.option("tags"), Some("7"));
        assert_eq!(outline.modules[7].package.as_deref(), Some("toothworks"));
        assert_eq!(outline.followers, ["branch"]);
        assert_eq!(outline.variables, ["OPENAI_API_KEY"]);
        assert_eq!(outline.plan.chains.len(), 2);
    }

    #[test]
    fn a_file_that_is_no_mapping_names_nothing_and_one_that_is_not_yaml_is_refused() {
        let outline = Outline::parse("[a]", Path::new("config.yml")).unwrap();
        assert!(outline.modules.is_empty() && outline.plan.chains.is_empty());
        assert!(Outline::parse("a: [", Path::new("config.yml")).is_err());
    }

    proptest! {
        #[test]
        fn any_text_has_an_outline_or_is_refused(
            text in "(links|storages|chains|imports|tracers|followers|module|options|a|[:{}\\[\\],\n *&-]|\\$\\{){0,60}",
        ) {
            if let Ok(outline) = Outline::parse(&text, Path::new("config.yml")) {
                for module in &outline.modules {
                    let _ = (outline.chains_of(module), module.is_built_in(), module.values_in("a"));
                }
            }
        }
    }
}
