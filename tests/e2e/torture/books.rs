//! The ledger: what became of every vCon that was submitted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde_json::Value;

use super::calls::Calls;
use super::chains::{CHAINS, Chain, STORAGES, THIRD};
use super::logs::Logs;
use super::producer::{CHOSEN, JOURNAL, Submitted, context_of};
use super::run::Run;
use super::sampler::SENT_ON;
use crate::harness::{Files, Redis, same};

/// Where copies of the vCons are in the end, in the order of [`STORAGES`].
pub type Copies = [HashMap<String, Value>; 3];

/// Of a recovery whose answer was lost, or whose process was killed before it could tell, there is no
/// line in the log. One in so many may be such a one.
const TOLD_AT_LEAST: usize = 100;

/// Calls of links that one such recovery may repeat: those for the vCons of all lanes of a worker.
const REPEATED_AT_ONCE: usize = 6;

/// The sums of the ledger.
#[derive(Default)]
pub struct Books {
    pub acknowledged: usize,
    pub unacknowledged: usize,
    /// Of the unacknowledged, those that Redis has taken all the same.
    pub taken: usize,
    /// Those that were sent on to the third chain.
    pub sent_on: usize,
    pub stored: usize,
    /// How many vCons were announced so often, on all lists.
    pub announced: BTreeMap<usize, usize>,
    pub lost: usize,
    /// Files that killed workers have left half written, under their hidden names.
    pub drafts: usize,
    /// Calls of links that were not the first for a push.
    pub repeated: usize,
    /// Of these, those that no recovery of the vCon's claim explains.
    pub unexplained: usize,
    pub logs: Logs,
}

impl Books {
    /// Looks up every vCon everywhere; each that is not exactly where it should be is a fault.
    pub fn close(
        run: &Run,
        redis: &Redis,
        copies: &Copies,
        folders: [&Files; 2],
        calls: &Calls,
        submitted: &Submitted,
    ) -> Self {
        let journal: BTreeSet<String> = redis.ask(&["SMEMBERS", JOURNAL]);
        let chosen: BTreeSet<String> = redis.ask(&["SMEMBERS", CHOSEN]);
        let with_hidden: usize = folders.iter().map(|it| it.with_hidden().len()).sum();
        let whole: usize = folders.iter().map(|it| it.paths().len()).sum();
        let mut books = Self {
            acknowledged: submitted.acknowledged.len(),
            unacknowledged: submitted.unacknowledged.len(),
            taken: submitted.unacknowledged.intersection(&journal).count(),
            sent_on: redis.ask(&["SCARD", SENT_ON]),
            drafts: with_hidden - whole,
            logs: Logs::of(run, redis),
            ..Self::default()
        };
        for id in submitted.acknowledged.difference(&journal) {
            books.lost += 1;
            run.fault_of(id, format!("{id}: Redis has acknowledged and forgotten it"));
        }
        books.look_at_documents(run, redis, copies, &journal, &chosen);
        for chain in CHAINS {
            let pushed = pushed_onto(chain, &journal, &chosen);
            books.look_at_chain(run, redis, calls, chain, pushed);
        }
        let stored = copies.iter().flat_map(HashMap::keys);
        for id in stored.filter(|id| !journal.contains(*id)) {
            run.fault_of(id, format!("{id} is stored and was never pushed"));
        }
        let untold = 1 + books.logs.recoveries() / TOLD_AT_LEAST;
        if books.unexplained > untold * REPEATED_AT_ONCE {
            let (repeated, unexplained) = (books.repeated, books.unexplained);
            run.fault(format!(
                "of {repeated} calls of links that were repeated, {unexplained} were without a death"
            ));
        }
        nothing_is_left(run, redis);
        books
    }

    /// Every tag of every chain is there, in Redis and in each storage.
    fn look_at_documents(
        &mut self,
        run: &Run,
        redis: &Redis,
        copies: &Copies,
        journal: &BTreeSet<String>,
        chosen: &BTreeSet<String>,
    ) {
        let ids: Vec<&str> = journal.iter().map(String::as_str).collect();
        for some in ids.chunks(500) {
            for (id, document) in some.iter().zip(redis.documents(some)) {
                let Some(document) = document else {
                    self.lost += 1;
                    run.fault_of(id, format!("{id}: its document is gone from Redis"));
                    continue;
                };
                let mut wrong = Vec::new();
                for chain in CHAINS {
                    let is_expected = chain.list != THIRD.list || chosen.contains(*id);
                    if tags_of(&document, chain.tag) != usize::from(is_expected) {
                        wrong.push(format!("tag {} is missing, or there twice", chain.tag));
                    }
                }
                let mut is_stored = true;
                for (storage, copies) in STORAGES.iter().zip(copies) {
                    match copies.get(*id) {
                        None => {
                            is_stored = false;
                            wrong.push(format!("not in {storage}"));
                        }
                        Some(copy) if !same(copy, &document) => {
                            wrong.push(format!("{storage} has another: {}", difference(copy)));
                        }
                        Some(_) => {}
                    }
                }
                self.stored += usize::from(is_stored);
                self.lost += usize::from(!is_stored);
                if !wrong.is_empty() {
                    run.fault_of(id, format!("{id}: {}", wrong.join(", ")));
                }
            }
        }
    }

