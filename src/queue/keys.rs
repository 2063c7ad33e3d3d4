//! The names of Redis keys, the id of a lane, and names and entries that anyone may have written.
//!
//! The Lua scripts spell some of these names out themselves; a key that is renamed here is renamed there.

use std::fmt;
use std::sync::Arc;

use super::requests::Arguments;
use crate::config::{Account, ListName};
use crate::vcon::VconId;
use crate::visible::printable;

/// Which lane of which worker of which daemon: its claim stands in Redis under this id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneId {
    /// The name of this daemon among those on the same Redis (`CONSERVER_INSTANCE`).
    pub instance: String,
    /// The worker's number, from 1.
    pub worker: u32,
    /// The lane's number within the worker, from 1.
    pub lane: u32,
}

/// The keys that a lane needs for each request, composed once.
pub(super) struct LaneKeys {
    pub claims: String,
    pub lease: String,
    pub workers: String,
    pub taken: String,
    /// The command that gets the documents of the first entries of `taken`, each behind its entry. Its
    /// last argument, the number of entries, is missing.
    pub get_taken: Arc<Arguments>,
}

impl LaneKeys {
    pub fn of(lane_id: &LaneId) -> Self {
        let taken = taken_key(&lane_id.instance, lane_id.worker);
        Self {
            claims: lane_id.claims_key(),
            lease: instance_key(&lane_id.instance),
            workers: workers_key(&lane_id.instance),
            get_taken: Arc::new(get_documents(&taken)),
            taken,
        }
    }
}

/// Where the texts of a document stand while a lane requests the claim with this token. No other request uses
/// these keys.
pub(super) struct ComparedKeys {
    /// The text that must stand under the document's key.
    pub base: String,
    /// The text that replaces it.
    pub draft: String,
}

impl ComparedKeys {
    pub fn of(lane: &LaneId, token: &[u8]) -> Self {
        let digits = token.iter().filter(|byte| byte.is_ascii_digit());
        let since: String = digits.take(16).map(|byte| char::from(*byte)).collect();
        let key = |what: &str| {
            let LaneId {
                instance,
                worker,
                lane,
            } = lane;
            format!("conserver:{what}:{instance}:{worker}:{lane}:{since}")
        };
        Self {
            base: key("compared"),
            draft: key("new"),
        }
    }
}

/// `SORT` does not sort if the pattern after `BY` has no asterisk.
fn get_documents(list: &str) -> Arguments {
    let mut command = Arguments::default();
    for word in [
        "SORT", list, "BY", "nosort", "GET", "#", "GET", "vcon:*", "LIMIT", "0",
    ] {
        command.arg(word.as_bytes());
    }
    command
}

impl LaneId {
    /// `conserver:claims:<instance>:<worker>`: hash, lane -> the claim's record.
    pub fn claims_key(&self) -> String {
        claims_key(&self.instance, self.worker)
    }

    /// `conserver:draft:<instance>:<worker>:<lane>`: a changed document, until it replaces the old one.
    pub(super) fn draft_key(&self) -> String {
        let Self {
            instance,
            worker,
            lane,
        } = self;
        format!("conserver:draft:{instance}:{worker}:{lane}")
    }

    /// The name of the lane's connection in `CLIENT LIST`.
    pub(super) fn client_name(&self) -> String {
        client_name(&self.instance, &format!("{}:{}", self.worker, self.lane))
    }
}

/// The name of one of an instance's connections in `CLIENT LIST`.
pub(super) fn client_name(instance: &str, what: &str) -> String {
    let printable: String = instance
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .collect();
    format!("conserver:{printable}:{what}")
}

/// A worker number that no worker has. Its claims hash holds the claims that could not be returned
/// because the key of their list holds another type.
pub(super) const UNRETURNED: u32 = 0;

/// `conserver:claims:<instance>:<worker>`: hash, lane -> the record of its claim.
pub(super) fn claims_key(instance: &str, worker: u32) -> String {
    format!("conserver:claims:{instance}:{worker}")
}

/// `conserver:taken:<instance>:<worker>`: list of the entries that the worker's lanes claimed in their
/// last shared call, for `SORT` to get their documents.
pub(super) fn taken_key(instance: &str, worker: u32) -> String {
    format!("conserver:taken:{instance}:{worker}")
}

/// `conserver:workers:<instance>`: set of the numbers of the workers that may hold claims.
pub(super) fn workers_key(instance: &str) -> String {
    format!("conserver:workers:{instance}")
}

/// `conserver:instance:<instance>`: string, the lease on the name: the record of its holder, with a time
/// to live.
pub(super) fn instance_key(instance: &str) -> String {
    format!("conserver:instance:{instance}")
}

/// `conserver:wake:<instance>`: list of the tokens that wake idle lanes. A lost token costs time only.
pub(super) fn wake_key(instance: &str) -> String {
    format!("conserver:wake:{instance}")
}

/// `conserver:instances`: set of the instances that may have workers with claims.
pub(super) const INSTANCES: &str = "conserver:instances";

