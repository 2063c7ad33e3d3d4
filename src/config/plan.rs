//! The chains of a configuration, for whoever opens no link and no storage.

use std::path::Path;

use super::error::ConfigErrors;
use super::{Chain, ListName, read, yaml};

/// Which chains there are and what they are made of.
///
/// Options are not looked at: values from variables and files that only the daemon has need not be
/// there.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The names of the links, in the order of the file.
    pub links: Vec<String>,
    /// The names of the storages, in the order of the file.
    pub storages: Vec<String>,
    /// Those of them that have `on_outage: defer`.
    pub deferring: Vec<String>,
    /// The chains in the order of the file, those out of service among them.
    pub chains: Vec<Chain>,
    /// The lists that links may announce vCons on, besides those of their chains, as far as they
    /// stand in the file itself.
    pub routes: Vec<ListName>,
}

impl Plan {
    /// Reads `text`, the content of the file at `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let document = yaml::parse(text).map_err(|faults| ConfigErrors::new(path, faults))?;
        let (plan, findings) = read::plan(document);
        if findings.faults.is_empty() {
            Ok(plan)
        } else {
            Err(ConfigErrors::new(path, findings.faults))
        }
    }

    /// The ingress lists of the chains in service, in the order of the file.
    pub fn ingress_lists(&self) -> Vec<ListName> {
        super::ingress_lists(&self.chains)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_the_routes_of_links() {
        let text = "\
links:
  router: {module: links.tag_router, options: {tag_routes: {a: one, b: two, c: '${ELSEWHERE}'}}}
  broken: {module: links.tag_router, options: 7}
  other: {module: links.tag, options: {tag_routes: {a: three}}}
chains: {main: {links: [router], ingress_lists: [in]}}
";
        let plan = Plan::parse(text, Path::new("config.yml")).unwrap();
        let routes = plan.routes.iter().map(ListName::as_str);
        assert_eq!(routes.collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn a_plan_knows_which_storages_defer() {
        let text = "\
storages:
  pg: {module: storage.postgres, on_outage: defer, options: {password_file: /none/there}}
  s3: {module: storage.s3, on_outage: hold}
  file: {module: storage.file}
  odd: {on_outage: later}
chains: {main: {storages: [pg, s3, file, odd], ingress_lists: [in]}}
";
        let plan = Plan::parse(text, Path::new("config.yml")).unwrap();
        assert_eq!(plan.deferring, ["pg"]);
    }

    #[test]
    fn a_plan_needs_no_values_from_elsewhere() {
        let text = "\
links: {tagger: {module: links.tag, options: {tags: ['${CONSERVER_NOT_SET}']}}}
storages: {pg: {module: storage.postgres, options: {password_file: /none/there}}, s3: {}}
chains:
  main: {links: [tagger], storages: [s3, pg], ingress_lists: [a, b]}
  spare: {ingress_lists: [c], enabled: 0}
";
        let plan = Plan::parse(text, Path::new("config.yml")).unwrap();
        assert_eq!(
            (plan.links, plan.storages),
            (
                vec!["tagger".to_owned()],
                vec!["pg".to_owned(), "s3".to_owned()]
            )
        );
        assert_eq!(plan.chains.len(), 2);
        let text = text.replace("storages: [s3, pg]", "storages: [s4]");
        let errors = Plan::parse(&text, Path::new("config.yml")).unwrap_err();
        assert!(
            errors.to_string().contains("storage `s4` is not defined"),
            "{errors}"
        );
    }
}
