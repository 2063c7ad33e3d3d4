//! A vCon in work: its document, in Redis and in memory, and how far it has come in its chain.
//!
//! The progress is kept in Redis only if a claim is released before its end, so that the next claim
//! of the entry goes on from there. A changed chain voids it, and so does a new version of the document:
//! Redis must still hold the one that the progress was kept with, or what other chains have made of it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::release::Ending;
use crate::config::{Chain, ListName};
use crate::failure::{Failure, FailureKind};
use crate::queue::{self, Announcement, Document, DocumentFormat};
use crate::spelling::counted;
use crate::vcon::{self, JsonBodies, Leaving, Vcon, VconId, Version};

/// Of a longer document the server may compare only the length, so a digest is kept with the progress. (It
/// measures a RedisJSON document by its memory, which is a few times its text.)
const LONG: usize = 256 << 10;

/// The most parts of a vCon that are kept as refused by a link; it is asked about others again.
const MOST_PARTS: usize = 1000;

/// The most bytes that the messages of all these have together, and that one of them has.
const PARTS_TEXT: usize = 64 << 10;
const PART_TEXT: usize = 1000;

/// A vCon in work.
pub(super) struct Job {
    /// Whether Redis has it as text or as RedisJSON.
    pub kind: DocumentFormat,
    /// The text that Redis has, as far as this lane knows; `None` once it has been deleted.
    pub base: Option<String>,
    /// The text that Redis had before this lane wrote the base. Somebody else may have read it before, and
    /// may store a document that was made from it, without the work of the links.
    pub origin: Option<String>,
    /// What the chain has made of the document.
    pub content: Content,
    /// How bodies that are JSON are written.
    bodies: JsonBodies,
    /// How far it has come.
    pub progress: ChainProgress,
    /// Whether the log says that links may not change it.
    pub is_critical_logged: bool,
    /// Whether any storage was given it, in whatever version.
    pub was_given: bool,
}

/// What the chain has made of the document.
pub(super) enum Content {
    /// Links may still change it.
    Open(Vcon),
    /// It goes to the storages, and to Redis if a link changed it.
    Leaving {
        leaving: Leaving,
        changed: Option<Arc<String>>,
    },
}

impl Job {
    /// Opens a document.
    ///
    /// # Errors
    /// The text is not a vCon.
    pub fn open(
        id: VconId,
        kind: DocumentFormat,
        text: String,
        bodies: JsonBodies,
        progress: ChainProgress,
    ) -> Result<Self, Ending> {
        let vcon = Vcon::read(id, &text)
            .map_err(|error| Ending::failed("parse", format!("the document {error}")))?
            .writing(bodies);
        Ok(Self {
            kind,
            base: Some(text),
            origin: None,
            content: Content::Open(vcon),
            bodies,
            progress,
            is_critical_logged: false,
            was_given: false,
        })
    }

    /// Whether the document in Redis is the one that the chain has made, or left unchanged.
    pub fn matches(&mut self, document: &Document) -> bool {
        let changed = self.changed_text();
        let text = changed.as_deref().or(self.base.as_ref());
        matches!(document, Document::Found(_, bytes) if text.is_some_and(|it| it.as_bytes() == bytes))
    }

    /// Returns the document for a link to change.
    pub fn open_vcon(&mut self) -> Result<&mut Vcon, Ending> {
        match &mut self.content {
            Content::Open(vcon) => Ok(vcon),
            // Links come before storages.
            Content::Leaving { .. } => {
                Err(Ending::failed("queue", "the document has left".to_owned()))
            }
        }
    }

    /// Returns a copy of the document as the links have left it, parsed again if it has left.
    pub fn chain_version(&self) -> Result<Vcon, Ending> {
        match &self.content {
            Content::Open(vcon) => Ok(vcon.clone()),
            Content::Leaving { leaving, changed } => {
                let text = match changed {
                    Some(text) => text.as_str(),
                    None => self.base.as_deref().unwrap_or_default(),
                };
                Vcon::read(leaving.current.id.clone(), text)
                    .map(|vcon| vcon.writing(self.bodies))
                    .map_err(|error| Ending::failed("parse", format!("the document {error}")))
            }
        }
    }

    /// The text to write to Redis, if a link changed the document.
    pub fn changed_text(&mut self) -> Option<Arc<String>> {
        match &mut self.content {
            Content::Open(vcon) => vcon.is_changed().then(|| Arc::new(vcon.to_json())),
            Content::Leaving { changed, .. } => changed.clone(),
        }
    }

