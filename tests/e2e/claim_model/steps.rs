//! Claims, and the ways to let go of them, taken by the crate's own queue.

use conserver::config::ListName;
use conserver::queue::{Claimed, Evidence, Finish, Finished, QueueError, Reason, Released};
use conserver::vcon::VconId;

use super::faults::Fault;
use super::server::{Answer, How, Server, refused};
use super::store::{Index, Run};

impl Server {
    pub(super) fn claimed(&self, claimed: Result<Claimed, QueueError>) -> Result<Answer, String> {
        match claimed {
            Ok(claimed) => Ok(match claimed.work {
                Some((claim, _)) => {
                    let entry = String::from_utf8_lossy(&claim.entry);
                    Answer::Claimed(self.contents.vcon(&entry)?)
                }
                None => Answer::Done,
            }),
            Err(error) => refused(&error),
        }
    }

    pub(super) fn finish_and_claim(
        &mut self,
        daemon: Index,
        worker: Index,
        vcon: Index,
    ) -> Result<Answer, String> {
        let [claim, _] = &self.claims[&(self.names.of(daemon), worker, vcon, Run::Last(daemon))];
        let finish = finish(&self.ids[vcon], &self.egress);
        let queue = &mut self.queues[daemon][worker + 1];
        match queue.finish_and_claim(claim, &finish, &self.ingress) {
            Ok((Finished::Done, Some(claimed))) => self.claimed(claimed),
            other => Err(format!("finish and claim answers {other:?}")),
        }
    }

    pub(super) fn settle(
        &mut self,
        (daemon, worker, vcon): (Index, Index, Index),
        how: How,
        own: bool,
    ) -> Result<Answer, String> {
        let claims = &self.claims[&(self.names.of(daemon), worker, vcon, Run::Last(daemon))];
        let claim = &claims[usize::from(!own)];
        let queue = &mut self.queues[daemon][worker + 1];
        let released = match how {
            How::Finish if self.fault == Some(Fault::FinishUnguarded) => {
                self.finish_unguarded(daemon, worker, vcon);
                return Ok(Answer::Done);
            }
            How::Finish => {
                let finished = queue.finish(claim, &finish(&self.ids[vcon], &self.egress));
                finished.map(|finished| match finished {
                    Finished::Done => Released::Done,
                    Finished::NotOurs => Released::NotOurs,
                    other => Released::Refused(format!("{other:?}")),
                })
            }
            How::GiveBack => queue.release(claim, None),
            How::Postpone => queue.postpone(claim, &Evidence::NONE, 0, "", None),
            How::Bury => {
                let reason = Reason {
                    stage: "link",
                    error: "it failed",
                    attempts: 1,
                    worker: "Worker-1",
                };
                queue.dead_letter(claim, &reason, None)
            }
        };
        let expected = if own {
            Released::Done
        } else {
            Released::NotOurs
        };
        match released {
            Ok(released) if released == expected => Ok(Answer::Done),
            other => Err(format!("{how:?} with own = {own} answers {other:?}")),
        }
    }
}

fn finish<'a>(id: &'a VconId, egress: &'a [ListName]) -> Finish<'a> {
    Finish {
        id,
        document: None,
        expire: None,
        egress,
        routes: &[],
        context: None,
        failed_storages: &[],
    }
}
