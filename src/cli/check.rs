//! `conserver check`: the settings, the configuration, and whether every server answers.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{ContentArrangement, Table};

use super::shown::{complain, complain_lines, say_lines};
use crate::config::{Config, Follower};
use crate::exit::Exit;
use crate::http_client;
use crate::monitor;
use crate::queue::{
    ConfiguredWork, Fitness, Needs, QueueError, RedisConnection, Server, cluster_refusal, rehearse,
};
use crate::scoreboard::MOST_SERIES;
use crate::settings::{self, Settings};
use crate::storage::ConnectionLimit;
use crate::visible::printable;

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
    let warn = |warning: &String| complain(format_args!("warning: {warning}"));
    let misspelt = settings::misspelt();
    misspelt.iter().for_each(warn);
    let config = match Config::load(&settings.config_file) {
        Ok(config) => config,
        Err(errors) => {
            complain_lines(errors);
            return Exit::Config;
        }
    };
    let odd: Vec<String> = config.warnings.lines().collect();
    odd.iter().for_each(warn);
    if deny_warnings && !(misspelt.is_empty() && odd.is_empty()) {
        return Exit::Config;
    }
    let series = config.chains.len() + config.links.len() + config.storages.len();
    if series > MOST_SERIES {
        warn(&format!(
            "there are {series} chains, links and storages, and the scoreboard has room for the figures of \
             {MOST_SERIES}: some chains have none"
        ));
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
    rows.extend(config.links.iter().filter_map(|(name, link)| {
        let detail = link.open_link().check().err()?;
        Some(Row {
            what: format!("link {name}"),
            exit: Exit::Config,
            detail,
            room: Vec::new(),
        })
    }));
    rows.extend(config.storages.iter().map(|(name, storage)| {
        let detail = format!("on_outage: {}", storage.on_outage.as_str());
        Row::fine(&format!("storage {name} ({})", storage.module), detail)
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
        Row::fine(&format!("follower {name}"), detail)
    }));
    if !offline {
        let address = settings.http.clone();
        let http = Probe::start("HTTP of the monitor".to_owned(), move || {
            monitor::server::check(&address).map_err(Problem::unavailable)
        });
        let mut probes = start_probes(settings, &config);
        probes.insert(0, http);
        let deadline = Instant::now() + LIMIT;
        rows.extend(probes.into_iter().map(|probe| probe.finish(deadline)));
    }

    let crowded = crowded(settings, &config, &rows);
    crowded.iter().for_each(warn);
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    for row in &rows {
        table.add_row([
            &*printable(&row.what),
            if row.exit == Exit::Ok { "ok" } else { "FAILED" },
            &*printable(&row.detail),
        ]);
    }
    say_lines(table);
    let is = |exit: Exit| rows.iter().any(|row| row.exit == exit);
    match (is(Exit::Config), is(Exit::Unavailable)) {
        (true, _) => Exit::Config,
        (false, false) if deny_warnings && !crowded.is_empty() => Exit::Config,
        (false, true) => Exit::Unavailable,
        (false, false) => Exit::Ok,
    }
}

struct Row {
    what: String,
    exit: Exit,
    detail: String,
    /// What the server has room for.
    room: Vec<ConnectionLimit>,
}

/// Why something is not good.
struct Problem {
    exit: Exit,
    text: String,
}

impl Problem {
    fn unavailable(text: impl ToString) -> Self {
        Self {
            exit: Exit::Unavailable,
            text: text.to_string(),
        }
    }
}

impl Row {
    fn fine(what: &str, detail: String) -> Self {
        Self {
            what: what.to_owned(),
            exit: Exit::Ok,
            detail,
            room: Vec::new(),
        }
    }
}

/// A warning for each limit on connections that all lanes together may want to pass. Each lane has one
/// connection for each storage while it saves.
fn crowded(settings: &Settings, config: &Config, rows: &[Row]) -> Vec<String> {
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
            let (workers, concurrency) = (settings.workers, settings.concurrency);
            format!(
                "storage {}: {workers} workers x {concurrency} lanes may want {wanted} connections, and there is \
                 room for {} ({}): lanes wait for each other",
                storages.join(", "),
                room.most,
                room.by
            )
        })
    };
    limits.iter().filter_map(warning).collect()
}

