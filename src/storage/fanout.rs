//! Saving one vCon to every storage of its chain, at once or one after the other.
//!
//! All outcomes are collected, in the chain's order. A backend that fails or panics never cuts
//! another short.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use super::Storage;
use crate::failure::Failure;
use crate::vcon::Outgoing;

/// One of the chain's storages, as its lane holds it.
pub struct Backend<'a> {
    /// Its name in `config.yml`.
    pub name: &'a str,
    /// The lane's own backend.
    pub storage: &'a mut dyn Storage,
}

/// What became of a vCon at one storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The storage's name in `config.yml`.
    pub name: &'a str,
    /// Whether the vCon is stored.
    pub result: Result<(), Failure>,
    /// How long it took.
    pub took: Duration,
    /// The backend panicked: its state is unknown, and it must be dropped and opened anew.
    pub panicked: bool,
}

/// Saves the vCon to every backend and returns their outcomes in the same order.
///
/// With `parallel`, each backend but the first has a thread of its own, for as long as the save
/// takes; the first has the caller's. The call ends with the slowest.
pub fn save_all<'a>(
    backends: Vec<Backend<'a>>,
    vcon: &Outgoing,
    parallel: bool,
) -> Vec<Outcome<'a>> {
    let mut slots: Vec<(Backend<'a>, Option<Outcome<'a>>)> =
        backends.into_iter().map(|b| (b, None)).collect();
    if parallel
        && slots.len() > 1
        && let Some(((backend, outcome), others)) = slots.split_first_mut()
    {
        thread::scope(|scope| {
            for (backend, outcome) in others {
                // Where the system has no thread to give, the slot stays empty and is filled
                // below.
                let _ = thread::Builder::new()
                    .name(thread_name(backend.name))
                    .spawn_scoped(scope, || *outcome = Some(save(backend, vcon)));
            }
            *outcome = Some(save(backend, vcon));
        });
    }
    slots
        .into_iter()
        .map(|(mut backend, outcome)| outcome.unwrap_or_else(|| save(&mut backend, vcon)))
        .collect()
}

fn save<'a>(backend: &mut Backend<'a>, vcon: &Outgoing) -> Outcome<'a> {
    let name = backend.name;
    let start = Instant::now();
    // What the panic left behind is not looked at again: the lane opens the backend anew.
    let caught = panic::catch_unwind(AssertUnwindSafe(|| backend.storage.save(vcon)));
    let took = start.elapsed();
    let panicked = caught.is_err();
    let result = caught.unwrap_or_else(|payload| {
        Err(Failure::permanent(format!(
            "storage {name} panicked: {}",
            panic_message(payload.as_ref())
        )))
    });
    Outcome {
        name,
        result,
        took,
        panicked,
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// A name of at most 15 bytes, as Linux shows it, and without NUL, as `Builder::name` asks.
fn thread_name(backend: &str) -> String {
    let mut name = format!("store-{backend}").replace('\0', "");
    while name.len() > 15 {
        name.pop();
    }
    name
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread::ThreadId;

    use super::*;
    use crate::vcon::{VconId, Version};

    /// A backend whose save is the given function.
    struct Fake<F>(F);

    impl<F: FnMut(&Outgoing) -> Result<(), Failure> + Send> Storage for Fake<F> {
        fn save(&mut self, vcon: &Outgoing) -> Result<(), Failure> {
            (self.0)(vcon)
        }
        fn get(&mut self, _: &VconId) -> Result<Option<String>, Failure> {
            Ok(None)
        }
        fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
            Ok(())
        }
        fn probe(&mut self) -> Result<(), Failure> {
            Ok(())
        }
    }

    fn vcon() -> Outgoing {
        Outgoing {
            id: VconId::random(),
            json: "{}".to_owned().into(),
            version: Version::Current,
            created_at: None,
            stand_in: std::sync::OnceLock::new(),
            subject: None,
        }
    }

    fn backend<'a>(name: &'a str, storage: &'a mut dyn Storage) -> Backend<'a> {
        Backend { name, storage }
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
        let mut a = Fake(meet(to_b, from_b));
        let mut b = Fake(meet(to_a, from_a));
        let backends = vec![backend("a", &mut a), backend("b", &mut b)];
        for outcome in save_all(backends, &vcon(), true) {
            assert_eq!(outcome.result, Ok(()), "{}", outcome.name);
        }
    }

    #[test]
    fn the_first_runs_on_the_callers_thread_and_inline_all_do() {
        for (parallel, count) in [(true, 1), (true, 3), (false, 3)] {
            let mut seen: [Option<ThreadId>; 3] = [None; 3];
            let mut fakes: Vec<_> = seen
                .iter_mut()
                .take(count)
                .map(|at| {
                    Fake(move |_: &Outgoing| {
                        *at = Some(thread::current().id());
                        Ok(())
                    })
                })
                .collect();
            let backends = fakes.iter_mut().map(|fake| backend("b", fake)).collect();
            assert_eq!(save_all(backends, &vcon(), parallel).len(), count);
            drop(fakes);
            let here = Some(thread::current().id());
            assert_eq!(seen[0], here);
            for other in &seen[1..count] {
                assert!(other.is_some());
                assert_eq!(*other != here, parallel);
            }
        }
    }

    #[test]
    fn failures_and_panics_stay_with_their_backend_and_in_order() {
        for parallel in [true, false] {
            let mut first = Fake(|_: &Outgoing| -> Result<(), Failure> { panic!("at {}", 1) });
            let mut second = Fake(|_: &Outgoing| {
                thread::sleep(Duration::from_millis(30));
                Ok(())
            });
            let mut third = Fake(|_: &Outgoing| Err(Failure::transient("away")));
            let mut fourth = Fake(|_: &Outgoing| -> Result<(), Failure> { panic!("bare") });
            let backends = vec![
                backend("first", &mut first),
                backend("second", &mut second),
                backend("third", &mut third),
                backend("fourth", &mut fourth),
            ];
            let outcomes = save_all(backends, &vcon(), parallel);
            let seen: Vec<_> = outcomes
                .iter()
                .map(|o| (o.name, o.result.clone(), o.panicked))
                .collect();
            let panicked = |text| Err(Failure::permanent(text));
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
        assert_eq!(save_all(Vec::new(), &vcon(), true), []);
    }

    #[test]
    fn threads_are_named_after_their_backend() {
        assert_eq!(thread_name("pg"), "store-pg");
        assert_eq!(thread_name("elasticsearch"), "store-elasticse");
        assert_eq!(thread_name("ÄÖÜäöü"), "store-ÄÖÜä");
        assert_eq!(thread_name("a\0b"), "store-ab");
    }
}
