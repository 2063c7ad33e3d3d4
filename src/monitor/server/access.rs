//! Who may have the monitor act: whoever has the token, from the monitor's own page or from no page at all, and once
//! with each request.
//!
//! * The token stands in the file that `CONSERVER_HTTP_TOKEN_FILE` names. It is read for each request, so a new one
//!   counts at once. It comes in a header that no page but this one's script can set, and not in a cookie; a foreign
//!   `Origin` is refused all the same.
//! * Each request has a key that no other has. A request that comes again, from a proxy, a browser that lost its
//!   connection, or somebody who has recorded it, does nothing. Keys are remembered until the monitor ends, the last
//!   [`MOST_KEYS`] of them.
//! * After some wrong tokens, further ones get 429 for the rest of the minute; the right one is accepted all the
//!   while. Refusals are counted, and logged in one line when no more come.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::request::{HttpRequest, Post};
use super::response::{Response, StatusCode};
use crate::options::substitution::Environment;
use crate::secret::Secret;

/// The fewest characters of a token: as many as 96 bits have in base64.
const SHORTEST_TOKEN: usize = 16;

/// The most; a longer one would not fit into a request.
const LONGEST_TOKEN: usize = 1024;

/// Wrong tokens in a minute that are told so.
const MOST_WRONG: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);

/// Keys that are remembered: 16 bytes each.
const MOST_KEYS: usize = 10_000;

/// Lengths of a key.
const KEY_LENGTHS: std::ops::RangeInclusive<usize> = 8..=128;

/// Refusals are logged when none has come for this long,
const QUIET: Duration = Duration::from_secs(10);

/// and at the latest after this long.
const LONGEST_BURST: Duration = Duration::from_secs(60);

/// Addresses that such a line names.
const MOST_NAMED: usize = 3;

/// The file with the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenFile {
    name: String,
}

impl TokenFile {
    /// The file of this name: in the folder of systemd's credentials, or else in the current folder.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// Reads the token.
    ///
    /// # Errors
    /// A sentence that says why there is none.
    fn read(&self) -> Result<Secret, String> {
        let environment = Environment::of_process();
        let text = environment.file(&self.name)?;
        let text = text.trim();
        let shown = environment.place(&self.name)?.display().to_string();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "the token in {shown} has characters that a header cannot carry: it must be one word of ASCII"
            ));
        }
        if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&text.len()) {
            return Err(format!(
                "the token in {shown} must have from {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters, as \
                 `openssl rand -hex 32` prints"
            ));
        }
        Ok(Secret::new(text))
    }

    /// Checks the file. Returns a warning if others may read it.
    ///
    /// # Errors
    /// A sentence that says why there is no token.
    pub fn check(&self) -> Result<Option<String>, String> {
        self.read()?;
        let place = Environment::of_process().place(&self.name)?;
        let mode = fs::metadata(&place).map_or(0, |file| file.permissions().mode());
        Ok((mode & 0o004 != 0).then(|| {
            let shown = place.display();
            format!("every user of this machine may read the token in {shown} (chmod o-r)")
        }))
    }
}

/// Why a request to act is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another page asks, in a browser.
    OtherPage,
    /// The body is of another type.
    NotJson,
    /// There is no token in the request.
    NoToken,
    /// A wrong one.
    WrongToken,
    /// A wrong one, after many others.
    TooManyWrong,
    /// There is no token to compare with.
    Unusable(String),
    /// The request has no key.
    NoKey,
    /// Its key has been used.
    Again,
}

impl Refusal {
    /// How many there are.
    const COUNT: usize = 8;

    /// Its index among all of them.
    fn number(&self) -> usize {
        match self {
            Self::OtherPage => 0,
            Self::NotJson => 1,
            Self::NoToken => 2,
            Self::WrongToken => 3,
            Self::TooManyWrong => 4,
            Self::Unusable(_) => 5,
            Self::NoKey => 6,
            Self::Again => 7,
        }
    }

    /// What the log says of each, in the order of their numbers.
    const WORDS: [&str; Self::COUNT] = [
        "from another page",
        "of a body that is not JSON",
        "without a token",
        "with a wrong token",
        "with a wrong token after many others",
        "for want of a usable token file",
        "without an Idempotency-Key",
        "that had come before",
    ];

