//! Programs and Python modules that links run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Daemon, PATIENCE, is_alive, private_folder, wait_until, zombies_of};

/// What a Python link needs of Redis, without any package: GET and SET over the address in
/// `REDIS_URL`, as JSON where the server keeps it so.
const REDIS: &str = r#"
import json, os, socket, urllib.parse

def ask(*words):
    url = urllib.parse.urlsplit(os.environ["REDIS_URL"])
    with socket.create_connection((url.hostname, url.port)) as server:
        reader = server.makefile("rb")
        if url.password:
            command(server, "AUTH", url.username, url.password)
            reply(reader)
        command(server, *words)
        return reply(reader)

def command(server, *words):
    parts = [word.encode() for word in words]
    head = b"*%d\r\n" % len(parts)
    server.sendall(head + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))

def reply(reader):
    line = reader.readline()
    if line[:1] == b"-":
        raise ValueError(line)
    if line[:1] != b"$":
        return line
    length = int(line[1:])
    return None if length < 0 else reader.read(length + 2)[:-2]

def load(uuid):
    text = ask("JSON.GET" if os.environ.get("JSON") else "GET", "vcon:" + uuid)
    return json.loads(text)

def save(uuid, vcon):
    text = json.dumps(vcon)
    if os.environ.get("JSON"):
        ask("JSON.SET", "vcon:" + uuid, "$", text)
    else:
        ask("SET", "vcon:" + uuid, text, "KEEPTTL")
"#;

/// A folder of programs and modules of one test.
pub struct Programs {
    folder: TempDir,
}

impl Programs {
    pub fn new() -> Self {
        let programs = Self {
            folder: private_folder(),
        };
        programs.write("store.py", REDIS);
        programs
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file of this name.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// A shell program of this name.
    pub fn shell(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file");
        path
    }

    /// A Python link of this name and text.
    pub fn python(&self, name: &str, text: &str, more: &Value) -> Value {
        self.write(&format!("{name}.py"), text);
        let mut options = json!({"module": name, "path": self.folder.path()});
        for (key, value) in more.as_object().expect("a mapping") {
            options[key] = value.clone();
        }
        json!({"module": "links.python", "options": options})
    }

    /// The processes that programs have written down in the file `pids`.
    pub fn pids(&self) -> Vec<i32> {
        let lines = self.lines("pids");
        let pid = |line: &String| line.parse().expect("a PID");
        lines.iter().map(pid).collect()
    }

    /// Waits until so many processes are written down.
    pub fn wait_for_pids(&self, count: usize) -> Vec<i32> {
        let what = format!("{count} processes have begun");
        wait_until(&what, PATIENCE, || self.pids().len() >= count);
        self.pids()
    }

    /// What has been written to the file of this name, a line at a time.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Has a shell program write its PID to the file `$PIDS`, and that of a child of its own, which
/// hears of no end.
pub const LINGERING: &str = r#"
sh -c 'trap "" HUP INT TERM; echo $$ >>"$PIDS"; exec sleep 1000' &
echo $$ >>"$PIDS"
"#;

/// A program as a link.
pub fn exec(options: &Value) -> Value {
    json!({"module": "links.exec", "options": options})
}

/// Waits until none of these processes runs.
pub fn wait_until_gone(pids: &[i32]) {
    let gone = || pids.iter().all(|pid| !is_alive(*pid));
    wait_until(&format!("{pids:?} are gone"), PATIENCE, gone);
}

/// Waits until no process of the daemon is left for its parent to collect.
pub fn wait_until_reaped(daemon: &Daemon) {
    wait_until("every process is reaped", PATIENCE, || {
        let family = daemon.family();
        family.iter().all(|pid| zombies_of(*pid).is_empty())
    });
}
