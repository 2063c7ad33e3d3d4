//! Metrics, read by the parsers of Prometheus' own Python client, and by a Prometheus.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::guard::{Guard, Launch};
use super::{
    Monitor, PATIENCE, cached, cached_if_there, free_port, private_folder, program,
    wait_for_server, wait_until,
};

/// Set by `tests/run.sh` where the distribution has no Prometheus.
const NO_PROMETHEUS: &str = "CONSERVER_TEST_NO_PROMETHEUS";

/// Prints every sample as `[name, labels, value]`, and the type of each family.
const READER: &str = r#"
import json, sys
text = sys.stdin.read()
if sys.argv[1] == "openmetrics":
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
else:
    from prometheus_client.parser import text_string_to_metric_families as parse
families = list(parse(text))
samples = [[s.name, s.labels, s.value] for f in families for s in f.samples]
print(json.dumps({"types": {f.name: f.type for f in families}, "samples": samples}))
"#;

/// The formats that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Classic,
    OpenMetrics,
}

/// Everything that was served at one time.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// The type of each family, by the name that the parser gives it.
    pub types: BTreeMap<String, String>,
    /// Each sample by its name and its labels.
    pub samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Scrape {
    /// Asks for the metrics as Prometheus does, and reads them.
    pub fn of(monitor: &Monitor, format: Format) -> Self {
        let (accept, kind) = match format {
            Format::Classic => ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
            Format::OpenMetrics => (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
        };
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
        // The daemon has started before its monitor answers.
        let mut answer = None;
        wait_until("the monitor answers", PATIENCE, || {
            answer = monitor.send(request.as_bytes());
            answer.is_some()
        });
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("Content-Type"), Some(kind));
        Self::read(format, &answer.body)
    }

    fn read(format: Format, text: &str) -> Self {
        let format = match format {
            Format::Classic => "classic",
            Format::OpenMetrics => "openmetrics",
        };
        let mut reader = Command::new(program("python3", &[]))
            .args(["-c", READER, format])
            .env("PYTHONPATH", cached("prometheus-client"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python");
        let mut input = reader.stdin.take().expect("a pipe");
        input.write_all(text.as_bytes()).expect("a reader");
        drop(input);
        let read = reader.wait_with_output().expect("a reader");
        assert!(read.status.success(), "{format} cannot be read:\n{text}");
        let read: Value = serde_json::from_slice(&read.stdout).expect("JSON");
        let types = serde_json::from_value(read["types"].clone()).expect("types");
        let mut samples = BTreeMap::new();
        for sample in read["samples"].as_array().expect("samples") {
            let (name, labels, value): (String, BTreeMap<String, String>, f64) =
                serde_json::from_value(sample.clone()).expect("a sample");
            let twice = samples.insert((name, labels), value);
            assert_eq!(twice, None, "{sample}");
        }
        Self { types, samples }
    }

    /// The sample of this name and these labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.samples
            .get(&(name.to_owned(), labels.collect()))
            .copied()
    }

    /// Those samples that only ever grow.
    pub fn growing(&self) -> impl Iterator<Item = (&(String, BTreeMap<String, String>), f64)> {
        let ends = ["_total", "_count", "_bucket", "_sum"];
        let grows = move |name: &str| ends.iter().any(|end| name.ends_with(end));
        let samples = self
            .samples
            .iter()
            .filter(move |((name, _), _)| grows(name));
        samples.map(|(key, value)| (key, *value))
    }
}

/// A program of Prometheus' package; nothing where the distribution has none.
pub fn of_prometheus(name: &str) -> Option<PathBuf> {
    let in_path = || {
        let folders = std::env::var_os("PATH")?;
        let mut programs = std::env::split_paths(&folders).map(|folder| folder.join(name));
        programs.find(|program| program.exists())
    };
    let found = cached_if_there(name).or_else(in_path);
    assert!(
        found.is_some() || std::env::var_os(NO_PROMETHEUS).is_some(),
        "{name} is missing; tests/run.sh installs what the tests need"
    );
    found
}

/// A Prometheus that takes in native histograms, and asks one monitor twice a second.
pub struct Prometheus {
    port: u16,
    agent: ureq::Agent,
    _server: Guard,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one; nothing where the distribution has none.
    pub fn of(monitor: &Monitor) -> Option<Self> {
        let program = of_prometheus("prometheus")?;
        let (folder, port) = (private_folder(), free_port());
        let at = |name: &str| folder.path().join(name);
        let config = json!({
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
            "scrape_configs": [{
                "job_name": "conserver",
                "static_configs": [{"targets": [monitor.setting()]}],
            }],
        });
        fs::write(at("config.yml"), config.to_string()).expect("a file");
        let log = at("log");
        let server = Guard::launch(Launch {
            command: vec![
                program.display().to_string(),
                format!("--config.file={}", at("config.yml").display()),
                format!("--storage.tsdb.path={}", at("data").display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
                "--enable-feature=native-histograms".to_owned(),
            ],
            log: &log,
            signal: "TERM",
            owner: None,
            cleanup: None,
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build();
        let this = Self {
            port,
            agent: agent.new_agent(),
            _server: server,
            _folder: folder,
        };
        wait_for_server("Prometheus", &log, || this.get("-/ready", "").is_some());
        Some(this)
    }

    fn get(&self, path: &str, query: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        let mut answer = self.agent.get(url).query("query", query).call().ok()?;
        let body = answer.body_mut().read_to_string().expect("text");
        (answer.status() == 200).then_some(body)
    }

    /// The value of an expression now; nothing where there is not exactly one.
    pub fn value(&self, expression: &str) -> Option<f64> {
        let answer = self.get("api/v1/query", expression);
        let answer: Value = serde_json::from_str(&answer.expect("an answer")).expect("JSON");
        match answer["data"]["result"].as_array().map(Vec::as_slice) {
            Some([sample]) => sample["value"][1].as_str()?.parse().ok(),
            _ => None,
        }
    }
}
