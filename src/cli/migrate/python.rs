//! The modules of a deployment that are not built in, and whether its interpreter has them.

use std::path::Path;

use super::environment::Variables;
use crate::config::{NamedModule, Outline, Section};
use crate::program::MissingModule;
use crate::python::{self, HostSetup, ModuleKind, PythonModule};
use crate::settings::PythonSettings;

/// The variable with the folders in which modules are looked for.
pub(super) const FOLDERS: &str = "CONSERVER_PYTHON_PATH";

/// The modules that are called before and after others if they are on the path.
const HOOKS: [&str; 2] = ["hook", "after_link_hook"];

/// What Python has of a deployment.
pub(super) struct PythonFindings {
    /// The modules that are not built in and cannot be used.
    missing: Vec<MissingEntry>,
    /// The modules of hooks that are on the path.
    pub hooks: Vec<&'static str>,
}

/// An entry whose module cannot be used.
struct MissingEntry {
    section: Section,
    name: String,
    why: String,
    /// Whether the module is not there at all.
    is_absent: bool,
}

impl PythonFindings {
    /// Asks the interpreter for the modules that the outline names, with the variables of the deployment.
    pub fn look(
        variables: &Variables,
        settings: &PythonSettings,
        config_file: &Path,
        outline: &Outline,
    ) -> Self {
        let named: Vec<&NamedModule> = needed(outline).collect();
        let absent = |why: &str, is_absent| {
            let entries = named.iter();
            entries
                .map(|module| MissingEntry::of(module, why, is_absent))
                .collect()
        };
        let hooks = HOOKS.into_iter().filter(|hook| has_file(settings, hook));
        let findings = |missing| Self {
            missing,
            hooks: hooks.collect(),
        };
        if named.is_empty() {
            return findings(Vec::new());
        }
        if !settings.is_set() {
            return findings(absent(&format!("{FOLDERS} is not set"), true));
        }
        let setup = HostSetup {
            settings: settings.clone(),
            config_file: config_file.to_owned(),
            imports: Vec::new(),
            secrets: variables.secrets(),
            variables: variables.of_file_alone(),
        };
        let modules: Vec<PythonModule> = named.iter().map(|module| python_module(module)).collect();
        let asked: Vec<&PythonModule> = modules.iter().collect();
        let missing = match python::look(&setup, &asked) {
            Ok(missing) => {
                let entries = named.iter().filter_map(|module| {
                    let found = missing.iter().find(|it| it.module == module.module)?;
                    let MissingModule { why, absent, .. } = found;
                    Some(MissingEntry::of(module, why, *absent))
                });
                entries.collect()
            }
            Err(failure) => absent(&failure.to_string(), false),
        };
        findings(missing)
    }

    /// Why an entry's module cannot be used; `None` if it can.
    pub fn missing(&self, module: &NamedModule) -> Option<&str> {
        self.entry(module).map(|it| it.why.as_str())
    }

    /// Whether to install its package could help.
    pub fn is_absent(&self, module: &NamedModule) -> bool {
        self.entry(module).is_some_and(|it| it.is_absent)
    }

    fn entry(&self, module: &NamedModule) -> Option<&MissingEntry> {
        let mut missing = self.missing.iter();
        missing.find(|it| it.section == module.section && it.name == module.name)
    }
}

impl MissingEntry {
    fn of(module: &NamedModule, why: &str, is_absent: bool) -> Self {
        Self {
            section: module.section,
            name: module.name.clone(),
            why: why.to_owned(),
            is_absent,
        }
    }
}

/// The entries whose modules are not built in, in the order in which a deployment loads them.
pub(super) fn needed(outline: &Outline) -> impl Iterator<Item = &NamedModule> {
    let order = [
        Section::Imports,
        Section::Tracers,
        Section::Links,
        Section::Storages,
    ];
    let of_section = |section| {
        let modules = outline.modules.iter();
        modules.filter(move |module| module.section == section && module.is_python())
    };
    order.into_iter().flat_map(of_section)
}

fn python_module(named: &NamedModule) -> PythonModule {
    PythonModule {
        module: named.module.clone(),
        kind: match named.section {
            Section::Links => ModuleKind::Link,
            Section::Storages => ModuleKind::Storage,
            Section::Tracers => ModuleKind::Tracer,
            Section::Imports => ModuleKind::Import,
        },
        entry: named.name.clone(),
        options: None,
        pip_name: named.package.clone(),
        timeout: None,
        key: String::new(),
        line: 0,
    }
}

fn has_file(settings: &PythonSettings, module: &str) -> bool {
    let mut folders = settings.path.iter();
    folders
        .any(|folder| folder.join(format!("{module}.py")).is_file() || folder.join(module).is_dir())
}
