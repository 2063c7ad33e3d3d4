//! The proxy that other tests break connections with does what it says.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Direction, PATIENCE, Proxy, wait_until};

/// The port of a server that sends back what it gets.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn echoes(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text.as_bytes());
}

/// What still comes before the connection ends in good order.
fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn everything_passes_and_is_counted() {
    let proxy = Proxy::before(echo());
    let mut stream = connect(&proxy);
    echoes(&mut stream, &"x".repeat(1 << 20));
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "");
    assert_eq!(proxy.carried(Direction::ToServer), 1 << 20);
    assert_eq!(proxy.carried(Direction::ToClient), 1 << 20);
    assert_eq!((proxy.accepted(), proxy.cuts()), (1, 0));
}

#[test]
fn a_connection_is_cut_at_any_byte_of_either_direction() {
    let proxy = Proxy::before(echo());
    for bytes in 0..=5 {
        let before = proxy.cuts();
        proxy.cut_after(Direction::ToClient, bytes);
        let mut stream = connect(&proxy);
        stream.write_all(b"12345").unwrap();
        assert_eq!(rest(&mut stream), "12345"[..bytes as usize]);
        assert_eq!(proxy.cuts(), before + 1);

        proxy.cut_after(Direction::ToServer, bytes);
        let carried = proxy.carried(Direction::ToServer);
        let mut stream = connect(&proxy);
        stream.write_all(b"12345").unwrap();
        wait_until("it is cut", PATIENCE, || proxy.cuts() == before + 2);
        assert_eq!(proxy.carried(Direction::ToServer) - carried, bytes);
    }
    echoes(&mut connect(&proxy), "one cut is one cut");
}

#[test]
fn open_connections_are_reset() {
    let proxy = Proxy::before(echo());
    let mut stream = connect(&proxy);
    echoes(&mut stream, "before");
    proxy.reset();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    echoes(&mut connect(&proxy), "after");
}

#[test]
fn connections_are_refused_and_accepted_again() {
    let proxy = Proxy::before(echo());
    let mut open = connect(&proxy);
    echoes(&mut open, "before");
    proxy.refuse();
    let error = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    echoes(&mut open, "this one is open");
    proxy.pass();
    echoes(&mut connect(&proxy), "after");
}

#[test]
fn a_black_hole_holds_what_it_swallowed_until_it_is_closed() {
    let proxy = Proxy::before(echo());
    let mut stream = connect(&proxy);
    echoes(&mut stream, "before");
    proxy.black_hole();
    stream.write_all(b"held").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    proxy.pass();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"held");
}

#[test]
fn a_delay_is_kept_each_way() {
    let proxy = Proxy::before(echo());
    let mut stream = connect(&proxy);
    let delay = Duration::from_millis(50);
    proxy.delay(delay);
    let start = Instant::now();
    echoes(&mut stream, "slowly");
    assert!(start.elapsed() >= delay * 2);
}

#[test]
fn a_server_that_is_away_resets_the_connection() {
    let away = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = away.local_addr().unwrap().port();
    drop(away);
    let proxy = Proxy::before(port);
    let error = connect(&proxy).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
