//! The forms of `REDIS_URL`: each leads to the server, the user and the database that redis-py's reading
//! leads to, or is refused at once, without showing a password.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Conserver, Finished, Ledger, Redis, Sample, chain, private_folder, said, submit,
};

/// A password with all that is special in a URL, and its percent-encoded form.
const PASSWORD: &str = "de:sk@7/%?#";
const ENCODED: &str = "de%3Ask%407%2F%25%3F%23";

/// A user, his password, and both percent-encoded.
const USER: &str = "clerk";
const WORD: &str = "a+b c";
const WORD_ENCODED: &str = "a%2Bb%20c";

/// Two servers, one of them with a password and a user, both also on IPv6 and on sockets.
struct Servers {
    open: Redis,
    lock: Redis,
    folder: tempfile::TempDir,
}

impl Servers {
    fn start() -> Self {
        let both = ["--bind", "127.0.0.1", "::1"];
        let open = Redis::new().with(&both).started();
        let lock = Redis::new().with(&both).started();
        let password = format!(">{WORD}");
        lock.ask::<()>(&["ACL", "SETUSER", USER, "on", &password, "~*", "+@all"]);
        let folder = private_folder();
        let inner = folder.path().join("my dir");
        fs::create_dir(&inner).expect("a folder");
        for (server, name) in [(&open, "open.sock"), (&lock, "lock.sock")] {
            symlink(server.socket(), folder.path().join(name)).expect("a link");
            symlink(server.socket(), inner.join(name)).expect("a link");
        }
        Self { open, lock, folder }
    }

    fn url(&self, form: &str) -> String {
        let at = |host: &str, server: &Redis| format!("{host}:{}", server.port());
        form.replace("{OPEN}", &at("127.0.0.1", &self.open))
            .replace("{LOCK}", &at("127.0.0.1", &self.lock))
            .replace("{OPEN6}", &at("[::1]", &self.open))
            .replace("{LOCK6}", &at("[::1]", &self.lock))
            .replace("{OPEN_PORT}", &self.open.port().to_string())
            .replace("{DIR}", &self.folder.path().display().to_string())
            .replace("{PASSWORD}", ENCODED)
            .replace("{WORD}", WORD_ENCODED)
    }
}

fn conserver(url: &str) -> Conserver {
    Conserver::without_redis()
        .config(&chain(&[], &[]))
        .env("REDIS_URL", url)
}

fn shows_no_password(finished: &Finished, url: &str) {
    let output = finished.output();
    for secret in [PASSWORD, ENCODED, WORD, WORD_ENCODED, "a%2Bb+c", "hunter2"] {
        assert!(!output.contains(secret), "{url}: {output}");
    }
}

