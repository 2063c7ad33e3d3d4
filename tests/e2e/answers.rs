//! Servers that answer without an end, or ask for more than they may have: what they send is not read, the
//! vCons wait, and all others go on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::harness::{
    Certificates, Conserver, Daemon, Database, Finished, Ledger, PATIENCE, POSTGRES_PASSWORD,
    Postgres, Redis, Request, Sample, chain, fresh, peak_memory_of, private_folder, submit,
    wait_until,
};

/// How much a server would send on one connection. Far less fits into the buffers of one.
const FLOOD: usize = 256 << 20;

/// How much more memory a worker may take.
const ROOM: u64 = 48 << 20;

/// An address that is this machine's and no loopback address.
const NOT_LOCAL: &str = "0.0.0.0";

/// A server, and how much each of its connections has taken.
struct Server {
    port: u16,
    sent: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    /// Each connection gets what `serve` sends, and counts.
    fn start(serve: impl Fn(TcpStream) -> usize + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let sent = Arc::<Mutex<Vec<usize>>>::default();
        let record = Arc::clone(&sent);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (serve, record) = (serve.clone(), Arc::clone(&record));
                thread::spawn(move || {
                    let sent = serve(stream);
                    record
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(sent);
                });
            }
        });
        Self { port, sent }
    }

    /// Answers each request with this status and these lines in the head, and then without an end.
    fn over_http(status: u16, lines: &'static str, block: &[u8]) -> Self {
        let in_chunks = lines.contains("chunked");
        let mut block = block.repeat((64 << 10) / block.len());
        if in_chunks {
            block = [format!("{:x}\r\n", block.len()).as_bytes(), &block, b"\r\n"].concat();
        }
        Self::start(move |stream| {
            let Some((_, mut stream)) = Request::receive(stream) else {
                return 0;
            };
            let head = format!("HTTP/1.1 {status} X\r\n{lines}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            flood(&mut stream, &block)
        })
    }

    /// Greets a client of PostgreSQL with this, and goes on with `block` without an end.
    fn postgres(greeting: Vec<u8>, block: Vec<u8>) -> Self {
        Self::start(move |mut stream| {
            greet(&mut stream);
            let _ = stream.write_all(&greeting);
            flood(&mut stream, &block)
        })
    }

    /// The most that a connection has taken.
    fn most(&self) -> usize {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().copied().max().unwrap_or(0)
    }

    /// How many connections have taken something.
    fn count(&self) -> usize {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().filter(|sent| **sent > 0).count()
    }
}

fn flood(stream: &mut TcpStream, block: &[u8]) -> usize {
    let mut sent = 0;
    while sent < FLOOD && stream.write_all(block).is_ok() {
        sent += block.len();
    }
    sent
}

/// Reads the first packets of a client of PostgreSQL, which gets no TLS.
fn greet(stream: &mut TcpStream) {
    while packet(stream).is_some_and(|it| it == 80_877_103_u32.to_be_bytes()) {
        let _ = stream.write_all(b"N");
    }
}

fn packet(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut packet = vec![0; (u32::from_be_bytes(length) as usize).checked_sub(4)?];
    stream.read_exact(&mut packet).ok()?;
    Some(packet)
}

