//! The log: lines for people through `simplelog`, or one JSON object a line, on standard error.
//!
//! Invisible characters are escaped here, and nowhere before. Each line is one write, so that the
//! lines of all processes stay whole. Workers wait for a log that is full: a slow worker is better than
//! a silent one. The supervisor never waits, or it would reap and stop nobody while nobody reads the
//! log: it loses lines, and logs how many.
//!
//! If the journal reads standard error, each line begins with its priority (sd-daemon(3)), which the
//! journal takes off and keeps: `journalctl -p warning`. The journal's own socket would take fields too,
//! but makes a writer wait as long as it is full, and needs a second way for when it is gone.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use chrono::{SecondsFormat, Utc};
use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, SFlag, fstat};
use serde_json::Map;
use simplelog::{
    ColorChoice, CombinedLogger, Config, ConfigBuilder, SharedLogger, TermLogger, TerminalMode,
    WriteLogger,
};
use socket2::SockRef;

use crate::settings::LogFormat;
use crate::visible::{Printable, visible_json};

/// The worker whose process this is.
static WORKER: OnceLock<RwLock<String>> = OnceLock::new();

/// Starts logging in this process; processes forked from it log too.
pub fn start(format: LogFormat, level: LevelFilter) {
    let is_journal = journal_reads_stderr();
    let loggers: Vec<Box<dyn SharedLogger>> = match format {
        LogFormat::Json => vec![Box::new(JsonLogger { level, is_journal })],
        LogFormat::Text if io::stderr().is_terminal() => {
            let colors = if no_color() {
                ColorChoice::Never
            } else {
                ColorChoice::Auto
            };
            let config = text_config(is_journal);
            let logger = TermLogger::new(level, config, TerminalMode::Stderr, colors);
            vec![Box::new(EscapingLogger { logger, only: None })]
        }
        // What writes a line does not know its level: there is a logger for each.
        LogFormat::Text if is_journal => {
            let of_level = |only: Level| -> Box<dyn SharedLogger> {
                let lines = LineWriter::beginning_with(priority(only));
                let logger = WriteLogger::new(level, text_config(is_journal), lines);
                let only = Some(only);
                Box::new(EscapingLogger { logger, only })
            };
            Level::iter().map(of_level).collect()
        }
        LogFormat::Text => {
            let lines = LineWriter::beginning_with("");
            let logger = WriteLogger::new(level, text_config(is_journal), lines);
            vec![Box::new(EscapingLogger { logger, only: None })]
        }
    };
    // A second start, as in a test, changes nothing.
    let _ = CombinedLogger::init(loggers);
    panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message");
        log::error!("panic at {location}: {text}");
    }));
}

/// Whether the user wants no colours: `NO_COLOR` is set and not empty.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Names the worker whose process this is, for the `worker` field.
pub fn set_worker(name: &str) {
    let worker = WORKER.get_or_init(RwLock::default);
    name.clone_into(&mut worker.write().unwrap_or_else(PoisonError::into_inner));
}

/// The journal stamps lines with the time itself.
fn text_config(is_journal: bool) -> Config {
    let mut config = ConfigBuilder::new();
    config.add_filter_allow_str("conserver");
    config.set_time_format_rfc3339();
    config.set_target_level(LevelFilter::Off);
    config.set_thread_level(LevelFilter::Off);
    config.set_location_level(LevelFilter::Off);
    if is_journal {
        config.set_time_level(LevelFilter::Off);
    }
    config.build()
}

/// What a line of this level on standard error begins with: its priority if the journal reads it, else
/// nothing.
pub fn line_start(level: Level) -> &'static str {
    if journal_reads_stderr() {
        priority(level)
    } else {
        ""
    }
}

/// The priority of a line, as sd-daemon(3) has it.
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Whether standard error is the stream to the journal that systemd has opened for this service, and was
/// not redirected since.
fn journal_reads_stderr() -> bool {
    let stream = std::env::var_os("JOURNAL_STREAM");
    let stderr = fstat(io::stderr());
    matches!((stream, stderr), (Some(stream), Ok(stderr)) if is_stream(&stderr, &stream))
}

/// Whether this is the stream that `JOURNAL_STREAM` names by its device and inode (systemd.exec(5)).
fn is_stream(file: &FileStat, named: &OsStr) -> bool {
    named == OsStr::new(&format!("{}:{}", file.st_dev, file.st_ino))
}

