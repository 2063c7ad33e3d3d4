//! The one thread that serves all connections. It waits for all of them together and for none
//! alone, so that slow ones hold up nobody.

use std::cmp::Reverse;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::allowance::Allowance;
use super::cache::{Desk, FRESH, Topic, verdict};
use super::connection::Connection;
use super::health::Health;
use super::listener::Listener;
use super::metrics::ExpositionFormat;
use super::request::Hosts;
use super::request::Request;
use super::response;
use super::response::{Answer, Status};
use super::routes::{self, Route};
use super::waker::Sleeper;
use crate::scoreboard::Snapshot;

/// The most connections at a time. One more takes the place of the one that has been waited for
/// the longest.
const MOST: usize = 128;

/// How long nothing is accepted after the system could not: it is short of something.
const PAUSE: Duration = Duration::from_millis(100);

/// For how long one look at the workers counts.
const GLANCE: Duration = Duration::from_millis(200);

/// What is served, and to whom.
pub(super) struct Serving {
    pub hosts: Hosts,
    pub board: PathBuf,
    /// How often the supervisor shows itself.
    pub beat: Duration,
    pub desk: Desk,
    pub sleeper: Sleeper,
    /// Disconnected when it is to end.
    pub ended: Receiver<()>,
}

/// A topic's last reading, and whether the next is under way.
#[derive(Default)]
struct Known {
    last: Option<(Instant, Arc<Answer>)>,
    is_ordered: bool,
}

pub(super) struct Server {
    serving: Serving,
    listener: Listener,
    connections: Vec<Connection>,
    allowance: Allowance,
    /// Until when nothing is accepted.
    closed_until: Option<Instant>,
    known: [Known; Topic::ALL.len()],
    health: Health,
    glance: Option<(Instant, Arc<Answer>)>,
}

impl Server {
    pub fn new(serving: Serving, listener: Listener) -> Self {
        Self {
            serving,
            listener,
            connections: Vec::with_capacity(MOST),
            allowance: Allowance::new(Instant::now()),
            closed_until: None,
            known: Default::default(),
            health: Health::default(),
            glance: None,
        }
    }

    /// Serves until the end.
    ///
    /// # Errors
    /// The wait itself failed.
    pub fn run(mut self) -> Result<(), Errno> {
        while self.serving.ended.try_recv() == Err(TryRecvError::Empty) {
            self.see_to_time(Instant::now());
            let happened = self.wait()?;
            let now = Instant::now();
            self.serving.sleeper.rest();
            self.take_readings(now);
            for (index, events) in happened.connections.into_iter().enumerate() {
                if !events.is_empty()
                    && let Some(request) = self.connections[index].advance(events, now)
                {
                    self.respond(index, &request, now);
                }
            }
            if happened.is_somebody_there {
                self.accept();
            }
            self.connections.retain(|connection| !connection.is_over());
        }
        Ok(())
    }

    fn see_to_time(&mut self, now: Instant) {
        for connection in &mut self.connections {
            connection.expire(now);
        }
        self.connections.retain(|connection| !connection.is_over());
        self.closed_until = self.closed_until.filter(|until| now < *until);
    }

    fn wait(&self) -> Result<Happened, Errno> {
        let mut sources = vec![PollFd::new(self.serving.sleeper.as_fd(), PollFlags::POLLIN)];
        for connection in &self.connections {
            let stream = connection.stream().as_fd();
            sources.push(PollFd::new(stream, connection.events()));
        }
        if self.closed_until.is_none() {
            sources.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        let due = self.connections.iter().map(Connection::until);
        let due = due.chain(self.closed_until).min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            // Rounded up, so that the time has come when the poll returns.
            let wait = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut sources, timeout) {
            Ok(_) => {}
            // Nothing has been filled in.
            Err(Errno::EINTR) => return Ok(Happened::default()),
            Err(error) => return Err(error),
        }
        // Events that the library does not know are none that were asked for.
        let mut events = sources.iter().skip(1).map(|source| {
            let events = source.revents();
            events.unwrap_or(PollFlags::POLLERR)
        });
        Ok(Happened {
            connections: events.by_ref().take(self.connections.len()).collect(),
            is_somebody_there: events.next().is_some_and(|events| !events.is_empty()),
        })
    }

