//! `conserver check`: checks the settings and the configuration, and tries to reach every server.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::style::Stylize as _;
use unicode_width::UnicodeWidthStr as _;

use super::output::{
    counted, eprint_line, eprint_lines, has_colours, line_width, print_coloured, wrapped,
};
use crate::config::{Config, ConfigErrors, Follower};
use crate::exit::Exit;
use crate::http_client;
use crate::monitor;
use crate::queue::{
    ConfiguredWork, Fitness, Needs, QueueError, RedisConnection, Server, cluster_refusal, rehearse,
};
use crate::scoreboard::MOST_SERIES;
use crate::settings::{self, EnvFile, Settings};
use crate::storage::ConnectionLimit;
use crate::visible::printable;

/// The time limit for the reply of a server.
const REPLY_LIMIT: Duration = Duration::from_secs(5);

/// What to check.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Check the settings and config.yml alone; connect to nothing
    #[arg(long)]
    offline: bool,

    /// Treat warnings as errors: name them, check nothing more, and exit with 78
    #[arg(long)]
    deny_warnings: bool,
}

impl CheckArgs {
    /// Whether it asks Redis for anything.
    pub fn asks_redis(&self) -> bool {
        !self.offline
    }

    /// Runs all checks, and prints a table of the results.
    pub fn run(&self, settings: &Settings, env_file: &EnvFile) -> Exit {
        check(settings, env_file, self.offline, self.deny_warnings)
    }
}

fn check(settings: &Settings, env_file: &EnvFile, offline: bool, deny_warnings: bool) -> Exit {
    let warn = |warning: &String| eprint_line(format_args!("warning: {warning}"));
    let mut mistakes = env_file.warnings().to_vec();
    mistakes.extend(settings::misspelt());
    let token_file = settings.http_token_file.as_deref();
    let token = token_file.map(|file| (file, monitor::server::check_token(file)));
    if let Some((_, Ok(Some(warning)))) = &token {
        mistakes.push(warning.clone());
    }
    mistakes.iter().for_each(warn);
    let refused = |errors: ConfigErrors| {
        let (faults, warnings) = errors.counts();
        eprint_lines(errors);
        print_summary("the configuration", faults, mistakes.len() + warnings);
        Exit::Config
    };
    let config = match Config::load(&settings.config_file) {
        Ok(config) => config,
        Err(errors) => return refused(errors),
    };
    let python = match config.check_python(&settings.config_file) {
        Ok(warnings) => warnings,
        Err(errors) => return refused(errors),
    };
    let odd: Vec<String> = config.warnings.lines().chain(python.lines()).collect();
    odd.iter().for_each(warn);
    let mut warnings = mistakes.len() + odd.len();
    if deny_warnings && warnings > 0 {
        print_summary(&parts(&config), 0, warnings);
        return Exit::Config;
    }
    let series = config.chains.len() + config.links.len() + config.storages.len();
    if series > MOST_SERIES {
        warn(&format!(
            "there are {series} chains, links and storages, and the scoreboard has room for the figures of \
             {MOST_SERIES}: some chains have none"
        ));
        warnings += 1;
    }
    let mut rows = Vec::new();
    rows.extend(
        env_file
            .summary()
            .map(|it| CheckRow::fine("environment file", it)),
    );
    rows.extend(settings::ignored(env_file).map(|it| CheckRow::fine("ignored variables", it)));
    rows.extend([
        CheckRow::fine("settings", lanes_text(settings)),
        CheckRow::fine("configuration", settings.config_file.display().to_string()),
    ]);
    rows.extend(config.chains.iter().map(|chain| {
        let name = format!("chain {}", chain.name);
        let lists: Vec<&str> = chain
            .ingress_lists
            .iter()
            .map(|list| list.as_str())
            .collect();
        let state = if chain.enabled {
            ""
        } else {
            "out of service, "
        };
        CheckRow::fine(&name, format!("{state}from {}", lists.join(", ")))
    }));
    rows.extend(config.python_modules().into_iter().map(|(module, _)| {
        let what = format!(
            "{} {} ({})",
            module.kind.as_str(),
            module.entry,
            module.module
        );
        let interpreter = &settings.python.interpreter;
        CheckRow::fine(&what, format!("a Python module, run by {interpreter}"))
    }));
    rows.extend(config.links.iter().filter_map(|(name, link)| {
        let detail = link.open_link().check().err()?;
        Some(CheckRow {
            what: format!("link {name}"),
            exit: Exit::Config,
            detail,
            room: Vec::new(),
        })
    }));
    rows.extend(config.storages.iter().map(|(name, storage)| {
        let detail = format!("on_outage: {}", storage.on_outage.as_str());
        CheckRow::fine(&format!("storage {name} ({})", storage.module), detail)
    }));
    rows.extend(config.followers.iter().map(|follower| {
        let Follower {
            name,
            url,
            egress_list,
            ingress_list,
            ..
        } = follower;
        let detail = format!("from list {egress_list} of {url} onto list {ingress_list}");
        CheckRow::fine(&format!("follower {name}"), detail)
    }));
    rows.extend(token.map(|(file, checked)| match checked {
        Ok(_) => CheckRow::fine("token of the monitor", file.to_owned()),
        Err(detail) => CheckRow {
            what: "token of the monitor".to_owned(),
            exit: Exit::Config,
            detail,
            room: Vec::new(),
        },
    }));
    if !offline {
        let address = settings.http.clone();
        let http = ServerProbe::start("HTTP of the monitor".to_owned(), move || {
            monitor::server::check(&address).map_err(CheckFailure::unavailable)
        });
        let mut probes = start_probes(settings, &config);
        probes.insert(0, http);
        let deadline = Instant::now() + REPLY_LIMIT;
        rows.extend(probes.into_iter().map(|probe| probe.finish(deadline)));
    }

    let crowded = crowded(settings, &config, &rows);
    crowded.iter().for_each(warn);
    print_coloured(table(&rows, line_width(), has_colours()));
    let failed = rows.iter().filter(|row| row.exit != Exit::Ok).count();
    print_summary(&parts(&config), failed, warnings + crowded.len());
    let is = |exit: Exit| rows.iter().any(|row| row.exit == exit);
    match (is(Exit::Config), is(Exit::Unavailable)) {
        (true, _) => Exit::Config,
        (false, false) if deny_warnings && !crowded.is_empty() => Exit::Config,
        (false, true) => Exit::Unavailable,
        (false, false) => Exit::Ok,
    }
}

