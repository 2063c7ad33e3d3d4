//! The log: lines for people through simplelog, or one JSON object a line. In both, what cannot be
//! seen is escaped here, and nowhere before.
//!
//! Everything goes to standard error, each line in one write, so that the lines of all processes
//! stay whole.

mod stderr;

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::sync::{OnceLock, PoisonError, RwLock};

use chrono::{SecondsFormat, Utc};
use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::Map;
use simplelog::{
    ColorChoice, CombinedLogger, Config, ConfigBuilder, SharedLogger, TermLogger, TerminalMode,
    WriteLogger,
};

pub use stderr::{may_wait, never_wait, report_lost};

use crate::settings::LogFormat;
use crate::visible::{Printable, visible_json};
use stderr::write_line;

static WORKER: OnceLock<RwLock<String>> = OnceLock::new();

/// Starts logging in this process; what is forked from it goes on with it.
pub fn start(format: LogFormat, level: LevelFilter) {
    let logger: Box<dyn SharedLogger> = match format {
        LogFormat::Json => Box::new(JsonLogger { level }),
        LogFormat::Text if io::stderr().is_terminal() => {
            let colors = match std::env::var_os("NO_COLOR") {
                Some(value) if !value.is_empty() => ColorChoice::Never,
                _ => ColorChoice::Auto,
            };
            Box::new(Visible(TermLogger::new(
                level,
                text_config(),
                TerminalMode::Stderr,
                colors,
            )))
        }
        LogFormat::Text => {
            let lines = WholeLines::default();
            Box::new(Visible(WriteLogger::new(level, text_config(), lines)))
        }
    };
    // A second start, as in a test, changes nothing.
    let _ = CombinedLogger::init(vec![logger]);
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message");
        log::error!("panic at {place}: {text}");
    }));
}

/// Names the worker whose process this is, for the `worker` field.
pub fn set_worker(name: &str) {
    let worker = WORKER.get_or_init(RwLock::default);
    name.clone_into(&mut worker.write().unwrap_or_else(PoisonError::into_inner));
}

fn text_config() -> Config {
    let mut config = ConfigBuilder::new();
    config.add_filter_allow_str("conserver");
    config.set_time_format_rfc3339();
    config.set_target_level(LevelFilter::Off);
    config.set_thread_level(LevelFilter::Off);
    config.set_location_level(LevelFilter::Off);
    if under_journal() {
        config.set_time_level(LevelFilter::Off);
    }
    config.build()
}

/// Whether standard error is the journal, which stamps the lines itself: `JOURNAL_STREAM` holds
/// the device and inode it is connected to (systemd.exec(5)).
fn under_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// Standard error, written line by line.
#[derive(Default)]
struct WholeLines {
    line: Vec<u8>,
}

impl Write for WholeLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            write_line(&self.line);
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs each message on one line of characters that can be seen: much of what messages hold comes
/// from elsewhere. So none of them has lines of its own.
struct Visible<L>(Box<L>);

impl<L: SharedLogger> Log for Visible<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = Printable(record.args());
            self.0
                .log(&record.to_builder().args(format_args!("{message}")).build());
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

impl<L: SharedLogger + 'static> SharedLogger for Visible<L> {
    fn level(&self) -> LevelFilter {
        self.0.level()
    }

    fn config(&self) -> Option<&Config> {
        self.0.config()
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

/// One JSON object a line.
struct JsonLogger {
    level: LevelFilter,
}

impl Log for JsonLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level && metadata.target().starts_with("conserver")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut line = json_line(record);
            line.push('\n');
            write_line(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl SharedLogger for JsonLogger {
    fn level(&self) -> LevelFilter {
        self.level
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

fn json_line(record: &Record<'_>) -> String {
    let mut fields = Fields(Map::new());
    let asctime = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    fields.text("asctime", asctime);
    fields.text("levelname", python_name(record.level()).to_owned());
    fields.text("name", record.target().replace("::", "."));
    fields.text("message", record.args().to_string());
    if let Some(worker) = WORKER.get() {
        fields.text(
            "worker",
            worker
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        );
    }
    // The visitor below refuses nothing.
    let _ = record.key_values().visit(&mut fields);
    // What cannot be seen stays in the values, and does not get into the line.
    visible_json(&serde_json::Value::Object(fields.0).to_string())
}

fn python_name(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARNING",
        Level::Info => "INFO",
        Level::Debug | Level::Trace => "DEBUG",
    }
}

struct Fields(Map<String, serde_json::Value>);

impl Fields {
    fn text(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value.into());
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
        match value.to_f64() {
            Some(number) => {
                self.0.insert(key.as_str().to_owned(), number.into());
            }
            None => self.text(key.as_str(), value.to_string()),
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const HOSTILE: &str =
        "no\n2026-01-01T00:00:00Z [INFO] Finished\r\x1b[2J\u{9b}K\u{202e}\u{2066}\u{2028}\u{200b}é";

    #[test]
    fn a_message_from_elsewhere_stays_one_line_that_shows_all_of_it() {
        struct Written(Arc<Mutex<Vec<u8>>>);

        impl Write for Written {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let written = Arc::new(Mutex::new(Vec::new()));
        let logger = WriteLogger::new(
            LevelFilter::Info,
            text_config(),
            Written(Arc::clone(&written)),
        );
        let mut record = Record::builder();
        record.level(Level::Warn).target("conserver::worker");
        Visible(logger).log(&record.args(format_args!("S3 says {HOSTILE}")).build());
        let lines = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(lines.matches('\n').count(), 1, "{lines:?}");
        let shown = r"[WARN] S3 says no\n2026-01-01T00:00:00Z [INFO] Finished\r\u{1b}[2J\u{9b}K\u{202e}\u{2066}\u{2028}\u{200b}é";
        assert_eq!(lines.trim_end().split_once(' ').unwrap().1, shown);
    }

    #[test]
    fn a_json_line_hides_nothing_and_keeps_what_it_was_given() {
        let pairs = [("host", Value::from(HOSTILE))];
        let line = json_line(
            &Record::builder()
                .target("conserver")
                .key_values(&pairs)
                .args(format_args!("{HOSTILE}"))
                .build(),
        );
        assert!(line.chars().all(crate::visible::is_visible), "{line:?}");
        let fields: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(fields["message"], HOSTILE);
        assert_eq!(fields["host"], HOSTILE);
    }

    #[test]
    fn a_json_line_has_the_fields_people_filter_by() {
        let pairs = [
            ("vcon_id", Value::from("abc")),
            ("vcon_processing_time", Value::from(0.25)),
        ];
        let record = Record::builder()
            .level(Level::Warn)
            .target("conserver::worker::lane")
            .key_values(&pairs)
            .args(format_args!("say \"hi\"\nnow"))
            .build();
        let line = json_line(&record);
        assert!(!line.contains('\n'));
        let fields: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        assert_eq!(fields["levelname"], "WARNING");
        assert_eq!(fields["name"], "conserver.worker.lane");
        assert_eq!(fields["message"], "say \"hi\"\nnow");
        assert_eq!(fields["vcon_id"], "abc");
        assert_eq!(fields["vcon_processing_time"], 0.25);
        assert!(
            fields["asctime"]
                .as_str()
                .is_some_and(|time| time.ends_with('Z'))
        );
    }
}
