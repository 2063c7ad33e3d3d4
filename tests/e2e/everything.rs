//! One configuration with every link and every storage there is.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Elastic, Files, Ledger, Postgres, Programs, Redis, S3, Webhook, exec, fresh, same,
    submit,
};

/// A Python link as the existing deployment has them.
const LINK: &str = "
def run(vcon_uuid, link_name, opts):
    return vcon_uuid
";

/// Answers each line with nothing to change.
const STREAM: &str = "while read -r _; do echo '{}'; done";

#[test]
fn everything_at_once_is_checked_and_runs() {
    let [elastic, _] = Elastic::both();
    elastic.prepare();
    let (redis, other) = (Redis::with_json(), Redis::plain());
    let (database, s3, files) = (Postgres::database(), S3::start(), Files::new());
    let (hook, media, programs) = (
        Webhook::answering(&[]),
        Webhook::answering(&[]),
        Programs::new(),
    );
    let stream = programs.shell("stream", STREAM);
    let keeper = json!({"redis_url": other.url()});
    let links = json!({
        "a_tag": {"module": "links.tag", "options": {"tags": ["checked"]}},
        "router": {"module": "links.tag_router", "options": {"tag_routes": {"checked": "seen"}}},
        "jq": {"module": "links.jq_link", "options": {"filter": ".uuid"}},
        "sampler": {"module": "links.sampler", "options": {"value": 100}},
        "delay": {"module": "links.delay", "options": {"seconds": 0.001}},
        "expire": {"module": "links.expire_vcon", "options": {"seconds": 86400}},
        "hook": {"module": "links.webhook", "options": {"webhook-urls": [hook.url()]}},
        "diet": {"module": "links.diet", "options": {"remove_system_prompts": true}},
        "once": exec(&json!({"command": ["cat"]})),
        "stream": exec(&json!({"command": [stream], "mode": "stream"})),
        "python": programs.python("passing", LINK, &json!({"some": "option"})),
    });
    let storages = json!({
        "pg": database.storage(),
        "s3": s3.storage(),
        "files": files.storage(),
        "elastic": elastic.storage(),
        "redis": {"module": "storage.redis_storage", "options": keeper},
        "post": {"module": "storage.webhook", "options": {"webhook-urls": [media.url()]}},
    });
    let names = |modules: &Value| -> Vec<String> {
        let modules = modules.as_object().expect("a mapping");
        modules.keys().cloned().collect()
    };
    let config = json!({
        "links": links,
        "storages": storages,
        "chains": {"main": {
            "links": names(&links), "storages": names(&storages),
            "ingress_lists": ["default"], "egress_lists": ["done"], "enabled": 1, "timeout": 60,
        }},
    });

    let mut all = Vec::new();
    for parallel in ["true", "false"] {
        redis.ask::<()>(&["FLUSHALL"]);
        let samples = fresh(25);
        let conserver = Conserver::with(&redis)
            .config(&config)
            .lanes(2)
            .env("CONSERVER_PARALLEL_STORAGE", parallel);
        let checked = conserver.run(&["check"]);
        assert_eq!(checked.code, 0, "{}", checked.output());
        let daemon = conserver.start();
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        Ledger::of(&redis, &samples).is_split_between(&["seen"]);
        all.extend(samples);
        let rows = database.rows();
        let posted = media.requests();
        assert_eq!(rows.len(), all.len());
        assert_eq!(files.paths().len(), all.len());
        assert_eq!(posted.len(), all.len());
        assert_eq!(hook.requests().len(), all.len());
        for sample in &all[all.len() - 25..] {
            let document = redis.document(&sample.id).expect("a document");
            let row = rows.iter().find(|(id, _)| *id == sample.id).expect("a row");
            let file: Value = serde_json::from_str(&files.text(&sample.id)).expect("JSON");
            let kept: String = other.ask(&["GET", &format!("vcon_storage:{}", sample.id)]);
            let kept: Value = serde_json::from_str(&kept).expect("JSON");
            let post = posted.iter().find(|post| post.body.contains(&sample.id));
            let post: Value = serde_json::from_str(&post.expect("a post").body).expect("JSON");
            for (name, found) in [
                ("pg", &row.1),
                ("files", &file),
                ("redis", &kept),
                ("post", &post),
            ] {
                assert!(same(found, &document), "{name}: {found} is not {document}");
            }
            let pointer = format!("archive/lookup/{}.txt", sample.id);
            assert!(s3.object(&pointer).exists(), "{pointer}");
        }
        daemon.stop();
    }
    let indexed = elastic.documents();
    for sample in &all {
        let part = |(_, id): &(String, String)| id.starts_with(&sample.id);
        assert!(indexed.keys().any(part), "no part of {}", sample.id);
    }
}
