//! Every environment variable in one table: the contract that the manual repeats.

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What it is when it is unset or empty: a value as it could be set, or words in parentheses.
    pub default: &'static str,
    /// What it can be set to; "is not …" follows a faulty value in an error.
    pub values: &'static str,
    /// What it does.
    pub doc: &'static str,
}

const fn setting(
    name: &'static str,
    default: &'static str,
    values: &'static str,
    doc: &'static str,
) -> Setting {
    Setting {
        name,
        default,
        values,
        doc,
    }
}

const BOOLEAN: &str = "true, 1, yes, false, 0 or no";
const SECONDS: &str = "a whole number of seconds from 1 to 315360000";
const MILLISECONDS: &str = "a whole number of milliseconds from 1 to 3600000";

/// Every environment variable that is read, in the order of the documentation.
#[rustfmt::skip]
pub const TABLE: &[Setting] = &[
    setting("REDIS_URL", "redis://localhost", "a URL like redis://[user:password@]host[:port][/db], rediss://…, unix:///path[?db=…] or redis+sentinel://[user:password@]host[:port],…/master[/db]",
        "Redis; `rediss://` is TLS. With `redis+sentinel://` the sentinels are asked for the master at every connect"),
    setting("CONSERVER_CONFIG_FILE", "(`/etc/conserver/config.yml`, else `./config.yml`)", "a path",
        "The configuration file"),
    setting("CONSERVER_WORKERS", "1", "a whole number from 1 to 1024",
        "Worker processes; less than 1 counts as 1"),
    setting("CONSERVER_VCON_CONCURRENCY", "1", "a whole number from 1 to 1024",
        "vCons in flight in each worker"),
    setting("CONSERVER_PARALLEL_STORAGE", "true", BOOLEAN,
        "Save to the storages of a chain at the same time"),
    setting("CONSERVER_BATCH", "true", BOOLEAN,
        "What the lanes of a worker send to Redis, PostgreSQL or a disk at the same time goes together"),
    setting("CONSERVER_START_METHOD", "(`spawn` on macOS, else `fork`)", "fork, spawn or forkserver",
        "How worker processes are started"),
    setting("CONSERVER_DRAIN_TIMEOUT", "30", "a whole number of seconds from 0 to 86400",
        "How long workers may finish their vCons when the service stops, before they are killed"),
    setting("CONSERVER_INSTANCE", "(the host name)", "a name of at most 200 ASCII characters without spaces, colons and slashes",
        "The name under which this daemon keeps its claims; different for each daemon on one Redis"),
    setting("CONSERVER_MAX_DEATHS", "3", "a whole number from 0 to 1000",
        "A vCon that was in work when this many workers died goes to the dead letter queue; 0: never"),
    setting("CONSERVER_STUCK_AFTER", "3600", "a whole number of seconds from 0 to 86400000",
        "When a vCon has been in work for so long, the log and `conserver status` say that it is stuck; 0: never"),
    setting("CONSERVER_WORKER_MAX_VCONS", "0", "a whole number from 0 to 1000000000",
        "A worker is replaced by a fresh one after about so many vCons; 0: never"),
    setting("CONSERVER_WORKER_MAX_RSS_MB", "0", "a whole number of megabytes from 0 to 1048576",
        "A worker that uses more memory than about this is replaced by a fresh one; 0: never"),
    setting("CONSERVER_HEARTBEAT_TTL", "30", "a whole number of seconds from 3 to 86400",
        "A daemon that has not shown itself in Redis for so long counts as dead"),
    setting("CONSERVER_RETRY_FIRST_MS", "100", MILLISECONDS,
        "The pause before the first new attempt at a backend; it doubles with each"),
    setting("CONSERVER_RETRY_MAX_MS", "1000", MILLISECONDS,
        "The longest pause between attempts"),
    setting("CONSERVER_RETRY_ATTEMPTS", "5", "a whole number from 1 to 1000",
        "Attempts at a backend before a vCon goes back to its list and, where the backend does not answer, its chains are put on hold"),
    setting("CONSERVER_MAX_ROUNDS", "5", "a whole number from 0 to 1000000",
        "A vCon at which a backend has failed in so many rounds of attempts, while it worked for others, or whose program has ended in so many, goes to the dead letter queue; 0: never"),
    setting("CONSERVER_LIST_ORDER", "strict", "strict or rotate",
        "The order in which a claim looks at the ingress lists: `strict` is that of the configuration, so that a later list waits while an earlier one holds work; with `rotate` each claim begins one list further"),
    setting("CONSERVER_PYTHON_PATH", "(none)", "folders separated by colons",
        "Where modules that are not built in are looked for: the folders of the existing server and of your own Python code, as in `/app/conserver:/app/common`. Without it, there are no Python modules"),
    setting("CONSERVER_PYTHON", "python3", "the name or path of a Python interpreter, 3.9 or newer",
        "What runs Python modules: one process for each lane that needs one"),
    setting("CONSERVER_PYTHON_TIMEOUT", "300", "a whole number of seconds from 1 to 86400",
        "The longest time that one call of a Python module may take, and its import; then its process is killed. `timeout` beside `module` in the configuration sets it for one link or storage"),
    setting("CONSERVER_PIP_INSTALL", "false", BOOLEAN,
        "Whether packages whose modules are missing are installed with pip, at the start and before a changed configuration comes into force, into `python` below the state directory. `pip_name` names the package; without it, a module without a dot in its name is its own"),
    setting("CONSERVER_HEADER_NAME", "x-conserver-api-token", "the name of an HTTP header",
        "The header in which a follower sends its `auth_token`"),
    setting("CONSERVER_HTTP", "127.0.0.1:9180", "off, host:port, [IPv6]:port or unix:/path",
        "Where the monitor answers by HTTP: health, status and metrics; port 0 is any that is free"),
    setting("CONSERVER_HTTP_HOSTS", "(none)", "names separated by commas, or * for any",
        "Names by which the monitor may be asked, besides IP addresses, `localhost`, the host name and the one in `CONSERVER_HTTP`"),
    setting("CONSERVER_HTTP_TOKEN_FILE", "(none)", "a path, or the name of one of systemd's credentials",
        "The file with the token that whoever acts through the monitor must have: at least 16 characters. It is read again at each action. Without it, the monitor only shows"),
    setting("CONSERVER_LOG_FORMAT", "text", "text or json",
        "The form of log lines"),
    setting("LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL",
        "The least severe messages that are logged; CRITICAL is the same as ERROR"),
    setting("TICK_INTERVAL", "5000", MILLISECONDS,
        "The longest time an idle lane blocks in `BLPOP`, at most 20 s; then it looks at its lists and the configuration again"),
    setting("VCON_REDIS_EXPIRY", "3600", SECONDS,
        "Time to live of a vCon fetched back from a storage"),
    setting("VCON_CONTEXT_EXPIRY", "86400", SECONDS,
        "Time to live of contexts"),
    setting("VCON_DLQ_EXPIRY", "604800", "a whole number of seconds from 0 to 315360000",
        "Time to live of a vCon in a dead letter queue; 0: it keeps the one it has"),
    setting("VCON_SORTED_SET_NAME", "vcons", "a name without control characters",
        "The sorted set of all vCons by their time"),
    setting("VCON_STORAGE_FALLBACK_ENABLED", "true", BOOLEAN,
        "Look for a vCon that Redis does not have in the storages"),
    setting("VCON_REDIS_FORMAT", "auto", "auto, plain or json",
        "How a vCon is kept under a new key: as a plain string, or as RedisJSON; `auto` is plain, but RedisJSON on a server that has the module and on which this daemon has seen a vCon kept so since its start. A key that is there keeps its kind"),
    setting("VCON_JSON_BODIES", "native", "native or text",
        "How an object or array in the body of an analysis or attachment is written: as the value, or as its JSON text"),
    setting("VCON_CRITICAL", "pass", "pass or refuse",
        "At a link that would change it, a vCon whose `critical` names an extension that is not known here goes on unchanged, or to the dead letter queue"),
    setting("EGRESS_FORMAT_VERSION", "(the current version)", "0.0.1",
        "The version in which vCons leave for `links.webhook` and the storages `storage.postgres`, `storage.s3` and `storage.elasticsearch`"),
    setting("OTEL_EXPORTER_OTLP_ENDPOINT", "(none)", "a URL like http://collector:4318, with http or https and without a query",
        "The collector of OpenTelemetry to which spans and metrics are sent by HTTP, at `/v1/traces` and `/v1/metrics` below it. Without it, there is no telemetry"),
    setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "(below `OTEL_EXPORTER_OTLP_ENDPOINT`)", "a URL like http://collector:4318/v1/traces, with http or https and without a query",
        "Where spans are sent instead; the URL is used as it is"),
    setting("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "(below `OTEL_EXPORTER_OTLP_ENDPOINT`)", "a URL like http://collector:4318/v1/metrics, with http or https and without a query",
        "Where metrics are sent instead; the URL is used as it is"),
    setting("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "http/protobuf",
        "How spans and metrics are sent; gRPC and JSON are not built in"),
    setting("OTEL_EXPORTER_OTLP_HEADERS", "(none)", "name=value,name=value, with what is special in a value percent-encoded",
        "Headers of each request to the collector, such as its key; never shown"),
    setting("OTEL_EXPORTER_OTLP_COMPRESSION", "none", "gzip or none",
        "Whether what is sent is compressed"),
    setting("OTEL_EXPORTER_OTLP_TIMEOUT", "10000", MILLISECONDS,
        "How long the collector has to take what is sent"),
    setting("OTEL_METRIC_EXPORT_INTERVAL", "5000", MILLISECONDS,
        "The time between two exports of metrics"),
    setting("OTEL_SERVICE_NAME", "(`service.name` in `OTEL_RESOURCE_ATTRIBUTES`, else `vcon-server`)", "a name",
        "The name of the service in spans and metrics"),
    setting("OTEL_RESOURCE_ATTRIBUTES", "(none)", "name=value,name=value, with what is special in a value percent-encoded",
        "Further attributes of whatever is sent, such as `deployment.environment=prod`"),
    setting("OTEL_TRACES_SAMPLER", "always_on", "always_on, always_off, traceidratio, or the same with parentbased_ before it",
        "Of which vCons there are spans. Each vCon begins a trace, so `parentbased_` makes no difference"),
    setting("OTEL_TRACES_SAMPLER_ARG", "1", "a number from 0 to 1",
        "The share of vCons with spans for `traceidratio`"),
    setting("OTEL_SDK_DISABLED", "false", BOOLEAN,
        "Turns telemetry off although there is an endpoint"),
];

/// The table as Markdown, for conserver-settings(7).
pub fn markdown_table() -> String {
    let mut text = String::from("| variable | default | values | meaning |\n|---|---|---|---|\n");
    for Setting {
        name,
        default,
        values,
        doc,
    } in TABLE
    {
        let default = match default.strip_prefix('(').and_then(|d| d.strip_suffix(')')) {
            Some(words) => words.to_owned(),
            None => format!("`{default}`"),
        };
        text += &format!("| `{name}` | {default} | {values} | {doc} |\n");
    }
    text
}
