//! The program under test, with a clean environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use serde_json::Value;
use tempfile::TempDir;

use super::{Daemon, Leashed, PATIENCE, Redis, private_folder, wait_until};

/// What of the test's own environment the program sees.
const INHERITED: &[&str] = &["PATH", "HOME", "LLVM_PROFILE_FILE"];

/// The program with its settings and its configuration file, not running yet.
pub struct Conserver {
    pub(super) folder: TempDir,
    pub(super) workers: usize,
    environment: BTreeMap<String, OsString>,
    program: PathBuf,
}

/// A command that has ended.
pub struct Finished {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// Everything it wrote.
    pub fn output(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Runs a command that has to end like this, and writes nothing that steers a terminal.
pub fn run(conserver: &Conserver, arguments: &[&str], code: i32) -> Finished {
    let finished = conserver.run(arguments);
    assert_eq!(finished.code, code, "{arguments:?}: {}", finished.output());
    assert!(
        finished.output().chars().all(is_fit),
        "{:?}",
        finished.output()
    );
    finished
}

/// Whether a text for people may hold the character: it ends a line, or can be seen.
pub fn is_fit(c: char) -> bool {
    let unseen = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    c == '\n' || !c.is_control() && !unseen
}

/// Fails unless it wrote all of this.
pub fn said(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(
            finished.output().contains(word),
            "{word}: {}",
            finished.output()
        );
    }
}

impl Conserver {
    /// With this Redis, one worker and no configuration.
    pub fn with(redis: &Redis) -> Self {
        Self::without_redis().env("REDIS_URL", redis.url())
    }

    /// With the default Redis, which is taken to be away.
    pub fn without_redis() -> Self {
        let folder = private_folder();
        let conserver = Self {
            folder,
            workers: 1,
            environment: BTreeMap::new(),
            program: env!("CARGO_BIN_EXE_conserver").into(),
        };
        let runtime = conserver.runtime_folder();
        // Whatever the umask: one that others can write to is refused.
        let private = fs::DirBuilder::new().mode(0o700).create(&runtime);
        private.expect("a folder");
        let temporary = conserver.folder.path().to_owned();
        conserver
            .env("RUNTIME_DIRECTORY", runtime)
            .env("TMPDIR", temporary)
            .env("CONSERVER_INSTANCE", "here")
            // Tests run side by side, and there is one default port.
            .env("CONSERVER_HTTP", "off")
    }

    /// With this `config.yml`: JSON is YAML.
    pub fn config(self, config: &Value) -> Self {
        let text = serde_json::to_string_pretty(config).expect("JSON");
        self.config_text(&text)
    }

    /// With this text as `config.yml`.
    pub fn config_text(self, text: &str) -> Self {
        self.rewrite_config(text);
        let path = self.config_file();
        self.env("CONSERVER_CONFIG_FILE", path)
    }

    pub(super) fn rewrite_config(&self, text: &str) {
        let path = self.config_file();
        let draft = path.with_extension("draft");
        fs::write(&draft, text).expect("a file");
        fs::rename(&draft, &path).expect("a file");
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.yml")
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Without this variable.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self.env("CONSERVER_WORKERS", workers.to_string())
    }

    /// vCons in flight in each worker.
    pub fn lanes(self, lanes: usize) -> Self {
        self.env("CONSERVER_VCON_CONCURRENCY", lanes.to_string())
    }

    /// How its workers are started.
    pub fn method(self, method: &str) -> Self {
        self.env("CONSERVER_START_METHOD", method)
    }

    /// Another file of the program than the one that was built.
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// The folder of its scoreboard.
    pub fn runtime_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The private folder it runs in, which is also its folder for temporary files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon, running, with all its workers started.
    pub fn start(self) -> Daemon {
        Daemon::start(self)
    }

    /// The daemon, just started.
    pub fn launch(self) -> Daemon {
        Daemon::launch(self)
    }

    /// Another daemon with the same settings, in the same folder.
    pub fn launch_again(&self) -> Daemon {
        self.again().launch()
    }

    /// The program with the same settings and files, of which this one must outlive it.
    pub fn again(&self) -> Self {
        Self {
            folder: private_folder(),
            workers: self.workers,
            environment: self.environment.clone(),
            program: self.program.clone(),
        }
    }

    /// Starts a command, for a test that does something to it.
    pub fn spawn(&self, arguments: &[&str]) -> Leashed {
        Leashed::spawn(&mut self.command(arguments, "spawned"))
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command(arguments, "command");
        if !self.environment.contains_key("COLUMNS") {
            // No line is broken, so that a test finds what it looks for.
            command.env("COLUMNS", "10000");
        }
        self.finish(command, arguments)
    }

    /// Runs a command to its end, with its standard output into a file.
    pub fn run_into(&self, arguments: &[&str], output: fs::File) -> Finished {
        let mut command = self.command(arguments, "command");
        command.stdout(output);
        self.finish(command, arguments)
    }

    /// Runs a command to its end, with `input` typed at a terminal that is its standard input.
    pub fn run_on_terminal(&self, arguments: &[&str], input: &str) -> Finished {
        let terminal = openpty(None, None).expect("a terminal");
        let mut keyboard = fs::File::from(terminal.master);
        keyboard.write_all(input.as_bytes()).expect("a terminal");
        let mut command = self.command(arguments, "command");
        command.stdin(terminal.slave);
        self.finish(command, arguments)
    }

    fn finish(&self, mut command: Command, arguments: &[&str]) -> Finished {
        let start = Instant::now();
        let mut child = command.spawn().expect("the program");
        let mut status = None;
        wait_until(
            &format!("conserver {arguments:?} ends"),
            PATIENCE * 2,
            || {
                status = child.try_wait().expect("a child");
                if status.is_none() && start.elapsed() > PATIENCE {
                    let _ = child.kill();
                }
                status.is_some()
            },
        );
        let read = |name: &str| {
            let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Finished {
            code: status.and_then(|status| status.code()).unwrap_or(-1),
            stdout: read("command.stdout"),
            stderr: read("command.stderr"),
            took: start.elapsed(),
        }
    }

    /// Runs a command to its end, with `input` as its standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Finished {
        let path = self.folder.path().join("stdin");
        fs::write(&path, input).expect("a file");
        self.run(arguments)
    }

    /// The command, with its output in files of this name in the private folder.
    pub(super) fn command(&self, arguments: &[&str], output: &str) -> Command {
        let file = |kind: &str| {
            let path = self.folder.path().join(format!("{output}.{kind}"));
            fs::File::create(path).expect("a file")
        };
        let input = fs::File::open(self.folder.path().join("stdin"));
        let mut command = Command::new(&self.program);
        let inherited = INHERITED
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)));
        command
            .args(arguments)
            .env_clear()
            .envs(inherited)
            .envs(&self.environment)
            .current_dir(self.folder.path())
            .stdin(input.map_or_else(|_| Stdio::null(), Stdio::from))
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .process_group(0);
        command
    }
}
