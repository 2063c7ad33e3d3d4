//! `/healthz`: is every wanted worker alive? `/readyz`: would the daemon take on work now?
//!
//! Healthy: a worker that is starting, or that is replaced at once, is fine. A child slot is faulty if it has had
//! no process for some time, if its workers keep dying, or if they refuse their configuration. It stays faulty
//! until a worker has been ready there for some time: between two crashes, one looks alive.
//!
//! Both are judged from a snapshot alone; nothing here reads the scoreboard or asks Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::scoreboard::{ChildState, ChildView, DaemonPhase, Snapshot, is_silent};
use crate::spelling::counted;
use crate::view::{Hold, Pause, since};
use crate::visible::printable;

/// How long a child slot may be without a process, and how long a worker must have been ready in a slot that was
/// faulty, in milliseconds.
const GRACE: u64 = 5_000;

/// A back-off before the next start that is this long, in milliseconds, follows several crashes in a row.
const LONG_WAIT: u64 = 1_000;

/// Judges health; remembers which slots were faulty.
#[derive(Debug, Default)]
pub(super) struct HealthCheck {
    faulty: BTreeSet<usize>,
}

impl HealthCheck {
    /// Judges the daemon: a line for each fault. The supervisor shows itself once every `beat`.
    pub fn judge(&mut self, snapshot: &Snapshot, beat: Duration) -> Result<String, Vec<String>> {
        let (header, now) = (&snapshot.header, snapshot.taken);
        let silent = Duration::from_millis(now.saturating_sub(header.beat));
        let mut faults = Vec::new();
        if is_silent(silent, beat) {
            let seconds = silent.as_secs();
            faults.push(format!(
                "the supervisor (PID {}) has not shown itself for {seconds} s",
                header.pid
            ));
        }
        if header.phase == Some(DaemonPhase::Stopping) {
            // Its workers are supposed to end.
            self.faulty.clear();
        } else {
            faults.extend(self.workers(snapshot));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let phase = header.phase.map_or("unknown", DaemonPhase::as_str);
        Ok(format!(
            "healthy: {phase}, {}",
            counted(header.wanted, "worker")
        ))
    }

    fn workers(&mut self, snapshot: &Snapshot) -> Vec<String> {
        let now = snapshot.taken;
        // Wanted workers that are missing, and workers that are no longer wanted.
        let wanted = usize::try_from(snapshot.header.wanted).unwrap_or(usize::MAX);
        let last = wanted.max(snapshot.slots.len().saturating_sub(1));
        let mut faults = Vec::new();
        for number in 1..=last.min(crate::scoreboard::SLOTS) {
            let place = snapshot.slots.get(number);
            let place = place.and_then(|slot| slot.place.as_ref());
            let fault = match place {
                Some(place) => fault(place, now),
                None if number > wanted => None,
                None => {
                    let uptime = now.saturating_sub(snapshot.header.started);
                    (uptime > GRACE).then(|| "has no process".to_owned())
                }
            };
            match (fault, place) {
                (Some(fault), _) => {
                    self.faulty.insert(number);
                    faults.push(format!("Worker-{number} {fault}"));
                }
                (None, Some(place)) if !is_steady(place, now) => {
                    if self.faulty.contains(&number) {
                        faults.push(format!("Worker-{number} has not been ready for long yet"));
                    }
                }
                (None, _) => {
                    self.faulty.remove(&number);
                }
            }
        }
        faults
    }
}

/// What is wrong with a slot.
fn fault(place: &ChildView, now: u64) -> Option<String> {
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
    match (place.state, place.retry) {
        (ChildState::Refused, _) => Some("refuses its configuration".to_owned()),
        (ChildState::Vacant, Some(retry)) if retry.saturating_sub(place.since) >= LONG_WAIT => {
            Some(format!(
                "keeps dying ({} times so far), the next start is in {:.1} s",
                place.deaths,
                seconds(now, retry)
            ))
        }
        (ChildState::Vacant, None) if now.saturating_sub(place.since) > GRACE => Some(format!(
            "has had no process for {:.1} s",
            seconds(place.since, now)
        )),
        _ => None,
    }
}

/// Whether the slot's worker has lasted for some time.
fn is_steady(place: &ChildView, now: u64) -> bool {
    let lasts = now.saturating_sub(place.since) >= GRACE;
    match place.state {
        ChildState::Ready => lasts,
        ChildState::Draining => true,
        ChildState::Starting | ChildState::Vacant | ChildState::Refused => false,
    }
}

/// Judges whether the daemon would take on work: a line for each thing that it waits for. What operators have paused
/// is no reason to call it unready, and is named all the same.
pub(super) fn readiness(
    phase: Option<DaemonPhase>,
    holds: &[Hold],
    paused: &[Pause],
    redis: Result<(), &str>,
    has_heartbeat: bool,
) -> Result<String, Vec<String>> {
    let mut waits = Vec::new();
    match phase {
        // A reload replaces workers one by one: all others work.
        Some(DaemonPhase::Running | DaemonPhase::Reloading) => {}
        Some(phase) => waits.push(format!("the daemon is {phase}")),
        None => waits.push("the daemon is in no known phase".to_owned()),
    }
    match redis {
        Err(why) => waits.push(why.to_owned()),
        Ok(()) if !has_heartbeat => waits.push(
            "Redis answers, but this instance cannot show there that it is alive: the log has why"
                .to_owned(),
        ),
        Ok(()) => {}
    }
    waits.extend(holds.iter().map(|hold| {
        let (fault, since) = (hold.fault(), since(hold.seconds as f64));
        let why = hold.last.text().map(|why| format!(": {why}"));
        let why = why.unwrap_or_default();
        match &hold.chains[..] {
            [] => format!("{fault} ({since}){why}; chains on hold"),
            chains => format!(
                "{fault} ({since}){why}; chains on hold: {}",
                chains.join(", ")
            ),
        }
    }));
    // A name cannot make a line.
    let paused = paused.iter().map(|pause| {
        let told = format!("paused: {}", pause.told());
        printable(&told).into_owned()
    });
    if waits.is_empty() {
        let lines = std::iter::once("ready".to_owned()).chain(paused);
        Ok(lines.collect::<Vec<_>>().join("\n"))
    } else {
        waits.extend(paused);
        Err(waits)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scoreboard::{BoardHeader, Shape, SlotView};
    use crate::view::LastError;

    const NOW: u64 = 1_000_000;
    const BEAT: Duration = Duration::from_secs(5);

    fn place(state: ChildState, since: u64, retry: Option<u64>) -> Option<ChildView> {
        Some(ChildView {
            generation: 1,
            pid: None,
            state,
            since,
            deaths: 3,
            retry,
        })
    }

    fn snapshot(phase: DaemonPhase, wanted: u64, places: &[Option<ChildView>]) -> Snapshot {
        let monitor = [None];
        let slot = |place: &Option<ChildView>| SlotView {
            place: place.clone(),
            ..SlotView::default()
        };
        Snapshot {
            board: "here.scoreboard".into(),
            config: "here.config".into(),
            pauses: None,
            taken: NOW,
            header: BoardHeader {
                nonce: 1,
                shape: Shape::of(1, 0, 0, 0),
                pid: 4711,
                started: 0,
                phase: Some(phase),
                method: 1,
                wanted,
                config: 1,
                used: places.len() + 1,
                memory: None,
                beat: NOW,
                series: 0,
                stuck_after: None,
                restarts: [0; 6],
                reloads: 0,
                reload_state: None,
                instance: "here".to_owned(),
                redis: String::new(),
            },
            series: Vec::new(),
            answers: Vec::new(),
            reasons: Vec::new(),
            slots: monitor.iter().chain(places).map(slot).collect(),
        }
    }

    fn judged(places: &[Option<ChildView>]) -> Result<String, Vec<String>> {
        let wanted = places.len() as u64;
        HealthCheck::default().judge(&snapshot(DaemonPhase::Running, wanted, places), BEAT)
    }

    #[test]
    fn a_worker_that_is_alive_or_about_to_be_is_no_fault() {
        for (state, since) in [
            (ChildState::Ready, NOW),
            (ChildState::Ready, 0),
            // Redis may be unavailable.
            (ChildState::Starting, 0),
            (ChildState::Draining, 0),
            (ChildState::Vacant, NOW - GRACE),
        ] {
            let judged = judged(&[place(state, since, None)]);
            assert_eq!(judged.unwrap(), "healthy: running, 1 worker");
        }
        let soon = place(ChildState::Vacant, NOW, Some(NOW + LONG_WAIT - 1));
        assert!(judged(&[soon]).is_ok());
    }

    #[test]
    fn a_place_without_a_worker_is_named_with_its_fault() {
        for (place, expected) in [
            (
                place(ChildState::Vacant, NOW - 5_100, None),
                "Worker-2 has had no process for 5.1 s",
            ),
            (
                place(ChildState::Vacant, NOW - 200, Some(NOW + 800)),
                "Worker-2 keeps dying (3 times so far), the next start is in 0.8 s",
            ),
            (
                place(ChildState::Refused, NOW, None),
                "Worker-2 refuses its configuration",
            ),
            (None, "Worker-2 has no process"),
        ] {
            let good = super::tests::place(ChildState::Ready, 0, None);
            assert_eq!(judged(&[good, place]), Err(vec![expected.to_owned()]));
        }
    }

    #[test]
    fn a_place_that_was_at_fault_is_so_until_a_worker_has_lasted() {
        let mut health = HealthCheck::default();
        let mut judge = |state, since, retry| {
            let places = [place(state, since, retry)];
            health
                .judge(&snapshot(DaemonPhase::Running, 1, &places), BEAT)
                .is_ok()
        };
        assert!(judge(ChildState::Starting, NOW, None));
        assert!(!judge(ChildState::Vacant, NOW, Some(NOW + LONG_WAIT)));
        assert!(!judge(ChildState::Starting, NOW, None));
        assert!(!judge(ChildState::Ready, NOW - GRACE + 1, None));
        assert!(judge(ChildState::Ready, NOW - GRACE, None));
        assert!(judge(ChildState::Starting, NOW, None));
    }

    #[test]
    fn a_daemon_that_stops_is_healthy_and_one_whose_supervisor_hangs_is_not() {
        let mut stopping = snapshot(DaemonPhase::Stopping, 2, &[None, None]);
        assert!(HealthCheck::default().judge(&stopping, BEAT).is_ok());
        stopping.header.beat = NOW - 30_001;
        let faults = HealthCheck::default().judge(&stopping, BEAT).unwrap_err();
        let expected = "the supervisor (PID 4711) has not shown itself for 30 s";
        assert_eq!(faults, [expected]);
    }

    #[test]
    fn a_daemon_that_has_just_started_or_was_scaled_down_is_healthy() {
        let mut young = snapshot(DaemonPhase::Starting, 2, &[]);
        young.header.started = NOW - GRACE;
        assert!(HealthCheck::default().judge(&young, BEAT).is_ok());
        let scaled = [place(ChildState::Ready, 0, None), None];
        let scaled = snapshot(DaemonPhase::Running, 1, &scaled);
        assert!(HealthCheck::default().judge(&scaled, BEAT).is_ok());
    }

    #[test]
    fn it_is_ready_when_it_waits_for_nothing() {
        for phase in [DaemonPhase::Running, DaemonPhase::Reloading] {
            let judged = readiness(Some(phase), &[], &[], Ok(()), true);
            assert_eq!(judged.unwrap(), "ready");
        }
        let pause = |by: &str, since: &str| Pause {
            kind: "list",
            name: "a\nb".to_owned(),
            since: since.to_owned(),
            by: by.to_owned(),
        };
        let paused = [
            pause("root@db3", "2026-01-02T03:04:05.000006Z"),
            pause("", "2026-01-02T03:04:05Z"),
            pause("", ""),
        ];
        let judged = readiness(Some(DaemonPhase::Running), &[], &paused, Ok(()), true);
        assert_eq!(
            judged.unwrap(),
            "ready\npaused: list a\\nb (by root@db3 since 2026-01-02T03:04:05Z)\n\
             paused: list a\\nb (since 2026-01-02T03:04:05Z)\npaused: list a\\nb"
        );
    }

    #[test]
    fn everything_it_waits_for_is_told() {
        let hold = Hold {
            stage: "storage pg".to_owned(),
            chains: vec!["main".to_owned(), "spare".to_owned()],
            workers: vec![1],
            seconds: 3,
            last: LastError {
                error: Some("connection refused".to_owned()),
                error_seconds: Some(2),
                next_try_seconds: Some(1),
            },
            denied: false,
            failing: false,
        };
        let list = Hold {
            stage: "list done".to_owned(),
            chains: vec![],
            last: LastError::default(),
            ..hold.clone()
        };
        let since = since(3.0);
        let waits = readiness(
            Some(DaemonPhase::Starting),
            &[hold, list],
            &[],
            Err("Redis is away"),
            true,
        );
        let expected = [
            "the daemon is starting",
            "Redis is away",
            &format!(
                "storage pg is unavailable ({since}): connection refused; next try in 1 s; \
                 chains on hold: main, spare"
            ),
            &format!("list done is not a list ({since}); chains on hold"),
        ];
        assert_eq!(waits.unwrap_err(), expected);
        let waits = readiness(Some(DaemonPhase::Running), &[], &[], Ok(()), false).unwrap_err();
        assert!(waits[0].contains("cannot show there"), "{waits:?}");
        assert!(readiness(Some(DaemonPhase::Stopping), &[], &[], Ok(()), true).is_err());
        assert!(readiness(None, &[], &[], Ok(()), true).is_err());
    }
}
