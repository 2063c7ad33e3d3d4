//! What became of each entry of each list, as the journal of Redis has it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Entry;
use crate::harness::{Redis, Sample};

/// How often something was done with an entry.
type Counts = BTreeMap<Entry, usize>;

/// All that was done with the entries of all lists.
#[derive(Default)]
pub struct History {
    /// Pushed by a producer, or announced by a chain.
    pushed: Counts,
    claimed: Counts,
    /// Put back into its list after the death of its worker.
    returned: Counts,
    /// Of these, those whose document had been deleted.
    doomed: BTreeSet<Entry>,
    /// Deaths that count for a vCon: where it only waited for something, its worker's does not.
    pub deaths: usize,
    deleted: BTreeSet<String>,
    /// Documents that were written after they had been deleted.
    brought_back: Vec<String>,
}

impl History {
    pub fn of(redis: &Redis) -> Self {
        let mut history = Self::default();
        for command in redis.journal() {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            history.note(&words);
        }
        assert_eq!(history.brought_back, Vec::<String>::new());
        history
    }

    fn note(&mut self, words: &[&str]) {
        let count = |counts: &mut Counts, list: &str, id: &str| {
            *counts.entry((list.to_owned(), id.to_owned())).or_default() += 1;
        };
        match words {
            ["RPUSH", list, ids @ ..] => {
                for id in ids {
                    count(&mut self.pushed, list, id);
                }
            }
            ["LPUSH", list, id] if !list.starts_with("conserver:") => {
                count(&mut self.returned, list, id);
                if self.deleted.contains(*id) {
                    self.doomed.insert(((*list).to_owned(), (*id).to_owned()));
                }
            }
            ["HSET", hash, fields @ ..] if hash.starts_with("conserver:claims:") => {
                for field in fields.chunks(2) {
                    let claim: Value = serde_json::from_str(field[1]).expect("JSON");
                    let (list, id) = (&claim["list"], &claim["uuid"]);
                    let [list, id] = [list, id].map(|it| it.as_str().expect("text"));
                    count(&mut self.claimed, list, id);
                }
            }
            ["HINCRBY", "conserver:deaths", ..] => self.deaths += 1,
            ["DEL", key] => {
                let id = key.strip_prefix("vcon:").map(str::to_owned);
                self.deleted.extend(id);
            }
            ["SET" | "JSON.SET", key, ..] | ["RENAME", _, key] => {
                let id = key.strip_prefix("vcon:");
                let id = id.filter(|id| self.deleted.contains(*id));
                self.brought_back.extend(id.map(str::to_owned));
            }
            _ => {}
        }
    }

    /// How many claims were returned.
    pub fn returns(&self) -> usize {
        self.returned.values().sum()
    }

    /// The entries that were returned to a list after their documents had been deleted.
    pub fn doomed(&self, list: &str) -> BTreeSet<String> {
        let doomed = self.doomed.iter().filter(|it| it.0 == list);
        doomed.map(|it| it.1.clone()).collect()
    }

    /// Fails unless each of these vCons was pushed onto the list `times` times, was claimed once for
    /// each of them and once more for each death of a worker that had it, and is announced for each
    /// push that is no dead letter. No link runs more often than its vCon was claimed, and exactly
    /// once for each push if no worker died.
    pub fn adds_up(
        &self,
        (list, egress): (&str, &str),
        times: usize,
        samples: &[Sample],
        calls: &Counts,
    ) {
        let mut wrong = Vec::new();
        for sample in samples {
            let of = |counts: &Counts, list: &str| {
                let entry = (list.to_owned(), sample.id.clone());
                counts.get(&entry).copied().unwrap_or(0)
            };
            let (pushed, claimed) = (of(&self.pushed, list), of(&self.claimed, list));
            let (returned, called) = (of(&self.returned, list), of(calls, list));
            let announced = of(&self.pushed, egress);
            let dead = of(&self.pushed, &format!("DLQ:{list}"));
            let is_right = pushed == times
                && claimed == times + returned
                && announced + dead == times
                && (announced..=times + returned).contains(&called)
                && (dead == 0 || returned > 0);
            if !is_right {
                wrong.push(format!(
                    "{} was pushed {pushed} times onto {list}, claimed {claimed}, returned {returned}, \
                     announced {announced}, a dead letter {dead}, its link was called {called}",
                    sample.id
                ));
            }
        }
        assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
    }
}
