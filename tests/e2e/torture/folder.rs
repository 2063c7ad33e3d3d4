//! The folder of the storage that defers: a symbolic link, so that it is there or away at one instant.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::Files;

/// A folder that can be taken away and comes back with what is in it.
pub struct Folder {
    base: Files,
}

impl Folder {
    pub fn new() -> Self {
        let this = Self { base: Files::new() };
        fs::create_dir(this.path("files")).expect("a folder");
        this.put_back();
        this
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        json!({"module": "storage.file", "options": {"path": self.path("now")}})
    }

    /// A file is in its place.
    pub fn take_away(&self) {
        fs::write(self.path("next"), "no folder").expect("a file");
        self.swap();
    }

    /// It is there again.
    pub fn put_back(&self) {
        symlink(self.path("files"), self.path("next")).expect("a link");
        self.swap();
    }

    /// What is in it.
    pub fn files(&self) -> Files {
        Files::in_folder(&self.path("files"))
    }

    fn swap(&self) {
        fs::rename(self.path("next"), self.path("now")).expect("a new name");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.folder().join(name)
    }
}
