//! `links.post_analysis_to_slack`: posts analyses that somebody should look at to Slack.
//!
//! Reads the analyses of `only_if.analysis_type` with `only_if.includes` in their body. What is posted is the
//! dialog's analysis of the type `analysis_to_post`, its summary, or the analysis itself if there is none, with
//! a button that leads to `url`. It goes to `default_channel_name`, and to `team-<team>-alerts` if an attachment
//! with the purpose `strolid_dealer` names a team.
//!
//! Writes `was_posted_to_slack` into the analysis: `true` once all channels have it, until then the list of
//! those that have it. That is in Redis before the next message is sent, so a retry posts nothing twice. Whether
//! a message was posted that Slack does not confirm in time, or before the worker dies, nobody knows: it is sent
//! again, half a minute later if Slack was slow.

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{HeaderValue, Request};

use super::ai::{includes, to_json};
use super::service::{Sent, all_refused, of_answer};
use super::{Context, Link, LinkError, Next};
use crate::deadline::{Deadline, Limit};
use crate::failure::{Failure, FailureKind};
use crate::http_client::{self, Url, exchange_once, retry_after};
use crate::options::Options;
use crate::secret::Secret;
use crate::vcon::{Entry, Vcon, VconError};
use crate::visible::printable;

/// Where Slack is.
const SLACK: &str = "https://slack.com/api";

/// The most characters of a section's text that Slack takes.
const MOST_CHARACTERS: usize = 3000;

/// The most bytes of an answer that are read.
const MOST: u64 = 1 << 20;

/// How long a probe waits for an answer.
const PROBE: Duration = Duration::from_secs(10);

/// The member of an analysis that tells where it was posted.
const POSTED: &str = "was_posted_to_slack";

/// The team for which the default channel is enough.
const OWN_TEAM: &str = "strolid";

struct Slack {
    agent: Agent,
    /// `None` after a fault in the options.
    server: Option<(Url, HeaderValue)>,
    secrets: Vec<Secret>,
    timeout: Duration,
    default_channel: String,
    details: Option<String>,
    analysis_to_post: String,
    only_if: OnlyIf,
}

/// Which analyses are posted.
struct OnlyIf {
    analysis_type: String,
    includes: String,
}

/// A message that is due.
struct Due {
    /// The index of its analysis.
    analysis: usize,
    channel: String,
    /// Whether the channel is that of a team that the vCon names.
    is_teams: bool,
    text: String,
    /// What [`POSTED`] becomes when it is posted.
    posted: Value,
}

/// Codes of a token that may not do what is asked, whatever is posted.
const DENIED: [&str; 15] = [
    "invalid_auth",
    "not_authed",
    "account_inactive",
    "token_revoked",
    "token_expired",
    "missing_scope",
    "no_permission",
    "not_allowed_token_type",
    "access_denied",
    "ekm_access_denied",
    "org_login_required",
    "team_access_not_granted",
    "restricted_action",
    "two_factor_setup_required",
    "accesslimited",
];

/// Codes of a channel that cannot be posted to.
const NO_CHANNEL: [&str; 4] = [
    "channel_not_found",
    "not_in_channel",
    "is_archived",
    "restricted_action_read_only_channel",
];

/// Codes of a fault of Slack itself.
const TROUBLE: [&str; 4] = [
    "internal_error",
    "fatal_error",
    "service_unavailable",
    "request_timeout",
];

