//! The scripts that take a vCon from its list and announce it.

use redis::{Cmd, Connection, Value};

use super::super::servers::Servers;

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
const FINISH: &str = concat!(
    include_str!("../../../src/queue/scripts/claim_token.lua"),
    include_str!("../../../src/queue/scripts/progress.lua"),
    include_str!("../../../src/queue/scripts/direct_writes.lua"),
    include_str!("../../../src/queue/scripts/compare_and_write.lua"),
    include_str!("../../../src/queue/scripts/reason_time.lua"),
    include_str!("../../../src/queue/scripts/finish.lua"),
    include_str!("../../../src/queue/scripts/run_finish.lua")
);
const FINISH_AND_CLAIM: &str = concat!(
    include_str!("../../../src/queue/scripts/extend_ttl.lua"),
    include_str!("../../../src/queue/scripts/claim_limits.lua"),
    include_str!("../../../src/queue/scripts/claim_token.lua"),
    include_str!("../../../src/queue/scripts/claim_record.lua"),
    include_str!("../../../src/queue/scripts/progress.lua"),
    include_str!("../../../src/queue/scripts/pop_ingress.lua"),
    include_str!("../../../src/queue/scripts/claim.lua"),
    include_str!("../../../src/queue/scripts/direct_writes.lua"),
    include_str!("../../../src/queue/scripts/compare_and_write.lua"),
    include_str!("../../../src/queue/scripts/reason_time.lua"),
    include_str!("../../../src/queue/scripts/finish.lua"),
    include_str!("../../../src/queue/scripts/run_finish_and_claim.lua")
);

/// The most bytes of a document that a script is given or hands over.
const INLINE: usize = 1 << 20;

const CLAIMS: &str = "conserver:claims:floor:1";

/// One connection.
pub struct Queue {
    connection: Connection,
    lane: usize,
    /// The hash of each script.
    claim: String,
    finish: String,
    finish_and_claim: String,
    /// Whether the chain has storages: they were given the document that must still stand there.
    is_stored: bool,
    requests: u64,
    token: Vec<u8>,
    /// The document that came with the claim.
    base: Vec<u8>,
}

