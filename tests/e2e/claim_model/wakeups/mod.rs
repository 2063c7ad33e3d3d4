//! How idle lanes are woken: one daemon with two workers of one lane each, three vCons, and the monitor.
//!
//! A lane that finds nothing waits for a token, and until its tick at the longest. The monitor looks when
//! the server tells it of a change, while nobody tells it, and again while entries wait. A token is lost
//! on the way, the server tells nothing any more, the monitor dies, a worker dies with the token or with a
//! claim, the lease runs out.
//!
//! There are never more tokens than lanes. And from every state all vCons can be finished without another
//! mishap: with the ticks alone, when the monitor never comes back, and with the monitor alone.

mod server;
mod world;

use super::explore::explore;
use super::substitute::Broken;
use server::Server;
use world::{Action, Wakeups};

/// Bounds a run should the protocol grow.
const MOST_STATES: usize = 400_000;

/// Looks that add tokens to those that are left.
const LOOK_WITHOUT_RESET: Broken = Broken {
    files: &[include_str!(
        "../../../../src/queue/scripts/wake_tokens.lua"
    )],
    right: "local left = redis.call('DEL', ARGV[3])",
    wrong: "local left = redis.call('EXISTS', ARGV[3])",
};

/// Looks that put no tokens into the wake list.
const LOOK_WITHOUT_TOKENS: Broken = Broken {
    files: &[include_str!(
        "../../../../src/queue/scripts/wake_tokens.lua"
    )],
    right: "if #tokens > 0 then",
    wrong: "if false then",
};

/// What is done in vain, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    Ticks,
    /// Ticks, and looks that nothing has told the monitor to make.
    TicksAndRepeatedLooks,
}

fn check(missing: Missing, broken: &[Broken]) -> Result<usize, String> {
    let mut wakeups = Wakeups {
        server: Server::start(broken),
    };
    let explored = explore(&mut wakeups, MOST_STATES)?;
    let has_ticks = missing == Missing::Nothing;
    let has_repeats = missing != Missing::TicksAndRepeatedLooks;
    let exists = |action: Action| match action {
        Action::Tick(_) => has_ticks,
        Action::LookAgain => has_repeats,
        _ => true,
    };
    explored.comes_to_an_end(&wakeups, "mishaps", |_, action| exists(action))?;
    explored.comes_to_an_end(&wakeups, "ticks", |_, action| {
        exists(action) && !matches!(action, Action::Tick(_))
    })?;
    explored.comes_to_an_end(&wakeups, "the monitor", |_, action| {
        exists(action) && !action.is_of_monitor()
    })?;
    eprintln!(
        "wake-ups: {} states, {} transitions, {} of them different steps in Redis",
        explored.states(),
        explored.transitions(),
        wakeups.server.steps()
    );
    Ok(explored.states())
}

fn found(missing: Missing, broken: &[Broken]) -> String {
    match check(missing, broken) {
        Ok(_) => panic!("the checker found nothing"),
        Err(found) => found,
    }
}

#[test]
fn no_lane_waits_for_ever_while_work_waits_whatever_tokens_are_lost() {
    let states = check(Missing::Nothing, &[]).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 500, "{states}");
}

#[test]
fn the_checker_finds_a_lane_that_never_ticks_when_the_monitor_is_gone() {
    let found = found(Missing::Ticks, &[]);
    assert!(found.contains("without the monitor"), "{found}");
}

#[test]
fn the_checker_finds_a_lost_token_when_nobody_looks_without_being_told() {
    let found = found(Missing::TicksAndRepeatedLooks, &[]);
    assert!(found.contains("without mishaps"), "{found}");
    assert!(found.contains("LoseToken"), "{found}");
}

#[test]
fn the_checker_finds_a_look_that_wakes_nobody() {
    let found = found(Missing::Nothing, &[LOOK_WITHOUT_TOKENS]);
    assert!(found.contains("tokens"), "{found}");
}

#[test]
fn the_checker_finds_looks_that_pile_up_tokens() {
    let found = found(Missing::Nothing, &[LOOK_WITHOUT_RESET]);
    assert!(found.contains("tokens for 2 lanes"), "{found}");
}
