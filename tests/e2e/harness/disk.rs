//! A disk of the test's own for `storage.file`: a small file system that only the daemon sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Conserver, Daemon, private_folder, program};

/// Mounts a file system of SIZE on FOLDER where only we see it, gives up root's right to pass over
/// permissions, and goes on as the program.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare --user --map-root-user --mount /bin/sh -c '
  mount -t tmpfs -o size=SIZE,mode=755 disk "FOLDER" &&
  exec setpriv --bounding-set -dac_override,-dac_read_search "PROGRAM" "$@"' sh "$@"
"#;

/// A file system in memory, as large as the test says, for one daemon.
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    pub fn new() -> Self {
        let folder = private_folder();
        fs::create_dir(folder.path().join("disk")).expect("a folder");
        Self { folder }
    }

    /// The program, which finds a fresh disk of this size (as in `64k`) when it starts.
    pub fn sized(&self, size: &str) -> PathBuf {
        let program = self.folder.path().join("conserver");
        let script = SCRIPT
            .replace("SIZE", size)
            .replace("FOLDER", &self.mounted().display().to_string())
            .replace("PROGRAM", env!("CARGO_BIN_EXE_conserver"));
        fs::write(&program, script).expect("a file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a file");
        program
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        json!({"module": "storage.file", "options": {"path": self.mounted()}})
    }

    /// Where the daemon sees the disk.
    pub fn mounted(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// The disk as the test sees it, through the daemon.
    pub fn seen_through(&self, daemon: &Daemon) -> PathBuf {
        let mounted = self.mounted();
        let below_root = mounted.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", daemon.pid())).join(below_root)
    }

    /// Runs a command of the shell where the disk is seen; `$DISK` is its folder.
    pub fn shell(&self, daemon: &Daemon, command: &str) {
        let output = Command::new(program("nsenter", &[]))
            .args(["--target", &daemon.pid().to_string()])
            .args(["--user", "--mount", "--preserve-credentials"])
            .args(["/bin/sh", "-c", command])
            .env("DISK", self.mounted())
            .output()
            .expect("nsenter");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
    }

    /// The program with this Redis and this storage, in one chain.
    pub fn conserver(&self, size: &str, redis: &super::Redis) -> Conserver {
        let config = super::chain(&[], &[("files", self.storage())]);
        Conserver::with(redis)
            .config(&config)
            .program(self.sized(size))
    }
}
