//! `conserver audit`: vCons that are in Redis and will never be worked on.

mod limits;
mod report;
mod shelves;

use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::dlq::Fault;
use super::shown::{complain, complain_lines};
use crate::config::{Config, ListName};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::queue::{self, AuditLists, Location, QueueError, Server};
use crate::settings::Settings;
use crate::vcon::VconId;
use report::{Found, Report};
use shelves::Shelves;

/// So many vCons are looked for at a time: the memory this takes is theirs.
const PORTION: usize = 50_000;

/// Where to look, and what to do with what is found.
#[derive(Debug, Args)]
pub struct Audit {
    /// Put the vCons that are found on this ingress list
    #[arg(long, value_name = "LIST")]
    requeue: Option<ListName>,

    /// Look again after so many seconds before a vCon is reported
    ///
    /// It has to be longer than a producer takes from storing a document to pushing its UUID. The
    /// Python worker of vCon Server leaves no trace of the vCons it has in hand: stop it first,
    /// or wait here for longer than it takes over one.
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(0..=86_400))]
    settle: u64,

    /// Print a JSON object on each line: one for each vCon that is found, and the summary
    #[arg(long)]
    json: bool,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
enum AuditFault {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("nothing can be said without {0}: a vCon may be there")]
    Storage(String),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// A look at everything.
struct Search<'a> {
    audit: queue::Audit,
    shelves: Shelves,
    report: Report,
    bar: ProgressBar,
    settle: Duration,
    requeue: Option<&'a ListName>,
    /// Reported already: a key may be met twice while Redis rearranges its table.
    reported: HashSet<VconId>,
}

impl Audit {
    /// Looks, and prints what it finds.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match Config::load(&settings.config_file) {
            Ok(config) => config,
            Err(errors) => {
                complain_lines(errors);
                return Exit::Config;
            }
        };
        let served = config.ingress_lists();
        if let Some(list) = &self.requeue
            && !served.contains(list)
        {
            let served: Vec<&str> = served.iter().map(ListName::as_str).collect();
            let served = served.join(", ");
            complain(format_args!(
                "--requeue {list}: no enabled chain takes from that list; there is {served}"
            ));
            return Exit::Usage;
        }
        match self.search(settings, &config) {
            Ok(exit) => exit,
            Err(AuditFault::Output(error)) => Fault::Output(error).exit(),
            Err(fault) => {
                complain(&fault);
                Exit::Unavailable
            }
        }
    }

    fn search(&self, settings: &Settings, config: &Config) -> Result<Exit, AuditFault> {
        let server = Server::new(&settings.redis_url).map_err(QueueError::from)?;
        let lease = server
            .connect("conserver:audit")
            .map_err(QueueError::from)?;
        let mut audit = queue::Audit::new(lease, &lists(config), settings.redis_expiry)?;
        let estimate = audit.estimate()?;
        let mut shelves = Shelves::open(config);
        shelves.answer().map_err(storage_fault)?;
        let mut search = Search {
            audit,
            shelves,
            report: Report::new(self.json),
            bar: bar(estimate),
            settle: Duration::from_secs(self.settle),
            requeue: self.requeue.as_ref(),
            reported: HashSet::new(),
        };
        let searched = search.all();
        search.bar.finish_and_clear();
        search.report.shelves = search.shelves.counts();
        search.report.unknown = limits::of(config);
        if searched.is_ok() {
            search.report.summary()?;
        }
        searched?;
        Ok(search.report.exit())
    }
}

impl Search<'_> {
    fn all(&mut self) -> Result<(), AuditFault> {
        loop {
            let ids = self.audit.next(PORTION)?;
            if ids.is_empty() {
                return Ok(());
            }
            self.portion(ids)?;
        }
    }

    /// Looks for some vCons everywhere, in the order in which they move, and after a pause again
    /// for those that were nowhere.
    fn portion(&mut self, mut ids: HashSet<VconId>) -> Result<(), AuditFault> {
        let all = ids.len() as u64;
        self.report.documents += all;
        self.audit.strike_queued(&mut ids)?;
        self.bar.inc(all - ids.len() as u64);
        let mut missing = HashSet::new();
        let days = match self.shelves.want_days() {
            true => self.audit.days(&ids)?,
            false => HashMap::new(),
        };
        for id in ids {
            let day = days.get(&id).copied();
            if !self.shelves.have(&id, day).map_err(storage_fault)? {
                missing.insert(id);
            } else {
                self.bar.inc(1);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.bar
            .set_message(format!("looking again for {}", missing.len()));
        self.wait();
        let again = missing.len() as u64;
        self.audit.strike_queued(&mut missing)?;
        self.bar.inc(again - missing.len() as u64);
        for id in missing {
            self.settle_on(id)?;
            self.bar.inc(1);
        }
        let found = self.report.found;
        self.bar.set_message(format!("{found} found"));
        Ok(())
    }

    fn wait(&self) {
        self.bar.enable_steady_tick(Duration::from_millis(200));
        thread::sleep(self.settle);
        self.bar.disable_steady_tick();
    }

    /// The last look at one vCon. The queue comes before the storages, as it does for a vCon.
    fn settle_on(&mut self, id: VconId) -> Result<(), AuditFault> {
        if self.audit.locate(&id)? != Location::Nowhere
            || self.shelves.have(&id, None).map_err(storage_fault)?
            || !self.reported.insert(id.clone())
        {
            return Ok(());
        }
        let kept = self.audit.document(&id)?;
        let is_requeued = match self.requeue {
            None => false,
            Some(list) => match self.audit.requeue(&id, list)? {
                Location::Requeued => true,
                // Somebody else has just taken care of it.
                _ => return Ok(()),
            },
        };
        let found = Found::new(&id, &kept, is_requeued);
        let (bar, report) = (&self.bar, &mut self.report);
        bar.suspend(|| report.add(&found))?;
        Ok(())
    }
}

fn storage_fault((name, failure): (String, Failure)) -> AuditFault {
    AuditFault::Storage(format!("storage {name} ({failure})"))
}

/// The lists of all chains: of those out of service too.
fn lists(config: &Config) -> AuditLists {
    let mut lists = AuditLists {
        storages: config.storages.keys().cloned().collect(),
        ..AuditLists::default()
    };
    for chain in &config.chains {
        lists.ingress.extend(chain.ingress_lists.iter().cloned());
        lists.egress.extend(chain.egress_lists.iter().cloned());
        let links = chain.links.iter().filter_map(|link| config.links.get(link));
        let routes = links.flat_map(|link| link.routes.iter().cloned());
        lists.egress.extend(routes);
    }
    lists
}

fn bar(estimate: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(estimate);
    // Without the style the bar has its usual look.
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
