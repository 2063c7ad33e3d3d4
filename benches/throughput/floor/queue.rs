//! The commands that take a vCon from its list and announce it.

use redis::{Connection, Value};

use super::super::servers::Servers;

const CLAIM: &str = concat!(
    include_str!("../../../src/queue/scripts/alive.lua"),
    include_str!("../../../src/queue/scripts/record.lua"),
    include_str!("../../../src/queue/scripts/claim.lua")
);
const FINISH: &str = include_str!("../../../src/queue/scripts/finish.lua");

/// The most bytes of a document that the script hands over.
const INLINE: usize = 1 << 20;

/// One connection.
pub struct Queue {
    connection: Connection,
    lane: usize,
    /// Every claim is the same request.
    claim: Vec<u8>,
    finish: String,
    record: Vec<u8>,
}

impl Queue {
    pub fn connect(servers: &Servers, lane: usize) -> Self {
        let client = redis::Client::open(servers.redis.url()).expect("a URL");
        let mut connection = client.get_connection().expect("a connection");
        let mut load = |script: &str| -> String {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script);
            load.query(&mut connection).expect("a script")
        };
        let (claim, finish) = (load(CLAIM), load(FINISH));
        let mut call = redis::cmd("EVALSHA");
        call.arg(claim).arg(5).arg("conserver:claims:floor:1");
        call.arg("conserver:instance:floor")
            .arg("conserver:instances")
            .arg("conserver:workers:floor")
            .arg("default");
        call.arg(lane).arg(INLINE).arg("{\"floor\":1}").arg(3600);
        call.arg("floor").arg(1).arg(3600);
        Self {
            connection,
            lane,
            claim: call.get_packed_command(),
            finish,
            record: Vec::new(),
        }
    }

    /// The first id, whose document has come with it.
    pub fn claim(&mut self) -> Option<String> {
        let claim = self.claim.clone();
        self.connection.send_packed_command(&claim).expect("Redis");
        self.claimed()
    }

    /// Lets go of it, with its new document if there is one, and asks for the next in the same
    /// round trip.
    pub fn finish_and_claim(&mut self, id: &str, changed: Option<&String>) -> Option<String> {
        let key = format!("vcon:{id}");
        let draft = format!("conserver:draft:floor:1:{}", self.lane);
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.finish)
            .arg(5)
            .arg("conserver:claims:floor:1");
        call.arg("conserver:deaths")
            .arg(&key)
            .arg(&draft)
            .arg("done");
        call.arg(self.lane)
            .arg(&self.record)
            .arg(id)
            .arg("")
            .arg(86400);
        call.arg(u8::from(changed.is_some()))
            .arg("")
            .arg(3600)
            .arg(id);
        let mut steps = redis::pipe();
        if let Some(text) = changed {
            steps.cmd("MULTI");
            steps.cmd("SET").arg(&draft).arg(text).arg("EX").arg(60);
            steps.add_command(call).cmd("EXEC");
        } else {
            steps.add_command(call);
        }
        let mut packed = steps.get_packed_pipeline();
        packed.extend_from_slice(&self.claim);
        self.connection.send_packed_command(&packed).expect("Redis");
        let mut last = Value::Nil;
        for _ in 0..steps.len() {
            last = self.connection.recv_response().expect("Redis");
        }
        if let Value::Array(mut answers) = last {
            last = answers.pop().unwrap_or(Value::Nil);
        }
        assert_eq!(last, Value::Int(1));
        self.claimed()
    }

    fn claimed(&mut self) -> Option<String> {
        let answer = self.connection.recv_response().expect("Redis");
        let Value::Array(mut fields) = answer else {
            panic!("{answer:?}")
        };
        let mut text = |at: usize| match std::mem::replace(&mut fields[at], Value::Nil) {
            Value::BulkString(bytes) => bytes,
            other => panic!("{other:?}"),
        };
        self.record = text(0);
        let (id, kind, mut document) = (text(2), text(4), text(5));
        if self.record.is_empty() {
            return None;
        }
        let id = String::from_utf8(id).expect("an id");
        if kind == b"string-large" {
            let mut get = redis::cmd("GET");
            get.arg(format!("vcon:{id}"));
            document = get.query(&mut self.connection).expect("Redis");
        }
        assert!(!document.is_empty());
        Some(id)
    }
}
