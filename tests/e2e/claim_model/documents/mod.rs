//! The document of one vCon, which more than one writes: two chains, each with the vCon in a list of its
//! own, or two daemons of one chain, and a producer.
//!
//! Each chain adds a letter to the document. The producer stores another document, or deletes it, at any
//! time. A worker finishes with a compare, merges what it finds changed and tries again, writes what it
//! has done so far, lets go of its claim with its progress and claims again; it loses an answer, it dies,
//! its lease runs out while it goes on.
//!
//! In every state the document is what the specification says: the last version that the producer stored,
//! with the letter of every chain that has written since. A claim comes with progress if, and only if, the
//! document is the one that its chain let go of, or what chains have made of that, and nobody has died
//! with it since. And from every state the vCon can be brought to its end.
//!
//! What a chain has done before it was handed a document, in an earlier claim, is not told from the rest
//! of it: a producer who stores another version then takes it out.

mod server;
mod world;

use super::explore::explore;
use super::substitute::Broken;
use server::Server;
use world::Documents;

/// Bounds a run should the protocol grow.
const MOST_STATES: usize = 400_000;

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// Each worker's chain has the vCon in its own list; claims are not let go before their end.
    TwoChains,
    /// The same, with progress; the producer does not delete.
    Progress,
    /// Two daemons serve one list, and their leases run out.
    TwoDaemons,
}

macro_rules! files {
    ($($file:literal),+) => {
        &[$(include_str!(concat!("../../../../src/queue/scripts/", $file, ".lua"))),+]
    };
}

const CLAIM: &[&str] = files!(
    "extend_ttl",
    "claim_limits",
    "claim_token",
    "claim_record",
    "progress",
    "pop_ingress",
    "claim",
    "run_claim"
);
const FINISH: &[&str] = files!(
    "claim_token",
    "direct_writes",
    "progress",
    "compare_and_write",
    "reason_time",
    "finish",
    "run_finish"
);
const RECOVER: &[&str] = files!(
    "extend_ttl",
    "put_back_context",
    "progress",
    "reason_time",
    "claim_limits",
    "claim_token",
    "claim_record",
    "recover"
);

const RELEASE: &[&str] = files!(
    "claim_token",
    "extend_ttl",
    "put_back_context",
    "progress",
    "release"
);

const FINISH_WITHOUT_COMPARE: Broken = Broken {
    files: FINISH,
    right: "if now ~= ARGV[at + 9] then return {'changed'} end",
    wrong: "",
};

const FINISH_WITHOUT_REBASE: Broken = Broken {
    files: FINISH,
    right: "\n  rebase()\n",
    wrong: "\n",
};

const RELEASE_WITHOUT_COMPARE: Broken = Broken {
    files: RELEASE,
    right: "if is_outdated(ARGV[8], ARGV[9], ARGV[10]) then return 'changed' end",
    wrong: "",
};

const CLAIM_WITHOUT_DIGEST: Broken = Broken {
    files: CLAIM,
    right: "return was and digest(key) == was and progress or ''",
    wrong: "return progress or ''",
};

const RECOVERY_THAT_KEEPS_PROGRESS: Broken = Broken {
    files: RECOVER,
    right: "  redis.pcall('HDEL', 'conserver:progress', field)\n  if claim.uuid:find(UUID)",
    wrong: "  if false",
};

fn check(scene: Scene, broken: &[Broken]) -> Result<usize, String> {
    let mut documents = Documents::new(scene, Server::start(scene, broken));
    let explored = explore(&mut documents, MOST_STATES)?;
    explored.comes_to_an_end(&documents, "mishaps", |_, _| true)?;
    eprintln!(
        "{scene:?}: {} states, {} transitions, {} of them different steps in Redis",
        explored.states(),
        explored.transitions(),
        documents.server.steps()
    );
    Ok(explored.states())
}

fn found(scene: Scene, broken: Broken) -> String {
    match check(scene, &[broken]) {
        Ok(_) => panic!("the checker found nothing"),
        Err(found) => found,
    }
}

#[test]
fn no_change_is_lost_when_two_chains_and_a_producer_write_one_document() {
    let states = check(Scene::TwoChains, &[]).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 500, "{states}");
}

#[test]
fn no_link_runs_twice_while_nobody_dies_and_every_new_version_goes_through_all_links() {
    let states = check(Scene::Progress, &[]).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 500, "{states}");
}

#[test]
fn no_change_is_lost_when_two_daemons_work_on_one_vcon() {
    let states = check(Scene::TwoDaemons, &[]).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 500, "{states}");
}

#[test]
fn the_checker_finds_a_finish_that_writes_without_looking() {
    let found = found(Scene::TwoChains, FINISH_WITHOUT_COMPARE);
    assert!(found.contains("a change is missing"), "{found}");
}

#[test]
fn the_checker_finds_a_writer_that_voids_the_progress_of_another_chain() {
    let found = found(Scene::Progress, FINISH_WITHOUT_REBASE);
    assert!(found.contains("its links run again"), "{found}");
}

#[test]
fn the_checker_finds_a_claim_that_takes_progress_for_good_whatever_the_document_is() {
    let found = found(Scene::Progress, CLAIM_WITHOUT_DIGEST);
    assert!(found.contains("its links are left out"), "{found}");
}

#[test]
fn the_checker_finds_a_recovery_that_keeps_progress() {
    let found = found(Scene::Progress, RECOVERY_THAT_KEEPS_PROGRESS);
    assert!(found.contains("its links are left out"), "{found}");
}

#[test]
fn the_checker_finds_progress_that_is_kept_with_whatever_document_stands_there() {
    let found = found(Scene::Progress, RELEASE_WITHOUT_COMPARE);
    assert!(found.contains("its links are left out"), "{found}");
}
