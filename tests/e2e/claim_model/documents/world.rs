//! What the workers believe, what may happen, and what must hold.

use super::super::explore::Model;
use super::Scene;
use super::server::{Call, Claimed, Server};

/// A worker with its daemon, a chain with its list and its letter: of each there are two.
pub type Index = usize;

/// What each worker's chain adds.
pub const LETTERS: [char; 2] = ['a', 'b'];

/// What the producer stores: the document at the start, and another one.
const VERSIONS: [&str; 2] = ["v", "w"];

/// What is in Redis, as far as it makes a difference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    pub document: Option<String>,
    /// Whether the vCon waits in each list.
    pub waits: [bool; 2],
    /// Whether it was announced from each list.
    pub is_done: [bool; 2],
    /// Each worker's claim, and whether anything was kept about the vCon when it was made.
    pub claims: [Option<bool>; 2],
    /// For each list, the document that the progress is good for; with a `!` before it if nothing goes on
    /// from there.
    pub progress: [Option<String>; 2],
    /// Whether each daemon holds its name.
    pub leases: [bool; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Worker {
    Dead,
    Idle,
    Works(Job),
}

/// A worker's work on the vCon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Job {
    /// What it believes to stand in Redis; `None` if that is gone.
    base: Option<String>,
    /// What the base was made of, if the worker has written that.
    origin: Option<String>,
    /// What the chain has made of it.
    text: String,
    /// Whether its letter is not in the document that it was handed.
    is_new: bool,
    /// Whether anything was kept about the vCon when it was claimed.
    is_noted: bool,
    /// Whether it was told that another document stands there.
    must_merge: bool,
    /// Whether how far it has come cannot be kept.
    forgets: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    store: Store,
    workers: [Worker; 2],
    /// By the specification, the letters of the document in order of the alphabet, after its version.
    expected: Option<String>,
    /// By the specification, the document with which the next claim from each list is to go on where the
    /// last has stopped: the one that had what the links had done, or what chains have made of that.
    good: [Option<Option<String>>; 2],
    /// How often the producer may still do something.
    left: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The producer stores a version.
    Produce(usize),
    Delete,
    Claim(Index),
    Finish(Index),
    /// The server has done it, and the worker does not know.
    FinishUnheard(Index),
    Merge(Index),
    /// Writes what it has done so far.
    Write(Index),
    WriteUnheard(Index),
    /// Lets go of the claim with its progress, once that is written.
    Release(Index),
    Die(Index),
    Replace(Index),
    Lapse(Index),
    /// The daemon returns the claims of the other one, whose lease has run out.
    RecoverOther(Index),
}

pub struct Documents {
    scene: Scene,
    pub server: Server,
}

impl Documents {
    pub fn new(scene: Scene, server: Server) -> Self {
        Self { scene, server }
    }

    /// The list that a worker serves.
    fn list(&self, worker: Index) -> Index {
        self.scene.list_of(worker)
    }
}

impl Scene {
    /// The list that a worker serves.
    pub fn list_of(self, worker: Index) -> Index {
        match self {
            Self::TwoChains | Self::Progress => worker,
            Self::TwoDaemons => 0,
        }
    }

    fn has_progress(self) -> bool {
        self != Self::TwoChains
    }
}

