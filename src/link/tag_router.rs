//! `links.tag_router`: puts a vCon on other lists by its tags.
//!
//! Reads the vCon's tags (the part before the first colon of each entry of its `tags` attachment)
//! and two options; writes [`Context::routes`], not the vCon.
//!
//! | option | default | |
//! |---|---|---|
//! | `tag_routes` | none | a mapping, tag -> list |
//! | `forward_original` | `true` | whether the vCon also goes on in this chain; else the chain ends here |
//!
//! The UUID is on the lists when the vCon is finished, in one step with the announcement on the
//! chain's egress lists: each list once, however many tags lead to it, and whether or not the chain
//! announces there as well. Of a route to an ingress list of the chain itself the configuration
//! warns: the tag stays, and the vCon goes round for ever.

use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::list_name::ListName;
use crate::options::Options;
use crate::vcon::Vcon;

struct TagRouter {
    routes: Vec<(String, ListName)>,
    forward_original: bool,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let named = options.string_map("tag_routes");
    if !options.is_given("tag_routes") {
        options.warn("tag_routes", "is not given: the link puts vCons nowhere");
    }
    let mut routes = Vec::new();
    for (tag, list) in named {
        match list.parse() {
            Ok(list) => routes.push((tag, list)),
            Err(error) => options.fault("tag_routes", format!("tag {tag}: {error}")),
        }
    }
    Box::new(TagRouter {
        routes,
        forward_original: options.bool_or("forward_original", true),
    })
}

impl Link for TagRouter {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let tags = vcon.tags().map_err(|error| {
            Failure::permanent(format!("could not route vCon {}: {error}", vcon.id()))
        })?;
        for (tag, list) in &self.routes {
            if tags.iter().any(|(name, _)| name == tag) && !context.routes.contains(list) {
                context.routes.push(list.clone());
            }
        }
        Ok(if self.forward_original {
            Next::Continue
        } else {
            Next::Halt
        })
    }

    fn routes(&self) -> Vec<ListName> {
        self.routes.iter().map(|(_, list)| list.clone()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::link::testing;

    fn run(options: &str, document: &str) -> (Result<Next, LinkError>, Vec<String>) {
        let ran = testing::run(&mut *testing::opened(open, options), document);
        assert!(!ran.vcon.is_changed());
        let routes = ran.routes.iter().map(ListName::to_string);
        (ran.next, routes.collect())
    }

    #[test]
    fn each_list_a_tag_leads_to_is_a_route_once() {
        let document = r#"{"attachments":[{"type":"tags","body":["vip:yes","urgent:urgent","other:x","novalue",7]}]}"#;
        for (routes, expected) in [
            ("{vip: a}", vec!["a"]),
            ("{vip: a, urgent: a, other: b}", vec!["a", "b"]),
            ("{novalue: a, yes: b, VIP: c}", vec![]),
        ] {
            let (next, found) = run(&format!("{{tag_routes: {routes}}}"), document);
            assert_eq!(
                (next, found.iter().map(String::as_str).collect()),
                (Ok(Next::Continue), expected)
            );
        }
    }

    #[test]
    fn without_forwarding_the_chain_ends_here_with_a_route_and_without_one() {
        let options = "{tag_routes: {vip: a}, forward_original: false}";
        for (document, expected) in [
            (
                r#"{"attachments":[{"purpose":"tags","body":"[\"vip:vip\"]","encoding":"json"}]}"#,
                vec!["a"],
            ),
            ("{}", vec![]),
        ] {
            let (next, found) = run(options, document);
            assert_eq!(next, Ok(Next::Halt));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn routes_that_lead_nowhere_are_faults() {
        for text in [
            "{tag_routes: [a]}",
            "{tag_routes: {a: ''}}",
            "{tag_routes: {a: }}",
        ] {
            let mut options = Options::from_yaml(text);
            open(&mut options);
            assert!(!options.faults().is_empty(), "{text}");
        }
    }

    #[test]
    fn no_routes_are_no_fault_but_said_if_none_are_given() {
        for (text, warnings) in [
            ("{tag_routes: {}}", 0),
            ("{tag_routes: []}", 0),
            ("{}", 1),
            ("{tag_routes: }", 1),
        ] {
            let mut options = Options::from_yaml(text);
            assert_eq!(open(&mut options).routes(), []);
            assert_eq!(options.faults(), [""; 0], "{text}");
            assert_eq!(options.warnings().len(), warnings, "{text}");
        }
    }
}
