//! Writing and reading everything that is in Redis.

use std::collections::HashMap;

use redis::Connection;
use serde_json::Value;

use super::server::{EGRESS, LIST, NAMES, claims_key, number};
use super::store::{Index, Run, Store};

/// Every key with its kind and what it holds; of a string also how long it lives.
const DUMP: &str = "
local out = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, values = redis.call('TYPE', key).ok, {}
  if kind == 'list' then values = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'set' then values = redis.call('SMEMBERS', key)
  elseif kind == 'hash' then values = redis.call('HGETALL', key)
  elseif kind == 'string' then values = {redis.call('GET', key), tostring(redis.call('TTL', key))} end
  out[#out + 1] = {key, kind, values}
end
return out";

/// The words that stand in Redis for what a [`Store`] knows by number.
pub struct Contents {
    pub ids: [String; 2],
    /// The record of the lease of each daemon's last run, and of the one before.
    pub leases: [[String; 2]; 2],
    /// The record of a claim, by name, worker, vCon and run.
    pub claims: HashMap<(Index, Index, Index, Run), Vec<u8>>,
    /// Whose claims bear this mark.
    pub marks: HashMap<String, Run>,
    dump: redis::Script,
}

impl Contents {
    pub fn new(ids: [String; 2], leases: [[String; 2]; 2]) -> Self {
        Self {
            ids,
            leases,
            claims: HashMap::new(),
            marks: HashMap::new(),
            dump: redis::Script::new(DUMP),
        }
    }

    /// Notes the record of a claim that was just made.
    pub fn note(&mut self, claim: (Index, Index, Index, Run), record: Vec<u8>) {
        let parsed: Value = serde_json::from_slice(&record).expect("JSON");
        let mark = parsed["by"].as_str().expect("a mark");
        self.marks.insert(mark.to_owned(), claim.3);
        self.claims.insert(claim, record);
    }

    /// Makes Redis hold this and nothing else.
    pub fn write(&self, connection: &mut Connection, store: &Store) {
        let mut steps = redis::pipe();
        steps.cmd("FLUSHALL").ignore();
        let id = |vcon: Index| self.ids[vcon].as_str();
        for vcon in store.list.into_iter().flatten() {
            steps.rpush(LIST, id(vcon)).ignore();
        }
        for vcon in 0..2 {
            if store.finished[vcon] > 0 {
                steps.rpush(EGRESS, id(vcon)).ignore();
            }
            if store.buried[vcon] > 0 {
                steps.rpush("DLQ:in", id(vcon)).ignore();
                steps.hset("conserver:dlq:in", id(vcon), "{}").ignore();
            }
            let deaths = store.deaths[vcon];
            if deaths > 0 {
                steps.hset("conserver:deaths", id(vcon), deaths).ignore();
            }
            let lapses = store.lapses[vcon];
            if lapses > 0 {
                steps.hset("conserver:lapses", id(vcon), lapses).ignore();
            }
        }
        for (name, text) in NAMES.into_iter().enumerate() {
            if store.instances[name] {
                steps.sadd("conserver:instances", text).ignore();
            }
            let lease = store.leases[name].map(|run| match run {
                Run::Last(daemon) => &self.leases[daemon][0],
                Run::Former(daemon) => &self.leases[daemon][1],
            });
            if let Some(lease) = lease {
                let key = format!("conserver:instance:{text}");
                steps.set_ex(key, lease, 900).ignore();
            }
            for worker in 0..2 {
                if store.workers[name][worker] {
                    let key = format!("conserver:workers:{text}");
                    steps.sadd(key, number(worker)).ignore();
                }
                if let Some((vcon, run)) = store.claims[name][worker] {
                    let record = self.claims[&(name, worker, vcon, run)].as_slice();
                    steps.hset(claims_key(name, worker), 1, record).ignore();
                }
            }
        }
        steps.query::<()>(connection).expect("Redis takes it");
    }

    /// What Redis holds, or what in it must not be.
    pub fn read(&self, connection: &mut Connection) -> Result<Store, String> {
        let call = self.dump.prepare_invoke();
        let dump: Vec<(String, String, Vec<String>)> = call.invoke(connection).expect("a dump");
        let mut store = Store::EMPTY;
        let mut reasons = [0_u8; 2];
        for (key, kind, values) in dump {
            let pairs = values.chunks_exact(2);
            match (key.as_str(), kind.as_str()) {
                (LIST, "list") if values.len() > 2 => {
                    return Err(format!("the list holds {values:?}"));
                }
                (LIST, "list") => {
                    for (place, entry) in store.list.iter_mut().zip(&values) {
                        *place = Some(self.vcon(entry)?);
                    }
                }
                (EGRESS, "list") => self.count(&values, &mut store.finished)?,
                ("DLQ:in", "list") => self.count(&values, &mut store.buried)?,
                ("conserver:dlq:in", "hash") => {
                    for pair in pairs {
                        reasons[self.vcon(&pair[0])?] += 1;
                    }
                }
                ("conserver:deaths", "hash") => {
                    for pair in pairs {
                        let count = pair[1].parse();
                        store.deaths[self.vcon(&pair[0])?] =
                            count.map_err(|_| format!("{pair:?} deaths"))?;
                    }
                }
                ("conserver:lapses", "hash") => {
                    for pair in pairs {
                        let count = pair[1].parse();
                        store.lapses[self.vcon(&pair[0])?] =
                            count.map_err(|_| format!("{pair:?} lapses"))?;
                    }
                }
                ("conserver:instances", "set") => {
                    store.instances = NAMES.map(|name| values.iter().any(|value| value == name));
                }
                // How often a vCon was postponed makes no difference here: it may be any number of times.
                ("conserver:tries", "hash") => {}
                // It tells only where to look for dead letters.
                ("conserver:letters", "set") => {}
                _ => self.read_name(&key, &kind, &values, &mut store)?,
            }
        }
        if reasons != store.buried {
            return Err(format!(
                "the reasons {reasons:?} are not those of {store:?}"
            ));
        }
        Ok(store)
    }

    /// Reads a key that belongs to a name.
    fn read_name(
        &self,
        key: &str,
        kind: &str,
        values: &[String],
        store: &mut Store,
    ) -> Result<(), String> {
        let unknown = || format!("there is the {kind} {key}: {values:?}");
        let name = NAMES
            .iter()
            .position(|name| key.contains(&format!(":{name}")));
        let name = name.ok_or_else(unknown)?;
        if key == format!("conserver:instance:{}", NAMES[name]) {
            if values[1].starts_with('-') {
                return Err(format!("the lease {values:?} never runs out"));
            }
            store.leases[name] = Some(self.holder(&values[0]).ok_or_else(unknown)?);
        } else if key == format!("conserver:workers:{}", NAMES[name]) {
            store.workers[name] = [0, 1].map(|worker| values.contains(&number(worker).to_string()));
        } else {
            let worker = (0..2).find(|worker| key == claims_key(name, *worker));
            let worker = worker.ok_or_else(unknown)?;
            if values.len() != 2 || values[0] != "1" {
                return Err(unknown());
            }
            let record: Value = serde_json::from_str(&values[1]).map_err(|_| unknown())?;
            if record["list"] != LIST || !record["since"].is_number() {
                return Err(unknown());
            }
            let vcon = self.vcon(record["uuid"].as_str().unwrap_or_default())?;
            let mark = record["by"].as_str().unwrap_or_default();
            let run = self.marks.get(mark).ok_or_else(unknown)?;
            store.claims[name][worker] = Some((vcon, *run));
        }
        Ok(())
    }

    fn holder(&self, record: &str) -> Option<Run> {
        let is = |daemon: &Index, run: Index| self.leases[*daemon][run] == record;
        let last = (0..2).find(|daemon| is(daemon, 0)).map(Run::Last);
        last.or_else(|| (0..2).find(|daemon| is(daemon, 1)).map(Run::Former))
    }

    fn count(&self, entries: &[String], counts: &mut [u8; 2]) -> Result<(), String> {
        for entry in entries {
            counts[self.vcon(entry)?] += 1;
        }
        Ok(())
    }

    /// Which vCon an entry is.
    pub fn vcon(&self, entry: &str) -> Result<Index, String> {
        let found = self.ids.iter().position(|id| id == entry);
        found.ok_or_else(|| format!("{entry:?} was never submitted"))
    }
}
