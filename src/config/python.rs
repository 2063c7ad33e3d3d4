//! Whether the Python modules of a configuration can be used: asked of the interpreter, before the daemon
//! starts and before a changed configuration takes the place of one that works.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use indexmap::IndexSet;

use super::{Config, ConfigErrors, ConfigWarnings};
use crate::options::error::Fault;
use crate::program::MissingModule;
use crate::python::{self, Installer, PythonModule};

/// What an interpreter says of a configuration's Python modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PythonFindings {
    /// What cannot be used, though something in service needs it.
    pub faults: Vec<Fault>,
    /// The same, if `CONSERVER_PIP_INSTALL` has the package installed that may mend it.
    pub installable: Vec<(Fault, String)>,
    /// What cannot be used, and nothing needs.
    pub warnings: Vec<Fault>,
    /// The packages that would have to be installed, as `pip_name` names them, else the modules.
    pub packages: Vec<String>,
}

impl Config {
    /// The Python modules, in the order in which a deployment loads them; each with whether something
    /// in service needs it.
    pub fn python_modules(&self) -> Vec<(&PythonModule, bool)> {
        let in_service = || self.chains.iter().filter(|chain| chain.enabled);
        let needs_link = |name: &String| in_service().any(|chain| chain.links.contains(name));
        let needs_storage = |name: &String| in_service().any(|chain| chain.storages.contains(name));
        let imports = self.python.imports.iter().map(|module| (module, true));
        let links = self.links.iter().filter_map(|(name, link)| {
            let module = link.python()?;
            Some((&**module, needs_link(name)))
        });
        let storages = self.storages.iter().filter_map(|(name, storage)| {
            let module = storage.python()?;
            Some((&**module, needs_storage(name)))
        });
        let tracers = self.tracers.iter().map(|tracer| (&*tracer.module, true));
        imports
            .chain(tracers)
            .chain(links)
            .chain(storages)
            .collect()
    }

    /// Whether an interpreter must be asked before the configuration can be used.
    pub fn has_python(&self) -> bool {
        !self.python_modules().is_empty() || self.python.may_have_hooks()
    }

    /// The longest time that [`Config::prepare_python`] takes, without the start of processes.
    pub fn longest_python_check(&self) -> Duration {
        let settings = &self.python.settings;
        if settings.pip_install {
            // A look before, while and after it is installed, and the wait for another daemon that installs.
            settings.timeout * 3 + python::PIP_TIME_LIMIT * 2
        } else {
            settings.timeout
        }
    }

    /// Asks the interpreter whether they can be used. This may take as long as `CONSERVER_PYTHON_TIMEOUT`.
    pub fn look_at_python(&self) -> PythonFindings {
        let modules = self.python_modules();
        let mut findings = PythonFindings::default();
        for folder in self.python.settings.path.iter().filter(|it| !it.is_dir()) {
            let folder = folder.display();
            let message = format!("CONSERVER_PYTHON_PATH names {folder}, which is not a folder");
            findings.warnings.push(Fault::of_file(message));
        }
        if !self.has_python() {
            return findings;
        }
        let settings = &self.python.settings;
        let place = format!(
            "looked for by {} in {}",
            settings.interpreter,
            self.python.folders().join(":")
        );
        let asked: Vec<&PythonModule> = modules.iter().map(|(module, _)| *module).collect();
        let missing = match python::look(&self.python, &asked) {
            Ok(missing) => missing,
            Err(failure) => {
                let message = format!("Python modules cannot be used: {failure} ({place})");
                findings.faults.push(Fault::of_file(message));
                return findings;
            }
        };
        let mut named = HashSet::new();
        for (module, is_needed) in modules {
            let Some(found) = missing.iter().find(|it| it.module == module.module) else {
                continue;
            };
            let message = format!(
                "`{}` cannot be used: {} ({place})",
                module.module, found.why
            );
            let fault = Fault::at(module.line, module.key.clone(), message);
            let package = package_of(module, found);
            if !is_needed {
                findings.warnings.push(fault);
            } else if let Some(package) = package.filter(|_| settings.pip_install) {
                findings.installable.push((fault, package.to_owned()));
            } else {
                findings.faults.push(fault);
            }
            if let Some(package) = package.filter(|it| named.insert(*it)) {
                findings.packages.push(package.to_owned());
            }
        }
        findings
    }

