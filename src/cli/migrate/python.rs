//! The modules of a deployment that are not built in, and where Python has them.

use std::path::Path;

use super::environment::Variables;
use crate::config::{NamedModule, Outline, Section};

/// The variable with the folders in which modules are looked for.
pub(super) const FOLDERS: &str = "CONSERVER_PYTHON_PATH";

/// A module that is not built in.
pub(super) struct PythonModule {
    pub section: Section,
    /// The name of the entry.
    pub name: String,
    /// Why it cannot run; `None` if it can.
    pub missing: Option<String>,
}

/// All of them, in the order of the outline.
pub(super) fn modules(variables: &Variables, outline: &Outline) -> Vec<PythonModule> {
    let modules = outline.modules.iter();
    let modules = modules.filter(|module| !module.is_built_in() && !module.module.is_empty());
    modules
        .map(|module| PythonModule {
            section: module.section,
            name: module.name.clone(),
            missing: missing(variables, module),
        })
        .collect()
}

fn missing(variables: &Variables, module: &NamedModule) -> Option<String> {
    let Some(folders) = variables.text(FOLDERS) else {
        return Some(format!("{FOLDERS} is not set"));
    };
    let file = module.module.replace('.', "/");
    let is_in = |folder: &str| {
        let place = Path::new(folder).join(&file);
        place.with_extension("py").is_file() || place.join("__init__.py").is_file()
    };
    let found = folders.split(':').any(is_in);
    (!found).then(|| format!("not found in {folders}"))
}
