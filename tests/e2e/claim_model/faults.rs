//! Protocols that are broken, so that the checker has something to find.

use redis::{Connection, FromRedisValue, Value};
use sha2::{Digest, Sha256};

use super::server::{Answer, EGRESS, LIST, NAMES, Server, claims_key, number};
use super::store::{Index, Run, Store};

/// The script that claims, as the queue puts it together.
const CLAIM: &str = concat!(
    include_str!("../../../src/queue/scripts/extend_ttl.lua"),
    include_str!("../../../src/queue/scripts/claim_limits.lua"),
    include_str!("../../../src/queue/scripts/claim_token.lua"),
    include_str!("../../../src/queue/scripts/claim_record.lua"),
    include_str!("../../../src/queue/scripts/progress.lua"),
    include_str!("../../../src/queue/scripts/pop_ingress.lua"),
    include_str!("../../../src/queue/scripts/claim.lua"),
    include_str!("../../../src/queue/scripts/run_claim.lua")
);

/// The script that finishes.
const FINISH: &str = concat!(
    include_str!("../../../src/queue/scripts/claim_token.lua"),
    include_str!("../../../src/queue/scripts/direct_writes.lua"),
    include_str!("../../../src/queue/scripts/progress.lua"),
    include_str!("../../../src/queue/scripts/compare_and_write.lua"),
    include_str!("../../../src/queue/scripts/reason_time.lua"),
    include_str!("../../../src/queue/scripts/finish.lua"),
    include_str!("../../../src/queue/scripts/run_finish.lua")
);

/// The script that returns the claims of a worker that is gone.
const RECOVER: &str = concat!(
    include_str!("../../../src/queue/scripts/extend_ttl.lua"),
    include_str!("../../../src/queue/scripts/put_back_context.lua"),
    include_str!("../../../src/queue/scripts/progress.lua"),
    include_str!("../../../src/queue/scripts/reason_time.lua"),
    include_str!("../../../src/queue/scripts/claim_limits.lua"),
    include_str!("../../../src/queue/scripts/claim_token.lua"),
    include_str!("../../../src/queue/scripts/claim_record.lua"),
    include_str!("../../../src/queue/scripts/recover.lua")
);

/// What is wrong with a protocol that the checker has to find fault with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    FinishUnguarded,
    ClaimInTwoSteps,
    ClaimUnmarked,
    RecoveryUnguarded,
    LapseBlamed,
    NoRecovery,
}

impl Server {
    /// What `claim` does, without a look at who has made the claim that is there.
    pub(super) fn claim_unmarked(
        &mut self,
        daemon: Index,
        worker: Index,
    ) -> Result<Answer, String> {
        let script = without_guard(CLAIM, "claim.by ~= '' and claim.by ~= ARGV[8]");
        let name = self.names.of(daemon);
        let claims = claims_key(name, worker);
        let (lease, workers) = (
            format!("conserver:instance:{}", NAMES[name]),
            format!("conserver:workers:{}", NAMES[name]),
        );
        let keys = [&claims, &lease, "conserver:instances", &workers, LIST];
        let record = self.contents.leases[daemon][0].as_bytes();
        let number = number(worker).to_string();
        let mark: String = Sha256::digest(record)
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let args: [&[u8]; 11] = [
            b"1",
            b"9",
            record,
            b"900",
            NAMES[name].as_bytes(),
            number.as_bytes(),
            b"900",
            mark.as_bytes(),
            b"1.5",
            b"1",
            b"\"in\"",
        ];
        let answer: Vec<String> = evaluate(&mut self.connection, &script, &keys, &args);
        match (answer[4].as_str(), answer[2].as_str()) {
            ("not-ours", _) => Ok(Answer::Refused),
            (_, "") => Ok(Answer::Done),
            (_, entry) => Ok(Answer::Claimed(self.contents.vcon(entry)?)),
        }
    }

    /// What `finish` does, without a look whether the claim is still there.
    pub(super) fn finish_unguarded(&mut self, daemon: Index, worker: Index, vcon: Index) {
        let name = self.names.of(daemon);
        let id = &self.ids[vcon];
        let claims = claims_key(name, worker);
        let keys = [&claims, "lease", "instances", "workers", EGRESS];
        let script = without_guard(FINISH, "not is_held(record, ARGV[at + 1])");
        let record = &self.contents.claims[&(name, worker, vcon, Run::Last(daemon))];
        let key = id.key();
        let id = id.as_str().as_bytes();
        let of_claim: [&[u8]; 10] = [b"1", b"9", b"", b"9", b"", b"1", b"9", b"", b"1.5", b"0"];
        let of_finish: [&[u8]; 17] = [
            record,
            id,
            b"",
            b"",
            b"9",
            b"1",
            key.as_bytes(),
            b"",
            b"",
            b"",
            b"",
            b"in",
            b"1",
            id,
            b"0",
            b"0",
            b"",
        ];
        let args = [&of_claim[..], &of_finish[..]].concat();
        evaluate::<Value>(&mut self.connection, &script, &keys, &args);
    }

    /// What `recover_instance` does, without a look at the lease.
    pub(super) fn recover_unguarded(&mut self, store: &Store, name: Index) {
        let script = without_guard(RECOVER, "lease ~= ARGV[7]");
        self.recover_by(&script, store, name, b"lapse");
    }

    /// What `recover_instance` does, but as after the death of the instance's workers.
    pub(super) fn recover_with_blame(&mut self, store: &Store, name: Index) {
        if store.leases[name].is_none() {
            self.recover_by(RECOVER, store, name, b"all but");
        }
    }

    fn recover_by(&mut self, script: &str, store: &Store, name: Index, counted: &[u8]) {
        for worker in (0..2).filter(|worker| store.workers[name][*worker]) {
            let claims = claims_key(name, worker);
            let keys = [
                &claims,
                "conserver:deaths",
                "conserver:instance:none",
                "conserver:lapses",
            ];
            let args: [&[u8]; 10] = [
                b"2", b"99", b"99", b"0", b"x", counted, b"", b"x", b"", b"99",
            ];
            evaluate::<Value>(&mut self.connection, script, &keys, &args);
        }
    }
}

/// A script of the crate in which one of its conditions never holds.
fn without_guard(script: &str, condition: &str) -> String {
    let there = format!("if {condition} then");
    assert!(
        script.contains(&there),
        "the script has no {there:?} any more"
    );
    script.replace(&there, "if false then")
}

fn evaluate<T: FromRedisValue>(
    connection: &mut Connection,
    script: &str,
    keys: &[&str],
    args: &[&[u8]],
) -> T {
    let mut call = redis::cmd("EVAL");
    call.arg(script).arg(keys.len()).arg(keys).arg(args);
    call.query(connection).expect("a script that runs")
}