    /// The same, as errors of the file. What the daemon installs at its start is none.
    ///
    /// # Errors
    /// Something in service needs a module that cannot be used.
    pub fn check_python(&self, file: &Path) -> Result<ConfigWarnings, ConfigErrors> {
        let mut findings = self.look_at_python();
        let installable = std::mem::take(&mut findings.installable).into_iter();
        findings
            .warnings
            .extend(installable.map(|(fault, _)| fault));
        let how = if self.python.settings.pip_install {
            "the start of the daemon installs what is missing"
        } else {
            "to install what is missing"
        };
        self.judged(findings, how, file)
    }

    /// [`Config::check_python`] for a daemon: first installs what is missing, if `CONSERVER_PIP_INSTALL` says so.
    ///
    /// # Errors
    /// Something in service needs a module that cannot be used.
    pub fn prepare_python(&self, file: &Path) -> Result<ConfigWarnings, ConfigErrors> {
        let mut findings = self.look_at_python();
        if !findings.installable.is_empty() {
            let installed = self.install_packages();
            findings = self.look_at_python();
            let installable = std::mem::take(&mut findings.installable).into_iter();
            findings.faults.extend(installable.map(|(fault, _)| fault));
            if let Err(why) = installed {
                findings.tell(format!("packages could not be installed: {why}"));
            }
        }
        self.judged(findings, "to install what is missing", file)
    }

    fn install_packages(&self) -> Result<(), String> {
        let installer = Installer::begin(&self.python)?;
        // Another daemon may have done it meanwhile.
        let installable = self.look_at_python().installable;
        let packages: IndexSet<String> = installable.into_iter().map(|(_, it)| it).collect();
        if packages.is_empty() {
            return Ok(());
        }
        installer.install(&packages)
    }

    fn judged(
        &self,
        mut findings: PythonFindings,
        how: &str,
        file: &Path,
    ) -> Result<ConfigWarnings, ConfigErrors> {
        if let Some(line) = findings.pip_line(&self.python.settings.interpreter) {
            findings.tell(format!("{how}: {line}"));
        }
        let warnings = ConfigWarnings::new(file, findings.warnings);
        if findings.faults.is_empty() {
            Ok(warnings)
        } else {
            Err(ConfigErrors::new(file, findings.faults).with(warnings))
        }
    }
}

/// The package that may mend this: the one that the file names, if anything was not found, else the one with the
/// module's own name, if that can be one.
pub fn package_of<'a>(module: &'a PythonModule, found: &MissingModule) -> Option<&'a str> {
    let lacks_something = found.absent || found.why.starts_with("ModuleNotFoundError:");
    match &module.pip_name {
        Some(package) => lacks_something.then_some(package),
        None => (found.absent && !module.module.contains('.')).then_some(&module.module),
    }
}

impl PythonFindings {
    /// The command that installs the packages that are missing.
    pub fn pip_line(&self, interpreter: &str) -> Option<String> {
        let line = || python::pip_line(interpreter, &self.packages);
        (!self.packages.is_empty()).then(line)
    }

    /// Adds what concerns the whole file, as a fault if there is one already.
    fn tell(&mut self, message: String) {
        let fault = Fault::of_file(message);
        if self.faults.is_empty() {
            self.warnings.push(fault);
        } else {
            self.faults.push(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::ModuleKind;

    #[test]
    fn a_package_is_known_for_what_was_not_found() {
        let absent = ("ModuleNotFoundError: No module named 'm'", true);
        let needs = ("ModuleNotFoundError: No module named 'other'", false);
        let broken = ("SyntaxError: invalid syntax", false);
        for (name, pip_name, (why, is_absent), expected) in [
            ("m", Some("p"), absent, Some("p")),
            ("m", Some("p"), needs, Some("p")),
            ("m", Some("p"), broken, None),
            ("m", None, absent, Some("m")),
            ("m", None, needs, None),
            ("links.m", None, absent, None),
            ("links.m", Some("p"), absent, Some("p")),
        ] {
            let module = PythonModule {
                module: name.to_owned(),
                kind: ModuleKind::Link,
                entry: String::new(),
                options: None,
                pip_name: pip_name.map(str::to_owned),
                timeout: None,
                key: String::new(),
                line: 1,
            };
            let found = MissingModule {
                module: name.to_owned(),
                why: why.to_owned(),
                absent: is_absent,
            };
            let package = package_of(&module, &found);
            assert_eq!(package, expected, "{name} {pip_name:?} {why}");
        }
    }
}
