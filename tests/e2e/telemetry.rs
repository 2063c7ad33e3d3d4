//! Traces and metrics, as OpenTelemetry's own decoder reads them, and collectors that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Collector, Conserver, Daemon, Files, Format, Hook, Ledger, Monitor, PATIENCE, Redis, Sample,
    Scrape, chain, delay, fresh, name_of, said, submit, wait_until,
};

/// The trace and span of a producer.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// How long a drain may take beside a collector that fails: it waits for less than a second in each of two processes.
const PROMPT: Duration = Duration::from_secs(4);

fn with(redis: &Redis, collector: &Collector) -> Conserver {
    Conserver::with(redis)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

fn one<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{name} in {spans:#?}");
    found[0]
}

fn time(span: &Value, name: &str) -> u64 {
    span[name].as_u64().expect("a time")
}

/// The names of the threads of a process.
fn threads_of(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    let names = tasks.map(|task| name(task.expect("a thread")).unwrap_or_default());
    names.map(|name| name.trim().to_owned()).collect()
}

fn telemetry_threads(daemon: &Daemon) -> Vec<String> {
    let has_one = |pid: &i32| threads_of(*pid).iter().any(|name| name == "telemetry");
    let family = daemon.family().into_iter().filter(has_one);
    let mut names: Vec<String> = family.map(name_of).collect();
    names.sort();
    names
}

#[test]
fn each_vcon_has_a_tree_of_spans_and_its_egress_context_is_the_root() {
    let (redis, files, collector) = (Redis::plain(), Files::new(), Collector::start());
    let samples = [Sample::small()];
    let id = samples[0].id.as_str();
    let context = json!({"trace_id": TRACE, "span_id": SPAN, "trace_flags": 1}).to_string();
    redis.ask::<i64>(&["RPUSH", &format!("context:default:{id}"), &context]);
    let hook = Hook::new();
    let storages = [("files", files.storage()), ("hook", hook.storage())];
    let mut config = chain(&[delay(0.05)], &storages);
    config["chains"]["main"]["egress_lists"] = json!(["done", "copy"]);
    let daemon = with(&redis, &collector)
        .config(&config)
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-key=hunter2%2Bhunter2,x-other=b",
        )
        .env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment=t%20st,service.name=unseen",
        )
        .env("OTEL_SERVICE_NAME", "calls")
        .env("LOG_LEVEL", "DEBUG")
        .start();
    let worker = daemon.wait_for_workers(1)[&1];
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let spans = collector.wait_for_spans(5);
    assert_eq!(spans.len(), 5, "{spans:#?}");
    for span in &spans {
        let resource = &span["resource"];
        assert_eq!(resource["service.name"], "calls");
        assert_eq!(resource["deployment.environment"], "t st");
        let host = resource["host.name"].as_str().expect("a name");
        assert_eq!(
            resource["service.instance.id"],
            format!("{host}-pid-{worker}")
        );
        assert_eq!(resource["telemetry.sdk.name"], "opentelemetry");
        assert_eq!(
            span["scope"],
            json!(["conserver", env!("CARGO_PKG_VERSION")])
        );
        assert_eq!(span["headers"]["x-key"], "hunter2+hunter2");
        assert_eq!(span["headers"]["x-other"], "b");
        assert_eq!(span["kind"], "SPAN_KIND_INTERNAL");
        assert_eq!(span["status"], "STATUS_CODE_UNSET");
        assert_eq!(span["events"], json!([]));
        assert!(time(span, "start") <= time(span, "end"));
    }
    let root = one(&spans, "vcon_processing.main");
    assert_eq!(
        root["attributes"],
        json!({"vcon_id": id, "chain_name": "main", "vcon.uuid": id})
    );
    assert_eq!(root["parent"], "");
    assert_ne!(root["trace_id"], TRACE);
    assert_eq!(root["links"], json!([[TRACE, SPAN]]));
    for (index, link) in ["tagger", "slowly"].iter().enumerate() {
        let span = one(&spans, &format!("link.{link}"));
        let attributes =
            json!({"vcon_id": id, "link_name": link, "link_index": index, "chain_name": "main"});
        assert_eq!(span["attributes"], attributes);
    }
    for storage in ["files", "hook"] {
        let span = one(&spans, &format!("storage.{storage}"));
        let attributes = json!({"vcon_id": id, "storage_name": storage, "chain_name": "main"});
        assert_eq!(span["attributes"], attributes);
    }
    for child in spans.iter().filter(|span| span["name"] != root["name"]) {
        assert_eq!(child["parent"], root["span_id"]);
        assert_eq!(child["trace_id"], root["trace_id"]);
        assert_eq!(child["links"], json!([]));
        assert!(time(root, "start") <= time(child, "start"), "{child}");
        assert!(time(child, "end") <= time(root, "end"), "{child}");
    }
    let slowly = one(&spans, "link.slowly");
    assert!(time(slowly, "end") - time(slowly, "start") >= 50_000_000);
    assert!(time(one(&spans, "link.tagger"), "end") <= time(slowly, "start"));
    for list in ["done", "copy"] {
        let stored = redis.list(&format!("context:{list}:{id}"));
        let stored: Vec<Value> = stored
            .iter()
            .map(|text| serde_json::from_str(text).expect("JSON"))
            .collect();
        let expected = json!({
            "trace_id": root["trace_id"], "span_id": root["span_id"],
            "trace_flags": 1, "is_sampled": true,
        });
        assert_eq!(stored, [expected], "{list}");
    }
    assert!(!daemon.output().contains("hunter2"));
    daemon.stop();
}

