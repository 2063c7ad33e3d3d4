//! What a server of Elasticsearch's kind answers to a write, and what becomes of the vCons: what each one
//! would meet is waited out, what one vCon is to blame for makes a dead letter.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, Redis, Request, chain, fresh, reply, submit, wait_until,
};

/// A server that gives one answer to every write, until it is mended.
struct Stub {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    answer: Option<Answer>,
    writes: usize,
}

/// What it answers to a write.
#[derive(Clone)]
enum Answer {
    /// To the whole request.
    Request(u16, String),
    /// The status and error of every part.
    All(u16, Value),
    /// Those of the first part; the others are taken.
    First(u16, Value),
}

/// What becomes of the vCons.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Class {
    Hold,
    DeadLetter,
}

impl Stub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    let (request, stream) = Request::receive(stream)?;
                    let (status, body) = answer(&request, &state);
                    reply(stream, status, &body).ok()
                });
            }
        });
        Self { port, state }
    }

    fn answers(&self, answer: Option<Answer>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { answer, writes: 0 };
    }

    fn writes(&self) -> usize {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .writes
    }

    fn storage(&self) -> Value {
        let url = format!("http://127.0.0.1:{}", self.port);
        json!({"module": "storage.elasticsearch", "options": {"url": url}})
    }
}

fn answer(request: &Request, state: &Mutex<State>) -> (u16, String) {
    if !request.head.starts_with("post /_bulk") {
        return (200, "{}".to_owned());
    }
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.writes += 1;
    let mut items = Vec::new();
    let mut lines = request.body.lines();
    while let Some(action) = lines.next() {
        let action: Value = serde_json::from_str(action).expect("an action");
        let (verb, about) = action
            .as_object()
            .and_then(|it| it.iter().next())
            .expect("a verb");
        if verb != "delete" {
            lines.next();
        }
        let id = about["_id"].as_str().expect("an id");
        let (status, error) = match &state.answer {
            Some(Answer::Request(status, body)) => return (*status, body.clone()),
            Some(Answer::All(status, error)) => (*status, error),
            Some(Answer::First(status, error)) if items.is_empty() => (*status, error),
            _ => (201, &Value::Null),
        };
        let mut item = json!({"_index": about["_index"], "_id": id, "status": status});
        if !error.is_null() {
            let error = error.to_string().replace("$ID", id);
            item["error"] = serde_json::from_str(&error).expect("JSON");
        }
        items.push(json!({ verb: item }));
    }
    (200, json!({"errors": true, "items": items}).to_string())
}

fn error(kind: &str, reason: &str) -> Value {
    json!({"type": kind, "reason": reason})
}

fn start(redis: &Redis, stub: &Stub) -> Daemon {
    Conserver::with(redis)
        .config(&chain(&[], &[("es", stub.storage())]))
        .lanes(2)
        .env("CONSERVER_RETRY_FIRST_MS", "5")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .env("CONSERVER_RETRY_ATTEMPTS", "2")
        .start()
}

/// Submits one vCon, then some more, to a server with this answer.
fn is_as(answer: &Answer, class: Class, what: &str) {
    let (redis, stub, samples) = (Redis::plain(), Stub::start(), fresh(20));
    stub.answers(Some(answer.clone()));
    let daemon = start(&redis, &stub);
    for some in [&samples[..1], &samples[1..]] {
        submit(&redis, "default", some);
        match class {
            Class::DeadLetter => wait_until(what, PATIENCE, || {
                redis.length("default") == 0
                    && redis.length("DLQ:default") >= some.len()
                    && redis.keys("conserver:claims:*").is_empty()
            }),
            Class::Hold => {
                let before = stub.writes();
                wait_until(what, PATIENCE, || stub.writes() >= before + 12);
            }
        }
    }
    if class == Class::Hold {
        wait_until("the hold is shown", PATIENCE, || {
            let status = daemon.status().unwrap_or_default();
            let holds = status["holds"].as_array().cloned().unwrap_or_default();
            holds.iter().any(|hold| hold["stage"] == "storage es")
        });
    }
    let dead = redis.length("DLQ:default");
    let expected = if class == Class::Hold {
        0
    } else {
        samples.len()
    };
    assert_eq!(dead, expected, "{what}: {}", daemon.log());
    stub.answers(None);
    if class == Class::Hold {
        Ledger::of(&redis, &samples).settles();
        assert_eq!(redis.keys("DLQ:*"), Vec::<String>::new(), "{what}");
    }
    daemon.stop();
}

