//! The crate's own access to the work in Redis, without a daemon.

use conserver::config::ListName;
use conserver::queue::{Expiry, Holder, LaneId, NameLease, Queue, Server};
use conserver::settings::Settings;

use super::Redis;

/// How long keys live, where a test does not care.
pub const EXPIRY: Expiry = Expiry {
    document: 3600,
    context: 3600,
    dead_letter: 3600,
};

/// The server as the daemon reaches it, over the Unix socket.
pub fn server_of(redis: &Redis) -> Server {
    let url = format!("unix://{}", redis.socket().display());
    Server::new(&url.parse().expect("a URL")).expect("a server")
}

/// A daemon's lease on the name of its instance.
pub fn lease_of(instance: &str, holder: &Holder) -> NameLease {
    let lookup = |name: &str| (name == "CONSERVER_INSTANCE").then(|| instance.into());
    let settings = Settings::from_lookup(&lookup).expect("settings");
    NameLease::new(&settings, holder.clone())
}

/// The queue of a worker's only lane.
pub fn queue_with(redis: &Redis, instance: &str, worker: u32, lease: NameLease) -> Queue {
    let seat = LaneId {
        instance: instance.to_owned(),
        worker,
        lane: 1,
    };
    Queue::new(server_of(redis), seat, EXPIRY, lease)
}

/// The same, of a daemon like any other.
pub fn queue(redis: &Redis, instance: &str, worker: u32) -> Queue {
    let lease = lease_of(instance, &Holder::this_process(1));
    queue_with(redis, instance, worker, lease)
}

/// The name of a list.
pub fn list(name: &str) -> ListName {
    name.parse().expect("the name of a list")
}