/// `conserver:paused`: hash, `list NAME` or `chain NAME` -> who paused it and when, as JSON.
pub(super) const PAUSED: &str = "conserver:paused";

/// `conserver:paused:confirmed`: hash, instance -> the pauses that all its lanes follow, as JSON. The script that
/// forgets an instance removes its field.
pub(super) const CONFIRMED_PAUSES: &str = "conserver:paused:confirmed";

/// `conserver:letters`: set of the dead letter lists that any daemon has written to, also those of former
/// configurations. The scripts that write dead letters add to it.
pub(super) const DEAD_LETTER_LISTS: &str = "conserver:letters";

/// A member of that set which is no list: it says that all keys were searched for lists that nobody had
/// recorded.
pub(super) const ALL_SEARCHED: &str = "searched";

/// `conserver:deaths`: hash, uuid -> how many workers died on it.
pub(super) const DEATHS: &str = "conserver:deaths";

/// `conserver:lapses`: hash, uuid -> how often the lease of a daemon ran out that worked on it.
pub(super) const LAPSES: &str = "conserver:lapses";

/// `conserver:tries`: hash, uuid -> in how many rounds of attempts a reachable backend failed for it, and
/// when the last round was.
pub(super) const ROUNDS: &str = "conserver:tries";

/// `conserver:progress`: hash, list and uuid -> how far a vCon has come whose claim was released before
/// its finish.
pub(super) const PROGRESS: &str = "conserver:progress";

/// `conserver:foreign`: hash, uuid -> the lanes whose link writes the vCon directly at this moment.
pub(super) const DIRECT_WRITES: &str = "conserver:foreign";

/// `conserver:overwritten:<uuid>`: list of the texts that others wrote during a direct write, which may
/// overwrite them. A sign before each text says what it was made of.
pub(super) fn overwritten_key(id: &VconId) -> String {
    format!("conserver:overwritten:{id}")
}

/// `conserver:keeper:<digest>`: string, the instance that does the housekeeping for these lists and
/// storages.
pub(super) fn housekeeping_key(digest: &[u8; 32]) -> String {
    let digits = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
    format!("conserver:keeper:{}", digits.collect::<String>())
}

/// `conserver:budget:<account>`: hash, how many tokens there are and when that was, and when the server wants to be
/// asked again.
pub(super) fn budget_key(account: &Account) -> String {
    format!("conserver:budget:{account}")
}

/// `conserver:budget-leases:<account>`: sorted set, the lease of a request's slot -> when it runs out, in
/// milliseconds.
pub(super) fn budget_leases_key(account: &Account) -> String {
    format!("conserver:budget-leases:{account}")
}

/// `conserver:followers`: set of the names of followers that have ever pulled.
pub(super) const FOLLOWERS: &str = "conserver:followers";

/// `conserver:follower:<follower>`: list of the UUIDs that the follower took off the other server's list,
/// and whose documents it has not fetched yet.
pub(super) fn follower_key(follower: &str) -> String {
    format!("conserver:follower:{follower}")
}

/// `conserver:follower-tries:<follower>`: hash, uuid -> how often its document could not be fetched while
/// others could.
pub(super) fn follower_tries_key(follower: &str) -> String {
    format!("conserver:follower-tries:{follower}")
}

/// `conserver:follower-turn:<follower>`: string, the instance that pulls at present.
pub(super) fn follower_lease_key(follower: &str) -> String {
    format!("conserver:follower-turn:{follower}")
}

/// `conserver:draft:<instance>:follower:<follower>`: a pulled document, until it is submitted.
pub(super) fn follower_draft_key(instance: &str, follower: &str) -> String {
    format!("conserver:draft:{instance}:follower:{follower}")
}

/// `conserver:pulled:<uuid>`: string, the digest of the document that a follower pulled last.
pub(super) fn pulled_key(id: &VconId) -> String {
    format!("conserver:pulled:{id}")
}

/// `conserver:pulled-other:<uuid>`: string, a pulled document that did not take the place of the one that was there.
pub(super) fn pulled_other_key(id: &VconId) -> String {
    format!("conserver:pulled-other:{id}")
}

/// `DLQ:<ingress list>`: list of the entries that failed, oldest first.
pub fn dead_letter_list(list: &ListName) -> String {
    format!("DLQ:{list}")
}

/// `conserver:dlq:<ingress list>`: hash, entry -> why it failed, as JSON.
pub fn dead_letter_reasons(list: &ListName) -> String {
    format!("conserver:dlq:{list}")
}

/// The dead letter queue of a storage is named like that of an ingress list with this prefix.
pub const STORAGE_PREFIX: &str = "storage:";

/// The dead letter queue of a storage, named like that of an ingress list.
pub fn storage_queue(storage: &str) -> Raw {
    Raw::new(format!("{STORAGE_PREFIX}{storage}"))
}

/// `DLQ:storage:<storage>`: list of the vCons that are not saved in the storage, oldest first: its dead
/// letters and its backlog.
pub fn storage_letters_list(storage: &str) -> String {
    format!("DLQ:{STORAGE_PREFIX}{storage}")
}

