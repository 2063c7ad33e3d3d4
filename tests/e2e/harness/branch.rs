//! Another vCon server, as far as a follower asks it: an egress list whose UUIDs are gone once they
//! were handed out, and documents.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::Sample;

/// What the server does with one request.
#[derive(Clone, Debug, Default)]
pub enum Manner {
    /// Its work.
    #[default]
    Works,
    /// It answers with this status, and does nothing else.
    Status(u16),
    /// It answers with this body instead of its own; a list loses nothing.
    Says(String),
    /// It sends the client to this address.
    Redirects(String),
    /// It announces a long body, and sends one byte of it after the other for as long as somebody reads.
    Drips,
    /// It does its work, and the answer ends after so many bytes of the body.
    Cuts(usize),
    /// It does its work, and answers once it is told to go on.
    Waits,
}

/// The manner by the path of a request.
type Rule = Box<dyn FnMut(&str) -> Manner + Send>;

/// The server; it ends with the test process.
pub struct Branch {
    port: u16,
    state: Arc<State>,
}

struct State {
    book: Mutex<Book>,
    changed: Condvar,
}

struct Book {
    token: String,
    lists: BTreeMap<String, VecDeque<String>>,
    documents: BTreeMap<String, String>,
    rule: Rule,
    heads: Vec<String>,
    goes_on: bool,
    waiting: usize,
}

impl Branch {
    /// A server that asks for this token.
    pub fn new(token: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let book = Mutex::new(Book {
            token: token.to_owned(),
            lists: BTreeMap::new(),
            documents: BTreeMap::new(),
            rule: Box::new(|_| Manner::Works),
            heads: Vec::new(),
            goes_on: false,
            waiting: 0,
        });
        let state = Arc::new(State {
            book,
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&serving);
                thread::spawn(move || state.serve(&stream));
            }
        });
        Self { port, state }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }

    /// A follower of its list `list`, with the token it asks for.
    pub fn follower(&self, list: &str) -> Value {
        json!({
            "url": self.url(), "auth_token": self.state.lock().token, "egress_list": list,
            "follower_ingress_list": "default", "pulling_interval": 1, "fetch_vcon_limit": 7,
        })
    }

    /// Has it announce vCons on its list.
    pub fn announce(&self, list: &str, samples: &[Sample]) {
        let mut book = self.state.lock();
        for sample in samples {
            book.documents.insert(sample.id.clone(), sample.text());
            let list = book.lists.entry(list.to_owned()).or_default();
            list.push_back(sample.id.clone());
        }
    }

    /// Puts anything onto its list.
    pub fn push(&self, list: &str, entry: &str) {
        let mut book = self.state.lock();
        let list = book.lists.entry(list.to_owned()).or_default();
        list.push_back(entry.to_owned());
    }

    /// How many entries its list has.
    pub fn length(&self, list: &str) -> usize {
        self.state.lock().lists.get(list).map_or(0, VecDeque::len)
    }

    /// From now on, this is what it does with each request.
    pub fn behaves(&self, rule: impl FnMut(&str) -> Manner + Send + 'static) {
        self.state.lock().rule = Box::new(rule);
    }

    /// It works again.
    pub fn works(&self) {
        self.behaves(|_| Manner::Works);
    }

    /// How many requests wait for it to go on.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    /// What waits is answered.
    pub fn go_on(&self) {
        self.state.lock().goes_on = true;
        self.state.changed.notify_all();
    }

    /// The heads of all requests so far, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.state.lock().heads.clone()
    }

    /// How many of the requests so far were for a path with this in it.
    pub fn asked(&self, path: &str) -> usize {
        let is_it = |head: &&String| head.lines().next().is_some_and(|line| line.contains(path));
        self.state.lock().heads.iter().filter(is_it).count()
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader) {
            if self.answer(&head, stream).is_none() {
                return;
            }
        }
    }

    /// Nothing if the connection is not to be used again.
    fn answer(&self, head: &str, mut stream: &TcpStream) -> Option<()> {
        let target = head.split(' ').nth(1)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut book = self.lock();
        book.heads.push(head.to_lowercase());
        let manner = (book.rule)(path);
        let token = format!("x-conserver-api-token: {}\r\n", book.token);
        let (status, body) = match &manner {
            _ if !head.contains(&token) => (403, r#"{"detail":"Invalid API Key"}"#.to_owned()),
            Manner::Status(status) => (*status, "{}".to_owned()),
            Manner::Says(body) => (200, body.clone()),
            Manner::Redirects(_) => (307, String::new()),
            Manner::Drips => {
                drop(book);
                return drip(stream);
            }
            _ => book.work(path, query),
        };
        let sent = match &manner {
            Manner::Cuts(length) => &body.as_bytes()[..body.len().min(*length)],
            _ => body.as_bytes(),
        };
        if matches!(manner, Manner::Waits) {
            book.waiting += 1;
            let waits = |book: &mut Book| !book.goes_on;
            book = self.changed.wait_while(book, waits).ok()?;
            book.waiting -= 1;
        }
        drop(book);
        let length = body.len();
        let location = match &manner {
            Manner::Redirects(url) => format!("Location: {url}\r\n"),
            _ => String::new(),
        };
        let head = format!("HTTP/1.1 {status} X\r\n{location}Content-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(sent).ok()?;
        (sent.len() == length).then_some(())
    }
}

impl Book {
    fn work(&mut self, path: &str, query: &str) -> (u16, String) {
        let not_found = || (404, r#"{"detail":"vCon not found"}"#.to_owned());
        match path.strip_prefix("/api/vcon/") {
            Some("egress") => {
                let asked: BTreeMap<&str, &str> = query
                    .split('&')
                    .filter_map(|it| it.split_once('='))
                    .collect();
                let limit: usize = asked["limit"].parse().expect("a number");
                let list = asked["egress_list"].replace("%20", " ").replace("%26", "&");
                let list = self.lists.entry(list).or_default();
                let taken: Vec<String> = list.drain(..limit.min(list.len())).collect();
                (200, json!(taken).to_string())
            }
            Some(id) => match self.documents.get(id) {
                Some(document) => (200, document.clone()),
                None => not_found(),
            },
            None => not_found(),
        }
    }
}

/// Nothing: the client has gone.
fn drip(mut stream: &TcpStream) -> Option<()> {
    let head = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", 1 << 19);
    stream.write_all(head.as_bytes()).ok()?;
    for byte in std::iter::once(b'{').chain(std::iter::repeat(b' ')) {
        stream.write_all(&[byte]).ok()?;
        thread::sleep(Duration::from_millis(50));
    }
    None
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}
