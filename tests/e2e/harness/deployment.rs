//! A deployment's folders of Python modules (`tests/e2e/deployment`), and what these were called with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::{Redis, cached, private_folder, program};

/// A copy of the folders, for one test.
pub struct Deployment {
    folder: TempDir,
}

/// A call of a function of a module, as it saw it.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    /// The module and its function: `links.marks.run`.
    pub call: String,
    /// The arguments by position.
    pub arguments: Vec<Value>,
    /// The arguments by name.
    pub named: Value,
    /// The process it was in.
    pub pid: i32,
    /// Whether a storage found the document in Redis.
    pub found: Option<bool>,
    /// Which call of its process it is.
    pub count: Option<u64>,
}

impl Call {
    /// The vCon it is about: the first argument.
    pub fn id(&self) -> &str {
        let first = self.arguments.first().and_then(Value::as_str);
        first.unwrap_or_else(|| panic!("no UUID: {self:?}"))
    }
}

impl Deployment {
    pub fn new() -> Self {
        let folder = private_folder();
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/deployment");
        copy(&original, folder.path());
        Self { folder }
    }

    /// The folder of this deployment.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `CONSERVER_PYTHON_PATH` is for it, with hooks that do nothing.
    pub fn path(&self) -> String {
        self.path_of(&["common", "conserver", "practice"])
    }

    /// The same, with hooks that do something.
    pub fn path_with_hooks(&self) -> String {
        self.path_of(&["hooks", "common", "conserver", "practice"])
    }

    fn path_of(&self, folders: &[&str]) -> String {
        let folder = |name: &&str| self.folder().join(name);
        let libraries = std::iter::once(cached("python-libraries"));
        let folders: Vec<PathBuf> = folders.iter().map(folder).chain(libraries).collect();
        let path = std::env::join_paths(folders).expect("paths without a colon");
        path.into_string().expect("paths of text")
    }

    /// Writes a module of the test's own, `name` being its file, into the last folder but one of the
    /// path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join("practice").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let draft = path.with_extension("draft");
        fs::write(&draft, text).expect("a file");
        fs::rename(&draft, &path).expect("a file");
        path
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in from.read_dir().expect("a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            fs::create_dir(&to).expect("a folder");
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("a file");
        }
    }
}

impl Redis {
    /// All calls of modules of a deployment so far, in their order.
    pub fn calls(&self) -> Vec<Call> {
        let parse = |text: &String| {
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        self.list("calls").iter().map(parse).collect()
    }

    /// The calls about each vCon, in their order.
    pub fn calls_by_vcon(&self) -> BTreeMap<String, Vec<Call>> {
        let mut all: BTreeMap<String, Vec<Call>> = BTreeMap::new();
        for call in self.calls() {
            if !call.call.ends_with(".import") {
                all.entry(call.id().to_owned()).or_default().push(call);
            }
        }
        all
    }
}

/// Runs Python code with the libraries of the tests; what it prints is JSON.
pub fn ask_python(code: &str, arguments: &[&str]) -> Value {
    let output = Command::new(program("python3", &[]))
        .env("PYTHONPATH", cached("python-libraries"))
        .args(["-c", code])
        .args(arguments)
        .output()
        .expect("python3");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|fault| panic!("{fault}: {error}"))
}
