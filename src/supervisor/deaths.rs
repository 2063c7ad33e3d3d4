//! What the end of a process means, and what follows from it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::place::{Phase, Post, State};
use super::report::doing;
use super::restart::Life;
use super::{DaemonPhase, Supervisor};
use crate::exit::Exit;
use crate::queue::Blame;
use crate::scoreboard::{LaneState, RestartCause, WorkerState, WorkerView};
use crate::sys::{self, End};

/// What an end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It did as it was told, or made way for a fresh one.
    Drained,
    /// The same, but for a claim that it may hold without knowing.
    LeftClaims,
    /// We killed it.
    Killed,
    /// It cannot work with its configuration.
    Refused,
    /// Another daemon has our name, or Redis does not let us in.
    Displaced,
    /// Anything else.
    Died,
}

fn meaning(phase: Phase, end: End) -> Meaning {
    match (phase, end) {
        (_, End::Exited(0)) => Meaning::Drained,
        // It was asked to end before it could hear.
        (Phase::Draining { .. }, End::Killed { signal, .. })
            if signal == Signal::SIGTERM as i32 =>
        {
            Meaning::Drained
        }
        (Phase::Killed, _) => Meaning::Killed,
        (_, End::Exited(code)) if code == Exit::ClaimsLeft.code() => Meaning::LeftClaims,
        (_, End::Exited(code)) if code == Exit::Config.code() => Meaning::Refused,
        (_, End::Exited(code)) if code == Exit::Barred.code() => Meaning::Displaced,
        _ => Meaning::Died,
    }
}

/// Why another process takes the place of this one; nothing where none does.
fn restart_cause(
    meaning: Meaning,
    was_ending: bool,
    killed_for: Option<RestartCause>,
) -> Option<RestartCause> {
    match meaning {
        Meaning::Drained | Meaning::LeftClaims if was_ending => Some(RestartCause::Reloaded),
        Meaning::Drained | Meaning::LeftClaims => Some(RestartCause::Recycled),
        // Without a reason of its own, it had not drained in time.
        Meaning::Killed => Some(killed_for.unwrap_or(RestartCause::Reloaded)),
        Meaning::Died => Some(RestartCause::Died),
        Meaning::Refused | Meaning::Displaced => None,
    }
}

/// Who has the blame for what a process that ended like this leaves behind, if nobody has said so
/// yet; nothing if it leaves nothing, or whoever killed it says it.
fn blame(meaning: Meaning, suspects: impl FnOnce() -> Blame) -> Option<Blame> {
    match meaning {
        Meaning::Drained | Meaning::Killed => None,
        Meaning::LeftClaims => Some(Blame::NOBODY),
        Meaning::Refused | Meaning::Displaced | Meaning::Died => Some(suspects()),
    }
}

/// The time before the next start, for the log.
fn pause(wait: Duration) -> String {
    match wait.as_secs_f64() {
        0.0 => String::new(),
        seconds => format!(" in {seconds:.1} s"),
    }
}

