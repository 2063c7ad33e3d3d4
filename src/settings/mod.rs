//! The environment, read once at the start into [`Settings`].
//!
//! [`TABLE`] lists every variable; a test holds it against what is read here. Whatever is wrong
//! is reported together. `env_file` adds what `.env` holds to the environment before that, and `ignored` has the
//! variables of the existing server that mean nothing here.

mod env_file;
mod http_address;
mod ignored;
mod python;
mod reader;
mod redis_url;
mod sentinel_url;
mod table;
mod telemetry;
#[cfg(test)]
mod tests;
mod url;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use ureq::http::HeaderName;

#[cfg(any(test, fuzzing))]
pub(crate) use env_file::fuzz;
pub use env_file::{EnvFile, variables_of};
pub use http_address::{HttpAddress, NotAnHttpAddress};
pub use ignored::{IGNORED, Ignored, ignored, ignored_markdown_table};
pub use python::PythonSettings;
pub use reader::{SettingsErrors, misspelt, misspelt_among};
pub use redis_url::{NotARedisUrl, RedisUrl};
pub use sentinel_url::Master;
pub use table::{Setting, TABLE, markdown_table};
pub use telemetry::TelemetrySettings;

use crate::vcon::{JsonBodies, Version};
use reader::{Reader, accepted};

/// Where the configuration is looked for when no variable says so.
const SYSTEM_CONFIG_FILE: &str = "/etc/conserver/config.yml";
const LOCAL_CONFIG_FILE: &str = "./config.yml";

/// Ten years, in seconds.
const LONGEST_EXPIRY: u64 = 315_360_000;
const LONGEST_PAUSE_MS: u64 = 3_600_000;
/// A thousand days, in seconds.
const LONGEST_WORK: u64 = 86_400_000;

/// Beats follow `TICK_INTERVAL`, within these bounds: seldom enough to cost nothing, often enough
/// to notice a worker that hangs.
const SHORTEST_BEAT: Duration = Duration::from_millis(100);
const LONGEST_BEAT: Duration = Duration::from_secs(5);

const MOST_VCONS: u64 = 1_000_000_000;
const MOST_MEGABYTES: u64 = 1_048_576;