#[test]
fn what_every_vcon_meets_is_waited_out() {
    let analyzer = json!({"type": "mapper_parsing_exception",
        "reason": "Failed to parse mapping [_doc]: analyzer [office_words] has not been configured in mappings",
        "caused_by": {"type": "illegal_argument_exception",
            "reason": "analyzer [office_words] has not been configured in mappings"}});
    let argument = |reason| error("illegal_argument_exception", reason);
    let blocked = |what: &str| {
        error(
            "cluster_block_exception",
            &format!("index [i] blocked by: [{what}];"),
        )
    };
    let page = "<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head></html>";
    let login = json!({"error": error("security_exception", "unable to authenticate user [vcon]"),
        "status": 401});
    for (what, answer) in [
        ("an analyzer is missing", Answer::All(400, analyzer)),
        (
            "no ids are taken",
            Answer::All(
                400,
                argument("Document ID is not supported in create/index operation request"),
            ),
        ),
        (
            "an index has an older type",
            Answer::All(
                400,
                argument(
                    "Rejecting mapping update to [i] as the final mapping would have more than 1 type: [_doc, doc]",
                ),
            ),
        ),
        (
            "a reason that nobody knows",
            Answer::All(400, error("novel_exception", "not on a Sunday, $ID")),
        ),
        ("no reason at all", Answer::All(400, Value::Null)),
        (
            "a step of a pipeline that always fails",
            Answer::All(
                500,
                json!({"type": "exception", "reason": "java.lang.IllegalStateException: no database",
                    "header": {"processor_type": "geoip"}}),
            ),
        ),
        (
            "an index is closed",
            Answer::All(400, error("index_closed_exception", "closed")),
        ),
        (
            "the cluster has all its shards",
            Answer::All(
                400,
                error(
                    "validation_exception",
                    "Validation Failed: 1: this action would add [2] shards, but this cluster currently has [1000]/[1000] maximum normal shards open;",
                ),
            ),
        ),
        (
            "the disk is full",
            Answer::All(
                429,
                blocked("TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark"),
            ),
        ),
        (
            "read-only",
            Answer::All(403, blocked("FORBIDDEN/5/index read-only (api)")),
        ),
        (
            "the queue is full",
            Answer::All(429, error("es_rejected_execution_exception", "rejected")),
        ),
        ("a status alone", Answer::All(503, Value::Null)),
        ("a balancer", Answer::Request(503, page.to_owned())),
        ("the login", Answer::Request(401, login.to_string())),
    ] {
        is_as(&answer, Class::Hold, what);
    }
}

#[test]
fn what_one_vcon_is_to_blame_for_is_a_dead_letter() {
    let date = json!({"type": "document_parsing_exception",
        "reason": "[1:88] failed to parse field [start] of type [date] in document with id '$ID'. Preview of field's value: 'soon'",
        "caused_by": {"type": "illegal_argument_exception",
            "reason": "failed to parse date field [soon] with format [strict_date_optional_time||epoch_millis]"}});
    let step = json!({"type": "exception",
        "reason": "java.lang.IllegalArgumentException: 'reception' is not an IP string literal.",
        "caused_by": {"type": "illegal_argument_exception", "reason": "'reception' is not an IP string literal."},
        "header": {"processor_type": "geoip"}});
    let page = "<html>\r\n<head><title>413 Request Entity Too Large</title></head></html>";
    for (what, answer) in [
        ("a field that does not fit", Answer::First(400, date)),
        (
            "too many fields",
            Answer::First(
                400,
                error(
                    "document_parsing_exception",
                    "[1:4021] failed to parse: Limit of total fields [1000] has been exceeded while adding new fields [7]",
                ),
            ),
        ),
        (
            "a text that is too long",
            Answer::First(
                400,
                error(
                    "illegal_argument_exception",
                    "Document contains at least one immense term in field=\"body\" (whose UTF8 encoding is longer than the max length 32766), all of which were skipped.",
                ),
            ),
        ),
        (
            "a field that the mapping does not know",
            Answer::First(
                400,
                error(
                    "strict_dynamic_mapping_exception",
                    "[1:31] mapping set to strict, dynamic introduction of [meta] within [_doc] is not allowed",
                ),
            ),
        ),
        (
            "a reason that nobody knows",
            Answer::First(400, error("novel_exception", "not this one")),
        ),
        (
            "a step of a pipeline with 500",
            Answer::First(500, step.clone()),
        ),
        ("a step of a pipeline with 400", Answer::First(400, step)),
        ("too large", Answer::Request(413, page.to_owned())),
        ("a part that is too large", Answer::First(413, Value::Null)),
    ] {
        is_as(&answer, Class::DeadLetter, what);
    }
}