/// `conserver:dlq:storage:<storage>`: hash, uuid -> why the storage refused it, as JSON. An entry without
/// a reason is backlog.
pub fn storage_letters_reasons(storage: &str) -> String {
    format!("conserver:dlq:{STORAGE_PREFIX}{storage}")
}

/// The hash of reasons that belongs to the dead letter queue with this name.
pub fn reasons_of_queue(queue: &ListName) -> String {
    let name = queue.as_str();
    format!(
        "conserver:dlq:{}",
        name.strip_prefix("DLQ:").unwrap_or(name)
    )
}

/// `DLQ:storage:<storage>:replay-lock`: string that exists while the API server or `conserver dlq retry`
/// saves the storage's dead letters.
pub fn storage_replay_lock(storage: &str) -> String {
    format!("DLQ:{STORAGE_PREFIX}{storage}:replay-lock")
}

/// An entry of a list, or the name of a list: any bytes.
///
/// It prints as one line of visible characters, with escapes as in Rust's strings for the rest (`\n`,
/// `\u{1b}`, `\xff`, `\\`), and [`Raw::named`] reads that again. So nothing in Redis controls a
/// terminal, and a user can pass what one command shows to the next command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Raw(Vec<u8>);

impl Raw {
    /// These bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes as they are in Redis.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The entry as the id of a vCon; `None` if it is not one.
    pub fn id(&self) -> Option<VconId> {
        std::str::from_utf8(&self.0).ok()?.parse().ok()
    }

    /// What a user who types `text` may mean: the bytes that print like that, and these very bytes.
    pub fn named(text: &str) -> Vec<Self> {
        let typed = Self::new(text);
        match unescape(text).map(Self) {
            Some(shown) if shown != typed => vec![shown, typed],
            _ => vec![typed],
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            // Each backslash is doubled, so that the text can be read again.
            f.write_str(&printable(&chunk.valid().replace('\\', r"\\")))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// The bytes that print as `text`; `None` if there are none.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let mut characters = escape.chars();
        let kind = characters.next()?;
        rest = characters.as_str();
        match kind {
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = rest.get(2..)?;
            }
            'u' => {
                let (digits, after) = rest.strip_prefix('{')?.split_once('}')?;
                let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
            _ => return None,
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_two_lanes_share_a_draft() {
        let lane_id = |instance: &str, worker, lane| LaneId {
            instance: instance.to_owned(),
            worker,
            lane,
        };
        let lane_ids = [
            lane_id("here", 1, 1),
            lane_id("here", 1, 2),
            lane_id("here", 2, 1),
            lane_id("there", 1, 1),
        ];
        let keys: BTreeSet<String> = lane_ids.iter().map(LaneId::draft_key).collect();
        assert_eq!(keys.len(), lane_ids.len());
        assert!(keys.iter().all(|key| key.starts_with("conserver:draft:")));
    }

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        for (bytes, shown) in [
            (&b"05cec3d4-0561-4010-9fb8-23cc7edef146"[..], None),
            ("Grüße 'an' \"alle\"".as_bytes(), None),
            (b"", None),
            (b"a\nb\r\t\0", Some("a\\nb\\r\\t\\0")),
            (b"\x1b[2J", Some("\\u{1b}[2J")),
            ("\u{9b}2J\u{202e}".as_bytes(), Some("\\u{9b}2J\\u{202e}")),
            (b"C:\\n", Some("C:\\\\n")),
            (b"a\xff\xc3", Some("a\\xff\\xc3")),
        ] {
            let expected = shown.unwrap_or_else(|| std::str::from_utf8(bytes).unwrap());
            assert_eq!(Raw::new(bytes).to_string(), expected);
        }
    }

    #[test]
    fn what_is_typed_is_the_shown_form_or_the_bytes_themselves() {
        let named = |text: &str| -> Vec<Vec<u8>> {
            let names = Raw::named(text).into_iter();
            names.map(|name| name.as_bytes().to_vec()).collect()
        };
        assert_eq!(named("plain"), [b"plain"]);
        assert_eq!(named("a\\n"), [&b"a\n"[..], b"a\\n"]);
        for odd in ["a\\", "a\\q", "\\xé0", "\\x4", "\\u{d800}", "\\u{", "\\u41"] {
            assert_eq!(named(odd), [odd.as_bytes()], "{odd}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_typed(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let raw = Raw::new(bytes);
            let shown = raw.to_string();
            prop_assert_eq!(&printable(&shown), &shown);
            prop_assert_eq!(&Raw::named(&shown)[0], &raw);
        }

        #[test]
        fn text_that_is_shown_can_be_typed(text in "([a-e \\\\\n\u{301}\u{93f}\u{200d}\u{fe0f}\u{20dd}]|.){0,40}") {
            let raw = Raw::new(text);
            prop_assert_eq!(&Raw::named(&raw.to_string())[0], &raw);
        }

        #[test]
        fn anything_can_be_typed(text in "(\\\\|x|u|\\{|\\}|[0-9a-f]|é){0,12}") {
            prop_assert!(!Raw::named(&text).is_empty());
        }
    }
}
