//! What of a configuration works but is hardly meant: vCons that come back to a list for ever, lists
//! that nobody takes from, limits that never count.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::read::entries;
use super::{Chain, Config, ListName};
use crate::options::error::{Fault, Findings, listed};
use crate::options::yaml::{Entry, Mapping, Node, NodeKind, joined};

/// The key of the list to which a follower brings vCons.
const FOLLOWER_LIST: &str = "follower_ingress_list";

/// The most lists, and the most circles, that are told.
const MOST_TOLD: usize = 10;

/// One way of a vCon out of a chain.
struct Way<'a> {
    list: &'a ListName,
    /// The link with the route; none for an egress list.
    link: Option<&'a str>,
}

/// Warns of what is odd about the chains in service.
pub(super) fn on_chains(config: &Config, sections: &Mapping, findings: &mut Findings) {
    let advisor = Advisor::of(config, sections);
    let mut warnings = advisor.lists();
    warnings.append(&mut advisor.pulled(sections));
    warnings.append(&mut advisor.circles());
    for chain in advisor.chains.iter().copied() {
        warnings.append(&mut advisor.limits(chain));
    }
    findings.warnings.append(&mut warnings);
}

struct Advisor<'a> {
    config: &'a Config,
    /// Those in service.
    chains: Vec<&'a Chain>,
    /// The place among them of the chain that takes from a list.
    takers: HashMap<&'a ListName, usize>,
    entries: HashMap<&'a str, &'a Entry>,
}

impl<'a> Advisor<'a> {
    fn of(config: &'a Config, sections: &'a Mapping) -> Self {
        let chains: Vec<&Chain> = config.chains.iter().filter(|it| it.enabled).collect();
        let mut takers = HashMap::new();
        for (place, chain) in chains.iter().enumerate() {
            for list in &chain.ingress_lists {
                takers.entry(list).or_insert(place);
            }
        }
        // What is wrong with them has been recorded.
        let entries = entries(sections, "chains", &mut Findings::default());
        Self {
            config,
            chains,
            takers,
            entries: entries
                .into_iter()
                .map(|(name, _, it)| (name, it))
                .collect(),
        }
    }