    /// What the client is told.
    pub fn response(&self) -> Response {
        let (status, line) = match self {
            Self::OtherPage => (
                StatusCode::Forbidden,
                "only the monitor's own page may ask a browser for this",
            ),
            Self::NotJson => (
                StatusCode::NotJson,
                "the body must be JSON (Content-Type: application/json)",
            ),
            Self::NoToken => (
                StatusCode::Unauthorized,
                "this needs the token (Authorization: Bearer TOKEN)",
            ),
            Self::WrongToken => (StatusCode::Unauthorized, "this is not the token"),
            Self::TooManyWrong => (
                StatusCode::TooMany,
                "this is not the token, and there were too many wrong ones in this minute",
            ),
            // The log has the reason, which is nothing for whoever asks.
            Self::Unusable(_) => (StatusCode::Unavailable, "the monitor has no usable token"),
            Self::NoKey => (
                StatusCode::Malformed,
                "this needs an Idempotency-Key: 8 to 128 visible characters, new for each request",
            ),
            Self::Again => (
                StatusCode::Conflict,
                "a request with this Idempotency-Key has come before",
            ),
        };
        Response::text(status, line)
    }
}

/// Lets requests pass, or refuses them.
pub(super) struct Gate {
    token: TokenFile,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    keys: UsedKeys,
    /// When the present minute of wrong tokens began, and how many there were in it.
    wrong: Option<(Instant, u32)>,
    /// Refusals that the log does not have yet.
    burst: Option<Burst>,
}

impl Gate {
    pub fn new(token: TokenFile) -> Self {
        Self {
            token,
            state: Mutex::default(),
        }
    }