#[test]
fn each_form_leads_to_its_server_and_database() {
    let servers = Servers::start();
    let password = format!(">{PASSWORD}");
    // From here on, nobody gets in without one of them; the test keeps its connection.
    let mut admin = servers.lock.connection();
    redis::cmd("ACL")
        .arg(&["SETUSER", "default", "resetpass", &password])
        .query::<()>(&mut admin)
        .expect("Redis");
    let sample = Sample::small();
    let key = format!("vcon:{}", sample.id);
    for (form, database) in [
        ("redis://{OPEN}", 0),
        ("redis://{OPEN}/", 0),
        ("redis://{OPEN}/3", 3),
        ("redis://{OPEN}/3/", 3),
        ("redis://{OPEN}?db=4", 4),
        ("redis://{OPEN}/3?db=4", 4),
        ("redis://{OPEN}/3?db=", 3),
        ("redis://localhost:{OPEN_PORT}/1", 1),
        ("redis:///1?host=127.0.0.1&port={OPEN_PORT}", 1),
        ("redis://{OPEN6}/2", 2),
        ("redis://:{PASSWORD}@{LOCK}/1", 1),
        ("redis://default:{PASSWORD}@{LOCK}/1", 1),
        ("redis://clerk:{WORD}@{LOCK}/2", 2),
        ("redis://clerk:{WORD}@{LOCK6}/2", 2),
        ("redis://clerk:a+b c@{LOCK}/2", 2),
        ("redis://{LOCK}/1?password={PASSWORD}", 1),
        ("redis://{LOCK}/2?username=clerk&password=a%2Bb+c", 2),
        ("redis://clerk@{LOCK}/2?password=a%2Bb+c", 2),
        ("redis://clerk:{WORD}@{LOCK}/2?password=other", 2),
        ("redis://:{WORD}@{LOCK}?username=clerk&db=5", 5),
        ("unix://{DIR}/open.sock", 0),
        ("unix://{DIR}/open.sock?db=2", 2),
        ("unix://clerk:{WORD}@{DIR}/lock.sock?db=2", 2),
        ("unix://{DIR}/lock.sock?db=2&password={PASSWORD}", 2),
        (
            "unix://{DIR}/lock.sock?db=2&username=clerk&password=a%2Bb+c",
            2,
        ),
        ("unix://{DIR}/my%20dir/open.sock?db=1", 1),
        (
            "redis://{OPEN}/1?socket_timeout=5&health_check_interval=30&decode_responses=True\
             &retry_on_timeout=true&max_connections=10&client_name=x&socket_connect_timeout=0.5",
            1,
        ),
    ] {
        let url = servers.url(form);
        let conserver = conserver(&url);
        fs::write(conserver.folder().join("one.json"), sample.text()).expect("a file");
        let finished = conserver.run(&["submit", "one.json", "--list", "in"]);
        assert_eq!(finished.code, 0, "{form}: {}", finished.output());
        shows_no_password(&finished, form);
        let is_open = form.contains("OPEN") || form.contains("open");
        let mut found = Vec::new();
        for number in 0..16 {
            let mut ask = redis::pipe();
            ask.cmd("SELECT").arg(number).ignore();
            ask.cmd("EXISTS").arg(&key);
            ask.cmd("FLUSHDB").ignore();
            let (exists,): (bool,) = if is_open {
                ask.query(&mut servers.open.connection()).expect("Redis")
            } else {
                ask.query(&mut admin).expect("Redis")
            };
            found.extend(exists.then_some(number));
        }
        assert_eq!(found, [database], "{form}");
        let checked = conserver.run(&["check"]);
        assert_eq!(checked.code, 0, "{form}: {}", checked.output());
        shows_no_password(&checked, form);
    }
}

#[test]
fn what_cannot_be_used_is_refused_at_once() {
    let servers = Servers::start();
    let password = format!(">{PASSWORD}");
    servers
        .lock
        .ask::<()>(&["ACL", "SETUSER", "default", "resetpass", &password]);
    for (form, code, words) in [
        ("{OPEN}/1", 78, &["redis://"][..]),
        ("http://hunter2@{OPEN}", 78, &["redis://", "scheme"]),
        ("redis-cluster://{OPEN}", 78, &["scheme"]),
        ("redis://{OPEN}?db=x", 78, &["db"]),
        ("redis://{OPEN}?db=-1", 78, &["db"]),
        ("redis://{OPEN}/x", 78, &["database"]),
        ("redis://{OPEN}/1?hunter2=1&x=@", 78, &["parameter"]),
        ("redis://{OPEN}/1?databse=1", 78, &["databse"]),
        (
            "redis://{OPEN}/1?max_connections=x",
            78,
            &["max_connections"],
        ),
        ("redis://{OPEN}?ssl_cert_reqs=none", 78, &["ssl_cert_reqs"]),
        ("redis://:de/hunter2@{LOCK}/1", 78, &["%2F"]),
        ("redis://:12#hunter2@{LOCK}/1", 78, &["%23"]),
        ("redis://::1/2", 78, &["IPv6"]),
        ("unix://relative/open.sock", 78, &["unix:///"]),
        ("redis://hunter2@{LOCK}/1", 78, &["password", "REDIS_URL"]),
        ("redis://{LOCK}/1", 69, &["password", "REDIS_URL"]),
        ("redis://:hunter2@{LOCK}/1", 69, &["password", "REDIS_URL"]),
        ("redis://clerk:hunter2@{LOCK}/1", 69, &["password"]),
        ("redis://clerk:{WORD}x@{LOCK}/1", 69, &["password"]),
        ("redis://:hunter2@{OPEN}", 69, &["password"]),
        ("unix://{DIR}/lock.sock?db=2", 69, &["password"]),
        ("redis://{OPEN}/99", 69, &["database", "REDIS_URL"]),
        ("redis://{OPEN}?db=99", 69, &["database"]),
    ] {
        let url = servers.url(form);
        let conserver = conserver(&url);
        for command in ["check", "run"] {
            let finished = conserver.run(&[command]);
            let output = finished.output();
            assert_eq!(finished.code, code, "{command} {form}: {output}");
            said(&finished, words);
            shows_no_password(&finished, form);
            let took = finished.took;
            assert!(took < Duration::from_secs(4), "{command} {form}: {took:?}");
        }
    }
    for form in ["{OPEN}/1", "redis://{OPEN}?db=x", "redis://{OPEN}?x=1"] {
        let finished = conserver(&servers.url(form)).run(&["check", "--offline"]);
        assert_eq!(finished.code, 78, "{form}: {}", finished.output());
    }
}

