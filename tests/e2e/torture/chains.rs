//! The chains of a run, in which each vCon is in several hands.
//!
//! ```text
//! default ─► main:   tag, delay, heard ────────────────► done
//! second  ─► second: tag, heard, refused, tag_router ──► second_done
//!                                              │ vip
//! third   ◄────────────────────────────────────┘
//!         ─► third:  tag, heard ───────────────────────► third_done
//! ```
//!
//! Every vCon is pushed onto `default` and `second`. All chains save to all storages: PostgreSQL, which
//! holds them up when it is away, a folder that is always there, and one that defers.

use serde_json::{Value, json};

use super::calls::Calls;

/// The tag that leads a vCon into the third chain.
pub const ROUTED: &str = "vip";

/// The storage that defers.
pub const DEFERRING: &str = "later";

/// All storages.
pub const STORAGES: [&str; 3] = ["pg", "files", DEFERRING];

/// One chain.
pub struct Chain {
    /// Its ingress list.
    pub list: &'static str,
    /// Its egress list.
    pub egress: &'static str,
    /// The tag that it puts on each vCon.
    pub tag: &'static str,
    /// The links that tell the server of [`Calls`] of each vCon.
    pub heard: &'static [&'static str],
}

/// The chain onto which every vCon is pushed, and that has always been here.
pub const MAIN: Chain = Chain {
    list: "default",
    egress: "done",
    tag: "checked",
    heard: &["main_heard"],
};

/// The other chain onto which every vCon is pushed.
pub const SECOND: Chain = Chain {
    list: "second",
    egress: "second_done",
    tag: "seen",
    heard: &["second_heard", Calls::REFUSED],
};

/// The chain for what a router has sent on from [`SECOND`].
pub const THIRD: Chain = Chain {
    list: "third",
    egress: "third_done",
    tag: "routed",
    heard: &["third_heard"],
};

/// All of them.
pub const CHAINS: [&Chain; 3] = [&MAIN, &SECOND, &THIRD];

impl Chain {
    /// The hash that counts how often each vCon was announced by this chain.
    pub fn announced(&self) -> String {
        format!("torture:announced:{}", self.list)
    }
}

/// The configuration of the daemons.
pub fn config(pg: &Value, files: &Value, later: &Value, calls: &Calls) -> Value {
    let mut later = later.clone();
    later["on_outage"] = "defer".into();
    let mut links = json!({
        "slowly": {"module": "links.delay", "options": {"seconds": 0.02}},
        "router": {"module": "links.tag_router", "options": {"tag_routes": {ROUTED: THIRD.list}}},
    });
    let mut chains = json!({});
    for chain in CHAINS {
        links[chain.tag] = json!({"module": "links.tag", "options": {"tags": [chain.tag]}});
        let mut names = vec![chain.tag];
        if chain.list == MAIN.list {
            names.push("slowly");
        }
        for name in chain.heard {
            let options = json!({"webhook-urls": [calls.url(name)]});
            links[name] = json!({"module": "links.webhook", "options": options});
            names.push(name);
        }
        if chain.list == SECOND.list {
            names.push("router");
        }
        chains[chain.list] = json!({
            "links": names,
            "storages": STORAGES,
            "ingress_lists": [chain.list],
            "egress_lists": [chain.egress],
        });
    }
    let storages = json!({"pg": pg, "files": files, DEFERRING: later});
    json!({"links": links, "storages": storages, "chains": chains})
}