impl Queue {
    pub fn connect(servers: &Servers, lane: usize, is_stored: bool) -> Self {
        let client = redis::Client::open(servers.redis.url()).expect("a URL");
        let mut connection = client.get_connection().expect("a connection");
        let mut load = |script: &str| -> String {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script);
            load.query(&mut connection).expect("a script")
        };
        let [claim, finish, finish_and_claim] = [CLAIM, FINISH, FINISH_AND_CLAIM].map(&mut load);
        Self {
            connection,
            lane,
            claim,
            finish,
            finish_and_claim,
            is_stored,
            requests: 0,
            token: Vec::new(),
            base: Vec::new(),
        }
    }

    /// The first id, whose document has come with it.
    pub fn claim(&mut self) -> Option<String> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.claim);
        self.add_claim(&mut call, &["default"], &[]);
        let answer = self.ask(&call);
        self.claimed(answer)
    }

    /// Lets go of it, with its new document if there is one, and asks for the next in the same
    /// round trip.
    pub fn finish_and_claim(&mut self, id: &str, changed: Option<&String>) -> Option<String> {
        if self.base.len().max(changed.map_or(0, String::len)) > INLINE {
            self.finish_large(id, changed);
            return self.claim();
        }
        let base = std::mem::take(&mut self.base);
        let text = changed.map_or(&[][..], |text| text.as_bytes());
        let document = if changed.is_some() || self.is_stored {
            [b"text", &*base, text]
        } else {
            [&[][..]; 3]
        };
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.finish_and_claim);
        self.add_claim(&mut call, &["default"], &["done"]);
        self.add_finish(&mut call, id, document);
        let Value::Array(mut answers) = self.ask(&call) else {
            panic!("no answer to a finish")
        };
        let next = answers.pop().expect("an answer to the claim");
        assert_eq!(answers, [Value::Int(1)]);
        self.claimed(next)
    }

    /// Keys and arguments of `claim.lua`, which those of `finish.lua` follow.
    fn add_claim(&mut self, call: &mut Cmd, lists: &[&str], pushes: &[&str]) {
        self.requests += 1;
        call.arg(4 + lists.len() + pushes.len());
        call.arg(CLAIMS).arg("conserver:instance:floor");
        call.arg("conserver:instances")
            .arg("conserver:workers:floor");
        call.arg(lists).arg(pushes);
        call.arg(self.lane).arg(INLINE);
        call.arg("{\"floor\":1}").arg(3600);
        call.arg("floor").arg(1);
        call.arg(3600).arg("0123456789ab");
        call.arg(format!("1700000000.{:06}", self.requests));
        call.arg(lists.len());
        for list in lists {
            call.arg(format!("\"{list}\""));
        }
    }

    fn add_finish(&self, call: &mut Cmd, id: &str, document: [&[u8]; 3]) {
        call.arg(&self.token).arg(id);
        call.arg(format!("default\n{id}"));
        call.arg("").arg(86400).arg(0);
        call.arg(format!("vcon:{id}"));
        for part in document {
            call.arg(part);
        }
        call.arg("").arg("default");
        call.arg(1).arg(id);
        call.arg(0).arg(3600);
    }

    /// A document too large for a script is compared piece by piece while its key is watched, and
    /// written under a key of its own.
    fn finish_large(&mut self, id: &str, changed: Option<&String>) {
        let key = format!("vcon:{id}");
        let draft = format!("conserver:draft:floor:1:{}", self.lane);
        if changed.is_some() || self.is_stored {
            self.ask(redis::cmd("WATCH").arg(&key));
            let length = self.ask(redis::cmd("STRLEN").arg(&key));
            let base = std::mem::take(&mut self.base);
            assert_eq!(length, Value::Int(base.len() as i64));
            for (number, piece) in base.chunks(INLINE).enumerate() {
                let first = number * INLINE;
                let mut range = redis::cmd("GETRANGE");
                range.arg(&key).arg(first).arg(first + piece.len() - 1);
                assert!(self.ask(&range) == Value::BulkString(piece.to_vec()));
            }
        }
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.finish);
        self.add_claim(&mut call, &[], &["done"]);
        let done = Value::Array(vec![Value::Int(1)]);
        let Some(text) = changed else {
            if self.is_stored {
                self.ask(&redis::cmd("UNWATCH"));
            }
            self.add_finish(&mut call, id, [&[]; 3]);
            assert_eq!(self.ask(&call), done);
            return;
        };
        self.add_finish(&mut call, id, [b"draft", b"", draft.as_bytes()]);
        let mut steps = redis::pipe();
        steps.cmd("MULTI");
        steps.cmd("SET").arg(&draft).arg(text).arg("EX").arg(60);
        steps.add_command(call).cmd("EXEC");
        let packed = steps.get_packed_pipeline();
        self.connection.send_packed_command(&packed).expect("Redis");
        let mut last = Value::Nil;
        for _ in 0..steps.len() {
            last = self.connection.recv_response().expect("Redis");
        }
        assert_eq!(last, Value::Array(vec![Value::Okay, done]));
    }

    fn ask(&mut self, command: &Cmd) -> Value {
        let packed = command.get_packed_command();
        self.connection.send_packed_command(&packed).expect("Redis");
        self.connection.recv_response().expect("Redis")
    }

    fn claimed(&mut self, answer: Value) -> Option<String> {
        let Value::Array(mut fields) = answer else {
            panic!("{answer:?}")
        };
        let mut text = |at: usize| match std::mem::replace(&mut fields[at], Value::Nil) {
            Value::BulkString(bytes) => bytes,
            other => panic!("{other:?}"),
        };
        self.token = text(0);
        let (id, kind, mut document) = (text(2), text(4), text(5));
        if self.token.is_empty() {
            return None;
        }
        let id = String::from_utf8(id).expect("an id");
        if kind == b"string-large" {
            let mut get = redis::cmd("GET");
            get.arg(format!("vcon:{id}"));
            document = get.query(&mut self.connection).expect("Redis");
        }
        assert!(!document.is_empty());
        self.base = document;
        Some(id)
    }
}
