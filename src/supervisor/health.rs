//! Whether a worker still does its work, judged by what it shows: pure decisions.

use std::time::Duration;

use super::watch::Standstills;
use crate::scoreboard::{LaneState, LaneView, WorkerView, is_silent};

/// How long a lane may exceed the limit that it shows. That is what is left of its chain's `timeout`
/// and the longest limit of a call: links and storages end a call by themselves, without a death.
const GRACE: Duration = Duration::from_secs(5);

/// What is thought of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// All is well.
    Good,
    /// It has not shown for so long that it is alive.
    Silent(Duration),
    /// A lane has not moved for the limit that it shows and the grace.
    Overdue(LaneView),
}

/// Judges a worker at `now`, in monotonic milliseconds.
pub(super) fn judge(
    worker: &WorkerView,
    now: u64,
    beat: Duration,
    standstills: &Standstills,
) -> Health {
    let since = |then: u64| {
        Duration::from_millis(now.saturating_sub(then)).saturating_sub(standstills.since(then))
    };
    let silent = since(worker.beat);
    if is_silent(silent, beat) {
        return Health::Silent(silent);
    }
    let overdue = worker
        .lanes
        .iter()
        .find(|lane| deadline(lane).is_some_and(|deadline| since(lane.since) > deadline));
    overdue.map_or(Health::Good, |lane| Health::Overdue(lane.clone()))
}

/// When the next lane will be overdue, in monotonic milliseconds.
pub(super) fn next_deadline(worker: &WorkerView, standstills: &Standstills) -> Option<u64> {
    let at = |lane: &LaneView| {
        let after = deadline(lane)?.saturating_add(standstills.since(lane.since));
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Some(lane.since.saturating_add(after))
    };
    worker.lanes.iter().filter_map(at).min()
}

/// How long after its begin a lane's work is overdue.
fn deadline(lane: &LaneView) -> Option<Duration> {
    let limit = lane.limit.filter(|_| lane.state == LaneState::Busy)?;
    Some(Duration::from_millis(limit).saturating_add(GRACE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::WorkerState;

    const BEAT: Duration = Duration::from_secs(5);

    fn judge_at(worker: &WorkerView, now: u64) -> Health {
        judge(worker, now, BEAT, &Standstills::default())
    }

    fn worker(beat: u64, lanes: &[(LaneState, u64, Option<u64>)]) -> WorkerView {
        let lane =
            |(number, (state, since, limit)): (u32, &(LaneState, u64, Option<u64>))| LaneView {
                number,
                state: *state,
                vcon: None,
                since: *since,
                limit: *limit,
            };
        WorkerView {
            held: None,
            redis_away: None,
            state: WorkerState::Ready,
            memory: None,
            beat,
            recovered: true,
            settled: 0,
            lanes: (1..).zip(lanes).map(lane).collect(),
        }
    }

    #[test]
    fn a_lane_is_overdue_after_its_limit_and_the_grace() {
        let lanes = [
            (LaneState::Busy, 1_000, None),
            (LaneState::Busy, 10_000, Some(2_000)),
        ];
        let overdue = |now| judge_at(&worker(now, &lanes), now);
        assert_eq!(overdue(17_000), Health::Good);
        assert!(matches!(overdue(17_001), Health::Overdue(lane) if lane.number == 2));
        assert_eq!(
            next_deadline(&worker(0, &lanes), &Standstills::default()),
            Some(17_000)
        );
    }

    #[test]
    fn a_lane_that_waits_for_a_server_is_never_overdue() {
        let lanes = [(LaneState::Waiting, 0, Some(1_000))];
        let now = 1_000_000;
        assert_eq!(judge_at(&worker(now, &lanes), now), Health::Good);
        assert_eq!(
            next_deadline(&worker(now, &lanes), &Standstills::default()),
            None
        );
    }

    #[test]
    fn a_worker_that_leaves_out_its_beats_is_silent() {
        let health = |now| judge_at(&worker(1_000, &[]), now);
        assert_eq!(health(31_000), Health::Good);
        assert_eq!(
            health(31_001),
            Health::Silent(Duration::from_millis(30_001))
        );
        let ahead = judge_at(&worker(5_000, &[]), 1_000);
        assert_eq!(ahead, Health::Good);
    }

    #[test]
    fn time_in_which_the_machine_stood_still_does_not_count() {
        let lanes = [(LaneState::Busy, 0, Some(1_000))];
        let mut asleep = Standstills::default();
        let now = 3_600_000;
        asleep.note(now, Duration::from_millis(now));
        assert_eq!(judge(&worker(0, &lanes), now, BEAT, &asleep), Health::Good);
    }
}