impl Model for Documents {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        let waits = [true, self.list(1) == 1];
        State {
            store: Store {
                document: Some(VERSIONS[0].to_owned()),
                waits,
                is_done: [false; 2],
                claims: [None; 2],
                progress: [None, None],
                leases: [true; 2],
            },
            workers: [Worker::Idle, Worker::Idle],
            expected: Some(VERSIONS[0].to_owned()),
            good: [None, None],
            // Progress and leases make many states of each.
            left: if self.scene == Scene::TwoChains { 2 } else { 1 },
        }
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::with_capacity(16);
        if state.left > 0 {
            actions.extend([0, 1].map(Action::Produce));
            if self.scene != Scene::Progress && state.store.document.is_some() {
                actions.push(Action::Delete);
            }
        }
        for worker in 0..2 {
            if self.scene == Scene::TwoDaemons {
                if state.store.leases[worker] {
                    actions.push(Action::Lapse(worker));
                }
                if state.workers[worker] != Worker::Dead {
                    actions.push(Action::RecoverOther(worker));
                }
            }
            match &state.workers[worker] {
                Worker::Dead => {
                    actions.push(Action::Replace(worker));
                    continue;
                }
                Worker::Idle => actions.push(Action::Claim(worker)),
                Worker::Works(job) if job.must_merge => actions.push(Action::Merge(worker)),
                Worker::Works(job) => {
                    actions.extend([Action::Finish(worker), Action::FinishUnheard(worker)]);
                    let is_written = job.base.as_ref().is_none_or(|base| *base == job.text);
                    if self.scene.has_progress() && is_written {
                        actions.push(Action::Release(worker));
                    } else if self.scene.has_progress() {
                        actions.extend([Action::Write(worker), Action::WriteUnheard(worker)]);
                    }
                }
            }
            actions.push(Action::Die(worker));
        }
        actions
    }

    fn after(&mut self, state: &State, action: Action) -> Result<State, String> {
        let mut next = state.clone();
        let before = state.store.document.clone();
        match action {
            Action::Produce(version) => {
                let text = VERSIONS[version].to_owned();
                next.produce(Some(text));
            }
            Action::Delete => next.produce(None),
            Action::Claim(worker) => self.claim(&mut next, worker)?,
            Action::Finish(worker) => self.finish(&mut next, worker, true)?,
            Action::FinishUnheard(worker) => self.finish(&mut next, worker, false)?,
            Action::Merge(worker) => next.merge(worker),
            Action::Write(worker) => self.write(&mut next, worker, true)?,
            Action::WriteUnheard(worker) => self.write(&mut next, worker, false)?,
            Action::Release(worker) => self.release(&mut next, worker)?,
            Action::Die(worker) => next.workers[worker] = Worker::Dead,
            Action::Replace(worker) => {
                next.void_claim(worker, self.list(worker));
                self.take(&mut next, Call::Recover(worker))?;
                next.workers[worker] = Worker::Idle;
            }
            Action::Lapse(worker) => next.store.leases[worker] = false,
            Action::RecoverOther(worker) => {
                if !next.store.leases[1 - worker] {
                    next.void_claim(1 - worker, self.list(1 - worker));
                }
                self.take(&mut next, Call::RecoverOther(worker))?;
            }
        }
        if !matches!(action, Action::Produce(_) | Action::Delete) {
            next.follow_chain(&before);
        }
        next.check(action, self.scene)?;
        Ok(next)
    }

    fn is_quiet(&self, action: Action) -> bool {
        match action {
            Action::Claim(_)
            | Action::Finish(_)
            | Action::Merge(_)
            | Action::Replace(_)
            | Action::RecoverOther(_) => true,
            Action::Produce(_)
            | Action::Delete
            | Action::FinishUnheard(_)
            | Action::Write(_)
            | Action::WriteUnheard(_)
            | Action::Release(_)
            | Action::Die(_)
            | Action::Lapse(_) => false,
        }
    }

    fn is_over(&self, state: &State) -> bool {
        let store = &state.store;
        let lists = 0..=self.list(1);
        store.claims == [None; 2]
            && lists
                .into_iter()
                .all(|it| store.is_done[it] && !store.waits[it])
    }
}

impl Documents {
    fn take(&mut self, state: &mut State, call: Call) -> Result<super::server::Answer, String> {
        let (store, answer) = self.server.take(&state.store, call)?;
        state.store = store;
        Ok(answer)
    }

    fn claim(&mut self, state: &mut State, worker: Index) -> Result<(), String> {
        let list = self.list(worker);
        let is_noted = state.store.progress.iter().any(Option::is_some);
        let answer = self.take(state, Call::Claim(worker, is_noted))?;
        let Some(Claimed {
            document,
            has_progress,
        }) = answer.claimed
        else {
            return Ok(());
        };
        // Without a document there is nothing to go on with.
        let goes_on = state.good[list].as_ref() == Some(&document);
        if document.is_some() && has_progress != goes_on {
            return Err(if has_progress {
                format!("worker {worker} takes the vCon as done, and its links are left out")
            } else {
                format!("worker {worker} begins anew, and its links run again")
            });
        }
        let Some(base) = document else {
            // Nothing can be done with it: it is finished as it is.
            state.workers[worker] = Worker::Works(Job {
                base: None,
                origin: None,
                text: String::new(),
                is_new: false,
                is_noted,
                must_merge: false,
                forgets: false,
            });
            return Ok(());
        };
        let is_new = !has_progress && !base.contains(LETTERS[worker]);
        let text = if has_progress {
            base.clone()
        } else {
            with_letter(&base, LETTERS[worker])
        };
        state.workers[worker] = Worker::Works(Job {
            base: Some(base),
            origin: None,
            text,
            is_new,
            is_noted,
            must_merge: false,
            forgets: false,
        });
        Ok(())
    }

    fn finish(&mut self, state: &mut State, worker: Index, is_heard: bool) -> Result<(), String> {
        let Worker::Works(job) = state.workers[worker].clone() else {
            return Ok(());
        };
        let list = self.list(worker);
        let call = Call::Finish {
            worker,
            is_noted: job.is_noted,
            base: job.base.clone(),
            text: job.text.clone(),
        };
        let answer = self.take(state, call)?;
        match answer.word {
            "done" => {
                job.has_its_letter(worker)?;
                if job.base.is_some() {
                    state.expect_letters_of(&job.text);
                    // What the storages were given is what stands there.
                    if state.store.document.as_ref() != Some(&job.text) {
                        return Err(format!("{:?} is stored, a change is missing", job.text));
                    }
                }
                state.good[list] = None;
            }
            "deleted" => state.good[list] = None,
            "changed" | "not ours" => {}
            other => return Err(format!("a finish answers {other}")),
        }
        if is_heard {
            state.workers[worker] = if answer.word == "changed" {
                Worker::Works(Job {
                    must_merge: true,
                    ..job
                })
            } else {
                Worker::Idle
            };
        }
        Ok(())
    }

