//! Where Python modules are, and how they are run.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Reader;

/// The longest that a call of a Python module may be allowed to take, in seconds.
const LONGEST_CALL: u64 = 86_400;

/// What the environment says of Python modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonSettings {
    /// `CONSERVER_PYTHON_PATH`; without one, there are no Python modules.
    pub path: Vec<PathBuf>,
    /// `CONSERVER_PYTHON`: the interpreter.
    pub interpreter: String,
    /// `CONSERVER_PYTHON_TIMEOUT`: the longest time of one call, and of one import.
    pub timeout: Duration,
    /// `CONSERVER_PIP_INSTALL`: whether packages that are missing are installed at the start.
    pub pip_install: bool,
}

impl Default for PythonSettings {
    fn default() -> Self {
        Self::read(&mut Reader::new(&|_| None))
    }
}

impl PythonSettings {
    /// Reads the process's environment, whose faults [`Settings`](super::Settings) tells.
    pub fn from_env() -> Self {
        Self::read(&mut Reader::new(&|name| env::var_os(name)))
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            path: reader.parsed("CONSERVER_PYTHON_PATH", Vec::new(), |text| {
                Some(folders(text))
            }),
            interpreter: reader.parsed("CONSERVER_PYTHON", "python3".to_owned(), |text| {
                (!text.contains('\0')).then(|| text.to_owned())
            }),
            timeout: Duration::from_secs(reader.number(
                "CONSERVER_PYTHON_TIMEOUT",
                300,
                1,
                LONGEST_CALL,
            )),
            pip_install: reader.boolean("CONSERVER_PIP_INSTALL", false),
        }
    }

    /// Whether Python modules can be used at all.
    pub fn is_set(&self) -> bool {
        !self.path.is_empty()
    }
}

/// The folders of a path, without the empty ones, which would be the working directory.
fn folders(text: &str) -> Vec<PathBuf> {
    let folders = env::split_paths(text.trim());
    folders.filter(|it| !it.as_os_str().is_empty()).collect()
}
