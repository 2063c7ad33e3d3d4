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
use crate::program::{ProgramError, Reply};
use crate::python::{Deaths, Host, PythonModule};
use crate::vcon::{Outgoing, VconId};

/// A storage that is a Python module.
pub(crate) struct PythonStorage {
    module: Arc<PythonModule>,
    host: Host,
    deaths: Deaths,
}

impl PythonStorage {
    /// One whose module is loaded, by this host, at its first use.
    pub fn new(module: &Arc<PythonModule>, host: &Host) -> Self {
        Self {
            module: Arc::clone(module),
            host: host.clone(),
            deaths: Deaths::default(),
        }
    }

    fn timeout(&self) -> Duration {
        let own = self.module.timeout;
        own.unwrap_or(self.host.setup().settings.timeout)
    }

    /// Whether the module has this function, as far as it can be loaded now.
    fn has_function(&self, name: &str) -> bool {
        let mut clock = self.host.probe_clock(self.timeout());
        let functions = self.host.load(&self.module, &mut clock);
        functions.is_ok_and(|it| it.iter().any(|it| it == name))
    }

    fn call(&self, what: &str, id: &VconId, deadline: Deadline) -> Result<Reply, Failure> {
        // Writing a string to memory does not fail.
        let module = serde_json::to_string(&self.module.module).unwrap_or_default();
        let options = self.module.options.as_ref();
        let options = options.map_or_else(String::new, |json| format!(",\"options\":{json}"));
        let request =
            format!("{{\"do\":\"{what}\",\"module\":{module},\"uuid\":\"{id}\"{options}}}\n");
        let timeout = self.timeout();
        let clock = || self.host.storage_clock(timeout, deadline);
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
        ProgramError::Interrupted => Failure::transient("the worker drains"),
    }
}

impl Storage for PythonStorage {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        let saved = self.call("save", &vcon.id, deadline);
        saved
            .map(drop)
            .map_err(|failure| self.deaths.judge(&vcon.id, failure))
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let reply = self.call("get", id, deadline)?;
        Ok(reply.vcon.map(|document| document.get().to_owned()))
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        self.call("delete", id, Deadline::NONE).map(drop)
    }

    fn probe(&mut self) -> Result<(), Failure> {
        let mut clock = self.host.probe_clock(self.timeout());
        let loaded = self.host.load(&self.module, &mut clock);
        loaded.map(drop).map_err(failure)
    }

    fn check(&mut self) -> Result<String, Failure> {
        self.probe()?;
        Ok(format!("{} can be imported", self.module.module))
    }

    fn longest_call(&self) -> Duration {
        // The start of the interpreter, the import, and the call.
        self.timeout().saturating_mul(3)
    }

    fn keeps_documents(&self) -> bool {
        self.has_function("get")
    }

    fn can_delete(&self) -> bool {
        self.has_function("delete")
    }

    fn reads_redis(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::python::{HostSetup, ModuleKind};
    use crate::settings::PythonSettings;
    use crate::vcon::{Vcon, Version};

    /// A storage of this module, with these options.
    fn storage(text: &str, options: Option<&str>) -> (tempfile::TempDir, PythonStorage) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("shelf.py"), text).unwrap();
        let settings = PythonSettings {
            path: vec![folder.path().to_owned()],
            ..PythonSettings::default()
        };
        let setup = HostSetup {
            settings,
            ..HostSetup::default()
        };
        let module = PythonModule {
            module: "shelf".to_owned(),
            kind: ModuleKind::Storage,
            entry: "mine".to_owned(),
            options: options.map(str::to_owned),
            pip_name: None,
            timeout: Some(Duration::from_secs(10)),
            key: "storages.mine.module".to_owned(),
            line: 1,
        };
        let host = Host::new(&Arc::new(setup));
        (folder, PythonStorage::new(&Arc::new(module), &host))
    }

    fn vcon() -> Outgoing {
        let mut vcon = Vcon::read(VconId::random(), "{}").unwrap();
        vcon.outgoing(Version::Current)
    }

    const KEEPS: &str = "