/// A message of PostgreSQL that says it has so many bytes.
fn message(kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// A session that has begun.
fn begun() -> Vec<u8> {
    [message(b'R', 8, &[0; 4]), message(b'Z', 5, b"I")].concat()
}

fn s3(port: u16) -> Value {
    json!({"module": "storage.s3", "options": {
        "aws_access_key_id": "keeper", "aws_secret_access_key": "s", "aws_bucket": "calls",
        "endpoint_url": format!("http://127.0.0.1:{port}"),
    }})
}

fn elasticsearch(port: u16) -> Value {
    let url = format!("http://127.0.0.1:{port}");
    json!({"module": "storage.elasticsearch", "options": {"url": url}})
}

fn postgres(port: u16) -> Value {
    json!({"module": "storage.postgres", "options": {
        "host": "127.0.0.1", "port": port, "database": "calls", "user": "u", "password": "p",
    }})
}

/// A chain to this storage, and another one, from `others` to `done`, without any.
fn config(storage: &Value) -> Value {
    let mut config = chain(&[], &[("bad", storage.clone())]);
    config["chains"]["second"] = json!({"links": ["tagger"], "storages": [], "enabled": 1,
        "ingress_lists": ["others"], "egress_lists": ["done"]});
    config
}

/// The vCons of a chain to this storage wait, others go on, and no answer of the server is read without an
/// end, by no command either.
fn waits(server: &Server, storage: &Value, why: &str) {
    let (redis, samples) = (Redis::plain(), fresh(3));
    let daemon = Conserver::with(&redis)
        .config(&config(storage))
        .workers(1)
        .lanes(2)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .env("COLUMNS", "1000")
        .start();
    let worker = daemon.workers()[&1];
    let before = peak_memory_of(worker);
    submit(&redis, "default", &samples[..2]);
    let told = |line: &str| line.contains("storage bad") && line.contains(why);
    wait_until(&format!("the log says {why:?}"), PATIENCE, || {
        daemon.log().lines().any(told)
    });
    wait_until("several answers were given up", PATIENCE, || {
        server.count() >= 3
    });
    submit(&redis, "others", &samples[2..]);
    Ledger::of(&redis, &samples).wait_for(1);
    assert_eq!(redis.length("DLQ:default"), 0);
    let peak = peak_memory_of(worker);
    assert!(peak < before + ROOM, "{before} {peak}");
    assert_eq!(daemon.workers()[&1], worker, "the worker has died");

    let is_told = |finished: &Finished, code: i32| {
        let output = finished.output();
        assert_eq!(finished.code, code, "{output}");
        assert!(output.contains(why), "{output}");
    };
    is_told(&daemon.conserver().run(&["check"]), 69);
    if storage["module"] != "storage.elasticsearch" {
        let nobody = "05cec3d4-0561-4010-9fb8-23cc7edef146";
        is_told(&daemon.conserver().run(&["get", nobody]), 69);
        // In Redis and on no list.
        submit(&redis, "aside", &fresh(1));
        redis.ask::<i64>(&["DEL", "aside"]);
        is_told(&daemon.conserver().run(&["audit", "--settle", "0"]), 69);
    }
    let nobody = "05cec3d4-0561-4010-9fb8-23cc7edef147";
    let delete = ["delete", nobody, "--from", "bad", "--yes"];
    is_told(&daemon.conserver().run(&delete), 69);
    submit(&redis, "DLQ:storage:bad", &fresh(1));
    let retry = ["dlq", "retry", "storage:bad"];
    is_told(&daemon.conserver().run(&retry), 69);
    assert_eq!(redis.length("DLQ:storage:bad"), 1);
    wait_until("all connections are over", PATIENCE, || server.count() >= 4);
    assert!(server.most() < FLOOD, "{}", server.most());
    daemon.stop();
}

#[test]
fn an_error_of_s3_without_an_end_is_not_read() {
    for lines in ["Content-Length: 1140000000", "Transfer-Encoding: chunked"] {
        let server = Server::over_http(500, lines, b"<Code>InternalError</Code>");
        waits(&server, &s3(server.port), "HTTP 500: InternalError");
    }
}

#[test]
fn an_answer_of_elasticsearch_without_an_end_is_not_read() {
    let block = br#""vcon_dialog_x":{"aliases":{}},"#;
    let server = Server::over_http(200, "Transfer-Encoding: chunked", block);
    waits(
        &server,
        &elasticsearch(server.port),
        "is none of Elasticsearch",
    );
}

#[test]
fn a_large_answer_of_elasticsearch_takes_little_memory() {
    let server = Server::start(|stream| {
        let Some((request, mut stream)) = Request::receive(stream) else {
            return 0;
        };
        // Of the most bytes that the list of indices may have, as many values as there can be.
        let body = match request.head.starts_with("get /vcon_") {
            true => format!(
                "{{\"a\":{{\"aliases\":{{}},\"b\":[0{}]}}}}",
                ",0".repeat(2_000_000)
            ),
            // For the dialog and the tags.
            false => format!(
                "{{\"items\":[{0},{0}],\"b\":[0{1}]}}",
                "{\"index\":{\"status\":201}}",
                ",0".repeat(30_000)
            ),
        };
        let head = format!(
            "HTTP/1.1 200 X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(body.as_bytes());
        body.len()
    });
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&config(&elasticsearch(server.port)))
        .workers(1)
        .start();
    let worker = daemon.workers()[&1];
    let before = peak_memory_of(worker);
    let sample = Sample::of(json!({"uuid": uuid(), "vcon": "0.4.0", "parties": [],
        "created_at": "2025-03-07T10:00:00Z", "dialog": [{"type": "text"}]}));
    let samples = [sample];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let peak = peak_memory_of(worker);
    // Of one that has hardly begun, not even the program is in memory.
    let before = before.max(20 << 20);
    assert!(peak < before + (16 << 20), "{before} {peak}");
    daemon.stop();
}

fn uuid() -> String {
    fresh(1)[0].id.clone()
}

#[test]
fn an_error_of_postgres_of_two_gigabytes_is_not_read() {
    let error = message(b'E', 0x7fff_fff0, b"SFATAL\0CXX000\0M");
    let server = Server::postgres(error, vec![b'x'; 64 << 10]);
    waits(
        &server,
        &postgres(server.port),
        "the answer is longer than 65536 bytes",
    );
}

#[test]
fn a_row_of_postgres_that_nobody_asked_for_is_not_read() {
    let server = Server::start(|mut stream| {
        greet(&mut stream);
        let _ = stream.write_all(&begun());
        // The first question.
        if stream.read_exact(&mut [0]).is_err() || packet(&mut stream).is_none() {
            return 0;
        }
        let _ = stream.write_all(&message(b'D', 0x7fff_fff0, b""));
        flood(&mut stream, &[0; 64 << 10])
    });
    let why = "the answer is longer than 1048576 bytes";
    waits(&server, &postgres(server.port), why);
}

#[test]
fn a_webhook_that_answers_without_an_end_has_taken_the_vcon() {
    for lines in [
        "Content-Length: 1140000000",
        "Content-Encoding: gzip\r\nTransfer-Encoding: chunked",
    ] {
        let server = Server::over_http(200, lines, b"x");
        let (redis, samples) = (Redis::plain(), fresh(3));
        let url = format!("http://127.0.0.1:{}/", server.port);
        let hook = json!({"module": "storage.webhook", "options": {"webhook-urls": [url]}});
        let daemon = Conserver::with(&redis)
            .config(&config(&hook))
            .workers(1)
            .start();
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        wait_until("all connections are over", PATIENCE, || server.count() == 3);
        assert!(server.most() < FLOOD, "{}", server.most());
        daemon.stop();
    }
}

/// A server that asks for the password in clear text, and what it got.
fn curious() -> (u16, Arc<Mutex<Vec<String>>>) {
    let got = Arc::<Mutex<Vec<String>>>::default();
    let record = Arc::clone(&got);
    let server = Server::start(move |mut stream| {
        greet(&mut stream);
        let _ = stream.write_all(&message(b'R', 8, &[0, 0, 0, 3]));
        let mut kind = [0];
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let said = stream
            .read_exact(&mut kind)
            .ok()
            .and_then(|()| packet(&mut stream));
        let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
        record
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(said);
        0
    });
    (server.port, got)
}

fn check(storage: &Value) -> Finished {
    Conserver::with(&Redis::plain())
        .config(&chain(&[], &[("pg", storage.clone())]))
        .env("COLUMNS", "1000")
        .run(&["check"])
}

const CLEAR_TEXT: &str = "it asks for the password in clear text, which is refused";
const WARNING: &str = "whoever answers in the server's place gets the password in clear text";

#[test]
fn who_says_that_there_is_no_tls_does_not_get_the_password() {
    for (host, sslmode, gets_it) in [
        (NOT_LOCAL, None, false),
        ("127.0.0.1", None, true),
        (NOT_LOCAL, Some("prefer"), true),
        (NOT_LOCAL, Some("disable"), true),
    ] {
        let (port, got) = curious();
        let mut storage = postgres(port);
        storage["options"]["host"] = json!(host);
        storage["options"]["password"] = json!(POSTGRES_PASSWORD);
        if let Some(mode) = sslmode {
            storage["options"]["sslmode"] = json!(mode);
        }
        let output = check(&storage).output();
        wait_until("the server was asked", PATIENCE, || {
            !got.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty()
        });
        let got = got.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let has_it = got.iter().any(|said| said.contains(POSTGRES_PASSWORD));
        assert_eq!(has_it, gets_it, "{host} {sslmode:?}: {got:?}");
        assert_eq!(output.contains(CLEAR_TEXT), !gets_it, "{output}");
        assert_eq!(output.contains(WARNING), sslmode.is_some(), "{output}");
        assert!(!output.contains(POSTGRES_PASSWORD), "{output}");
    }
}

/// Takes the place of a server with a certificate of its own, and hands everything on over TLS.
fn man_in_the_middle(certificates: &Certificates, server: u16) -> u16 {
    let certificate = CertificateDer::from_pem_file(certificates.certificate());
    let key = PrivateKeyDer::from_pem_file(certificates.key()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let near = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.expect("a certificate")], key)
        .expect("TLS");
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(certificates.authority());
    roots
        .add(authority.expect("a certificate"))
        .expect("an authority");
    let far = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = (Arc::new(near), Arc::new(far));
    let relay = Server::start(move |stream| {
        let _ = relayed(stream, server, Arc::clone(&near), Arc::clone(&far));
        0
    });
    relay.port
}

