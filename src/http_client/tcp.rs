//! TCP connections of the HTTP client that ask the system for no more than a request needs: one call
//! to see that a kept connection is still open, one to send head and body, one to receive.
//!
//! The client library's own connections take ten and more, as they set both time limits of the socket
//! anew for each request, send the head by itself, and switch the socket between blocking and not
//! blocking twice. TLS, proxies and what goes over a connection stay the library's.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, NextTimeout,
    RustlsConnector, Transport,
};
use ureq::{Error, Timeout};

/// What one of several addresses of a host gets at least.
const LEAST_PER_ADDRESS: Duration = Duration::from_millis(10);

/// Where the library's code keeps bytes that it reads by the way.
const SCRATCH: usize = 10 << 10;

/// Opens what a URL needs: a tunnel through a proxy or a [`TcpTransport`], and TLS over it.
pub(super) fn connector() -> impl Connector {
    ().chain(ConnectProxyConnector::default())
        .chain(TcpConnector)
        .chain(TlsConnector::default())
}

/// Opens a connection unless there is one already, as that to a proxy.
#[derive(Debug)]
struct TcpConnector;

impl<In: Transport> Connector<In> for TcpConnector {
    type Out = Either<In, TcpTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        let addresses: Vec<SocketAddr> = details.addrs.iter().copied().collect();
        let proxy = details.config.proxy();
        if proxy.is_some_and(|proxy| !proxy.is_no_proxy(details.uri)) {
            // The connection through any other proxy exists by now.
            let error = io::Error::new(
                ErrorKind::Unsupported,
                "SOCKS proxies are not supported: set an HTTP proxy, or none",
            );
            return Err(error.into());
        }
        let stream = connect(&addresses, details.timeout)?;
        if details.config.no_delay() {
            stream.set_nodelay(true)?;
        }
        let config = details.config;
        Ok(Some(Either::B(TcpTransport {
            stream,
            buffers: HeldBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            longest_read: None,
            longest_write: None,
            is_fresh: true,
        })))
    }
}

/// Connects to the first address that can be reached. Each gets half of the time that is left, the last
/// one all of it.
fn connect(addresses: &[SocketAddr], timeout: NextTimeout) -> Result<TcpStream, Error> {
    let limit = TimeLimit::begin(timeout)?;
    let mut failed = Error::from(io::Error::from(ErrorKind::ConnectionRefused));
    for (place, address) in addresses.iter().enumerate() {
        let share = limit.left().map(|left| {
            let parts = if place + 1 < addresses.len() { 2 } else { 1 };
            (left / parts).max(LEAST_PER_ADDRESS)
        });
        let connected = match share {
            Some(share) => TcpStream::connect_timeout(address, share),
            None => TcpStream::connect(address),
        };
        failed = match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => match error.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock if limit.is_over() => {
                    return Err(limit.error());
                }
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Error::Timeout(Timeout::Connect),
                // These are the address's, and another one may do.
                ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable => error.into(),
                _ => return Err(error.into()),
            },
        };
    }
    Err(failed)
}

/// Puts TLS over a connection to an `https` URL. Reads the system's authorities once for all connections of a
/// minute, and resumes their sessions; after a failure, and later, the authorities may be others.
///
/// The library by itself would read them for each connection, as each request brings a time limit of its own,
/// and could bring other authorities too.
#[derive(Debug, Default)]
struct TlsConnector(Mutex<Option<(Instant, Arc<RustlsConnector>)>>);

/// For how long the authorities that were read count.
const TRUSTED: Duration = Duration::from_secs(60);

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = <RustlsConnector as Connector<In>>::Out;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let latest = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let connector = match &mut *latest() {
            Some((since, connector)) if since.elapsed() < TRUSTED => Arc::clone(connector),
            old => {
                let new = Arc::new(RustlsConnector::default());
                *old = Some((Instant::now(), Arc::clone(&new)));
                new
            }
        };
        let mut addrs = details.resolver.empty();
        details
            .addrs
            .iter()
            .for_each(|address| addrs.push(*address));
        let of_agent = ConnectionDetails {
            // No request has authorities of its own.
            request_level: false,
            uri: details.uri,
            addrs,
            config: details.config,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: Arc::clone(&details.current_time),
            run_connector: Arc::clone(&details.run_connector),
            register_shutdown: Arc::clone(&details.register_shutdown),
        };
        let connected = connector.connect(&of_agent, chained);
        if connected.is_err() {
            *latest() = None;
        }
        connected
    }
}

