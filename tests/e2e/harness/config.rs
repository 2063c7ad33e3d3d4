//! Configurations as tests need them.

use std::net::TcpListener;

use serde_json::{Map, Value, json};

/// One chain, from the list `default` through the link `tagger` and these links to these
/// storages and the list `done`.
pub fn chain(links: &[(&str, Value)], storages: &[(&str, Value)]) -> Value {
    let tagger = (
        "tagger",
        json!({"module": "links.tag", "options": {"tags": ["checked"]}}),
    );
    let links: Vec<&(&str, Value)> = std::iter::once(&tagger).chain(links).collect();
    let mapping = |modules: &[&(&str, Value)]| -> Map<String, Value> {
        modules
            .iter()
            .map(|(name, module)| ((*name).to_owned(), module.clone()))
            .collect()
    };
    let storages: Vec<&(&str, Value)> = storages.iter().collect();
    json!({
        "links": mapping(&links),
        "storages": mapping(&storages),
        "chains": {"main": {
            "links": names(&links),
            "storages": names(&storages),
            "ingress_lists": ["default"],
            "egress_lists": ["done"],
            "enabled": 1,
        }},
    })
}

fn names(modules: &[&(&str, Value)]) -> Vec<String> {
    modules.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// A link that takes its time over each vCon.
pub fn delay(seconds: f64) -> (&'static str, Value) {
    (
        "slowly",
        json!({"module": "links.delay", "options": {"seconds": seconds}}),
    )
}

/// A link that never comes back: its server takes the connection and says nothing.
pub fn stuck() -> (TcpListener, (&'static str, Value)) {
    let hole = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", hole.local_addr().expect("an address"));
    let options = json!({"webhook-urls": [url], "timeout": 600});
    let link = json!({"module": "links.webhook", "options": options});
    (hole, ("stuck", link))
}
