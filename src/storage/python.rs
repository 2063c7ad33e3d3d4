//! A Python module of the deployment as a storage: `save`, and `get` and `delete` where it has them.
//!
//! It reads the vCon in Redis by itself, so the document is there before `save` is called. An error that
//! says that a server is away is no vCon's fault; any other is a refusal, which is a dead letter of
//! this storage if the others are taken.

use std::sync::Arc;
use std::time::Duration;

use super::Storage;
use crate::deadline::Deadline;
use crate::failure::{Failure, FailureKind};
use crate::program::{Clock, ProgramError, Reply};
use crate::python::{Host, PythonModule};
use crate::vcon::{Outgoing, VconId};

/// A storage that is a Python module.
pub(crate) struct PythonStorage {
    module: Arc<PythonModule>,
    host: Host,
}

impl PythonStorage {
    /// One whose module is loaded, by this host, at its first use.
    pub fn new(module: &Arc<PythonModule>, host: &Host) -> Self {
        Self {
            module: Arc::clone(module),
            host: host.clone(),
        }
    }

    fn timeout(&self) -> Duration {
        let own = self.module.timeout;
        own.unwrap_or(self.host.setup().settings.timeout)
    }

    fn call(&self, what: &str, id: &VconId, deadline: Deadline) -> Result<Reply, Failure> {
        // Writing a string to memory does not fail.
        let module = serde_json::to_string(&self.module.module).unwrap_or_default();
        let options = self.module.options.as_ref();
        let options = options.map_or_else(String::new, |json| format!(",\"options\":{json}"));
        let request =
            format!("{{\"do\":\"{what}\",\"module\":{module},\"uuid\":\"{id}\"{options}}}\n");
        let timeout = self.timeout();
        let clock = || Clock::new(deadline.begin(timeout));
        self.host
            .call(Some(&self.module), &request, clock)
            .map_err(failure)
    }
}

/// What an error of the module means for a vCon.
fn failure(error: ProgramError) -> Failure {
    match error {
        ProgramError::Failed(failure) if failure.kind == FailureKind::Permanent => {
            Failure::refused(failure.message)
        }
        ProgramError::Failed(failure) => failure,
        ProgramError::TimedOut(failure) => Failure::slow(failure.message),
        ProgramError::Interrupted => Failure::transient("interrupted"),
    }
}

impl Storage for PythonStorage {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        self.call("save", &vcon.id, deadline).map(drop)
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let reply = self.call("get", id, deadline)?;
        Ok(reply.vcon.map(|document| document.get().to_owned()))
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        self.call("delete", id, Deadline::NONE).map(drop)
    }

    fn probe(&mut self) -> Result<(), Failure> {
        let mut clock = Clock::new(Deadline::NONE.begin(self.timeout()));
        self.host.load(&self.module, &mut clock).map_err(failure)
    }

    fn check(&mut self) -> Result<String, Failure> {
        self.probe()?;
        Ok(format!("{} can be imported", self.module.module))
    }

    fn longest_call(&self) -> Duration {
        // The start of the interpreter, the import, and the call.
        self.timeout().saturating_mul(3)
    }

    fn reads_redis(&self) -> bool {
        true
    }
}