/// Hands on what a login takes: each side in its turn.
fn relayed(
    mut stream: TcpStream,
    server: u16,
    near: Arc<rustls::ServerConfig>,
    far: Arc<rustls::ClientConfig>,
) -> Option<()> {
    packet(&mut stream)?;
    stream.write_all(b"S").ok()?;
    let mut onward = TcpStream::connect(("127.0.0.1", server)).ok()?;
    onward.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).ok()?;
    onward.read_exact(&mut [0]).ok()?;
    let name = "localhost".try_into().expect("a name");
    let near = rustls::ServerConnection::new(near).ok()?;
    let far = rustls::ClientConnection::new(far, name).ok()?;
    let mut near = rustls::StreamOwned::new(near, stream);
    let mut far = rustls::StreamOwned::new(far, onward);
    let mut part = [0; 8_192];
    loop {
        let length = near.read(&mut part).ok().filter(|it| *it > 0)?;
        far.write_all(&part[..length]).ok()?;
        far.flush().ok()?;
        let length = far.read(&mut part).ok().filter(|it| *it > 0)?;
        near.write_all(&part[..length]).ok()?;
        near.flush().ok()?;
    }
}

#[test]
fn a_login_holds_for_no_other_connection_where_the_server_can_bind_it() {
    let server = Postgres::with_tls();
    let database = server.new_database();
    let options = |port: u16| json!({"sslmode": "require", "port": port});
    let direct = check(&database.storage_with(options(server.port())));
    assert_eq!(direct.code, 0, "{}", direct.output());
    let folder = private_folder();
    let certificates = Certificates::make(folder.path());
    std::fs::copy(server.authority(), certificates.authority()).expect("a copy");
    let port = man_in_the_middle(&certificates, server.port());
    let relayed = check(&database.storage_with(options(port)));
    assert_eq!(relayed.code, 69, "{}", relayed.output());
    let words = "channel binding check failed";
    assert!(relayed.output().contains(words), "{}", relayed.output());
}