/// A connection. What the library hands over to be sent waits until an answer is awaited or half of
/// the buffer is full, so that the head of a request and its body go out together.
#[derive(Debug)]
struct TcpTransport {
    stream: TcpStream,
    buffers: HeldBuffers,
    /// The time limits that the socket has now.
    longest_read: Option<Duration>,
    longest_write: Option<Duration>,
    /// Whether nothing has happened since the latest answer, or since it was opened.
    is_fresh: bool,
}

impl TcpTransport {
    /// Sends all that waits.
    fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let held = std::mem::take(&mut self.buffers.held);
        if held == 0 {
            return Ok(());
        }
        let limit = TimeLimit::begin(timeout.for_write())?;
        let mut rest = &self.buffers.output[..held];
        while !rest.is_empty() {
            limit.set(&mut self.longest_write, |longest| {
                self.stream.set_write_timeout(longest)
            })?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(sent) => rest = &rest[sent..],
                Err(error) => limit.go_on_after(error)?,
            }
        }
        Ok(())
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.buffers.held += amount;
        // Half of it always is free, for the longest header.
        if self.buffers.held > self.buffers.output.len() / 2 {
            self.flush(timeout)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.flush(timeout)?;
        let limit = TimeLimit::begin(timeout.for_read())?;
        loop {
            limit.set(&mut self.longest_read, |longest| {
                self.stream.set_read_timeout(longest)
            })?;
            match (&self.stream).read(self.buffers.input_append_buf()) {
                Ok(amount) => {
                    self.buffers.input_appended(amount);
                    self.is_fresh = true;
                    return Ok(amount > 0);
                }
                Err(error) => limit.go_on_after(error)?,
            }
        }
    }

    /// The library asks twice: when an answer has been read to its end, and when the connection is to be
    /// used again. Only the second time can tell more than the answer did.
    fn is_open(&mut self) -> bool {
        if std::mem::take(&mut self.is_fresh) {
            return true;
        }
        // There should be nothing to receive: neither an end nor bytes that belong to no answer.
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

/// The time limit of one step.
struct TimeLimit {
    begun: Instant,
    time: Option<Duration>,
    reason: Timeout,
}

impl TimeLimit {
    /// Fails if nothing is left of the time. TLS asks for one step after the other, each with what is left
    /// of one limit: with a little time for each, a server that sends byte by byte would never be given up.
    fn begin(timeout: NextTimeout) -> Result<Self, Error> {
        if timeout.after.is_zero() {
            return Err(Error::Timeout(timeout.reason));
        }
        Ok(Self {
            begun: Instant::now(),
            time: timeout.not_zero().map(|time| *time),
            reason: timeout.reason,
        })
    }

    /// What is left of it; never nothing, which would stand for no limit.
    fn left(&self) -> Option<Duration> {
        let left = self.time?.saturating_sub(self.begun.elapsed());
        Some(left.max(Duration::from_millis(1)))
    }

    fn is_over(&self) -> bool {
        self.time.is_some_and(|time| self.begun.elapsed() >= time)
    }

    fn error(&self) -> Error {
        Error::Timeout(self.reason)
    }

    /// Sees to it that a call ends by this limit. A socket that has a somewhat shorter one keeps it, as the
    /// limits of requests that follow each other differ by little: a call that ends too early is made again.
    fn set(
        &self,
        now: &mut Option<Duration>,
        set: impl FnOnce(Option<Duration>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let left = self.left();
        let fits = match (left, *now) {
            (Some(left), Some(now)) => now <= left && now >= left / 2,
            (left, now) => left == now,
        };
        if !fits {
            // A little less, so that it fits the next request too.
            let shorter = left.map(|left| left - left / 8);
            let is_long = left > Some(Duration::from_secs(1));
            let longest = if is_long { shorter } else { left };
            set(longest)?;
            *now = longest;
        }
        Ok(())
    }

    /// Whether a call that failed may be made again: after a signal, or after the socket's own limit
    /// while there is time left.
    fn go_on_after(&self, error: io::Error) -> Result<(), Error> {
        match error.kind() {
            ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
                if self.is_over() =>
            {
                Err(self.error())
            }
            ErrorKind::Interrupted | ErrorKind::WouldBlock => Ok(()),
            _ => Err(error.into()),
        }
    }
}

/// The buffers of a connection, allocated at their first use. The system hands out most of that memory zeroed,
/// so that what no request fills is not touched. The output keeps what waits to be sent.
#[derive(Debug)]
struct HeldBuffers {
    input: Vec<u8>,
    input_size: usize,
    /// The bytes `consumed..filled` of the input were received and not consumed yet.
    consumed: usize,
    filled: usize,
    /// Whether the latest look at the input consumed some of it.
    is_progress: bool,
    output: Vec<u8>,
    output_size: usize,
    /// How many bytes of the output wait to be sent.
    held: usize,
}

impl HeldBuffers {
    fn new(input_size: usize, output_size: usize) -> Self {
        Self {
            input: Vec::new(),
            input_size,
            consumed: 0,
            filled: 0,
            is_progress: false,
            output: Vec::new(),
            output_size,
            held: 0,
        }
    }

    fn free_input(&mut self) -> &mut [u8] {
        if self.input.is_empty() {
            self.input = vec![0; self.input_size];
        }
        if self.consumed == self.filled {
            (self.consumed, self.filled) = (0, 0);
        } else if self.filled > self.input.len() / 2 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        &mut self.input[self.filled..]
    }
}

impl Buffers for HeldBuffers {
    fn output(&mut self) -> &mut [u8] {
        if self.output.is_empty() {
            self.output = vec![0; self.output_size];
        }
        &mut self.output[self.held..]
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.free_input()
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.is_progress = amount > 0;
        self.consumed += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.output();
        if self.free_input().len() < SCRATCH {
            self.input.resize(self.filled + SCRATCH, 0);
        }
        (
            &mut self.input[self.filled..],
            &mut self.output[self.held..],
        )
    }

    fn can_use_input(&self) -> bool {
        self.is_progress && !self.input().is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use ureq::unversioned::transport::{TransportAdapter, time};
    use ureq::{Agent, Proxy};

    use super::*;

    fn within(milliseconds: u64) -> NextTimeout {
        NextTimeout {
            after: Duration::from_millis(milliseconds).into(),
            ..NextTimeout::default()
        }
    }

    /// A transport and its other side.
    fn pair(size: usize) -> (TcpTransport, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let transport = TcpTransport {
            stream,
            buffers: HeldBuffers::new(size, size),
            longest_read: None,
            longest_write: None,
            is_fresh: true,
        };
        (transport, listener.accept().unwrap().0)
    }

    fn transmit(transport: &mut TcpTransport, text: &str) {
        transport.buffers().output()[..text.len()].copy_from_slice(text.as_bytes());
        transport.transmit_output(text.len(), within(5000)).unwrap();
    }

    #[test]
    fn all_parts_of_a_request_go_out_when_its_answer_is_awaited_or_the_buffer_is_half_full() {
        let (mut transport, mut server) = pair(100);
        let received = |server: &mut TcpStream| {
            let mut bytes = [0; 200];
            server.set_nonblocking(true).unwrap();
            match server.read(&mut bytes) {
                Ok(length) => String::from_utf8_lossy(&bytes[..length]).into_owned(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => String::new(),
                Err(error) => unreachable!("{error}"),
            }
        };
        transmit(&mut transport, "head ");
        transmit(&mut transport, "body");
        assert_eq!(received(&mut server), "");
        server.write_all(b"answer").unwrap();
        assert!(transport.await_input(within(5000)).unwrap());
        assert_eq!(transport.buffers().input(), b"answer");
        assert_eq!(received(&mut server), "head body");

        let long = "x".repeat(51);
        transmit(&mut transport, &long);
        assert_eq!(received(&mut server), long);
    }

    #[test]
    fn input_that_is_not_consumed_yet_stays_in_front_of_what_follows() {
        let mut buffers = HeldBuffers::new(8, 8);
        for (text, consumed, left) in [("abcdef", 4, "ef"), ("ghij", 0, "efghij"), ("k", 7, "")] {
            buffers.input_append_buf()[..text.len()].copy_from_slice(text.as_bytes());
            buffers.input_appended(text.len());
            buffers.input_consume(consumed);
            assert_eq!(buffers.input(), left.as_bytes());
            assert_eq!(buffers.can_use_input(), consumed > 0 && !left.is_empty());
        }
        let (scratch, output) = buffers.tmp_and_output();
        assert!(scratch.len() >= SCRATCH && output.len() == 8);
    }

    #[test]
    fn a_connection_is_looked_at_before_it_is_used_again() {
        for sent in [None, Some(""), Some("stray")] {
            let (mut transport, mut server) = pair(100);
            server.write_all(b"answer").unwrap();
            assert!(transport.await_input(within(5000)).unwrap());
            let kept = match sent {
                Some(text) => {
                    server.write_all(text.as_bytes()).unwrap();
                    drop(server);
                    // What the server did has arrived.
                    transport.stream.peek(&mut [0]).unwrap();
                    None
                }
                None => Some(server),
            };
            assert!(transport.is_open(), "when the answer is read");
            assert_eq!(transport.is_open(), kept.is_some(), "{sent:?}");
        }
    }

    #[test]
    fn a_time_limit_is_kept_whatever_the_socket_has_from_the_request_before() {
        for (before, milliseconds) in [(60_000, 100), (120, 200), (100, 150)] {
            let (mut transport, mut server) = pair(100);
            server.write_all(b"answer").unwrap();
            assert!(transport.await_input(within(before)).unwrap());
            let start = Instant::now();
            let error = transport.await_input(within(milliseconds)).unwrap_err();
            let took = start.elapsed();
            assert!(matches!(error, Error::Timeout(_)), "{error}");
            let limit = Duration::from_millis(milliseconds);
            assert!(took >= limit && took < 20 * limit, "{before}: {took:?}");
        }
    }

    #[test]
    fn nothing_is_tried_when_no_time_is_left() {
        let (mut transport, mut server) = pair(100);
        let address = server.local_addr().unwrap();
        server.write_all(b"answer").unwrap();
        let is_over = |error| matches!(error, Error::Timeout(Timeout::Global));
        assert!(is_over(transport.await_input(within(0)).unwrap_err()));
        transport.buffers().output();
        assert!(is_over(
            transport.transmit_output(100, within(0)).unwrap_err()
        ));
        assert!(is_over(connect(&[address], within(0)).unwrap_err()));
        let timeout = NextTimeout {
            per_read: Some(Duration::ZERO.into()),
            ..within(5000)
        };
        let error = transport.await_input(timeout).unwrap_err();
        assert!(matches!(error, Error::Timeout(Timeout::PerRead)), "{error}");
    }

    #[test]
    fn a_server_that_answers_byte_by_byte_is_given_up_in_time() {
        let (transport, mut server) = pair(100);
        // This is how TLS reads: step by step, within one limit.
        let mut adapter = TransportAdapter::new(transport, Arc::new(time::Instant::now));
        adapter.set_timeout(within(50));
        let start = Instant::now();
        let mut drip = || -> io::Result<()> {
            server.write_all(b"x")?;
            assert_eq!(adapter.read(&mut [0])?, 1);
            Ok(())
        };
        let mut bytes = 0;
        let error = loop {
            match drip() {
                Ok(()) => bytes += 1,
                Err(error) => break error,
            }
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "{bytes} bytes in {took:?}");
        };
        assert!(error.to_string().contains("timeout"), "{error}");
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn requests_that_follow_each_other_share_the_limit_of_the_socket() {
        let seconds = |seconds: f64| Some(Duration::from_secs_f64(seconds));
        for (had, left, has) in [
            (None, 30.0, seconds(26.25)),
            (seconds(26.25), 30.0, seconds(26.25)),
            (seconds(26.25), 27.0, seconds(26.25)),
            (seconds(26.25), 24.0, seconds(21.0)),
            (seconds(26.25), 60.0, seconds(52.5)),
            (seconds(26.25), 0.5, seconds(0.5)),
        ] {
            let limit = TimeLimit::begin(within((left * 1000.0) as u64)).unwrap();
            let (mut now, mut set) = (had, had);
            let apply = |longest| {
                set = longest;
                Ok(())
            };
            limit.set(&mut now, apply).unwrap();
            assert_eq!(now, set);
            let [now, has] = [now, has].map(Option::unwrap);
            // A little of what was left is over.
            assert!(
                now <= has && now > has.mul_f64(0.95),
                "{had:?} {left}: {now:?}"
            );
        }
    }

    #[test]
    fn what_is_too_much_for_the_other_side_is_sent_by_and_by_or_not_in_time() {
        let (mut transport, mut server) = pair(8 << 20);
        let fill = |transport: &mut TcpTransport| {
            transport.buffers().output();
            transport.transmit_output(8 << 20, within(300))
        };
        let error = fill(&mut transport).unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");

        let reader = thread::spawn(move || io::copy(&mut server, &mut io::sink()));
        assert!(fill(&mut transport).is_ok());
        drop(transport);
        assert!(reader.join().unwrap().unwrap() > 8 << 20);
    }

    #[test]
    fn the_next_address_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = gone.local_addr().unwrap();
        drop(gone);
        let stream = connect(&[refused, good], within(5000)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        for addresses in [&[refused, refused][..], &[]] {
            let error = connect(addresses, within(5000)).unwrap_err();
            assert!(error.to_string().contains("refused"), "{error}");
        }
    }

    #[test]
    fn no_proxy_that_is_not_understood_is_passed_by() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for scheme in ["socks4", "socks5"] {
            let proxy = Proxy::new(&format!("{scheme}://127.0.0.1:1")).unwrap();
            let config = Agent::config_builder().proxy(Some(proxy)).build();
            let agent = Agent::with_parts(
                config,
                connector(),
                super::super::CachingResolver::default(),
            );
            let error = agent.get(format!("http://{address}/")).call().unwrap_err();
            assert!(error.to_string().contains("SOCKS"), "{scheme}: {error}");
        }
    }
}
