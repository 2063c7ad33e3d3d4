//! The simplest reliable queue: a list from which each connection moves vCons to a list of its own.

use redis::{Cmd, Connection, Value};

use super::super::document::Document;
use super::super::servers::Servers;
use super::{BATCH, Taken};

/// Announces the vCon in hand and takes it off the connection's own list; moves the next one there and gets its document.
const ONE: &str = "\
    if ARGV[1] then redis.call('RPUSH', KEYS[3], ARGV[1]) redis.call('LREM', KEYS[2], 1, ARGV[1]) end \
    local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') \
    if not id then return {} end \
    return {id, redis.call('GET', 'vcon:' .. id)}";

/// The same with all vCons in hand and the next eight.
const MANY: &str = "\
    if ARGV[1] then \
        redis.call('RPUSH', KEYS[3], unpack(ARGV)) \
        for _, id in ipairs(ARGV) do redis.call('LREM', KEYS[2], 1, id) end \
    end \
    local ids = redis.call('LPOP', KEYS[1], 8) \
    if not ids then return {} end \
    redis.call('RPUSH', KEYS[2], unpack(ids)) \
    local keys = {} \
    for at, id in ipairs(ids) do keys[at] = 'vcon:' .. id end \
    return {ids, redis.call('MGET', unpack(keys))}";

/// Documents beyond this size are cheaper outside of scripts, in a round trip of their own.
const LARGE: usize = 1 << 20;

/// Where nothing ever waits.
const NOWHERE: &str = "nowhere";

/// The list of what a connection has in hand.
pub fn processing(number: usize) -> String {
    format!("processing:{number}")
}

/// One connection.
pub struct Queue {
    connection: Connection,
    /// The hash of the script.
    script: String,
    processing: String,
    is_large: bool,
}

impl Queue {
    /// For documents like this one, one or eight at a time.
    pub fn connect(servers: &Servers, number: usize, together: usize, document: &Document) -> Self {
        assert!([1, BATCH].contains(&together));
        let client = redis::Client::open(servers.redis.url()).expect("a URL");
        let mut connection = client.get_connection().expect("a connection");
        let is_large = document.size() > LARGE;
        let mut script = if together == 1 { ONE } else { MANY }.to_owned();
        if is_large {
            script = script
                .replace("redis.call('GET', 'vcon:' .. id)", "false")
                .replace("redis.call('MGET', unpack(keys))", "false");
        }
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script);
        let script = load.query(&mut connection).expect("a script");
        Self {
            connection,
            script,
            processing: processing(number),
            is_large,
        }
    }

    /// The first vCons, with their documents.
    pub fn claim(&mut self) -> Vec<Taken> {
        self.turn("default", &[], false)
    }

    /// Announces the vCons in hand, writes their documents if they were changed, and takes the next ones in the same
    /// round trip.
    pub fn finish_and_claim(&mut self, vcons: &[Taken], changed: bool) -> Vec<Taken> {
        self.turn("default", vcons, changed)
    }

    /// Takes no other ones.
    pub fn finish(&mut self, vcons: &[Taken], changed: bool) {
        assert!(self.turn(NOWHERE, vcons, changed).is_empty());
    }

    fn turn(&mut self, from: &str, vcons: &[Taken], changed: bool) -> Vec<Taken> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.script).arg(3);
        call.arg(from).arg(&self.processing).arg("done");
        for vcon in vcons {
            call.arg(&vcon.id);
        }
        let mut packed = Vec::new();
        let mut writes = 0;
        if changed && self.is_large {
            for vcon in vcons {
                self.send_large(vcon);
                writes += 1;
            }
        } else if changed && !vcons.is_empty() {
            let mut write = redis::cmd("MSET");
            for vcon in vcons {
                write.arg(key(&vcon.id)).arg(&vcon.text);
            }
            write.write_packed_command(&mut packed);
            writes = 1;
        }
        call.write_packed_command(&mut packed);
        self.send(&packed);
        for _ in 0..writes {
            assert_eq!(self.receive(), Value::Okay);
        }
        let answer = self.receive();
        self.taken(answer)
    }

    /// Sends a document without a copy of it.
    fn send_large(&mut self, vcon: &Taken) {
        let (key, text) = (key(&vcon.id), &vcon.text);
        let (name, length) = (key.len(), text.len());
        self.send(format!("*3\r\n$3\r\nSET\r\n${name}\r\n{key}\r\n${length}\r\n").as_bytes());
        self.send(text.as_bytes());
        self.send(b"\r\n");
    }

    fn send(&mut self, bytes: &[u8]) {
        self.connection.send_packed_command(bytes).expect("Redis");
    }

    fn receive(&mut self) -> Value {
        self.connection.recv_response().expect("Redis")
    }

    fn taken(&mut self, answer: Value) -> Vec<Taken> {
        let Value::Array(mut parts) = answer else {
            panic!("{answer:?}")
        };
        let (Some(texts), Some(ids)) = (parts.pop(), parts.pop()) else {
            return Vec::new();
        };
        let ids = strings(ids);
        let texts = if self.is_large {
            let mut get: Cmd = redis::cmd("MGET");
            for id in &ids {
                get.arg(key(id));
            }
            self.send(&get.get_packed_command());
            self.receive()
        } else {
            texts
        };
        let texts = strings(texts);
        assert_eq!(ids.len(), texts.len());
        let pairs = ids.into_iter().zip(texts);
        pairs.map(|(id, text)| Taken { id, text }).collect()
    }
}

fn key(id: &str) -> String {
    format!("vcon:{id}")
}

/// One string, or several.
fn strings(value: Value) -> Vec<String> {
    match value {
        Value::BulkString(bytes) => vec![String::from_utf8(bytes).expect("UTF-8")],
        Value::Array(values) => values.into_iter().flat_map(strings).collect(),
        other => panic!("{other:?}"),
    }
}
