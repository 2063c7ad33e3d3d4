//! Programs that links run, the Python host among them: how they are started, talked to, limited and ended.
//!
//! A program gets a clean environment and a process group of its own. Nothing of that group
//! outlives the work it was started for: it is killed at the time limit, at the end of the work,
//! with the lane, and, by the `reaper`, with the worker.

mod process;
mod reaper;
mod stream;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

pub use process::Clock;
pub use reaper::{appoint as appoint_reaper, dismiss as dismiss_reaper, serve as serve_as_reaper};
pub use stream::{MissingModule, Reply, Stream, one_line};

use crate::deadline::Limit;
use crate::failure::Failure;
use crate::options::Options;
use crate::secret::Secret;
use crate::sys::{Account, End};
use process::Tail;
use process::{Process, Until};

/// What of the daemon's environment every program gets.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// Where programs are looked for when the daemon has no PATH itself.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The most bytes that a program puts out for one vCon: what one Redis string holds.
const MOST_OUTPUT: i64 = 512 << 20;

/// A program as the configuration describes it.
pub struct Program {
    argv: Vec<String>,
    name: String,
    environment: Vec<(OsString, OsString)>,
    /// The options say what HOME is.
    says_home: bool,
    secrets: Arc<[Secret]>,
    timeout: Duration,
    most_output: usize,
    /// The user it runs as, if not as the daemon's.
    user: Option<String>,
    /// That user, as soon as it has been asked for.
    found: OnceLock<Account>,
}

/// Why a program has not done its work, for whoever asked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramError {
    /// It could not do its work.
    Failed(Failure),
    /// It was killed at its own time limit. The failure is the vCon's, if nobody knows better.
    TimedOut(Failure),
    /// The worker drains.
    Interrupted,
}

impl From<Failure> for ProgramError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// For a probe, which asks for no vCon.
impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Failed(failure) | ProgramError::TimedOut(failure) => failure,
            ProgramError::Interrupted => Self::transient("interrupted"),
        }
    }
}

impl ProgramError {
    /// The same as no fault of the vCon, as it has met the program before that.
    pub fn before_the_vcon(self) -> Self {
        match self {
            Self::Failed(failure) | Self::TimedOut(failure) => {
                Failure::transient(failure.message).into()
            }
            Self::Interrupted => Self::Interrupted,
        }
    }
}

/// Why a program has not done its work.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// It took longer than this.
    TimedOut(Limit),
    /// The worker drains.
    Interrupted,
    /// It put out more than it may.
    TooMuch,
    /// It put out more than was asked for.
    Talkative,
    /// It runs, but has closed its standard output.
    Silent,
    /// It has ended before its answer, and had read something of what it was asked, or nothing.
    Ended { end: End, had_begun: bool },
}

impl Program {
    /// Reads the options `env`, `timeout`, `max_output` and `user`; what is wrong with them is recorded
    /// there. Messages call it `name`.
    pub fn open(options: &mut Options, argv: Vec<String>, name: &str) -> Self {
        let timeout = options.seconds_or("timeout", 60.0);
        if timeout.is_zero() {
            options.fault("timeout", "must be more than 0");
        }
        let most = options.integer_or("max_output", MOST_OUTPUT, 1..=i64::MAX);
        let variables = options.headers("env");
        if variables.iter().any(|(name, _)| !is_variable(name)) {
            options.fault("env", "a name is empty, or has a `=` or a NUL in it");
        }
        if variables
            .iter()
            .any(|(_, value)| value.reveal().contains('\0'))
        {
            options.fault("env", "a value has a NUL in it");
        }
        let mut environment: Vec<(OsString, OsString)> = Vec::new();
        for name in INHERITED {
            let value = env::var_os(name);
            let value = value.or_else(|| (name == "PATH").then(|| DEFAULT_PATH.into()));
            environment.extend(value.map(|value| (name.into(), value)));
        }
        let user = options.string("user");
        let says_home = variables.iter().any(|(name, _)| name == "HOME");
        let mut secrets = options.looked_up().to_vec();
        for (name, value) in variables {
            environment.retain(|(other, _)| *other != *name);
            environment.push((name.into(), value.reveal().into()));
            secrets.push(value);
        }
        Self {
            argv,
            name: name.to_owned(),
            environment,
            secrets: secrets.into(),
            timeout,
            most_output: usize::try_from(most).unwrap_or(usize::MAX),
            user,
            says_home,
            found: OnceLock::new(),
        }
    }

    /// A program with the whole environment of the daemon, and these variables besides. Messages call it
    /// `name`, and show none of the secrets.
    pub fn with_environment(
        argv: Vec<String>,
        name: &str,
        timeout: Duration,
        besides: &[(&str, OsString)],
        secrets: Vec<Secret>,
    ) -> Self {
        let is_kept = |name: &OsString| {
            let others = besides.iter().map(|(other, _)| other);
            others
                .chain(&crate::sys::NOT_FOR_CHILDREN)
                .all(|it| name != it)
        };
        let mut environment: Vec<(OsString, OsString)> =
            env::vars_os().filter(|(name, _)| is_kept(name)).collect();
        let besides = besides.iter();
        environment.extend(besides.map(|(name, value)| ((*name).into(), value.clone())));
        if !environment.iter().any(|(name, _)| name == "PATH") {
            environment.push(("PATH".into(), DEFAULT_PATH.into()));
        }
        Self {
            argv,
            name: name.to_owned(),
            environment,
            secrets: secrets.into(),
            timeout,
            most_output: usize::try_from(MOST_OUTPUT).unwrap_or(usize::MAX),
            user: None,
            says_home: true,
            found: OnceLock::new(),
        }
    }