/// `3 chains, 5 links, 4 storages`, and what else there is.
fn parts(config: &Config) -> String {
    let parts = [
        (config.chains.len(), "chain", true),
        (config.links.len(), "link", true),
        (config.storages.len(), "storage", true),
        (config.followers.len(), "follower", false),
        (config.tracers.len(), "tracer", false),
    ];
    let shown = parts
        .into_iter()
        .filter(|(count, _, is_always)| *is_always || *count > 0);
    let shown: Vec<String> = shown.map(|(count, noun, _)| counted(count, noun)).collect();
    shown.join(", ")
}

/// Prints the last line: `3 chains, 5 links, 4 storages: 1 error, 2 warnings`.
fn print_summary(of: &str, errors: usize, warnings: usize) {
    let found = format!(
        "{}, {}",
        counted(errors, "error"),
        counted(warnings, "warning")
    );
    let found = match (errors, warnings) {
        _ if !has_colours() => found,
        (0, 0) => found.green().to_string(),
        (0, _) => found.yellow().to_string(),
        _ => found.red().bold().to_string(),
    };
    print_coloured(format_args!("{of}: {found}"));
}

/// The columns of the state, and between two columns.
const STATE: usize = 6;
const GAP: usize = 2;

/// A row needs as many columns for what it says of something; with less, that goes below its name.
const NARROWEST_DETAIL: usize = 40;

/// The rows in lines of at most `width` columns: the state, what it is about, and what there is to say of it.
fn table(rows: &[CheckRow], width: usize, has_colours: bool) -> String {
    let first = STATE + GAP;
    let names: Vec<_> = rows.iter().map(|row| printable(&row.what)).collect();
    let longest = names
        .iter()
        .map(|name| name.width())
        .max()
        .unwrap_or_default();
    let name_width = longest.min(width / 3);
    let beside = first + name_width + GAP;
    let mut lines = Vec::new();
    for (row, name) in rows.iter().zip(names) {
        let state = match (row.exit == Exit::Ok, has_colours) {
            (true, false) => "ok    ".to_owned(),
            (false, false) => "FAILED".to_owned(),
            (true, true) => "ok    ".green().to_string(),
            (false, true) => "FAILED".red().bold().to_string(),
        };
        let detail = printable(&row.detail);
        let longest = detail
            .split(' ')
            .map(|word| word.width())
            .max()
            .unwrap_or_default();
        let room = width.saturating_sub(beside);
        // A UUID or a URL stays whole if it can.
        let is_beside = name.width() <= name_width && room >= longest.max(NARROWEST_DETAIL);
        let (indent, room) = match is_beside {
            true => (beside, room),
            false => (first + GAP, width.saturating_sub(first + GAP)),
        };
        let mut details = wrapped(&detail, room).into_iter();
        let names = wrapped(&name, width.saturating_sub(first));
        for (number, name) in names.iter().enumerate() {
            let state = if number == 0 { &state } else { "      " };
            let mut line = format!("{state}  {name}");
            if is_beside {
                let blank = name_width - name.width() + GAP;
                line.extend(std::iter::repeat_n(' ', blank));
                line.extend(details.next());
            }
            lines.push(line.trim_end().to_owned());
        }
        let blank = " ".repeat(indent);
        let details = details.filter(|it| !it.is_empty());
        lines.extend(details.map(|detail| format!("{blank}{detail}")));
    }
    lines.join("\n")
}