/// The storage at an address that is not a loopback one.
fn at_a_distance(database: &Database<'_>, options: Value) -> Value {
    let mut storage = database.storage_with(options);
    storage["options"]["host"] = json!(NOT_LOCAL);
    storage
}

#[test]
fn a_server_that_wants_the_password_in_clear_text_gets_it_over_verified_tls_only() {
    let server = Postgres::with_tls();
    let database = server.new_database();
    server.let_in("host all all 127.0.0.0/8 password");
    let authority = server.authority();
    let refused = |options: Value| {
        let finished = check(&at_a_distance(&database, options));
        assert_eq!(finished.code, 69, "{}", finished.output());
        assert!(
            finished.output().contains(CLEAR_TEXT),
            "{}",
            finished.output()
        );
    };
    refused(json!({}));
    refused(json!({"sslmode": "require"}));
    for (options, words) in [
        (
            json!({"sslmode": "verify-ca", "sslrootcert": authority}),
            "TLS with a verified certificate",
        ),
        (json!({"sslmode": "prefer"}), WARNING),
        (json!({"sslmode": "disable"}), WARNING),
    ] {
        let finished = check(&at_a_distance(&database, options));
        assert_eq!(finished.code, 0, "{}", finished.output());
        assert!(finished.output().contains(words), "{}", finished.output());
    }
    // A local server may have it.
    assert_eq!(check(&database.storage()).code, 0);
    // It goes on without a word of that where the server does not ask for it so.
    server.let_in("host all all 127.0.0.0/8 scram-sha-256");
    let finished = check(&at_a_distance(&database, json!({})));
    let output = finished.output();
    assert_eq!(finished.code, 0, "{output}");
    assert!(
        output.contains("by default, TLS where it has it"),
        "{output}"
    );
}