#[test]
fn failures_are_in_the_spans_of_what_failed_and_of_the_whole() {
    let (redis, hook, refusing, collector) =
        (Redis::plain(), Hook::new(), Hook::new(), Collector::start());
    let mut asked = 0;
    hook.decides(move |_| {
        asked += 1;
        if asked < 3 { 503 } else { 200 }
    });
    let bad = [Sample::small()];
    let id = bad[0].id.as_str();
    let refused = id.to_owned();
    refusing.decides(move |id| if id == refused { 422 } else { 200 });
    let mut config = chain(&[("ask", refusing.link())], &[("hook", hook.storage())]);
    config["chains"]["main"]["egress_lists"] = json!(["done"]);
    let _daemon = with(&redis, &collector)
        .config(&config)
        .env("CONSERVER_RETRY_FIRST_MS", "20")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .start();
    let good = [Sample::small()];
    submit(&redis, "default", &good);
    Ledger::of(&redis, &good).settles();
    let spans = collector.wait_for_spans(4);
    let saved = one(&spans, "storage.hook");
    assert_eq!(saved["status"], "STATUS_CODE_UNSET", "{saved:#}");
    let events = saved["events"].as_array().expect("events");
    assert_eq!(events.len(), 2, "{saved:#}");
    for (event, attempt) in events.iter().zip(1..) {
        assert_eq!(event["name"], "exception");
        assert_eq!(event["attributes"]["attempt"], attempt);
        assert_eq!(event["attributes"]["exception.type"], "Busy");
        let message = event["attributes"]["exception.message"].as_str();
        assert!(message.is_some_and(|it| it.contains("503")), "{event}");
    }
    assert_eq!(
        one(&spans, "vcon_processing.main")["status"],
        "STATUS_CODE_UNSET"
    );

    submit(&redis, "default", &bad);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let of_bad = |spans: Vec<Value>| -> Vec<Value> {
        let is_its = |span: &Value| span["attributes"]["vcon_id"] == id;
        spans.into_iter().filter(is_its).collect()
    };
    let mut spans = Vec::new();
    wait_until("its spans are there", PATIENCE, || {
        spans = of_bad(collector.spans());
        named(&spans, "vcon_processing.main")
            .iter()
            .any(|span| span["status"] == "STATUS_CODE_ERROR")
    });
    let trace = |span: &Value| span["trace_id"].clone();
    let root = named(&spans, "vcon_processing.main");
    let root = root.last().expect("a root");
    let is_of_last = |span: &&Value| trace(span) == trace(root);
    let spans: Vec<Value> = spans.iter().filter(is_of_last).cloned().collect();
    assert!(named(&spans, "storage.hook").is_empty());
    let link = one(&spans, "link.ask");
    for (span, begin) in [
        (link, ""),
        (one(&spans, "vcon_processing.main"), "link ask: "),
    ] {
        assert_eq!(span["status"], "STATUS_CODE_ERROR", "{span:#}");
        let message = span["message"].as_str().expect("a message");
        assert!(
            message.starts_with(begin) && message.contains("422"),
            "{span:#}"
        );
        let event = &span["events"][0];
        assert_eq!(event["name"], "exception");
        assert_eq!(event["attributes"]["exception.type"], "Refused");
        let text = event["attributes"]["exception.message"].as_str();
        assert!(text.is_some_and(|it| it.contains("422")), "{span:#}");
    }
    assert_eq!(one(&spans, "link.tagger")["status"], "STATUS_CODE_UNSET");
}

