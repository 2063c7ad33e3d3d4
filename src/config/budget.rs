//! `limit` in an entry of `links` or `storages`: how often, and how often at a time, its server may be asked.
//!
//! A [`Budget`] holds for all lanes, workers and instances on one Redis. Entries that name the same account
//! share one.

use std::fmt;

use super::ModuleConfig;
use crate::options::error::{Fault, Findings};
use crate::options::forms::OptionForms;
use crate::options::{Options, scalars};

/// The key in an entry.
pub(super) const KEY: &str = "limit";

/// The most requests in a second, and the most at a time.
const MOST: i64 = 1_000_000;

/// The rarest request: once in a day.
const LEAST_RATE: f64 = 1.0 / 86_400.0;

/// Whose budget it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// That of one link.
    Link(String),
    /// That of one storage.
    Storage(String),
    /// That of all entries which name it.
    Shared(String),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link:{name}"),
            Self::Storage(name) => write!(f, "storage:{name}"),
            Self::Shared(name) => write!(f, "account:{name}"),
        }
    }
}

/// How often a server may be asked.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Whose budget it is.
    pub account: Account,
    /// Requests in a second.
    pub rate: Option<f64>,
    /// How many requests may come at once.
    pub burst: u32,
    /// How many requests may be under way at a time.
    pub concurrency: Option<u32>,
    /// Where it stands.
    line: usize,
    path: String,
}

impl Budget {
    /// Reads it from the keys of an entry.
    pub(super) fn read(
        keys: &mut Options,
        entry: Account,
        findings: &mut Findings,
    ) -> Option<Self> {
        let mut limit = keys.nested(KEY, "key")?;
        let (account, rate, burst, concurrency) = Self::parts(&mut limit);
        limit.finish();
        let (path, line) = limit.place();
        let path = path.to_owned();
        if rate.is_none() && concurrency.is_none() && !limit.has_faults() {
            keys.fault_at(line, KEY, "needs a `rate`, a `concurrency`, or both");
        }
        findings.take(&mut limit);
        // What comes in a second, if that is not given.
        let second = rate.map_or(1.0, |rate: f64| rate.ceil().max(1.0));
        Some(Self {
            account: account.map_or(entry, Account::Shared),
            rate,
            burst: burst.unwrap_or(second as u32),
            concurrency,
            line,
            path,
        })
    }

    fn parts(limit: &mut Options) -> (Option<String>, Option<f64>, Option<u32>, Option<u32>) {
        let account = limit.filled_string("account");
        let rate = rate(limit);
        let burst = whole(limit, "burst");
        let concurrency = whole(limit, "concurrency");
        if burst.is_some() && rate.is_none() && !limit.is_given("rate") {
            limit.fault("burst", "has no effect without a `rate`");
        }
        (account, rate, burst, concurrency)
    }

    /// What is asked of it, for the schema of the file.
    pub(super) fn forms() -> OptionForms {
        OptionForms::of(|limit| drop(Self::parts(limit)))
    }

    /// The numbers, for a message.
    fn numbers(&self) -> String {
        let mut parts = Vec::new();
        if let Some(rate) = self.rate {
            parts.push(format!("rate {rate}/s, burst {}", self.burst));
        }
        parts.extend(self.concurrency.map(|most| format!("concurrency {most}")));
        parts.join(", ")
    }

    fn has_numbers_of(&self, other: &Self) -> bool {
        (self.rate, self.burst, self.concurrency) == (other.rate, other.burst, other.concurrency)
    }

    /// Whether it is the same, wherever it stands in the file.
    pub fn is_same(&self, other: &Self) -> bool {
        self.account == other.account && self.has_numbers_of(other)
    }
}

/// Records accounts that have other numbers in another entry.
pub(super) fn compare<'a>(budgets: impl Iterator<Item = &'a Budget>, findings: &mut Findings) {
    let mut known: Vec<&Budget> = Vec::new();
    for budget in budgets {
        let Account::Shared(name) = &budget.account else {
            continue;
        };
        match known.iter().find(|it| it.account == budget.account) {
            None => known.push(budget),
            Some(first) if first.has_numbers_of(budget) => {}
            Some(first) => {
                let message = format!(
                    "account `{name}` has {} here (line {}) and {} in {} (line {})",
                    budget.numbers(),
                    budget.line,
                    first.numbers(),
                    first.path,
                    first.line
                );
                let fault = Fault::at(budget.line, budget.path.as_str(), message);
                findings.faults.push(fault);
            }
        }
    }
}

/// All budgets of a section.
pub(super) fn budgets_of<'a, T: ?Sized + 'a>(
    entries: impl Iterator<Item = &'a ModuleConfig<T>>,
) -> impl Iterator<Item = &'a Budget> {
    entries.filter_map(|entry| entry.limit.as_deref())
}

/// Reads a number of requests in a time: `50/s`, `300/min`, `1000/h`, or `50`, in a second.
fn rate(limit: &mut Options) -> Option<f64> {
    let text = limit.filled_string("rate")?;
    let rate = parse_rate(&text);
    if rate.is_none() {
        let shown: String = text.chars().take(80).collect();
        let message = format!(
            "{shown:?} is not a number of requests, as in 50/s, 300/min or 1000/h, \
             from 1 in a day to {MOST} in a second"
        );
        limit.fault("rate", message);
    }
    rate
}

fn parse_rate(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit.trim() {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = scalars::any(number.trim(), false)?;
    let rate = number / seconds;
    (LEAST_RATE..=MOST as f64).contains(&rate).then_some(rate)
}

/// Reads a number from 1 on.
fn whole(limit: &mut Options, key: &str) -> Option<u32> {
    let number = limit.integer(key, 1..=MOST)?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_in_a_time() {
        for (text, expected) in [
            ("50/s", Some(50.0)),
            ("300/min", Some(5.0)),
            ("1000 / h", Some(1000.0 / 3600.0)),
            ("2.5", Some(2.5)),
            ("50", Some(50.0)),
            ("0", None),
            ("-1/s", None),
            ("fast", None),
            ("5/day", None),
            ("nan/s", None),
            ("1e9/s", None),
        ] {
            assert_eq!(parse_rate(text), expected, "{text}");
        }
    }
}
