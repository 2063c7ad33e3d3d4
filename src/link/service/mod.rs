//! What all links share that ask a service of somebody else: a model, a transcription, Slack.
//!
//! [`server`] makes the requests, [`openai`] finds the server of OpenAI's protocol and its credentials,
//! [`refusal`] says what an answer that is none means, [`reply`] reads one that is, [`shown`] what a vCon may show
//! of a link's options.

pub(super) mod openai;
pub(super) mod refusal;
pub(super) mod reply;
pub(super) mod server;
pub(super) mod shown;

pub(super) use self::refusal::{Sent, of_answer};
pub(super) use self::shown::{hidden, shown, shown_text};

use crate::failure::{Failure, FailureKind};
use crate::options::Options;

/// The most parts of a vCon that one failure names.
const MOST_NAMED: usize = 5;

/// One failure for all parts of a vCon that were refused, if any was: dialogs, or whatever the numbers are those of.
pub(super) fn all_refused(part: &str, refused: &[(usize, Failure)]) -> Option<Failure> {
    if refused.is_empty() {
        return None;
    }
    // What is in doubt is tried again if the server turns out to refuse all alike.
    let in_doubt = |(_, failure): &(usize, Failure)| failure.kind == FailureKind::Refused;
    let kind = match refused.iter().any(in_doubt) {
        true => FailureKind::Refused,
        false => FailureKind::Permanent,
    };
    let named = refused.iter().take(MOST_NAMED);
    let mut named: Vec<String> = named
        .map(|(number, failure)| format!("{part} {number}: {failure}"))
        .collect();
    if refused.len() > MOST_NAMED {
        named.push(format!("{} more", refused.len() - MOST_NAMED));
    }
    Some(Failure::new(kind, named.join("; ")))
}

/// Reads the options by which the existing worker reports what was used; nobody is told here.
pub(super) fn without_usage_reports(options: &mut Options) {
    for key in ["send_ai_usage_data_to_url", "ai_usage_api_token"] {
        options.pass_over(key);
        if options.is_given(key) {
            options.warn(key, "has no effect: nobody is told what was used");
        }
    }
}