    /// Every vCon that was pushed onto the chain's list was announced once, with its context, and
    /// each link has told of it.
    fn look_at_chain(
        &mut self,
        run: &Run,
        redis: &Redis,
        calls: &Calls,
        chain: &Chain,
        pushed: &BTreeSet<String>,
    ) {
        let announced: HashMap<String, usize> = redis.ask(&["HGETALL", &chain.announced()]);
        let (list, egress) = (chain.list, chain.egress);
        for id in announced.keys().filter(|id| !pushed.contains(*id)) {
            run.fault_of(
                id,
                format!("{id} was announced on {egress}, not pushed onto {list}"),
            );
        }
        let ids: Vec<&str> = pushed.iter().map(String::as_str).collect();
        for some in ids.chunks(500) {
            let before = redis.lists(some, |id| format!("context:{list}:{id}"));
            let after = redis.lists(some, |id| format!("context:{egress}:{id}"));
            for (id, (before, after)) in some.iter().zip(before.into_iter().zip(after)) {
                let times = announced.get(*id).copied().unwrap_or(0);
                *self.announced.entry(times).or_default() += 1;
                // A claim is let go in the step that announces: whatever dies, there is no second time.
                if times != 1 {
                    run.fault_of(id, format!("{id}: announced {times} times on {egress}"));
                }
                if !before.is_empty() || after != [context_of(id)] {
                    run.fault_of(
                        id,
                        format!("{id}: its context is lost, or there twice, on {egress}"),
                    );
                }
            }
        }
        for link in chain.heard {
            let heard = calls.of(link);
            for id in heard.keys().filter(|id| !pushed.contains(*id)) {
                run.fault_of(id, format!("{id}: link {link} has told of it for no push"));
            }
            for id in pushed {
                let times = heard.get(id).copied().unwrap_or(0);
                if times == 0 {
                    run.fault_of(id, format!("{id}: link {link} has not told of it"));
                }
                let repeated = times.saturating_sub(1);
                let unexplained = repeated.saturating_sub(self.logs.recoveries_of(list, id));
                self.repeated += repeated;
                self.unexplained += unexplained;
                if unexplained > 0 {
                    run.write(&format!(
                        "{id}: link {link} has told of it {times} times, no death explains that"
                    ));
                }
            }
        }
    }
}

/// What was pushed onto the list of a chain.
fn pushed_onto<'a>(
    chain: &Chain,
    journal: &'a BTreeSet<String>,
    chosen: &'a BTreeSet<String>,
) -> &'a BTreeSet<String> {
    if chain.list == THIRD.list {
        chosen
    } else {
        journal
    }
}

/// Whether a document has a tag.
pub fn has_tag(document: &Value, tag: &str) -> bool {
    tags_of(document, tag) > 0
}

/// How often a document has a tag; 0 if its tags are in more than one place.
fn tags_of(document: &Value, tag: &str) -> usize {
    let tags = all_tags(document);
    let tag = format!("{tag}:{tag}");
    tags.iter().filter(|entry| **entry == tag).count()
}

fn all_tags(document: &Value) -> Vec<String> {
    let attachments = document["attachments"].as_array();
    let tags: Vec<&Value> = attachments
        .into_iter()
        .flatten()
        .filter(|attachment| attachment["purpose"] == "tags")
        .collect();
    let [tags] = tags.as_slice() else {
        return Vec::new();
    };
    let body = tags["body"]
        .as_str()
        .map(serde_json::from_str::<Vec<String>>);
    body.and_then(Result::ok).unwrap_or_default()
}

/// What a copy that is another one has of all that the chains add.
fn difference(copy: &Value) -> String {
    format!("its tags are {:?}", all_tags(copy))
}

/// Nothing waits, and no key of the daemons' own is left behind by what is done.
fn nothing_is_left(run: &Run, redis: &Redis) {
    let lists = CHAINS.iter().flat_map(|chain| {
        let dead = format!("DLQ:{}", chain.list);
        [chain.list.to_owned(), chain.egress.to_owned(), dead]
    });
    let backlogs = STORAGES.iter().map(|name| format!("DLQ:storage:{name}"));
    for list in lists.chain(backlogs) {
        let left = redis.list(&list);
        if !left.is_empty() {
            run.fault(format!("in the list {list}: {left:?}"));
        }
    }
    let mut left = redis.keys("conserver:*");
    // What queues there have been is known for ever.
    left.retain(|key| key != "conserver:letters");
    // The lease of a keeper that was killed runs out by itself.
    left.retain(|key| {
        !(key.starts_with("conserver:keeper:") && redis.ask::<i64>(&["PTTL", key]) > 0)
    });
    if !left.is_empty() {
        run.fault(format!("keys are left: {left:?}"));
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, count: usize| writeln!(f, "  {name:<34}{count:>8}");
        line("vCons acknowledged by Redis", self.acknowledged)?;
        line("not acknowledged", self.unacknowledged)?;
        line("  of these taken all the same", self.taken)?;
        line("sent on by the tag router", self.sent_on)?;
        line("in all storages", self.stored)?;
        for (times, count) in &self.announced {
            line(&format!("pushes announced {times} times"), *count)?;
        }
        line("half-written files left", self.drafts)?;
        line("claims of the dead returned", self.logs.recoveries())?;
        line("changes merged", self.logs.merged)?;
        line("vCons deferred and saved later", self.logs.saved_later)?;
        line("claims found settled already", self.logs.not_ours)?;
        line("calls of links repeated", self.repeated)?;
        line("  without a death", self.unexplained)?;
        line("lost", self.lost)
    }
}
