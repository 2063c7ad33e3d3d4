//! The lease of a daemon on its instance name.
//!
//! Claims stand under the name of an instance, so only one daemon may use a name. A daemon holds its name
//! by a key that expires unless somebody renews it. Every script that claims an entry, or returns the claims
//! of a worker, checks in the same step that the daemon still holds the name.
//!
//! ```text
//!        take: absent, or its process is gone
//! free ──────────────────────────────────────► held ──renew──► held
//!   ▲ ▲                                          │ │
//!   │ └── release, at a clean end ───────────────┘ │
//!   └──── the time to live runs out ───────────────┘ others return its claims
//! ```
//!
//! Only the server's clock counts. Who renews the lease, and when, is up to the callers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Queue, QueueError, keys};
use crate::procfs::{self, Presence};
use crate::settings::Settings;

/// Each try fails only if somebody else has taken the lease since the one before.
const TRIES: u32 = 5;

/// The longest name of a host (RFC 1035). Anybody may have written the record.
const LONGEST_HOST: usize = 253;

/// Identifies a daemon among all others on any host, by its supervisor. All processes of a daemon have the
/// same holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The name of its host.
    pub host: String,
    /// Its PID.
    pub pid: i32,
    /// When it was started, in clock ticks since its host booted.
    #[serde(default)]
    start: Option<u64>,
    /// The boot id of its host.
    #[serde(default)]
    boot: Option<String>,
    /// Its PID namespace.
    #[serde(default)]
    namespace: Option<String>,
    /// Its machine, the same after a reboot.
    #[serde(default)]
    machine: Option<u64>,
    /// A random number, drawn at its start.
    #[serde(default)]
    nonce: u64,
}

impl Holder {
    /// This process, a supervisor that has drawn this nonce.
    pub fn this_process(nonce: u64) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let pid = std::process::id().cast_signed();
        Self {
            host: host.to_string_lossy().into_owned(),
            pid,
            start: procfs::start_of(pid),
            boot: procfs::boot_id(),
            namespace: procfs::pid_namespace(),
            machine: procfs::machine(),
            nonce,
        }
    }

    /// Whether `other` has certainly ended. Only a process on the same host can know.
    fn knows_the_end_of(&self, other: &Self, presence: impl FnOnce(i32) -> Presence) -> bool {
        if self.host != other.host {
            return false;
        }
        if self.boot == other.boot {
            let comparable = self.boot.is_some() || cfg!(not(target_os = "linux"));
            return comparable
                && self.namespace == other.namespace
                && (self.pid == other.pid || self.has_ended(other, presence(other.pid)));
        }
        // No process outlives a reboot. A machine id tells another machine of the same name apart, but not
        // another container: images may share an id.
        let outside = |holder: &Self| {
            holder.boot.is_some() && holder.namespace.as_deref() == Some(procfs::SYSTEM_NAMESPACE)
        };
        self.machine.is_some() && self.machine == other.machine && outside(self) && outside(other)
    }

    fn has_ended(&self, other: &Self, presence: Presence) -> bool {
        match (presence, other.start) {
            (Presence::Gone, _) => true,
            (Presence::Alive { start: Some(now) }, Some(then)) => now != then,
            (Presence::Alive { .. }, _) => false,
        }
    }
}

/// What to do about a lease that somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// Its holder has ended: take it over.
    TakeOver,
    /// Its holder lives, or may live.
    Leave,
}

/// Decides what to do about the lease with the record `held`.
fn decide(held: &str, ours: &Holder, presence: impl FnOnce(i32) -> Presence) -> Decision {
    let theirs: Option<Holder> = serde_json::from_str(held).ok();
    if theirs.is_some_and(|theirs| ours.knows_the_end_of(&theirs, presence)) {
        Decision::TakeOver
    } else {
        Decision::Leave
    }
}

/// What a process needs to take the lease on its instance name, and to prove that it holds it.
#[derive(Debug, Clone)]
pub struct NameLease {
    holder: Holder,
    pub(super) instance: String,
    /// The value of the key in Redis while this daemon holds the lease.
    pub(super) record: String,
    /// Marks the claims of this daemon: an earlier holder of the name has another mark.
    pub(super) mark: String,
    /// The lease's time to live, in seconds.
    pub(super) ttl: u64,
}

