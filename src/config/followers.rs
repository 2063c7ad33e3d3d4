//! `followers`: the servers whose vCons are pulled into lists of ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::HeaderValue;

use super::{ListName, read, source};
use crate::http_client::Url;
use crate::options::Options;
use crate::options::error::{ConfigErrors, Fault, Findings};
use crate::options::substitution::Environment;
use crate::options::yaml::{self, Entry, Mapping, NodeKind};
use crate::secret::Secret;

/// The seconds between two pulls, where the file does not name them.
const INTERVAL: f64 = 60.0;

/// The longest such time: a week.
const LONGEST: Duration = Duration::from_secs(604_800);

/// The number of vCons asked for at once, where the file does not name it.
const LIMIT: i64 = 10;

/// The most that can be asked for at once.
const MOST: i64 = 10_000;

/// The seconds that one document may take, where the file does not name them.
const TIMEOUT: f64 = 60.0;

/// The longest such time. The follower keeps its turn for that long if its instance dies, so no other
/// instance pulls in this time.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// The largest document, in MiB, where the file does not name it, and the most it can name: Redis takes
/// no larger one.
const MEGABYTES: i64 = 64;
const MOST_MEGABYTES: i64 = 512;

/// One entry of `followers`, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Follower {
    /// Its name.
    pub name: String,
    /// Where the other server's API is, without `/vcon`.
    pub url: Url,
    /// What the other server asks for, if it asks for anything.
    pub token: Option<Secret>,
    /// The other server's list that UUIDs are taken from.
    pub egress_list: ListName,
    /// Our list that they are pushed onto.
    pub ingress_list: ListName,
    /// The time between two pulls.
    pub interval: Duration,
    /// How many vCons one pull asks for.
    pub limit: u32,
    /// How long the other server may take to send one document.
    pub timeout: Duration,
    /// The largest document, in bytes.
    pub most_bytes: u64,
}

impl Follower {
    /// Reads the followers alone of the file at `path`, with their values from variables and files.
    ///
    /// # Errors
    /// What is wrong with the file, or with its followers.
    pub fn load_all(path: &Path) -> Result<Vec<Self>, ConfigErrors> {
        let text = source::read_kept(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        let environment = Arc::new(Environment::of_process());
        let document = yaml::parse(&text).map_err(|faults| ConfigErrors::new(path, faults))?;
        let (followers, faults) = read::followers(document, &environment);
        if faults.is_empty() {
            Ok(followers)
        } else {
            Err(ConfigErrors::new(path, faults))
        }
    }

    /// Reads one, and records what is wrong with it.
    pub(super) fn read(name: &str, options: &mut Options) -> Option<Self> {
        let url = url(options);
        let token = token(options);
        let egress_list = list(options, "egress_list");
        let ingress_list = list(options, "follower_ingress_list");
        let interval = options.seconds_or("pulling_interval", INTERVAL);
        if interval < Duration::from_secs(1) || interval > LONGEST {
            let most = LONGEST.as_secs();
            options.fault(
                "pulling_interval",
                format!("must be from 1 to {most} seconds"),
            );
        }
        let limit = options.integer_or("fetch_vcon_limit", LIMIT, 1..=MOST);
        let timeout = options.seconds_or("timeout", TIMEOUT);
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            let most = LONGEST_TIMEOUT.as_secs();
            options.fault(
                "timeout",
                format!("must be more than 0 and at most {most} seconds"),
            );
        }
        let megabytes = options.integer_or("max_megabytes", MEGABYTES, 1..=MOST_MEGABYTES);
        Some(Self {
            name: name.to_owned(),
            url: url?,
            token,
            egress_list: egress_list?,
            ingress_list: ingress_list?,
            interval,
            limit: u32::try_from(limit).unwrap_or(1),
            timeout,
            most_bytes: u64::try_from(megabytes).unwrap_or(1) << 20,
        })
    }
}

/// Reads the section, and records what is wrong with it.
pub(super) fn read(
    sections: &Mapping,
    environment: &Arc<Environment>,
    findings: &mut Findings,
) -> Vec<Follower> {
    if sections.get("followers").is_some_and(is_empty_list) {
        return Vec::new();
    }
    let mut followers = Vec::new();
    for (name, path, entry) in read::entries(sections, "followers", findings) {
        if name.is_empty() || name.chars().any(char::is_control) {
            let message = format!("{name:?} is not a name: it is empty or has control characters");
            findings
                .faults
                .push(Fault::at(entry.line, "followers", message));
            continue;
        }
        let options = Options::new(&path, "option", entry.line, &entry.value);
        let mut options = options.filled_from(environment);
        followers.extend(Follower::read(name, &mut options));
        options.finish();
        // The values of others are not to be hidden in messages about these.
        environment.take_looked_up();
        findings.take(&mut options);
    }
    followers
}

fn is_empty_list(entry: &Entry) -> bool {
    matches!(&entry.value.kind, NodeKind::Sequence(items) if items.is_empty())
}

fn url(options: &mut Options) -> Option<Url> {
    let text = options.required_string("url");
    if text.is_empty() {
        return None;
    }
    let url: Result<Url, _> = text.parse();
    if let Err(error) = &url {
        options.fault("url", error.to_string());
    } else if text.contains(['?', '#']) {
        options.fault("url", "must have no query and no fragment");
    }
    url.ok()
}

