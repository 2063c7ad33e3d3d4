//! The lock under which the dead letters of a storage are saved.
//!
//! The API server of the deployment holds the same key while it replays, without a time to live and
//! looking only at whether the key exists. Ours has a time to live, which a thread renews: whatever
//! ends this process, the key is gone soon after.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::scripts::replay_lock;
use super::{Lease, QueueError, Raw, Server, keys};
use crate::vcon::VconId;

/// How long the lock outlives a process that does not renew it, in milliseconds.
const TTL_MS: u64 = 60_000;

/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(15);

/// The most bytes of another's lock that are shown. Ours has some hundred.
const MOST_SHOWN: usize = 1000;

/// A command on the lock's own connection may take this long.
const LIMIT: Duration = Duration::from_secs(5);

/// The result of asking for the lock.
pub enum ReplayStart {
    /// We hold it.
    Ours(ReplayLock),
    /// Somebody else holds it.
    Held(HeldLock),
}

/// A replay lock that somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Its key.
    pub key: String,
    /// Its value, where it has one.
    pub by: Option<Raw>,
    /// Whether it expires by itself.
    pub expires: bool,
}

/// A replay lock of ours. It is released when this is dropped.
pub struct ReplayLock {
    key: String,
    value: String,
    /// Ends the thread that renews the lock when it is dropped.
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

impl ReplayLock {
    /// Takes the lock of this storage, if nobody has it.
    ///
    /// # Errors
    /// Redis failed, or the system has no thread to give.
    pub fn take(server: &Server, storage: &str) -> Result<ReplayStart, QueueError> {
        let mut lease = server.connect_for("conserver:replay", LIMIT)?;
        let key = keys::storage_replay_lock(storage);
        let value = value();
        if !run(&mut lease, "take", &key, &value)? {
            return Ok(ReplayStart::Held(holder(&mut lease, key)?));
        }
        let (stop, stopped) = bounded(0);
        let mut renewal = Renewal {
            server: server.clone(),
            connected: Some(lease),
            key: key.clone(),
            value: value.clone(),
        };
        let thread = thread::Builder::new().name("replay-lock".to_owned());
        let thread = thread.spawn(move || renewal.keep(&stopped));
        Ok(ReplayStart::Ours(Self {
            key,
            value,
            stop: Some(stop),
            renewal: Some(thread.map_err(QueueError::Thread)?),
        }))
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn value(&self) -> &str {
        &self.value
    }
}

impl Drop for ReplayLock {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.renewal.take() {
            // It does not panic, and the lock expires in any case.
            let _ = thread.join();
        }
    }
}

/// The thread that keeps a lock, and releases it at the end.
struct Renewal {
    server: Server,
    connected: Option<Lease>,
    key: String,
    value: String,
}

impl Renewal {
    fn keep(&mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
            // Each step on the queue checks the lock: one that is lost ends the replay there.
            let _ = self.run("renew");
        }
        // If Redis is away, the lock expires.
        let _ = self.run("release");
    }

    fn run(&mut self, step: &str) -> Result<(), QueueError> {
        let mut lease = match self.connected.take() {
            Some(lease) => lease,
            None => self.server.connect_for("conserver:replay", LIMIT)?,
        };
        run(&mut lease, step, &self.key, &self.value)?;
        self.connected = Some(lease);
        Ok(())
    }
}

/// Takes, renews or releases the lock; whether it is, or was, ours.
fn run(lease: &mut Lease, step: &str, key: &str, value: &str) -> Result<bool, QueueError> {
    let script = replay_lock();
    let mut call = script.key(key);
    call.arg(step).arg(value).arg(TTL_MS);
    Ok(call.invoke::<i64>(&mut **lease)? == 1)
}

/// Who holds the lock of this storage, if anybody does.
pub(super) fn look(lease: &mut Lease, storage: &str) -> Result<Option<HeldLock>, QueueError> {
    let key = keys::storage_replay_lock(storage);
    let exists: bool = redis::cmd("EXISTS").arg(&key).query(&mut **lease)?;
    exists.then(|| holder(lease, key)).transpose()
}

fn holder(lease: &mut Lease, key: String) -> Result<HeldLock, QueueError> {
    let by = redis::cmd("GETRANGE")
        .arg(&key)
        .arg(0)
        .arg(MOST_SHOWN - 1)
        .query::<Option<Vec<u8>>>(&mut **lease);
    let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut **lease)?;
    Ok(HeldLock {
        key,
        // What is no string has no value to show.
        by: by.ok().flatten().map(Raw::new),
        expires: ttl >= 0,
    })
}

/// Names this process, and is the value of no other lock.
fn value() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    let (pid, nonce) = (std::process::id(), VconId::random());
    format!("conserver dlq retry, PID {pid} on {host}, {nonce}")
}