struct CheckRow {
    what: String,
    exit: Exit,
    detail: String,
    /// The connections that the server allows.
    room: Vec<ConnectionLimit>,
}

/// Why a check failed.
struct CheckFailure {
    exit: Exit,
    text: String,
}

impl CheckFailure {
    fn unavailable(text: impl ToString) -> Self {
        Self {
            exit: Exit::Unavailable,
            text: text.to_string(),
        }
    }
}

impl CheckRow {
    fn fine(what: &str, detail: String) -> Self {
        Self {
            what: what.to_owned(),
            exit: Exit::Ok,
            detail,
            room: Vec::new(),
        }
    }
}

/// `1 worker x 4 lanes`
fn lanes_text(settings: &Settings) -> String {
    format!(
        "{} x {}",
        counted(settings.workers, "worker"),
        counted(settings.concurrency, "lane")
    )
}

/// A warning for each limit on connections that all lanes together may exceed. While it saves, a lane has
/// one connection for each storage.
fn crowded(settings: &Settings, config: &Config, rows: &[CheckRow]) -> Vec<String> {
    let lanes = u64::from(settings.workers) * u64::from(settings.concurrency);
    let is_used = |storage: &str| {
        let mut chains = config.chains.iter().filter(|chain| chain.enabled);
        chains.any(|chain| chain.storages.iter().any(|it| it == storage))
    };
    let mut limits: Vec<(&ConnectionLimit, Vec<&str>)> = Vec::new();
    for row in rows {
        let storage = row.what.strip_prefix("storage ").unwrap_or(&row.what);
        for room in row.room.iter().filter(|_| is_used(storage)) {
            match limits.iter_mut().find(|(known, _)| known.of == room.of) {
                Some((_, storages)) => storages.push(storage),
                None => limits.push((room, vec![storage])),
            }
        }
    }
    let warning = |(room, storages): &(&ConnectionLimit, Vec<&str>)| {
        let wanted = lanes * storages.len() as u64;
        (wanted > room.most).then(|| {
            format!(
                "storage {}: {} may want {wanted} connections, and there is \
                 room for {} ({}): lanes wait for each other",
                storages.join(", "),
                lanes_text(settings),
                room.most,
                room.by
            )
        })
    };
    limits.iter().filter_map(warning).collect()
}

/// A check of a server, on a thread of its own and given up at the deadline.
struct ServerProbe {
    what: String,
    result: mpsc::Receiver<Result<ProbeResult, CheckFailure>>,
}

/// What a server told.
struct ProbeResult {
    detail: String,
    room: Vec<ConnectionLimit>,
}

impl From<String> for ProbeResult {
    fn from(detail: String) -> Self {
        let room = Vec::new();
        Self { detail, room }
    }
}

impl ServerProbe {
    fn start<T: Into<ProbeResult>>(
        what: String,
        check: impl FnOnce() -> Result<T, CheckFailure> + Send + 'static,
    ) -> Self {
        let (send, result) = mpsc::channel();
        // Nobody receives it after the deadline.
        thread::spawn(move || send.send(check().map(T::into)));
        Self { what, result }
    }

    fn finish(self, deadline: Instant) -> CheckRow {
        let time = deadline.saturating_duration_since(Instant::now());
        let result = self.result.recv_timeout(time).unwrap_or_else(|_| {
            let why = format!("no reply within {} s", REPLY_LIMIT.as_secs());
            Err(CheckFailure::unavailable(why))
        });
        match result {
            Ok(ProbeResult { detail, room }) => CheckRow {
                room,
                ..CheckRow::fine(&self.what, detail)
            },
            Err(failure) => CheckRow {
                exit: failure.exit,
                ..CheckRow::fine(&self.what, failure.text)
            },
        }
    }
}

