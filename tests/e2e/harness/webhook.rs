//! A tiny HTTP server that records what it is sent and answers as it is told.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// One recorded request.
#[derive(Clone)]
pub struct Request {
    /// The request line and the headers, in lower case.
    pub head: String,
    pub body: String,
}

/// A server that answers the given statuses in turn, and 200 after them; or, by what is in a
/// request, always the same.
pub struct Webhook {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Webhook {
    pub fn answering(statuses: &[u16]) -> Self {
        let mut statuses = statuses.to_vec();
        Self::deciding(move |_| {
            let mut next = statuses.drain(..statuses.len().min(1));
            next.next_back().unwrap_or(200)
        })
    }

    /// A server whose answers depend on the body.
    pub fn deciding(mut status: impl FnMut(&str) -> u16 + Send + 'static) -> Self {
        Self::saying(move |body| (status(body), String::new()))
    }

    /// The same with a body of its own.
    pub fn saying(answer: impl FnMut(&str) -> (u16, String) + Send + 'static) -> Self {
        Self::listening(([127, 0, 0, 1], 0).into(), answer)
    }

    /// A server that keeps no requests, and serves them all at the same time.
    pub fn unrecorded(status: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let status = Arc::new(status);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let status = Arc::clone(&status);
                thread::spawn(move || serve(stream, &mut |it| (status(it), String::new())));
            }
        });
        let requests = Arc::default();
        Self { port, requests }
    }

    /// The same at a certain address.
    pub fn at(address: SocketAddr, mut status: impl FnMut(&str) -> u16 + Send + 'static) -> Self {
        Self::listening(address, move |body| (status(body), String::new()))
    }

    fn listening(
        address: SocketAddr,
        mut answer: impl FnMut(&str) -> (u16, String) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("the address is free");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&requests);
        // Ends with the test process: there is nothing to tidy up.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let request = serve(stream, &mut |request| answer(&request.body));
                if let Some(request) = request {
                    record
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(request);
                }
            }
        });
        Self { port, requests }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/calls", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn serve(stream: TcpStream, answer: &mut impl FnMut(&Request) -> (u16, String)) -> Option<Request> {
    let (request, stream) = Request::receive(stream)?;
    let (status, said) = answer(&request);
    reply(stream, status, &said).ok()?;
    Some(request)
}

impl Request {
    /// Reads one, and gives the connection back for the answer; nothing if that ends too early.
    pub fn receive(stream: TcpStream) -> Option<(Self, TcpStream)> {
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let head = head.to_lowercase();
        let mut lines = head.lines();
        let length = lines.find_map(|line| line.strip_prefix("content-length:"));
        let length = length.unwrap_or("0");
        let mut body = vec![0; length.trim().parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).ok()?;
        Some((Self { head, body }, reader.into_inner()))
    }
}

/// Answers a request.
pub fn reply(mut stream: TcpStream, status: u16, said: &str) -> io::Result<()> {
    let length = said.len();
    let answer = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{said}"
    );
    stream.write_all(answer.as_bytes())
}