/// Codes of a message that Slack does not take.
const BAD_MESSAGE: [&str; 3] = ["msg_too_long", "no_text", "msg_blocks_too_long"];

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let token = options.filled_secret("token");
    let timeout = options.seconds_or("timeout", 30.0);
    if timeout.is_zero() {
        options.fault("timeout", "must be more than 0");
    }
    let api: Result<Url, _> = options.string_or("api_url", SLACK).parse();
    if let Err(error) = &api {
        options.fault("api_url", error.to_string());
    }
    let authorization = match &token {
        Some(token) => authorization(token),
        None => None,
    };
    match (&token, &authorization) {
        (None, _) => options.fault("token", "is required"),
        (Some(_), None) => options.fault("token", "is not one line of text"),
        _ => {}
    }
    let details = options.filled_string("url");
    let details = details.filter(|url| {
        let is_url = url.replace("{vcon_id}", "x").parse::<Url>().is_ok();
        if !is_url {
            let message = "is not a URL of the form https://host/path: messages get no button";
            options.warn("url", message);
        }
        is_url
    });
    // The existing worker has it among its defaults, and does not look at it.
    options.pass_over("channel_name");
    let mut secrets = options.looked_up().to_vec();
    secrets.extend(token);
    Box::new(Slack {
        agent: http_client::agent(),
        server: api.ok().zip(authorization),
        secrets,
        timeout,
        default_channel: options.required_string("default_channel_name"),
        details,
        analysis_to_post: options.string_or("analysis_to_post", "summary"),
        only_if: OnlyIf::open(options),
    })
}

fn authorization(token: &Secret) -> Option<HeaderValue> {
    let value = HeaderValue::try_from(format!("Bearer {}", token.reveal().trim()));
    let mut value = value.ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl OnlyIf {
    fn open(options: &mut Options) -> Self {
        let mut only_if = Self {
            analysis_type: "customer_frustration".to_owned(),
            includes: "NEEDS REVIEW".to_owned(),
        };
        for (key, value) in options.string_map("only_if") {
            match key.as_str() {
                "analysis_type" => only_if.analysis_type = value,
                "includes" => only_if.includes = value,
                _ => options.warn(
                    "only_if",
                    format!("unknown key `{key}` has no effect (known: analysis_type, includes)"),
                ),
            }
        }
        only_if
    }

    fn holds(&self, analysis: &Entry<'_>) -> bool {
        analysis.text("type").as_deref() == Some(&self.analysis_type)
            && includes(analysis, &self.includes)
    }
}

impl Link for Slack {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let Some(due) = self.next(vcon, context)? else {
            return match all_refused("analysis", &context.refused) {
                Some(failure) => Err(failure.into()),
                None => Ok(Next::Continue),
            };
        };
        let message = self.message(&due, vcon.id().as_str());
        let posted = {
            let _permit = context.permit()?;
            let limit = context.deadline.begin(self.timeout);
            self.call("chat.postMessage", &message, limit, due.is_teams)
        };
        match posted {
            Ok(()) => vcon.set_in_analysis(due.analysis, POSTED, &to_json(&due.posted)?)?,
            Err(failure) if failure.kind.is_final() => {
                context.refused.push((due.analysis, failure));
            }
            Err(failure) => return Err(failure.into()),
        }
        Ok(Next::Again)
    }

    fn rewrites(&self) -> bool {
        true
    }

    fn counts_requests(&self) -> bool {
        true
    }

    fn longest_call(&self) -> Duration {
        self.timeout
    }

    fn probe(&mut self, _: &Receiver<()>) -> Result<(), Failure> {
        let limit = Deadline::NONE.begin(PROBE.min(self.timeout));
        self.call("auth.test", &json!({}), limit, false)
    }
}

impl Slack {
    /// The next message that is due.
    fn next(&self, vcon: &Vcon, context: &Context<'_>) -> Result<Option<Due>, VconError> {
        let analyses: Vec<Entry<'_>> = vcon.analysis()?.collect();
        let dealer = Dealer::of(vcon)?;
        let mut channels = vec![self.default_channel.clone()];
        channels.extend(dealer.channel().filter(|it| *it != self.default_channel));
        for analysis in &analyses {
            let is_refused = context.refused.iter().any(|(it, _)| *it == analysis.index);
            if is_refused || !self.only_if.holds(analysis) {
                continue;
            }
            let Some(posted) = posted(analysis) else {
                continue;
            };
            let mut missing = channels.iter().filter(|it| !posted.contains(it));
            let Some(channel) = missing.next() else {
                continue;
            };
            let is_last = missing.next().is_none();
            let all = || posted.iter().chain([channel]).collect::<Vec<_>>();
            let mut text = self.text(analysis, &analyses);
            if let (Some(_), Some(name)) = (dealer.channel(), &dealer.name) {
                text = format!("{text} #{name}");
            }
            return Ok(Some(Due {
                analysis: analysis.index,
                channel: channel.clone(),
                is_teams: *channel != self.default_channel,
                text,
                posted: if is_last { json!(true) } else { json!(all()) },
            }));
        }
        Ok(None)
    }