fn start_probes(settings: &Settings, config: &Config) -> Vec<ServerProbe> {
    let needs = ConfiguredWork::of(config).needs(settings);
    let known = settings.clone();
    let redis = ServerProbe::start(format!("Redis {}", settings.redis_url), move || {
        try_redis(&known, &needs)
    });
    // Python modules have been imported already; whether their servers answer, they do not tell.
    let built_in = config.storages.iter();
    let built_in = built_in.filter(|(_, storage)| storage.python().is_none());
    let storages = built_in.map(|(name, storage)| {
        let mut backend = storage.open_storage();
        ServerProbe::start(format!("storage {name}"), move || {
            let checked = backend.check();
            let detail = checked.map_err(|failure| CheckFailure::unavailable(failure.message))?;
            let room = backend.connection_limits();
            Ok(ProbeResult { detail, room })
        })
    });
    let followers = config.followers.iter().map(|follower| {
        let url = follower.url.clone();
        ServerProbe::start(format!("server of follower {}", follower.name), move || {
            http_client::reach(&http_client::agent(), &url)
                .map(|()| "can be reached".to_owned())
                .map_err(|failure| CheckFailure::unavailable(failure.message))
        })
    });
    let redis = std::iter::once(redis);
    redis.chain(storages).chain(followers).collect()
}

/// Checks that this Redis can be used, and rehearses the commands for one vCon.
fn try_redis(settings: &Settings, needs: &Needs) -> Result<String, CheckFailure> {
    let url = &settings.redis_url;
    let server = Server::new(url).map_err(CheckFailure::unavailable)?;
    let connect = || server.connect_within("conserver:check", REPLY_LIMIT);
    let mut connection = connect().map_err(|error| match monitor::redis_refusal(&error, url) {
        Some(unfit) => CheckFailure {
            exit: unfit.exit,
            text: unfit.why,
        },
        None => CheckFailure::unavailable(error),
    })?;
    let about = server_facts(&mut connection).map_err(CheckFailure::unavailable)?;
    match connection
        .preflight(needs)
        .map_err(CheckFailure::unavailable)?
    {
        Fitness::Fit => {}
        Fitness::Cluster(words) => {
            return Err(CheckFailure {
                exit: Exit::Config,
                text: cluster_refusal(&words),
            });
        }
        Fitness::Lacks(shortage) => return Err(CheckFailure::unavailable(shortage)),
    }
    rehearse(&server, settings, REPLY_LIMIT).map_err(CheckFailure::unavailable)?;
    Ok(match url.parameters() {
        Some(parameters) => format!("{about}; {parameters}"),
        None => about,
    })
}

/// The version of the server if it tells, and the format of documents.
fn server_facts(connection: &mut RedisConnection) -> Result<String, QueueError> {
    let version = match redis::cmd("INFO")
        .arg("server")
        .query::<String>(&mut **connection)
    {
        // The user may lack the right to ask.
        Err(error) if error.code().is_some() => "unknown".to_owned(),
        info => {
            let info = info?;
            let version = info
                .lines()
                .find_map(|line| line.strip_prefix("redis_version:"));
            version.unwrap_or("unknown").trim().to_owned()
        }
    };
    let documents = if connection.has_json()? {
        "JSON documents"
    } else {
        "plain string documents"
    };
    Ok(format!("version {version}, {documents}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, exit: Exit, detail: &str) -> CheckRow {
        CheckRow {
            exit,
            ..CheckRow::fine(what, detail.to_owned())
        }
    }

    #[test]
    fn the_table_fits_and_breaks_no_word_that_fits_on_a_line() {
        const UUID: &str = "05cec3d4-4b6e-4d8f-9d35-0a1b2c3d4e5f";
        let url = "https://search.example.org:9200/a/long/path/to/it";
        let rows = [
            row("settings", Exit::Ok, "1 worker x 1 lane"),
            row(
                "storage search",
                Exit::Unavailable,
                &format!("{url} does not answer within 5 s"),
            ),
            row("storage pg\n", Exit::Ok, UUID),
            row(&"x".repeat(70), Exit::Ok, "long"),
        ];
        for width in [20, 60, 80, 100, 200] {
            let text = table(&rows, width, false);
            for line in text.lines() {
                assert!(line.width() <= width, "{width}: {line}\n{text}");
            }
            for (word, needs) in [(UUID, 46), (url, 60)] {
                assert_eq!(
                    text.contains(word),
                    width >= needs,
                    "{width}: {word}\n{text}"
                );
            }
            assert!(!text.contains('\u{1b}') && text.contains("pg\\n"), "{text}");
        }
        let expected = format!(
            "ok      settings        1 worker x 1 lane\n\
             FAILED  storage search  {url} does\n\
             \x20                       not answer within 5 s\n\
             ok      storage pg\\n    {UUID}"
        );
        assert_eq!(table(&rows[..3], 80, false), expected);
        let coloured = table(&rows, 100, true);
        assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    }
}
