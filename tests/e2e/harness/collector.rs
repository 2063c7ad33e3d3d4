//! A collector of OpenTelemetry, whose decoder is that of the Python package of OpenTelemetry itself.

use std::cell::RefCell;
use std::fs;
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::guard::{Guard, Launch};
use super::{PATIENCE, cached, free_port, private_folder, program, wait_for_server, wait_until};

const SERVER: &str = include_str!("collector.py");

/// The collector.
pub struct Collector {
    folder: TempDir,
    port: u16,
    server: RefCell<Option<Guard>>,
}

impl Collector {
    /// One that takes everything.
    pub fn start() -> Self {
        let collector = Self::away();
        collector.begin();
        collector
    }

    /// One that is not there.
    pub fn away() -> Self {
        let collector = Self {
            folder: private_folder(),
            port: free_port(),
            server: RefCell::default(),
        };
        collector.answers("ok");
        collector
    }

    /// Starts it.
    pub fn begin(&self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut command = vec!["env".to_owned()];
        command.push(format!(
            "PYTHONPATH={}",
            cached("opentelemetry-proto").display()
        ));
        command.push(program("python3", &[]).display().to_string());
        command.extend(["-c".to_owned(), SERVER.to_owned(), self.port.to_string()]);
        command.extend([path("record"), path("answers")]);
        let log = self.folder.path().join("log");
        let server = Guard::launch(Launch {
            command,
            log: &log,
            signal: "KILL",
            owner: None,
            cleanup: None,
        });
        self.server.replace(Some(server));
        wait_for_server("the collector", &log, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// Ends it.
    pub fn end(&self) {
        let server = self.server.take();
        server.expect("it runs").end(Signal::SIGKILL);
    }

    /// From now on it answers so: `ok`, `hang`, `part` or a status.
    pub fn answers(&self, manner: &str) {
        let file = self.folder.path().join("answers");
        let new = self.folder.path().join("answers.new");
        fs::write(&new, manner).expect("a file");
        fs::rename(new, file).expect("a file");
    }

    /// `OTEL_EXPORTER_OTLP_ENDPOINT`
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything it was sent: a value for each span, and for each export of metrics.
    pub fn taken(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("record")).unwrap_or_default();
        // The last line may be half there.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let taken: Vec<Value> = whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        for line in &taken {
            assert!(line["wrong"].is_null(), "{line}");
        }
        taken
    }

    /// The spans it was sent.
    pub fn spans(&self) -> Vec<Value> {
        self.of("traces")
    }

    /// The exports of metrics it was sent.
    pub fn metrics(&self) -> Vec<Value> {
        self.of("metrics")
    }

    fn of(&self, signal: &str) -> Vec<Value> {
        let mut taken = self.taken();
        taken.retain(|line| line["signal"] == signal);
        taken
    }

    /// Waits for this many spans.
    pub fn wait_for_spans(&self, count: usize) -> Vec<Value> {
        wait_until(&format!("{count} spans are there"), PATIENCE, || {
            self.spans().len() >= count
        });
        self.spans()
    }

    /// Waits for metrics of which this is true.
    pub fn wait_for_metrics(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_until(what, PATIENCE, || {
            found = self.metrics().pop().filter(|last| is_it(&last["metrics"]));
            found.is_some()
        });
        found.expect("metrics")
    }
}