    /// What is posted for an analysis: the summary of its dialog, or its own text.
    fn text(&self, analysis: &Entry<'_>, all: &[Entry<'_>]) -> String {
        let dialog = analysis.get("dialog").map(|it| it.get());
        let is_summary = |it: &&Entry<'_>| {
            it.text("type").as_deref() == Some(&self.analysis_to_post)
                && it.get("dialog").map(|it| it.get()) == dialog
        };
        let summary = all.iter().find(is_summary).and_then(text_of);
        let text = summary.or_else(|| text_of(analysis));
        text.unwrap_or_else(|| self.only_if.analysis_type.clone())
    }

    fn message(&self, due: &Due, id: &str) -> Value {
        let text = escaped(&due.text);
        let section = |text: &str| json!({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": true}});
        let title = escaped(&format!("*{}*", self.only_if.analysis_type));
        let mut blocks = vec![section(&title), section(&text)];
        if let Some(url) = &self.details {
            let mut details = section("Details of the conversation:");
            details["accessory"] = json!({
                "type": "button",
                "action_id": "details",
                "text": {"type": "plain_text", "text": "Details"},
                "url": details_url(url, id),
            });
            blocks.push(details);
        }
        json!({"channel": due.channel, "text": text, "blocks": blocks})
    }

    /// Calls a method of Slack, which says in its answer whether it did it.
    fn call(
        &self,
        method: &str,
        body: &Value,
        limit: Limit,
        is_teams: bool,
    ) -> Result<(), Failure> {
        let Some((api, authorization)) = &self.server else {
            return Err(Failure::permanent("no Slack is configured"));
        };
        let unsent = |_| Failure::permanent(format!("could not POST to {api}: bad URL"));
        let uri = api.below(&format!("/{method}")).map_err(unsent)?;
        let url: Url = uri.to_string().parse().unwrap_or_else(|_| api.clone());
        let request = Request::post(uri)
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, "application/json; charset=utf-8")
            .body(body.to_string())
            .map_err(unsent)?;
        let answer = exchange_once(&self.agent, request, &url, limit, MOST)?;
        if !answer.status.is_success() {
            return Err(of_answer(&url, &answer, Sent::Text, &self.secrets));
        }
        let said: Value = serde_json::from_slice(&answer.body).map_err(|error| {
            Failure::refused(format!("{url} answered with what is not JSON: {error}"))
        })?;
        match (said.get("ok"), said.get("error").and_then(Value::as_str)) {
            (Some(Value::Bool(true)), _) => Ok(()),
            (Some(Value::Bool(false)), Some(code)) => {
                let until = retry_after(&answer.headers);
                Err(refusal(&url, code, &said, body, is_teams).until(until))
            }
            _ => Err(Failure::refused(format!("{url} answered without `ok`"))),
        }
    }
}

/// Why Slack did not do what was asked.
fn refusal(url: &Url, code: &str, said: &Value, body: &Value, is_teams: bool) -> Failure {
    let is_about_channel = NO_CHANNEL.contains(&code);
    let kind = match code {
        "ratelimited" | "rate_limited" => FailureKind::Busy,
        // The vCon names the team: others may have a channel.
        _ if is_about_channel && is_teams => FailureKind::Refused,
        _ if is_about_channel || DENIED.contains(&code) => FailureKind::Denied,
        _ if BAD_MESSAGE.contains(&code) => FailureKind::Permanent,
        _ if TROUBLE.contains(&code) => FailureKind::Transient,
        _ => FailureKind::Refused,
    };
    let shown: String = code.chars().take(100).collect();
    let mut message = format!("could not POST to {url}: Slack says {}", printable(&shown));
    if is_about_channel && let Some(channel) = body.get("channel").and_then(Value::as_str) {
        message = format!("{message} of channel {}", printable(channel));
    }
    if let Some(scope) = said.get("needed").and_then(Value::as_str) {
        let scope: String = scope.chars().take(100).collect();
        message = format!("{message}; the token needs the scope {}", printable(&scope));
    }
    Failure::new(kind, message)
}

