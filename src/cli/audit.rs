//! `conserver audit`: finds vCons that are in Redis and will never be worked on.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use chrono::NaiveDate;
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::value::RawValue;

use super::load_config;
use super::output::{
    byte_size, counted, eprint_line, output_failed, progress_bar_of, remaining_ttl, truncated,
};
use super::storage_access::StorageHandle;
use crate::config::{Config, ListName, ModuleConfig};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::link::Link;
use crate::queue::{self, AuditLists, Document, Location, QueueError, Server, StoredDocument};
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::visible::{printable, visible_json};

/// vCons looked for at a time, which bounds the memory.
const PORTION: usize = 50_000;

/// How long to look, and what to do with vCons that are found.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Put the vCons that are found on this ingress list
    #[arg(long, value_name = "LIST")]
    requeue: Option<ListName>,

    /// The pause before a second look, after which a vCon is reported
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

/// Why the audit has no result.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the audit cannot go on without {0}: a vCon may be there")]
    Storage(String),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// One run over all documents.
struct AuditRun<'a> {
    audit: queue::Audit,
    storages: UsedStorages,
    report: AuditReport,
    bar: ProgressBar,
    settle: Duration,
    requeue: Option<&'a ListName>,
    /// Those reported already: SCAN may return a key twice while Redis rehashes its table.
    reported: HashSet<VconId>,
}

impl AuditArgs {
    /// Runs the audit, and prints what it finds.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match load_config(settings) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        let served = config.ingress_lists();
        if let Some(list) = &self.requeue
            && !served.contains(list)
        {
            let served: Vec<&str> = served.iter().map(ListName::as_str).collect();
            let served = served.join(", ");
            eprint_line(format_args!(
                "--requeue {list}: no enabled chain takes from that list; there is {served}"
            ));
            return Exit::Usage;
        }
        match self.search(settings, &config) {
            Ok(exit) => exit,
            Err(AuditError::Output(error)) => output_failed(&error),
            Err(error) => {
                eprint_line(&error);
                Exit::Unavailable
            }
        }
    }

    fn search(&self, settings: &Settings, config: &Config) -> Result<Exit, AuditError> {
        let server = Server::new(&settings.redis_url).map_err(QueueError::from)?;
        let connection = server
            .connect("conserver:audit")
            .map_err(QueueError::from)?;
        let mut audit = queue::Audit::new(connection, &lists(config), settings.redis_expiry)?;
        let estimate = audit.estimate()?;
        let mut storages = UsedStorages::open(config);
        storages.check().map_err(storage_error)?;
        let mut run = AuditRun {
            audit,
            storages,
            report: AuditReport::new(self.json),
            bar: progress_bar_of(estimate, "{wide_bar} {pos}/{len} {msg}"),
            settle: Duration::from_secs(self.settle),
            requeue: self.requeue.as_ref(),
            reported: HashSet::new(),
        };
        let searched = run.all();
        run.bar.finish_and_clear();
        run.report.storages = run.storages.counts();
        run.report.unknown = blind_spots(config);
        if searched.is_ok() {
            run.report.summary()?;
        }
        searched?;
        Ok(run.report.exit())
    }
}

