//! The monitor's HTTP server: is the daemon healthy and ready, and what does it do?
//!
//! ```text
//! http (accepts) ──► client (a thread for each connection: request, response, end)
//!                      │ waits at most for a limit
//!                      ▼
//!                    responses (one thread: scoreboard, /proc, one connection to Redis)
//! ```
//!
//! A connection is for one request, and each part of it has a deadline. The number of connections, and of new ones
//! in a second, is limited, and one more takes the place of the oldest whose request has not arrived: so the server
//! costs little and keeps room for probes, whoever connects and however. Nothing here touches a worker.
//!
//! With `CONSERVER_HTTP_TOKEN_FILE`, whoever has the token may act: `access` says who may, `actions` does it.

mod access;
mod actions;
mod cache;
mod exposition;
mod health;
mod history;
mod listener;
pub mod metrics;
pub(super) mod request;
mod response;

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::access::TokenFile;
use self::actions::Actions;
use self::cache::{MOST_WAITING, ResponseCache, ResponseMaker, Topic, verdict};
use self::exposition::ExpositionFormat;
use self::health::HealthCheck;
use self::listener::{ClientStream, Listener};
use self::request::{ACTIONS, AllowedHosts, HttpRequest};
use self::response::{Response, StatusCode};
use super::followers::StatsByFollower;
use crate::backoff::Backoff;
use crate::queue::Server;
use crate::scoreboard::{Slot, Snapshot};
use crate::settings::{HttpAddress, Settings};

/// How long a former monitor has to release the address before the log reports it.
const QUIETLY: Duration = Duration::from_secs(1);

/// The pauses between attempts to listen double, from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the end of the daemon waits for the end of the server.
const FAREWELL: Duration = Duration::from_millis(500);

/// The most connections, each of which has a thread. Fewer of them wait for the cache, so that there is always one
/// that can be ended for another.
const MOST: usize = 64;
const _: () = assert!(MOST_WAITING < MOST);

/// The stack of such a thread.
const STACK: usize = 256 * 1024;

/// Limits the rate of new connections: each takes up this time,
const SHARE: Duration = Duration::from_millis(2);

/// this many may come at once,
const AT_ONCE: u32 = 32;

/// and beyond that the accept loop pauses for the time of this many.
const SOME: u32 = 8;

/// The pause after the system could not give a connection or thread: it is short of something.
const SHORTAGE: Duration = Duration::from_millis(100);

/// How long a client has to send its request, how long to take the response, and how long to close afterwards.
const READING: Duration = Duration::from_secs(5);
const WRITING: Duration = Duration::from_secs(5);
const LINGERING: Duration = Duration::from_secs(1);

/// How long a verdict on the workers' health counts.
const HEALTH_FRESH: Duration = Duration::from_millis(200);

/// The running server.
pub(super) struct ServerHandle {
    /// Its other end tells the server to stop once this one is closed.
    stop: UnixStream,
    /// Disconnected once the server has ended, and the file of its socket is removed.
    ended: Receiver<()>,
    site: Arc<Site>,
}

/// Starts the server, unless HTTP is off. `has_heartbeat` says whether the last heartbeat reached Redis.
pub(super) fn start(
    slot: &Slot,
    settings: &Settings,
    redis: &Server,
    has_heartbeat: Arc<AtomicBool>,
    followers: StatsByFollower,
) -> io::Result<Option<ServerHandle>> {
    if settings.http == HttpAddress::Off {
        return Ok(None);
    }
    let (stop, stopped) = UnixStream::pair()?;
    let (end, ended) = bounded(0);
    let maker = ResponseMaker::new(slot.board_path(), redis, has_heartbeat, followers);
    let site = Arc::new(Site {
        hosts: AllowedHosts::of(settings),
        board: slot.board_path().to_owned(),
        beat: settings.beat(),
        cache: ResponseCache::start(maker)?,
        health: Mutex::default(),
        actions: Actions::of(slot, settings, redis),
    });
    let recorded = Arc::clone(&site);
    let record = thread::Builder::new().name("history".to_owned());
    record.spawn(move || {
        loop {
            recorded.cache.order(Topic::History);
            thread::sleep(history::STEP);
            recorded.report_refusals(false);
        }
    })?;
    let served = Arc::clone(&site);
    let address = settings.http.clone();
    let work = move || {
        let _end: Sender<()> = end;
        let served = listen(&address, &stopped).and_then(|listener| match listener {
            Some(listener) => accept_all(&listener, &stopped, &served),
            None => Ok(()),
        });
        if let Err(error) = served {
            log::error!("the monitor's HTTP server failed: {error}");
        }
    };
    thread::Builder::new().name("http".to_owned()).spawn(work)?;
    Ok(Some(ServerHandle { stop, ended, site }))
}

