//! How far a vCon has come in its chain, so that its next claim goes on from there.
//!
//! It is kept only if a claim is let go before its end. A changed chain voids it, and so does a new
//! version of the document: what stands in Redis is what it was kept with, or what other chains have
//! made of that.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::{Chain, ListName};
use crate::failure::Failure;
use crate::queue::{self, Announcement, Document};
use crate::vcon::{self, VconId};

/// Of a longer document the server may compare no more than the length. It counts a RedisJSON document by
/// its memory, which is a few times its text.
const LONG: usize = 256 << 10;

/// How far a vCon has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    id: VconId,
    links: usize,
    is_halted: bool,
    expire: Option<u64>,
    routes: Vec<Announcement>,
    stored: Vec<String>,
    refused: Vec<Refused>,
    deferred: Vec<String>,
    /// What long document it was kept with.
    document: Option<String>,
}

/// A storage that does not take the vCon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Refused {
    storage: String,
    error: String,
    attempts: u32,
}

/// As it is kept in Redis.
#[derive(Serialize, Deserialize)]
struct Record {
    /// What the chain was made of.
    links: Vec<String>,
    storages: Vec<String>,
    id: String,
    links_done: usize,
    is_halted: bool,
    expire: Option<u64>,
    /// Lists, and the vCons to announce there.
    routes: Vec<(String, String)>,
    stored: Vec<String>,
    refused: Vec<Refused>,
    deferred: Vec<String>,
    /// The digest of a long document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document: Option<String>,
}

impl Progress {
    /// Nothing has been done for this vCon.
    pub fn none(id: VconId) -> Self {
        Self {
            id,
            links: 0,
            is_halted: false,
            expire: None,
            routes: Vec::new(),
            stored: Vec::new(),
            refused: Vec::new(),
            deferred: Vec::new(),
            document: None,
        }
    }

