//! The date a vCon was made, in the forms that occur.
//!
//! | form | examples |
//! |---|---|
//! | ISO 8601 date | `2025-02-11`, `20250211`, `2025-W07-2`, `2025W072`, `2025-042`, `2025042`, `+002025-02-11` |
//! | ISO 8601 date of less precision: its first day | `2025-02`, `2025-W07`, `2025` |
//! | ISO 8601 time, after `T` or a space | `08:15:00`, `081500`, `08:15`, `08`, `24:00`; the last part with a fraction after a point or comma |
//! | its zone, or UTC | `Z`, `UTC`, `+01:00`, `+0100`, `+01`, `+05:30:20` |
//! | RFC 2822 | `Tue, 11 Feb 2025 08:15:00 +0100` |
//! | seconds or milliseconds since 1970-01-01 UTC, as a number or as text | `1739261700`, `1739261700.25`, `1739261700250` |
//!
//! A text of 4, 7 or 8 digits is a date and no number of seconds.

use chrono::{
    DateTime, Datelike, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike, Utc,
};
use serde_json::value::RawValue;

use super::json;

/// From here on a number counts milliseconds: as seconds it would be the year 5138, as
/// milliseconds it is 1973.
const MILLISECONDS: f64 = 1e11;

/// A vCon's `created_at`, in the years 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedAt {
    /// The wall clock as it is written, in its own zone.
    pub local: NaiveDateTime,
    /// Seconds since 1970-01-01 UTC; a time without a zone counts as UTC.
    pub unix: i64,
}