impl ServerHandle {
    /// Stops the server. The end of the process ends the connections.
    pub fn close(self) {
        drop(self.stop);
        // Nothing is sent: the server closes the channel.
        let _ = self.ended.recv_timeout(FAREWELL);
        self.site.report_refusals(true);
    }
}

/// Checks whether the monitor could listen at its address, for `conserver check`. Returns what to print.
///
/// # Errors
/// A sentence that says why it could not.
pub fn check(address: &HttpAddress) -> Result<String, String> {
    match Listener::open(address) {
        Ok(None) => Ok("off".to_owned()),
        Ok(Some(_)) => Ok(address.to_string()),
        // Most likely by a running daemon.
        Err(error) if error.is_in_use() => Ok(format!("{address}, in use at present")),
        Err(error) => Err(error.to_string()),
    }
}

/// Checks the file of this name that is to have the token, for `conserver check`. Returns a warning if others may
/// read it.
///
/// # Errors
/// A sentence that says why there is no token.
pub fn check_token(file: &str) -> Result<Option<String>, String> {
    TokenFile::new(file).check()
}

/// Listens as soon as the address is free; `None` if the server must stop before.
fn listen(address: &HttpAddress, stopped: &UnixStream) -> Result<Option<Listener>, Errno> {
    let (start, mut is_logged) = (Instant::now(), false);
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match Listener::open(address) {
            Ok(None) => return Ok(None),
            Ok(Some(listener)) => {
                log::info!("The monitor answers at {listener}");
                return Ok(Some(listener));
            }
            Err(error) if !is_logged && start.elapsed() >= QUIETLY => {
                is_logged = true;
                log::error!(
                    "the monitor does not answer by HTTP: {error}; will retry. \
                     CONSERVER_HTTP can be another address, or off"
                );
            }
            Err(_) => {}
        }
        let timeout = PollTimeout::try_from(backoff.next_wait()).unwrap_or(PollTimeout::MAX);
        if is_stopped(stopped, None, timeout)? {
            return Ok(None);
        }
    }
}

