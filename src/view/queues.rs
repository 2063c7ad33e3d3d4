//! The lengths of a daemon's lists.

use indexmap::IndexMap;
use serde::Serialize;

use crate::config::{ListName, Plan};
use crate::queue::{Lengths, QueueError, dead_letter_list};

/// The names of all lists that a configuration speaks of, those of chains out of service among
/// them: what waits there, waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lists {
    ingress: Vec<String>,
    egress: Vec<String>,
    dead_letters: Vec<String>,
}

/// The lengths of all lists, or why they are not known.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Queues {
    /// Ingress lists; what is not a list has no length.
    pub ingress: IndexMap<String, Option<u64>>,
    /// Egress lists, and those that links may announce vCons on.
    pub egress: IndexMap<String, Option<u64>>,
    /// Dead letter queues.
    pub dead_letters: IndexMap<String, Option<u64>>,
    /// Why nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Lists {
    /// Those of this configuration. Ingress lists stand in the order of the file, those of chains
    /// in service first.
    pub fn of(plan: &Plan) -> Self {
        let mut ingress = plan.ingress_lists();
        for list in plan.chains.iter().flat_map(|chain| &chain.ingress_lists) {
            if !ingress.contains(list) {
                ingress.push(list.clone());
            }
        }
        let announced = plan.chains.iter().flat_map(|chain| &chain.egress_lists);
        let announced = announced.chain(&plan.routes).map(ListName::to_string);
        let mut egress: Vec<String> = announced.collect();
        egress.sort();
        egress.dedup();
        Self {
            dead_letters: ingress.iter().map(dead_letter_list).collect(),
            ingress: ingress.iter().map(ListName::to_string).collect(),
            egress,
        }
    }

    /// Asks Redis for their lengths.
    pub fn ask(&self, lengths: &mut Lengths) -> Result<Queues, QueueError> {
        let all = [&self.ingress[..], &self.egress, &self.dead_letters].concat();
        let mut known = lengths.ask(&all)?.into_iter();
        let mut take = |names: &[String]| -> IndexMap<String, Option<u64>> {
            let names = names.iter().cloned();
            names.map(|name| (name, known.next().flatten())).collect()
        };
        Ok(Queues {
            ingress: take(&self.ingress),
            egress: take(&self.egress),
            dead_letters: take(&self.dead_letters),
            error: None,
        })
    }
}

impl Queues {
    /// Lengths that are not known, and why.
    pub fn unknown(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_chains_out_of_service_and_routes_are_among_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        let text = "\
links: {router: {module: links.tag_router, options: {tag_routes: {x: routed}}}}
chains:
  old: {ingress_lists: [a, b], egress_lists: [gone], enabled: 0}
  main: {links: [router], ingress_lists: [b, c], egress_lists: [done]}
";
        std::fs::write(&path, text).unwrap();
        let lists = Lists::of(&Plan::load(&path).unwrap());
        assert_eq!(lists.ingress, ["b", "c", "a"]);
        assert_eq!(lists.egress, ["done", "gone", "routed"]);
        assert_eq!(lists.dead_letters, ["DLQ:b", "DLQ:c", "DLQ:a"]);
    }
}
