//! `links.tag`: tags every vCon that passes.
//!
//! Reads the option `tags`: a list of `name` or `name:value`, or a mapping of names to values; it may
//! be empty. Writes the entry `"name:value"` for each tag, `"name:name"` for one without a value, into
//! the vCon's `tags` attachment.

use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::Vcon;

struct Tag {
    tags: Vec<String>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    options.require("tags");
    Box::new(Tag {
        tags: options.tags("tags"),
    })
}

impl Link for Tag {
    fn run(&mut self, vcon: &mut Vcon, _context: &mut Context<'_>) -> Result<Next, LinkError> {
        vcon.add_tags(&self.tags).map_err(|error| {
            Failure::permanent(format!("could not tag vCon {}: {error}", vcon.id()))
        })?;
        Ok(Next::Continue)
    }

    fn rewrites(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::link::testing::{LinkRun, opened};

    fn run(options: &str, document: &str) -> LinkRun {
        let mut link = opened(open, options);
        assert!(link.rewrites());
        crate::link::testing::run(&mut *link, document)
    }

    #[test]
    fn each_tag_becomes_an_entry() {
        for (options, entries) in [
            ("{tags: [vip, 7]}", r#"\"vip:vip\",\"7:7\""#),
            ("{tags: vip}", r#"\"vip:vip\""#),
            (
                "{tags: ['desk:north', 'a:b:c', ':', 'x:']}",
                r#"\"desk:north\",\"a:b:c\",\":\",\"x:\""#,
            ),
            ("{tags: {desk: north, n: 7}}", r#"\"desk:north\",\"n:7\""#),
        ] {
            let mut ran = run(options, "{}");
            assert_eq!(ran.next, Ok(Next::Continue));
            assert!(ran.vcon.is_changed());
            let json = ran.vcon.to_json();
            assert!(json.contains(&format!(r#""body":"[{entries}]""#)), "{json}");
        }
    }

    #[test]
    fn no_tags_change_nothing() {
        for options in ["{tags: []}", "{tags: {}}", "{tags: ''}"] {
            let ran = run(options, "{}");
            assert_eq!(ran.next, Ok(Next::Continue));
            assert!(!ran.vcon.is_changed());
        }
    }

    #[test]
    fn tags_that_cannot_be_added_are_a_permanent_failure() {
        for (document, why) in [
            (r#"{"attachments":{}}"#, "`attachments` is an object"),
            (r#"{"payload":"p","signature":"s"}"#, "signed"),
        ] {
            let ran = run("{tags: [a]}", document);
            let failure = ran.failure();
            assert!(!failure.is_transient());
            let id = ran.vcon.id().as_str();
            assert!(failure.message.contains(id), "{failure}");
            assert!(failure.message.contains(why), "{failure}");
        }
    }

    #[test]
    fn tags_that_are_none_are_faults() {
        for text in [
            "{}",
            "{tags: [[a]]}",
            "{tags: {a: [b]}}",
            "{tags: [{name: a, value: b}]}",
        ] {
            let mut options = Options::from_yaml(text);
            open(&mut options);
            assert!(!options.faults().is_empty(), "{text}");
        }
    }
}
