//! A folder for `storage.file`, and what is in it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::private_folder;

/// A folder of one test.
pub struct Files {
    folder: PathBuf,
    /// Removed with this, where the folder is ours.
    _own: Option<TempDir>,
}

impl Files {
    pub fn new() -> Self {
        let own = private_folder();
        Self {
            folder: own.path().to_owned(),
            _own: Some(own),
        }
    }

    /// What is in a folder that somebody else takes care of.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            _own: None,
        }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        json!({"module": "storage.file", "options": {"path": self.folder}})
    }

    /// Every file below the folder, except the hidden ones that a killed worker leaves half
    /// written.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut paths = self.with_hidden();
        let is_hidden = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with('.')
        };
        paths.retain(|path| !is_hidden(path));
        paths
    }

    /// Every file below the folder.
    pub fn with_hidden(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        collect(&self.folder, &mut paths);
        paths
    }

    /// Every file's id and document.
    pub fn documents(&self) -> Vec<(String, Value)> {
        let read = |path: &PathBuf| {
            let id = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(path).expect("a text file");
            let parsed = serde_json::from_str(&text);
            (
                id,
                parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            )
        };
        self.paths().iter().map(read).collect()
    }

    /// The text of one vCon's file.
    pub fn text(&self, id: &str) -> String {
        let name = format!("{id}.json");
        let path = self.paths().into_iter().find(|path| path.ends_with(&name));
        fs::read_to_string(path.unwrap_or_else(|| panic!("no file {name}"))).expect("a text file")
    }
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in folder.read_dir().expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, paths);
        } else {
            paths.push(path);
        }
    }
}

/// A folder for `storage.file` that is away: a file is in its place.
pub struct Blocked {
    path: PathBuf,
    _own: TempDir,
}

impl Blocked {
    pub fn new() -> Self {
        let own = private_folder();
        let path = own.path().join("blocked");
        fs::write(&path, "no folder").expect("a file");
        Self { path, _own: own }
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> (&'static str, Value) {
        let options = json!({"path": self.path});
        (
            "files",
            json!({"module": "storage.file", "options": options}),
        )
    }

    /// What is in it, once it is there.
    pub fn files(&self) -> Files {
        Files::in_folder(&self.path)
    }

    /// From now on it is there.
    pub fn free(&self) {
        fs::remove_file(&self.path).expect("a file");
    }
}