    fn write(&mut self, state: &mut State, worker: Index, is_heard: bool) -> Result<(), String> {
        let Worker::Works(mut job) = state.workers[worker].clone() else {
            return Ok(());
        };
        let Some(base) = job.base.clone() else {
            return Ok(());
        };
        let call = Call::Write {
            worker,
            base,
            text: job.text.clone(),
        };
        let answer = self.take(state, call)?;
        match answer.word {
            "done" => {
                state.expect_letters_of(&job.text);
                let base = job.base.replace(job.text.clone());
                job.origin = job.origin.or(base.filter(|base| *base != job.text));
            }
            "deleted" => (job.base, job.origin) = (None, None),
            "changed" => job.must_merge = true,
            other => return Err(format!("a write answers {other}")),
        }
        if is_heard {
            state.workers[worker] = Worker::Works(job);
        }
        Ok(())
    }

    fn release(&mut self, state: &mut State, worker: Index) -> Result<(), String> {
        let Worker::Works(mut job) = state.workers[worker].clone() else {
            return Ok(());
        };
        let list = self.list(worker);
        let call = Call::Release {
            worker,
            is_noted: job.is_noted,
            progress: (!job.forgets).then(|| job.base.clone()),
        };
        let answer = self.take(state, call)?;
        match answer.word {
            "done" if job.forgets => {}
            "done" => {
                job.has_its_letter(worker)?;
                state.good[list] = Some(job.base);
            }
            "not ours" => {}
            "changed" => {
                job.must_merge = job.base.is_some();
                job.forgets = job.base.is_none();
                state.workers[worker] = Worker::Works(job);
                return Ok(());
            }
            other => return Err(format!("a release answers {other}")),
        }
        state.workers[worker] = Worker::Idle;
        Ok(())
    }
}

impl Job {
    /// Fails if what the links did is not in what the worker takes for done.
    fn has_its_letter(&self, worker: Index) -> Result<(), String> {
        if self.is_new && self.base.is_some() && !self.text.contains(LETTERS[worker]) {
            let text = &self.text;
            return Err(format!(
                "worker {worker} is done with {text:?}: a change is missing"
            ));
        }
        Ok(())
    }
}

impl State {
    /// The producer writes, or deletes.
    fn produce(&mut self, text: Option<String>) {
        self.left -= 1;
        self.store.document.clone_from(&text);
        self.expected = text;
    }

    fn expect_letters_of(&mut self, text: &str) {
        if let Some(expected) = &mut self.expected {
            for letter in text.chars().skip(1) {
                *expected = with_letter(expected, letter);
            }
            *expected = sorted(expected);
        }
    }

    /// The claim of a worker is returned by others, if it has one.
    fn void_claim(&mut self, worker: Index, list: Index) {
        if self.store.claims[worker].is_some() {
            self.good[list] = None;
        }
    }

    /// What a chain writes is no new version.
    fn follow_chain(&mut self, before: &Option<String>) {
        for good in self.good.iter_mut().flatten() {
            if good == before {
                good.clone_from(&self.store.document);
            }
        }
    }

    /// Lays what the worker has done over what stands in Redis.
    fn merge(&mut self, worker: Index) {
        let Worker::Works(job) = &mut self.workers[worker] else {
            return;
        };
        job.must_merge = false;
        let theirs = self.store.document.clone();
        if let Some(theirs) = &theirs {
            let base = job.origin.take().or(job.base.take());
            let base = base.unwrap_or_default();
            let added = job.text.chars().skip(1).filter(|it| !base.contains(*it));
            job.text = added.fold(theirs.clone(), |text, letter| with_letter(&text, letter));
            job.is_new &= job.text != *theirs;
        }
        (job.base, job.origin) = (theirs, None);
    }

    fn check(&self, action: Action, scene: Scene) -> Result<(), String> {
        let is = self.store.document.as_deref().map(sorted);
        if is != self.expected {
            return Err(format!(
                "{action:?} leaves {is:?} where {:?} is to be: a change is missing",
                self.expected
            ));
        }
        for list in 0..=scene.list_of(1) {
            let claims = (0..2).filter(|worker| scene.list_of(*worker) == list);
            let claimed = claims.filter(|worker| self.store.claims[*worker].is_some());
            let places = claimed.count()
                + usize::from(self.store.waits[list])
                + usize::from(self.store.is_done[list]);
            if places != 1 {
                return Err(format!("the vCon of list {list} is in {places} places"));
            }
        }
        Ok(())
    }
}

/// The text with the letter, which it may have already.
fn with_letter(text: &str, letter: char) -> String {
    let mut text = text.to_owned();
    if !text.contains(letter) {
        text.push(letter);
    }
    text
}

/// The version, then its letters in order of the alphabet.
fn sorted(text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    chars[1..].sort_unstable();
    chars.into_iter().collect()
}
