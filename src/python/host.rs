//! One interpreter, kept running for all Python modules of a lane.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use super::hooks::Hooks;
use super::{HostSetup, PythonModule};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::program::{Clock, MissingModule, ProgramError, Reply, Stream};

/// The host of a lane's Python modules. Its clones are the same host; one call is made at a time.
///
/// The interpreter ends with the last clone.
#[derive(Clone)]
pub struct Host {
    setup: Arc<HostSetup>,
    /// Holds the interpreter while nobody uses it: a lock that can be waited for with a limit.
    idle: (Sender<Box<Interpreter>>, Receiver<Box<Interpreter>>),
    drain: Option<HostDrain>,
}

/// What a storage's call knows of the worker's drain.
#[derive(Clone)]
struct HostDrain {
    /// The channel that is disconnected when the worker drains.
    channel: Receiver<()>,
    /// How long a call may go on then.
    time: Duration,
    /// When that is over, once a call has begun in the drain.
    end: Arc<OnceLock<Instant>>,
}

/// The process, and what it has loaded.
struct Interpreter {
    stream: Stream,
    /// The modules, each with the functions that a storage has.
    loaded: HashMap<String, Vec<String>>,
    hooks: Hooks,
}

/// The interpreter, in use by one call.
struct InUse<'a> {
    host: &'a Host,
    /// Nothing only while it is given back.
    interpreter: Option<Box<Interpreter>>,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        if let Some(mut interpreter) = self.interpreter.take() {
            if thread::panicking() {
                // It may still have an answer that nobody has read.
                interpreter.stream.end();
            }
            // There is one interpreter, and room for one.
            let _ = self.host.idle.0.try_send(interpreter);
        }
    }
}

impl Host {
    /// A host whose interpreter starts with the first call.
    pub fn new(setup: &Arc<HostSetup>) -> Self {
        let idle = bounded(1);
        let greeting = setup.greeting(&setup.imports);
        let interpreter = Interpreter {
            stream: Stream::new(setup.program(), Some(greeting)),
            loaded: HashMap::new(),
            hooks: Hooks::default(),
        };
        // It has room for one.
        let _ = idle.0.try_send(Box::new(interpreter));
        Self {
            setup: Arc::clone(setup),
            idle,
            drain: None,
        }
    }

    /// The same, whose storages give up some time after the worker has begun to drain.
    pub fn draining(self, drain: &Receiver<()>, time: Duration) -> Self {
        let drain = Some(HostDrain {
            channel: drain.clone(),
            time,
            end: Arc::default(),
        });
        Self { drain, ..self }
    }

    /// The clock of a call of a storage, which takes `own` at most, or what is left until the deadline.
    pub fn storage_clock(&self, own: Duration, deadline: Deadline) -> Clock<'_> {
        let clock = Clock::new(deadline.begin(own));
        let Some(drain) = &self.drain else {
            return clock;
        };
        let time = match drain.channel.try_recv() {
            Err(TryRecvError::Disconnected) => {
                let end = drain.end.get_or_init(|| Instant::now() + drain.time);
                end.saturating_duration_since(Instant::now())
            }
            _ => drain.time,
        };
        clock.draining(&drain.channel, time, None)
    }

    /// The clock of a probe of a storage, which ends when the worker drains.
    pub fn probe_clock(&self, own: Duration) -> Clock<'_> {
        match &self.drain {
            Some(drain) => Clock::probing(own, &drain.channel),
            None => Clock::new(Deadline::NONE.begin(own)),
        }
    }

    /// Says when the time of the drain is over, if the lane knows that already.
    pub fn note_drain_end(&self, end: Option<Instant>) {
        if let (Some(drain), Some(end)) = (&self.drain, end) {
            drain.end.get_or_init(|| end);
        }
    }

    /// What it begins with.
    pub fn setup(&self) -> &Arc<HostSetup> {
        &self.setup
    }

    /// Starts the interpreter, if it does not run, and loads the imports. Returns the hooks that there are.
    ///
    /// # Errors
    /// It cannot begin, or an import fails: no fault of any vCon.
    pub fn begin(&self, clock: &mut Clock<'_>) -> Result<Hooks, ProgramError> {
        let mut used = self.take(clock)?;
        used.get()?.begin(clock)?;
        Ok(used.get()?.hooks)
    }

    /// Ends the interpreter, if nobody uses it; the next call starts another.
    pub fn end(&self) {
        if let Ok(mut interpreter) = self.idle.1.try_recv() {
            interpreter.stream.end();
            let _ = self.idle.0.try_send(interpreter);
        }
    }

    /// Makes sure that a module is loaded. Returns the functions of a storage.
    ///
    /// # Errors
    /// It cannot be: no fault of any vCon.
    pub fn load(
        &self,
        module: &PythonModule,
        clock: &mut Clock<'_>,
    ) -> Result<Vec<String>, ProgramError> {
        let mut used = self.take(clock)?;
        used.get()?.begin(clock)?;
        used.get()?.load(module, clock)
    }

    /// Makes one call, of a function of `module` if one is named, which is loaded before. What it takes to
    /// begin and to load is not the vCon's: `clock` is started anew for each of both and for the call.
    pub fn call<'a>(
        &self,
        module: Option<&PythonModule>,
        request: &str,
        clock: impl Fn() -> Clock<'a>,
    ) -> Result<Reply, ProgramError> {
        let mut used = self.take(&clock())?;
        let interpreter = used.get()?;
        interpreter.begin(&mut clock())?;
        if let Some(module) = module {
            interpreter.load(module, &mut clock())?;
        }
        interpreter
            .stream
            .exchange(request.as_bytes(), &mut clock())
    }

    /// Waits until nobody else uses the interpreter.
    fn take(&self, clock: &Clock<'_>) -> Result<InUse<'_>, ProgramError> {
        let busy = || Failure::busy("the Python host of this lane is in use");
        match self.idle.1.recv_timeout(clock.left()) {
            Ok(interpreter) => Ok(InUse {
                host: self,
                interpreter: Some(interpreter),
            }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(busy().into()),
        }
    }
}

impl InUse<'_> {
    fn get(&mut self) -> Result<&mut Interpreter, ProgramError> {
        let gone = || Failure::transient("the Python host of this lane is gone");
        self.interpreter.as_deref_mut().ok_or_else(|| gone().into())
    }
}

