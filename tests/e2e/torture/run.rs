//! What everyone who takes part in a run shares: its time, its seed, what happened, what is wrong.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use tempfile::TempDir;

/// What is done to the daemons and their servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    WorkerKilled,
    MonitorKilled,
    ForkserverKilled,
    SupervisorKilled,
    InstanceKilled,
    RedisKilled,
    PostgresKilled,
    PostgresStopped,
    InstanceStopped,
    Reload,
    WorkerFrozen,
    SupervisorFrozen,
    InstanceFrozen,
    ConnectionCut,
    AllConnectionsCut,
    ScriptsFlushed,
    FolderAway,
    LinkRefused,
    InstanceStarted,
}

impl Event {
    /// Whether a process was ended without a warning.
    pub fn is_kill(self) -> bool {
        self <= Self::PostgresKilled
    }

    /// As the ledger names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled => "workers killed",
            Self::MonitorKilled => "monitors killed",
            Self::ForkserverKilled => "forkservers killed",
            Self::SupervisorKilled => "supervisors killed",
            Self::InstanceKilled => "whole instances killed",
            Self::RedisKilled => "Redis killed",
            Self::PostgresKilled => "PostgreSQL crashed",
            Self::PostgresStopped => "PostgreSQL stopped",
            Self::InstanceStopped => "instances stopped (SIGTERM)",
            Self::Reload => "reloads (SIGHUP)",
            Self::WorkerFrozen => "workers frozen",
            Self::SupervisorFrozen => "supervisors frozen",
            Self::InstanceFrozen => "whole instances frozen",
            Self::ConnectionCut => "connections cut",
            Self::AllConnectionsCut => "all connections cut at once",
            Self::ScriptsFlushed => "scripts flushed",
            Self::FolderAway => "folder of a storage taken away",
            Self::LinkRefused => "server of a link refusing",
            Self::InstanceStarted => "instances started",
        }
    }
}

/// Something that must not be.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The vCon it is about, where it is about one.
    pub id: Option<String>,
    pub text: String,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Things happen.
    Torture,
    /// Nothing more happens; what was submitted is worked off.
    Calm,
    /// All is over.
    Over,
}

/// One run.
pub struct Run {
    pub seed: u64,
    pub time: Duration,
    started: Instant,
    stage: Mutex<Stage>,
    change: Condvar,
    tally: Mutex<BTreeMap<Event, usize>>,
    faults: Mutex<Vec<Fault>>,
    events: Mutex<File>,
    evidence: TempDir,
}

impl Run {
    /// Begins a run that is to take so long.
    pub fn begin(seed: u64, time: Duration) -> Self {
        let evidence = tempfile::Builder::new().prefix("torture").tempdir();
        let evidence = evidence.expect("a temporary folder");
        let events = File::create(evidence.path().join("events.log")).expect("a file");
        Self {
            seed,
            time,
            started: Instant::now(),
            stage: Mutex::new(Stage::Torture),
            change: Condvar::new(),
            tally: Mutex::default(),
            faults: Mutex::default(),
            events: Mutex::new(events),
            evidence,
        }
    }

    /// Random numbers for one of those who take part: the same for the same seed.
    pub fn random(&self, name: &str) -> fastrand::Rng {
        let mixed = name.bytes().fold(self.seed, |seed, byte| {
            (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        fastrand::Rng::with_seed(mixed)
    }

    /// How long the run has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits; ends early, and answers no, when nothing more is to happen.
    pub fn pause(&self, time: Duration) -> bool {
        let left = self.time.saturating_sub(self.elapsed());
        let stage = self.wait(time.min(left), Stage::Torture);
        stage == Stage::Torture && self.elapsed() < self.time
    }

    /// Waits; ends early, and answers no, when all is over.
    pub fn pause_to_the_end(&self, time: Duration) -> bool {
        self.wait(time, Stage::Calm) < Stage::Over
    }

    fn wait(&self, time: Duration, last: Stage) -> Stage {
        let stage = lock(&self.stage);
        let waited = self
            .change
            .wait_timeout_while(stage, time, |stage| *stage <= last);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn advance(&self, to: Stage) {
        let mut stage = lock(&self.stage);
        *stage = to.max(*stage);
        self.change.notify_all();
    }

    /// All is over as soon as the answer is dropped.
    pub fn ends_with(&self) -> impl Drop + '_ {
        struct End<'a>(&'a Run);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.advance(Stage::Over);
            }
        }
        End(self)
    }

    /// Something is done to `whom`.
    pub fn note(&self, whom: &str, event: Event, detail: &str) {
        *lock(&self.tally).entry(event).or_default() += 1;
        self.write(&format!("{whom}: {} {detail}", event.name()));
    }

    /// Something must not be: it is written down, and no more is done to anyone.
    pub fn fault(&self, text: impl Into<String>) {
        self.add(Fault {
            id: None,
            text: text.into(),
        });
    }

    /// The same, about one vCon.
    pub fn fault_of(&self, id: &str, text: impl Into<String>) {
        self.add(Fault {
            id: Some(id.to_owned()),
            text: text.into(),
        });
    }

    fn add(&self, fault: Fault) {
        self.write(&format!("FAULT: {}", fault.text));
        lock(&self.faults).push(fault);
        self.advance(Stage::Calm);
    }

    /// A line in the record of events, which has its times as the daemons' logs do.
    pub fn write(&self, line: &str) {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let _ = writeln!(lock(&self.events), "{now} {line}");
    }

    /// What was done so far, and how often.
    pub fn tally(&self) -> BTreeMap<Event, usize> {
        lock(&self.tally).clone()
    }

    /// How many processes were killed so far.
    pub fn kills(&self) -> usize {
        let tally = self.tally();
        let kills = tally.iter().filter(|(event, _)| event.is_kill());
        kills.map(|(_, count)| count).sum()
    }

    pub fn faults(&self) -> Vec<Fault> {
        lock(&self.faults).clone()
    }

    /// Adds to a file of the evidence.
    pub fn keep(&self, name: &str, text: &str) {
        let path = self.evidence.path().join(name);
        let file = File::options().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.expect("a file");
    }

    /// The text of a file of the evidence.
    pub fn kept(&self, name: &str) -> String {
        fs::read_to_string(self.evidence.path().join(name)).unwrap_or_default()
    }

    /// Keeps a folder's files, and those of its folders.
    pub fn keep_folder(&self, folder: &Path, name: &str) {
        copy(folder, &self.evidence.path().join(name));
    }

    /// Leaves the evidence where it is.
    pub fn leave_evidence(self) -> PathBuf {
        self.evidence.keep()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in from.read_dir().expect("a folder").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a file"));
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&path, &target);
        } else if kind.is_file() {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
