//! The meters of everything in a configuration, in this worker's slot.

use std::cell::LazyCell;
use std::collections::HashMap;

use super::fault::Stage;
use crate::config::{Chain, Config};
use crate::queue::RecoveredClaim;
use crate::scoreboard::{Event, Meter, SeriesKind, Slot};

/// The meters of the chains, links and storages of one configuration, by their names.
#[derive(Default)]
pub(super) struct Meters {
    chains: HashMap<String, Meter>,
    links: HashMap<String, Meter>,
    storages: HashMap<String, Meter>,
}

impl Meters {
    /// Those that the slot has room for.
    pub fn of(config: &Config, slot: &Slot) -> Self {
        let known = &slot.meters();
        let meter = |kind| move |name: &String| (name.clone(), known.of(kind, name));
        let chains = config.chains.iter().map(|chain| &chain.name);
        Self {
            chains: chains.map(meter(SeriesKind::Chain)).collect(),
            links: config.links.keys().map(meter(SeriesKind::Link)).collect(),
            storages: config
                .storages
                .keys()
                .map(meter(SeriesKind::Storage))
                .collect(),
        }
    }

    pub fn chain(&self, name: &str) -> &Meter {
        self.chains.get(name).unwrap_or(Meter::SILENT)
    }

    pub fn link(&self, name: &str) -> &Meter {
        self.links.get(name).unwrap_or(Meter::SILENT)
    }

    pub fn storage(&self, name: &str) -> &Meter {
        self.storages.get(name).unwrap_or(Meter::SILENT)
    }

    pub fn stage(&self, stage: &Stage) -> Option<&Meter> {
        match stage {
            Stage::Link(name) => Some(self.link(name)),
            Stage::Storage(name) => Some(self.storage(name)),
            Stage::List(_) => None,
        }
    }
}

/// Counts the vCons that went to the dead letter queue for the workers that died on them, each for
/// the chain it belongs to.
pub fn count_poison(slot: &Slot, chains: &[Chain], recovered: &[RecoveredClaim]) {
    // Mostly there are none.
    let meters = LazyCell::new(|| slot.meters());
    for claim in recovered.iter().filter(|claim| claim.is_poison()) {
        slot.count_poison();
        let served = |chain: &&Chain| chain.ingress_lists.iter().any(|list| claim.is_of(list));
        if let Some(chain) = chains.iter().find(served) {
            let meter = meters.of(SeriesKind::Chain, &chain.name);
            meter.count(Event::Failed);
            meter.count(Event::DeadLettered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shared::tests::Worker;
    use super::*;

    #[test]
    fn a_stage_counts_in_its_own_meter_and_a_list_has_none() {
        let worker = Worker::with(
            "links: {same: {module: links.tag, options: {tags: [x]}}}\n\
             storages: {same: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
             chains: {main: {links: [same], storages: [same], ingress_lists: [in]}}\n",
            &[],
        );
        let meters = Meters::of(&worker.config(), &worker.shared.slot);
        let [link, storage] = [Stage::Link, Stage::Storage].map(|of| of("same".to_owned()));
        let is = |stage: &Stage, meter: &Meter| {
            let found = meters.stage(stage);
            found.is_some_and(|found| std::ptr::eq(found, meter))
        };
        assert!(is(&link, meters.link("same")));
        assert!(is(&storage, meters.storage("same")));
        assert!(!std::ptr::eq(meters.link("same"), meters.storage("same")));
        let config = worker.config();
        let list = config.chains[0].ingress_lists[0].clone();
        assert!(meters.stage(&Stage::List(list)).is_none());
        let unknown = Stage::Link("other".to_owned());
        assert!(is(&unknown, Meter::SILENT));
    }
}
