//! A private server with the protocol of MongoDB: SecantusDB, which is not MongoDB's own.

use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::deployment::ask_python;
use super::guard::{Guard, Launch};
use super::{cached, free_port, private_folder, program, wait_for_server};

/// Prints the documents of the collection as a JSON list.
const DOCUMENTS: &str = r#"
import json, pymongo, sys
client = pymongo.MongoClient(sys.argv[1], serverSelectionTimeoutMS=30000)
print(json.dumps(list(client.calls.vcons.find())))
"#;

/// The server, which keeps on disk what it has.
pub struct Mongo {
    folder: TempDir,
    port: u16,
    server: Mutex<Option<Guard>>,
}

impl Mongo {
    pub fn start() -> Self {
        let server = Self {
            folder: private_folder(),
            port: free_port(),
            server: Mutex::new(None),
        };
        server.start_again();
        server
    }

    /// Starts the server and waits until it can be reached.
    pub fn start_again(&self) {
        let log = self.folder.path().join("log");
        let data = self.folder.path().join("data").display().to_string();
        let mut command = vec!["env".to_owned()];
        command.push(format!("PYTHONPATH={}", cached("secantusdb").display()));
        command.push(program("python3", &[]).display().to_string());
        command.extend(["-m", "secantus", "--host", "127.0.0.1", "--port"].map(str::to_owned));
        command.push(self.port.to_string());
        command.extend(
            ["--standalone", "--sync-on-commit", "--storage-path", &data].map(str::to_owned),
        );
        let server = Guard::launch(Launch {
            command,
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        });
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        wait_for_server("SecantusDB", &log, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// Ends the server with a signal.
    pub fn end(&self, signal: Signal) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.take().expect("it runs").end(signal);
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("mongodb://127.0.0.1:{}", self.port)
    }

    /// Options of the deployment's storage `storage.papers`.
    pub fn options(&self) -> Value {
        json!({"url": self.url(), "database": "calls", "collection": "vcons"})
    }

    /// All that this storage has in it.
    pub fn documents(&self) -> Vec<Value> {
        let documents = ask_python(DOCUMENTS, &[&self.url()]);
        documents.as_array().expect("a list").clone()
    }
}
