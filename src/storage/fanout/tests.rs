//! Saving to fake storages, at once and one after the other.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ThreadId;

use super::*;
use crate::vcon::{VconId, Version};

/// A backend whose save is the given function.
struct Fake<F>(F);

impl<F: FnMut(&Outgoing, Deadline) -> Result<(), Failure> + Send> Storage for Fake<F> {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        (self.0)(vcon, deadline)
    }
    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }
    fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
        Ok(())
    }
    fn longest_call(&self) -> Duration {
        Duration::ZERO
    }
    fn probe(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

fn vcon() -> Leaving {
    let in_version = |version| {
        Arc::new(Outgoing {
            id: VconId::random(),
            json: "{}".to_owned().into(),
            version,
            created_at: None,
            stand_in: std::sync::OnceLock::new(),
            formerly: None,
            subject: None,
        })
    };
    Leaving {
        current: in_version(Version::Current),
        older: in_version(Version::V0_0_1),
    }
}

fn backend(
    name: &str,
    mut save: impl FnMut(&Outgoing) -> Result<(), Failure> + Send + 'static,
) -> Backend {
    timed_backend(name, move |vcon, _| save(vcon))
}

/// One that is told the deadline.
fn timed_backend(
    name: &str,
    save: impl FnMut(&Outgoing, Deadline) -> Result<(), Failure> + Send + 'static,
) -> Backend {
    Backend {
        name: name.into(),
        storage: Box::new(Fake(save)),
        is_downgraded: false,
    }
}

#[test]
fn each_gets_the_version_that_is_its_own() {
    for parallel in [true, false] {
        let (seen, versions) = std::sync::mpsc::channel();
        let backends = [("old", true), ("new", false), ("old too", true)].map(|(name, is_old)| {
            let seen = seen.clone();
            let told = name.to_owned();
            let tell = move |vcon: &Outgoing| {
                seen.send((told.clone(), vcon.version)).unwrap();
                Ok(())
            };
            Backend {
                is_downgraded: is_old,
                ..backend(name, tell)
            }
        });
        thread::scope(|scope| {
            let mut crew = Crew::new(scope);
            crew.save_all(backends.into(), &vcon(), Deadline::NONE, parallel)
        });
        let mut versions: Vec<(String, Version)> = versions.try_iter().collect();
        versions.sort_by(|one, other| one.0.cmp(&other.0));
        let expected = [
            ("new", Version::Current),
            ("old", Version::V0_0_1),
            ("old too", Version::V0_0_1),
        ];
        let expected = expected.map(|(name, version)| (name.to_owned(), version));
        assert_eq!(versions, expected);
    }
}

/// A backend that tells on which thread it saves.
fn told(name: &str, on: &SyncSender<ThreadId>, takes: Duration) -> Backend {
    let on = on.clone();
    backend(name, move |_| {
        thread::sleep(takes);
        let _ = on.send(thread::current().id());
        Ok(())
    })
}

fn lent_again(outcomes: Vec<Outcome>) -> Vec<Backend> {
    let lent = |Outcome { name, storage, .. }| Backend {
        name,
        storage: storage.unwrap(),
        is_downgraded: false,
    };
    outcomes.into_iter().map(lent).collect()
}

#[test]
fn in_parallel_no_backend_waits_for_another() {
    // Each ends only after it has heard from the other, so that one after the other would
    // fail here.
    let meet = |own: SyncSender<()>, other: Receiver<()>| {
        move |_: &Outgoing| {
            let _ = own.send(());
            other
                .recv_timeout(Duration::from_secs(10))
                .map_err(|_| Failure::permanent("alone"))
        }
    };
    let (to_a, from_b) = sync_channel(1);
    let (to_b, from_a) = sync_channel(1);
    let backends = vec![
        backend("a", meet(to_b, from_b)),
        backend("b", meet(to_a, from_a)),
    ];
    thread::scope(|scope| {
        for outcome in Crew::new(scope).save_all(backends, &vcon(), Deadline::NONE, true) {
            assert_eq!(outcome.result, Ok(()), "{}", outcome.name);
        }
    });
}

#[test]
fn one_runs_on_the_callers_thread_and_inline_all_do() {
    for (parallel, count) in [(true, 1), (true, 3), (false, 3)] {
        let (on, threads) = sync_channel(3);
        let backends: Vec<_> = ["a", "b", "c"][..count]
            .iter()
            .map(|name| told(name, &on, Duration::ZERO))
            .collect();
        thread::scope(|scope| {
            let outcomes = Crew::new(scope).save_all(backends, &vcon(), Deadline::NONE, parallel);
            assert_eq!(outcomes.len(), count);
        });
        let here = thread::current().id();
        let here = threads.try_iter().filter(|id| *id == here).count();
        assert_eq!(here, if parallel { 1 } else { count });
    }
}

#[test]
fn threads_are_kept_and_the_slowest_has_the_callers() {
    let (on_a, a) = sync_channel(3);
    let (on_b, b) = sync_channel(3);
    let backends = vec![
        told("a", &on_a, Duration::ZERO),
        told("b", &on_b, Duration::from_millis(200)),
    ];
    thread::scope(|scope| {
        let mut crew = Crew::new(scope);
        let mut backends = backends;
        for _ in 0..3 {
            backends = lent_again(crew.save_all(backends, &vcon(), Deadline::NONE, true));
        }
    });
    let here = thread::current().id();
    let a: Vec<ThreadId> = a.try_iter().collect();
    let b: Vec<ThreadId> = b.try_iter().collect();
    assert!(a[0] == here && a[1] != here && a[1] == a[2]);
    assert!(b[0] != here && b[1] == here && b[2] == here);
}

#[test]
fn a_thread_that_has_ended_is_replaced() {
    let (on, threads) = sync_channel(4);
    let backends = ["a", "b"].map(|name| told(name, &on, Duration::ZERO));
    thread::scope(|scope| {
        let mut crew = Crew::new(scope);
        let outcomes = crew.save_all(backends.into(), &vcon(), Deadline::NONE, true);
        // As if they had been idle for too long.
        for member in crew.members.values_mut() {
            *member = bounded(0).0;
        }
        crew.slowest = None;
        let outcomes = crew.save_all(lent_again(outcomes), &vcon(), Deadline::NONE, true);
        assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
    });
    assert_eq!(threads.try_iter().count(), 4);
}

#[test]
fn failures_and_panics_stay_with_their_backend_and_in_order() {
    for parallel in [true, false] {
        let backends = vec![
            backend("first", |_| panic!("at {}", 1)),
            backend("second", |_| {
                thread::sleep(Duration::from_millis(30));
                Ok(())
            }),
            backend("third", |_| Err(Failure::transient("away"))),
            backend("fourth", |_| panic!("bare")),
        ];
        let outcomes = thread::scope(|scope| {
            Crew::new(scope).save_all(backends, &vcon(), Deadline::NONE, parallel)
        });
        let seen: Vec<_> = outcomes
            .iter()
            .map(|o| (&*o.name, o.result.clone(), o.storage.is_none()))
            .collect();
        let panicked = |text| Err(Failure::refused(text));
        assert_eq!(
            seen,
            [
                ("first", panicked("storage first panicked: at 1"), true),
                ("second", Ok(()), false),
                ("third", Err(Failure::transient("away")), false),
                ("fourth", panicked("storage fourth panicked: bare"), true),
            ]
        );
        assert!(outcomes[1].took >= Duration::from_millis(30));
        assert!(outcomes[2].took < Duration::from_millis(30));
    }
}

#[test]
fn no_backends_no_outcomes() {
    thread::scope(|scope| {
        assert!(
            Crew::new(scope)
                .save_all(Vec::new(), &vcon(), Deadline::NONE, true)
                .is_empty()
        );
    });
}

#[test]
fn threads_are_named_after_their_backend() {
    assert_eq!(thread_name("pg"), "store-pg");
    assert_eq!(thread_name("elasticsearch"), "store-elasticse");
    assert_eq!(thread_name("ÄÖÜäöü"), "store-ÄÖÜä");
    assert_eq!(thread_name("a\0b"), "store-ab");
}

#[test]
fn every_backend_is_told_the_deadline() {
    let deadline = Deadline::after(Some(Duration::from_secs(60)));
    for parallel in [false, true] {
        let (tell, told) = sync_channel(2);
        let backend = |name: &str| {
            let tell = tell.clone();
            timed_backend(name, move |_, deadline| {
                let told = tell.send(deadline);
                told.map_err(|e| Failure::permanent(e.to_string()))
            })
        };
        let backends = vec![backend("a"), backend("b")];
        thread::scope(|scope| Crew::new(scope).save_all(backends, &vcon(), deadline, parallel));
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), [deadline; 2]);
    }
}