/// A question to a server, asked on a thread of its own and given up at the deadline.
struct Probe {
    what: String,
    answer: mpsc::Receiver<Result<Answer, Problem>>,
}

/// What a server has answered.
struct Answer {
    detail: String,
    room: Vec<ConnectionLimit>,
}

impl From<String> for Answer {
    fn from(detail: String) -> Self {
        let room = Vec::new();
        Self { detail, room }
    }
}

impl Probe {
    fn start<T: Into<Answer>>(
        what: String,
        ask: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Self {
        let (tell, answer) = mpsc::channel();
        // Nobody waits for an answer after the deadline.
        thread::spawn(move || tell.send(ask().map(T::into)));
        Self { what, answer }
    }

    fn finish(self, deadline: Instant) -> Row {
        let time = deadline.saturating_duration_since(Instant::now());
        let answer = self.answer.recv_timeout(time).unwrap_or_else(|_| {
            let why = format!("no answer within {} s", LIMIT.as_secs());
            Err(Problem::unavailable(why))
        });
        match answer {
            Ok(Answer { detail, room }) => Row {
                room,
                ..Row::fine(&self.what, detail)
            },
            Err(problem) => Row {
                exit: problem.exit,
                ..Row::fine(&self.what, problem.text)
            },
        }
    }
}

fn start_probes(settings: &Settings, config: &Config) -> Vec<Probe> {
    let needs = ConfiguredWork::of(config).needs(settings);
    let known = settings.clone();
    let redis = Probe::start(format!("Redis {}", settings.redis_url), move || {
        try_redis(&known, &needs)
    });
    let storages = config.storages.iter().map(|(name, storage)| {
        let mut backend = storage.open_storage();
        Probe::start(format!("storage {name}"), move || {
            let checked = backend.check();
            let detail = checked.map_err(|failure| Problem::unavailable(failure.message))?;
            let room = backend.connection_limits();
            Ok(Answer { detail, room })
        })
    });
    let followers = config.followers.iter().map(|follower| {
        let url = follower.url.clone();
        Probe::start(format!("server of follower {}", follower.name), move || {
            http_client::reach(&http_client::agent(), &url)
                .map(|()| "can be reached".to_owned())
                .map_err(|failure| Problem::unavailable(failure.message))
        })
    });
    let redis = std::iter::once(redis);
    redis.chain(storages).chain(followers).collect()
}

/// Tries whether Redis is one that can be worked with, and takes the steps of a vCon's way there.
fn try_redis(settings: &Settings, needs: &Needs) -> Result<String, Problem> {
    let url = &settings.redis_url;
    let server = Server::new(url).map_err(Problem::unavailable)?;
    let connect = || server.connect_within("conserver:check", LIMIT);
    let mut lease = connect().map_err(|error| match monitor::redis_refusal(&error, url) {
        Some(unfit) => Problem {
            exit: unfit.exit,
            text: unfit.why,
        },
        None => Problem::unavailable(error),
    })?;
    let about = about(&mut lease).map_err(Problem::unavailable)?;
    match lease.preflight(needs).map_err(Problem::unavailable)? {
        Fitness::Fit => {}
        Fitness::Cluster(words) => {
            return Err(Problem {
                exit: Exit::Config,
                text: cluster_refusal(&words),
            });
        }
        Fitness::Lacks(shortage) => return Err(Problem::unavailable(shortage)),
    }
    rehearse(&server, settings, LIMIT).map_err(Problem::unavailable)?;
    Ok(match url.parameters() {
        Some(parameters) => format!("{about}; {parameters}"),
        None => about,
    })
}

/// The version of the server, as far as it tells, and how documents are kept.
fn about(lease: &mut RedisConnection) -> Result<String, QueueError> {
    let version = match redis::cmd("INFO")
        .arg("server")
        .query::<String>(&mut **lease)
    {
        // Not every user may ask.
        Err(error) if error.code().is_some() => "unknown".to_owned(),
        info => {
            let info = info?;
            let version = info
                .lines()
                .find_map(|line| line.strip_prefix("redis_version:"));
            version.unwrap_or("unknown").trim().to_owned()
        }
    };
    let documents = if lease.has_json()? {
        "JSON documents"
    } else {
        "plain string documents"
    };
    Ok(format!("version {version}, {documents}"))
}
