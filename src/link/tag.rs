//! `links.tag`: tags every vCon that passes.
//!
//! Reads the option `tags`: a list of `name` or `name:value`, or a mapping of names to values; it may
//! be empty. Writes the entry `"name:value"` for each tag, `"name:name"` for one without a value, into
//! the vCon's `tags` attachment.

use super::{Context, Link, LinkError, Next};
use crate::config::Options;
use crate::failure::Failure;
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::vcon::{VconId, Version};

    fn run(text: &str) -> (Vcon, Result<Next, LinkError>) {
        let (_drain, drained) = crossbeam_channel::bounded(0);
        let mut context = Context::new(&drained, Version::Current);
        let mut vcon = Vcon::parse(VconId::random(), text.to_owned()).unwrap();
        let tags = vec!["vip".to_owned(), "7".to_owned()];
        let next = Tag { tags }.run(&mut vcon, &mut context);
        (vcon, next)
    }

    #[test]
    fn each_tag_becomes_an_entry() {
        let (mut vcon, next) = run("{}");
        assert_eq!(next, Ok(Next::Continue));
        assert!(vcon.is_changed());
        assert!(vcon.to_json().contains(r#""body":"[\"vip:vip\",\"7:7\"]""#));
    }

    #[test]
    fn tags_that_cannot_be_added_are_a_permanent_failure() {
        let (vcon, next) = run(r#"{"attachments":[{"type":"tags","body":"none"}]}"#);
        let Err(LinkError::Failed(failure)) = next else {
            unreachable!("{next:?}");
        };
        assert!(!failure.is_transient());
        assert!(failure.message.contains(vcon.id().as_str()), "{failure}");
    }
}
