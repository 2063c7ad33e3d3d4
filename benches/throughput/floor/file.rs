//! Write, sync, rename, and sync the directory once for all.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use super::super::servers::Servers;
use super::{Keeper, Taken};

pub struct File {
    folder: PathBuf,
    directory: fs::File,
}

impl File {
    pub fn open(servers: &Servers) -> Self {
        let folder = servers.day_folder();
        fs::create_dir_all(&folder).expect("a folder");
        let directory = fs::File::open(&folder).expect("a folder");
        Self { folder, directory }
    }
}

impl Keeper for File {
    fn keep(&mut self, vcons: &[Taken]) {
        for Taken { id, text } in vcons {
            let draft = self.folder.join(format!(".{id}.tmp"));
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .open(&draft)
                .expect("a file");
            file.write_all(text.as_bytes()).expect("a file");
            file.sync_all().expect("a file");
            fs::rename(&draft, self.folder.join(format!("{id}.json"))).expect("a file");
        }
        self.directory.sync_all().expect("a folder");
    }
}