/// What the environment says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `REDIS_URL`
    pub redis_url: RedisUrl,
    /// `CONSERVER_CONFIG_FILE`, or the first place that has a file.
    pub config_file: PathBuf,
    /// `CONSERVER_WORKERS`, at least 1.
    pub workers: u32,
    /// `CONSERVER_VCON_CONCURRENCY`: the lanes of each worker, at least 1.
    pub concurrency: u32,
    /// `CONSERVER_PARALLEL_STORAGE`
    pub parallel_storage: bool,
    /// `CONSERVER_BATCH`
    pub batch: bool,
    /// `CONSERVER_START_METHOD`
    pub start_method: StartMethod,
    /// `CONSERVER_DRAIN_TIMEOUT`
    pub drain_timeout: Duration,
    /// `CONSERVER_INSTANCE`
    pub instance: String,
    /// Whether `CONSERVER_INSTANCE` is set.
    pub instance_is_set: bool,
    /// `CONSERVER_MAX_DEATHS`: with 0 no vCon counts as poison.
    pub max_deaths: u32,
    /// `CONSERVER_STUCK_AFTER`: a lane that works on one vCon for longer is stuck.
    pub stuck_after: Option<Duration>,
    /// `CONSERVER_WORKER_MAX_VCONS`: a worker is recycled after so many claims.
    pub worker_max_vcons: Option<u64>,
    /// `CONSERVER_WORKER_MAX_RSS_MB`, in bytes: a worker that has grown beyond it is recycled.
    pub worker_max_rss: Option<u64>,
    /// `CONSERVER_HEARTBEAT_TTL`: an instance that has not shown itself for so long is dead.
    pub heartbeat_ttl: Duration,
    /// `CONSERVER_RETRY_FIRST_MS`, at most `retry_max`.
    pub retry_first: Duration,
    /// `CONSERVER_RETRY_MAX_MS`
    pub retry_max: Duration,
    /// `CONSERVER_RETRY_ATTEMPTS`: so often a backend is tried for one vCon before that is let go.
    pub retry_attempts: u32,
    /// `CONSERVER_MAX_ROUNDS`: so often a vCon is let go before it counts as impossible; 0: never.
    pub max_rounds: u32,
    /// `CONSERVER_LIST_ORDER`
    pub list_order: ListOrder,
    /// `CONSERVER_PYTHON_PATH` and what else concerns Python modules.
    pub python: PythonSettings,
    /// `CONSERVER_HTTP`: where the monitor answers.
    pub http: HttpAddress,
    /// `CONSERVER_HEADER_NAME`: where a follower says who asks.
    pub header_name: HeaderName,
    /// `CONSERVER_HTTP_HOSTS`, in lower case: further names by which the monitor may be asked; `*`
    /// is any.
    pub http_hosts: Vec<String>,
    /// `CONSERVER_HTTP_TOKEN_FILE`: without it, the monitor only shows.
    pub http_token_file: Option<String>,
    /// `CONSERVER_LOG_FORMAT`
    pub log_format: LogFormat,
    /// `LOG_LEVEL`
    pub log_level: LevelFilter,
    /// `TICK_INTERVAL`
    pub tick: Duration,
    /// `VCON_REDIS_EXPIRY`, in seconds.
    pub redis_expiry: u64,
    /// `VCON_CONTEXT_EXPIRY`, in seconds.
    pub context_expiry: u64,
    /// `VCON_DLQ_EXPIRY`, in seconds; `None` where dead letters keep the time to live they have.
    pub dlq_expiry: Option<u64>,
    /// `VCON_SORTED_SET_NAME`
    pub sorted_set: String,
    /// `VCON_STORAGE_FALLBACK_ENABLED`
    pub storage_fallback: bool,
    /// `VCON_REDIS_FORMAT`
    pub redis_format: RedisFormat,
    /// `VCON_JSON_BODIES`
    pub json_bodies: JsonBodies,
    /// `VCON_CRITICAL`
    pub critical: Critical,
    /// `EGRESS_FORMAT_VERSION`
    pub egress_version: Version,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` and what else concerns OpenTelemetry.
    pub telemetry: TelemetrySettings,
}

/// How a vCon is kept under a key that is new in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisFormat {
    /// As a plain string, but for a server with RedisJSON in which vCons are seen to be kept so.
    Auto,
    /// As a plain string.
    Plain,
    /// As a RedisJSON document.
    Json,
}

/// What becomes of a vCon at a link that would change it, if its `critical` names extensions that are
/// not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Critical {
    /// It goes on unchanged.
    Pass,
    /// It goes to the dead letter queue.
    Refuse,
}

/// How worker processes come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMethod {
    /// A copy of the supervisor.
    Fork,
    /// The program executed anew.
    Spawn,
    /// A copy of a small process kept for that.
    Forkserver,
}

/// In which order a claim looks at the ingress lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListOrder {
    /// Always from the first list of the configuration on, as BLPOP does.
    Strict,
    /// Each claim begins one list further.
    Rotate,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

impl StartMethod {
    /// What the platform does by itself.
    pub const DEFAULT: Self = if cfg!(target_os = "macos") {
        Self::Spawn
    } else {
        Self::Fork
    };

    /// Every start method there is.
    pub const ALL: [Self; 3] = [Self::Fork, Self::Spawn, Self::Forkserver];

    /// Its number on the scoreboard.
    pub fn number(self) -> u64 {
        self as u64 + 1
    }

    /// The one that has this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|method| method.number() == number)
    }

    /// The name as it is set.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Spawn => "spawn",
            Self::Forkserver => "forkserver",
        }
    }
}

impl fmt::Display for StartMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Settings {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, SettingsErrors> {
        Self::from_lookup(&|name| env::var_os(name))
    }

    /// Whether the lanes of a worker send together what they have at the same time. A single one has nobody to
    /// share with.
    pub fn batches(&self) -> bool {
        self.batch && self.concurrency > 1
    }

    /// Reads the variables that `lookup` gives. An empty one counts as unset.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, SettingsErrors> {
        let (settings, faults) = Self::with_faults(lookup);
        if faults.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsErrors(faults))
        }
    }

    /// The same, with the default of each variable that is faulty, and what is wrong: a line for each.
    pub fn with_faults(lookup: &dyn Fn(&str) -> Option<OsString>) -> (Self, Vec<String>) {
        let mut reader = Reader::new(lookup);
        let settings = Self::read(&mut reader);
        (settings, reader.faults)
    }

    /// How often the supervisor and its children show on the scoreboard that they are alive.
    pub fn beat(&self) -> Duration {
        self.tick.clamp(SHORTEST_BEAT, LONGEST_BEAT)
    }

    /// Reads every variable; a faulty one is recorded and has its default here.
    fn read(reader: &mut Reader<'_>) -> Self {
        let (retry_first, retry_max) = retry(reader);
        let dlq_expiry = reader.number("VCON_DLQ_EXPIRY", 604_800, 0, LONGEST_EXPIRY);
        Self {
            redis_url: redis_url(reader),
            config_file: config_file(reader, &Path::exists),
            workers: reader.parsed("CONSERVER_WORKERS", 1, workers),
            concurrency: reader.number("CONSERVER_VCON_CONCURRENCY", 1, 1, 1024),
            parallel_storage: reader.boolean("CONSERVER_PARALLEL_STORAGE", true),
            batch: reader.boolean("CONSERVER_BATCH", true),
            start_method: reader.parsed(
                "CONSERVER_START_METHOD",
                StartMethod::DEFAULT,
                start_method,
            ),
            drain_timeout: Duration::from_secs(reader.number(
                "CONSERVER_DRAIN_TIMEOUT",
                30,
                0,
                86_400,
            )),
            instance_is_set: reader.raw("CONSERVER_INSTANCE").is_some(),
            instance: instance(reader),
            max_deaths: reader.number("CONSERVER_MAX_DEATHS", 3, 0, 1000),
            stuck_after: seconds_or_never(reader, "CONSERVER_STUCK_AFTER", 3600, LONGEST_WORK),
            worker_max_vcons: limit(reader, "CONSERVER_WORKER_MAX_VCONS", MOST_VCONS),
            worker_max_rss: limit(reader, "CONSERVER_WORKER_MAX_RSS_MB", MOST_MEGABYTES)
                .map(|megabytes| megabytes << 20),
            heartbeat_ttl: Duration::from_secs(reader.number(
                "CONSERVER_HEARTBEAT_TTL",
                30,
                3,
                86_400,
            )),
            retry_first,
            retry_max,
            retry_attempts: reader.number("CONSERVER_RETRY_ATTEMPTS", 5, 1, 1000),
            max_rounds: reader.number("CONSERVER_MAX_ROUNDS", 5, 0, 1_000_000),
            list_order: reader.parsed("CONSERVER_LIST_ORDER", ListOrder::Strict, list_order),
            python: PythonSettings::read(reader),
            http: reader.parsed("CONSERVER_HTTP", HttpAddress::default(), |text| {
                text.parse().ok()
            }),
            header_name: reader.parsed(
                "CONSERVER_HEADER_NAME",
                HeaderName::from_static("x-conserver-api-token"),
                |text| text.trim().parse().ok(),
            ),
            http_hosts: reader.parsed("CONSERVER_HTTP_HOSTS", Vec::new(), http_hosts),
            http_token_file: reader.text("CONSERVER_HTTP_TOKEN_FILE"),
            log_format: reader.parsed("CONSERVER_LOG_FORMAT", LogFormat::Text, log_format),
            log_level: reader.parsed("LOG_LEVEL", LevelFilter::Info, log_level),
            tick: milliseconds(reader, "TICK_INTERVAL", 5000),
            redis_expiry: reader.number("VCON_REDIS_EXPIRY", 3600, 1, LONGEST_EXPIRY),
            context_expiry: reader.number("VCON_CONTEXT_EXPIRY", 86_400, 1, LONGEST_EXPIRY),
            dlq_expiry: (dlq_expiry > 0).then_some(dlq_expiry),
            sorted_set: reader.parsed("VCON_SORTED_SET_NAME", "vcons".to_owned(), |text| {
                (!text.chars().any(char::is_control)).then(|| text.to_owned())
            }),
            storage_fallback: reader.boolean("VCON_STORAGE_FALLBACK_ENABLED", true),
            redis_format: reader.parsed("VCON_REDIS_FORMAT", RedisFormat::Auto, redis_format),
            json_bodies: reader.parsed("VCON_JSON_BODIES", JsonBodies::Native, json_bodies),
            critical: reader.parsed("VCON_CRITICAL", Critical::Pass, critical),
            egress_version: reader.parsed("EGRESS_FORMAT_VERSION", Version::Current, |text| {
                (text == "0.0.1").then_some(Version::V0_0_1)
            }),
            telemetry: TelemetrySettings::read(reader),
        }
    }
}

fn redis_url(reader: &mut Reader<'_>) -> RedisUrl {
    const NAME: &str = "REDIS_URL";
    let Some(text) = reader.text(NAME) else {
        return RedisUrl::default();
    };
    text.parse().unwrap_or_else(|error| {
        let message = format!(
            "{error}; {} is accepted, with what is special in a password percent-encoded",
            accepted(NAME)
        );
        reader.fault(NAME, &message);
        RedisUrl::default()
    })
}

fn config_file(reader: &Reader<'_>, exists: &dyn Fn(&Path) -> bool) -> PathBuf {
    let named = reader.raw("CONSERVER_CONFIG_FILE").map(PathBuf::from);
    named.unwrap_or_else(|| {
        let system = Path::new(SYSTEM_CONFIG_FILE);
        let found = exists(system).then_some(system);
        found.unwrap_or(Path::new(LOCAL_CONFIG_FILE)).to_owned()
    })
}

fn workers(text: &str) -> Option<u32> {
    let number = text.parse::<i64>().ok()?.max(1);
    u32::try_from(number).ok().filter(|number| *number <= 1024)
}

fn start_method(text: &str) -> Option<StartMethod> {
    let is_named = |method: &StartMethod| text.eq_ignore_ascii_case(method.as_str());
    StartMethod::ALL.into_iter().find(is_named)
}

fn list_order(text: &str) -> Option<ListOrder> {
    match text.to_ascii_lowercase().as_str() {
        "strict" => Some(ListOrder::Strict),
        "rotate" => Some(ListOrder::Rotate),
        _ => None,
    }
}

fn redis_format(text: &str) -> Option<RedisFormat> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Some(RedisFormat::Auto),
        "plain" => Some(RedisFormat::Plain),
        "json" => Some(RedisFormat::Json),
        _ => None,
    }
}

fn json_bodies(text: &str) -> Option<JsonBodies> {
    match text.to_ascii_lowercase().as_str() {
        "native" => Some(JsonBodies::Native),
        "text" => Some(JsonBodies::Text),
        _ => None,
    }
}

fn critical(text: &str) -> Option<Critical> {
    match text.to_ascii_lowercase().as_str() {
        "pass" => Some(Critical::Pass),
        "refuse" => Some(Critical::Refuse),
        _ => None,
    }
}

fn log_format(text: &str) -> Option<LogFormat> {
    match text.to_ascii_lowercase().as_str() {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn log_level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_uppercase().as_str() {
        "DEBUG" => Some(LevelFilter::Debug),
        "INFO" => Some(LevelFilter::Info),
        "WARNING" | "WARN" => Some(LevelFilter::Warn),
        "ERROR" | "CRITICAL" => Some(LevelFilter::Error),
        _ => None,
    }
}

fn http_hosts(text: &str) -> Option<Vec<String>> {
    let is_name = |name: &str| {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        name == "*" || ((1..=253).contains(&name.len()) && name.chars().all(is_good))
    };
    let names = text.split(',').map(|name| name.trim().to_ascii_lowercase());
    let names: Vec<String> = names.collect();
    names.iter().all(|name| is_name(name)).then_some(names)
}

fn milliseconds(reader: &mut Reader<'_>, name: &str, default: u64) -> Duration {
    Duration::from_millis(reader.number(name, default, 1, LONGEST_PAUSE_MS))
}

/// A time, where 0 means never.
fn seconds_or_never(
    reader: &mut Reader<'_>,
    name: &str,
    default: u64,
    most: u64,
) -> Option<Duration> {
    let seconds = reader.number(name, default, 0, most);
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// A limit, where 0 means none.
fn limit(reader: &mut Reader<'_>, name: &str, most: u64) -> Option<u64> {
    Some(reader.number(name, 0, 0, most)).filter(|limit| *limit > 0)
}

fn retry(reader: &mut Reader<'_>) -> (Duration, Duration) {
    const FIRST: &str = "CONSERVER_RETRY_FIRST_MS";
    const MAX: &str = "CONSERVER_RETRY_MAX_MS";
    let faults = reader.faults.len();
    let first = milliseconds(reader, FIRST, 100);
    let max = milliseconds(reader, MAX, 1000);
    if first > max && reader.faults.len() == faults {
        // The one that was set is at fault, not the other's default.
        if reader.text(FIRST).is_some() {
            reader.fault(
                FIRST,
                &format!("{first:?} is more than the {max:?} of {MAX}"),
            );
        } else {
            reader.fault(
                MAX,
                &format!("{max:?} is less than the {first:?} of {FIRST}"),
            );
        }
    }
    (first, max)
}

/// The name of this daemon among all on one Redis. It becomes part of keys, whose parts a colon
/// separates, and of file names.
fn instance(reader: &mut Reader<'_>) -> String {
    const NAME: &str = "CONSERVER_INSTANCE";
    let is_good = |text: &str| {
        let is_good = |c: char| c.is_ascii_graphic() && !matches!(c, ':' | '/');
        let is_path = text == "." || text == "..";
        !text.is_empty() && text.len() <= 200 && text.chars().all(is_good) && !is_path
    };
    let set = reader.parsed(NAME, None, |text| {
        is_good(text).then(|| Some(text.to_owned()))
    });
    if let Some(name) = set {
        return name;
    }
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy().into_owned();
    if !is_good(&host) {
        let message = format!(
            "must be set: the host name {host:?} is not {}",
            accepted(NAME)
        );
        reader.fault(NAME, &message);
    }
    host
}