#[test]
fn contexts_that_make_no_sense_are_ignored_and_ids_differ_between_workers() {
    let (redis, collector) = (Redis::plain(), Collector::start());
    let samples = fresh(60);
    for (sample, context) in samples.iter().zip([
        "{",
        "no JSON",
        r#"{"trace_id": 5}"#,
        r#"{"trace_id": "0af7", "span_id": "b7ad", "trace_flags": 1}"#,
    ]) {
        redis.ask::<i64>(&["RPUSH", &format!("context:default:{}", sample.id), context]);
    }
    let _daemon = with(&redis, &collector)
        .config(&chain(&[delay(0.02)], &[]))
        .workers(3)
        .lanes(2)
        .start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    let spans = collector.wait_for_spans(3 * samples.len());
    assert_eq!(spans.len(), 3 * samples.len());
    let roots = named(&spans, "vcon_processing.main");
    assert_eq!(roots.len(), samples.len());
    assert!(roots.iter().all(|root| root["links"] == json!([])));
    let traces: BTreeSet<String> = roots.iter().map(|it| it["trace_id"].to_string()).collect();
    assert_eq!(traces.len(), samples.len());
    let ids: BTreeSet<String> = spans.iter().map(|it| it["span_id"].to_string()).collect();
    assert_eq!(ids.len(), spans.len());
    let instances: BTreeSet<String> = spans
        .iter()
        .map(|it| it["resource"]["service.instance.id"].to_string())
        .collect();
    assert_eq!(instances.len(), 3, "{instances:?}");
}

/// Each point of a metric by its attributes.
fn points<'a>(metrics: &'a Value, name: &str) -> BTreeMap<String, &'a Value> {
    let points = metrics[name]["points"].as_array();
    let points = points.unwrap_or_else(|| panic!("{name} in {metrics:#}"));
    let keyed = points.iter();
    keyed
        .map(|point| (point["attributes"].to_string(), point))
        .collect()
}

