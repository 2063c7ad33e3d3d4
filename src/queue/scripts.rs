//! The Lua scripts, each one atomic step on the server.

use redis::Script;

/// A script that keeps documents alive.
macro_rules! with_alive {
    ($file:literal) => {
        Script::new(concat!(
            include_str!("scripts/alive.lua"),
            include_str!($file)
        ))
    };
}

/// One that also reads records.
macro_rules! with_record {
    ($file:literal) => {
        Script::new(concat!(
            include_str!("scripts/alive.lua"),
            include_str!("scripts/record.lua"),
            include_str!($file)
        ))
    };
}

/// The scripts of one lane; each is sent by its hash, and in full where the server has lost it.
pub(super) struct Scripts {
    pub claim: Script,
    pub finish: Script,
    pub bury: Script,
    pub give_back: Script,
    pub postpone: Script,
    pub recover: Script,
    pub lease: Script,
    pub forget: Script,
    pub set_aside: Script,
    pub waiting: Script,
}

impl Scripts {
    pub fn new() -> Self {
        Self {
            claim: with_record!("scripts/claim.lua"),
            finish: Script::new(include_str!("scripts/finish.lua")),
            bury: Script::new(include_str!("scripts/bury.lua")),
            give_back: with_alive!("scripts/give_back.lua"),
            postpone: with_alive!("scripts/postpone.lua"),
            recover: with_record!("scripts/recover.lua"),
            set_aside: Script::new(include_str!("scripts/set_aside.lua")),
            lease: Script::new(include_str!("scripts/lease.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
            waiting: Script::new(include_str!("scripts/waiting.lua")),
        }
    }
}

/// Whether the server does not have the script that was called.
pub(super) fn is_missing(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

/// What keeps the documents of waiting vCons alive.
pub(super) fn keep() -> Script {
    with_alive!("scripts/keep.lua")
}

/// What drops reasons without entries.
pub(super) fn forget_reasons() -> Script {
    Script::new(include_str!("scripts/forget_reasons.lua"))
}

/// What takes, renews and releases the lock of a replay.
pub(super) fn replay_lock() -> Script {
    Script::new(include_str!("scripts/lock.lua"))
}

/// The scripts of those who look after the queues.
pub(super) struct Care {
    pub retry: Script,
    pub drop: Script,
    pub saved: Script,
    pub refused: Script,
    pub locate: Script,
}

impl Care {
    pub fn new() -> Self {
        Self {
            retry: Script::new(include_str!("scripts/retry.lua")),
            drop: Script::new(include_str!("scripts/drop.lua")),
            saved: Script::new(include_str!("scripts/saved.lua")),
            refused: Script::new(include_str!("scripts/refused.lua")),
            locate: Script::new(include_str!("scripts/locate.lua")),
        }
    }
}
