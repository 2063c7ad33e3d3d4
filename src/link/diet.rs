//! `links.diet`: removes bodies, analyses, attachments or system prompts from a vCon.
//!
//! Reads and writes the vCon:
//!
//! | option | default | what it takes out |
//! |---|---|---|
//! | `remove_dialog_body` | `false` | the `body` of every dialog: it becomes empty |
//! | `post_media_to_url` | none | with it, each such body is first posted there as `{"content", "vcon_uuid", "dialog_id"}`; where the answer is `{"url": …}`, the URL takes the body's place and `body_type` becomes `url` |
//! | `remove_analysis` | `false` | all of `analysis` |
//! | `remove_attachment_types` | none | attachments whose media type is one of these |
//! | `remove_system_prompts` | `false` | every key `system_prompt`, at any level and in bodies that are JSON |
//! | `timeout` | `30` | seconds for each post |
//!
//! A body is only taken out once its URL is known: where it cannot be posted, or the answer names no
//! URL, the link has failed, and is tried again or makes a dead letter as a webhook does. All are
//! posted before any is replaced, so an attempt more posts them once more.

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::Agent;
use ureq::http::HeaderMap;

use super::{Context, Link, LinkError, Next};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::http_client::{self, Url};
use crate::options::Options;
use crate::vcon::{Vcon, VconError};

/// Options of the existing worker's link that are only for `s3_bucket`.
const S3_OPTIONS: [&str; 5] = [
    "s3_path",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_region",
    "presigned_url_expiration",
];

/// The most of an answer that is read, in bytes: it holds a URL.
const ANSWER_LIMIT: u64 = 64 * 1024;

struct Diet {
    dialog_bodies: bool,
    media: Option<Media>,
    analysis: bool,
    attachment_types: Vec<String>,
    system_prompts: bool,
}

/// Where bodies are kept instead.
struct Media {
    agent: Agent,
    timeout: Duration,
    url: Url,
}

/// A body on its way.
#[derive(Serialize)]
struct PostedBody<'a> {
    content: &'a RawValue,
    vcon_uuid: &'a str,
    dialog_id: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    url: Option<String>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let timeout = options.seconds_or("timeout", 30.0);
    if timeout.is_zero() {
        options.fault("timeout", "must be more than 0");
    }
    let url = options.filled_string("post_media_to_url");
    let media = match url {
        None => None,
        Some(text) => text
            .parse()
            .map_err(|error: http_client::NotAUrl| {
                options.fault("post_media_to_url", error.to_string())
            })
            .ok()
            .map(|url| Media {
                agent: http_client::agent(),
                timeout,
                url,
            }),
    };
    // What belongs to `s3_bucket` does nothing without it.
    for key in S3_OPTIONS {
        options.pass_over(key);
    }
    let instead = "keep the whole vCon with storage.s3, or its bodies with post_media_to_url";
    options.not_supported("s3_bucket", instead);
    Box::new(Diet {
        dialog_bodies: options.bool_or("remove_dialog_body", false),
        media,
        analysis: options.bool_or("remove_analysis", false),
        attachment_types: options.strings("remove_attachment_types"),
        system_prompts: options.bool_or("remove_system_prompts", false),
    })
}

impl Link for Diet {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        if self.dialog_bodies {
            let kept = match &self.media {
                Some(media) => media.keep_bodies(vcon, context.deadline)?,
                None => Vec::new(),
            };
            vcon.replace_dialog_bodies(&kept).map_err(refused)?;
        }
        if self.analysis {
            vcon.remove_analysis().map_err(refused)?;
        }
        if !self.attachment_types.is_empty() {
            let types = &self.attachment_types;
            vcon.remove_attachments(types).map_err(refused)?;
        }
        if self.system_prompts {
            vcon.remove_key("system_prompt").map_err(refused)?;
        }
        Ok(Next::Continue)
    }

    fn rewrites(&self) -> bool {
        let has_types = !self.attachment_types.is_empty();
        self.dialog_bodies || self.analysis || self.system_prompts || has_types
    }

    /// That of one post: how many there are is up to the vCon, and each ends by the deadline.
    fn longest_call(&self) -> Duration {
        let media = self.media.as_ref();
        media.map_or(Duration::ZERO, |media| media.timeout)
    }

    fn probe(&mut self, _: &Receiver<()>) -> Result<(), Failure> {
        let media = self.media.as_ref();
        media.map_or(Ok(()), |media| http_client::reach(&media.agent, &media.url))
    }
}

/// The failure of a vCon whose parts cannot be removed: it is sealed, or malformed.
fn refused(error: VconError) -> Failure {
    Failure::permanent(format!("could not take anything out: {error}"))
}