#[test]
fn metrics_have_the_names_attributes_and_units_of_the_existing_worker() {
    let (redis, files, collector) = (Redis::plain(), Files::new(), Collector::start());
    let hook = Hook::new();
    let bad = Sample::small();
    let refused = bad.id.clone();
    hook.decides(move |id| if id == refused { 422 } else { 200 });
    let mut config = chain(
        &[("ask", hook.link()), delay(0.01)],
        &[("files", files.storage())],
    );
    config["chains"]["other"] = json!({"links": ["tagger"], "ingress_lists": ["more"]});
    let monitor = Monitor::at_a_port();
    let daemon = with(&redis, &collector)
        .config(&config)
        .workers(2)
        .env("CONSERVER_HTTP", monitor.setting())
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .start();
    let samples = fresh(10);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    submit(&redis, "default", &[bad]);
    wait_until("it is a dead letter", PATIENCE, || {
        redis.length("DLQ:default") == 1
    });
    let export = collector.wait_for_metrics("the last metrics are there", |metrics| {
        let list = json!({"ingress_list": "DLQ:default", "kind": "dlq"}).to_string();
        let lists = points(metrics, "conserver.ingress_list.length");
        lists.get(&list).is_some_and(|point| point["value"] == 1)
            && points(metrics, "conserver.vcons.inflight")
                .values()
                .all(|point| point["value"] == 0)
    });
    let metrics = &export["metrics"];
    assert_eq!(export["headers"]["content-encoding"], "gzip");
    let resource = &export["resource"];
    assert_eq!(resource["service.name"], "vcon-server");
    let host = resource["host.name"].as_str().expect("a name");
    let pid = daemon.process("conserver-mon");
    assert_eq!(resource["service.instance.id"], format!("{host}-pid-{pid}"));

    let sum = ("sum", Some(true));
    let gauge = ("gauge", None);
    let histogram = ("histogram", None);
    type Expected<'a> = (
        &'a str,
        (&'a str, Option<bool>),
        &'a str,
        &'a [(Value, u64)],
    );
    let expected: &[Expected<'_>] = &[
        (
            "conserver.main_loop.count_vcons_received",
            sum,
            "",
            &[
                (json!({"ingress_list": "default"}), 11),
                (json!({"ingress_list": "more"}), 0),
            ],
        ),
        (
            "conserver.main_loop.count_vcons_processed",
            sum,
            "",
            &[
                (json!({"chain.name": "main"}), 10),
                (json!({"chain.name": "other"}), 0),
            ],
        ),
        (
            "conserver.main_loop.vcon_processing_time",
            histogram,
            "s",
            &[(json!({"chain.name": "main"}), 10)],
        ),
        (
            "conserver.vcons.inflight",
            ("sum", Some(false)),
            "",
            &[
                (json!({"chain.name": "main"}), 0),
                (json!({"chain.name": "other"}), 0),
            ],
        ),
        (
            "conserver.link.count",
            sum,
            "",
            &[
                (json!({"link_name": "tagger", "outcome": "success"}), 11),
                (json!({"link_name": "tagger", "outcome": "halt"}), 0),
                (json!({"link_name": "tagger", "outcome": "error"}), 0),
                (json!({"link_name": "ask", "outcome": "success"}), 10),
                (json!({"link_name": "ask", "outcome": "halt"}), 0),
                (json!({"link_name": "slowly", "outcome": "success"}), 10),
                (json!({"link_name": "slowly", "outcome": "halt"}), 0),
                (json!({"link_name": "slowly", "outcome": "error"}), 0),
            ],
        ),
        (
            "conserver.link.execution_time",
            histogram,
            "s",
            &[
                (json!({"link.name": "tagger", "chain.name": "main"}), 11),
                (json!({"link.name": "slowly", "chain.name": "main"}), 10),
            ],
        ),
        (
            "conserver.storage.count",
            sum,
            "",
            &[
                (json!({"backend": "files", "outcome": "success"}), 10),
                (json!({"backend": "files", "outcome": "error"}), 0),
            ],
        ),
        (
            "conserver.storage.duration_ms",
            histogram,
            "ms",
            &[(json!({"backend": "files", "outcome": "success"}), 10)],
        ),
        (
            "conserver.webhook.duration",
            histogram,
            "s",
            &[(json!({"status_code": 200}), 10)],
        ),
        (
            "conserver.dlq.count",
            sum,
            "",
            &[
                (json!({"queue_name": "DLQ:default"}), 1),
                (json!({"queue_name": "DLQ:more"}), 0),
                (json!({"queue_name": "DLQ:storage:files"}), 0),
            ],
        ),
        (
            "conserver.ingress_list.length",
            gauge,
            "",
            &[
                (json!({"ingress_list": "default", "kind": "ingress"}), 0),
                (json!({"ingress_list": "more", "kind": "ingress"}), 0),
                (json!({"ingress_list": "DLQ:default", "kind": "dlq"}), 1),
                (json!({"ingress_list": "DLQ:more", "kind": "dlq"}), 0),
            ],
        ),
    ];
    let names: BTreeSet<&str> = metrics
        .as_object()
        .expect("metrics")
        .keys()
        .map(String::as_str)
        .collect();
    let mut promised: BTreeSet<&str> = expected.iter().map(|(name, ..)| *name).collect();
    promised.insert("conserver.redis.memory_used_bytes");
    assert_eq!(names, promised);
    for (name, (kind, monotonic), unit, values) in expected {
        let metric = &metrics[*name];
        assert_eq!(metric["kind"], *kind, "{name}");
        assert_eq!(metric["unit"], *unit, "{name}");
        if *kind != "gauge" {
            assert_eq!(
                metric["temporality"], "AGGREGATION_TEMPORALITY_CUMULATIVE",
                "{name}"
            );
        }
        if let Some(monotonic) = monotonic {
            assert_eq!(metric["monotonic"], *monotonic, "{name}");
        }
        let points = points(metrics, name);
        for (attributes, value) in *values {
            let point = points.get(&attributes.to_string());
            let point = point.unwrap_or_else(|| panic!("{name} {attributes} in {metric:#}"));
            if *kind == "histogram" {
                assert_eq!(point["count"], *value, "{name} {attributes}");
                let buckets = point["buckets"].as_array().expect("buckets");
                let counted: u64 = buckets.iter().filter_map(Value::as_u64).sum();
                assert_eq!(counted, *value, "{name} {attributes}");
                let bounds = point["bounds"].as_array().expect("bounds");
                assert_eq!(buckets.len(), bounds.len() + 1);
            } else {
                assert_eq!(point["value"], *value, "{name} {attributes}");
            }
            if *kind != "gauge" {
                assert!(time(point, "start") < time(point, "time"));
            }
        }
        // `ask` may have been tried several times.
        if *name == "conserver.webhook.duration" {
            let refused = points[&json!({"status_code": 422}).to_string()];
            assert!(refused["count"].as_u64() > Some(0), "{metric:#}");
            assert_eq!(points.len(), 2, "{metric:#}");
        } else if !name.starts_with("conserver.link.") {
            assert_eq!(points.len(), values.len(), "{name}: {metric:#}");
        }
    }
    let slow = points(metrics, "conserver.link.execution_time");
    let slow = slow[&json!({"link.name": "slowly", "chain.name": "main"}).to_string()];
    let seconds = slow["sum"].as_f64().expect("a sum");
    assert!((0.1..10.0).contains(&seconds), "{slow}");
    let memory = &metrics["conserver.redis.memory_used_bytes"];
    assert_eq!(
        (memory["kind"].as_str(), memory["unit"].as_str()),
        (Some("gauge"), Some("By"))
    );
    assert!(memory["points"][0]["value"].as_u64() > Some(100_000));

    // A second worker goes on where the first was, and the start of the counters stays.
    let start = time(slow, "start");
    let later = collector.wait_for_metrics("another export", |other| other != metrics);
    let later = points(&later["metrics"], "conserver.link.execution_time");
    let later = later[&json!({"link.name": "slowly", "chain.name": "main"}).to_string()];
    assert_eq!(time(later, "start"), start);
    let scrape = Scrape::of(&monitor, Format::OpenMetrics);
    let sent = scrape.get("conserver_telemetry_sent_total", &[("signal", "metrics")]);
    assert!(sent >= Some(1.0), "{sent:?}");
    daemon.stop();
}

