//! Where every vCon of a test is: nothing lost, nothing twice.

use std::collections::BTreeMap;

use super::{PATIENCE, Redis, Sample, wait_until};

/// The vCons that were submitted to the list `default`, to be announced in the list `done`.
pub struct Ledger<'a> {
    redis: &'a Redis,
    ids: Vec<&'a str>,
}

impl<'a> Ledger<'a> {
    pub fn of(redis: &'a Redis, samples: &'a [Sample]) -> Self {
        Self {
            redis,
            ids: samples.iter().map(|sample| sample.id.as_str()).collect(),
        }
    }

    /// Waits until a part of the vCons is done.
    pub fn wait_for(&self, count: usize) {
        let what = format!("{count} vCons are done");
        wait_until(&what, PATIENCE, || self.done() >= count);
    }

    /// How many are announced so far; none while Redis is away.
    pub fn done(&self) -> usize {
        self.redis.try_ask(&["LLEN", "done"]).unwrap_or(0)
    }

    /// Waits until all are done, and fails when one is lost, done twice or a dead letter.
    pub fn settles(&self) {
        let dead = || self.redis.list("DLQ:default");
        let over = || self.done() + dead().len() >= self.ids.len();
        wait_until("every vCon is done or dead", PATIENCE * 5, over);
        assert_eq!(dead(), Vec::<String>::new(), "dead letters");
        self.is_split_between(&["done"]);
        assert_eq!(self.redis.length("default"), 0);
    }

    /// Fails unless every vCon is in exactly one of the lists, once, and none is claimed.
    pub fn is_split_between(&self, lists: &[&str]) {
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for id in lists.iter().flat_map(|list| self.redis.list(list)) {
            *found.entry(id).or_default() += 1;
        }
        let lost: Vec<&&str> = self
            .ids
            .iter()
            .filter(|id| !found.contains_key(**id))
            .collect();
        let twice: Vec<(&String, &usize)> = found.iter().filter(|(_, n)| **n > 1).collect();
        assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
        assert!(twice.is_empty(), "{} not once: {twice:?}", twice.len());
        assert_eq!(found.len(), self.ids.len(), "vCons that nobody submitted");
        self.nothing_is_claimed();
    }

    /// Fails when a claim is left.
    pub fn nothing_is_claimed(&self) {
        assert_eq!(self.redis.keys("conserver:claims:*"), Vec::<String>::new());
    }
}