/// The beginning of the record's digest, in hexadecimal.
fn mark(record: &str) -> String {
    let digest = Sha256::digest(record.as_bytes());
    digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl NameLease {
    /// The lease on the name in the settings, for the daemon of this holder.
    pub fn new(settings: &Settings, holder: Holder) -> Self {
        // Text and numbers are always JSON.
        let record = serde_json::to_string(&holder).unwrap_or_default();
        Self {
            instance: settings.instance.clone(),
            mark: mark(&record),
            record,
            holder,
            ttl: settings.heartbeat_ttl.as_secs(),
        }
    }

    /// The error if this daemon does not hold the lease, by the record that was found in its place.
    pub(super) fn lost_to(&self, found: &[u8]) -> QueueError {
        let instance = self.instance.clone();
        if found.is_empty() {
            return QueueError::Lapsed(instance);
        }
        let by = match serde_json::from_slice::<Holder>(found) {
            Ok(holder) => {
                let host: String = holder.host.chars().take(LONGEST_HOST).collect();
                format!("the conserver on host {host} with PID {}", holder.pid)
            }
            Err(_) => format!(
                "something else that has written {}",
                keys::instance_key(&instance)
            ),
        };
        QueueError::InUse { instance, by }
    }
}

impl Queue {
    /// Takes the lease on the instance name, or renews it.
    ///
    /// # Errors
    /// [`QueueError::InUse`] if another daemon holds it that has not certainly ended.
    pub fn take_lease(&mut self) -> Result<(), QueueError> {
        let mut stale = String::new();
        for _ in 0..TRIES {
            let (outcome, held) = self.try_lease(&stale)?;
            match outcome.as_str() {
                "ours" => return Ok(()),
                "taken" => {
                    let instance = &self.lease.instance;
                    log::info!("took the name {instance:?} over from a daemon that has ended");
                    return Ok(());
                }
                _ => {}
            }
            let text = String::from_utf8_lossy(&held).into_owned();
            match decide(&text, &self.lease.holder, procfs::presence) {
                Decision::TakeOver => stale = text,
                Decision::Leave => return Err(self.lease.lost_to(&held)),
            }
        }
        Err(QueueError::Lapsed(self.lease.instance.clone()))
    }

    /// Closes the connection; the next request opens another.
    pub fn disconnect(&mut self) {
        self.connected = None;
    }

    fn try_lease(&mut self, stale: &str) -> Result<(String, Vec<u8>), QueueError> {
        let lease = Arc::clone(&self.lease);
        self.with(|connection, scripts, _, _| {
            let mut call = scripts
                .instance_lease
                .key(keys::instance_key(&lease.instance));
            call.key(keys::INSTANCES);
            call.arg(&lease.record).arg(stale);
            call.arg(lease.ttl).arg(&lease.instance);
            Ok(call.invoke::<(String, Vec<u8>)>(connection)?)
        })
    }

    /// Releases the lease, if this daemon holds it, and removes the records of its workers that hold no
    /// claims.
    pub fn release_lease(&mut self) -> Result<(), QueueError> {
        let lease = Arc::clone(&self.lease);
        self.forget(&lease.instance, &lease.record)?;
        Ok(())
    }

    /// Removes the records of an instance whose lease is `record` (empty: it has run out), but for those of
    /// workers with claims. Returns whether nothing is left of it.
    pub(super) fn forget(&mut self, instance: &str, record: &str) -> Result<bool, QueueError> {
        self.with(|connection, scripts, _, _| {
            let mut call = scripts.forget_instance.key(keys::instance_key(instance));
            call.key(keys::INSTANCES).key(keys::workers_key(instance));
            call.key(keys::wake_key(instance));
            call.arg(record).arg(instance);
            Ok(call.invoke::<bool>(connection)?)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        Holder {
            host: "db3".to_owned(),
            pid: 4711,
            start: Some(100),
            boot: Some("boot-1".to_owned()),
            namespace: Some(procfs::SYSTEM_NAMESPACE.to_owned()),
            machine: Some(7),
            nonce: 1,
        }
    }

    fn with(change: impl FnOnce(&mut Holder)) -> Holder {
        let mut holder = holder();
        holder.nonce = 2;
        change(&mut holder);
        holder
    }

    #[test]
    fn only_a_holder_that_certainly_ended_is_taken_over_from() {
        use Decision::{Leave, TakeOver};
        let ours = with(|ours| (ours.pid, ours.start) = (5000, Some(900)));
        let gone = Presence::Gone;
        let alive = |start| Presence::Alive { start };
        let same = alive(Some(100));
        let other_host = with(|it| it.host = "db4".to_owned());
        let elsewhere = with(|it| it.namespace = Some("pid:[4026532000]".to_owned()));
        let rebooted = with(|it| it.boot = Some("boot-0".to_owned()));
        let namesake = with(|it| {
            it.boot = Some("boot-0".to_owned());
            it.machine = Some(8);
        });
        let nameless = with(|it| {
            it.boot = Some("boot-0".to_owned());
            it.machine = None;
        });
        let container = with(|it| {
            it.boot = Some("boot-0".to_owned());
            it.namespace = Some("pid:[4026532000]".to_owned());
        });
        let our_pid = with(|it| it.pid = 5000);
        for (what, theirs, presence, expected) in [
            ("it runs", holder(), same, Leave),
            ("it is gone", holder(), gone, TakeOver),
            ("its PID is another's", holder(), alive(Some(101)), TakeOver),
            ("its PID's start is not told", holder(), alive(None), Leave),
            ("another host", other_host, gone, Leave),
            ("a namespace we do not see", elsewhere, gone, Leave),
            ("before the reboot", rebooted, same, TakeOver),
            ("another machine of our name", namesake, gone, Leave),
            ("a machine without an id", nameless, gone, Leave),
            ("a container, another boot", container, gone, Leave),
            ("we have its PID now", our_pid, alive(Some(900)), TakeOver),
        ] {
            let held = serde_json::to_string(&theirs).unwrap();
            assert_eq!(decide(&held, &ours, |_| presence), expected, "{what}");
        }
    }

    #[test]
    fn a_restart_in_a_container_has_the_pid_of_the_one_before() {
        let container = |it: &mut Holder| {
            it.pid = 1;
            it.namespace = Some("pid:[4026532000]".to_owned());
        };
        let held = serde_json::to_string(&with(container)).unwrap();
        let ours = with(|it| {
            container(it);
            it.start = Some(200);
        });
        let unseen = |_| unreachable!("our own PID needs no look");
        assert_eq!(decide(&held, &ours, unseen), Decision::TakeOver);
    }

    #[test]
    fn what_cannot_be_told_is_left_alone() {
        let blind = with(|it| (it.boot, it.namespace) = (None, None));
        let same = serde_json::to_string(&with(|it| {
            (it.pid, it.boot, it.namespace) = (1, None, None);
        }));
        for held in [
            "",
            "rubbish",
            "[1]",
            r#"{"host":"db3"}"#,
            r#"{"host":"db3","pid":4711}"#,
            r#"{"host":"db3","pid":99999999999}"#,
        ] {
            let decision = decide(held, &holder(), |_| Presence::Gone);
            assert_eq!(decision, Decision::Leave, "{held}");
        }
        let decision = decide(&same.unwrap(), &blind, |_| Presence::Gone);
        let expected = if cfg!(target_os = "linux") {
            Decision::Leave
        } else {
            Decision::TakeOver
        };
        assert_eq!(decision, expected);
    }

    #[test]
    fn every_process_of_a_daemon_writes_the_same_record() {
        let holder = Holder::this_process(5);
        let text = serde_json::to_string(&holder).unwrap();
        let told: Holder = serde_json::from_str(&text).unwrap();
        assert_eq!(told, holder);
        assert_eq!(serde_json::to_string(&told).unwrap(), text);
    }
}