/// The spans of each vCon beside a collector that fails: many, so that a few vCons fill the queues.
const SPANS: usize = 20;

/// Runs vCons beside a collector that fails so; returns the daemon after they are done.
fn beside(collector: &Collector, redis: &Redis, monitor: &Monitor) -> Daemon {
    let names: Vec<String> = (3..SPANS).map(|n| format!("link-{n}")).collect();
    let nothing = delay(0.0).1;
    let links: Vec<(&str, Value)> = names.iter().map(|it| (&**it, nothing.clone())).collect();
    let files = Files::new();
    let daemon = with(redis, collector)
        .config(&chain(&links, &[("files", files.storage())]))
        .workers(2)
        .lanes(2)
        .env("CONSERVER_HTTP", monitor.setting())
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "3000")
        .start();
    let samples = fresh(12_000 / SPANS);
    submit(redis, "default", &samples);
    Ledger::of(redis, &samples).settles();
    daemon
}

fn stops_promptly(daemon: Daemon) {
    let begun = Instant::now();
    daemon.stop();
    let took = begun.elapsed();
    assert!(took < PROMPT, "{took:?}");
}

fn dropped(monitor: &Monitor, signal: &str) -> f64 {
    let scrape = Scrape::of(monitor, Format::OpenMetrics);
    let labels = [("signal", signal)];
    let dropped = scrape.get("conserver_telemetry_dropped_total", &labels);
    dropped.expect("a metric")
}