impl CreatedAt {
    /// Reads any of the forms in the module's table.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if is_number(text) && !is_date_in_digits(text) {
            return Self::from_number(text.parse().ok()?);
        }
        iso_8601(text).or_else(|| rfc_2822(text))
    }

    /// Reads a string as [`CreatedAt::parse`] does, and a number as seconds or milliseconds since
    /// 1970-01-01 UTC.
    pub fn from_json(value: &RawValue) -> Option<Self> {
        match json::text(value) {
            Some(text) => Self::parse(&text),
            None => Self::from_number(value.get().parse().ok()?),
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

    fn from_number(number: f64) -> Option<Self> {
        let per_microsecond = if number.abs() < MILLISECONDS {
            1e6
        } else {
            1e3
        };
        let microseconds = (number * per_microsecond).round();
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

/// Whether a text is written as numbers are in JSON, or with a plus.
fn is_number(text: &str) -> bool {
    let is_part =
        |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
    text.bytes().all(is_part) && text.parse::<f64>().is_ok()
}

/// Whether a number is a date in its basic format. 14 digits are one with its time.
fn is_date_in_digits(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    let is_expanded = digits.len() < text.len();
    digits.bytes().all(|byte| byte.is_ascii_digit())
        && if is_expanded {
            matches!(digits.len(), 9 | 10) && digits.starts_with("00")
        } else {
            matches!(digits.len(), 4 | 7 | 8 | 14)
        }
}

fn iso_8601(text: &str) -> Option<CreatedAt> {
    // The minus sign of typesetters, which ISO 8601 prefers.
    let text = text.replace('\u{2212}', "-");
    let mut rest = Rest(&text);
    let is_compact = rest.digits_ahead() >= 12;
    let (date, is_complete) = date(&mut rest)?;
    if rest.0.is_empty() {
        return CreatedAt::new(date.and_time(NaiveTime::MIN), 0);
    }
    // Where all is digits, they may follow each other.
    if !is_complete || !(rest.skip(&['T', 't', ' ']) || is_compact) {
        return None;
    }
    let (time, days) = time(&mut rest)?;
    let seconds_east = zone(&mut rest)?;
    let date = date.checked_add_signed(TimeDelta::days(days))?;
    CreatedAt::new(date.and_time(time), seconds_east)
}

/// What is not read yet.
struct Rest<'a>(&'a str);

impl Rest<'_> {
    /// Passes over one of these characters, if it is next.
    fn skip(&mut self, any: &[char]) -> bool {
        let after = self.0.strip_prefix(any);
        self.0 = after.unwrap_or(self.0);
        after.is_some()
    }

    fn digits_ahead(&self) -> usize {
        self.0.bytes().take_while(u8::is_ascii_digit).count()
    }

    /// Reads so many digits.
    fn number(&mut self, digits: usize) -> Option<u32> {
        if self.digits_ahead() < digits {
            return None;
        }
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        number.parse().ok()
    }

    /// Reads what stands after a point or comma, in parts of 1,000,000,000; 0 without either.
    fn fraction(&mut self) -> Option<u64> {
        if !self.skip(&['.', ',']) {
            return Some(0);
        }
        let digits = self.digits_ahead();
        if digits == 0 {
            return None;
        }
        let (fraction, rest) = self.0.split_at(digits);
        self.0 = rest;
        format!("{fraction:0<9}").get(..9)?.parse().ok()
    }
}

/// Reads a date, and tells whether it names a day.
fn date(rest: &mut Rest<'_>) -> Option<(NaiveDate, bool)> {
    let year = year(rest)?;
    let is_extended = rest.skip(&['-']);
    if rest.skip(&['W', 'w']) {
        let week = rest.number(2)?;
        let has_day = if is_extended {
            rest.skip(&['-'])
        } else {
            rest.digits_ahead() > 0
        };
        let day = if has_day { rest.number(1)? } else { 1 };
        let day = chrono::Weekday::try_from(u8::try_from(day.checked_sub(1)?).ok()?).ok()?;
        return Some((NaiveDate::from_isoywd_opt(year, week, day)?, has_day));
    }
    match (rest.digits_ahead(), is_extended) {
        (3, _) => Some((NaiveDate::from_yo_opt(year, rest.number(3)?)?, true)),
        (2, true) => {
            let month = rest.number(2)?;
            let has_day = rest.skip(&['-']);
            let day = if has_day { rest.number(2)? } else { 1 };
            Some((NaiveDate::from_ymd_opt(year, month, day)?, has_day))
        }
        // Perhaps with the time after it.
        (4 | 8 | 10, false) => {
            let (month, day) = (rest.number(2)?, rest.number(2)?);
            Some((NaiveDate::from_ymd_opt(year, month, day)?, true))
        }
        (0, false) => Some((NaiveDate::from_ymd_opt(year, 1, 1)?, false)),
        _ => None,
    }
}

/// Reads four digits, or a sign and more of them: six where no hyphen shows where they end.
fn year(rest: &mut Rest<'_>) -> Option<i32> {
    let digits = match (rest.skip(&['+']), rest.digits_ahead()) {
        (false, _) => 4,
        (true, ahead @ 5..=9) if rest.0[ahead..].starts_with('-') => ahead,
        (true, _) => 6,
    };
    i32::try_from(rest.number(digits)?).ok()
}

/// Reads a time; at 24:00 it is that of one day later.
fn time(rest: &mut Rest<'_>) -> Option<(NaiveTime, i64)> {
    let hour = rest.number(2)?;
    let is_extended = rest.skip(&[':']);
    let has_next = |rest: &mut Rest<'_>| {
        if is_extended {
            rest.skip(&[':'])
        } else {
            rest.digits_ahead() > 0
        }
    };
    let (mut minute, mut second, mut unit) = (0, 0, 3600);
    if is_extended || rest.digits_ahead() > 0 {
        (minute, unit) = (rest.number(2)?, 60);
        if has_next(rest) {
            (second, unit) = (rest.number(2)?, 1);
        }
    }
    let fraction = rest.fraction()? * unit;
    if hour == 24 {
        let is_midnight = minute == 0 && second == 0 && fraction == 0;
        return is_midnight.then_some((NaiveTime::MIN, 1));
    }
    // A leap second is the end of the second before it.
    let is_leap = second == 60;
    let whole = NaiveTime::from_hms_opt(hour, minute, if is_leap { 59 } else { second })?;
    let nanoseconds = TimeDelta::nanoseconds(i64::try_from(fraction).ok()?);
    Some((
        if is_leap {
            NaiveTime::from_hms_nano_opt(hour, minute, 59, 999_999_999)?
        } else {
            whole.overflowing_add_signed(nanoseconds).0
        },
        0,
    ))
}

/// Reads a zone to the end of the text, in seconds east of UTC.
fn zone(rest: &mut Rest<'_>) -> Option<i32> {
    // The name of its rules may stand after it, in brackets.
    let text = match rest.0.split_once('[') {
        Some((before, name)) if name.ends_with(']') => before,
        _ => rest.0,
    };
    let text = text.trim();
    if text.is_empty() || ["z", "utc", "gmt"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(0);
    }
    let mut rest = Rest(text);
    let sign = if rest.skip(&['-']) {
        -1
    } else if rest.skip(&['+']) {
        1
    } else {
        return None;
    };
    let mut parts = [0; 3];
    let is_extended = rest.0.get(2..)?.starts_with(':');
    for (at, part) in parts.iter_mut().enumerate() {
        if at > 0 && (rest.0.is_empty() || (is_extended && !rest.skip(&[':']))) {
            break;
        }
        *part = i32::try_from(rest.number(2)?).ok()?;
    }
    // Python writes the offsets of old local times with a fraction.
    rest.fraction()?;
    let [hours, minutes, seconds] = parts;
    if !rest.0.is_empty() || minutes > 59 || seconds > 59 {
        return None;
    }
    let offset = FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60 + seconds))?;
    Some(offset.local_minus_utc())
}