impl Supervisor {
    /// A child process has ended.
    pub(super) fn note_end(&mut self, pid: Pid, end: End) {
        if self.method.note_end(pid) {
            return self.note_end_of_forkserver(pid, end);
        }
        let at_an_end = self.stop.is_some();
        let Some(post) = self.place_of(pid).map(|place| place.post) else {
            // A process of a dead worker's, which came to us as an orphan.
            return log::debug!("PID {pid} has ended: {end}");
        };
        if post == Post::Recovery {
            return self.note_end_of_recovery(end);
        }
        let view = post
            .slot()
            .map(|slot| self.board.slot(slot))
            .unwrap_or_default();
        let Some(place) = self.places.get_mut(&post) else {
            return;
        };
        let State::Running { since, phase, .. } = place.state else {
            return;
        };
        let name = place.name();
        let meaning = meaning(phase, end);
        place.recovered |= view.worker.as_ref().is_some_and(|worker| worker.recovered);
        self.swept |= place.recovered && place.sweeps;
        if let Some(blame) = blame(meaning, || suspects(view.worker.as_ref())) {
            place.blame(blame, end.to_string());
        }
        place.close(meaning == Meaning::Drained);
        let settled = view.worker.as_ref().map_or(0, |worker| worker.settled);
        let life = Life {
            lived: since.elapsed(),
            useful: settled > 0,
        };
        let was_ending = matches!(phase, Phase::Draining { .. });
        let killed_for = place.killed_for.take();
        let is_wanted = self.is_wanted(post);
        let cause = restart_cause(meaning, was_ending, killed_for);
        if let Some(cause) = cause.filter(|_| is_wanted && !at_an_end) {
            self.board.count_restart(cause);
        }
        let Some(place) = self.places.get_mut(&post) else {
            return;
        };
        match meaning {
            Meaning::Drained | Meaning::LeftClaims if at_an_end || was_ending => {
                place.set(State::Vacant { until: None });
                log::debug!("{name} has drained");
            }
            Meaning::Drained | Meaning::LeftClaims => {
                place.set(State::Vacant { until: None });
                log::info!("{name} has drained by itself, restarting");
            }
            Meaning::Killed if at_an_end => place.set(State::Vacant { until: None }),
            Meaning::Killed => {
                place.deaths += 1;
                let pause = pause(place.back_off(life));
                log::info!("{name} was killed, restarting{pause}");
            }
            // It has said why: the settings do not fit Redis.
            Meaning::Refused if post == Post::Monitor => {
                place.set(State::Refused);
                self.orphaned.clear();
                if !at_an_end {
                    self.show_post(post);
                    return self.stop(false, Exit::Config);
                }
            }
            Meaning::Refused => {
                place.set(State::Refused);
                log::error!(
                    "{name} cannot work with its configuration (exit code {}); \
                     it is not started again before the configuration changes",
                    Exit::Config.code()
                );
            }
            // It has said why.
            Meaning::Displaced => {
                place.set(State::Refused);
                self.orphaned.clear();
                if !at_an_end {
                    self.show_post(post);
                    return self.stop(false, Exit::Unavailable);
                }
            }
            Meaning::Died => {
                place.deaths += 1;
                let wait = place.back_off(life);
                let lived = since.elapsed().as_secs_f64();
                let doing = doing(&view);
                if at_an_end {
                    log::error!("{name} died instead of draining: {end}, {doing}");
                } else {
                    let pause = pause(wait);
                    log::error!(
                        "{name} died unexpectedly, restarting{pause}: {end}, after {lived:.1} s and {settled} vCons, {doing}"
                    );
                }
            }
        }
        self.show_post(post);
        self.note_refusals();
    }

    /// A refusal of a reload's first new worker ends the reload; one of all workers ends us.
    fn note_refusals(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let refused = |post: &Post| {
            let place = self.places.get(post);
            place.is_some_and(|place| place.state == State::Refused)
        };
        let all = self.workers().all(|place| place.state == State::Refused);
        if all {
            log::error!("No worker can work with the configuration");
            self.stop(false, Exit::Config);
        } else if self.reloading && refused(&Post::Worker(self.wanted + 1)) {
            log::error!("The workers are not replaced: the first new one refused to start");
            self.give_up_reload();
        }
    }

    /// The workers are not replaced after all.
    fn give_up_reload(&mut self) {
        self.reloading = false;
        for place in self.places.values_mut() {
            place.round = self.round;
        }
        if self.up {
            self.note_running();
        } else {
            self.set_phase(DaemonPhase::Starting);
        }
    }

    fn note_end_of_recovery(&mut self, end: End) {
        let stopping = self.stop.is_some();
        let Some(place) = self.places.get_mut(&Post::Recovery) else {
            return;
        };
        if end == End::Exited(0) {
            let done = std::mem::take(&mut place.load);
            place.set(State::Vacant { until: None });
            self.orphaned
                .retain(|left| !done.iter().any(|done| done.worker == left.worker));
        } else if stopping {
            self.give_up_recovery(&end.to_string());
        } else {
            let life = Life {
                lived: Duration::ZERO,
                useful: false,
            };
            place.back_off(life);
        }
    }

    /// At the end there is no time for another try: the next start makes up for it.
    pub(super) fn give_up_recovery(&mut self, why: &str) {
        log::warn!("Claims that could not be returned are, at the next start: {why}");
        if let Some(place) = self.places.get_mut(&Post::Recovery) {
            place.set(State::Vacant { until: None });
        }
        self.orphaned.clear();
    }

    /// Its children end with it, and come to us to be reaped.
    fn note_end_of_forkserver(&mut self, pid: Pid, end: End) {
        if self.stop.is_none() || self.workers().any(|place| !place.is_empty()) {
            log::error!("The forkserver (PID {pid}) died, and its workers with it: {end}");
        }
        let mut unseen = Vec::new();
        for place in self.places.values_mut() {
            match place.state {
                State::Asked { .. } => place.set(State::Vacant { until: None }),
                State::Running { pid, phase, .. } => {
                    let seen = sys::kill(pid, Signal::SIGKILL) && sys::ADOPTS_ORPHANS;
                    // Also what drains: it is we who ended it.
                    if phase != Phase::Killed && place.post != Post::Recovery {
                        place.set_phase(Phase::Killed);
                        place.killed_for = Some(RestartCause::Forkserver);
                        place.blame(Blame::NOBODY, "its forkserver died");
                    }
                    if !seen {
                        unseen.push(pid);
                    }
                }
                State::Vacant { .. } | State::Refused => {}
            }
        }
        for pid in unseen {
            self.note_end(pid, End::Unseen);
        }
    }