    /// The same for the finish, after which no link changes the document.
    pub fn last_text(&mut self) -> Result<Option<Arc<String>>, Ending> {
        match &self.content {
            // Written by parts, each of which is freed.
            Content::Open(vcon) if vcon.is_changed() => self.leave(Version::Current).map(drop)?,
            _ => {}
        }
        Ok(self.changed_text())
    }

    /// Makes the document ready for the storages: from now on no link changes it.
    pub fn leave(&mut self, version: Version) -> Result<Leaving, Ending> {
        if let Content::Open(vcon) = &mut self.content {
            // Frees its parts, so that a large document is not in memory twice.
            let (leaving, changed) = vcon.depart(version);
            self.content = Content::Leaving { leaving, changed };
        }
        match &self.content {
            Content::Leaving { leaving, .. } => Ok(leaving.clone()),
            Content::Open(_) => Err(Ending::failed(
                "queue",
                "the document has not left".to_owned(),
            )),
        }
    }

    /// Redis has this text now, with all that the links have done so far: no change is left to write.
    pub fn note_written(&mut self, text: String) {
        let base = self.base.replace(text);
        self.origin = self.origin.take().or(base);
        match &mut self.content {
            Content::Open(vcon) => vcon.note_written(),
            Content::Leaving { changed, .. } => *changed = None,
        }
    }

    /// A storage has left this text in Redis, if it is another one: no change is left to write.
    pub fn note_left(&mut self, kind: DocumentFormat, text: Vec<u8>) {
        if let Content::Leaving { changed: None, .. } = self.content
            && self
                .base
                .as_ref()
                .is_some_and(|base| base.as_bytes() != text)
            && let Ok(text) = String::from_utf8(text)
        {
            self.kind = kind;
            self.note_written(text);
        }
    }

    /// Somebody has deleted it from Redis: nothing is written there any more.
    pub fn note_deleted(&mut self) {
        self.base = None;
        self.origin = None;
    }

    /// The vCon that the chain works on now: the claimed one, or the one that a link switched to.
    pub fn id(&self) -> &VconId {
        match &self.content {
            Content::Open(vcon) => vcon.id(),
            Content::Leaving { leaving, .. } => &leaving.current.id,
        }
    }
}

/// How far a vCon has come in its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainProgress {
    id: VconId,
    /// Whether the hook has been asked whether it is to be processed.
    is_announced: bool,
    /// Whether hook and tracers are still to be told of its beginning, or of the last link.
    is_untold: bool,
    links: usize,
    /// What the link that comes next has found to be refused for good, in runs that have done a part of its step.
    refused_parts: Vec<(usize, Failure)>,
    is_halted: bool,
    expire: Option<u64>,
    routes: Vec<Announcement>,
    stored: Vec<String>,
    refused: Vec<StorageRefusal>,
    deferred: Vec<String>,
    /// The digest of the document it was kept with, if that is long.
    document: Option<String>,
}

/// A storage that has refused the vCon for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StorageRefusal {
    storage: String,
    error: String,
    attempts: u32,
}

/// A part of the vCon, a dialog mostly, for which a link has failed for good.
#[derive(Serialize, Deserialize)]
struct RefusedPart {
    index: usize,
    /// Whether it is [`FailureKind::Refused`], else [`FailureKind::Permanent`].
    is_in_doubt: bool,
    error: String,
}

/// The progress as Redis keeps it.
#[derive(Serialize, Deserialize)]
struct KeptProgress {
    /// The links and storages of the chain when it was kept.
    links: Vec<String>,
    storages: Vec<String>,
    id: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_announced: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_untold: bool,
    links_done: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    refused_parts: Vec<RefusedPart>,
    is_halted: bool,
    expire: Option<u64>,
    /// Lists, and the vCons that links want announced there.
    routes: Vec<(String, String)>,
    stored: Vec<String>,
    refused: Vec<StorageRefusal>,
    deferred: Vec<String>,
    /// The digest of a long document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document: Option<String>,
}

impl From<RefusedPart> for (usize, Failure) {
    fn from(part: RefusedPart) -> Self {
        let kind = match part.is_in_doubt {
            true => FailureKind::Refused,
            false => FailureKind::Permanent,
        };
        (part.index, Failure::new(kind, part.error))
    }
}

