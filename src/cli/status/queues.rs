//! The lengths of a daemon's lists.

use std::time::Duration;

use indexmap::IndexMap;
use serde::Serialize;

use crate::config::{ListName, Plan};
use crate::queue::{Server, dead_letter_list, lengths};
use crate::scoreboard::Snapshot;
use crate::settings::Settings;

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// The lengths of all lists, or why they are not known.
#[derive(Debug, Default, Serialize)]
pub(super) struct Queues {
    /// Ingress lists; what is not a list has no length.
    pub ingress: IndexMap<String, Option<u64>>,
    /// Egress lists.
    pub egress: IndexMap<String, Option<u64>>,
    /// Dead letter queues.
    pub dead_letters: IndexMap<String, Option<u64>>,
    /// Why nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Queues {
    /// Asks for the lists of the configuration in force.
    pub fn ask(snapshot: &Snapshot, settings: &Settings) -> Self {
        let loaded = Plan::load(&snapshot.config).or_else(|_| Plan::load(&settings.config_file));
        match loaded {
            Ok(plan) => Self::of(&plan, settings).unwrap_or_else(Self::unknown),
            Err(errors) => Self::unknown(errors.to_string()),
        }
    }

    fn unknown(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }

    fn of(plan: &Plan, settings: &Settings) -> Result<Self, String> {
        let ingress = plan.ingress_lists();
        let dead: Vec<String> = ingress.iter().map(dead_letter_list).collect();
        let ingress: Vec<String> = ingress.iter().map(ListName::to_string).collect();
        let chains = plan.chains.iter().filter(|chain| chain.enabled);
        let mut egress: Vec<String> = chains
            .flat_map(|chain| chain.egress_lists.iter().map(ListName::to_string))
            .collect();
        egress.sort();
        egress.dedup();
        let all = [&ingress[..], &egress, &dead].concat();
        let server = Server::new(&settings.redis_url).map_err(|error| error.to_string())?;
        let known = lengths(&server, &all, LIMIT).map_err(|error| error.to_string())?;
        let mut known = known.into_iter();
        let mut take = |names: Vec<String>| -> IndexMap<String, Option<u64>> {
            names
                .into_iter()
                .map(|name| (name, known.next().flatten()))
                .collect()
        };
        Ok(Self {
            ingress: take(ingress),
            egress: take(egress),
            dead_letters: take(dead),
            error: None,
        })
    }
}
