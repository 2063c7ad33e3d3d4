//! Where a vCon can fail, and why it did not get to the end of its chain.

use std::fmt;
use std::sync::Arc;

use crate::config::{Chain, Config, ListName};
use crate::failure::{Failure, FailureKind};

/// A step of a chain that may be unavailable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// A link, by its name in the configuration.
    Link(String),
    /// A storage, likewise.
    Storage(String),
    /// A list on which vCons are announced.
    List(ListName),
}

impl Stage {
    /// Whether the chain needs it.
    pub fn is_in(&self, chain: &Chain, config: &Config) -> bool {
        match self {
            Self::Link(name) => chain.links.contains(name),
            Self::Storage(name) => chain.storages.contains(name),
            Self::List(list) => {
                let routes = |link: &String| {
                    let link = config.links.get(link);
                    link.is_some_and(|link| link.routes.contains(list))
                };
                chain.egress_lists.contains(list) || chain.links.iter().any(routes)
            }
        }
    }

    /// The names of the chains in service that need it.
    pub fn chains(&self, config: &Arc<Config>) -> Vec<String> {
        let chains = config.chains.iter();
        chains
            .filter(|chain| chain.enabled && self.is_in(chain, config))
            .map(|chain| chain.name.clone())
            .collect()
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Storage(name) => write!(f, "storage {name}"),
            Self::List(list) => write!(f, "list {list}"),
        }
    }
}

/// Why a vCon did not get to the end of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The worker drains, and the vCon would keep it waiting.
    Interrupted,
    /// The worker drains, and Redis does not take the claim back: the next start does.
    ClaimLeft,
    /// Somebody else has let the claim go, or has it by now.
    NotOurs,
    /// It cannot be done.
    Failed(Fault),
    /// It may be done later: these have failed in all attempts, in ways that pass.
    Unavailable(Fault),
}

/// What cannot be done, or cannot be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where: `link <name>` or `storage <name>`.
    pub stage: String,
    /// The links and storages that this means.
    pub stages: Vec<Stage>,
    /// Why.
    pub error: String,
    /// Tries made.
    pub attempts: u32,
    /// What it says of the vCon.
    pub kind: FailureKind,
}

impl Fault {
    /// What has failed in the queue, once.
    pub fn of_queue(stage: &str, error: String) -> Self {
        Self {
            stage: stage.to_owned(),
            stages: Vec::new(),
            error,
            attempts: 1,
            kind: FailureKind::Permanent,
        }
    }

    /// What has failed at a stage, in so many attempts.
    pub fn at(stage: &Stage, failure: &Failure, attempts: u32) -> Self {
        Self {
            stage: stage.to_string(),
            stages: vec![stage.clone()],
            error: failure.message.clone(),
            attempts,
            kind: failure.kind,
        }
    }

    /// What has failed at these storages.
    pub fn at_storages(failures: &[(String, Failure)], attempts: u32) -> Self {
        let names: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
        let errors: Vec<String> = match failures {
            // The stage names it.
            [(_, failure)] => vec![failure.to_string()],
            _ => failures
                .iter()
                .map(|(name, failure)| format!("{name}: {failure}"))
                .collect(),
        };
        let kinds = failures.iter().map(|(_, failure)| failure.kind);
        Self {
            stage: format!("storage {}", names.join(", ")),
            stages: failures
                .iter()
                .map(|(name, _)| Stage::Storage(name.clone()))
                .collect(),
            error: errors.join("; "),
            attempts,
            kind: kinds.min_by_key(rank).unwrap_or(FailureKind::Transient),
        }
    }

    /// A list on which vCons are to be announced is something else.
    pub fn at_list(list: &ListName, holds: &str) -> Self {
        Self {
            stage: "egress".to_owned(),
            stages: vec![Stage::List(list.clone())],
            error: format!("the egress list {list} holds a {holds}"),
            attempts: 1,
            kind: FailureKind::Transient,
        }
    }
}

/// Of several failures the one of the lowest rank counts: the place is to blame rather than the vCon, and
/// the less a failure says of the vCon, the more so.
fn rank(kind: &FailureKind) -> u8 {
    match kind {
        FailureKind::Crowded => 0,
        FailureKind::Busy => 1,
        FailureKind::Transient => 2,
        FailureKind::Slow => 3,
        FailureKind::Crashed => 4,
        FailureKind::Refused => 5,
        FailureKind::Permanent => 6,
    }
}

/// It cannot be done, for what was found in the queue.
pub(super) fn failed(stage: &str, error: String) -> Ending {
    Ending::Failed(Fault::of_queue(stage, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_in_the_chains_that_need_it() {
        let config = super::super::shared::tests::parse(
            "links: {same: {module: links.tag, options: {tags: [x]}}, \
                     route: {module: links.tag_router, options: {tag_routes: {x: there}}}}\n\
             storages: {same: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
             chains: {links: {links: [same], ingress_lists: [a], egress_lists: [b]}, \
                      stores: {storages: [same], ingress_lists: [c], egress_lists: [there]}, \
                      routes: {links: [route], ingress_lists: [d]}, \
                      off: {links: [same, route], storages: [same], ingress_lists: [e], egress_lists: [b], enabled: false}}\n",
        );
        let list = |name: &str| name.parse().map(Stage::List);
        for (stage, expected) in [
            (Ok(Stage::Link("same".to_owned())), &["links"][..]),
            (Ok(Stage::Storage("same".to_owned())), &["stores"]),
            (list("there"), &["stores", "routes"]),
            (list("b"), &["links"]),
            (list("a"), &[]),
        ] {
            assert_eq!(
                stage.map(|stage| stage.chains(&config)),
                Ok(expected.iter().map(|it| (*it).to_owned()).collect())
            );
        }
    }

    #[test]
    fn of_several_storages_the_failure_counts_that_says_least_of_the_vcon_in_whatever_order() {
        let kinds = [
            Failure::crowded("full"),
            Failure::busy("locked"),
            Failure::transient("away"),
            Failure::slow("slow"),
            Failure::crashed("killed"),
            Failure::refused("too large"),
            Failure::permanent("no"),
        ];
        let of = |failures: &[&Failure]| {
            let names = ["a", "b", "c"].map(str::to_owned).into_iter();
            let failures = failures.iter().map(|it| (*it).clone());
            Fault::at_storages(&names.zip(failures).collect::<Vec<_>>(), 2)
        };
        for (i, one) in kinds.iter().enumerate() {
            for (j, two) in kinds.iter().enumerate() {
                for (k, three) in kinds.iter().enumerate() {
                    let least = &kinds[i.min(j).min(k)];
                    assert_eq!(of(&[one, two, three]).kind, least.kind, "{i} {j} {k}");
                }
            }
        }
        let fault = of(&[&kinds[2], &kinds[6]]);
        assert_eq!(fault.stage, "storage a, b");
        assert_eq!(fault.error, "a: away; b: no");
        assert_eq!(fault.attempts, 2);
        let stages = ["a", "b"].map(|name| Stage::Storage(name.to_owned()));
        assert_eq!(fault.stages, stages);
    }
}