/// The channels that an analysis was posted to; `None` if there is nothing more to post.
fn posted(analysis: &Entry<'_>) -> Option<Vec<String>> {
    let Some(posted) = analysis.get(POSTED) else {
        return Some(Vec::new());
    };
    match serde_json::from_str(posted.get()) {
        Ok(Value::Array(channels)) => {
            let names = channels.iter().filter_map(Value::as_str);
            Some(names.map(str::to_owned).collect())
        }
        Ok(Value::Bool(false) | Value::Null) | Err(_) => Some(Vec::new()),
        Ok(_) => None,
    }
}

/// The body of an analysis as text, if there is any.
fn text_of(analysis: &Entry<'_>) -> Option<String> {
    let text = analysis.text("body");
    let text = text.or_else(|| analysis.body().map(|body| body.get().to_owned()));
    text.filter(|text| !text.trim().is_empty())
}

/// Who the conversation belongs to, by the attachment with the purpose `strolid_dealer`.
#[derive(Default)]
struct Dealer {
    name: Option<String>,
    team: Option<String>,
}

impl Dealer {
    fn of(vcon: &Vcon) -> Result<Self, VconError> {
        let mut dealer = Self::default();
        for attachment in vcon.attachments()? {
            let is = |key| attachment.text(key).as_deref() == Some("strolid_dealer");
            if !is("purpose") && !is("type") {
                continue;
            }
            let body = attachment.body();
            let body = body.and_then(|body| serde_json::from_str::<Value>(body.get()).ok());
            let Some(body) = body else { continue };
            let name_in = |value: &Value| value.get("name")?.as_str().map(str::to_owned);
            let team = body.get("team");
            let team =
                team.and_then(|team| team.as_str().map(str::to_owned).or_else(|| name_in(team)));
            dealer = Self {
                name: name_in(&body).or(dealer.name),
                team: team.or(dealer.team),
            };
        }
        Ok(dealer)
    }

    /// The channel of its team, of whose name the first word counts.
    fn channel(&self) -> Option<String> {
        let team = self.team.as_ref()?.split_whitespace().next()?;
        let team = team.to_lowercase();
        (team != OWN_TEAM).then(|| format!("team-{team}-alerts"))
    }
}

/// Whether Slack gets a character: none that controls anything, or changes the direction of the text.
fn is_shown(c: char) -> bool {
    let is_direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    matches!(c, '\n' | '\t') || !(c.is_control() || is_direction)
}

/// Text that Slack shows as it is: it cannot mention anybody, nor hide where a link leads to. Cut to what one
/// section takes.
fn escaped(text: &str) -> String {
    let mut shown = String::new();
    let mut left = MOST_CHARACTERS;
    let mut characters = text.chars().filter(|c| is_shown(*c)).peekable();
    while let Some(c) = characters.next() {
        let escape = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            _ => "",
        };
        let length = escape.len().max(1);
        let needed = if characters.peek().is_some() {
            length + 1
        } else {
            length
        };
        if needed > left {
            shown.push('…');
            break;
        }
        left -= length;
        match escape {
            "" => shown.push(c),
            escape => shown.push_str(escape),
        }
    }
    shown
}

