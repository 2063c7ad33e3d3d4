//! From what is known towards what is wanted: one turn of the loop.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::method::Started;
use super::notify::Tell;
use super::place::{Phase, Place, Post, State};
use super::restart::Life;
use super::rolling::{Member, Step, next};
use super::{DaemonPhase, Supervisor, Turn};
use crate::child::{Assignment, Leftover, Task};
use crate::exit::Exit;
use crate::monitor::followers::LONGEST_FAREWELL;
use crate::queue::{Blame, ENDED_BEFORE_START};
use crate::sys::{self, End};

/// How long a recovery process may take: Redis is near, or it is away.
const RECOVERY_TIME: Duration = Duration::from_secs(10);

/// How long the monitor may take to give the instance's name up.
const FAREWELL_TIME: Duration = Duration::from_secs(3);

impl Supervisor {
    /// Takes every step that can be taken now.
    pub(super) fn step(&mut self) -> Turn {
        // First: what was left behind there decides what is wanted.
        self.remove_places();
        self.drain_unwanted();
        self.enforce_deadlines();
        self.make_places();
        if let Some(exit) = self.is_over() {
            return Turn::Over(exit);
        }
        if let Some(assignment) = self.start_due() {
            return Turn::Child(Box::new(assignment));
        }
        self.note_progress();
        Turn::GoesOn
    }

    /// Whether there is to be a process at this post.
    pub(super) fn is_wanted(&self, post: Post) -> bool {
        let workers_left = || self.workers().next().is_some();
        match post {
            Post::Worker(number) => {
                let spare = u32::from(self.reloading);
                self.stop.is_none() && number <= self.wanted + spare
            }
            // It ends last: as long as there may be claims, this instance holds its name.
            Post::Monitor => self.stop.is_none() || workers_left() || !self.orphaned.is_empty(),
            Post::Recovery => !self.orphaned.is_empty() && (self.stop.is_none() || !workers_left()),
        }
    }

    fn make_places(&mut self) {
        let spare = u32::from(self.reloading);
        let workers = (1..=self.wanted + spare).map(Post::Worker);
        for post in workers.chain([Post::Monitor, Post::Recovery]) {
            if !self.places.contains_key(&post) && self.is_wanted(post) {
                let place = Place::new(post, self.longest_wait(post));
                self.places.insert(post, place);
            }
        }
    }

    /// How long the next start at this post may be put off. The monitor renews the lease, which
    /// must not run out meanwhile.
    fn longest_wait(&self, post: Post) -> Duration {
        match post {
            Post::Monitor => self.lease_ttl / 3,
            Post::Worker(_) | Post::Recovery => Duration::MAX,
        }
    }

    /// Goes on with a rolling replacement, and notes when everything is as it should be.
    fn note_progress(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let started = self.workers().filter(|place| place.pid().is_some()).count();
        if !self.all_started && started >= self.wanted as usize {
            self.all_started = true;
            log::info!("All {started} workers started");
        }
        if self.reloading {
            let members: Vec<Member> = self
                .workers()
                .filter_map(|place| self.member(place))
                .collect();
            match next(&members, self.wanted) {
                Step::Wait => {}
                Step::Drain(number) => self.drain(Post::Worker(number)),
                Step::Done => {
                    self.reloading = false;
                    log::info!("All workers are replaced");
                    self.note_running();
                    self.drain_unwanted();
                }
            }
        } else if self.phase == DaemonPhase::Starting
            && self.ready_workers() >= self.wanted as usize
        {
            log::info!("All {} workers ready", self.wanted);
            self.note_running();
        }
    }

    pub(super) fn note_running(&mut self) {
        self.up = true;
        self.set_phase(DaemonPhase::Running);
        self.notify.tell(Tell::Ready);
    }

    fn member(&self, place: &Place) -> Option<Member> {
        Some(Member {
            number: place.post.worker().filter(|_| !place.is_empty())?,
            outdated: place.round < self.round,
            ready: place.is_ready(),
            draining: place.is_ending(),
        })
    }

    pub(super) fn ready_workers(&self) -> usize {
        self.workers().filter(|place| place.is_ready()).count()
    }

    fn drain_unwanted(&mut self) {
        let unwanted: Vec<Post> = self
            .places
            .keys()
            .copied()
            .filter(|post| !self.is_wanted(*post) && *post != Post::Recovery)
            .collect();
        for post in unwanted {
            self.drain(post);
        }
    }