/// Waits for a connection, or for the timeout. Returns early, and true, if the server must stop.
fn is_stopped(
    stopped: &UnixStream,
    listener: Option<&Listener>,
    timeout: PollTimeout,
) -> Result<bool, Errno> {
    let mut sources = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
    sources.extend(listener.map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
    match poll(&mut sources, timeout) {
        Ok(_) => Ok(sources[0].any() != Some(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Accepts connections until the server must stop, and has a thread serve each of them.
///
/// # Errors
/// The wait for a connection failed.
fn accept_all(listener: &Listener, stopped: &UnixStream, site: &Arc<Site>) -> Result<(), Errno> {
    let connections = Arc::new(Connections::default());
    let mut rate = AcceptRate::new();
    while !is_stopped(stopped, Some(listener), PollTimeout::NONE)? {
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                // The client has gone again.
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {
                    continue;
                }
                _ => {
                    log::debug!("could not accept a connection to the monitor: {error}");
                    thread::sleep(SHORTAGE);
                    continue;
                }
            },
        };
        let (site, connection) = (Arc::clone(site), connections.admit(stream));
        let thread = thread::Builder::new().name("client".to_owned());
        let started = thread.stack_size(STACK).spawn(move || {
            // A client that has gone needs no response.
            let may_act = site.actions.is_some();
            let _ = connection.serve(may_act, |request, client| site.respond(request, client));
        });
        let pause = match started {
            Ok(_) => rate.pause(Instant::now()),
            Err(error) => {
                log::debug!("could not start a thread for a connection to the monitor: {error}");
                SHORTAGE
            }
        };
        thread::sleep(pause);
    }
    Ok(())
}

/// Limits how many connections are accepted, so that whoever makes many costs the workers next to nothing.
struct AcceptRate {
    /// Until when the connections so far use up the limit.
    used_until: Instant,
}

impl AcceptRate {
    fn new() -> Self {
        Self {
            used_until: Instant::now(),
        }
    }

    /// Counts a connection; returns the pause before the next.
    fn pause(&mut self, now: Instant) -> Duration {
        self.used_until = self.used_until.max(now) + SHARE;
        let is_over = self.used_until > now + SHARE * AT_ONCE;
        if is_over {
            SHARE * SOME
        } else {
            Duration::ZERO
        }
    }
}

/// What a connection does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    /// The response is being made, or the client waits for the cache.
    Responding,
    /// The response is being sent.
    Writing,
    /// The request has not arrived, or the response is sent and the client has not closed yet.
    Idle,
}

/// All connections, the oldest first.
#[derive(Default)]
struct Connections {
    open: Mutex<Vec<OpenConnection>>,
    one_has_ended: Condvar,
}

struct OpenConnection {
    stream: Arc<ClientStream>,
    state: ConnectionState,
}

/// One connection; dropping it makes room for another.
struct Connection {
    stream: Arc<ClientStream>,
    all: Arc<Connections>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Vec<OpenConnection>> {
        // No change of the list is left half done by a panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, in place of another one if there are too many.
    fn admit(self: &Arc<Self>, stream: ClientStream) -> Connection {
        let mut open = self.lock();
        while open.len() >= MOST {
            if let Some(victim) = victim(&open) {
                // Its thread ends, as nothing can be read or written any more.
                let _ = victim.stream.shut_down(Shutdown::Both);
            }
            let waited = self.one_has_ended.wait(open);
            open = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let stream = Arc::new(stream);
        open.push(OpenConnection {
            stream: Arc::clone(&stream),
            state: ConnectionState::Idle,
        });
        drop(open);
        Connection {
            stream,
            all: Arc::clone(self),
        }
    }
}

/// The connection that ends for another: the oldest idle one, or else the oldest that is being written to.
fn victim(open: &[OpenConnection]) -> Option<&OpenConnection> {
    let oldest = |state| open.iter().find(|it| it.state == state);
    oldest(ConnectionState::Idle).or_else(|| oldest(ConnectionState::Writing))
}

impl Connection {
    /// Reads a request, sends the response, and waits for the client to close. `may_act` says whether a POST is taken.
    ///
    /// # Errors
    /// The client has gone, does not take the response in time, or had to end for another.
    fn serve(
        &self,
        may_act: bool,
        respond: impl FnOnce(&HttpRequest, &ClientStream) -> Arc<Response>,
    ) -> io::Result<()> {
        let mut stream = self.stream.until(Instant::now() + READING);
        let Some(received) = request::receive(&mut stream, may_act) else {
            return Ok(());
        };
        self.enter(ConnectionState::Responding);
        let (response, is_head) = match received {
            Ok(request) => (respond(&request, &self.stream), request.is_head),
            Err(error) => (Arc::new(Response::refusal(error)), false),
        };
        self.enter(ConnectionState::Writing);
        let mut stream = self.stream.until(Instant::now() + WRITING);
        stream.write_all(response.bytes(is_head))?;
        self.stream.shut_down(Shutdown::Write)?;
        self.enter(ConnectionState::Idle);
        response::drain(&mut self.stream.until(Instant::now() + LINGERING));
        Ok(())
    }

    fn enter(&self, state: ConnectionState) {
        let mut open = self.all.lock();
        let own = open
            .iter_mut()
            .find(|it| Arc::ptr_eq(&it.stream, &self.stream));
        if let Some(own) = own {
            own.state = state;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let is_another = |it: &OpenConnection| !Arc::ptr_eq(&it.stream, &self.stream);
        self.all.lock().retain(is_another);
        self.all.one_has_ended.notify_one();
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    /// Whether every worker is alive: known at once.
    Health,
    /// Something that the cache has.
    Cached(Topic),
    /// Metrics, in the format that the client asks for.
    Metrics,
    /// The page for people.
    Page,
}

/// Every path with its endpoint, and a description.
const ENDPOINTS: [(&str, Endpoint, &str); 6] = [
    (
        "/",
        Endpoint::Page,
        "a page that shows what the daemon does",
    ),
    ("/healthz", Endpoint::Health, "200 if all workers are alive"),
    (
        "/readyz",
        Endpoint::Cached(Topic::Ready),
        "200 if Redis answers and no chain is on hold",
    ),
    (
        "/status",
        Endpoint::Cached(Topic::Status),
        "what `conserver status --json --queues` prints",
    ),
    (
        "/history",
        Endpoint::Cached(Topic::History),
        "the last hour, for the charts of the page",
    ),
    ("/metrics", Endpoint::Metrics, "metrics for Prometheus"),
];

impl Endpoint {
    fn at(path: &str) -> Option<Self> {
        let found = ENDPOINTS.iter().find(|(known, ..)| *known == path);
        found.map(|(_, endpoint, _)| *endpoint)
    }
}

/// The response at any other path.
fn list_of_endpoints() -> Response {
    let lines = ENDPOINTS.map(|(path, _, words)| format!("{path:<10}{words}"));
    let text = format!("there is nothing here, but:\n{}", lines.join("\n"));
    Response::text(StatusCode::NotFound, &text)
}

/// What the server shows, and to whom.
struct Site {
    hosts: AllowedHosts,
    board: PathBuf,
    /// How often the supervisor shows itself.
    beat: Duration,
    cache: Arc<ResponseCache>,
    health: Mutex<LastHealth>,
    /// What may be done, if there is a token.
    actions: Option<Actions>,
}

#[derive(Default)]
struct LastHealth {
    check: HealthCheck,
    /// The last verdict, and when it was made.
    verdict: Option<(Instant, Arc<Response>)>,
}

impl Site {
    fn respond(&self, request: &HttpRequest, client: &ClientStream) -> Arc<Response> {
        let host = request.host.as_deref();
        if !host.is_none_or(|host| self.hosts.accept(host)) {
            let why = "this is not a name of the monitor; CONSERVER_HTTP_HOSTS can name it";
            return Arc::new(Response::text(StatusCode::Misdirected, why));
        }
        if let Some(actions) = &self.actions
            && request.path.starts_with(ACTIONS)
        {
            return Arc::new(match &request.post {
                Some(post) => actions.respond(request, post, &client.peer()),
                None => Response::only_post(),
            });
        }
        match Endpoint::at(&request.path) {
            None => Arc::new(list_of_endpoints()),
            Some(Endpoint::Page) => Arc::new(response::page(self.actions.is_some())),
            Some(Endpoint::Health) => self.health(),
            Some(Endpoint::Cached(topic)) => self.cache.get(topic),
            Some(Endpoint::Metrics) => {
                let format = ExpositionFormat::for_accept(&request.accept);
                self.cache.get(Topic::Metrics(format))
            }
        }
    }

    fn report_refusals(&self, is_end: bool) {
        if let Some(actions) = &self.actions {
            actions.report_refusals(is_end);
        }
    }

    fn health(&self) -> Arc<Response> {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, response)) = &health.verdict
            && made.elapsed() < HEALTH_FRESH
        {
            return Arc::clone(response);
        }
        let judged = match Snapshot::without_figures(&self.board) {
            Ok(snapshot) => health.check.judge(&snapshot, self.beat),
            Err(error) => Err(vec![error.to_string()]),
        };
        let response = Arc::new(verdict(judged));
        health.verdict = Some((Instant::now(), Arc::clone(&response)));
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    fn connect(all: &Arc<Connections>) -> (UnixStream, Connection) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, all.admit(ClientStream::Unix(far)))
    }

    fn is_open(stream: &UnixStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        (&*stream).read(&mut [0]).is_err()
    }

    #[test]
    fn a_request_gets_its_response_and_the_connection_ends() {
        let all = Arc::default();
        for (text, expected) in [
            ("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "200 OK"),
            ("POST /x HTTP/1.1\r\nHost: a\r\n\r\n", "405 Method"),
        ] {
            let (mut near, connection) = connect(&all);
            near.write_all(text.as_bytes()).unwrap();
            let serving = thread::spawn(move || {
                connection.serve(false, |request, _| {
                    Arc::new(Response::text(StatusCode::Ok, &request.path))
                })
            });
            let mut response = String::new();
            near.read_to_string(&mut response).unwrap();
            assert!(response.starts_with(&format!("HTTP/1.1 {expected}")));
            drop(near);
            serving.join().unwrap().unwrap();
        }
        assert!(all.lock().is_empty());
    }

    #[test]
    fn one_connection_more_takes_the_place_of_the_oldest_idle_one() {
        let all = Arc::default();
        let mut open: Vec<_> = (0..MOST).map(|_| connect(&all)).collect();
        open[0].1.enter(ConnectionState::Responding);
        open[1].1.enter(ConnectionState::Writing);
        let (victim, connection) = open.remove(2);
        let serving = thread::spawn(move || {
            connection.serve(true, |_, _| {
                Arc::new(Response::text(StatusCode::Ok, "no request has come"))
            })
        });
        let newest = connect(&all);
        serving.join().unwrap().unwrap();
        assert!(!is_open(&victim));
        open.push(newest);
        assert!(open.iter().all(|(near, _)| is_open(near)));
        // Of others, one that does not take its response ends; one that waits for it stays.
        for (_, connection) in &open {
            connection.enter(ConnectionState::Responding);
        }
        assert!(super::victim(&all.lock()).is_none());
        open[5].1.enter(ConnectionState::Writing);
        let all = all.lock();
        let victim = super::victim(&all).unwrap();
        assert!(Arc::ptr_eq(&victim.stream, &open[5].1.stream));
    }

    #[test]
    fn connections_are_accepted_at_a_limited_rate_after_a_burst() {
        let mut rate = AcceptRate::new();
        let mut now = rate.used_until;
        let mut at_once = 0;
        while rate.pause(now).is_zero() {
            at_once += 1;
        }
        assert_eq!(at_once, AT_ONCE);
        let (start, mut accepted) = (now, 0);
        while now < start + Duration::from_secs(1) {
            accepted += 1;
            now += rate.pause(now);
        }
        assert!((450..=550).contains(&accepted), "{accepted}");
    }
}
