//! `conserver check`: the settings, the configuration, and whether every server answers.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{ContentArrangement, Table};

use super::shown::{printable, say};
use crate::config::Config;
use crate::exit::Exit;
use crate::monitor;
use crate::queue::{QueueError, Server};
use crate::settings::{self, Settings};

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// What to check.
#[derive(Debug, Args)]
pub struct Check {
    /// Check the settings and config.yml alone; connect to nothing
    #[arg(long)]
    offline: bool,

    /// Take warnings as faults: name them, check nothing more, and exit with 78
    #[arg(long)]
    deny_warnings: bool,
}

impl Check {
    /// Checks everything that is to be checked, and prints what it found.
    pub fn run(&self, settings: &Settings) -> Exit {
        check(settings, self.offline, self.deny_warnings)
    }
}

fn check(settings: &Settings, offline: bool, deny_warnings: bool) -> Exit {
    let warn = |warning: &String| eprintln!("warning: {}", printable(warning));
    let misspelt = settings::misspelt();
    misspelt.iter().for_each(warn);
    let config = match Config::load(&settings.config_file) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return Exit::Config;
        }
    };
    let odd: Vec<String> = config.warnings.lines().collect();
    odd.iter().for_each(warn);
    if deny_warnings && !(misspelt.is_empty() && odd.is_empty()) {
        return Exit::Config;
    }
    let mut rows = vec![
        Row::fine(
            "settings",
            format!("{} workers x {}", settings.workers, settings.concurrency),
        ),
        Row::fine("configuration", settings.config_file.display().to_string()),
    ];
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
        Row::fine(&name, format!("{state}from {}", lists.join(", ")))
    }));
    rows.extend(config.storages.iter().map(|(name, storage)| {
        let detail = format!("on_outage: {}", storage.on_outage.as_str());
        Row::fine(&format!("storage {name} ({})", storage.module), detail)
    }));
    if !offline {
        let address = settings.http.clone();
        let http = Probe::start("HTTP of the monitor".to_owned(), move || {
            monitor::http::check(&address)
        });
        let mut probes = start_probes(settings, &config);
        probes.insert(0, http);
        let deadline = Instant::now() + LIMIT;
        rows.extend(probes.into_iter().map(|probe| probe.finish(deadline)));
    }

    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    for row in &rows {
        table.add_row([
            row.what.as_str(),
            if row.good { "ok" } else { "FAILED" },
            &row.detail,
        ]);
    }
    say(table);
    if rows.iter().all(|row| row.good) {
        Exit::Ok
    } else {
        Exit::Unavailable
    }
}

struct Row {
    what: String,
    good: bool,
    detail: String,
}

impl Row {
    fn fine(what: &str, detail: String) -> Self {
        Self {
            what: what.to_owned(),
            good: true,
            detail,
        }
    }
}

/// A question to a server, asked on a thread of its own and given up at the deadline.
struct Probe {
    what: String,
    answer: mpsc::Receiver<Result<String, String>>,
}

impl Probe {
    fn start(what: String, ask: impl FnOnce() -> Result<String, String> + Send + 'static) -> Self {
        let (tell, answer) = mpsc::channel();
        // Nobody waits for an answer after the deadline.
        thread::spawn(move || tell.send(ask()));
        Self { what, answer }
    }

    fn finish(self, deadline: Instant) -> Row {
        let time = deadline.saturating_duration_since(Instant::now());
        let answer = self
            .answer
            .recv_timeout(time)
            .unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())));
        let good = answer.is_ok();
        Row {
            what: self.what,
            good,
            detail: answer.unwrap_or_else(|error| error),
        }
    }
}

fn start_probes(settings: &Settings, config: &Config) -> Vec<Probe> {
    let url = settings.redis_url.clone();
    let redis = Probe::start(format!("Redis {url}"), move || {
        Server::new(&url)
            .map_err(QueueError::from)
            .and_then(|server| describe(&server))
            .map_err(|error| error.to_string())
    });
    let storages = config.storages.iter().map(|(name, storage)| {
        let mut backend = storage.open_storage();
        Probe::start(format!("storage {name}"), move || {
            backend
                .probe()
                .map(|()| "answers".to_owned())
                .map_err(|failure| failure.message)
        })
    });
    std::iter::once(redis).chain(storages).collect()
}

fn describe(server: &Server) -> Result<String, QueueError> {
    let mut connection = server.connect_within("conserver:check", LIMIT)?;
    let info: String = redis::cmd("INFO").arg("server").query(&mut *connection)?;
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))
        .unwrap_or("unknown")
        .trim()
        .to_owned();
    let documents = if connection.has_json()? {
        "JSON documents"
    } else {
        "plain string documents"
    };
    Ok(format!("version {version}, {documents}"))
}