    fn accept(&mut self) {
        loop {
            let now = Instant::now();
            if !self.allowance.has_one(now) {
                self.closed_until = Some(self.allowance.next());
                return;
            }
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        log::debug!("no connection to the monitor can be taken: {error}");
                        self.closed_until = Some(now + PAUSE);
                        return;
                    }
                },
            };
            self.allowance.take_one();
            self.make_room();
            self.connections.push(Connection::new(stream, now));
            let index = self.connections.len() - 1;
            // Whoever connects to ask something has mostly asked it by now, and does not have to
            // fear for its place.
            if let Some(request) = self.connections[index].advance(PollFlags::POLLIN, now) {
                self.respond(index, &request, now);
            }
        }
    }

    fn make_room(&mut self) {
        self.connections.retain(|connection| !connection.is_over());
        if self.connections.len() >= MOST {
            let numbered = self.connections.iter().enumerate();
            let first = numbered.max_by_key(|(index, it)| (it.expendability(), Reverse(*index)));
            if let Some((index, _)) = first {
                self.connections.swap_remove(index);
            }
        }
    }

    fn respond(&mut self, index: usize, request: &Request, now: Instant) {
        let found = self.find(request, now);
        let connection = &mut self.connections[index];
        match found {
            Ok(answer) => connection.answer(answer, request.is_head, now),
            Err(topic) => connection.wait_for(topic, request.is_head, now + topic.patience()),
        }
    }

    /// The answer, or what is being read for it.
    fn find(&mut self, request: &Request, now: Instant) -> Result<Arc<Answer>, Topic> {
        if !self.is_for_us(request) {
            let why = "this name is none of the monitor's; CONSERVER_HTTP_HOSTS can name it";
            return Ok(Arc::new(Answer::text(Status::Misdirected, why)));
        }
        let topic = match routes::find(&request.path) {
            None => return Ok(Arc::new(routes::none())),
            Some(Route::Page) => return Ok(Arc::new(response::page())),
            Some(Route::Health) => return Ok(self.health(now)),
            Some(Route::Reading(topic)) => topic,
            Some(Route::Metrics) => Topic::Metrics(ExpositionFormat::for_accept(&request.accept)),
        };
        self.reading(topic, now).ok_or(topic)
    }

    fn is_for_us(&self, request: &Request) -> bool {
        let host = request.host.as_deref();
        host.is_none_or(|host| self.serving.hosts.accept(host))
    }

    /// What is known of a topic; where that is too old, has it read anew.
    fn reading(&mut self, topic: Topic, now: Instant) -> Option<Arc<Answer>> {
        let known = &mut self.known[topic.number()];
        if let Some((at, answer)) = &known.last
            && now.saturating_duration_since(*at) < FRESH
        {
            return Some(Arc::clone(answer));
        }
        if !known.is_ordered {
            known.is_ordered = self.serving.desk.orders.try_send(topic).is_ok();
        }
        None
    }

    fn take_readings(&mut self, now: Instant) {
        while let Ok(reading) = self.serving.desk.readings.try_recv() {
            for connection in &mut self.connections {
                match connection.awaits() {
                    Some((topic, is_head)) if topic == reading.topic => {
                        connection.answer(Arc::clone(&reading.answer), is_head, now);
                    }
                    _ => {}
                }
            }
            let known = &mut self.known[reading.topic.number()];
            known.is_ordered = false;
            known.last = Some((now, reading.answer));
        }
    }

    fn health(&mut self, now: Instant) -> Arc<Answer> {
        if let Some((at, answer)) = &self.glance
            && now.saturating_duration_since(*at) < GLANCE
        {
            return Arc::clone(answer);
        }
        let judged = match Snapshot::glance(&self.serving.board) {
            Ok(snapshot) => self.health.judge(&snapshot, self.serving.beat),
            Err(error) => Err(vec![error.to_string()]),
        };
        let answer = Arc::new(verdict(judged));
        self.glance = Some((now, Arc::clone(&answer)));
        answer
    }
}

/// What a wait has come to.
#[derive(Default)]
struct Happened {
    /// Of each connection, in their order.
    connections: Vec<PollFlags>,
    /// Whether somebody waits to be accepted.
    is_somebody_there: bool,
}