    /// Whether the request may act, but for its key: who asks, and for what page.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, request: &HttpRequest, post: &Post, now: Instant) -> Result<(), Refusal> {
        if !is_own_page(request.host.as_deref(), post) {
            return Err(Refusal::OtherPage);
        }
        let media = post.content_type.as_deref().unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(Refusal::NotJson);
        }
        let Some(given) = post.authorization.as_ref().and_then(bearer) else {
            return Err(Refusal::NoToken);
        };
        let token = self.token.read().map_err(Refusal::Unusable)?;
        if is_same(given, token.reveal()) {
            return Ok(());
        }
        let mut state = self.lock();
        let (_, wrong) = match &mut state.wrong {
            Some(minute) if now.saturating_duration_since(minute.0) < MINUTE => minute,
            other => other.insert((now, 0)),
        };
        *wrong = wrong.saturating_add(1);
        Err(if *wrong > MOST_WRONG {
            Refusal::TooManyWrong
        } else {
            Refusal::WrongToken
        })
    }

    /// Uses up the key of a request that may act.
    ///
    /// # Errors
    /// It has none, or one that has been used.
    pub fn use_key(&self, post: &Post) -> Result<(), Refusal> {
        let key = post.key.as_deref().unwrap_or_default();
        if !KEY_LENGTHS.contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Refusal::NoKey);
        }
        if self.lock().keys.add(key) {
            Ok(())
        } else {
            Err(Refusal::Again)
        }
    }

    /// Counts a refusal, for the log.
    pub fn note(&self, refusal: &Refusal, client: &str, now: Instant) {
        let mut state = self.lock();
        let burst = state.burst.get_or_insert_with(|| Burst::new(now));
        burst.add(refusal, client, now);
    }

    /// What there is to log of refusals: those of a burst that is over, or of any if the monitor ends.
    pub fn take_report(&self, now: Instant, is_end: bool) -> Option<String> {
        let mut state = self.lock();
        let burst = state.burst.take_if(|burst| is_end || burst.is_over(now))?;
        Some(burst.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // No change of the state is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a request comes from the monitor's own page, or from no page. Browsers say with every POST where it comes
/// from; other programs need not.
fn is_own_page(host: Option<&str>, post: &Post) -> bool {
    let is_same_site = |site: &String| site.eq_ignore_ascii_case("same-origin");
    if !post.fetch_site.as_ref().is_none_or(is_same_site) {
        return false;
    }
    let Some(origin) = &post.origin else {
        return true;
    };
    // A proxy in front of the monitor may speak TLS.
    let of_origin = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    match (of_origin, host) {
        (Some(of_origin), Some(host)) => of_origin.eq_ignore_ascii_case(host),
        _ => false,
    }
}

/// The token of an `Authorization` header.
fn bearer(authorization: &Secret) -> Option<&str> {
    let (scheme, token) = authorization.reveal().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether they are the same. How long it takes tells nothing about the token, nor about its length.
fn is_same(given: &str, token: &str) -> bool {
    let (given, token) = (Sha256::digest(given), Sha256::digest(token));
    given.as_slice().ct_eq(token.as_slice()).into()
}

/// The keys of the last requests, cut digests of them.
#[derive(Default)]
struct UsedKeys {
    known: HashSet<[u8; 16]>,
    oldest_first: VecDeque<[u8; 16]>,
}

impl UsedKeys {
    /// Whether the key is new. From now on it is not.
    fn add(&mut self, key: &str) -> bool {
        let mut digest = [0; 16];
        digest.copy_from_slice(&Sha256::digest(key)[..16]);
        if !self.known.insert(digest) {
            return false;
        }
        self.oldest_first.push_back(digest);
        if self.oldest_first.len() > MOST_KEYS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Refusals that came shortly after each other.
struct Burst {
    first: Instant,
    last: Instant,
    counts: [u64; Refusal::COUNT],
    /// The first addresses, and how many requests came from others.
    clients: Vec<String>,
    from_others: u64,
    /// Why the token file could not be used.
    unusable: Option<String>,
}

impl Burst {
    fn new(now: Instant) -> Self {
        Self {
            first: now,
            last: now,
            counts: [0; Refusal::COUNT],
            clients: Vec::new(),
            from_others: 0,
            unusable: None,
        }
    }

    fn add(&mut self, refusal: &Refusal, client: &str, now: Instant) {
        self.last = now;
        self.counts[refusal.number()] += 1;
        if let Refusal::Unusable(why) = refusal {
            self.unusable = Some(why.clone());
        }
        if self.clients.iter().any(|known| known == client) {
            return;
        }
        if self.clients.len() < MOST_NAMED {
            self.clients.push(client.to_owned());
        } else {
            self.from_others += 1;
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= QUIET
            || now.saturating_duration_since(self.first) >= LONGEST_BURST
    }
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u64 = self.counts.iter().sum();
        let requests = if count == 1 { "request" } else { "requests" };
        write!(
            f,
            "refused {count} {requests} to act from {}",
            self.clients.join(", ")
        )?;
        if self.from_others > 0 {
            write!(f, " and others")?;
        }
        let seconds = self.last.saturating_duration_since(self.first).as_secs();
        if seconds > 0 {
            write!(f, " within {seconds} s")?;
        }
        let reasons = self.counts.iter().zip(Refusal::WORDS);
        let reasons = reasons.filter(|(count, _)| **count > 0);
        let reasons: Vec<_> = reasons
            .map(|(count, words)| format!("{count} {words}"))
            .collect();
        write!(f, ": {}", reasons.join(", "))?;
        match &self.unusable {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::super::request::of_test;
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn gate() -> (tempfile::NamedTempFile, Gate) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{TOKEN}").unwrap();
        let token = TokenFile::new(file.path().to_str().unwrap());
        (file, Gate::new(token))
    }

    /// The verdict on a request with these headers besides those that are right.
    fn verdict(gate: &Gate, headers: &str) -> Result<(), Refusal> {
        let request = of_test("/actions/x", headers, "{}");
        let post = request.post.as_deref().unwrap();
        gate.check(&request, post, Instant::now())?;
        gate.use_key(post)
    }

    const JSON: &str = "Content-Type: application/json; charset=utf-8\r\n";

    #[test]
    fn a_request_passes_once_with_the_token_from_the_own_page_or_from_none() {
        let (_file, gate) = gate();
        let headers = |more: &str| format!("{JSON}Authorization: bearer {TOKEN}\r\n{more}");
        let key = |key: usize| format!("Idempotency-Key: number-{key}\r\n");
        for (number, more) in [
            "",
            "Origin: http://a:1\r\nSec-Fetch-Site: same-origin\r\n",
            "Origin: https://A:1\r\n",
        ]
        .into_iter()
        .enumerate()
        {
            let headers = headers(more) + &key(number);
            assert_eq!(verdict(&gate, &headers), Ok(()), "{more}");
            assert_eq!(verdict(&gate, &headers), Err(Refusal::Again), "{more}");
        }
        for more in [
            "Origin: http://evil.example\r\n",
            "Origin: http://a\r\n",
            "Origin: http://a:1.evil.example\r\n",
            "Origin: null\r\n",
            "Origin: file://\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: same-site\r\n",
            "Sec-Fetch-Site: none\r\n",
        ] {
            let headers = headers(more) + &key(100);
            assert_eq!(verdict(&gate, &headers), Err(Refusal::OtherPage), "{more}");
        }
        for key in ["", "Idempotency-Key: short\r\n"] {
            assert_eq!(verdict(&gate, &headers(key)), Err(Refusal::NoKey));
        }
        let other = format!("Content-Type: text/plain\r\nAuthorization: Bearer {TOKEN}\r\n");
        assert_eq!(verdict(&gate, &other), Err(Refusal::NotJson));
        for no_token in [
            "",
            "Authorization: Basic eDp5\r\n",
            "Authorization: Bearer\r\n",
        ] {
            let headers = format!("{JSON}{no_token}");
            assert_eq!(
                verdict(&gate, &headers),
                Err(Refusal::NoToken),
                "{no_token}"
            );
        }
        for wrong in ["0123456789abcde", "0123456789abcdef0", "0123456789abcdeF"] {
            let headers = format!("{JSON}Authorization: Bearer {wrong}\r\n");
            assert_eq!(
                verdict(&gate, &headers),
                Err(Refusal::WrongToken),
                "{wrong}"
            );
        }
    }

    #[test]
    fn ten_thousand_wrong_tokens_are_limited_and_logged_once_and_the_right_one_passes_meanwhile() {
        let (_file, gate) = gate();
        let wrong = of_test(
            "/actions/x",
            &format!("{JSON}Authorization: Bearer x\r\n"),
            "",
        );
        let right = format!("{JSON}Authorization: Bearer {TOKEN}\r\n");
        let right = of_test("/actions/x", &right, "");
        let (start, mut told) = (Instant::now(), 0);
        for number in 0..10_000 {
            let refusal = gate.check(&wrong, wrong.post.as_deref().unwrap(), start);
            let refusal = refusal.unwrap_err();
            told += u32::from(refusal == Refusal::WrongToken);
            gate.note(&refusal, &format!("10.0.0.{}", number % 5), start);
            if number % 1000 == 0 {
                let post = right.post.as_deref().unwrap();
                assert_eq!(gate.check(&right, post, start), Ok(()));
            }
        }
        assert_eq!(told, MOST_WRONG);
        assert_eq!(gate.take_report(start + QUIET / 2, false), None);
        let line = "refused 10000 requests to act from 10.0.0.0, 10.0.0.1, 10.0.0.2 and others: \
                    20 with a wrong token, 9980 with a wrong token after many others";
        assert_eq!(
            gate.take_report(start + QUIET, false).as_deref(),
            Some(line)
        );
        assert_eq!(gate.take_report(start + QUIET, true), None);
        // In another minute, it is told again.
        let later = gate.check(&wrong, wrong.post.as_deref().unwrap(), start + MINUTE);
        assert_eq!(later, Err(Refusal::WrongToken));
    }

    #[test]
    fn the_keys_that_are_remembered_are_limited() {
        let mut keys = UsedKeys::default();
        for number in 0..=MOST_KEYS {
            assert!(keys.add(&number.to_string()));
        }
        assert_eq!(keys.known.len(), MOST_KEYS);
        assert!(!keys.add("1") && keys.add("0"));
    }

    #[test]
    fn a_file_without_a_good_token_lets_nobody_pass() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let name = path.to_str().unwrap();
        let gate = Gate::new(TokenFile::new(name));
        let headers = format!("{JSON}Authorization: Bearer x\r\n");
        for (text, why) in [
            (None, "could not be read"),
            (Some(""), "is empty"),
            (Some("x"), "from 16 to 1024 characters"),
            (Some("0123456789 abcdef"), "one word of ASCII"),
            (Some("0123456789abcdéf"), "one word of ASCII"),
        ] {
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            let checked = TokenFile::new(name).check().unwrap_err();
            assert!(checked.contains(why) && checked.contains(name), "{checked}");
            let refused = verdict(&gate, &headers);
            assert_eq!(refused, Err(Refusal::Unusable(checked)));
            let answer = format!("{:?}", refused.unwrap_err().response());
            assert!(!answer.contains(name), "{answer}");
        }
        fs::write(&path, format!("{TOKEN}\r\n")).unwrap();
        for (mode, is_warned) in [(0o644, true), (0o640, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let warning = TokenFile::new(name).check().unwrap();
            assert_eq!(warning.is_some(), is_warned, "{mode:o}");
        }
    }
}
