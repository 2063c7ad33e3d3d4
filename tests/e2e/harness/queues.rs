//! The crate's own access to the work in Redis, without a daemon.

use conserver::config::ListName;
use conserver::queue::{Expiry, Holder, NameLease, Queue, Seat, Server};
use conserver::settings::Settings;

use super::Redis;

/// How long keys live, where a test does not care.
const EXPIRY: Expiry = Expiry {
    document: 3600,
    context: 3600,
    dead_letter: 3600,
};

/// The server as the daemon reaches it, over the Unix socket.
fn server(redis: &Redis) -> Server {
    let url = format!("unix://{}", redis.socket().display());
    Server::new(&url.parse().expect("a URL")).expect("a server")
}

/// The lease of an instance, for the daemon that has drawn this nonce.
pub fn lease(instance: &str, nonce: u64) -> NameLease {
    let lookup = |name: &str| (name == "CONSERVER_INSTANCE").then(|| instance.into());
    let settings = Settings::from_lookup(&lookup).expect("settings");
    NameLease::new(&settings, Holder::this_process(nonce))
}

/// One lane's queue.
pub fn queue(redis: &Redis, instance: &str, worker: u32, lane: u32) -> Queue {
    let seat = Seat {
        instance: instance.to_owned(),
        worker,
        lane,
    };
    Queue::new(server(redis), seat, EXPIRY, lease(instance, 1))
}

/// The name of a list.
pub fn list(name: &str) -> ListName {
    name.parse().expect("the name of a list")
}
