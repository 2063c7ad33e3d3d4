//! The storages of a case, one after the other or all at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::{Keeper, Taken};

/// vCons that are to be saved together.
type Job = Arc<Vec<Taken>>;

/// Keepers of one connection.
pub struct Keepers {
    /// Those that keep on the thread of the connection, one after the other.
    ours: Vec<Box<dyn Keeper>>,
    /// Those that keep beside it.
    others: Vec<Other>,
}

/// A keeper on a thread of its own, which ends with its channel.
struct Other {
    jobs: SyncSender<Job>,
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Keepers {
    /// At once, the last has the thread of the connection.
    pub fn new(mut keepers: Vec<Box<dyn Keeper>>, at_once: bool) -> Self {
        let ours = if at_once {
            keepers.pop().into_iter().collect()
        } else {
            std::mem::take(&mut keepers)
        };
        Self {
            ours,
            others: keepers.into_iter().map(Other::start).collect(),
        }
    }

    pub fn keep(&mut self, vcons: &Job) {
        for other in &self.others {
            other.jobs.send(Arc::clone(vcons)).expect("a keeper");
        }
        for keeper in &mut self.ours {
            keeper.keep(vcons);
        }
        for other in &self.others {
            other.done.recv().expect("a keeper");
        }
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        // What is measured next has the servers for itself.
        for Other { jobs, thread, .. } in self.others.drain(..) {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

impl Other {
    fn start(mut keeper: Box<dyn Keeper>) -> Self {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (tell, done) = sync_channel(1);
        let thread = thread::spawn(move || {
            while let Ok(vcons) = todo.recv() {
                keeper.keep(&vcons);
                if tell.send(()).is_err() {
                    break;
                }
            }
        });
        Self { jobs, done, thread }
    }
}
