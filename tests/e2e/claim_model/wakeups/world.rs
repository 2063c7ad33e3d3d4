//! What lanes and the monitor are at, and what may happen.

use super::super::explore::Model;
use super::server::{Answer, Call, Server};

/// One of two workers with one lane each.
pub type Index = usize;

/// How many vCons are handed in.
const VCONS: u8 = 3;

/// Lanes, of all workers together.
pub const LANES: u8 = 2;

/// What is in Redis, as far as it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Store {
    /// Entries of the ingress list.
    pub waiting: u8,
    /// Entries of the wake list.
    pub tokens: u8,
    /// Whether each lane has a claim.
    pub claims: [bool; 2],
    /// Entries of the egress list.
    pub done: u8,
    /// Whether the daemon holds its name.
    pub lease: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Lane {
    /// Its worker is gone.
    Dead,
    /// It is about to ask for work.
    Asks,
    /// It has found nothing, and waits for a token.
    Waits,
    Works,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Monitor {
    Down,
    Up {
        /// Whether entries waited when it last looked.
        has_seen_work: bool,
        told: Told,
    },
}

/// What the monitor hears of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Told {
    /// Nothing, which it knows.
    Nothing,
    /// There was no change since its last look.
    NoChange,
    /// There was one.
    Change,
    /// Nothing, which it does not know yet.
    Deaf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    store: Store,
    lanes: [Lane; 2],
    monitor: Monitor,
    submitted: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Submit,
    /// The lane asks for work.
    Claim(Index),
    Finish(Index),
    Release(Index),
    /// The lane gets a token.
    Wake(Index),
    /// The server gives the lane a token that never comes.
    LoseToken(Index),
    /// The longest time that the lane waits is over.
    Tick(Index),
    Die(Index),
    Replace(Index),
    /// The monitor looks because it was told of a change, or begins to be told.
    Look,
    /// It looks although nothing has told it to.
    LookAgain,
    /// It misses what it is to be told at regular times.
    NoticeSilence,
    MonitorDies,
    MonitorStarts,
    /// The server tells the monitor nothing any more.
    FallSilent,
    Lapse,
    /// The monitor takes the lease again.
    Renew,
}

impl Action {
    pub fn is_of_monitor(self) -> bool {
        match self {
            Self::Look
            | Self::LookAgain
            | Self::NoticeSilence
            | Self::MonitorDies
            | Self::MonitorStarts
            | Self::FallSilent
            | Self::Renew => true,
            Self::Submit
            | Self::Claim(_)
            | Self::Finish(_)
            | Self::Release(_)
            | Self::Wake(_)
            | Self::LoseToken(_)
            | Self::Tick(_)
            | Self::Die(_)
            | Self::Replace(_)
            | Self::Lapse => false,
        }
    }
}

pub struct Wakeups {
    pub server: Server,
}

