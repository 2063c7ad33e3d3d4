//! One interpreter, kept running for all Python modules of a lane.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

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
}

/// The process, and what it has loaded.
struct Interpreter {
    stream: Stream,
    loaded: HashSet<String>,
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
        if let Some(interpreter) = self.interpreter.take() {
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
            loaded: HashSet::new(),
            hooks: Hooks::default(),
        };
        // It has room for one.
        let _ = idle.0.try_send(Box::new(interpreter));
        Self {
            setup: Arc::clone(setup),
            idle,
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

    /// Makes sure that a module is loaded.
    ///
    /// # Errors
    /// It cannot be: no fault of any vCon.
    pub fn load(&self, module: &PythonModule, clock: &mut Clock<'_>) -> Result<(), ProgramError> {
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
        let busy = || Failure::busy("the Python host of this lane is in use by another storage");
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

    fn load(&mut self, module: &PythonModule, clock: &mut Clock<'_>) -> Result<(), ProgramError> {
        // A module may be a link here and a tracer there.
        let members = module.members();
        if self.loaded.contains(&members) {
            return Ok(());
        }
        let request = format!("{{\"do\":\"load\",{members}}}\n");
        let loaded = self.stream.exchange(request.as_bytes(), clock);
        loaded.map_err(ProgramError::before_the_vcon)?;
        self.loaded.insert(members);
        Ok(())
    }
}

/// Asks an interpreter of its own which of these modules cannot be used. The imports of the setup
/// are not loaded but by being among them.
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
    let clock = || Clock::new(Deadline::NONE.begin(setup.settings.timeout));
    match stream.ask(&request, clock) {
        Ok(reply) => Ok(reply.missing),
        Err(ProgramError::Failed(failure) | ProgramError::TimedOut(failure)) => Err(failure),
        Err(ProgramError::Interrupted) => Err(Failure::transient("interrupted")),
    }
}