impl Media {
    /// Posts every body that is not kept elsewhere already; returns where each is now, by the
    /// dialog's index.
    fn keep_bodies(
        &self,
        vcon: &Vcon,
        deadline: Deadline,
    ) -> Result<Vec<(usize, String)>, Failure> {
        let mut kept = Vec::new();
        for dialog in vcon.dialog().map_err(refused)? {
            let Some(content) = dialog.body() else {
                continue;
            };
            let post = PostedBody {
                content,
                vcon_uuid: vcon.id().as_str(),
                dialog_id: &dialog.text("id").unwrap_or_default(),
            };
            let json = serde_json::to_string(&post)
                .map_err(|error| Failure::permanent(format!("could not write a body: {error}")))?;
            let limit = deadline.begin(self.timeout);
            let mut answer =
                http_client::post(&self.agent, &self.url, &HeaderMap::new(), &json, limit)?;
            let text = answer
                .body_mut()
                .with_config()
                .limit(ANSWER_LIMIT)
                .read_to_string()
                .map_err(|error| {
                    let url = &self.url;
                    Failure::transient(format!("could not read the answer of {url}: {error}"))
                })?;
            let answer: Option<Answer> = serde_json::from_str(&text).ok();
            let kept_at = answer.and_then(|answer| answer.url);
            let Some(kept_at) = kept_at.filter(|url| !url.is_empty()) else {
                let url = &self.url;
                let message = format!("{url} took a body and did not answer with {{\"url\": …}}");
                return Err(Failure::transient(message));
            };
            kept.push((dialog.index, kept_at));
        }
        Ok(kept)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::http_client::tests::serve;
    use crate::link::testing;

    fn diet(options: &str) -> Box<dyn Link> {
        testing::opened(open, options)
    }

    fn run(link: &mut dyn Link, document: &str) -> (Result<Next, LinkError>, bool, String) {
        let mut ran = testing::run(link, document);
        (ran.next, ran.vcon.is_changed(), ran.vcon.to_json())
    }

    const DOCUMENT: &str = concat!(
        r#"{"vcon":"0.4.0","n":1.0,"dialog":[{"id":"d1","body":"words","x":1},{"type":"text"},7],"#,
        r#""analysis":[{"type":"summary","system_prompt":"be kind","body":"s"}],"#,
        r#""attachments":[{"mediatype":"image/png","body":"p"},{"mime_type":"audio/x","body":"a"},"#,
        r#"{"purpose":"p","encoding":"json","body":"{\"system_prompt\":1,\"k\":1.0}"}]}"#
    );

    #[test]
    fn each_option_takes_out_its_own() {
        for (options, from, to) in [
            (
                "{remove_dialog_body: true}",
                r#""body":"words""#,
                r#""body":"""#,
            ),
            (
                "{remove_analysis: true}",
                r#""analysis":[{"type":"summary","system_prompt":"be kind","body":"s"}],"#,
                "",
            ),
            (
                "{remove_attachment_types: [image/png, audio/x]}",
                r#"{"mediatype":"image/png","body":"p"},{"mime_type":"audio/x","body":"a"},"#,
                "",
            ),
        ] {
            let (next, changed, json) = run(&mut *diet(options), DOCUMENT);
            assert_eq!((next, changed), (Ok(Next::Continue), true));
            assert_eq!(json, DOCUMENT.replace(from, to), "{options}");
        }
        let (_, changed, json) = run(&mut *diet("{remove_system_prompts: true}"), DOCUMENT);
        assert!(changed && !json.contains("system_prompt"), "{json}");
        assert!(json.contains(r#""body":"{\"k\":1.0}""#), "{json}");
        assert!(json.contains(r#""n":1.0"#), "{json}");
    }

    #[test]
    fn what_is_not_there_is_no_change() {
        let all = "{remove_dialog_body: true, remove_analysis: true, \
                   remove_attachment_types: [a/b], remove_system_prompts: true}";
        for (options, document) in [("{}", DOCUMENT), (all, r#"{"dialog":[{"body":""}]}"#)] {
            let (next, changed, _) = run(&mut *diet(options), document);
            assert_eq!((next, changed), (Ok(Next::Continue), false), "{options}");
        }
    }

    #[test]
    fn a_body_that_cannot_be_posted_stays() {
        let (address, server) = serve(&["503 Service Unavailable"]);
        let options =
            format!("{{remove_dialog_body: true, post_media_to_url: 'http://{address}/m'}}");
        let (next, changed, json) = run(&mut *diet(&options), DOCUMENT);
        let Err(LinkError::Failed(failure)) = next else {
            unreachable!("{next:?}")
        };
        assert!(failure.is_transient() && !changed);
        assert!(json.contains(r#""body":"words""#));
        let request = server.join().unwrap().remove(0);
        assert!(
            request.contains(r#"{"content":"words","vcon_uuid":""#),
            "{request}"
        );
        assert!(request.ends_with(r#""dialog_id":"d1"}"#), "{request}");
    }

    #[test]
    fn a_body_whose_url_is_not_told_stays() {
        // The server of the test answers without a body.
        let (address, server) = serve(&["200 OK"]);
        let options =
            format!("{{remove_dialog_body: true, post_media_to_url: 'http://{address}/m'}}");
        let (next, changed, json) = run(&mut *diet(&options), DOCUMENT);
        let Err(LinkError::Failed(failure)) = next else {
            unreachable!("{next:?}")
        };
        assert!(failure.is_transient() && !changed, "{failure}");
        assert!(failure.message.contains(&address), "{failure}");
        assert!(json.contains(r#""body":"words""#));
        server.join().unwrap();
    }

    #[test]
    fn options_that_cannot_be_had_are_faults() {
        for text in [
            "{s3_bucket: b}",
            "{post_media_to_url: nowhere}",
            "{timeout: 0}",
        ] {
            let mut options = Options::from_yaml(text);
            open(&mut options);
            assert_eq!(options.faults().len(), 1, "{text}");
        }
    }
}
