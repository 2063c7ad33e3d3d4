//! Whether the Python modules of a configuration can be used: asked of the interpreter, before the daemon
//! starts and before a changed configuration takes the place of one that works.

use std::collections::HashSet;
use std::path::Path;

use super::{Config, ConfigErrors, ConfigWarnings};
use crate::options::error::Fault;
use crate::python::{self, PythonModule};

/// What an interpreter says of a configuration's Python modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PythonFindings {
    /// What cannot be used, though something in service needs it.
    pub faults: Vec<Fault>,
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

    /// Asks the interpreter whether they can be used. This may take as long as `CONSERVER_PYTHON_TIMEOUT`.
    pub fn look_at_python(&self) -> PythonFindings {
        let modules = self.python_modules();
        let mut findings = PythonFindings::default();
        if !self.has_python() {
            return findings;
        }
        let asked: Vec<&PythonModule> = modules.iter().map(|(module, _)| *module).collect();
        let missing = match python::look(&self.python, &asked) {
            Ok(missing) => missing,
            Err(failure) => {
                let message = format!("Python modules cannot be used: {failure}");
                findings.faults.push(Fault::of_file(message));
                return findings;
            }
        };
        let settings = &self.python.settings;
        let path = self.python.folders().join(":");
        let mut named = HashSet::new();
        for (module, is_needed) in modules {
            let Some(found) = missing.iter().find(|it| it.module == module.module) else {
                continue;
            };
            let message = format!(
                "`{}` cannot be used: {} (looked for by {} in {path})",
                module.module, found.why, settings.interpreter
            );
            let fault = Fault::at(module.line, module.key.clone(), message);
            if is_needed {
                findings.faults.push(fault);
            } else {
                findings.warnings.push(fault);
            }
            let package = module.pip_name.as_ref().filter(|_| found.absent);
            if let Some(package) = package.filter(|it| named.insert(it.as_str())) {
                findings.packages.push(package.clone());
            }
        }
        findings
    }

    /// The same, as errors of the file.
    ///
    /// # Errors
    /// Something in service needs a module that cannot be used.
    pub fn check_python(&self, file: &Path) -> Result<ConfigWarnings, ConfigErrors> {
        let mut findings = self.look_at_python();
        if let Some(line) = findings.pip_line(&self.python.settings.interpreter) {
            let message = format!("to install what is missing: {line}");
            if findings.faults.is_empty() {
                findings.warnings.push(Fault::of_file(message));
            } else {
                findings.faults.push(Fault::of_file(message));
            }
        }
        let warnings = ConfigWarnings::new(file, findings.warnings);
        if findings.faults.is_empty() {
            Ok(warnings)
        } else {
            Err(ConfigErrors::new(file, findings.faults).with(warnings))
        }
    }
}

impl PythonFindings {
    /// The command that installs the packages that are missing.
    pub fn pip_line(&self, interpreter: &str) -> Option<String> {
        let quoted = |package: &String| format!("'{}'", package.replace('\'', r"'\''"));
        let packages: Vec<String> = self.packages.iter().map(quoted).collect();
        let command = || format!("{interpreter} -m pip install {}", packages.join(" "));
        (!packages.is_empty()).then(command)
    }
}
