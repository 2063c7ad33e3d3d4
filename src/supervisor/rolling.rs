//! The rolling replacement of workers after a reload, as a pure decision.
//!
//! ```text
//! N old ─► one new beside them ─ready─► one old drains ─► its number is started anew ─ready─► …
//! ```
//!
//! A drained worker's number is free only when it has ended: a successor returns the claims of
//! its predecessor, and must not take them from one that is still at work. So the first new
//! worker gets the number above the highest wanted one, and is drained last.
//!
//! One step at a time, as far as workers are ready: an old one that is not does no work that would
//! be missed, and so all of those are drained at once, before the others.

/// A worker, as far as a rolling replacement needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Its number.
    pub number: u32,
    /// Whether it was started before the reload.
    pub outdated: bool,
    /// Whether it takes work.
    pub ready: bool,
    /// Whether it drains.
    pub draining: bool,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// One of them is still on its way: starting, draining, or to be started.
    Wait,
    /// Drain this one.
    Drain(u32),
    /// No old worker is left.
    Done,
}

/// Decides on the next step, with `wanted` workers to be kept running.
pub(super) fn next(members: &[Member], wanted: u32) -> Step {
    let old = members.iter().filter(|member| member.outdated);
    let ready = members.iter().filter(|m| m.ready && !m.draining);
    let Some(next) = old
        .clone()
        .filter(|member| !member.draining)
        .min_by_key(|m| m.number)
    else {
        let in_place = ready.filter(|member| member.number <= wanted).count();
        let done = old.count() == 0 && in_place >= wanted as usize;
        return if done { Step::Done } else { Step::Wait };
    };
    if !next.ready || ready.count() > wanted as usize {
        Step::Drain(next.number)
    } else {
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u32, state: &str) -> Member {
        Member {
            number,
            outdated: state.starts_with("old"),
            ready: !state.ends_with("starting"),
            draining: state.ends_with("draining"),
        }
    }

    fn step(states: &[&str], wanted: u32) -> Step {
        let members: Vec<Member> = (1..).zip(states).map(|(n, s)| member(n, s)).collect();
        next(&members, wanted)
    }

    #[test]
    fn an_old_worker_drains_only_when_a_new_one_is_ready_beside_all() {
        assert_eq!(step(&["old", "old"], 2), Step::Wait);
        assert_eq!(step(&["old", "old", "new starting"], 2), Step::Wait);
        assert_eq!(step(&["old", "old", "new"], 2), Step::Drain(1));
        assert_eq!(step(&["old draining", "old", "new"], 2), Step::Wait);
        assert_eq!(step(&["new starting", "old", "new"], 2), Step::Wait);
        assert_eq!(step(&["new", "old", "new"], 2), Step::Drain(2));
        assert_eq!(step(&["new", "old draining", "new"], 2), Step::Wait);
        assert_eq!(step(&["new", "new starting", "new"], 2), Step::Wait);
        assert_eq!(step(&["new", "new", "new"], 2), Step::Done);
    }

    #[test]
    fn an_old_worker_that_is_not_ready_is_in_nobodys_way() {
        assert_eq!(step(&["old starting", "old"], 2), Step::Drain(1));
    }
}
