//! A relay before Redis that sees, and may change, what is asked before the server does.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::Redis;

/// What may be done to the bytes of a request. A short one comes in one piece.
pub type Change = dyn Fn(&mut [u8]) + Send + Sync;

/// The URL of a relay, which lasts for so many connections.
pub fn relay(
    redis: &Redis,
    connections: usize,
    change: impl Fn(&mut [u8]) + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    let port = redis.port();
    let change: Arc<Change> = Arc::new(change);
    thread::spawn(move || {
        for client in listener.incoming().take(connections) {
            let Ok(client) = client else {
                continue;
            };
            // Where the server is away, the client is told so by the end of its connection.
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            let change = Arc::clone(&change);
            start(&client, &server, move |bytes| change(bytes));
            start(&server, &client, |_| ());
        }
    });
    url
}

/// Carries bytes one way until one side closes.
fn start(from: &TcpStream, to: &TcpStream, change: impl Fn(&mut [u8]) + Send + 'static) {
    let [mut from, mut to] = [from, to].map(|it| it.try_clone().expect("a socket"));
    to.set_nodelay(true).expect("a socket");
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            change(&mut buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}