kept = {}
default_options = {'a': 1}
def save(u, o): kept[u] = {'uuid': u, 'options': o}
def get(u, o): return kept.get(u)
def delete(u, o): return kept.pop(u, None) is not None
";

    #[test]
    fn what_is_saved_is_there_until_it_is_deleted() {
        let (_folder, mut storage) = storage(KEEPS, None);
        let vcon = vcon();
        assert_eq!(storage.get(&vcon.id, Deadline::NONE), Ok(None));
        assert_eq!(storage.save(&vcon, Deadline::NONE), Ok(()));
        let found = storage.get(&vcon.id, Deadline::NONE).unwrap().unwrap();
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["uuid"], vcon.id.as_str());
        assert_eq!(found["options"], serde_json::json!({"a": 1}));
        assert_eq!(storage.has(&vcon.id, None, Deadline::NONE), Ok(true));
        assert!(storage.keeps_documents() && storage.can_delete());
        assert_eq!(storage.delete(&vcon.id), Ok(()));
        assert_eq!(storage.has(&vcon.id, None, Deadline::NONE), Ok(false));
    }

    #[test]
    fn options_take_the_place_of_the_defaults_as_a_whole() {
        let (_folder, mut storage) = storage(KEEPS, Some(r#"{"b":2}"#));
        let vcon = vcon();
        storage.save(&vcon, Deadline::NONE).unwrap();
        let found = storage.get(&vcon.id, Deadline::NONE).unwrap().unwrap();
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["options"], serde_json::json!({"b": 2}));
    }

    #[test]
    fn errors_say_whose_fault_they_are() {
        for (body, kind) in [
            ("raise ValueError('no')", FailureKind::Refused),
            (
                "raise ConnectionRefusedError('away')",
                FailureKind::Transient,
            ),
            ("raise OSError(28, 'full')", FailureKind::Transient),
            ("raise OSError(2, 'no such file')", FailureKind::Refused),
            (
                "import urllib.error as e; raise e.HTTPError('u', 503, 'm', {}, None)",
                FailureKind::Transient,
            ),
            (
                "import urllib.error as e; raise e.HTTPError('u', 400, 'm', {}, None)",
                FailureKind::Refused,
            ),
            // As in urllib3 and httpx.
            (
                "class HTTPError(Exception): pass\n    raise type('ConnectError', (HTTPError,), {})()",
                FailureKind::Transient,
            ),
            (
                "class HTTPError(Exception): response = None\n    raise HTTPError()",
                FailureKind::Refused,
            ),
            (
                "class AutoReconnect(Exception): pass\n    raise type('Mine', (AutoReconnect,), {})()",
                FailureKind::Transient,
            ),
            ("import os; os._exit(1)", FailureKind::Crashed),
            ("import time; time.sleep(1000)", FailureKind::Slow),
        ] {
            let (_folder, mut storage) = storage(&format!("def save(u, o):\n    {body}"), None);
            // So that a short limit is that of the call alone.
            storage.probe().unwrap();
            let mut module = (*storage.module).clone();
            if kind == FailureKind::Slow {
                module.timeout = Some(Duration::from_secs(1));
            }
            storage.module = Arc::new(module);
            let failure = storage.save(&vcon(), Deadline::NONE).unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
        }
    }

    #[test]
    fn the_third_death_of_the_host_with_one_vcon_is_its_own_fault() {
        use FailureKind::{Crashed, Refused};
        let (_folder, mut storage) = storage("import os\ndef save(u, o): os._exit(1)", None);
        let (first, second) = (vcon(), vcon());
        let mut kinds = Vec::new();
        for vcon in [&first, &first, &second, &second, &second] {
            kinds.push(storage.save(vcon, Deadline::NONE).unwrap_err().kind);
        }
        assert_eq!(kinds, [Crashed, Crashed, Crashed, Crashed, Refused]);
    }

    #[test]
    fn a_module_without_get_and_delete_has_nothing_to_give() {
        let (_folder, mut storage) = storage("def save(u, o): pass", None);
        assert_eq!(storage.get(&VconId::random(), Deadline::NONE), Ok(None));
        assert_eq!(storage.delete(&VconId::random()), Ok(()));
        assert!(!storage.keeps_documents() && !storage.can_delete());
        assert_eq!(storage.check(), Ok("shelf can be imported".to_owned()));
    }

    #[test]
    fn a_module_without_save_is_no_storage() {
        let (_folder, mut storage) = storage("def get(u, o): pass", None);
        let failure = storage.probe().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Transient);
        assert!(
            failure.message.contains("has no function `save`"),
            "{failure}"
        );
    }
}