/// Reads the date of a mail. Its day of the week may be missing, or wrong.
fn rfc_2822(text: &str) -> Option<CreatedAt> {
    let text = match text.split_once(',') {
        Some((day, rest)) if day.bytes().all(|byte| byte.is_ascii_alphabetic()) => rest.trim(),
        _ => text,
    };
    // The older zones have `UT` and `GMT` only, and people write `UTC`.
    let text = match text.rsplit_once(' ') {
        Some((rest, zone)) if zone.eq_ignore_ascii_case("UTC") => &format!("{rest} +0000"),
        _ => text,
    };
    let read = DateTime::parse_from_rfc2822(text)
        .or_else(|_| DateTime::parse_from_rfc2822(&format!("{text} +0000")));
    let time = read.ok()?;
    let mut local = time.naive_local();
    // A leap second, as above.
    if local.nanosecond() > 999_999_999 {
        local = local.with_nanosecond(999_999_999)?;
    }
    CreatedAt::new(local, time.offset().local_minus_utc())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

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
    fn every_form_of_iso_8601_gives_its_local_time_and_its_instant() {
        for (text, local, unix) in [
            ("20240316", "2024-03-16 00:00:00", 1_710_547_200),
            ("20240316T160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("20240316t1609z", "2024-03-16 16:09:00", 1_710_605_340),
            ("20240316T16Z", "2024-03-16 16:00:00", 1_710_604_800),
            ("20240316 160920", "2024-03-16 16:09:20", 1_710_605_360),
            ("20240316T16:09:20Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("2024-03-16T160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("20240316160920", "2024-03-16 16:09:20", 1_710_605_360),
            ("20240316160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("20240316180920+0200", "2024-03-16 18:09:20", 1_710_605_360),
            ("202403161609Z", "2024-03-16 16:09:00", 1_710_605_340),
            ("2024-W11-6", "2024-03-16 00:00:00", 1_710_547_200),
            ("2024W116", "2024-03-16 00:00:00", 1_710_547_200),
            ("2024-w11-6T16:09:20Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("2024W116T160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("2024-W11", "2024-03-11 00:00:00", 1_710_115_200),
            ("2024W11", "2024-03-11 00:00:00", 1_710_115_200),
            ("2020-W53-7", "2021-01-03 00:00:00", 1_609_632_000),
            ("2024-076", "2024-03-16 00:00:00", 1_710_547_200),
            ("2024076", "2024-03-16 00:00:00", 1_710_547_200),
            ("2024-076T16:09:20Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("2024076T160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("2024-366", "2024-12-31 00:00:00", 1_735_603_200),
            ("2024-03", "2024-03-01 00:00:00", 1_709_251_200),
            ("2024", "2024-01-01 00:00:00", 1_704_067_200),
            ("+002024-03-16", "2024-03-16 00:00:00", 1_710_547_200),
            ("+0020240316", "2024-03-16 00:00:00", 1_710_547_200),
            ("+0020240316T160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            (
                "+02024-03-16T16:09:20Z",
                "2024-03-16 16:09:20",
                1_710_605_360,
            ),
            ("+002024-076", "2024-03-16 00:00:00", 1_710_547_200),
            ("+002024076", "2024-03-16 00:00:00", 1_710_547_200),
            ("+002024076T160920Z", "2024-03-16 16:09:20", 1_710_605_360),
            ("+002024W116", "2024-03-16 00:00:00", 1_710_547_200),
            (
                "2024-03-16T16:09:20,5Z",
                "2024-03-16 16:09:20.500",
                1_710_605_360,
            ),
            ("2024-03-16T16:09,5Z", "2024-03-16 16:09:30", 1_710_605_370),
            ("2024-03-16T16.25Z", "2024-03-16 16:15:00", 1_710_605_700),
            ("2024-03-16T1609.1", "2024-03-16 16:09:06", 1_710_605_346),
            ("2024-03-16T16", "2024-03-16 16:00:00", 1_710_604_800),
            ("2024-03-16T16+02", "2024-03-16 16:00:00", 1_710_597_600),
            ("2024-03-16T00:00", "2024-03-16 00:00:00", 1_710_547_200),
            ("2024-03-16T24:00", "2024-03-17 00:00:00", 1_710_633_600),
            ("20240316T240000,0Z", "2024-03-17 00:00:00", 1_710_633_600),
            ("2024-12-31T24", "2025-01-01 00:00:00", 1_735_689_600),
            (
                "2016-12-31T23:59:60Z",
                "2016-12-31 23:59:59.999999999",
                1_483_228_799,
            ),
            (
                "Sat, 31 Dec 2016 23:59:60 +0000",
                "2016-12-31 23:59:59.999999999",
                1_483_228_799,
            ),
            (
                "2024-03-16T21:39:40+05:30:20",
                "2024-03-16 21:39:40",
                1_710_605_360,
            ),
            (
                "20240316T213940+053020",
                "2024-03-16 21:39:40",
                1_710_605_360,
            ),
            (
                "2024-03-16T21:39:40+05:30:20.5",
                "2024-03-16 21:39:40",
                1_710_605_360,
            ),
            (
                "2024-03-16T15:16:20-00:53",
                "2024-03-16 15:16:20",
                1_710_605_360,
            ),
            (
                "2024-03-16T11:09:20\u{2212}05:00",
                "2024-03-16 11:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-16 16:09:20 UTC",
                "2024-03-16 16:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-16 16:09:20 gmt",
                "2024-03-16 16:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-16T17:09:20+01:00[Europe/Berlin]",
                "2024-03-16 17:09:20",
                1_710_605_360,
            ),
            (
                "2024-03-17T16:08:20+23:59",
                "2024-03-17 16:08:20",
                1_710_605_360,
            ),
            (
                "9999-12-31T23:59:59",
                "9999-12-31 23:59:59",
                253_402_300_799,
            ),
        ] {
            let created = CreatedAt::parse(text).expect(text);
            assert_eq!(created.local.to_string(), local, "{text}");
            assert_eq!(created.unix, unix, "{text}");
        }
    }

    #[test]
    fn dates_of_mails_are_read() {
        for text in [
            "Sat, 16 Mar 2024 16:09:20 +0000",
            "Sat, 16 Mar 2024 16:09:20 GMT",
            "Sat, 16 Mar 2024 16:09:20 UTC",
            "16 Mar 2024 16:09:20 utc",
            "16 Mar 2024 16:09:20 UT",
            "Saturday, 16 Mar 2024 16:09:20 -0000",
            "Mon, 16 Mar 2024 16:09:20 +0000",
            "sat, 16 mar 2024 16:09:20 z",
            "Sat, 16 Mar 2024 16:09:20 +0000 (UTC)",
            "Sat,  16  Mar 2024 16:09:20",
        ] {
            let created = CreatedAt::parse(text).expect(text);
            assert_eq!(created.local.to_string(), "2024-03-16 16:09:20", "{text}");
            assert_eq!(created.unix, 1_710_605_360, "{text}");
        }
        let there = CreatedAt::parse("Sat, 16 Mar 2024 23:09 -0500").unwrap();
        assert_eq!(there.day_path(), "2024/03/16");
        assert_eq!(there.unix, 1_710_648_540);
        assert_eq!(CreatedAt::parse("x1, 16 Mar 2024 16:09:20 GMT"), None);
    }

    proptest! {
        #[test]
        fn a_date_and_time_is_the_same_in_every_form(
            unix in -62_135_596_800_i64..=253_402_300_799,
            milliseconds in 0_i64..1000,
            offset in -86_399_i32..=86_399,
        ) {
            let zone = FixedOffset::east_opt(offset).unwrap();
            let time = DateTime::from_timestamp_millis(unix * 1000 + milliseconds).unwrap();
            let local = time.naive_utc().checked_add_signed(TimeDelta::seconds(offset.into()));
            prop_assume!(local.is_some_and(|it| (1..=9999).contains(&it.year())));
            let local = local.unwrap();
            let expected = CreatedAt { local, unix };
            let sign = if offset < 0 { '-' } else { '+' };
            let seconds = offset.abs();
            let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            let dates = ["%Y-%m-%d", "%Y%m%d", "%G-W%V-%u", "%GW%V%u", "%Y-%j", "%Y%j", "+00%Y-%m-%d"];
            for date in dates.map(|form| local.format(form).to_string()) {
                for time in ["T%H:%M:%S.%3f", "t%H%M%S,%3f", " %H:%M:%S,%3f000000000"] {
                    let time = local.format(&time.replace("%3f", "MS")).to_string();
                    let time = time.replace("MS", &format!("{milliseconds:03}"));
                    for zone in [
                        format!("{sign}{hours:02}:{minutes:02}:{seconds:02}"),
                        format!(" {sign}{hours:02}{minutes:02}{seconds:02}"),
                    ] {
                        let text = format!("{date}{time}{zone}");
                        prop_assert_eq!(CreatedAt::parse(&text), Some(expected), "{}", text);
                    }
                }
                let day = CreatedAt::parse(&date).unwrap();
                prop_assert_eq!(day.local, local.date().and_time(NaiveTime::MIN), "{}", date);
            }
            if seconds == 0 {
                let mail = zone.from_utc_datetime(&time.naive_utc()).to_rfc2822();
                prop_assert_eq!(CreatedAt::parse(&mail).unwrap().unix, unix, "{}", mail);
            }
        }

        #[test]
        fn seconds_and_milliseconds_are_told_apart(unix in 100_000_000_i64..100_000_000_000) {
            let local = DateTime::from_timestamp(unix, 0).unwrap().naive_utc();
            let expected = Some(CreatedAt { local, unix });
            for text in [unix.to_string(), format!("{unix}000"), format!("{unix}.0"), format!("{unix}e0")] {
                let number = RawValue::from_string(text.clone()).unwrap();
                prop_assert_eq!(CreatedAt::from_json(&number), expected);
                // 14 digits may be a date and its time.
                if text.len() < 14 {
                    prop_assert_eq!(CreatedAt::parse(&text), expected);
                }
            }
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
            "-002024-03-16",
            "-2024-03-16",
            "+12024-03-16",
            "+2024-03-16",
            "20240230",
            "20241316",
            "2023366",
            "2024000",
            "2024-W54-1",
            "2024-W00-1",
            "2024-W11-0",
            "2024-W11-8",
            "2024W11-6",
            "2024-W116",
            "2024-00",
            "2024-13",
            "2024-3-16",
            "2024-03-16T1",
            "2024-03-16T16:9",
            "2024-03-16T16:60",
            "2024-03-16T16:09:61",
            "2024-03-16T16:09:20.",
            "2024-03-16T16:09:20,",
            "2024-03-16T24:01",
            "2024-03-16T24:00:01",
            "2024-03-16T24:00:00.001",
            "2024-03-16T240060",
            "2024-03-16T16:0920",
            "2024-03-16T1609:20",
            "2024-03-1616:09",
            "2024-03T16:09",
            "2024T16",
            "2024-W11T16:09",
            "2024-03-16T16:09:20Z+01:00",
            "2024-03-16T16:09:20+24:00",
            "2024-03-16T16:09:20+01:0",
            "2024-03-16T16:09:20+01:00:75",
            "2024-03-16T16:09:20+01:00:10:10",
            "2024-03-16T16:09:20+01:0000",
            "2024-03-16T16:09:20+0100:00",
            "2024-03-16T16:09:20[Europe/Berlin",
            "9999-12-31T24:00",
            "99999999999999999999",
            "1e300",
            "inf",
            "NaN",
            "1_710_605_360",
            "16 Marz 2024 16:09:20",
            "2024-03-16/2024-03-17",
        ] {
            assert_eq!(CreatedAt::parse(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_seconds_or_milliseconds() {
        let read =
            |text: &str| CreatedAt::from_json(&RawValue::from_string(text.to_owned()).unwrap());
        assert_eq!(read("1710605360").unwrap().day_path(), "2024/03/16");
        for number in [
            "1710605360.701906",
            "1710605360701.906",
            "\"1710605360.701906\"",
            "\" 1710605360701.906 \"",
            "\"+1.710605360701906E9\"",
        ] {
            let local = read(number).unwrap().local.to_string();
            assert_eq!(local, "2024-03-16 16:09:20.701906", "{number}");
        }
        for (number, day) in [
            ("0", "1970/01/01"),
            ("\"0\"", "1970/01/01"),
            ("-86400", "1969/12/31"),
            ("\"-86400\"", "1969/12/31"),
            ("\"-1000000000\"", "1938/04/24"),
            ("\"+100000000\"", "1973/03/03"),
            ("\"+0086400\"", "1970/01/02"),
            ("99999999999", "5138/11/16"),
            ("100000000000", "1973/03/03"),
            ("-100000000000", "1966/10/31"),
            ("\"1710605360000\"", "2024/03/16"),
            // A number is no date in the basic format, and a text of eight digits is one.
            ("20240316", "1970/08/23"),
            ("\"20240316\"", "2024/03/16"),
            ("\"10000316160920\"", "1000/03/16"),
        ] {
            assert_eq!(read(number).unwrap().day_path(), day, "{number}");
        }
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
