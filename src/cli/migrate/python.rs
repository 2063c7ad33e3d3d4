//! The modules of a deployment that are not built in, and whether its interpreter has them.

use std::path::Path;

use super::environment::Variables;
use crate::config::{NamedModule, Outline, Section, package_of};
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
    /// The modules of hooks that are on the path, each with why it cannot be used.
    pub hooks: Vec<(&'static str, Option<String>)>,
    /// Whether an interpreter was asked.
    pub was_asked: bool,
}

/// An entry whose module cannot be used.
struct MissingEntry {
    section: Section,
    name: String,
    why: String,
    /// The package that may mend it.
    package: Option<String>,
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
        let hooks: Vec<&'static str> = HOOKS
            .into_iter()
            .filter(|hook| has_file(settings, hook))
            .collect();
        let mut findings = Self {
            missing: Vec::new(),
            hooks: hooks.iter().map(|hook| (*hook, None)).collect(),
            was_asked: false,
        };
        if named.is_empty() && hooks.is_empty() {
            return findings;
        }
        let modules: Vec<PythonModule> = named.iter().map(|module| python_module(module)).collect();
        if !settings.is_set() {
            let why = format!("{FOLDERS} is not set");
            let rows = named.iter().zip(&modules);
            findings.missing = rows
                .map(|(named, module)| {
                    let found = MissingModule {
                        module: named.module.clone(),
                        why: why.clone(),
                        absent: true,
                    };
                    MissingEntry::of(named, module, &found)
                })
                .collect();
            findings.name_no_packages_by_modules(&named);
            return findings;
        }
        let setup = HostSetup {
            settings: settings.clone(),
            config_file: config_file.to_owned(),
            imports: Vec::new(),
            secrets: variables.secrets(),
            variables: variables.of_file_alone(),
            without_hooks: true,
        };
        let of_hooks: Vec<PythonModule> = hooks.iter().map(|hook| hook_module(hook)).collect();
        let asked: Vec<&PythonModule> = modules.iter().chain(&of_hooks).collect();
        let missing = python::look(&setup, &asked).unwrap_or_else(|failure| {
            let failed = asked.iter().map(|module| MissingModule {
                module: module.module.clone(),
                why: failure.to_string(),
                absent: false,
            });
            failed.collect()
        });
        let found = |name: &str| missing.iter().find(|it| it.module == name);
        for (hook, why) in &mut findings.hooks {
            *why = found(hook).map(|it| it.why.clone());
        }
        let rows = named.iter().zip(&modules);
        let rows = rows.filter_map(|(named, module)| {
            Some(MissingEntry::of(named, module, found(&named.module)?))
        });
        findings.missing = rows.collect();
        if !settings.path.iter().all(|folder| folder.is_dir()) {
            findings.name_no_packages_by_modules(&named);
        }
        findings.was_asked = true;
        findings
    }

    /// Keeps the packages that the file names alone. Where folders are not there, a module is most likely in one of
    /// them, and a package of the same name is somebody else's.
    fn name_no_packages_by_modules(&mut self, named: &[&NamedModule]) {
        for entry in &mut self.missing {
            let is_it = |it: &&&NamedModule| it.section == entry.section && it.name == entry.name;
            let has_name = named
                .iter()
                .find(is_it)
                .is_some_and(|it| it.package.is_some());
            entry.package.take_if(|_| !has_name);
        }
    }

    /// Why an entry's module cannot be used; `None` if it can.
    pub fn missing(&self, module: &NamedModule) -> Option<&str> {
        self.entry(module).map(|it| it.why.as_str())
    }

    /// The package that may mend that.
    pub fn package(&self, module: &NamedModule) -> Option<&str> {
        self.entry(module)?.package.as_deref()
    }

    fn entry(&self, module: &NamedModule) -> Option<&MissingEntry> {
        let mut missing = self.missing.iter();
        missing.find(|it| it.section == module.section && it.name == module.name)
    }
}

impl MissingEntry {
    fn of(named: &NamedModule, module: &PythonModule, found: &MissingModule) -> Self {
        Self {
            section: named.section,
            name: named.name.clone(),
            why: found.why.clone(),
            package: package_of(module, found).map(str::to_owned),
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

fn hook_module(name: &str) -> PythonModule {
    PythonModule {
        module: name.to_owned(),
        kind: ModuleKind::Import,
        entry: name.to_owned(),
        options: None,
        pip_name: None,
        timeout: None,
        key: String::new(),
        line: 0,
    }
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