impl AuditRun<'_> {
    fn all(&mut self) -> Result<(), AuditError> {
        loop {
            let ids = self.audit.next(PORTION)?;
            if ids.is_empty() {
                return Ok(());
            }
            self.portion(ids)?;
        }
    }

    /// Looks for some vCons everywhere, in the order in which they move; after a pause, looks again
    /// for those that were nowhere.
    fn portion(&mut self, mut ids: HashSet<VconId>) -> Result<(), AuditError> {
        let all = ids.len() as u64;
        self.report.documents += all;
        self.audit.strike_queued(&mut ids)?;
        self.bar.inc(all - ids.len() as u64);
        let mut missing = HashSet::new();
        let days = match self.storages.are_kept_by_day() {
            true => self.audit.days(&ids)?,
            false => HashMap::new(),
        };
        for id in ids {
            let day = days.get(&id).copied();
            if !self.storages.contain(&id, day).map_err(storage_error)? {
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
            self.look_again(id)?;
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
    fn look_again(&mut self, id: VconId) -> Result<(), AuditError> {
        if self.audit.locate(&id)? != Location::Nowhere
            || self.storages.contain(&id, None).map_err(storage_error)?
            || !self.reported.insert(id.clone())
        {
            return Ok(());
        }
        let kept = self.audit.document(&id)?;
        let is_requeued = match self.requeue {
            None => false,
            Some(list) => match self.audit.requeue(&id, list)? {
                Location::Requeued => true,
                // Somebody else has just requeued it.
                _ => return Ok(()),
            },
        };
        let lost = LostVcon::new(&id, &kept, is_requeued);
        let (bar, report) = (&self.bar, &mut self.report);
        bar.suspend(|| report.add(&lost))?;
        Ok(())
    }
}

fn storage_error((name, failure): (String, Failure)) -> AuditError {
    AuditError::Storage(format!("storage {name} ({failure})"))
}

/// The lists of all chains, disabled ones included.
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

/// The storages that may have a vCon.
struct UsedStorages(Vec<CountedStorage>);

struct CountedStorage {
    handle: StorageHandle,
    found: u64,
}

impl UsedStorages {
    /// Those that a chain writes to, in the order of the configuration. The chain of a vCon is not
    /// known, so any of them may have it.
    pub fn open(config: &Config) -> Self {
        let is_used = |name: &String| {
            let mut chains = config.chains.iter();
            chains.any(|chain| chain.storages.contains(name))
        };
        let used = config.storages.iter().filter(|(name, _)| is_used(name));
        Self(
            used.map(|(_, storage)| StorageHandle::open(storage))
                .filter(StorageHandle::keeps_documents)
                .map(|handle| CountedStorage { handle, found: 0 })
                .collect(),
        )
    }

    /// Checks that each of them can be asked.
    pub fn check(&mut self) -> Result<(), (String, Failure)> {
        let nobody = VconId::random();
        self.0
            .iter_mut()
            .try_for_each(|storage| storage.has(&nobody, None).map(|_| ()))
    }

    /// Whether one of them finds a vCon faster by the day of its `created_at`.
    pub fn are_kept_by_day(&self) -> bool {
        self.0.iter().any(|counted| counted.handle.is_kept_by_day())
    }

    /// Whether one of them has the vCon, probably under this day.
    pub fn contain(
        &mut self,
        id: &VconId,
        day: Option<NaiveDate>,
    ) -> Result<bool, (String, Failure)> {
        for storage in &mut self.0 {
            if storage.has(id, day)? {
                storage.found += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many vCons were found in each.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.0.iter();
        counts
            .map(|counted| (counted.handle.name.clone(), counted.found))
            .collect()
    }
}

impl CountedStorage {
    fn has(&mut self, id: &VconId, day: Option<NaiveDate>) -> Result<bool, (String, Failure)> {
        let has = self.handle.has(id, day);
        has.map_err(|failure| (self.handle.name.clone(), failure))
    }
}

/// A vCon that is in no list, with no worker and in no storage.
#[derive(Debug, Serialize)]
struct LostVcon {
    uuid: String,
    /// As written in the document; `None` if it has none or is unreadable.
    created_at: Option<String>,
    /// Seconds until its document expires; `None` if it never does.
    ttl_seconds: Option<u64>,
    bytes: Option<usize>,
    requeued: bool,
}

impl LostVcon {
    pub fn new(id: &VconId, kept: &StoredDocument, requeued: bool) -> Self {
        let text = match &kept.document {
            Document::Found(_, text) => Some(text),
            Document::Missing | Document::NotAnId | Document::Unusable(_) => None,
        };
        Self {
            uuid: id.to_string(),
            created_at: text.and_then(|text| created_at(text)),
            ttl_seconds: kept.ttl,
            bytes: text.map(Vec::len),
            requeued,
        }
    }

    fn line(&self) -> String {
        let created = self.created_at.as_deref().unwrap_or("unknown");
        let created = truncated(&printable(created), 32);
        let bytes = self.bytes.map_or("no document".to_owned(), byte_size);
        let requeued = if self.requeued { "  put back" } else { "" };
        let life = remaining_ttl(self.ttl_seconds);
        format!(
            "{}  {created:<32}  {life:<14}  {bytes:>12}{requeued}",
            self.uuid
        )
    }
}

/// The most characters of a date that are shown: it may be any text.
const LONGEST_DATE: usize = 80;

/// The date of the document, as written.
fn created_at(text: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct DatedDocument<'a> {
        #[serde(borrow)]
        created_at: Option<&'a RawValue>,
    }
    let raw = serde_json::from_slice::<DatedDocument<'_>>(text)
        .ok()?
        .created_at?;
    let text = serde_json::from_str::<String>(raw.get());
    let text = text.as_deref().unwrap_or(raw.get());
    Some(truncated(text, LONGEST_DATE))
}

/// The result so far, and as JSON the summary.
#[derive(Debug, Default, Serialize)]
struct AuditReport {
    #[serde(skip)]
    json: bool,
    /// Documents in Redis that were examined.
    documents: u64,
    /// Lost ones.
    found: u64,
    /// Lost ones that were put back on a list.
    requeued: u64,
    /// How many were found in each storage.
    #[serde(rename = "shelves", serialize_with = "as_object")]
    storages: Vec<(String, u64)>,
    /// See [`blind_spots`].
    unknown: Vec<String>,
}

fn as_object<S: serde::Serializer>(
    counts: &[(String, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(name, count)| (name, count)))
}

impl AuditReport {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// Prints a vCon.
    pub fn add(&mut self, lost: &LostVcon) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(lost)?))?;
        } else {
            if self.found == 0 {
                let (uuid, created, life, size) = ("UUID", "Created", "Lives", "Size");
                writeln!(out, "{uuid:<36}  {created:<32}  {life:<14}  {size:>12}")?;
            }
            writeln!(out, "{}", lost.line())?;
        }
        self.found += 1;
        self.requeued += u64::from(lost.requeued);
        out.flush()
    }

    /// Prints what was found in all.
    pub fn summary(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            #[derive(Serialize)]
            struct Last<'a> {
                summary: &'a AuditReport,
            }
            let json = serde_json::to_string(&Last { summary: self })?;
            writeln!(out, "{}", visible_json(&json))?;
            return out.flush();
        }
        writeln!(
            out,
            "Looked for {}; in no list, with no worker and in no storage: {}",
            counted(self.documents, "vCon"),
            self.found
        )?;
        if self.requeued > 0 {
            writeln!(out, "Put {} back", self.requeued)?;
        }
        for (name, count) in &self.storages {
            writeln!(out, "Storage {} has {count} of the others", printable(name))?;
        }
        for sentence in &self.unknown {
            writeln!(out, "Note: {}", printable(sentence))?;
        }
        out.flush()
    }

    /// The exit code says whether any lost vCon is left.
    pub fn exit(&self) -> Exit {
        if self.requeued < self.found {
            Exit::Data
        } else {
            Exit::Ok
        }
    }
}