#[test]
fn a_collector_that_is_away_or_refuses_costs_no_vcon_and_what_it_does_not_get_is_counted() {
    for manner in ["away", "400", "500"] {
        let (redis, monitor) = (Redis::plain(), Monitor::at_a_port());
        let collector = Collector::away();
        if manner != "away" {
            collector.begin();
            collector.answers(manner);
        }
        let begun = Instant::now();
        let daemon = beside(&collector, &redis, &monitor);
        // Of 12,000 spans, no more than two queues of 4096 and what is being sent still wait.
        wait_until("dropped spans are counted", PATIENCE, || {
            dropped(&monitor, "traces") > 500.0 && dropped(&monitor, "metrics") > 1.0
        });
        daemon.wait_for_log("spans dropped: ", PATIENCE);
        let (spans, metrics) = (
            daemon.count_in_log("spans dropped: "),
            daemon.count_in_log("of metrics failed: "),
        );
        let minutes = usize::try_from(begun.elapsed().as_secs() / 60).expect("a number") + 1;
        assert!(spans <= 2 * minutes, "{}", daemon.log());
        assert!(metrics <= minutes, "{}", daemon.log());
        stops_promptly(daemon);
    }
}

#[test]
fn a_collector_that_hangs_costs_no_vcon_and_no_time() {
    let (redis, monitor, collector) = (Redis::plain(), Monitor::at_a_port(), Collector::start());
    collector.answers("hang");
    let daemon = beside(&collector, &redis, &monitor);
    assert!(!collector.spans().is_empty());
    stops_promptly(daemon);
}

#[test]
fn what_a_collector_refuses_of_a_request_is_counted_and_a_collector_that_is_back_gets_the_rest() {
    let (redis, monitor, collector) = (Redis::plain(), Monitor::at_a_port(), Collector::start());
    collector.answers("part");
    let daemon = with(&redis, &collector)
        .config(&chain(&[], &[]))
        .env("CONSERVER_HTTP", monitor.setting())
        .start();
    let samples = fresh(4);
    submit(&redis, "default", &samples[..2]);
    Ledger::of(&redis, &samples[..2]).settles();
    wait_until("refused spans are counted", PATIENCE, || {
        dropped(&monitor, "traces") == 4.0
    });
    daemon.wait_for_log("4 spans dropped: ", PATIENCE);
    daemon.wait_for_log("a part is refused", PATIENCE);
    collector.answers("ok");
    submit(&redis, "default", &samples[2..]);
    wait_until("the others are sent", PATIENCE, || {
        let taken = collector.spans();
        taken.iter().filter(|span| span["manner"] == "ok").count() == 4
    });
    assert_eq!(dropped(&monitor, "traces"), 4.0);
    daemon.stop();
}

#[test]
fn a_collector_that_is_restarted_misses_no_span() {
    let (redis, collector) = (Redis::plain(), Collector::start());
    let _daemon = with(&redis, &collector).config(&chain(&[], &[])).start();
    let samples = fresh(40);
    submit(&redis, "default", &samples[..20]);
    collector.wait_for_spans(40);
    collector.end();
    submit(&redis, "default", &samples[20..]);
    Ledger::of(&redis, &samples).settles();
    collector.begin();
    assert_eq!(collector.wait_for_spans(80).len(), 80);
}

