//! Where Python modules are, and how they are run.

use std::env;
use std::ffi::OsString;
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
    /// Where they are installed.
    pub packages: Option<PathBuf>,
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
        let path = reader.raw("CONSERVER_PYTHON_PATH").unwrap_or_default();
        let folders = env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty());
        Self {
            path: folders.collect(),
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
            packages: packages(&|name| reader.raw(name)),
        }
    }

    /// Whether Python modules can be used at all.
    pub fn is_set(&self) -> bool {
        !self.path.is_empty()
    }

    /// The folders in which the interpreter looks for modules before all others, in order.
    pub fn folders(&self) -> Vec<String> {
        let folders = self.path.iter().chain(&self.packages);
        folders.map(|folder| folder.display().to_string()).collect()
    }
}

/// The folder for packages: below the state directory that systemd gives, else the user's.
fn packages(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let of_service = || {
        let folders = variable("STATE_DIRECTORY")?;
        env::split_paths(&folders).next()
    };
    let of_user = || match variable("XDG_STATE_HOME") {
        Some(folder) => Some(PathBuf::from(folder).join("conserver")),
        None => Some(PathBuf::from(variable("HOME")?).join(".local/state/conserver")),
    };
    let folder = of_service().or_else(of_user)?;
    folder.is_absolute().then(|| folder.join("python"))
}
