//! `links.webhook`: posts the vCon, as it is at this step of the chain.
//!
//! Reads the vCon in the version that leaves, and the options of [`Webhooks`]; writes nothing.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::scoreboard::AnswerTimes;
use crate::storage::webhook::Webhooks;
use crate::vcon::Vcon;

struct WebhookLink {
    webhooks: Webhooks,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    Box::new(WebhookLink {
        webhooks: Webhooks::open(options),
    })
}

impl Link for WebhookLink {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let json = vcon.outgoing(context.version).json;
        self.webhooks.post(&json, context.deadline)?;
        Ok(Next::Continue)
    }

    fn count_answers(&mut self, times: &AnswerTimes) {
        self.webhooks.count_answers(times);
    }

    fn longest_call(&self) -> Duration {
        self.webhooks.longest_post()
    }

    fn probe(&mut self, _: &Receiver<()>) -> Result<(), Failure> {
        self.webhooks.reach()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::http_client::tests::serve;
    use crate::storage::webhook::tests::webhooks;
    use crate::vcon::{VconId, Version};

    #[test]
    fn it_posts_the_version_that_leaves() {
        let (_drain, drained) = crossbeam_channel::bounded(0);
        let (address, server) = serve(&["200 OK", "200 OK"]);
        let mut link = WebhookLink {
            webhooks: webhooks(&[address]),
        };
        let text = r#"{"dialog":[{"mimetype":"a/b"}]}"#.to_owned();
        let mut vcon = Vcon::parse(VconId::random(), text).unwrap();
        for version in [Version::Current, Version::V0_0_1] {
            let mut context = Context::new(&drained, version);
            assert_eq!(link.run(&mut vcon, &mut context), Ok(Next::Continue));
        }
        let requests = server.join().unwrap();
        assert!(requests[0].ends_with(r#"{"dialog":[{"mediatype":"a/b"}],"vcon":"0.4.0"}"#));
        assert!(requests[1].contains(r#"{"dialog":[{"mimetype":"a/b"}],"vcon":"0.0.1","#));
        assert!(!vcon.is_changed());
    }
}