    fn ways(&self, chain: &'a Chain) -> Vec<Way<'a>> {
        let egress = chain.egress_lists.iter();
        let mut ways: Vec<Way> = egress.map(|list| Way { list, link: None }).collect();
        for link in chain
            .links
            .iter()
            .filter_map(|it| self.config.links.get(it))
        {
            let link_name = Some(link.name.as_str());
            let routes = link.routes.iter();
            ways.extend(routes.map(|list| Way {
                list,
                link: link_name,
            }));
        }
        let mut seen = HashSet::new();
        ways.retain(|way| seen.insert((way.list, way.link)));
        ways
    }

    /// Lists that the own chain takes from, and lists that only chains out of service take from.
    fn lists(&self) -> Vec<Fault> {
        let mut warnings = Vec::new();
        let idle = self.config.chains.iter().filter(|it| !it.enabled);
        let mut idle_takers: HashMap<&ListName, &str> = HashMap::new();
        for chain in idle {
            for list in &chain.ingress_lists {
                idle_takers.entry(list).or_insert(&chain.name);
            }
        }
        for (place, chain) in self.chains.iter().enumerate() {
            for way in self.ways(chain) {
                if warnings.len() == MOST_TOLD {
                    return warnings;
                }
                let list = way.list;
                let message = if self.takers.get(list) == Some(&place) {
                    match way.link {
                        None => format!(
                            "chain `{}` takes from list `{list}` as well: each vCon comes back for \
                             ever, unless a link ends the chain",
                            chain.name
                        ),
                        Some(link) => format!(
                            "link `{link}` has a route to list `{list}`, which chain `{}` takes \
                             from: a vCon with that tag comes back for ever",
                            chain.name
                        ),
                    }
                } else if let Some(idle) = idle_takers.get(list)
                    && !self.takers.contains_key(list)
                {
                    format!(
                        "only chain `{idle}` takes from list `{list}`, and it is out of service: \
                         vCons wait there"
                    )
                } else {
                    continue;
                };
                warnings.push(self.at(chain, &way, message));
            }
        }
        warnings
    }

    /// Followers whose vCons come to a list that no chain in service takes from.
    fn pulled(&self, sections: &Mapping) -> Vec<Fault> {
        // What is wrong with them has been recorded.
        let entries = entries(sections, "followers", &mut Findings::default());
        let entries: HashMap<&str, &Entry> = entries
            .into_iter()
            .map(|(name, _, it)| (name, it))
            .collect();
        let followers = self.config.followers.iter();
        let idle = followers.filter(|it| !self.takers.contains_key(&it.ingress_list));
        idle.map(|follower| {
            let (name, list) = (&follower.name, &follower.ingress_list);
            let message = format!(
                "no chain in service takes from list `{list}`: what the follower pulls waits there"
            );
            let entry = entries.get(name.as_str()).copied();
            let line = entry.map_or(1, |entry| line_in(entry, FOLLOWER_LIST, None));
            let path = joined(&joined("followers", name), FOLLOWER_LIST);
            Fault::at(line, path, message)
        })
        .collect()
    }

    /// Circles over several chains: each way that leads back to a chain on the way to it.
    fn circles(&self) -> Vec<Fault> {
        let ways: Vec<Vec<(Way, usize)>> = (self.chains.iter().enumerate())
            .map(|(place, chain)| {
                let mut targets = HashSet::from([place]);
                let mut ways = Vec::new();
                for way in self.ways(chain) {
                    if let Some(target) = self.takers.get(way.list).copied()
                        && targets.insert(target)
                    {
                        ways.push((way, target));
                    }
                }
                ways
            })
            .collect();
        let mut circles = Vec::new();
        let mut done = vec![false; ways.len()];
        // The place in `path` of the chains that it goes through.
        let mut on_path: HashMap<usize, usize> = HashMap::new();
        for start in 0..ways.len() {
            // Chains, and how many of their ways have been followed.
            let mut path = vec![(start, 0)];
            on_path.insert(start, 0);
            while let Some((chain, next)) = path.last().copied() {
                let way = ways[chain].get(next).filter(|_| !done[chain]);
                let Some((_, target)) = way else {
                    done[chain] = true;
                    on_path.remove(&chain);
                    path.pop();
                    continue;
                };
                let depth = path.len();
                path[depth - 1].1 += 1;
                if let Some(begin) = on_path.get(target) {
                    let steps = path[*begin..].iter();
                    let steps: Vec<_> = steps
                        .map(|(chain, followed)| (*chain, &ways[*chain][followed - 1].0))
                        .collect();
                    circles.push(self.circle(&steps));
                    if circles.len() == MOST_TOLD {
                        return circles;
                    }
                } else if !done[*target] {
                    on_path.insert(*target, depth);
                    path.push((*target, 0));
                }
            }
        }
        circles
    }

    fn circle(&self, steps: &[(usize, &Way)]) -> Fault {
        let shown = steps.iter().map(|(chain, way)| {
            let chain = &self.chains[*chain].name;
            let link = way.link.map(|link| format!(" by link `{link}`"));
            let link = link.unwrap_or_default();
            format!("chain `{chain}`{link} to list `{}`", way.list)
        });
        let message = format!(
            "vCons go round for ever, unless a link ends a chain: {}",
            listed(shown.collect::<Vec<_>>())
        );
        match steps.last() {
            Some((chain, way)) => self.at(self.chains[*chain], way, message),
            None => Fault::of_file(message),
        }
    }

    /// A chain's `timeout` that is shorter than what its links and storages take.
    fn limits(&self, chain: &Chain) -> Vec<Fault> {
        let Some(timeout) = chain.timeout else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let mut warn = |message| {
            let line = self.line(chain, "timeout", None);
            let path = joined(&joined("chains", &chain.name), "timeout");
            warnings.push(Fault::at(line, path, message));
        };
        let links = || {
            chain
                .links
                .iter()
                .filter_map(|it| self.config.links.get(it))
        };
        let waits: Duration = links().map(|link| link.waits).sum();
        if waits >= timeout {
            let names = links().filter(|link| !link.waits.is_zero());
            let names: Vec<&str> = names.map(|link| link.name.as_str()).collect();
            warn(format!(
                "the {timeout:?} of the chain are no longer than the {waits:?} that its links wait \
                 ({}): no vCon comes through in time",
                listed(names)
            ));
        }
        let storages = chain.storages.iter();
        let storages = storages.filter_map(|it| self.config.storages.get(it));
        let limits = links().map(|link| ("link", &link.name, link.timeout));
        let limits = limits.chain(storages.map(|it| ("storage", &it.name, it.timeout)));
        let mut told = HashSet::new();
        for (noun, name, limit) in limits {
            if let Some(limit) = limit.filter(|limit| *limit > timeout)
                && told.insert((noun, name))
            {
                warn(format!(
                    "the {timeout:?} of the chain are shorter than the `timeout` of {noun} `{name}`, \
                     {limit:?}: calls that take longer are cut short"
                ));
            }
        }
        warnings
    }

    fn at(&self, chain: &Chain, way: &Way, message: String) -> Fault {
        let key = match way.link {
            Some(_) => "links",
            None => "egress_lists",
        };
        let item = way.link.unwrap_or(way.list.as_str());
        let path = joined(&joined("chains", &chain.name), key);
        Fault::at(self.line(chain, key, Some(item)), path, message)
    }

    fn line(&self, chain: &Chain, key: &str, item: Option<&str>) -> usize {
        let entry = self.entries.get(chain.name.as_str());
        entry.map_or(1, |entry| line_in(entry, key, item))
    }
}

/// The line of an item in a list of the entry, or that of the key.
fn line_in(entry: &Entry, key: &str, item: Option<&str>) -> usize {
    let NodeKind::Mapping(keys) = &entry.value.kind else {
        return entry.line;
    };
    let Some(found) = keys.get(key) else {
        return entry.line;
    };
    let NodeKind::Sequence(items) = &found.value.kind else {
        return found.line;
    };
    let is_item =
        |node: &&Node| matches!(&node.kind, NodeKind::Scalar(text) if Some(text.as_str()) == item);
    items.iter().find(is_item).map_or(found.line, |it| it.line)
}