fn token(options: &mut Options) -> Option<Secret> {
    let token = options.secret("auth_token")?;
    let token = Secret::new(token.reveal().trim());
    if HeaderValue::from_str(token.reveal()).is_err() {
        options.fault("auth_token", "has characters that no HTTP header can have");
    }
    (!token.reveal().is_empty()).then_some(token)
}

fn list(options: &mut Options, key: &str) -> Option<ListName> {
    let name = options.required_string(key);
    if name.is_empty() {
        return None;
    }
    let list: Result<ListName, _> = name.parse();
    if let Err(error) = &list {
        options.fault(key, error.to_string());
    }
    list.ok()
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn parse(followers: &str) -> (Vec<Follower>, Vec<String>) {
        let text = format!("chains: {{a: {{}}}}\nfollowers:\n{followers}");
        let document = yaml::parse(&text).unwrap();
        let environment = Arc::new(Environment::of([("TOKEN", "hunter2-hunter2")]));
        let (followers, faults) = read::followers(document, &environment);
        let faults = faults.into_iter();
        let shown = faults.map(|it| {
            let line = it.line.unwrap_or_default();
            format!("{line}: {}: {}", it.key, it.message)
        });
        (followers, shown.collect())
    }

    #[test]
    fn a_follower_is_read_as_it_stands() {
        let (found, faults) = parse(
            "  far:\n    url: https://far.example.org/api/\n    auth_token: ' ${TOKEN}'\n\
             \x20   egress_list: done\n    follower_ingress_list: in\n    pulling_interval: '1.5'\n\
             \x20   fetch_vcon_limit: '25'\n\
             \x20 near: {url: 'http://near', egress_list: a, follower_ingress_list: b}\n\
             \x20 slow: {url: 'http://slow', egress_list: a, follower_ingress_list: b, timeout: 3600}\n",
        );
        assert_eq!(faults, [""; 0]);
        let [far, near, slow] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(far.name, "far");
        assert_eq!(far.token, Some(Secret::new("hunter2-hunter2")));
        assert_eq!(far.egress_list.as_str(), "done");
        assert_eq!(far.ingress_list.as_str(), "in");
        assert_eq!(far.interval, Duration::from_millis(1500));
        assert_eq!((far.limit, near.limit), (25, 10));
        assert_eq!((&near.token, near.interval.as_secs()), (&None, 60));
        assert_eq!((near.timeout.as_secs(), near.most_bytes), (60, 64 << 20));
        assert_eq!(slow.timeout, LONGEST_TIMEOUT);
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let (_, faults) = parse("  far: {auth_token: t}\n");
        assert_eq!(
            faults,
            [
                "3: followers.far.url: is required",
                "3: followers.far.egress_list: is required",
                "3: followers.far.follower_ingress_list: is required",
            ]
        );
        let rest = "egress_list: a, follower_ingress_list: b";
        for (options, key, words) in [
            ("url: 'ftp://h'", "url", "is not a URL"),
            ("url: 'http://h/api?x=y'", "url", "no query"),
            ("url: [h]", "url", "is a list, not a string"),
            (
                "url: 'http://h', pulling_interval: 0.5",
                "pulling_interval",
                "1 to 604800",
            ),
            (
                "url: 'http://h', pulling_interval: 1e9",
                "pulling_interval",
                "1 to 604800",
            ),
            (
                "url: 'http://h', pulling_interval: soon",
                "pulling_interval",
                "a number of seconds",
            ),
            (
                "url: 'http://h', fetch_vcon_limit: 0",
                "fetch_vcon_limit",
                "from 1 to 10000",
            ),
            ("url: 'http://h', timeout: 0", "timeout", "more than 0"),
            (
                "url: 'http://h', timeout: 3600.5",
                "timeout",
                "at most 3600 seconds",
            ),
            (
                "url: 'http://h', max_megabytes: 513",
                "max_megabytes",
                "from 1 to 512",
            ),
            (
                "url: 'http://h', auth_token: \"a\\nhunter2\"",
                "auth_token",
                "no HTTP header can have",
            ),
        ] {
            let (_, faults) = parse(&format!("  far: {{{options}, {rest}}}\n"));
            let [fault] = &faults[..] else {
                panic!("{options}: {faults:?}")
            };
            let path = yaml::joined("followers.far", key);
            let path = path.trim_end_matches('.');
            assert!(fault.starts_with(&format!("3: {path}: ")), "{fault}");
            assert!(
                fault.contains(words) && !fault.contains("hunter2"),
                "{fault}"
            );
        }
        let (_, faults) =
            parse("  far: {url: 'http://h', egress_list: \"a\\n\", follower_ingress_list: ' '}\n");
        assert_eq!(faults.len(), 2, "{faults:?}");
        let (_, faults) = parse(&format!("  \"a\\nb\": {{url: 'http://h', {rest}}}\n"));
        assert!(
            faults[0].contains("control characters") && !faults[0].contains('\n'),
            "{faults:?}"
        );
    }

    #[test]
    fn a_section_that_is_empty_is_none_and_another_kind_is_refused() {
        for nothing in ["  []\n", "  {}\n", "", "  null\n"] {
            assert_eq!(parse(nothing), (vec![], vec![]), "{nothing}");
        }
        for other in ["  [a]\n", "  word\n", "  far: word\n"] {
            let (_, faults) = parse(other);
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].contains("not a mapping"), "{faults:?}");
        }
        let (found, faults) = parse("  far:\n");
        assert!(found.is_empty() && faults.len() == 3, "{faults:?}");
    }
}
