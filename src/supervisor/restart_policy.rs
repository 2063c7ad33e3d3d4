//! The restart policy, as pure decisions: what the end of a process means, whom it is counted against,
//! and when the next process is started (the back-off of a crash loop).
//!
//! The supervisor acts on them in `children`. Nothing here starts a process or writes a log line.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::child_slot::ProcessPhase;
use crate::backoff::Backoff;
use crate::exit::Exit;
use crate::queue::Suspects;
use crate::scoreboard::{LaneState, RestartCause, WorkerView};
use crate::sys::End;

/// What the end of a process means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndKind {
    /// It drained: the supervisor asked for it, or it made way for a fresh one.
    Drained,
    /// It drained, but may hold a claim that it does not know of.
    LeftClaims,
    /// The supervisor killed it.
    Killed,
    /// It cannot work with the configuration in force.
    Refused,
    /// It could not work with a configuration that is no longer in force.
    RefusedFormer,
    /// Another daemon has this one's name, or Redis does not let the daemon in.
    Displaced,
    /// Anything else.
    Died,
}

/// Tells what an end means. `is_outdated` says whether the configuration has changed since the start
/// of the process.
pub(super) fn classify(phase: ProcessPhase, end: End, is_outdated: bool) -> EndKind {
    match (phase, end) {
        (_, End::Exited(0)) => EndKind::Drained,
        // The signal came before the process could handle it.
        (ProcessPhase::Draining { .. }, End::Killed { signal, .. })
            if signal == Signal::SIGTERM as i32 =>
        {
            EndKind::Drained
        }
        (ProcessPhase::Killed, _) => EndKind::Killed,
        (_, End::Exited(code)) if code == Exit::ClaimsLeft.code() => EndKind::LeftClaims,
        (_, End::Exited(code)) if code == Exit::Config.code() => match is_outdated {
            true => EndKind::RefusedFormer,
            false => EndKind::Refused,
        },
        (_, End::Exited(code)) if code == Exit::Barred.code() => EndKind::Displaced,
        _ => EndKind::Died,
    }
}

/// Why the process is replaced; `None` if it is not.
pub(super) fn restart_cause(
    kind: EndKind,
    was_ending: bool,
    killed_for: Option<RestartCause>,
) -> Option<RestartCause> {
    match kind {
        EndKind::Drained | EndKind::LeftClaims if was_ending => Some(RestartCause::Reloaded),
        EndKind::Drained | EndKind::LeftClaims => Some(RestartCause::Recycled),
        // Without a reason of its own, it had not drained in time.
        EndKind::Killed => Some(killed_for.unwrap_or(RestartCause::Reloaded)),
        EndKind::Died => Some(RestartCause::Died),
        EndKind::Refused | EndKind::RefusedFormer | EndKind::Displaced => None,
    }
}

/// The suspects among the claims that a process leaves behind when it ends like this. `None` if it
/// leaves none, or the supervisor has named them when it killed the process.
pub(super) fn blame(kind: EndKind, suspects: impl FnOnce() -> Suspects) -> Option<Suspects> {
    match kind {
        EndKind::Drained | EndKind::Killed => None,
        EndKind::LeftClaims => Some(Suspects::NOBODY),
        EndKind::Refused | EndKind::RefusedFormer | EndKind::Displaced | EndKind::Died => {
            Some(suspects())
        }
    }
}

/// The vCons that a worker may have died of: all in hand, except those whose lane waited for a server.
pub(super) fn suspects(worker: Option<&WorkerView>) -> Suspects {
    let lanes = worker.map_or(&[][..], |worker| &worker.lanes);
    let waiting = lanes.iter().filter(|lane| lane.state == LaneState::Waiting);
    Suspects::AllBut(waiting.filter_map(|lane| lane.vcon).collect())
}

/// A worker that lived this long counts as healthy: its next death is the first of a row.
const HEALTHY: Duration = Duration::from_secs(5);

/// The wait before the second start in a row; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The back-off of one child: its quick deaths in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RestartBackoff {
    has_died: bool,
    backoff: Backoff,
}

/// How long a process lived, and to what effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// How long it ran.
    pub lived: Duration,
    /// Whether it got anything done: then a short life does not suggest that the next is short too.
    pub useful: bool,
}

impl Lifetime {
    /// That of a process that never did anything.
    pub const NONE: Self = Self {
        lived: Duration::ZERO,
        useful: false,
    };
}

impl RestartBackoff {
    /// No death yet. No wait will be longer than `longest`, nor than half a minute.
    pub fn none(longest: Duration) -> Self {
        Self {
            has_died: false,
            backoff: Backoff::new(FIRST_WAIT, longest.min(LONGEST_WAIT)),
        }
    }