impl ChainProgress {
    /// Nothing has been done for this vCon.
    pub fn none(id: VconId) -> Self {
        Self {
            id,
            is_announced: false,
            is_untold: false,
            links: 0,
            refused_parts: Vec::new(),
            is_halted: false,
            expire: None,
            routes: Vec::new(),
            stored: Vec::new(),
            refused: Vec::new(),
            deferred: Vec::new(),
            document: None,
        }
    }

    /// Reads what is kept; `None` if the chain has changed since, or the text cannot be read.
    pub fn read(text: &[u8], chain: &Chain) -> Option<Self> {
        // The mark of another chain that has changed the document since.
        let changed = text.strip_prefix(b"~");
        let text = changed.unwrap_or(text);
        // The mark of another claim of the vCon (its UUID was pushed more than once), which may have
        // given the storages another version.
        let contested = text.strip_prefix(b"^");
        let record: KeptProgress = serde_json::from_slice(contested.unwrap_or(text)).ok()?;
        if record.links != chain.links || record.storages != chain.storages {
            return None;
        }
        let route = |(list, id): (String, String)| {
            Some(Announcement {
                list: list.parse().ok()?,
                id: id.parse().ok()?,
            })
        };
        let mut progress = Self {
            id: record.id.parse().ok()?,
            is_announced: record.is_announced,
            is_untold: record.is_untold,
            links: record.links_done,
            refused_parts: record.refused_parts.into_iter().map(Into::into).collect(),
            is_halted: record.is_halted,
            expire: record.expire,
            routes: record
                .routes
                .into_iter()
                .map(route)
                .collect::<Option<_>>()?,
            stored: record.stored,
            refused: record.refused,
            deferred: record.deferred,
            document: record.document,
        };
        if changed.is_some() {
            progress.document = None;
            // The same number may be that of another part by now.
            progress.forget_parts();
        }
        if changed.is_some() || contested.is_some() {
            progress.forget_storages();
        }
        let has_all = progress.missing(&chain.storages).is_empty();
        if has_all && progress.refused_by_all().is_some() {
            // It was a dead letter, and whoever pushed it again wants the storages to try again.
            progress.refused.clear();
        }
        Some(progress)
    }

    /// The progress to be kept in Redis, with this document.
    pub fn record(&self, chain: &Chain, document: Option<&str>) -> Option<queue::ProgressRecord> {
        let route = |route: &Announcement| (route.list.to_string(), route.id.to_string());
        let record = KeptProgress {
            links: chain.links.clone(),
            storages: chain.storages.clone(),
            id: self.id.to_string(),
            is_announced: self.is_announced,
            is_untold: self.is_untold,
            links_done: self.links,
            refused_parts: self.kept_parts(),
            is_halted: self.is_halted,
            expire: self.expire,
            routes: self.routes.iter().map(route).collect(),
            stored: self.stored.clone(),
            refused: self.refused.clone(),
            deferred: self.deferred.clone(),
            document: document.filter(|it| it.len() > LONG).map(vcon::digest),
        };
        Some(queue::ProgressRecord {
            id: self.id.clone(),
            text: serde_json::to_string(&record).ok()?,
            document: document.map(str::to_owned),
        })
    }

    /// Whether it may have been kept with this document.
    pub fn fits(&self, document: &Document) -> bool {
        let Document::Found(_, text) = document else {
            return true;
        };
        let is_same = |digest: &String| *digest == vcon::digest(&String::from_utf8_lossy(text));
        self.document.as_ref().is_none_or(is_same)
    }

    /// The vCon that the chain works on.
    pub fn id(&self) -> &VconId {
        &self.id
    }

    /// Whether a link has run or has done a part of its step, a storage was given the vCon, or the hook was asked
    /// about it.
    pub fn is_begun(&self) -> bool {
        self.links > 0 || !self.refused_parts.is_empty() || self.is_announced || self.is_stored()
    }

    /// The hook has been asked, or there is none; tracers are still to be told.
    pub fn note_announced(&mut self) {
        self.is_announced = true;
    }

    /// Whether hook and tracers are still to be told of its beginning, or of the last link.
    pub fn is_untold(&self) -> bool {
        self.is_untold
    }

    /// They are to be told, or have been.
    pub fn note_untold(&mut self, is_untold: bool) {
        self.is_untold = is_untold;
    }

    /// How many links have run.
    pub fn links_done(&self) -> usize {
        self.links
    }