impl Model for Wakeups {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        State {
            store: Store {
                waiting: 0,
                tokens: 0,
                claims: [false; 2],
                done: 0,
                lease: true,
            },
            lanes: [Lane::Asks; 2],
            monitor: Monitor::Down,
            submitted: 0,
        }
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::with_capacity(16);
        if state.submitted < VCONS {
            actions.push(Action::Submit);
        }
        if state.store.lease {
            actions.push(Action::Lapse);
        }
        for lane in 0..2 {
            match state.lanes[lane] {
                Lane::Dead => {
                    actions.push(Action::Replace(lane));
                    continue;
                }
                Lane::Asks => actions.push(Action::Claim(lane)),
                Lane::Works => actions.extend([Action::Finish(lane), Action::Release(lane)]),
                Lane::Waits => {
                    actions.push(Action::Tick(lane));
                    if state.store.tokens > 0 {
                        actions.extend([Action::Wake(lane), Action::LoseToken(lane)]);
                    }
                }
            }
            actions.push(Action::Die(lane));
        }
        match state.monitor {
            Monitor::Down => actions.push(Action::MonitorStarts),
            Monitor::Up {
                has_seen_work,
                told,
            } => {
                actions.push(Action::MonitorDies);
                match told {
                    Told::Nothing | Told::Change => actions.push(Action::Look),
                    Told::NoChange => {}
                    Told::Deaf => actions.push(Action::NoticeSilence),
                }
                if told != Told::Nothing && told != Told::Deaf {
                    actions.push(Action::FallSilent);
                }
                if has_seen_work || told == Told::Nothing {
                    actions.push(Action::LookAgain);
                }
                if !state.store.lease {
                    actions.push(Action::Renew);
                }
            }
        }
        actions
    }

    fn after(&mut self, state: &State, action: Action) -> Result<State, String> {
        let mut next = *state;
        match action {
            Action::Submit => {
                next.submitted += 1;
                self.take(&mut next, Call::Submit)?;
            }
            Action::Claim(lane) => {
                next.lanes[lane] = match self.take(&mut next, Call::Claim(lane))? {
                    Answer::Claimed => Lane::Works,
                    Answer::Done => Lane::Waits,
                };
            }
            Action::Finish(lane) => {
                self.take(&mut next, Call::Finish(lane))?;
                next.lanes[lane] = Lane::Asks;
            }
            Action::Release(lane) => {
                self.take(&mut next, Call::Release(lane))?;
                next.lanes[lane] = Lane::Asks;
            }
            Action::Wake(lane) => {
                self.take(&mut next, Call::TakeToken(lane))?;
                next.lanes[lane] = Lane::Asks;
            }
            Action::LoseToken(lane) => drop(self.take(&mut next, Call::TakeToken(lane))?),
            Action::Tick(lane) => next.lanes[lane] = Lane::Asks,
            Action::Die(lane) => next.lanes[lane] = Lane::Dead,
            Action::Replace(lane) => {
                self.take(&mut next, Call::Recover(lane))?;
                next.lanes[lane] = Lane::Asks;
            }
            Action::Look => self.look(&mut next, Told::NoChange)?,
            Action::LookAgain => {
                if let Monitor::Up { told, .. } = state.monitor {
                    self.look(&mut next, told)?;
                }
            }
            Action::NoticeSilence => next.monitor.hears(Told::Nothing),
            Action::FallSilent => next.monitor.hears(Told::Deaf),
            Action::MonitorDies => next.monitor = Monitor::Down,
            Action::MonitorStarts => {
                next.monitor = Monitor::Up {
                    has_seen_work: false,
                    told: Told::Nothing,
                };
            }
            Action::Lapse => next.store.lease = false,
            Action::Renew => drop(self.take(&mut next, Call::Renew)?),
        }
        let was = (state.store.waiting, state.store.lease);
        if was != (next.store.waiting, next.store.lease)
            && let Monitor::Up { told, .. } = &mut next.monitor
            && *told == Told::NoChange
        {
            *told = Told::Change;
        }
        next.check()?;
        next.lanes_in_order();
        Ok(next)
    }

    fn is_quiet(&self, action: Action) -> bool {
        match action {
            Action::Submit
            | Action::Claim(_)
            | Action::Finish(_)
            | Action::Wake(_)
            | Action::Tick(_)
            | Action::Replace(_)
            | Action::Look
            | Action::LookAgain
            | Action::NoticeSilence
            | Action::MonitorStarts
            | Action::Renew => true,
            Action::Release(_)
            | Action::LoseToken(_)
            | Action::Die(_)
            | Action::MonitorDies
            | Action::FallSilent
            | Action::Lapse => false,
        }
    }

    fn is_over(&self, state: &State) -> bool {
        state.store.done == VCONS
    }
}

impl Wakeups {
    fn take(&mut self, state: &mut State, call: Call) -> Result<Answer, String> {
        let (store, answer) = self.server.take(state.store, call)?;
        if let Call::TakeToken(_) = call
            && store.tokens + 1 != state.store.tokens
        {
            return Err(format!(
                "a lane takes a token, and there are {}",
                store.tokens
            ));
        }
        state.store = store;
        Ok(answer)
    }

    fn look(&mut self, state: &mut State, told: Told) -> Result<(), String> {
        let before = state.store;
        self.take(state, Call::Look)?;
        state.monitor = Monitor::Up {
            has_seen_work: before.waiting > 0,
            told,
        };
        let expected = if before.lease {
            before.waiting.min(LANES)
        } else {
            before.tokens
        };
        if state.store.tokens != expected {
            return Err(format!(
                "a look at {before:?} leaves {} tokens for {LANES} lanes",
                state.store.tokens
            ));
        }
        Ok(())
    }
}

impl Monitor {
    fn hears(&mut self, what: Told) {
        if let Self::Up { told, .. } = self {
            *told = what;
        }
    }
}

impl State {
    fn check(&self) -> Result<(), String> {
        let store = &self.store;
        if store.tokens > LANES {
            return Err(format!(
                "there are {} tokens for {LANES} lanes",
                store.tokens
            ));
        }
        let claimed = store.claims.iter().filter(|claim| **claim).count();
        let places = usize::from(store.waiting) + claimed + usize::from(store.done);
        if places != usize::from(self.submitted) {
            return Err(format!("{places} of {} vCons", self.submitted));
        }
        Ok(())
    }

    /// The same state, whatever its lanes are called.
    fn lanes_in_order(&mut self) {
        let key = |lane: Index| (self.lanes[lane], self.store.claims[lane]);
        if key(0) > key(1) {
            self.lanes.swap(0, 1);
            self.store.claims.swap(0, 1);
        }
    }
}
