//! A TCP proxy before a server of a test, whose faults are switched on and off while it runs.
//!
//! ```text
//! client ──to server──► proxy ──► server
//!        ◄──to client──       ◄──
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{PATIENCE, free_port, wait_until};

/// A proxy on a port of its own, in front of a port of this machine. It may be made before the
/// server runs; a client that comes while the server is away is connected and then reset.
pub struct Proxy {
    port: u16,
    wires: Arc<Wires>,
    door: Mutex<Option<Door>>,
}

/// Which way bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What clients ask.
    ToServer,
    /// What the server answers.
    ToClient,
}

/// The open port.
struct Door {
    listener: TcpListener,
    thread: JoinHandle<()>,
}

/// What all connections through the proxy share.
struct Wires {
    server: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    flow: Flow,
    /// Bytes that may still pass before the connection that carries them is cut, each way.
    cuts: [Option<u64>; 2],
    /// What stands in the request whose answer is lost, if one is to be.
    unanswered: Option<Vec<String>>,
    carried: [u64; 2],
    cuts_made: usize,
    accepted: usize,
    links: Vec<Weak<Link>>,
}

#[derive(Default, Clone, Copy)]
enum Flow {
    #[default]
    Pass,
    Delay(Duration),
    Hold,
    HoldRequests,
}

/// One client's connection, and the one to the server for it.
struct Link {
    client: TcpStream,
    server: TcpStream,
    doomed: AtomicBool,
    /// Whether it ends when the server answers, but for an error.
    is_unanswered: AtomicBool,
}

/// What becomes of bytes that came in.
enum Verdict {
    Pass,
    /// So many of them pass, then the connection ends.
    Cut(usize),
    /// The connection was reset meanwhile.
    Drop,
}

impl Proxy {
    /// A proxy that lets everything pass, before the server on this port.
    pub fn before(server: u16) -> Self {
        let proxy = Self {
            port: free_port(),
            wires: Arc::new(Wires {
                server,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            door: Mutex::default(),
        };
        proxy.open();
        proxy
    }

    /// The port that clients are to use, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends every fault: connections are accepted, bytes pass, those that were held go on their
    /// way, no cut is to come.
    pub fn pass(&self) {
        let mut state = self.wires.lock();
        state.flow = Flow::Pass;
        state.cuts = [None; 2];
        state.unanswered = None;
        drop(state);
        self.wires.changed.notify_all();
        self.open();
    }

    /// Holds up whatever is read for `time`, each way.
    pub fn delay(&self, time: Duration) {
        self.flow(Flow::Delay(time));
    }

    /// Lets nothing pass, not even the end of a connection; clients can still connect, as to a
    /// server that hangs.
    pub fn black_hole(&self) {
        self.flow(Flow::Hold);
    }

    /// Lets answers pass, and holds what clients ask, and the end of their connections, until
    /// [`Proxy::pass`].
    pub fn hold_requests(&self) {
        self.flow(Flow::HoldRequests);
    }

    /// Refuses new connections; the open ones stay.
    pub fn refuse(&self) {
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Door { listener, thread }) = door.take() {
            // Wakes the thread, which waits in accept(2).
            SockRef::from(&listener)
                .shutdown(Shutdown::Both)
                .expect("a listener");
            drop(listener);
            thread.join().expect("the thread that accepts");
        }
    }

    /// Resets every open connection (RST, not FIN), and returns when all of them are gone.
    pub fn reset(&self) {
        let links: Vec<Weak<Link>> = self.wires.lock().links.drain(..).collect();
        for link in links.iter().filter_map(Weak::upgrade) {
            link.doom();
        }
        self.wires.changed.notify_all();
        wait_until("the connections are reset", PATIENCE, || {
            links.iter().all(|link| link.strong_count() == 0)
        });
    }

    /// Ends one connection, in good order, after so many more bytes in this direction, counted
    /// over all connections: the one that carries the last of them. With 0, nothing of what comes
    /// next passes. [`Proxy::cuts`] tells when it has happened.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.wires.lock().cuts[direction as usize] = Some(bytes);
    }

    /// Ends a connection instead of passing on the answer to the next short request in which all of these stand; an
    /// error of Redis passes. [`Proxy::cuts`] tells when it has happened.
    pub fn lose_answer_to(&self, parts: &[&str]) {
        let parts = parts.iter().map(ToString::to_string).collect();
        self.wires.lock().unanswered = Some(parts);
    }