/// Links that may end a chain before its storages and egress lists.
const MAY_HALT: &[&str] = &[
    "links.sampler",
    "links.jq_link",
    "links.tag_router",
    "links.exec",
    "links.python",
];

/// What in the configuration makes the audit report vCons that are not lost, a sentence for each.
fn blind_spots(config: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    for chain in &config.chains {
        let name = &chain.name;
        if chain.storages.is_empty() {
            sentences.push(format!(
                "chain {name} has no storages: its finished vCons are only found while an egress list has them"
            ));
        }
        let used = config.links.values();
        let used = used.filter(|link| chain.links.contains(&link.name));
        for link in used.filter(|link| may_halt(link)) {
            sentences.push(format!(
                "link {} of chain {name} may end the chain before the storages",
                link.name
            ));
        }
    }
    let storages = config.storages.iter();
    let keeps_none = storages.filter(|(_, storage)| !storage.open_storage().keeps_documents());
    for (storage, _) in keeps_none {
        sentences.push(format!(
            "storage {storage} cannot be asked for a vCon: those that it alone has are reported"
        ));
    }
    sentences
}

fn may_halt(link: &ModuleConfig<dyn Link>) -> bool {
    MAY_HALT.contains(&link.module.as_str()) || link.python().is_some()
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::queue::DocumentFormat;

    fn lost(document: Document) -> LostVcon {
        let kept = StoredDocument {
            document,
            ttl: None,
        };
        LostVcon::new(&VconId::random(), &kept, false)
    }

    #[test]
    fn a_date_is_shown_as_it_is_written() {
        for (text, date) in [
            (
                r#"{"created_at": "2024-03-16T16:09:20Z"}"#,
                Some("2024-03-16T16:09:20Z"),
            ),
            (r#"{"created_at": 1710605360}"#, Some("1710605360")),
            (r#"{"created_at": null}"#, None),
            (r#"{"parties": []}"#, None),
            ("[", None),
        ] {
            let lost = lost(Document::Found(DocumentFormat::Text, text.into()));
            assert_eq!(lost.created_at.as_deref(), date, "{text}");
            assert_eq!(lost.bytes, Some(text.len()));
        }
    }

    #[test]
    fn no_document_steers_the_terminal() {
        let text = r#"{"created_at": "\u001b[2J\n"}"#;
        let line = lost(Document::Found(DocumentFormat::Json, text.into())).line();
        assert!(line.chars().all(|c| !c.is_control()), "{line}");
        let line = lost(Document::Unusable("a hash".to_owned())).line();
        assert!(
            line.contains("unknown") && line.contains("no document"),
            "{line}"
        );
    }

    #[test]
    fn the_exit_code_says_whether_any_are_left() {
        for (found, requeued, exit) in [(0, 0, Exit::Ok), (3, 0, Exit::Data), (3, 3, Exit::Ok)] {
            let report = AuditReport {
                found,
                requeued,
                ..AuditReport::default()
            };
            assert_eq!(report.exit(), exit);
        }
    }

    #[test]
    fn links_that_may_end_a_chain_are_noted() {
        let text = "
links: {some: {module: links.sampler, options: {method: percentage, value: 50}}, tagger: {module: links.tag, options: {tags: [a]}}}
storages: {files: {module: storage.file}}
chains: {main: {links: [some, tagger], storages: [files], ingress_lists: [in]}}
";
        let config = Config::parse(text, Path::new("config.yml"));
        let config = config.unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(
            blind_spots(&config),
            ["link some of chain main may end the chain before the storages"]
        );
    }

    #[test]
    fn a_storage_that_keeps_no_documents_is_noted() {
        let text = "
storages:
  files: {module: storage.file}
  post: {module: storage.webhook, options: {webhook-urls: 'http://h/'}}
  es: {module: storage.elasticsearch, options: {url: 'http://h:9200'}}
chains:
  main: {storages: [files, post, es], ingress_lists: [a]}
";
        let config = Config::parse(text, Path::new("config.yml"))
            .unwrap_or_else(|errors| panic!("{errors}"));
        let sentences = blind_spots(&config);
        assert_eq!(sentences.len(), 2, "{sentences:?}");
        assert!(sentences[0].starts_with("storage post cannot be asked"));
        assert!(sentences[1].starts_with("storage es cannot be asked"));
    }

    #[test]
    fn a_chain_without_storages_is_noted() {
        let text = "
storages: {files: {module: storage.file}}
chains:
  kept: {storages: [files], ingress_lists: [a]}
  announced: {ingress_lists: [b], egress_lists: [c]}
";
        let config = Config::parse(text, Path::new("config.yml"))
            .unwrap_or_else(|errors| panic!("{errors}"));
        let sentences = blind_spots(&config);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        assert!(sentences[0].starts_with("chain announced has no storages"));
    }
}