#[test]
fn vcons_wait_until_a_server_no_longer_wants_the_password_in_clear_text() {
    let server = Postgres::own();
    let database = server.new_database();
    server.let_in("host all all 127.0.0.0/8 password");
    let (redis, samples) = (Redis::plain(), fresh(5));
    let daemon: Daemon = Conserver::with(&redis)
        .config(&config(&at_a_distance(&database, json!({}))))
        .start();
    submit(&redis, "default", &samples);
    daemon.wait_for_log(CLEAR_TEXT, PATIENCE);
    assert_eq!(redis.length("DLQ:default"), 0);
    assert!(!daemon.output().contains(POSTGRES_PASSWORD));
    server.let_in("host all all 127.0.0.0/8 scram-sha-256");
    Ledger::of(&redis, &samples).settles();
    assert_eq!(database.rows().len(), samples.len());
    daemon.stop();
}

#[test]
fn a_long_error_of_a_trigger_makes_a_dead_letter_and_keeps_the_session() {
    let database = Postgres::database();
    let (redis, samples) = (Redis::plain(), fresh(2));
    let daemon = Conserver::with(&redis)
        .config(&config(&database.storage()))
        .workers(1)
        .lanes(1)
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .start();
    submit(&redis, "default", &samples[..1]);
    Ledger::of(&redis, &samples[..1]).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN RAISE EXCEPTION 'not this one: %', repeat('x', 50000000); END$$; \
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON vcons FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let (worker, backends) = (daemon.workers()[&1], database.backends());
    let before = peak_memory_of(worker);
    submit(&redis, "default", &samples[1..]);
    wait_until("the vCon is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    daemon.wait_for_log("not this one: xxx", PATIENCE);
    assert!(daemon.log().contains("SQLSTATE P0001"));
    assert_eq!(database.backends(), backends);
    let peak = peak_memory_of(worker);
    assert!(peak < before + ROOM, "{before} {peak}");
    daemon.stop();
}