    /// How many connections were cut so far.
    pub fn cuts(&self) -> usize {
        self.wires.lock().cuts_made
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> usize {
        self.wires.lock().accepted
    }

    /// How many bytes have passed so far.
    pub fn carried(&self, direction: Direction) -> u64 {
        self.wires.lock().carried[direction as usize]
    }

    fn flow(&self, flow: Flow) {
        self.wires.lock().flow = flow;
        self.wires.changed.notify_all();
    }

    fn open(&self) {
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        if door.is_none() {
            let listener = TcpListener::bind(("127.0.0.1", self.port)).expect("the port is ours");
            let wires = Arc::clone(&self.wires);
            let accepting = listener.try_clone().expect("a descriptor");
            let thread = thread::spawn(move || {
                while let Ok((client, _)) = accepting.accept() {
                    let wires = Arc::clone(&wires);
                    thread::spawn(move || wires.serve(client));
                }
            });
            *door = Some(Door { listener, thread });
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
        self.flow(Flow::Pass);
        for link in self.wires.lock().links.drain(..) {
            if let Some(link) = link.upgrade() {
                link.doom();
            }
        }
        self.wires.changed.notify_all();
    }
}

impl Wires {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: Arc<Self>, client: TcpStream) {
        self.lock().accepted += 1;
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else {
            return reset_on_close(&client);
        };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            // A writer looks now and then whether its connection is to be reset.
            let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
        }
        let link = Arc::new(Link {
            client,
            server,
            doomed: AtomicBool::new(false),
            is_unanswered: AtomicBool::new(false),
        });
        let mut state = self.lock();
        state.links.retain(|link| link.strong_count() > 0);
        state.links.push(Arc::downgrade(&link));
        drop(state);
        let (wires, other) = (Arc::clone(&self), Arc::clone(&link));
        thread::spawn(move || wires.pump(&other, Direction::ToClient));
        self.pump(&link, Direction::ToServer);
    }

    /// Moves bytes one way until one of the ends closes.
    fn pump(&self, link: &Link, direction: Direction) {
        let (mut from, mut to) = match direction {
            Direction::ToServer => (&link.client, &link.server),
            Direction::ToClient => (&link.server, &link.client),
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            match self.judge(link, direction, &buffer[..read]) {
                Verdict::Drop => return,
                Verdict::Cut(bytes) => {
                    let _ = write(link, &mut to, &buffer[..bytes]);
                    return link.close();
                }
                Verdict::Pass if read == 0 => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Verdict::Pass => {
                    if write(link, &mut to, &buffer[..read]).is_err() {
                        return link.close();
                    }
                }
            }
        }
    }

    /// Waits until what was read may go on, and says how much of it.
    fn judge(&self, link: &Link, direction: Direction, bytes: &[u8]) -> Verdict {
        let read = bytes.len();
        let came = Instant::now();
        let mut state = self.lock();
        loop {
            if link.doomed.load(Ordering::Acquire) {
                return Verdict::Drop;
            }
            let wait = match state.flow {
                Flow::Pass => Duration::ZERO,
                Flow::Delay(time) => time.saturating_sub(came.elapsed()),
                Flow::HoldRequests if direction == Direction::ToClient => Duration::ZERO,
                Flow::Hold | Flow::HoldRequests => PATIENCE,
            };
            if wait.is_zero() {
                break;
            }
            state = match self.changed.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        match direction {
            Direction::ToServer => {
                let mut parts = state.unanswered.iter().flatten().peekable();
                if parts.peek().is_some() && parts.all(|part| contains(bytes, part)) {
                    link.is_unanswered.store(true, Ordering::Release);
                }
            }
            Direction::ToClient if link.is_unanswered.swap(false, Ordering::AcqRel) => {
                // Of Redis, an error: it does not have the script yet, which comes with the same request once more.
                if !bytes.starts_with(b"-") {
                    state.unanswered = None;
                    state.cuts_made += 1;
                    return Verdict::Cut(0);
                }
            }
            Direction::ToClient => {}
        }
        let way = direction as usize;
        let cut = match state.cuts[way] {
            Some(left) if read > 0 && left <= read as u64 => {
                state.cuts[way] = None;
                state.cuts_made += 1;
                Some(left as usize)
            }
            Some(left) => {
                state.cuts[way] = Some(left - read as u64);
                None
            }
            None => None,
        };
        state.carried[way] += cut.unwrap_or(read) as u64;
        cut.map_or(Verdict::Pass, Verdict::Cut)
    }
}

impl Link {
    /// Ends both connections in good order.
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// Has both connections reset as soon as the threads that serve them let go.
    fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
        for stream in [&self.client, &self.server] {
            reset_on_close(stream);
            // Wakes a reader, and sends nothing.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|it| it == part.as_bytes())
}

fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn write(link: &Link, to: &mut &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    && !link.doomed.load(Ordering::Acquire) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
