//! A private server with the HTTP API of Elasticsearch: noida-db, which shows what was written
//! only after a refresh and keeps it on disk, or osmem-server, which is strict about names and
//! types and forgets everything at its end. Neither is Elastic's.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::Agent;

use super::guard::{Guard, Launch};
use super::{cached, free_port, private_folder, wait_for_server};

/// One of the two servers.
pub struct Elastic {
    folder: TempDir,
    port: u16,
    kind: Kind,
    agent: Agent,
    server: Mutex<Option<Guard>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Noida,
    Osmem,
}

impl Elastic {
    /// noida-db.
    pub fn noida() -> Self {
        Self::start(Kind::Noida)
    }

    /// osmem-server.
    pub fn osmem() -> Self {
        Self::start(Kind::Osmem)
    }

    /// One of each.
    pub fn both() -> [Self; 2] {
        [Self::noida(), Self::osmem()]
    }

    fn start(kind: Kind) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build();
        let server = Self {
            folder: private_folder(),
            port: free_port(),
            kind,
            agent: agent.new_agent(),
            server: Mutex::new(None),
        };
        server.start_again();
        server
    }

    /// Starts the server and waits until it can be reached.
    pub fn start_again(&self) {
        let log = self.folder.path().join("log");
        let launch = Launch {
            command: self.command(),
            log: &log,
            signal: "TERM",
            owner: None,
            cleanup: None,
        };
        let server = Guard::launch(launch);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        wait_for_server(&format!("{:?}", self.kind), &log, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn command(&self) -> Vec<String> {
        let port = self.port;
        let (program, arguments) = match self.kind {
            Kind::Noida => {
                let data = self.folder.path().display();
                let arguments = format!(
                    "start --data-dir {data}/data --host 127.0.0.1 --only elasticsearch \
                     --elasticsearch-port {port}"
                );
                ("noida-db/noida_db/noida-db", arguments)
            }
            Kind::Osmem => {
                let arguments = format!("-addr 127.0.0.1:{port} -no-stdin-watch");
                ("osmem-server/osmem_server/bin/osmem-server", arguments)
            }
        };
        let mut command = vec![cached(program).display().to_string()];
        command.extend(arguments.split_whitespace().map(str::to_owned));
        command
    }

    /// Ends the server with a signal.
    pub fn end(&self, signal: Signal) {
        let server = self
            .server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        server.expect("it runs").end(signal);
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it keeps what it has over its end.
    pub fn is_durable(&self) -> bool {
        self.kind == Kind::Noida
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        self.storage_with(json!({}))
    }

    /// The storage with some options set or replaced.
    pub fn storage_with(&self, options: Value) -> Value {
        let mut all = json!({"url": self.url(), "index_prefix": "calls_"});
        for (key, value) in options.as_object().expect("a mapping") {
            all[key] = value.clone();
        }
        json!({"module": "storage.elasticsearch", "options": all})
    }

    /// Sends it JSON with PUT: templates, mappings, settings, documents.
    pub fn put(&self, path: &str, json: &Value) {
        let url = format!("{}/{path}", self.url());
        let request = self.agent.put(&url).content_type("application/json");
        let mut answer = request.send(json.to_string()).expect("an answer");
        let text = answer.body_mut().read_to_string().expect("text");
        assert!(answer.status().is_success(), "PUT {path}: {text}");
    }

    /// Sends it DELETE.
    pub fn delete(&self, path: &str) {
        let url = format!("{}/{path}", self.url());
        let answer = self.agent.delete(&url).call().expect("an answer");
        assert!(answer.status().is_success(), "DELETE {path}");
    }

    /// Bodies and metadata of any kind are taken in all indices, and nothing that is written can
    /// be searched before a refresh.
    pub fn prepare(&self) {
        let anything = json!({"type": "object", "enabled": false});
        self.put(
            "_index_template/calls",
            &json!({"index_patterns": ["calls_vcon_*"], "template": {
                "settings": {"index": {"refresh_interval": "-1"}},
                "mappings": {"properties": {"body": anything, "meta": anything, "jCard": anything}},
            }}),
        );
    }

    /// A document, refreshed or not.
    pub fn document(&self, index: &str, id: &str) -> Option<Value> {
        let answer = self.get(&format!("{index}/_doc/{id}"));
        answer.get("_source").cloned()
    }

    /// All documents there are, by index and id, after a refresh.
    pub fn documents(&self) -> BTreeMap<(String, String), Value> {
        let url = format!("{}/_refresh", self.url());
        self.agent.post(&url).send_empty().expect("an answer");
        let found = self.get("calls_vcon_*/_search?size=10000");
        let text = |hit: &Value, key| hit[key].as_str().expect("a string").to_owned();
        let hits = found["hits"]["hits"].as_array().expect("hits").iter();
        hits.map(|hit| {
            (
                (text(hit, "_index"), text(hit, "_id")),
                hit["_source"].clone(),
            )
        })
        .collect()
    }

    fn get(&self, path: &str) -> Value {
        let url = format!("{}/{path}", self.url());
        let mut answer = self.agent.get(&url).call().expect("an answer");
        let text = answer.body_mut().read_to_string().expect("text");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("GET {path}: {error}: {text}"))
    }
}