#[test]
fn parameters_without_effect_are_told_once() {
    let redis = Redis::plain();
    let url = format!("{}?socket_timeout=5&db=1", redis.url());
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("REDIS_URL", url)
        .workers(2)
        .start();
    let line = "REDIS_URL: parameters without effect: socket_timeout; in effect: db";
    assert_eq!(daemon.count_in_log(line), 1, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn the_storage_reads_its_url_in_the_same_way() {
    let (redis, servers) = (Redis::plain(), Servers::start());
    let storage = |form: &str| {
        let options = json!({"redis_url": servers.url(form)});
        json!({"module": "storage.redis_storage", "options": options})
    };
    let sample = Sample::small();
    for (form, database) in [
        ("redis://{OPEN}?db=4", 4),
        ("unix://{DIR}/open.sock?db=2&socket_timeout=3", 2),
    ] {
        let config = chain(&[], &[("kept", storage(form))]);
        let daemon = Conserver::with(&redis).config(&config).start();
        submit(&redis, "default", std::slice::from_ref(&sample));
        Ledger::of(&redis, std::slice::from_ref(&sample)).settles();
        let key = format!("vcon_storage:{}", sample.id);
        let kept: i64 = servers.open.ask_in(database, &["EXISTS", &key]);
        assert_eq!(kept, 1, "{form}");
        daemon.stop();
        redis.ask::<()>(&["FLUSHALL"]);
    }
    for (form, word) in [
        ("redis://{OPEN}?databse=4", "databse"),
        ("redis://{OPEN}?db=x", "db"),
    ] {
        let config = chain(&[], &[("kept", storage(form))]);
        let finished = Conserver::with(&redis).config(&config).run(&["check"]);
        assert_eq!(finished.code, 78, "{form}: {}", finished.output());
        said(&finished, &["redis_url", word]);
    }
}

#[test]
fn certificates_are_those_that_the_url_names() {
    let both = ["--bind", "127.0.0.1", "127.0.0.2"];
    let redis = Redis::new().tls().with(&both).started();
    let authority = redis.authority().display().to_string();
    for (query, code) in [
        (String::new(), 69),
        (format!("?ssl_ca_certs={authority}"), 0),
        ("?ssl_cert_reqs=none".to_owned(), 0),
        ("?ssl_cert_reqs=required".to_owned(), 69),
        ("?ssl_ca_certs=/nonexistent".to_owned(), 78),
    ] {
        let url = format!("{}{query}", redis.url());
        let finished = conserver(&url).run(&["check"]);
        assert_eq!(finished.code, code, "{url}: {}", finished.output());
    }
    // The certificate is not one of that name.
    let other = redis.url().replace("127.0.0.1", "127.0.0.2");
    for (end, code) in [("", 69), ("&ssl_check_hostname=false", 0)] {
        let url = format!("{other}?ssl_ca_certs={authority}{end}");
        let finished = conserver(&url).run(&["check"]);
        assert_eq!(finished.code, code, "{url}: {}", finished.output());
    }
}