    /// Looks at the scoreboard for workers that have become ready.
    pub(super) fn note_readiness(&mut self) {
        let starting: Vec<Post> = self
            .places
            .values()
            .filter(|place| place.phase() == Some(Phase::Starting))
            .map(|place| place.post)
            .collect();
        for post in starting {
            let Some(slot) = post.slot() else { continue };
            let Some(worker) = self.board.slot(slot).worker else {
                continue;
            };
            let Some(place) = self.places.get_mut(&post) else {
                continue;
            };
            place.recovered |= worker.recovered;
            self.swept |= place.recovered && place.sweeps;
            if worker.state != WorkerState::Starting {
                place.set_phase(Phase::Ready);
                let name = place.name();
                if let State::Running { since, .. } = place.state {
                    let took = Instant::now().saturating_duration_since(since);
                    log::debug!("{name} is ready after {:.1} ms", took.as_secs_f64() * 1e3);
                }
                self.show_post(post);
            }
        }
    }
}

/// Which vCons a worker may have died of: not those that its lanes had in hand only to wait for
/// something.
pub(super) fn suspects(worker: Option<&WorkerView>) -> Blame {
    let lanes = worker.map_or(&[][..], |worker| &worker.lanes);
    let waiting = lanes.iter().filter(|lane| lane.state == LaneState::Waiting);
    Blame::AllBut(waiting.filter_map(|lane| lane.vcon).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_means_what_it_should() {
        let until = Instant::now();
        let draining = Phase::Draining { until };
        let killed = |signal: Signal| End::Killed {
            signal: signal as i32,
            core: false,
        };
        let (term, kill) = (killed(Signal::SIGTERM), killed(Signal::SIGKILL));
        for (phase, end, expected) in [
            (Phase::Ready, End::Exited(0), Meaning::Drained),
            (draining, End::Exited(0), Meaning::Drained),
            (draining, term, Meaning::Drained),
            (draining, kill, Meaning::Died),
            (Phase::Starting, term, Meaning::Died),
            (Phase::Killed, kill, Meaning::Killed),
            (draining, End::Exited(74), Meaning::LeftClaims),
            (Phase::Ready, End::Exited(74), Meaning::LeftClaims),
            (Phase::Killed, End::Exited(74), Meaning::Killed),
            (Phase::Starting, End::Exited(78), Meaning::Refused),
            (Phase::Starting, End::Exited(70), Meaning::Died),
            (Phase::Ready, End::Exited(75), Meaning::Displaced),
            (draining, End::Exited(75), Meaning::Displaced),
            (Phase::Ready, killed(Signal::SIGSEGV), Meaning::Died),
        ] {
            assert_eq!(meaning(phase, end), expected, "{phase:?} {end:?}");
        }
    }

    #[test]
    fn only_an_end_that_nobody_meant_is_held_against_a_vcon() {
        let suspect = || Blame::ALL;
        for (meaning, expected) in [
            (Meaning::Drained, None),
            (Meaning::LeftClaims, Some(Blame::NOBODY)),
            (Meaning::Killed, None),
            (Meaning::Refused, Some(Blame::ALL)),
            (Meaning::Displaced, Some(Blame::ALL)),
            (Meaning::Died, Some(Blame::ALL)),
        ] {
            assert_eq!(blame(meaning, suspect), expected, "{meaning:?}");
        }
    }

    #[test]
    fn a_replacement_is_counted_by_its_cause() {
        use RestartCause::{Died, Overdue, Recycled, Reloaded};
        for (meaning, was_ending, killed_for, expected) in [
            (Meaning::Drained, true, None, Some(Reloaded)),
            (Meaning::Drained, false, None, Some(Recycled)),
            (Meaning::LeftClaims, true, None, Some(Reloaded)),
            (Meaning::LeftClaims, false, None, Some(Recycled)),
            (Meaning::Killed, true, None, Some(Reloaded)),
            (Meaning::Killed, false, Some(Overdue), Some(Overdue)),
            (Meaning::Died, false, None, Some(Died)),
            (Meaning::Died, true, None, Some(Died)),
            (Meaning::Refused, false, None, None),
            (Meaning::Displaced, true, None, None),
        ] {
            let cause = restart_cause(meaning, was_ending, killed_for);
            assert_eq!(cause, expected, "{meaning:?} {was_ending}");
        }
    }
}
