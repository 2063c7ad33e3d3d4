//! Has the crate's own queue call a script that is broken, so that the checker has something to find.
//!
//! ```text
//! queue ──EVALSHA <hash of the script>──► here ──EVALSHA <hash of the broken one>──► Redis
//! ```

use conserver::queue::Server;

use crate::harness::{Redis, relay};

/// A script as the queue puts it together, and what is wrong with it.
#[derive(Debug, Clone, Copy)]
pub struct Broken {
    pub files: &'static [&'static str],
    /// What stands in the script, once.
    pub right: &'static str,
    /// What is to stand there instead.
    pub wrong: &'static str,
}

/// The server as a queue reaches it that is to call broken scripts; so many queues
/// may.
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
    let url = relay(redis, queues, move |bytes| {
        for (right, wrong) in &swaps {
            let (right, wrong) = (right.as_bytes(), wrong.as_bytes());
            let at = bytes.windows(right.len()).position(|part| part == right);
            if let Some(at) = at {
                bytes[at..at + wrong.len()].copy_from_slice(wrong);
            }
        }
    });
    Server::new(&url.parse().expect("a URL")).expect("a server")
}