    /// Counts a death, and returns how long to wait before the next start: not at all the first time,
    /// then doubling times as long as the child dies young with nothing done. `jitter`, between 0 and
    /// 1, spreads the waits over their upper half.
    pub fn after_death(&mut self, life: Lifetime, jitter: f64) -> Duration {
        if life.lived >= HEALTHY || life.useful {
            self.has_died = false;
            self.backoff.reset();
        }
        if std::mem::replace(&mut self.has_died, true) {
            self.backoff.next_wait_with(jitter)
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_end_means_what_it_should() {
        let until = Instant::now();
        let draining = ProcessPhase::Draining { until };
        let killed = |signal: Signal| End::Killed {
            signal: signal as i32,
            core: false,
        };
        let (term, kill) = (killed(Signal::SIGTERM), killed(Signal::SIGKILL));
        for (phase, end, expected) in [
            (ProcessPhase::Ready, End::Exited(0), EndKind::Drained),
            (draining, End::Exited(0), EndKind::Drained),
            (draining, term, EndKind::Drained),
            (draining, kill, EndKind::Died),
            (ProcessPhase::Starting, term, EndKind::Died),
            (ProcessPhase::Killed, kill, EndKind::Killed),
            (draining, End::Exited(74), EndKind::LeftClaims),
            (ProcessPhase::Ready, End::Exited(74), EndKind::LeftClaims),
            (ProcessPhase::Killed, End::Exited(74), EndKind::Killed),
            (ProcessPhase::Starting, End::Exited(78), EndKind::Refused),
            (ProcessPhase::Starting, End::Exited(70), EndKind::Died),
            (ProcessPhase::Ready, End::Exited(75), EndKind::Displaced),
            (draining, End::Exited(75), EndKind::Displaced),
            (ProcessPhase::Ready, killed(Signal::SIGSEGV), EndKind::Died),
        ] {
            assert_eq!(classify(phase, end, false), expected, "{phase:?} {end:?}");
        }
    }

    #[test]
    fn a_refusal_counts_only_for_the_configuration_in_force() {
        let refused = |phase, is_outdated| classify(phase, End::Exited(78), is_outdated);
        for phase in [ProcessPhase::Starting, ProcessPhase::Ready] {
            assert_eq!(refused(phase, false), EndKind::Refused);
            assert_eq!(refused(phase, true), EndKind::RefusedFormer);
        }
        assert_eq!(refused(ProcessPhase::Killed, true), EndKind::Killed);
        let died = classify(ProcessPhase::Ready, End::Exited(70), true);
        assert_eq!(died, EndKind::Died);
    }

    #[test]
    fn only_an_end_that_nobody_meant_is_held_against_a_vcon() {
        let suspect = || Suspects::ALL;
        for (kind, expected) in [
            (EndKind::Drained, None),
            (EndKind::LeftClaims, Some(Suspects::NOBODY)),
            (EndKind::Killed, None),
            (EndKind::Refused, Some(Suspects::ALL)),
            (EndKind::RefusedFormer, Some(Suspects::ALL)),
            (EndKind::Displaced, Some(Suspects::ALL)),
            (EndKind::Died, Some(Suspects::ALL)),
        ] {
            assert_eq!(blame(kind, suspect), expected, "{kind:?}");
        }
    }

    #[test]
    fn a_replacement_is_counted_by_its_cause() {
        use RestartCause::{Died, Overdue, Recycled, Reloaded};
        for (kind, was_ending, killed_for, expected) in [
            (EndKind::Drained, true, None, Some(Reloaded)),
            (EndKind::Drained, false, None, Some(Recycled)),
            (EndKind::LeftClaims, true, None, Some(Reloaded)),
            (EndKind::LeftClaims, false, None, Some(Recycled)),
            (EndKind::Killed, true, None, Some(Reloaded)),
            (EndKind::Killed, false, Some(Overdue), Some(Overdue)),
            (EndKind::Died, false, None, Some(Died)),
            (EndKind::Died, true, None, Some(Died)),
            (EndKind::Refused, false, None, None),
            (EndKind::RefusedFormer, false, None, None),
            (EndKind::Displaced, true, None, None),
        ] {
            let cause = restart_cause(kind, was_ending, killed_for);
            assert_eq!(cause, expected, "{kind:?} {was_ending}");
        }
    }

    fn waits(lives: &[(f64, bool)]) -> Vec<u128> {
        waits_up_to(Duration::MAX, lives, 1.0)
    }

    fn waits_up_to(longest: Duration, lives: &[(f64, bool)], jitter: f64) -> Vec<u128> {
        let mut backoff = RestartBackoff::none(longest);
        let wait = |(lived, useful): &(f64, bool)| {
            let life = Lifetime {
                lived: Duration::from_secs_f64(*lived),
                useful: *useful,
            };
            backoff.after_death(life, jitter)
        };
        lives
            .iter()
            .map(wait)
            .map(|wait| wait.as_millis())
            .collect()
    }

    #[test]
    fn the_first_restart_is_at_once_and_a_crash_loop_is_slowed_down() {
        assert_eq!(waits(&[(0.0, false); 5]), [0, 100, 200, 400, 800]);
        assert_eq!(waits(&[(0.1, false); 40])[39], 30_000);
    }

    #[test]
    fn jitter_takes_away_up_to_half_of_a_wait() {
        let duds = [(0.0, false); 5];
        for (jitter, expected) in [(0.0, [0, 50, 100, 200, 400]), (0.5, [0, 75, 150, 300, 600])] {
            assert_eq!(waits_up_to(Duration::MAX, &duds, jitter), expected);
        }
    }

    #[test]
    fn no_wait_is_longer_than_this_child_may_be_missing() {
        let waits = waits_up_to(Duration::from_secs(1), &[(0.0, false); 40], 1.0);
        assert_eq!(waits[..6], [0, 100, 200, 400, 800, 1000]);
        assert_eq!(waits[39], 1000);
    }

    #[test]
    fn a_worker_that_stayed_up_or_did_its_work_is_restarted_at_once_again() {
        let (dud, stayed, worked) = ((0.0, false), (6.0, false), (0.1, true));
        assert_eq!(waits(&[dud, dud, dud, stayed, dud]), [0, 100, 200, 0, 100]);
        assert_eq!(waits(&[dud, dud, worked, worked, dud]), [0, 100, 0, 0, 100]);
    }
}
