//! How long a value may be that is sent to a server.
//!
//! A server closes the connection to a client that sends more, which cannot be told from a server that
//! is unavailable. So a long value is compared with the limits before it is sent.

use redis::{Connection, RedisResult, Value};

use crate::vcon::LARGEST_DOCUMENT;

/// Every server takes this many bytes: both limits are at least 1 MiB.
const ALWAYS: u64 = 800 << 10;

/// A setting that limits the length of a value, and its default.
struct Setting {
    name: &'static str,
    default: u64,
    /// Eighths of it that are left for the value.
    eighths: u64,
}

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "proto-max-bulk-len",
        default: LARGEST_DOCUMENT,
        eighths: 8,
    },
    // The rest of the request counts, too: keys, and a script with its other arguments.
    Setting {
        name: "client-query-buffer-limit",
        default: 1 << 30,
        eighths: 7,
    },
];

/// Why a value of this many bytes cannot be sent to the server; `None` if it can. A server that does not
/// show its settings to this user is taken to have the defaults.
pub(crate) fn why_too_long(
    connection: &mut Connection,
    length: usize,
) -> RedisResult<Option<String>> {
    let length = length as u64;
    if length <= ALWAYS {
        return Ok(None);
    }
    for setting in &SETTINGS {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg(setting.name);
        let set = match ask.query::<Value>(connection) {
            Ok(answer) => number(answer),
            // It does not know the command, or refuses it.
            Err(error) if error.code().is_some() => None,
            Err(error) => return Err(error),
        };
        if let Some(why) = setting.why_too_long(length, set) {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

impl Setting {
    fn why_too_long(&self, length: u64, set: Option<u64>) -> Option<String> {
        let longest = set.unwrap_or(self.default) / 8 * self.eighths;
        (length > longest).then(|| {
            format!(
                "it has {length} bytes, more than the {longest} that the server takes ({})",
                self.name
            )
        })
    }
}

/// The number in an answer to `CONFIG GET`; `None` if there is none, or if it stands for no limit.
fn number(answer: Value) -> Option<u64> {
    let pair: Vec<String> = redis::from_redis_value(answer).ok()?;
    let [_, text] = <[String; 2]>::try_from(pair).ok()?;
    text.parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_up_to_the_limit_and_not_one_byte_more() {
        let [value, request] = &SETTINGS;
        for (setting, set, longest) in [
            (value, None, 512 << 20),
            (value, Some(1 << 20), 1 << 20),
            (request, None, 7 << 27),
            (request, Some(1 << 20), 7 << 17),
        ] {
            assert_eq!(setting.why_too_long(longest, set), None, "{}", setting.name);
            let why = setting.why_too_long(longest + 1, set).unwrap_or_default();
            assert!(why.contains(setting.name), "{why}");
            assert!(why.contains(&(longest + 1).to_string()), "{why}");
        }
        // What is never asked for fits by the smallest limits that a server may have.
        for setting in &SETTINGS {
            assert_eq!(setting.why_too_long(ALWAYS, Some(1 << 20)), None);
        }
    }

    #[test]
    fn an_answer_without_a_number_leaves_the_default() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let pair = |value: &str| Value::Array(vec![text("proto-max-bulk-len"), text(value)]);
        assert_eq!(number(pair("1048576")), Some(1 << 20));
        for answer in [pair("1mb"), pair("0"), Value::Array(Vec::new()), Value::Nil] {
            assert_eq!(number(answer), None);
        }
    }
}
