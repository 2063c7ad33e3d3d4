//! What the processes believe, and what can happen next.
//!
//! Where it makes the graph smaller, more is allowed than can happen. A lease may run out at any
//! time: a daemon that does nothing for a while is one that is frozen, or cut off. A monitor tries
//! to return the other's claims at any time: it may have looked long ago. Any worker may believe
//! in any claim that is gone: its answer was lost, or others took the claim.

use super::explore::{Graph, Model};
use super::server::{Answer, Call, How, Server};
use super::store::{Index, Run, Store};

/// Under which names the two daemons run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Each under its own, on one host.
    Two,
    /// Both under the same, on two hosts: one must stand back.
    One,
}

impl Names {
    pub fn of(self, daemon: Index) -> Index {
        match self {
            Self::Two => daemon,
            Self::One => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Worker {
    /// Its process is gone, and its successor has not begun.
    Dead,
    /// It knows of no claim, or believes in one that is gone.
    Idle,
    /// It works on a vCon whose claim it believes in, and is right.
    Holds(Index),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Daemon {
    pub is_up: bool,
    pub workers: [Worker; 2],
}

const DOWN: Daemon = Daemon {
    is_up: false,
    workers: [Worker::Dead; 2],
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct World {
    pub store: Store,
    pub daemons: [Daemon; 2],
    pub submitted: [bool; 2],
}

/// Something that can happen: to nobody, to a daemon, or to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Submit(Index),
    Expire(Index),
    Start(Index),
    DaemonDies(Index),
    Look(Index),
    RecoverOther(Index),
    Claim(Index, Index),
    /// The server has taken the claim, and the worker does not know.
    ClaimLost(Index, Index),
    /// The last request of the run before arrives now.
    ClaimLate(Index, Index),
    Settle(Index, Index, How),
    /// A finish and the next claim in one request. Where its answer is lost, or that to its second
    /// half, it leads to what [`Action::Settle`] and [`Action::ClaimLost`] lead to.
    FinishAndClaim(Index, Index),
    WorkerDies(Index, Index),
    Replace(Index, Index),
}

impl Action {
    /// Whose doing it is; nothing where it is nobody's.
    pub fn actor(self) -> Option<Index> {
        match self {
            Self::Submit(_) | Self::Expire(_) => None,
            Self::Start(daemon)
            | Self::DaemonDies(daemon)
            | Self::Look(daemon)
            | Self::RecoverOther(daemon)
            | Self::Claim(daemon, _)
            | Self::ClaimLost(daemon, _)
            | Self::ClaimLate(daemon, _)
            | Self::Settle(daemon, ..)
            | Self::FinishAndClaim(daemon, _)
            | Self::WorkerDies(daemon, _)
            | Self::Replace(daemon, _) => Some(daemon),
        }
    }

    /// Whether it belongs to a run in which nothing goes wrong any more.
    pub fn is_quiet(self) -> bool {
        match self {
            Self::Submit(_)
            | Self::Expire(_)
            | Self::Start(_)
            | Self::Look(_)
            | Self::RecoverOther(_)
            | Self::Claim(..)
            | Self::Settle(_, _, How::Finish)
            | Self::FinishAndClaim(..)
            | Self::Replace(..) => true,
            Self::DaemonDies(_)
            | Self::ClaimLost(..)
            | Self::ClaimLate(..)
            | Self::Settle(..)
            | Self::WorkerDies(..) => false,
        }
    }
}

impl World {
    /// Nothing runs, and one vCon was handed in.
    pub const START: Self = Self {
        store: Store {
            list: [Some(0), None],
            ..Store::EMPTY
        },
        daemons: [DOWN; 2],
        submitted: [true, false],
    };

    /// Everything that can happen now.
    pub fn actions(&self, names: Names) -> Vec<Action> {
        let mut actions = Vec::with_capacity(24);
        for index in 0..2 {
            if !self.submitted[index] {
                actions.push(Action::Submit(index));
            }
            if self.store.leases[index].is_some() {
                actions.push(Action::Expire(index));
            }
            if !self.daemons[index].is_up {
                actions.push(Action::Start(index));
                continue;
            }
            actions.extend([Action::DaemonDies(index), Action::Look(index)]);
            if names == Names::Two {
                actions.push(Action::RecoverOther(index));
            }
            for worker in 0..2 {
                actions.push(Action::ClaimLate(index, worker));
                self.actions_of_worker(index, worker, &mut actions);
            }
        }
        actions
    }

    fn actions_of_worker(&self, daemon: Index, worker: Index, actions: &mut Vec<Action>) {
        match self.daemons[daemon].workers[worker] {
            Worker::Dead => return actions.push(Action::Replace(daemon, worker)),
            Worker::Idle => actions.extend([
                Action::Claim(daemon, worker),
                Action::ClaimLost(daemon, worker),
            ]),
            Worker::Holds(_) => {
                actions.extend(How::ALL.map(|how| Action::Settle(daemon, worker, how)));
                actions.push(Action::FinishAndClaim(daemon, worker));
            }
        }
        actions.push(Action::WorkerDies(daemon, worker));
    }

    /// What is after the action, or what it did that must not be.
    pub fn after(&self, action: Action, server: &mut Server) -> Result<Self, String> {
        let names = server.names();
        let mut next = *self;
        let mut take = |call: Call| -> Result<Answer, String> {
            let (store, answer) = server.take(next.store, call)?;
            next.store = store;
            Ok(answer)
        };
        match action {
            Action::Submit(vcon) => {
                next.submitted[vcon] = true;
                next.store.submit(vcon);
            }
            Action::Expire(name) => next.store.leases[name] = None,
            Action::Start(daemon) => {
                next.daemons[daemon].is_up = true;
                next.store.start(daemon);
            }
            Action::DaemonDies(daemon) => next.daemons[daemon] = DOWN,
            Action::Look(daemon) => {
                if take(Call::Look(daemon))? == Answer::Refused {
                    next.daemons[daemon] = DOWN;
                }
            }
            Action::RecoverOther(daemon) => drop(take(Call::RecoverOther(daemon))?),
            Action::Claim(daemon, worker) => {
                if let Answer::Claimed(vcon) = take(Call::Claim(daemon, worker))? {
                    next.daemons[daemon].workers[worker] = Worker::Holds(vcon);
                }
            }
            Action::ClaimLost(daemon, worker) => drop(take(Call::ClaimUnheard(daemon, worker))?),
            Action::ClaimLate(daemon, worker) => drop(take(Call::ClaimLate(daemon, worker))?),
            Action::Settle(daemon, worker, how) => {
                if let Worker::Holds(vcon) = self.daemons[daemon].workers[worker] {
                    take(Call::Settle(daemon, worker, vcon, how))?;
                }
                next.daemons[daemon].workers[worker] = Worker::Idle;
            }
            Action::FinishAndClaim(daemon, worker) => {
                let mut then = Worker::Idle;
                if let Worker::Holds(vcon) = self.daemons[daemon].workers[worker] {
                    let call = Call::FinishAndClaim(daemon, worker, vcon);
                    if let Answer::Claimed(vcon) = take(call)? {
                        then = Worker::Holds(vcon);
                    }
                }
                next.daemons[daemon].workers[worker] = then;
            }
            Action::WorkerDies(daemon, worker) => {
                next.daemons[daemon].workers[worker] = Worker::Dead;
            }
            Action::Replace(daemon, worker) => {
                if take(Call::Recover(daemon, worker))? != Answer::Refused {
                    next.daemons[daemon].workers[worker] = Worker::Idle;
                }
            }
        }
        next.learn(self, action, names)?;
        next.check()?;
        Ok(next)
    }

    /// Has the workers whose claim is gone hold nothing.
    fn learn(&mut self, before: &Self, action: Action, names: Names) -> Result<(), String> {
        for daemon in 0..2 {
            let name = names.of(daemon);
            for worker in 0..2 {
                let belief = &mut self.daemons[daemon].workers[worker];
                let Worker::Holds(vcon) = *belief else {
                    continue;
                };
                let claimed = self.store.claims[name][worker];
                if claimed == Some((vcon, Run::Last(daemon))) {
                    continue;
                }
                *belief = Worker::Idle;
                if before.store.leases[name] == Some(Run::Last(daemon)) {
                    return Err(format!(
                        "{action:?} takes vCon {vcon} from worker {worker} of daemon {daemon}, which holds its name"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        for vcon in 0..2 {
            let places = self.store.places(vcon);
            if places != usize::from(self.submitted[vcon]) {
                return Err(format!("vCon {vcon} is in {places} places"));
            }
        }
        Ok(())
    }

    /// The daemon whose lease runs out by the action, where it is that of its last run.
    pub fn loser_of_lease(&self, action: Action) -> Option<Index> {
        match action {
            Action::Expire(name) => match self.store.leases[name] {
                Some(Run::Last(daemon)) => Some(daemon),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether everything is done that is to be done.
    pub fn is_over(&self) -> bool {
        let done = |vcon: Index| self.store.finished[vcon] + self.store.buried[vcon] == 1;
        done(0) && done(1)
    }

    /// The same state, whatever its vCons and workers are called.
    pub fn canonical(mut self, names: Names) -> Self {
        if names == Names::Two {
            self.forget_deaths_without_claims();
        }
        let mut swapped = self;
        swapped.swap_vcons();
        self.sort_workers(names);
        swapped.sort_workers(names);
        self.min(swapped)
    }

    /// Puts the workers of each name in an order that depends on what they do alone.
    fn sort_workers(&mut self, names: Names) {
        for name in 0..2 {
            let what_it_does = |worker: Index| {
                let of_daemon = |daemon: Index| {
                    (names.of(daemon) == name).then_some(self.daemons[daemon].workers[worker])
                };
                let (claims, workers) = (&self.store.claims[name], &self.store.workers[name]);
                (claims[worker], workers[worker], of_daemon(0), of_daemon(1))
            };
            if what_it_does(1) < what_it_does(0) {
                self.swap_workers(name, names);
            }
        }
    }

    /// A dead worker that left nothing behind is replaced by one that has nothing to do first.
    fn forget_deaths_without_claims(&mut self) {
        for (daemon, claims) in self.daemons.iter_mut().zip(&self.store.claims) {
            for (worker, claim) in daemon.workers.iter_mut().zip(claims) {
                if daemon.is_up && *worker == Worker::Dead && claim.is_none() {
                    *worker = Worker::Idle;
                }
            }
        }
    }

    fn swap_workers(&mut self, name: Index, names: Names) {
        self.store.swap_workers(name);
        for daemon in 0..2 {
            if names.of(daemon) == name {
                self.daemons[daemon].workers.swap(0, 1);
            }
        }
    }

    fn swap_vcons(&mut self) {
        self.store.swap_vcons();
        self.submitted.swap(0, 1);
        for worker in self
            .daemons
            .iter_mut()
            .flat_map(|daemon| &mut daemon.workers)
        {
            if let Worker::Holds(vcon) = worker {
                *vcon = 1 - *vcon;
            }
        }
    }
}

impl Model for Server {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        World::START
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        world.actions(self.names())
    }

    fn after(&mut self, world: &World, action: Action) -> Result<World, String> {
        Ok(world.after(action, self)?.canonical(self.names()))
    }

    fn is_quiet(&self, action: Action) -> bool {
        action.is_quiet()
    }

    fn is_over(&self, world: &World) -> bool {
        world.is_over()
    }
}

/// Fails unless from every state the work comes to an end, also without one of the daemons. Without a
/// mishap no lease runs out whose daemon is there to renew it. Workers and vCons may change their names
/// under way.
pub fn comes_to_an_end(graph: &Graph<Server>, server: &Server) -> Result<(), String> {
    for gone in [None, Some(0), Some(1)] {
        let is_possible = |world: &World, action: Action| match world.loser_of_lease(action) {
            Some(loser) => gone == Some(loser) || !world.daemons[loser].is_up,
            None => gone.is_none() || action.actor() != gone,
        };
        graph.comes_to_an_end(server, &format!("daemon {gone:?}"), is_possible)?;
    }
    Ok(())
}
