//! Metrics, read by the parsers of Prometheus' own Python client.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Monitor, PATIENCE, cached, program, wait_until};

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
