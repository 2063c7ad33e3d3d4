//! The claim protocol, explored exhaustively: two daemons of two workers each, and two vCons.
//!
//! A state is what is in Redis together with what each process believes. From every state that
//! can be reached, every action that is possible is taken: hand in, claim, finish, give back,
//! postpone, bury, each also with its answer lost; a worker dies, and is replaced; a daemon dies, is
//! started again, and is still followed by the last request of the run before; it freezes or is cut
//! off, its lease runs out, the other one finds it dead and returns its claims, and it goes on.
//!
//! What happens in Redis is not modelled: [`server`] has the crate's own queue take each step, on
//! a real server. What the processes know is modelled in [`world`]. A step depends on nothing but
//! what is in Redis and on the request, so the same step is taken once. States that differ only in
//! the names of workers or vCons are one. A call of the queue that sends several scripts is one
//! action: what others do between its scripts is not explored.
//!
//! In every state each vCon is in exactly one place, so none is announced twice. Nothing is taken
//! from a worker at work whose daemon holds its name. Whoever asks on behalf of a claim that is
//! gone changes nothing. And from every state the work can be brought to its end without another
//! mishap, also when one of the daemons never comes back: in a finite graph that means that every
//! fair run without mishaps ends there.
//!
//! Smaller models beside it: [`documents`] is about what is written to a vCon's document, and about
//! progress; [`wakeups`] about the waits of idle lanes.

mod contents;
mod documents;
mod explore;
mod faults;
mod server;
mod steps;
mod store;
mod substitute;
mod wakeups;
mod world;

use explore::explore;
use faults::Fault;
use server::Server;
use world::{Names, comes_to_an_end};

/// Bounds the run should the protocol grow; far above what there is.
const MOST_STATES: usize = 400_000;

/// How many states there are, or what is wrong.
fn check(names: Names, fault: Option<Fault>) -> Result<usize, String> {
    let mut server = Server::start(names, fault);
    let explored = explore(&mut server, MOST_STATES)?;
    comes_to_an_end(&explored, &server)?;
    eprintln!(
        "{names:?}: {} states, {} transitions, {} of them different steps in Redis",
        explored.states(),
        explored.transitions(),
        server.steps()
    );
    Ok(explored.states())
}

/// What the checker says of a protocol that is broken.
fn found(names: Names, fault: Fault) -> String {
    match check(names, Some(fault)) {
        Ok(_) => panic!("the checker found nothing"),
        Err(found) => found,
    }
}

#[test]
fn two_daemons_of_two_names_lose_nothing_and_announce_nothing_twice() {
    let states = check(Names::Two, None).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 1000, "{states}");
}

#[test]
fn two_daemons_of_one_name_lose_nothing_and_announce_nothing_twice() {
    let states = check(Names::One, None).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 1000, "{states}");
}

#[test]
fn the_checker_finds_a_finish_that_does_not_look_whether_the_claim_is_still_there() {
    let found = found(Names::Two, Fault::FinishUnguarded);
    assert!(
        found.contains("takes vCon") || found.contains(" places"),
        "{found}"
    );
}

#[test]
fn the_checker_finds_a_claim_that_is_recorded_after_the_entry_was_popped() {
    let found = found(Names::Two, Fault::ClaimInTwoSteps);
    assert!(found.contains("is in 0 places"), "{found}");
}

#[test]
fn the_checker_finds_a_claim_that_is_taken_for_ones_own_whoever_made_it() {
    let found = found(Names::One, Fault::ClaimUnmarked);
    assert!(found.contains("holds its name"), "{found}");
}

#[test]
fn the_checker_finds_a_recovery_that_does_not_look_at_the_lease() {
    let found = found(Names::Two, Fault::RecoveryUnguarded);
    assert!(found.contains("holds its name"), "{found}");
}

#[test]
fn the_checker_finds_a_lapse_that_is_counted_as_a_death() {
    let found = found(Names::Two, Fault::LapseBlamed);
    assert!(found.contains("are blamed for it"), "{found}");
}

#[test]
fn the_checker_finds_a_recovery_that_is_never_made() {
    let found = found(Names::Two, Fault::NoRecovery);
    assert!(found.contains("cannot be brought to an end"), "{found}");
}
