//! A tiny HTTP server that records what it is sent and answers as it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
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

/// A server that answers the given statuses in turn, and 200 after them.
pub struct Webhook {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Webhook {
    pub fn answering(statuses: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (record, mut statuses) = (Arc::clone(&requests), statuses.to_vec());
        // Ends with the test process: there is nothing to tidy up.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let status = statuses.first().copied().unwrap_or(200);
                if let Some(request) = serve(stream, status) {
                    let _ = statuses.drain(..statuses.len().min(1));
                    record
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(request);
                }
            }
        });
        Self { port, requests }
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

fn serve(stream: TcpStream, status: u16) -> Option<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    let mut body = vec![0; length.trim().parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    reader.get_mut().write_all(answer.as_bytes()).ok()?;
    Some(Request {
        head,
        body: String::from_utf8(body).ok()?,
    })
}