    /// One more link has run.
    pub fn note_link(&mut self) {
        self.links += 1;
        self.forget_parts();
    }

    /// Takes what the link that runs next has found to be refused, for that run.
    pub fn take_parts(&mut self) -> Vec<(usize, Failure)> {
        std::mem::take(&mut self.refused_parts)
    }

    /// What a link has found to be refused by now, if it has not done its step yet.
    pub fn note_parts(&mut self, refused: Vec<(usize, Failure)>) {
        self.refused_parts = refused;
    }

    /// What was refused is to be tried again, or belongs to another document.
    pub fn forget_parts(&mut self) {
        self.refused_parts.clear();
    }

    /// What Redis keeps of it.
    fn kept_parts(&self) -> Vec<RefusedPart> {
        let parts = self.refused_parts.iter().take(MOST_PARTS);
        let longest = PART_TEXT.min(PARTS_TEXT / parts.len().max(1));
        parts
            .map(|(index, failure)| {
                let text = &failure.message;
                RefusedPart {
                    index: *index,
                    is_in_doubt: failure.kind != FailureKind::Permanent,
                    error: text[..text.floor_char_boundary(longest)].to_owned(),
                }
            })
            .collect()
    }

    /// A link has ended the chain: no storage, no egress.
    pub fn note_halt(&mut self) {
        self.is_halted = true;
    }

    /// Whether a link has ended the chain.
    pub fn is_halted(&self) -> bool {
        self.is_halted
    }

    /// The chain goes on with another vCon.
    pub fn note_switch(&mut self, id: VconId) {
        self.id = id;
        self.forget_parts();
    }

    /// What a link wants done at the finish: a time to live, and announcements on more lists.
    pub fn note_requests(&mut self, id: &VconId, expire: Option<u64>, lists: Vec<ListName>) {
        self.expire = expire.or(self.expire);
        for list in lists {
            let id = id.clone();
            let route = Announcement { list, id };
            if !self.routes.contains(&route) {
                self.routes.push(route);
            }
        }
    }

    /// The time to live that a link asked for, in seconds.
    pub fn expire(&self) -> Option<u64> {
        self.expire
    }

    /// Takes the time to live of a vCon that the chain leaves for another one, which does not get it.
    pub fn take_expire(&mut self) -> Option<u64> {
        self.expire.take()
    }

    /// The announcements that links want, without those that the chain makes anyway.
    pub fn routes_besides(&self, id: &VconId, egress: &[ListName]) -> Vec<Announcement> {
        let is_announced = |route: &&Announcement| route.id == *id && egress.contains(&route.list);
        let routes = self.routes.iter();
        routes.filter(|it| !is_announced(it)).cloned().collect()
    }

    /// The storages of the chain that have not been given the vCon yet, or have failed in ways that pass.
    pub fn missing(&self, storages: &[String]) -> Vec<String> {
        let is_done = |name: &String| {
            self.stored.contains(name)
                || self.deferred.contains(name)
                || self.refused.iter().any(|refused| refused.storage == *name)
        };
        storages.iter().filter(|it| !is_done(it)).cloned().collect()
    }

    /// Whether any storage has been given the vCon.
    pub fn is_stored(&self) -> bool {
        !self.stored.is_empty() || !self.refused.is_empty() || !self.deferred.is_empty()
    }

    /// A storage has it.
    pub fn note_stored(&mut self, storage: &str) {
        self.stored.push(storage.to_owned());
    }

    /// A storage has refused it for good.
    pub fn note_refused(&mut self, storage: &str, failure: Failure, attempts: u32) {
        self.refused.push(StorageRefusal {
            storage: storage.to_owned(),
            error: failure.message,
            attempts,
        });
    }

    /// It waits in the queue of a storage.
    pub fn note_deferred(&mut self, storage: &str) {
        self.deferred.push(storage.to_owned());
    }

    /// The document has changed: all storages must get the new version.
    pub fn forget_storages(&mut self) {
        self.stored.clear();
        self.refused.clear();
        self.deferred.clear();
    }

    /// The storages that have refused it, if it is stored in none and waits for none.
    pub fn refused_by_all(&self) -> Option<Vec<(String, Failure)>> {
        if self.refused.is_empty() || !self.stored.is_empty() || !self.deferred.is_empty() {
            return None;
        }
        let failure = |it: &StorageRefusal| (it.storage.clone(), Failure::permanent(&*it.error));
        Some(self.refused.iter().map(failure).collect())
    }

