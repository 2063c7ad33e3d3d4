//! `links.sampler`: lets a part of the vCons pass; the others end their chain here.
//!
//! Reads the vCon's id and three options; writes nothing.
//!
//! | `method` | those that pass | `value` |
//! |---|---|---|
//! | `percentage` (the default) | so many of a hundred, by lot | 0 to 100 (50) |
//! | `rate` | one in about so many seconds, where one comes each second: by lot, with the chance `1 - exp(-1/value)` | more than 0 |
//! | `modulo` | every so many-th, by the id: the same ones always | a whole number from 1 |
//! | `time_based` | those that come in a second of Unix time that can be divided by it | a whole number from 1 |
//!
//! With a `seed`, the random choice depends only on the seed and the id: it is the same for a vCon in
//! every worker and at every try. Without one the link chooses anew at each try, also after the vCon
//! went back to its list because a server was unavailable.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::{Context, Link, LinkError, Next};
use crate::options::Options;
use crate::vcon::{Vcon, VconId};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// Passes with this chance, from 0 to 1.
    Chance(f64),
    /// Passes where the id's number can be divided by this.
    Modulo(u32),
    /// Passes where the second can be divided by this.
    Time(u64),
}

struct Sampler {
    method: Method,
    seed: Option<String>,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let known = ["percentage", "rate", "modulo", "time_based"];
    let method = match options.word_or("method", "percentage", &known) {
        Some("percentage") => {
            let value = options.number_or("value", 50.0);
            if !(0.0..=100.0).contains(&value) {
                options.fault("value", "a percentage is from 0 to 100");
            }
            Method::Chance(value / 100.0)
        }
        Some("rate") => {
            let value = options.number_or("value", 50.0);
            if value <= 0.0 {
                options.fault("value", "a rate is more than 0 seconds");
            }
            Method::Chance(1.0 - (-1.0 / value).exp())
        }
        Some("modulo") => {
            let value = options.integer_or("value", 50, 1..=i64::from(u32::MAX));
            Method::Modulo(u32::try_from(value).unwrap_or(1))
        }
        Some("time_based") => {
            let value = options.integer_or("value", 50, 1..=i64::from(u32::MAX));
            Method::Time(value.unsigned_abs())
        }
        _ => {
            // Asked for, so that it is not reported as unknown.
            options.string("value");
            Method::Chance(0.0)
        }
    };
    let seed = options.string("seed");
    Box::new(Sampler { method, seed })
}

impl Link for Sampler {
    fn run(&mut self, vcon: &mut Vcon, _context: &mut Context<'_>) -> Result<Next, LinkError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let passes = self.passes(vcon.id(), now.map_or(0, |time| time.as_secs()));
        Ok(if passes { Next::Continue } else { Next::Halt })
    }
}

impl Sampler {
    fn passes(&self, id: &VconId, second: u64) -> bool {
        match self.method {
            Method::Chance(chance) => self.lot(id) < chance,
            Method::Modulo(divisor) => number(id.as_str()).is_multiple_of(divisor),
            Method::Time(divisor) => second.is_multiple_of(divisor),
        }
    }

    /// From 0 up to, but not, 1.
    fn lot(&self, id: &VconId) -> f64 {
        match &self.seed {
            None => fastrand::f64(),
            Some(seed) => lot(seed, id),
        }
    }
}

/// The lot of a vCon, from 0 up to, but not, 1: the same one always for the same seed.
pub(super) fn lot(seed: &str, id: &VconId) -> f64 {
    f64::from(number(&format!("{seed}:{id}"))) / (f64::from(u32::MAX) + 1.0)
}

/// The first 32 bits of the SHA-256 of a text: what the existing daemon divides by `modulo`.
fn number(text: &str) -> u32 {
    let hash: [u8; 32] = Sha256::digest(text).into();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    fn sampler(method: Method, seed: Option<&str>) -> Sampler {
        let seed = seed.map(str::to_owned);
        Sampler { method, seed }
    }

    fn faults(text: &str) -> Vec<String> {
        let mut options = Options::from_yaml(text);
        open(&mut options);
        options.finish();
        options.faults()
    }

    #[test]
    fn the_number_of_an_id_is_the_one_the_existing_daemon_has() {
        // printf %s "$ID" | sha256sum | cut -c1-8
        assert_eq!(number(ID), 0x036a_2439);
    }

    #[test]
    fn modulo_and_time_divide() {
        let id: VconId = ID.parse().unwrap();
        for (divisor, passes) in [(1, true), (2, false), (0x036a_2439, true)] {
            let sampler = sampler(Method::Modulo(divisor), None);
            assert_eq!(sampler.passes(&id, 7), passes, "{divisor}");
        }
        for (second, passes) in [(0, true), (9, false), (10, true), (20, true), (21, false)] {
            assert_eq!(sampler(Method::Time(10), None).passes(&id, second), passes);
        }
    }

    #[test]
    fn all_or_none_pass_at_the_ends_whatever_the_lot() {
        for _ in 0..1000 {
            let id = VconId::random();
            for seed in [None, Some("x")] {
                assert!(sampler(Method::Chance(1.0), seed).passes(&id, 0));
                assert!(!sampler(Method::Chance(0.0), seed).passes(&id, 0));
            }
        }
    }

    #[test]
    fn a_seed_gives_each_vcon_its_own_lot_and_always_the_same() {
        let ids: Vec<VconId> = (0..200).map(|_| VconId::random()).collect();
        let drawn = |seed| -> Vec<bool> {
            let sampler = sampler(Method::Chance(0.5), Some(seed));
            ids.iter().map(|id| sampler.passes(id, 0)).collect()
        };
        assert_eq!(drawn("a"), drawn("a"));
        assert_ne!(drawn("a"), drawn("b"));
        assert!(drawn("a").contains(&true) && drawn("a").contains(&false));
    }

    #[test]
    fn values_that_make_no_sense_are_faults() {
        assert_eq!(faults("{}"), [""; 0]);
        assert_eq!(faults("{method: rate, value: 0.5, seed: 7}"), [""; 0]);
        for text in [
            "{value: 101}",
            "{value: -1}",
            "{value: nan}",
            "{method: rate, value: 0}",
            "{method: modulo, value: 0}",
            "{method: modulo, value: 1.5}",
            "{method: time_based, value: x}",
            "{method: dice, value: 6}",
        ] {
            assert_eq!(faults(text).len(), 1, "{text}: {:?}", faults(text));
        }
    }
}
