//! What the daemons on a Redis hold: claims and names.

use serde_json::Value;

use super::{Daemon, PATIENCE, Redis, wait_until};

/// The lease on the name `here`.
pub const LEASE: &str = "conserver:instance:here";

impl Redis {
    /// The claims of all workers.
    pub fn claims(&self) -> Vec<Value> {
        let mut claims = Vec::new();
        for key in self.keys("conserver:claims:*") {
            let records: Vec<String> = self.ask(&["HVALS", &key]);
            let parse = |record: &String| serde_json::from_str(record).expect("JSON");
            claims.extend(records.iter().map(parse));
        }
        claims.sort_by_key(|claim: &Value| claim["uuid"].to_string());
        claims
    }

    /// Waits until so many vCons are in hand.
    pub fn wait_for_claims(&self, count: usize) -> Vec<Value> {
        let what = format!("{count} vCons are in hand");
        wait_until(&what, PATIENCE, || self.claims().len() == count);
        self.claims()
    }

    /// Who has the name `here`.
    pub fn holder(&self) -> Option<Value> {
        let record: Option<String> = self.ask(&["GET", LEASE]);
        record.map(|record| serde_json::from_str(&record).expect("JSON"))
    }

    /// Whether this daemon has the name `here`.
    pub fn is_held_by(&self, daemon: &Daemon) -> bool {
        self.holder()
            .is_some_and(|holder| holder["pid"] == daemon.pid())
    }

    /// The names of the instances that are known.
    pub fn instances(&self) -> Vec<String> {
        let mut names: Vec<String> = self.ask(&["SMEMBERS", "conserver:instances"]);
        names.sort();
        names
    }
}