    /// The storages that have refused it: name, error, number of attempts.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        let refused = self.refused.iter();
        refused.map(|it| (it.storage.as_str(), it.error.as_str(), it.attempts))
    }

    /// The storages in whose queues it waits.
    pub fn deferred(&self) -> impl Iterator<Item = &str> {
        self.deferred.iter().map(String::as_str)
    }
}

impl fmt::Display for ChainProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storages = self.stored.len() + self.refused.len() + self.deferred.len();
        let (links, storages) = (counted(self.links, "link"), counted(storages, "storage"));
        write!(f, "{links} and {storages}")
    }
}

/// What a fuzzer runs on what Redis keeps of a claim.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
pub(crate) mod fuzz {
    use super::ChainProgress;
    use crate::config::Chain;
    use crate::queue;

    /// A claim's record, its progress, the reason of a dead letter: anybody can write them to Redis.
    pub fn claim(data: &[u8]) {
        crate::fuzzing::shown_and_typed(data);
        queue::fuzz::answer(data);
        let chain = Chain {
            name: "main".to_owned(),
            links: vec!["tagger".to_owned()],
            storages: vec!["files".to_owned()],
            ingress_lists: Vec::new(),
            egress_lists: Vec::new(),
            enabled: true,
            timeout: None,
            details: String::new(),
        };
        let Some(progress) = ChainProgress::read(data, &chain) else {
            return;
        };
        // What is written again reads as the same.
        let kept = progress.record(&chain, None).unwrap();
        let again = ChainProgress::read(kept.text.as_bytes(), &chain).unwrap();
        let twice = again.record(&chain, None).unwrap();
        assert_eq!(twice.text, kept.text);
        assert_eq!(again.id(), progress.id());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    const OTHER: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    fn chain(links: &str, storages: &str) -> Chain {
        let text = format!(
            "links: {{a: {{module: links.tag, options: {{tags: [x]}}}}, b: {{module: links.tag, options: {{tags: [x]}}}}}}\n\
             storages: {{s: {{module: storage.file}}, t: {{module: storage.file}}}}\n\
             chains: {{main: {{links: [{links}], storages: [{storages}], ingress_lists: [in]}}}}\n"
        );
        let config = Config::parse(&text, Path::new("config.yml"));
        config.unwrap().chains.remove(0)
    }

    #[test]
    fn a_storage_was_given_the_vcon_whatever_it_did_with_it() {
        let ways: [fn(&mut ChainProgress); 3] = [
            |progress| progress.note_stored("s"),
            |progress| progress.note_refused("s", Failure::permanent("too large"), 2),
            |progress| progress.note_deferred("s"),
        ];
        for note in ways {
            let mut progress = ChainProgress::none(VconId::random());
            assert!(!progress.is_stored());
            note(&mut progress);
            assert!(progress.is_stored());
            progress.forget_storages();
            assert!(!progress.is_stored());
        }
    }

    #[test]
    fn what_is_kept_is_read_again_unless_the_chain_is_another_one() {
        let main = chain("a, b", "s, t");
        let mut progress = ChainProgress::none(VconId::random());
        assert!(!progress.is_begun());
        progress.note_requests(&VconId::random(), Some(7), vec!["there".parse().unwrap()]);
        progress.note_switch(OTHER.parse().unwrap());
        progress.note_link();
        progress.note_stored("s");
        progress.note_refused("t", Failure::permanent("too large"), 2);
        let kept = progress.record(&main, None).unwrap();
        assert_eq!(kept.id.as_str(), OTHER);
        assert!(!kept.text.contains('\n'));
        let read = |chain: &Chain| ChainProgress::read(kept.text.as_bytes(), chain);
        assert_eq!(read(&main), Some(progress.clone()));
        progress.forget_storages();
        for marks in ["~", "^", "~^"] {
            let marked = ChainProgress::read(format!("{marks}{}", kept.text).as_bytes(), &main);
            assert_eq!(marked, Some(progress.clone()), "{marks}");
        }
        for other in [
            chain("a", "s, t"),
            chain("b, a", "s, t"),
            chain("a, b", "s"),
        ] {
            assert_eq!(read(&other), None);
        }
        let void = queue::ProgressRecord::void(VconId::random());
        for text in ["rubbish", &void.text] {
            assert_eq!(ChainProgress::read(text.as_bytes(), &main), None);
        }
    }

    fn kept(progress: &ChainProgress, mark: &str) -> ChainProgress {
        let main = chain("a, b", "s, t");
        let kept = progress.record(&main, None).unwrap().text;
        ChainProgress::read(format!("{mark}{kept}").as_bytes(), &main).unwrap()
    }

    #[test]
    fn what_a_link_has_found_refused_is_kept_until_it_is_done_or_the_document_is_another_one() {
        let parts = vec![
            (0, Failure::refused("content_filter")),
            (7, Failure::permanent("no audio")),
        ];
        let mut progress = ChainProgress::none(VconId::random());
        progress.note_parts(parts.clone());
        assert!(progress.is_begun());
        assert_eq!(kept(&progress, "").take_parts(), parts);
        assert_eq!(kept(&progress, "~").take_parts(), []);
        let ends: [fn(&mut ChainProgress); 3] = [
            |it| it.note_link(),
            |it| it.note_switch(OTHER.parse().unwrap()),
            |it| it.forget_parts(),
        ];
        for end in ends {
            progress.note_parts(parts.clone());
            end(&mut progress);
            assert_eq!(progress.take_parts(), []);
        }
    }

    #[test]
    fn what_is_kept_of_refused_parts_is_not_much_however_many_there_are() {
        let mut progress = ChainProgress::none(VconId::random());
        let parts = |count: usize| (0..count).map(|it| (it, Failure::refused("ä".repeat(5000))));
        for (count, most) in [(1, PART_TEXT), (1000, 65), (3000, 65)] {
            progress.note_parts(parts(count).collect());
            let read = kept(&progress, "").take_parts();
            assert_eq!(read.len(), count.min(MOST_PARTS));
            let longest = read.iter().map(|(_, it)| it.message.len()).max().unwrap();
            assert!(longest <= most && longest + 2 > most, "{count}: {longest}");
        }
    }

    #[test]
    fn what_was_done_is_counted_for_messages() {
        let mut progress = ChainProgress::none(VconId::random());
        progress.note_link();
        progress.note_link();
        progress.note_stored("s");
        progress.note_stored("t");
        progress.note_refused("u", Failure::permanent("no"), 1);
        progress.note_deferred("v");
        assert_eq!(progress.to_string(), "2 links and 4 storages");
    }

    #[test]
    fn what_all_storages_refused_is_asked_of_them_again() {
        let main = chain("a, b", "s, t");
        let mut progress = ChainProgress::none(VconId::random());
        progress.note_link();
        progress.note_refused("s", Failure::permanent("too large"), 1);
        let missing = |progress: &ChainProgress| {
            let kept = progress.record(&main, Some("{}")).unwrap();
            let read = ChainProgress::read(kept.text.as_bytes(), &main).unwrap();
            assert_eq!(read.links_done(), 1);
            read.missing(&main.storages)
        };
        assert_eq!(missing(&progress), ["t"]);
        progress.note_refused("t", Failure::permanent("too large"), 1);
        assert_eq!(missing(&progress), ["s", "t"]);
    }

    #[test]
    fn each_storage_is_missing_until_its_outcome_is_known() {
        let names = ["s", "t", "u"].map(str::to_owned);
        let mut progress = ChainProgress::none(VconId::random());
        progress.note_refused("s", Failure::permanent("no"), 1);
        assert_eq!(progress.missing(&names), ["t", "u"]);
        assert!(progress.refused_by_all().is_some());
        progress.note_deferred("t");
        assert!(progress.refused_by_all().is_none());
        progress.note_stored("u");
        assert!(progress.missing(&names).is_empty());
        progress.forget_storages();
        assert_eq!(progress.missing(&names), names);
    }

    #[test]
    fn each_list_is_a_route_once_and_not_where_the_chain_announces() {
        let (id, other) = (VconId::random(), VconId::random());
        let lists = |names: &[&str]| -> Vec<ListName> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let mut progress = ChainProgress::none(id.clone());
        progress.note_requests(&other, Some(5), lists(&["a"]));
        progress.note_requests(&id, None, lists(&["a", "b", "a"]));
        let routes = progress.routes_besides(&id, &lists(&["a", "c"]));
        let routes: Vec<(&str, bool)> = routes
            .iter()
            .map(|route| (route.list.as_str(), route.id == id))
            .collect();
        assert_eq!(routes, [("a", false), ("b", true)]);
        assert_eq!(progress.take_expire(), Some(5));
        assert_eq!(progress.expire(), None);
    }
}
