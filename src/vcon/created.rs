//! The date a vCon was made, in the forms that occur.

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use serde_json::value::RawValue;

use super::json;

/// A vCon's `created_at`, in the years 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedAt {
    /// The wall clock as it is written, in its own zone.
    pub local: NaiveDateTime,
    /// Seconds since 1970-01-01 UTC; a time without a zone counts as UTC.
    pub unix: i64,
}

impl CreatedAt {
    /// Reads `YYYY-MM-DD`, alone or followed by `T` or a space, a time and perhaps a zone.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let date = NaiveDate::parse_from_str(text.get(..10)?, "%Y-%m-%d").ok()?;
        let rest = text.get(10..)?;
        if rest.is_empty() {
            return Self::new(date.and_time(NaiveTime::MIN), 0);
        }
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let (time, zone) = rest.split_at(rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len()));
        let time = time.trim_end();
        let time = NaiveTime::parse_from_str(time, "%H:%M:%S%.f")
            .or_else(|_| NaiveTime::parse_from_str(time, "%H:%M"))
            .ok()?;
        Self::new(date.and_time(time), seconds_east(zone)?)
    }

    /// Reads a string as [`CreatedAt::parse`] does, and a number as seconds since 1970-01-01 UTC.
    pub(super) fn from_json(value: &RawValue) -> Option<Self> {
        match json::text(value) {
            Some(text) => Self::parse(&text),
            None => Self::from_seconds(value.get().parse().ok()?),
        }
    }

    /// The present time, in UTC.
    pub fn now() -> Self {
        let now = Utc::now();
        Self {
            local: now.naive_utc(),
            unix: now.timestamp(),
        }
    }

    /// The day as a path, `YYYY/MM/DD`.
    pub fn day_path(&self) -> String {
        self.local.format("%Y/%m/%d").to_string()
    }

    fn from_seconds(seconds: f64) -> Option<Self> {
        let microseconds = (seconds * 1e6).round();
        if !microseconds.is_finite() {
            return None;
        }
        // What is out of range of the target becomes its end, which is out of range of dates.
        let time = DateTime::from_timestamp_micros(microseconds as i64)?;
        Self::new(time.naive_utc(), 0)
    }

    fn new(local: NaiveDateTime, seconds_east: i32) -> Option<Self> {
        let unix = local.and_utc().timestamp() - i64::from(seconds_east);
        (1..=9999)
            .contains(&local.year())
            .then_some(Self { local, unix })
    }
}

/// Reads `Z`, `+HH:MM`, `+HHMM`, `+HH` or nothing.
fn seconds_east(zone: &str) -> Option<i32> {
    if zone.is_empty() || zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let digits = zone.get(1..)?.replacen(':', "", 1);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) = match digits.len() {
        2 => (digits.parse::<i32>().ok()?, 0),
        4 => (
            digits[..2].parse::<i32>().ok()?,
            digits[2..].parse::<i32>().ok()?,
        ),
        _ => return None,
    };
    let offset = FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60))?;
    (minutes < 60).then_some(offset.local_minus_utc())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_occurs_is_read() {
        for (text, local, unix) in [
            (
                "2024-03-16T16:09:20.701906",
                "2024-03-16 16:09:20.701906",
                1_710_605_360,
            ),
            ("2024-03-16T16:09:20Z", "2024-03-16 16:09:20", 1_710_605_360),
            (
                "2024-03-16t16:09:20.5z",
                "2024-03-16 16:09:20.500",
                1_710_605_360,
            ),
            (
                "2024-03-16T16:09:20+00:00",
                "2024-03-16 16:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-16T18:09:20+02:00",
                "2024-03-16 18:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-16 18:09:20 +0200",
                "2024-03-16 18:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-16T08:39:20.123456789012-07:30",
                "2024-03-16 08:39:20.123456789",
                1_710_605_360,
            ),
            (
                "2024-03-16T11:09:20-05",
                "2024-03-16 11:09:20",
                1_710_605_360,
            ),
            (
                " 2024-03-16 16:09:20 ",
                "2024-03-16 16:09:20",
                1_710_605_360,
            ),
            ("2024-03-16T16:09", "2024-03-16 16:09:00", 1_710_605_340),
            ("2024-03-16", "2024-03-16 00:00:00", 1_710_547_200),
            ("1969-12-31T23:59:59Z", "1969-12-31 23:59:59", -1),
        ] {
            let created = CreatedAt::parse(text).expect(text);
            assert_eq!(created.local.to_string(), local, "{text}");
            assert_eq!(created.unix, unix, "{text}");
        }
    }

    #[test]
    fn the_day_is_that_of_its_own_zone() {
        let created = CreatedAt::parse("2024-03-16T23:30:00-05:00").unwrap();
        assert_eq!(created.day_path(), "2024/03/16");
        assert_eq!(
            CreatedAt::parse("0987-01-02").unwrap().day_path(),
            "0987/01/02"
        );
    }

    #[test]
    fn other_texts_are_not_dates() {
        for text in [
            "",
            "yesterday",
            "2024-02-30",
            "2024-03-16X16:09:20",
            "2024-03-16T",
            "2024-03-16T25:00:00",
            "2024-03-16T16:09:20+2",
            "2024-03-16T16:09:20+99:00",
            "2024-03-16T16:09:20+01:75",
            "2024-03-16T16:09:20+é",
            "2024-03-16T16:09:20 CET",
            "2024-03-1é",
            "0000-01-01",
            "../../etc/passwd",
        ] {
            assert_eq!(CreatedAt::parse(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_unix_seconds() {
        let read =
            |text: &str| CreatedAt::from_json(&RawValue::from_string(text.to_owned()).unwrap());
        assert_eq!(read("1710605360").unwrap().day_path(), "2024/03/16");
        assert_eq!(
            read("1710605360.701906").unwrap().local.to_string(),
            "2024-03-16 16:09:20.701906"
        );
        for text in [
            "1e300",
            "-1e300",
            "1e999",
            "99999999999999999999",
            "null",
            "[]",
            "true",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
