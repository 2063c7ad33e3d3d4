//! The simplest reliable queue: a list from which each connection moves vCons to a list of its own. It speaks to Redis
//! without a library, so that no cost of one is in the floor.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

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
    connection: BufReader<TcpStream>,
    /// The hash of the script.
    script: String,
    processing: String,
    is_large: bool,
}

/// What Redis answers.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    Text(String),
    Several(Vec<Answer>),
    Nothing,
}

impl Queue {
    /// For documents like this one, one or eight at a time.
    pub fn connect(servers: &Servers, number: usize, together: usize, document: &Document) -> Self {
        assert!([1, BATCH].contains(&together));
        let is_large = document.size() > LARGE;
        let mut script = if together == 1 { ONE } else { MANY }.to_owned();
        if is_large {
            script = script
                .replace("redis.call('GET', 'vcon:' .. id)", "false")
                .replace("redis.call('MGET', unpack(keys))", "false");
        }
        let port = servers.redis.port();
        let connection = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        connection.set_nodelay(true).expect("a connection");
        let mut queue = Self {
            connection: BufReader::with_capacity(1 << 16, connection),
            script: String::new(),
            processing: processing(number),
            is_large,
        };
        queue.send(&command(&["SCRIPT", "LOAD", &script]));
        let Answer::Text(hash) = queue.receive() else {
            panic!("no script")
        };
        queue.script = hash;
        queue
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
        let keys: Vec<String> = vcons.iter().map(|vcon| key(&vcon.id)).collect();
        let (mut request, mut writes) = (Vec::new(), 0);
        if changed && self.is_large {
            for (key, vcon) in keys.iter().zip(vcons) {
                self.send_large(key, &vcon.text);
                writes += 1;
            }
        } else if changed && !vcons.is_empty() {
            let mut write = vec!["MSET"];
            for (key, vcon) in keys.iter().zip(vcons) {
                write.extend([key, vcon.text.as_str()]);
            }
            request = command(&write);
            writes = 1;
        }
        let mut call = vec!["EVALSHA", &self.script, "3", from, &self.processing, "done"];
        call.extend(vcons.iter().map(|vcon| vcon.id.as_str()));
        request.extend(command(&call));
        self.send(&request);
        for _ in 0..writes {
            assert_eq!(self.receive(), Answer::Done);
        }
        let Answer::Several(mut parts) = self.receive() else {
            panic!("no answer to a script")
        };
        let (Some(texts), Some(ids)) = (parts.pop(), parts.pop()) else {
            return Vec::new();
        };
        let ids = strings(ids);
        let texts = if self.is_large {
            self.get(&ids)
        } else {
            strings(texts)
        };
        assert_eq!(ids.len(), texts.len());
        let pairs = ids.into_iter().zip(texts);
        pairs.map(|(id, text)| Taken { id, text }).collect()
    }

    fn get(&mut self, ids: &[String]) -> Vec<String> {
        let keys: Vec<String> = ids.iter().map(|id| key(id)).collect();
        let mut get = vec!["MGET"];
        get.extend(keys.iter().map(String::as_str));
        self.send(&command(&get));
        strings(self.receive())
    }

    /// Sends a document without a copy of it.
    fn send_large(&mut self, key: &str, text: &str) {
        let (name, length) = (key.len(), text.len());
        self.send(format!("*3\r\n$3\r\nSET\r\n${name}\r\n{key}\r\n${length}\r\n").as_bytes());
        self.send(text.as_bytes());
        self.send(b"\r\n");
    }

    fn send(&mut self, bytes: &[u8]) {
        self.connection.get_mut().write_all(bytes).expect("Redis");
    }

    fn receive(&mut self) -> Answer {
        let mut line = String::new();
        self.connection.read_line(&mut line).expect("Redis");
        let number = line.get(1..).and_then(|rest| rest.trim_end().parse().ok());
        match (line.as_bytes().first(), number) {
            (Some(b'+'), _) => Answer::Done,
            (Some(b'$' | b'*'), Some(-1i64)) => Answer::Nothing,
            (Some(b'$'), Some(length)) => {
                let length = usize::try_from(length).expect("a length");
                let mut text = vec![0; length + 2];
                self.connection.read_exact(&mut text).expect("Redis");
                text.truncate(length);
                Answer::Text(String::from_utf8(text).expect("UTF-8"))
            }
            (Some(b'*'), Some(length)) => {
                Answer::Several((0..length).map(|_| self.receive()).collect())
            }
            _ => panic!("Redis: {line}"),
        }
    }
}

/// A command as Redis reads it.
fn command(arguments: &[&str]) -> Vec<u8> {
    let length: usize = arguments.iter().map(|it| it.len() + 16).sum();
    let mut request = Vec::with_capacity(length + 16);
    write!(request, "*{}\r\n", arguments.len()).expect("memory");
    for argument in arguments {
        write!(request, "${}\r\n{argument}\r\n", argument.len()).expect("memory");
    }
    request
}

fn key(id: &str) -> String {
    format!("vcon:{id}")
}

/// One string, or several.
fn strings(answer: Answer) -> Vec<String> {
    match answer {
        Answer::Text(text) => vec![text],
        Answer::Several(answers) => answers.into_iter().flat_map(strings).collect(),
        other => panic!("{other:?}"),
    }
}
