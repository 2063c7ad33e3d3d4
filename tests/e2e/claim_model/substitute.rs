//! Has the crate's own queue call a script that is broken, so that the checker has something to find.
//!
//! ```text
//! queue ──EVALSHA <hash of the script>──► here ──EVALSHA <hash of the broken one>──► Redis
//! ```

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use conserver::queue::Server;

use crate::harness::Redis;

/// A script as the queue puts it together, and what is wrong with it.
#[derive(Debug, Clone, Copy)]
pub struct Broken {
    pub files: &'static [&'static str],
    /// What stands in the script, once.
    pub right: &'static str,
    /// What is to stand there instead.
    pub wrong: &'static str,
}

/// The server as a queue reaches it that is to call broken scripts. Its threads end with the
/// connections of so many queues.
pub fn server_with(redis: &Redis, broken: &[Broken], queues: usize) -> Server {
    let swaps: Vec<(String, String)> = broken
        .iter()
        .map(|broken| {
            let right: String = broken.files.iter().copied().collect();
            let count = right.matches(broken.right).count();
            assert_eq!(count, 1, "{:?} in the script", broken.right);
            let wrong = right.replace(broken.right, broken.wrong);
            let load = |script: &str| redis.ask(&["SCRIPT", "LOAD", script]);
            (load(&right), load(&wrong))
        })
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let port = redis.port();
    thread::spawn(move || {
        for client in listener.incoming().take(queues) {
            let client = client.expect("a client");
            let server = TcpStream::connect(("127.0.0.1", port)).expect("Redis");
            for socket in [&client, &server] {
                socket.set_nodelay(true).expect("a socket");
            }
            let back = (
                server.try_clone().expect("a socket"),
                client.try_clone().expect("a socket"),
            );
            let swaps = swaps.clone();
            thread::spawn(move || carry(client, server, &swaps));
            thread::spawn(move || carry(back.0, back.1, &[]));
        }
    });
    let url = format!("redis://{address}");
    Server::new(&url.parse().expect("a URL")).expect("a server")
}

/// Carries bytes until one side closes. A request is short, and comes in one piece.
fn carry(mut from: TcpStream, mut to: TcpStream, swaps: &[(String, String)]) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..count];
        for (right, wrong) in swaps {
            let (right, wrong) = (right.as_bytes(), wrong.as_bytes());
            let at = bytes.windows(right.len()).position(|part| part == right);
            if let Some(at) = at {
                bytes[at..at + wrong.len()].copy_from_slice(wrong);
            }
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
