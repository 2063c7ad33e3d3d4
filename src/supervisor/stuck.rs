//! Which lanes work on one vCon for longer than anybody expects: said once for each vCon.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::watch::Standstills;
use crate::scoreboard::{LaneView, WorkerView};

/// The lanes that were called stuck.
pub(super) struct Stuck {
    after: Option<u64>,
    /// By slot and lane: the vCon it was said of.
    said: BTreeMap<(usize, u32), Option<Uuid>>,
}

impl Stuck {
    /// A lane is stuck after this time on one vCon; without one, none ever is.
    pub fn after(time: Option<Duration>) -> Self {
        Self {
            after: time.map(|time| time.as_millis().try_into().unwrap_or(u64::MAX)),
            said: BTreeMap::new(),
        }
    }

    /// The stuck lanes of a worker that were not called so before.
    pub fn newly(
        &mut self,
        slot: usize,
        worker: &WorkerView,
        now: u64,
        standstills: &Standstills,
    ) -> Vec<LaneView> {
        // A lane that has let go of its vCon has a new chance. While it waits, it has not.
        self.said.retain(|(said_slot, number), vcon| {
            let is_it = |lane: &LaneView| lane.number == *number && lane.vcon == *vcon;
            *said_slot != slot || worker.lanes.iter().any(is_it)
        });
        let stuck = worker.lanes.iter().filter(|lane| {
            lane.is_stuck(now, self.after, standstills.since(lane.since))
                && !self.said.contains_key(&(slot, lane.number))
        });
        let stuck: Vec<LaneView> = stuck.cloned().collect();
        let said = stuck.iter().map(|lane| ((slot, lane.number), lane.vcon));
        self.said.extend(said);
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::{LaneState, WorkerState};

    const NOW: u64 = 100_000;

    fn worker(lanes: &[(u32, LaneState, u128, u64)]) -> WorkerView {
        let lane = |(number, state, vcon, busy): &(u32, LaneState, u128, u64)| LaneView {
            number: *number,
            state: *state,
            vcon: Some(Uuid::from_u128(*vcon)),
            since: NOW - busy,
            limit: None,
        };
        WorkerView {
            held: None,
            redis_away: None,
            state: WorkerState::Ready,
            memory: None,
            beat: NOW,
            recovered: true,
            settled: 0,
            lanes: lanes.iter().map(lane).collect(),
        }
    }

    fn after(seconds: u64) -> Stuck {
        Stuck::after(Some(Duration::from_secs(seconds)))
    }

    fn newly(stuck: &mut Stuck, slot: usize, worker: &WorkerView) -> Vec<u32> {
        let found = stuck.newly(slot, worker, NOW, &Standstills::default());
        found.iter().map(|lane| lane.number).collect()
    }

    #[test]
    fn a_lane_is_called_stuck_once_for_each_vcon() {
        use LaneState::{Busy, Waiting};
        let mut stuck = after(5);
        let first = worker(&[
            (1, Busy, 7, 5_001),
            (2, Busy, 8, 5_000),
            (3, Waiting, 9, 90_000),
        ]);
        assert_eq!(newly(&mut stuck, 1, &first), [1]);
        assert_eq!(newly(&mut stuck, 1, &first), [0; 0]);
        assert_eq!(newly(&mut stuck, 2, &first), [1], "another worker");
        let waits = worker(&[(1, Waiting, 7, 1)]);
        assert_eq!(newly(&mut stuck, 1, &waits), [0; 0]);
        assert_eq!(newly(&mut stuck, 1, &first), [0; 0], "the same vCon");
        let next = worker(&[(1, Busy, 10, 6_000)]);
        assert_eq!(newly(&mut stuck, 1, &next), [1]);
        assert_eq!(newly(&mut stuck, 1, &worker(&[])), [0; 0]);
        assert_eq!(newly(&mut stuck, 1, &next), [1], "again after a pause");
    }

    #[test]
    fn nobody_is_stuck_without_a_limit_or_while_the_machine_stood_still() {
        let busy = worker(&[(1, LaneState::Busy, 7, NOW)]);
        assert_eq!(newly(&mut Stuck::after(None), 1, &busy), [0; 0]);
        let mut asleep = Standstills::default();
        asleep.note(NOW, Duration::from_millis(NOW));
        assert!(after(5).newly(1, &busy, NOW, &asleep).is_empty());
    }
}
