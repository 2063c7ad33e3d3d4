//! What of a configuration lets a vCon be nowhere without having been lost.

use crate::config::Config;

/// Links that may end a chain early, or send its vCon elsewhere: no storage, no egress.
const MAY_HALT: &[&str] = &[
    "links.sampler",
    "links.jq_link",
    "links.tag_router",
    "links.exec",
    "links.python",
];

/// What the summary has to warn of, a sentence for each.
pub(super) fn of(config: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    for chain in &config.chains {
        let name = &chain.name;
        if chain.storages.is_empty() {
            sentences.push(format!(
                "chain {name} has no storages: what it has finished is only found while an egress list has it"
            ));
        }
        let used = |name: &&String| chain.links.contains(name);
        let modules = config.links.iter().filter(|(name, _)| used(name));
        let names: Vec<(&str, &str)> = modules
            .map(|(name, link)| (name.as_str(), link.module.as_str()))
            .collect();
        for link in chosen(&names, MAY_HALT) {
            sentences.push(format!(
                "link {link} of chain {name} may end the chain before the storages"
            ));
        }
    }
    let storages = config.storages.iter();
    let keeps_none = storages.filter(|(_, storage)| !storage.open_storage().keeps_documents());
    for (storage, _) in keeps_none {
        sentences.push(format!(
            "storage {storage} cannot be asked for a vCon: what is only there counts as missing"
        ));
    }
    sentences
}

fn chosen<'a>(
    names: &'a [(&'a str, &'a str)],
    modules: &'a [&str],
) -> impl Iterator<Item = &'a str> {
    let chosen = names.iter().filter(|(_, module)| modules.contains(module));
    chosen.map(|(name, _)| *name)
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn modules_are_chosen_by_their_names() {
        let names = [("some", "links.sampler"), ("tagger", "links.tag")];
        assert_eq!(chosen(&names, MAY_HALT).collect::<Vec<_>>(), ["some"]);
    }

    #[test]
    fn a_storage_that_keeps_no_documents_is_told_of() {
        let text = "
storages:
  files: {module: storage.file}
  post: {module: storage.webhook, options: {webhook-urls: 'http://h/'}}
  es: {module: storage.elasticsearch, options: {url: 'http://h:9200'}}
chains:
  main: {storages: [files, post, es], ingress_lists: [a]}
";
        let config = Config::parse(text, Path::new("config.yml"))
            .unwrap_or_else(|errors| panic!("{errors}"));
        let sentences = of(&config);
        assert_eq!(sentences.len(), 2, "{sentences:?}");
        assert!(sentences[0].starts_with("storage post cannot be asked"));
        assert!(sentences[1].starts_with("storage es cannot be asked"));
    }

    #[test]
    fn a_chain_without_storages_is_told_of() {
        let text = "
storages: {files: {module: storage.file}}
chains:
  kept: {storages: [files], ingress_lists: [a]}
  announced: {ingress_lists: [b], egress_lists: [c]}
";
        let config = Config::parse(text, Path::new("config.yml"))
            .unwrap_or_else(|errors| panic!("{errors}"));
        let sentences = of(&config);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        assert!(sentences[0].starts_with("chain announced has no storages"));
    }
}