#[test]
fn spans_that_wait_at_a_drain_are_sent() {
    let (redis, collector) = (Redis::plain(), Collector::start());
    let daemon = with(&redis, &collector).config(&chain(&[], &[])).start();
    let samples = fresh(20);
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
    assert_eq!(collector.spans().len(), 2 * samples.len());
}

#[test]
fn a_trace_that_is_not_sent_passes_on_the_context_of_the_producer() {
    let (redis, collector) = (Redis::plain(), Collector::start());
    let samples = fresh(2);
    let id = samples[0].id.as_str();
    let context = json!({"trace_id": TRACE, "span_id": SPAN, "trace_flags": 1}).to_string();
    redis.ask::<i64>(&["RPUSH", &format!("context:default:{id}"), &context]);
    let daemon = with(&redis, &collector)
        .config(&chain(&[], &[]))
        .env("OTEL_TRACES_SAMPLER", "always_off")
        .start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(redis.keys("context:*"), [format!("context:done:{id}")]);
    assert_eq!(redis.list(&format!("context:done:{id}")), [context]);
    daemon.stop();
    assert_eq!(collector.spans().len(), 0);
}

#[test]
fn a_vcon_that_meets_a_used_up_budget_is_traced_and_counted_once() {
    let (redis, collector, hook) = (Redis::plain(), Collector::start(), Hook::new());
    let samples = fresh(8);
    let mut limited = hook.storage();
    limited["module"] = json!("links.webhook");
    limited["limit"] = json!({"rate": "5/s", "burst": 1});
    let mut config = chain(&[("hook", limited)], &[]);
    config["chains"]["main"]["links"] = json!(["hook"]);
    submit(&redis, "default", &samples);
    let daemon = with(&redis, &collector)
        .config(&config)
        .workers(2)
        .lanes(4)
        .start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
    let spans = collector.spans();
    assert_eq!(named(&spans, "vcon_processing.main").len(), samples.len());
    assert_eq!(named(&spans, "link.hook").len(), samples.len());
}

#[test]
fn without_an_endpoint_there_is_no_thread_and_no_context() {
    let redis = Redis::plain();
    let samples = fresh(1);
    let config = chain(&[], &[]);
    let daemon = Conserver::with(&redis)
        .config(&config)
        .workers(2)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .start();
    submit(&redis, "default", &samples);
    Ledger::of(&redis, &samples).settles();
    assert_eq!(telemetry_threads(&daemon), Vec::<String>::new());
    assert_eq!(redis.keys("context:*"), Vec::<String>::new());
    daemon.stop();

    // The same test sees them where they are.
    let collector = Collector::start();
    let daemon = with(&redis, &collector).config(&config).workers(2).start();
    daemon.wait_for_workers(2);
    assert_eq!(
        telemetry_threads(&daemon),
        ["conserver-mon", "conserver-w1", "conserver-w2"]
    );
    daemon.stop();
}

#[test]
fn what_is_not_built_in_is_told_at_the_start() {
    let redis = Redis::plain();
    let started = |name: &str, value: &str| {
        Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
            .env(name, value)
    };
    for (protocol, words) in [
        ("grpc", "grpc is not built in: set http/protobuf"),
        ("http/json", "http/json is not built in: set http/protobuf"),
    ] {
        let finished = started("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).run(&["run"]);
        assert_eq!(finished.code, 78, "{}", finished.output());
        said(&finished, &["OTEL_EXPORTER_OTLP_PROTOCOL: ", words]);
    }
    let daemon = started("SENTRY_DSN", "https://hunter2@sentry.example/1").start();
    daemon.wait_for_log(
        "port 4317 is the one on which collectors take gRPC",
        PATIENCE,
    );
    assert_eq!(daemon.count_in_log("Sentry is not built in"), 1);
    assert!(!daemon.output().contains("hunter2"));
    daemon.stop();
}