    /// What is kept; `None` if the chain is another one by now, or if it cannot be read.
    pub fn read(text: &[u8], chain: &Chain) -> Option<Self> {
        // Another chain has changed the document since.
        let changed = text.strip_prefix(b"~");
        let text = changed.unwrap_or(text);
        // Another claim of the vCon, which is more than once on its list, may have given them another one.
        let contested = text.strip_prefix(b"^");
        let record: Record = serde_json::from_slice(contested.unwrap_or(text)).ok()?;
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
            links: record.links_done,
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
        }
        if changed.is_some() || contested.is_some() {
            progress.forget_storages();
        }
        let has_all = progress.missing(&chain.storages).is_empty();
        if has_all && progress.refused_by_all().is_some() {
            // It was a dead letter, and whoever has put it back wants the storages asked again.
            progress.refused.clear();
        }
        Some(progress)
    }

    /// As it is to be kept with this document.
    pub fn record(&self, chain: &Chain, document: Option<&str>) -> Option<queue::ProgressRecord> {
        let route = |route: &Announcement| (route.list.to_string(), route.id.to_string());
        let record = Record {
            links: chain.links.clone(),
            storages: chain.storages.clone(),
            id: self.id.to_string(),
            links_done: self.links,
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

    /// Whether it may have been made with this document.
    pub fn is_of(&self, document: &Document) -> bool {
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

    /// Whether anything has been done.
    pub fn is_begun(&self) -> bool {
        self.links > 0 || self.is_stored()
    }

    /// How many links have been run.
    pub fn links_done(&self) -> usize {
        self.links
    }

    /// One link more has been run.
    pub fn note_link(&mut self) {
        self.links += 1;
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
    }

    /// What a link wants done when the work on the vCon is done.
    pub fn note_wishes(&mut self, id: &VconId, expire: Option<u64>, lists: Vec<ListName>) {
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

    /// The same, for a vCon that the chain leaves: it does not follow to the next one.
    pub fn take_expire(&mut self) -> Option<u64> {
        self.expire.take()
    }

    /// What links want announced, without what the chain announces there anyway.
    pub fn routes_besides(&self, id: &VconId, egress: &[ListName]) -> Vec<Announcement> {
        let is_announced = |route: &&Announcement| route.id == *id && egress.contains(&route.list);
        let routes = self.routes.iter();
        routes.filter(|it| !is_announced(it)).cloned().collect()
    }

    /// The storages of the chain that have not been asked yet, or have failed in ways that pass.
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

    /// A storage refuses it for good.
    pub fn note_refused(&mut self, storage: &str, failure: Failure, attempts: u32) {
        self.refused.push(Refused {
            storage: storage.to_owned(),
            error: failure.message,
            attempts,
        });
    }

    /// It waits for a storage.
    pub fn note_deferred(&mut self, storage: &str) {
        self.deferred.push(storage.to_owned());
    }

    /// The document is another one now: all storages are to be given it.
    pub fn forget_storages(&mut self) {
        self.stored.clear();
        self.refused.clear();
        self.deferred.clear();
    }

    /// The storages that refuse it, if no other one has it or waits for it.
    pub fn refused_by_all(&self) -> Option<Vec<(String, Failure)>> {
        if self.refused.is_empty() || !self.stored.is_empty() || !self.deferred.is_empty() {
            return None;
        }
        let failure = |it: &Refused| (it.storage.clone(), Failure::permanent(&*it.error));
        Some(self.refused.iter().map(failure).collect())
    }

    /// The storages that refuse it: name, why, and in how many attempts.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        let refused = self.refused.iter();
        refused.map(|it| (it.storage.as_str(), it.error.as_str(), it.attempts))
    }

    /// The storages that it waits for.
    pub fn deferred(&self) -> impl Iterator<Item = &str> {
        self.deferred.iter().map(String::as_str)
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storages = self.stored.len() + self.refused.len() + self.deferred.len();
        write!(f, "{} links and {storages} storages", self.links)
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
        let ways: [fn(&mut Progress); 3] = [
            |progress| progress.note_stored("s"),
            |progress| progress.note_refused("s", Failure::permanent("too large"), 2),
            |progress| progress.note_deferred("s"),
        ];
        for note in ways {
            let mut progress = Progress::none(VconId::random());
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
        let mut progress = Progress::none(VconId::random());
        assert!(!progress.is_begun());
        progress.note_wishes(&VconId::random(), Some(7), vec!["there".parse().unwrap()]);
        progress.note_switch(OTHER.parse().unwrap());
        progress.note_link();
        progress.note_stored("s");
        progress.note_refused("t", Failure::permanent("too large"), 2);
        let kept = progress.record(&main, None).unwrap();
        assert_eq!(kept.id.as_str(), OTHER);
        assert!(!kept.text.contains('\n'));
        let read = |chain: &Chain| Progress::read(kept.text.as_bytes(), chain);
        assert_eq!(read(&main), Some(progress.clone()));
        progress.forget_storages();
        for marks in ["~", "^", "~^"] {
            let marked = Progress::read(format!("{marks}{}", kept.text).as_bytes(), &main);
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
            assert_eq!(Progress::read(text.as_bytes(), &main), None);
        }
    }

    #[test]
    fn what_was_done_is_counted_for_messages() {
        let mut progress = Progress::none(VconId::random());
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
        let mut progress = Progress::none(VconId::random());
        progress.note_link();
        progress.note_refused("s", Failure::permanent("too large"), 1);
        let missing = |progress: &Progress| {
            let kept = progress.record(&main, Some("{}")).unwrap();
            let read = Progress::read(kept.text.as_bytes(), &main).unwrap();
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
        let mut progress = Progress::none(VconId::random());
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
        let mut progress = Progress::none(id.clone());
        progress.note_wishes(&other, Some(5), lists(&["a"]));
        progress.note_wishes(&id, None, lists(&["a", "b", "a"]));
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