    /// Hands on a variable of the daemon's own, where it has it and the options do not say another
    /// value. Those of `secrets` that are part of the value are never shown.
    pub fn hand_on(&mut self, variable: &str, secrets: impl FnOnce(&str) -> Vec<Secret>) {
        let is_given = self.environment.iter().any(|(name, _)| name == variable);
        let Some(value) = env::var_os(variable).filter(|_| !is_given) else {
            return;
        };
        let mut known = self.secrets.to_vec();
        known.extend(secrets(&value.to_string_lossy()));
        self.secrets = known.into();
        self.environment.push((variable.into(), value));
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn file(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    /// The longest time it may take over one vCon.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Starts it.
    ///
    /// # Errors
    /// The system cannot start it, which is not the vCon's fault.
    fn start(&self) -> Result<Process, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::transient(format!("could not start `{}`: {why}", self.file()))
        };
        let account = self.account().map_err(|why| failed(&why))?;
        // Held open until the program has begun.
        let watch = reaper::watch().map_err(|why| failed(&format!("no reaper: {why}")))?;
        let mut command = Command::new(self.file());
        command
            .args(self.argv.iter().skip(1))
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(account) = account {
            if !self.says_home && !account.is_own() {
                command.env("HOME", &account.home);
            }
            // First: a program is killed with its worker only if that is asked for afterwards.
            account.take_on(&mut command);
        }
        crate::sys::bind(&mut command, watch.as_ref());
        let child = command.spawn();
        drop((command, watch));
        let child = child.map_err(|why| {
            reaper::look_around();
            failed(&why)
        })?;
        let tail = Tail::new(self.name(), &self.secrets);
        Process::new(child, tail).map_err(|why| failed(&why))
    }

    /// Runs it once, with `input` as its standard input. Returns how it ended and its output.
    pub fn run(&self, input: &[u8], clock: &mut Clock<'_>) -> Result<Ran, ProgramError> {
        let mut process = self.start()?;
        match process.exchange(input, Until::End, self.most_output, clock) {
            Ok(output) => {
                let end = process.finish();
                Ok(Ran {
                    end,
                    output,
                    reason: process.tail().reason(),
                })
            }
            Err(trouble) => {
                process.finish();
                Err(self.fault(&trouble, &process))
            }
        }
    }

    /// The user it runs as, where that is another one than the daemon's.
    ///
    /// The system is asked at the first call, and until it knows the user. It may ask a server on the
    /// network (LDAP, sssd), without a limit: this is not for the reading of a configuration, nor for
    /// the supervisor.
    ///
    /// # Errors
    /// There is no such user, or this process may not run programs as that one.
    pub fn account(&self) -> Result<Option<&Account>, String> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        let account = match self.found.get() {
            Some(account) => account,
            None => {
                let account = Account::find(user)?;
                self.found.get_or_init(|| account)
            }
        };
        account.check().map(|()| Some(account))
    }

    /// Answers whether there is such a program, and it may be executed.
    pub fn check(&self) -> Result<(), Failure> {
        self.account().map_err(Failure::transient)?;
        let executable = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
        let name = self.file();
        let found = if name.contains('/') {
            executable(Path::new(name))
        } else {
            self.folders().any(|folder| executable(&folder.join(name)))
        };
        if found {
            return Ok(());
        }
        let message = format!("could not start `{name}`: there is no such program for this user");
        Err(Failure::transient(message))
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let path = self.environment.iter().find(|(name, _)| name == "PATH");
        path.into_iter()
            .flat_map(|(_, path)| env::split_paths(path))
    }

    /// Decides whether a trouble is the vCon's fault. Wrong output and the program's own time limit
    /// count as its fault. The end of the chain's `timeout` does not, nor does a program that died:
    /// anyone may have killed it.
    fn fault(&self, trouble: &Trouble, process: &Process) -> ProgramError {
        let (name, reason) = (self.name(), process.tail().reason());
        let permanent = |what: String| Failure::permanent(format!("`{name}` {what}")).into();
        match trouble {
            Trouble::Interrupted => ProgramError::Interrupted,
            Trouble::TimedOut(limit) if limit.is_the_chains() => {
                Failure::transient(format!("`{name}` gave no answer within {limit}{reason}")).into()
            }
            Trouble::TimedOut(limit) => {
                let seconds = limit.time().as_secs_f64();
                let what = format!("`{name}` was killed at its time limit of {seconds} s{reason}");
                ProgramError::TimedOut(Failure::permanent(what))
            }
            Trouble::TooMuch => permanent(format!(
                "put out more than {} bytes (max_output)",
                self.most_output
            )),
            Trouble::Talkative => permanent("put out more than one line as its answer".to_owned()),
            Trouble::Silent => permanent(format!("closed its standard output{reason}")),
            Trouble::Ended { end, had_begun } => {
                let message = format!("`{name}` ended without an answer, {end}{reason}");
                if *had_begun {
                    Failure::crashed(message).into()
                } else {
                    Failure::transient(message).into()
                }
            }
        }
    }
}

/// A program that has run to its end.
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// What it put out.
    pub output: Vec<u8>,
    /// What it said last on standard error, as the end of a sentence.
    pub reason: String,
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}