    /// Asks a process to end, once.
    fn drain(&mut self, post: Post) {
        let time = match post {
            // What a follower has been handed must be kept first.
            Post::Monitor if !self.followed.config.followers.is_empty() => {
                FAREWELL_TIME + LONGEST_FAREWELL
            }
            Post::Monitor => FAREWELL_TIME,
            Post::Worker(_) | Post::Recovery => self.drain_timeout,
        };
        let until = Instant::now() + time;
        if let Some(place) = self.places.get_mut(&post)
            && let Some(pid) = place.pid()
            && !place.is_ending()
        {
            place.set_phase(Phase::Draining { until });
            log::debug!("{} is asked to drain", place.name());
            // Shown first: the monitor looks there whether it is we who ask.
            self.show_post(post);
            self.send(pid, Signal::SIGTERM);
        }
    }

    /// Kills what has not drained in time, or everything that drains where the end is to be now.
    fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        let at_once = self.stop.as_ref().is_some_and(|stop| stop.now);
        let mut late = Vec::new();
        for place in self.places.values_mut() {
            let (Some(pid), Some(Phase::Draining { until })) = (place.pid(), place.phase()) else {
                continue;
            };
            // The others' deadlines are their own.
            let at_once = at_once && place.post.worker().is_some();
            if until <= now || at_once {
                if !at_once {
                    let name = place.name();
                    log::error!("{name} has not ended in time and is killed");
                }
                place.set_phase(Phase::Killed);
                place.blame(Blame::NOBODY, "it had to end");
                late.push(pid);
            }
        }
        for pid in late {
            self.send(pid, Signal::SIGKILL);
        }
    }

    /// Sends one of our processes a signal. Where there is none of that number any more, its end
    /// has gone by unseen: whoever waited for it would wait for ever.
    pub(super) fn send(&mut self, pid: Pid, signal: Signal) {
        if !sys::kill(pid, signal) {
            self.note_end(pid, End::Unseen);
        }
    }

    /// Removes the places that nobody wants; what was left behind there is remembered.
    fn remove_places(&mut self) {
        // With the last worker, nobody wants the monitor any more.
        while self.remove_unwanted() {}
    }

    /// Returns whether there were any.
    fn remove_unwanted(&mut self) -> bool {
        let gone: Vec<Post> = self
            .places
            .values()
            .filter(|place| place.is_empty() && !self.is_wanted(place.post))
            .map(|place| place.post)
            .collect();
        // Who has the instance's name has its claims.
        let displaced = self.is_displaced();
        let is_any = !gone.is_empty();
        for post in gone {
            let place = self.places.remove(&post);
            if let Some(slot) = post.slot() {
                self.board.set_place(slot, None);
            }
            // A worker that never started has nothing of its own to leave.
            if let (Some(worker), Some(place)) = (post.worker(), place)
                && let Some(blame) = place.left.filter(|_| place.starts > 0 && !displaced)
            {
                let end = place.end;
                self.orphaned.push(Leftover { worker, blame, end });
            }
        }
        is_any
    }

    fn is_over(&mut self) -> Option<Exit> {
        let stop = self.stop.as_ref()?;
        let over = self.places.is_empty() && self.orphaned.is_empty();
        if over {
            self.method.close();
            let since = *self.closing.get_or_insert_with(Instant::now);
            if let Some(pid) = self.method.forkserver()
                && since.elapsed() >= FAREWELL_TIME
            {
                log::error!("The forkserver (PID {pid}) does not end and is killed");
                sys::kill(pid, Signal::SIGKILL);
            }
        }
        (over && self.method.forkserver().is_none()).then(|| {
            log::info!("All workers stopped");
            stop.exit
        })
    }

    /// Starts every process that is due. Answers, in a new process, what it is to do.
    fn start_due(&mut self) -> Option<Assignment> {
        let now = Instant::now();
        let due: Vec<Post> = self
            .places
            .values()
            .filter(|place| place.is_due(now) && self.is_wanted(place.post))
            .filter(|place| {
                !self.is_being_recovered(place.post) && !self.is_to_be_swept(place.post)
            })
            .map(|place| place.post)
            .collect();
        for post in due {
            if let Some(assignment) = self.start(post) {
                return Some(assignment);
            }
        }
        None
    }

    /// Whether a recovery process is at work on the claims of this number. Until it has ended,
    /// nobody else may hold claims under it.
    fn is_being_recovered(&self, post: Post) -> bool {
        let recovery = self.places.get(&Post::Recovery);
        recovery.is_some_and(|place| {
            let theirs = |left: &Leftover| Some(left.worker) == post.worker();
            !place.is_empty() && place.load.iter().any(theirs)
        })
    }

    /// Whether the sweep at the start may yet take what is claimed under this number for the claims
    /// of an earlier daemon.
    fn is_to_be_swept(&self, post: Post) -> bool {
        !self.swept && post.worker() > Some(self.first_workers)
    }

    fn start(&mut self, post: Post) -> Option<Assignment> {
        let task = self.task(post);
        self.generations += 1;
        let assignment = Assignment {
            task,
            generation: self.generations,
            instance: self.instance.clone(),
            supervisor: std::process::id().cast_signed(),
            holder: self.holder.clone(),
            board: self.board.id().clone(),
            config_generation: self.followed.generation,
            config_file: self.followed.file().to_owned(),
        };
        let place = self.places.get_mut(&post)?;
        place.generation = assignment.generation;
        place.round = self.round;
        place.starts = place.starts.saturating_add(1);
        place.recovered = false;
        match &assignment.task {
            Task::Recover { leftovers } => place.load.clone_from(leftovers),
            Task::Work {
                predecessor,
                sweep_above,
            } => {
                place.left = Some(predecessor.blame.clone());
                place.sweeps = sweep_above.is_some();
            }
            Task::Monitor => {}
        }
        let prepared = match post.slot() {
            Some(slot) => self.board.prepare(slot).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        self.show_post(post);
        let started = prepared.and_then(|()| {
            let started = self.method.start(&assignment);
            started.map_err(|error| error.to_string())
        });
        match started {
            Ok(Started::Here) => return Some(assignment),
            Ok(Started::There(pid)) => self.note_start(assignment.generation, pid),
            Ok(Started::Asked) => {
                let since = Instant::now();
                if let Some(place) = self.places.get_mut(&post) {
                    place.set(State::Asked { since });
                }
            }
            Err(error) => self.note_failed_start(assignment.generation, &error),
        }
        self.show_post(post);
        None
    }

    fn task(&mut self, post: Post) -> Task {
        match post {
            Post::Monitor => Task::Monitor,
            Post::Recovery => Task::Recover {
                leftovers: self.orphaned.clone(),
            },
            Post::Worker(worker) => {
                let (mut blame, mut end) = (Blame::ALL, ENDED_BEFORE_START.to_owned());
                if let Some(place) = self.places.get(&post) {
                    blame = place.left.clone().unwrap_or(Blame::ALL);
                    end.clone_from(&place.end);
                }
                // Someone came back to this number: it returns what was left there itself.
                let mut orphaned = std::mem::take(&mut self.orphaned);
                orphaned.retain(|left| {
                    let same = left.worker == worker;
                    if same {
                        blame = left.blame.clone();
                        end.clone_from(&left.end);
                    }
                    !same
                });
                self.orphaned = orphaned;
                let sweeps = worker == 1 && !self.swept;
                Task::Work {
                    predecessor: Leftover { worker, blame, end },
                    sweep_above: sweeps.then_some(self.first_workers),
                }
            }
        }
    }

    /// The process of this generation runs.
    pub(super) fn note_start(&mut self, generation: u64, pid: Pid) {
        let since = Instant::now();
        let mut places = self.places.values_mut();
        let Some(place) = places.find(|place| place.generation == generation) else {
            // Nobody waits for it any more.
            sys::kill(pid, Signal::SIGKILL);
            return;
        };
        let phase = match place.post {
            Post::Recovery => Phase::Draining {
                until: since + RECOVERY_TIME,
            },
            Post::Worker(_) | Post::Monitor => Phase::Starting,
        };
        place.set(State::Running { pid, since, phase });
        match (place.post, place.starts) {
            (Post::Recovery, _) => {}
            (post, 1) => log::info!("Started {} (PID {pid})", post.name()),
            (post, _) => log::info!("Restarted {} (new PID {pid})", post.name()),
        }
        let post = place.post;
        self.show_post(post);
    }

    /// The process of this generation could not be started.
    pub(super) fn note_failed_start(&mut self, generation: u64, error: &str) {
        let stopping = self.stop.is_some();
        let mut places = self.places.values_mut();
        if let Some(place) = places.find(|place| place.generation == generation) {
            if stopping && place.post == Post::Recovery {
                return self.give_up_recovery(error);
            }
            let life = Life {
                lived: Duration::ZERO,
                useful: false,
            };
            let wait = place.back_off(life).as_secs_f64();
            log::error!(
                "{} could not be started, trying again in {wait:.1} s: {error}",
                place.post.name()
            );
            let post = place.post;
            self.show_post(post);
        }
    }

    pub(super) fn show_post(&self, post: Post) {
        if let Some(place) = self.places.get(&post) {
            self.show(place);
        }
    }
}
