//! The Lua scripts, each one atomic step on the server.

use super::script::Script;

/// A script made of files in `scripts/`, each of which may use those before it.
macro_rules! script {
    ($($file:literal),+) => {
        Script::new(concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+))
    };
}

/// The scripts of one lane; each is sent by its hash, and in full if the server has lost it.
pub(super) struct Scripts {
    pub replace: Script,
    pub replace_large: Script,
    pub foreign_begin: Script,
    pub foreign_end: Script,
    pub foreign_forget: Script,
    pub foreign_left: Script,
    pub foreign_kept: Script,
    pub foreign_laid: Script,
    pub foreign_keep: Script,
    pub dead_letter: Script,
    pub release: Script,
    pub postpone: Script,
    pub recover: Script,
    pub lease: Script,
    pub forget: Script,
    pub retry: Script,
    pub set_aside: Script,
    steps: [Script; 5],
}

/// The steps of a vCon's usual way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Takes the next entry.
    Claim,
    /// Takes the next entry of a storage's queue.
    ClaimBacklog,
    /// Finishes a vCon.
    Finish,
    /// Finishes a vCon, then takes the next entry.
    FinishAndClaim,
    /// The same for several lanes, in the usual way.
    Turn,
}

impl Scripts {
    pub fn new() -> Self {
        Self {
            foreign_begin: script!("foreign", "foreign_begin"),
            foreign_end: script!("foreign", "foreign_end"),
            foreign_forget: script!("foreign", "foreign_forget"),
            foreign_left: script!("foreign", "foreign_left"),
            foreign_kept: script!("foreign", "foreign_kept"),
            foreign_laid: script!("foreign", "foreign_laid"),
            foreign_keep: script!("foreign", "foreign_keep"),
            replace: script!("foreign", "progress", "document", "replace"),
            replace_large: script!("foreign", "progress", "document", "replace_large"),
            dead_letter: script!("token", "reason", "age", "progress", "dead_letter"),
            release: script!("token", "alive", "context", "progress", "release"),
            postpone: script!("token", "alive", "context", "progress", "postpone"),
            recover: script!(
                "alive", "context", "progress", "reason", "token", "record", "recover"
            ),
            set_aside: script!("token", "set_aside"),
            lease: script!("lease"),
            forget: script!("forget"),
            retry: script!("retry"),
            steps: [
                script!(
                    "alive",
                    "token",
                    "record",
                    "progress",
                    "pop",
                    "claim",
                    "claim_next"
                ),
                script!(
                    "alive",
                    "token",
                    "record",
                    "progress",
                    "pop_backlog",
                    "claim",
                    "claim_next"
                ),
                script!(
                    "token",
                    "foreign",
                    "progress",
                    "document",
                    "reason",
                    "finish",
                    "finish_alone"
                ),
                script!(
                    "alive",
                    "token",
                    "record",
                    "progress",
                    "pop",
                    "claim",
                    "foreign",
                    "document",
                    "reason",
                    "finish",
                    "finish_and_claim"
                ),
                script!("token", "turn"),
            ],
        }
    }

    /// The script of a step.
    pub fn step(&self, step: Step) -> &Script {
        &self.steps[step as usize]
    }
}

/// What keeps the documents of waiting vCons alive.
pub(super) fn keep() -> Script {
    script!("alive", "keep")
}

/// The lease of who does so.
pub(super) fn keeper() -> Script {
    script!("keeper")
}

/// What tries all that the work needs.
pub(super) fn preflight() -> Script {
    script!("preflight")
}

/// What drops reasons without entries.
pub(super) fn forget_reasons() -> Script {
    script!("age", "forget_reasons")
}

/// What looks at some keys, and returns those with names up to a length.
pub(super) fn scan() -> Script {
    script!("scan")
}

/// What reads the members of a set up to a length.
pub(super) fn members() -> Script {
    script!("members")
}

/// What reads entries of a list, each up to a length.
pub(super) fn letters() -> Script {
    script!("letters")
}

/// What reads the entries that have a reason, each up to a length.
pub(super) fn reasoned() -> Script {
    script!("reasoned")
}

/// What takes, renews and releases the lock of a replay.
pub(super) fn replay_lock() -> Script {
    script!("locked", "lock")
}

/// The scripts of those who look after the queues.
pub(super) struct Care {
    pub members: Script,
    pub letters: Script,
    pub reasons: Script,
    pub retry: Script,
    pub drop: Script,
    pub saved: Script,
    pub refused: Script,
    pub locate: Script,
}

impl Care {
    pub fn new() -> Self {
        Self {
            members: members(),
            letters: letters(),
            reasons: script!("reasons"),
            retry: script!("retry"),
            drop: script!("drop"),
            saved: script!("locked", "saved"),
            refused: script!("locked", "reason", "refused"),
            locate: script!("locate"),
        }
    }
}