impl Interpreter {
    fn begin(&mut self, clock: &mut Clock<'_>) -> Result<(), ProgramError> {
        if let Some(greeting) = self.stream.begin(clock)? {
            self.loaded.clear();
            self.hooks = Hooks::named(&greeting.hooks);
        }
        Ok(())
    }

    fn load(
        &mut self,
        module: &PythonModule,
        clock: &mut Clock<'_>,
    ) -> Result<Vec<String>, ProgramError> {
        // A module may be a link here and a tracer there.
        let members = module.members();
        if let Some(functions) = self.loaded.get(&members) {
            return Ok(functions.clone());
        }
        let request = format!("{{\"do\":\"load\",{members}}}\n");
        let loaded = self.stream.exchange(request.as_bytes(), clock);
        let functions = loaded.map_err(ProgramError::before_the_vcon)?.functions;
        self.loaded.insert(members, functions.clone());
        Ok(functions)
    }
}

/// Asks an interpreter of its own which of these modules cannot be used. It has loaded the hooks before.
///
/// # Errors
/// Why the interpreter could not tell; `timeout` of the settings is the limit for all modules together.
pub fn look(setup: &HostSetup, modules: &[&PythonModule]) -> Result<Vec<MissingModule>, Failure> {
    let mut stream = Stream::new(setup.program(), Some(setup.greeting(&[])));
    let members = modules
        .iter()
        .map(|module| format!("{{{}}}", module.members()));
    let members: Vec<String> = members.collect();
    let request = format!("{{\"do\":\"look\",\"modules\":[{}]}}\n", members.join(","));
    let limit = setup.settings.timeout;
    let clock = || Clock::new(Deadline::NONE.begin(limit)).heeding_signals();
    Ok(stream.ask(&request, clock)?.missing)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    // The host script, with modules that do not need Redis.

    use std::fs;
    use std::path::Path;
    use std::thread;

    use tempfile::TempDir;

    use super::super::ModuleKind;
    use super::*;
    use crate::failure::FailureKind;
    use crate::settings::PythonSettings;

    /// A folder with these modules, and a host that looks for them there.
    fn host(modules: &[(&str, &str)], imports: &[&str]) -> (TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in modules {
            fs::write(folder.path().join(format!("{name}.py")), text).unwrap();
        }
        let imports = imports.iter().map(|name| module(name, ModuleKind::Import));
        let setup = HostSetup {
            settings: settings(folder.path()),
            imports: imports.collect(),
            ..HostSetup::default()
        };
        let host = Host::new(&Arc::new(setup));
        (folder, host)
    }

    fn settings(folder: &Path) -> PythonSettings {
        PythonSettings {
            path: vec![folder.to_owned()],
            timeout: Duration::from_secs(20),
            ..PythonSettings::default()
        }
    }

    fn module(name: &str, kind: ModuleKind) -> PythonModule {
        PythonModule {
            module: name.to_owned(),
            kind,
            entry: "entry".to_owned(),
            options: None,
            pip_name: None,
            timeout: None,
            key: "links.entry.module".to_owned(),
            line: 1,
        }
    }

    fn clock(seconds: f64) -> Clock<'static> {
        Clock::new(Deadline::NONE.begin(Duration::from_secs_f64(seconds)))
    }

    /// Runs a link of this module.
    fn run(host: &Host, name: &str) -> Result<Reply, ProgramError> {
        let request = format!(
            "{{\"do\":\"link\",\"module\":\"{name}\",\"uuid\":\"u\",\"name\":\"entry\",\"options\":null}}\n"
        );
        host.call(Some(&module(name, ModuleKind::Link)), &request, || {
            clock(10.0)
        })
    }

    fn failure(ran: Result<Reply, ProgramError>) -> Failure {
        match ran {
            Err(ProgramError::Failed(failure) | ProgramError::TimedOut(failure)) => failure,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn all_modules_of_a_lane_share_one_interpreter_that_starts_with_the_first_call() {
        let count = "import os, shared\ndef run(u, n, o):\n    shared.count += 1\n    return f'{os.getpid()} {shared.count}'\n";
        let (_folder, host) = host(&[("shared", "count = 0"), ("a", count), ("b", count)], &[]);
        let first = run(&host, "a").unwrap().uuid.unwrap();
        let second = run(&host.clone(), "b").unwrap().uuid.unwrap();
        let (pid, _) = first.split_once(' ').unwrap();
        assert_eq!(second, format!("{pid} 2"));
    }

    #[test]
    fn a_module_is_loaded_again_in_an_interpreter_that_was_started_again() {
        let text = "import os\ndef run(u, n, o):\n    if os.path.exists(FILE):\n        return 'again'\n    open(FILE, 'w')\n    os._exit(3)\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flag").display().to_string();
        let text = format!("FILE = {file:?}\n{text}");
        let (_modules, host) = host(&[("a", &text)], &[]);
        let died = failure(run(&host, "a"));
        assert_eq!(died.kind, FailureKind::Crashed);
        assert!(died.message.contains("exit code 3"), "{died}");
        assert_eq!(run(&host, "a").unwrap().uuid.as_deref(), Some("again"));
    }

    #[test]
    fn a_module_that_cannot_be_loaded_is_no_fault_of_the_vcon_and_the_others_work() {
        let (folder, host) = host(&[("good", "def run(u, n, o): return 'x'")], &[]);
        let absent = failure(run(&host, "absent"));
        assert_eq!(absent.kind, FailureKind::Transient);
        assert!(
            absent.message.contains("could not import absent"),
            "{absent}"
        );
        assert!(run(&host, "good").is_ok());
        fs::write(
            folder.path().join("absent.py"),
            "def run(u, n, o): return 'y'",
        )
        .unwrap();
        assert_eq!(run(&host, "absent").unwrap().uuid.as_deref(), Some("y"));
    }

    #[test]
    fn an_import_that_fails_keeps_the_host_from_beginning() {
        let (folder, host) = host(&[("bad", "1 / 0")], &["bad"]);
        let error = match host.begin(&mut clock(10.0)) {
            Err(ProgramError::Failed(failure)) => failure,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(error.kind, FailureKind::Transient);
        assert!(
            error
                .message
                .contains("could not import bad: ZeroDivisionError"),
            "{error}"
        );
        fs::write(folder.path().join("bad.py"), "pass # mended").unwrap();
        assert_eq!(host.begin(&mut clock(10.0)), Ok(Hooks::default()));
    }

    #[test]
    fn hooks_that_do_nothing_are_none() {
        let nothing = "def before_processing(u, c, x):\n    return u\ndef after_processing(u, c, x, error=None):\n    pass\n";
        let (_folder, host) = host(
            &[
                ("hook", nothing),
                ("after_link_hook", "def after_link(*a): print(a)"),
            ],
            &[],
        );
        assert!(host.setup().is_needed_at_start());
        let hooks = host.begin(&mut clock(10.0)).unwrap();
        let expected = Hooks {
            after_link: true,
            ..Hooks::default()
        };
        assert_eq!(hooks, expected);
    }

    #[test]
    fn whoever_waits_for_the_interpreter_gives_up_at_its_limit() {
        let text = "import time\ndef run(u, n, o): time.sleep(1000)";
        let (_folder, host) = host(&[("slow", text)], &[]);
        host.begin(&mut clock(10.0)).unwrap();
        let slow = module("slow", ModuleKind::Link);
        thread::scope(|scope| {
            let request = "{\"do\":\"link\",\"module\":\"slow\",\"uuid\":\"u\",\"name\":\"n\",\"options\":null}\n";
            let first = scope.spawn(|| host.call(Some(&slow), request, || clock(1.0)));
            while host.idle.1.len() == 1 {
                thread::yield_now();
            }
            let second = failure(host.call(Some(&slow), request, || clock(0.1)));
            assert_eq!(second.kind, FailureKind::Busy);
            let first = first.join().unwrap();
            assert!(matches!(first, Err(ProgramError::TimedOut(_))), "{first:?}");
        });
    }

    #[test]
    fn a_look_tells_what_cannot_be_used_and_why() {
        let (folder, _host) = host(
            &[
                ("good", "def run(u, n, o): return u"),
                ("empty", ""),
                ("needs", "import nothing_of_this_name"),
            ],
            &[],
        );
        let setup = HostSetup {
            settings: settings(folder.path()),
            ..HostSetup::default()
        };
        let names = ["good", "empty", "needs", "absent"];
        let modules = names.map(|name| module(name, ModuleKind::Link));
        let missing = look(&setup, &modules.iter().collect::<Vec<_>>()).unwrap();
        let found: Vec<(&str, bool)> = missing
            .iter()
            .map(|it| (it.module.as_str(), it.absent))
            .collect();
        assert_eq!(
            found,
            [("empty", false), ("needs", false), ("absent", true)]
        );
        assert!(missing[0].why.contains("has no function `run`"));
        assert!(missing[1].why.contains("nothing_of_this_name"));
    }
}