/// Writes to standard error line by line.
struct LineWriter {
    start: &'static str,
    line: Vec<u8>,
}

impl LineWriter {
    fn beginning_with(start: &'static str) -> Self {
        let line = start.into();
        Self { start, line }
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            write_line(&self.line);
            self.line.truncate(self.start.len());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs each message on one line of visible characters, as messages hold text from elsewhere.
struct EscapingLogger<L> {
    logger: Box<L>,
    /// The one level whose messages it logs, if not all.
    only: Option<Level>,
}

impl<L: SharedLogger> Log for EscapingLogger<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.only.is_none_or(|level| metadata.level() == level) && self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = Printable(record.args());
            self.logger
                .log(&record.to_builder().args(format_args!("{message}")).build());
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

impl<L: SharedLogger + 'static> SharedLogger for EscapingLogger<L> {
    fn level(&self) -> LevelFilter {
        self.logger.level()
    }

    fn config(&self) -> Option<&Config> {
        self.logger.config()
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

/// One JSON object a line.
struct JsonLogger {
    level: LevelFilter,
    is_journal: bool,
}

impl Log for JsonLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level && metadata.target().starts_with("conserver")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let start = if self.is_journal {
                priority(record.level())
            } else {
                ""
            };
            write_line(format!("{start}{}\n", json_line(record)).as_bytes());
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
    let mut fields = JsonFields(Map::new());
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
    // The visitor never fails.
    let _ = record.key_values().visit(&mut fields);
    // The values keep invisible characters, the line shows their escapes.
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

struct JsonFields(Map<String, serde_json::Value>);

impl JsonFields {
    fn text(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value.into());
    }
}

impl<'kvs> VisitSource<'kvs> for JsonFields {
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

/// The longest line that a pipe takes in one piece or not at all (PIPE_BUF on Linux).
const LONGEST_LINE: usize = 4096;

/// The longest line of any log: what others have written may be part of one.
const LONGEST_ANYWHERE: usize = 64 << 10;

/// The end of a line that was truncated.
const ELLIPSIS: &[u8] = b"...\n";

static NEVER_WAIT: AtomicBool = AtomicBool::new(false);
static STDERR: Mutex<Option<StderrOutput>> = Mutex::new(None);
static LOST_LINES: AtomicU64 = AtomicU64::new(0);

/// How to write to standard error without waiting.
enum StderrOutput {
    /// A regular file never makes a writer wait.
    File,
    /// A pipe or a terminal, opened again: O_NONBLOCK belongs to the open file description, and the
    /// inherited one is shared with other processes.
    Reopened(File),
    /// A socket takes a flag with each message.
    Socket,
    /// Anything else is polled first. Another process may fill it in between, so this is the last
    /// resort.
    Polled,
}

/// From now on this process loses lines rather than wait for standard error.
pub fn never_wait() {
    let mut output = STDERR.lock().unwrap_or_else(PoisonError::into_inner);
    *output = Some(StderrOutput::find());
    NEVER_WAIT.store(true, Ordering::Relaxed);
}

/// From now on this process waits for standard error, whatever its parent did before the fork.
pub fn may_wait() {
    NEVER_WAIT.store(false, Ordering::Relaxed);
    *STDERR.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Logs how many lines were lost since the last call, as soon as standard error takes a line again.
pub fn report_lost() {
    let lost = LOST_LINES.swap(0, Ordering::Relaxed);
    if lost > 0 {
        log::warn!("{lost} lines of this log were lost: standard error did not take them");
        if LOST_LINES.load(Ordering::Relaxed) > 0 {
            LOST_LINES.store(lost, Ordering::Relaxed);
        }
    }
}

/// Writes one line, which ends in a line break.
fn write_line(line: &[u8]) {
    let line = &truncated(line, LONGEST_ANYWHERE);
    if !NEVER_WAIT.load(Ordering::Relaxed) {
        // A log that cannot be written has nowhere to report it.
        let _ = io::stderr().write_all(line);
        return;
    }
    let output = STDERR.lock().unwrap_or_else(PoisonError::into_inner);
    let written = output.as_ref().is_none_or(|output| output.write(line));
    if !written {
        LOST_LINES.fetch_add(1, Ordering::Relaxed);
    }
}

impl StderrOutput {
    fn find() -> Self {
        let kind = fstat(io::stderr()).map_or(0, |stat| stat.st_mode) & SFlag::S_IFMT.bits();
        match SFlag::from_bits_truncate(kind) {
            SFlag::S_IFREG => Self::File,
            SFlag::S_IFSOCK => Self::Socket,
            _ => reopen().map_or(Self::Polled, Self::Reopened),
        }
    }

    /// Returns whether the line was written.
    fn write(&self, line: &[u8]) -> bool {
        let written = match self {
            Self::File => io::stderr().write_all(line).map(|()| line.len()),
            Self::Reopened(file) => (&mut &*file).write(&truncated(line, LONGEST_LINE)),
            Self::Socket => send(&io::stderr(), &truncated(line, LONGEST_LINE)),
            Self::Polled if has_room() => io::stderr().write(&truncated(line, LONGEST_LINE)),
            Self::Polled => return false,
        };
        written.is_ok()
    }
}

fn send(socket: &impl AsFd, line: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send_with_flags(line, libc::MSG_DONTWAIT)
}

#[cfg(target_os = "linux")]
fn reopen() -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/proc/self/fd/2")
}

/// On other systems such a name stands for the descriptor itself.
#[cfg(not(target_os = "linux"))]
fn reopen() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

fn has_room() -> bool {
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut room, PollTimeout::ZERO), Ok(1))
}

/// The line, truncated to this many bytes.
fn truncated(line: &[u8], longest: usize) -> Cow<'_, [u8]> {
    if line.len() <= longest {
        return line.into();
    }
    let mut end = longest - ELLIPSIS.len();
    // Not in the middle of a character.
    while end > 0 && line[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    [&line[..end], ELLIPSIS].concat().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

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
            text_config(false),
            Written(Arc::clone(&written)),
        );
        let mut record = Record::builder();
        record.level(Level::Warn).target("conserver::worker");
        let logger = EscapingLogger { logger, only: None };
        logger.log(&record.args(format_args!("S3 says {HOSTILE}")).build());
        let lines = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(lines.matches('\n').count(), 1, "{lines:?}");
        let shown = r"[WARN] S3 says no\n2026-01-01T00:00:00Z [INFO] Finished\r\u{1b}[2J\u{9b}K\u{202e}\u{2066}\u{2028}\u{200b}é";
        assert_eq!(lines.trim_end().split_once(' ').unwrap().1, shown);
    }

    #[test]
    fn each_level_has_its_priority() {
        let priorities: Vec<&str> = Level::iter().map(priority).collect();
        assert_eq!(priorities, ["<3>", "<4>", "<6>", "<7>", "<7>"]);
    }

    #[test]
    fn a_stream_is_the_journal_only_if_device_and_inode_are_those_named() {
        let file = tempfile::tempfile().unwrap();
        let stat = fstat(&file).unwrap();
        let named = format!("{}:{}", stat.st_dev, stat.st_ino);
        let other = fstat(tempfile::tempfile().unwrap()).unwrap();
        assert!(is_stream(&stat, OsStr::new(&named)));
        assert!(!is_stream(&other, OsStr::new(&named)));
        for wrong in ["", ":", "0:0", &named[1..], &format!("{named}0")] {
            assert!(!is_stream(&stat, OsStr::new(wrong)), "{wrong}");
        }
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

    #[test]
    fn a_socket_that_nobody_reads_fails_rather_than_waits() {
        let (here, there) = UnixStream::pair().unwrap();
        let line = [b'x'; 1000];
        let refusal = loop {
            if let Err(error) = send(&here, &line) {
                break error;
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
        drop(there);
    }

    #[test]
    fn a_long_line_is_truncated_between_characters() {
        let short = b"short\n";
        assert_eq!(*truncated(short, LONGEST_LINE), *short);
        for shift in 0..4 {
            let long = "x".repeat(shift) + &"\u{1F600}".repeat(2000) + "\n";
            let line = truncated(long.as_bytes(), LONGEST_LINE).into_owned();
            assert!(line.len() <= LONGEST_LINE && line.len() > LONGEST_LINE - 8);
            let text = String::from_utf8(line).unwrap_or_default();
            assert!(text.ends_with("\u{1F600}...\n"));
        }
    }
}