/// Where the details of a vCon are: in the place of `{vcon_id}`, or in the query, as the existing worker has it.
fn details_url(url: &str, id: &str) -> String {
    if url.contains("{vcon_id}") {
        return url.replace("{vcon_id}", id);
    }
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}_vcon_id=%22{id}%22")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::link::ai::testing::run;

    const TOKEN: &str = "xoxb-0123456789";

    fn options(others: &str) -> String {
        format!("{{token: {TOKEN}, default_channel_name: alerts, api_url: URL/api, {others}}}")
    }

    fn document() -> Value {
        json!({"vcon": "0.4.0", "analysis": [
            {"type": "customer_frustration", "dialog": 0, "body": "all is well"},
            {"type": "customer_frustration", "dialog": 1, "body": "NEEDS REVIEW: <angry> & loud"},
            {"type": "summary", "dialog": 0, "body": "of another dialog"}]})
    }

    fn with_team(body: Value) -> Value {
        let mut document = document();
        document["attachments"] = json!([{"purpose": "strolid_dealer", "body": body}]);
        document
    }

    fn ok() -> (u16, Value) {
        (200, json!({"ok": true, "ts": "1.2"}))
    }

    fn error(code: &str) -> (u16, Value) {
        (200, json!({"ok": false, "error": code}))
    }

    fn failed(end: Result<Next, LinkError>) -> Failure {
        match end {
            Err(LinkError::Failed(failure)) => failure,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn what_matches_is_posted_once_and_marked() {
        let done = run(
            open,
            &options("url: 'https://portal/{vcon_id}/x'"),
            &document(),
            vec![ok()],
        );
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
        let mut expected = document();
        expected["analysis"][1]["was_posted_to_slack"] = json!(true);
        assert_eq!(done.vcon, expected);
        let (head, body) = &done.requests[0];
        assert!(
            head.starts_with("post /api/chat.postmessage http/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.contains(&format!("authorization: bearer {TOKEN}")),
            "{head}"
        );
        assert_eq!(body["channel"], "alerts");
        let text = "NEEDS REVIEW: &lt;angry&gt; &amp; loud";
        assert_eq!(body["text"], text);
        assert_eq!(body["blocks"][0]["text"]["text"], "*customer_frustration*");
        assert_eq!(
            body["blocks"][1],
            json!({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": true}})
        );
        let url = body["blocks"][2]["accessory"]["url"].as_str().unwrap();
        assert!(
            url.starts_with("https://portal/") && url.len() == 36 + 17,
            "{url}"
        );

        let again = run(open, &options(""), &done.vcon, Vec::new());
        assert_eq!((again.end, again.parts), (Ok(Next::Continue), 0));
    }

    #[test]
    fn the_summary_of_the_same_dialog_is_what_is_shown() {
        let mut document = document();
        document["analysis"][2]["dialog"] = json!(1);
        let done = run(open, &options(""), &document, vec![ok()]);
        assert_eq!(done.requests[0].1["text"], "of another dialog");
        assert_eq!(
            done.requests[0].1["blocks"].as_array().map(Vec::len),
            Some(2)
        );
    }

    #[test]
    fn a_team_has_a_channel_of_its_own() {
        for (body, channel, text) in [
            (
                json!({"team": {"name": "Blue Birds"}, "name": "Zoë"}),
                Some("team-blue-alerts"),
                " #Zoë",
            ),
            (json!({"team": "Red"}), Some("team-red-alerts"), ""),
            (
                json!(r#"{"team": {"name": "Red"}}"#),
                Some("team-red-alerts"),
                "",
            ),
            (json!({"team": "Strolid"}), None, ""),
            (json!({"team": 7}), None, ""),
            (json!("no JSON"), None, ""),
        ] {
            let both = if channel.is_some() { 2 } else { 1 };
            let done = run(open, &options(""), &with_team(body), vec![ok(); both]);
            assert_eq!((done.end, done.parts), (Ok(Next::Continue), both));
            let channels: Vec<&str> = done
                .requests
                .iter()
                .map(|(_, body)| body["channel"].as_str().unwrap())
                .collect();
            let expected: Vec<&str> = ["alerts"].into_iter().chain(channel).collect();
            assert_eq!(channels, expected);
            assert_eq!(done.vcon["analysis"][1]["was_posted_to_slack"], true);
            assert!(
                done.requests[0].1["text"]
                    .as_str()
                    .unwrap()
                    .ends_with(&format!("loud{text}"))
            );
        }
    }

    #[test]
    fn a_channel_that_has_the_message_does_not_get_it_again() {
        let document = with_team(json!({"team": "red"}));
        let done = run(
            open,
            &options(""),
            &document,
            vec![ok(), error("internal_error")],
        );
        assert_eq!(failed(done.end).kind, FailureKind::Transient);
        assert_eq!(
            done.vcon["analysis"][1]["was_posted_to_slack"],
            json!(["alerts"])
        );
        let done = run(open, &options(""), &done.vcon, vec![ok()]);
        assert_eq!((done.end, done.parts), (Ok(Next::Continue), 1));
        assert_eq!(done.requests[0].1["channel"], "team-red-alerts");
        assert_eq!(done.vcon["analysis"][1]["was_posted_to_slack"], true);
    }

    #[test]
    fn answers_are_classified() {
        use FailureKind::{Busy, Denied, Permanent, Refused, Transient};
        for (answer, kind) in [
            (error("ratelimited"), Busy),
            ((429, json!({"ok": false, "error": "ratelimited"})), Busy),
            (error("invalid_auth"), Denied),
            (error("missing_scope"), Denied),
            (error("channel_not_found"), Denied),
            (error("msg_too_long"), Permanent),
            (error("no_text"), Permanent),
            (error("who_knows"), Refused),
            (error("request_timeout"), Transient),
            ((500, json!("")), Transient),
            ((200, json!("<html>")), Refused),
            ((200, json!({})), Refused),
        ] {
            let done = run(open, &options(""), &document(), vec![answer]);
            let failure = failed(done.end);
            assert_eq!(failure.kind, kind, "{failure}");
            assert_eq!(done.vcon, document());
            assert!(!failure.message.contains(TOKEN));
        }
        // Others may have a channel for their team.
        let answers = vec![ok(), error("channel_not_found")];
        let failure = failed(
            run(
                open,
                &options(""),
                &with_team(json!({"team": "x"})),
                answers,
            )
            .end,
        );
        assert_eq!(failure.kind, Refused);
        assert!(
            failure
                .message
                .ends_with("Slack says channel_not_found of channel team-x-alerts"),
            "{failure}"
        );
    }

    #[test]
    fn a_probe_asks_who_the_token_belongs_to() {
        use crate::http_client::tests::serve_with;
        for (said, is_well) in [
            (r#"{"ok":true}"#, true),
            (r#"{"ok":false,"error":"invalid_auth"}"#, false),
        ] {
            let (address, server) = serve_with(vec![(200, said.to_owned())]);
            let yaml = options("").replace("URL", &format!("http://{address}"));
            let mut link = crate::link::testing::opened(open, &yaml);
            let (_drain, drained) = crossbeam_channel::bounded(0);
            assert_eq!(link.probe(&drained).is_ok(), is_well);
            assert!(server.join().unwrap()[0].starts_with("POST /api/auth.test "));
        }
    }

    #[test]
    fn long_text_is_cut_to_what_slack_takes() {
        assert_eq!(escaped("a\u{1b}[1m\n\u{202e}b\u{0}👩‍🚀"), "a[1m\nb👩‍🚀");
        let cut = escaped(&"é".repeat(4000));
        assert_eq!(cut.chars().count(), 3000);
        assert!(cut.ends_with("é…"));
        assert_eq!(escaped(&"é".repeat(3000)), "é".repeat(3000));
        let cut = escaped(&"<".repeat(4000));
        assert!(
            cut.chars().count() <= 3000 && cut.ends_with("&lt;…"),
            "{cut}"
        );
    }

    #[test]
    fn the_details_are_where_the_existing_worker_has_them() {
        assert_eq!(
            details_url("https://h/p", "1"),
            "https://h/p?_vcon_id=%221%22"
        );
        assert_eq!(
            details_url("https://h/p?a=b", "1"),
            "https://h/p?a=b&_vcon_id=%221%22"
        );
        assert_eq!(details_url("https://h/{vcon_id}/", "1"), "https://h/1/");
    }

    #[test]
    fn options_that_are_missing_or_wrong_are_named() {
        for (yaml, faults) in [
            (
                "{}",
                ["token: is required", "default_channel_name: is required"].as_slice(),
            ),
            (
                "{token: \"a\\nb\", default_channel_name: c}",
                &["token: is not one line of text"],
            ),
            (
                "{token: a, default_channel_name: c, timeout: 0}",
                &["timeout: must be more than 0"],
            ),
        ] {
            let mut options = Options::from_yaml(yaml);
            open(&mut options);
            assert_eq!(options.faults(), faults);
        }
        let mut options =
            Options::from_yaml("{token: a, default_channel_name: c, url: Url to link to}");
        open(&mut options);
        assert_eq!(options.warnings().len(), 1);
    }
}
