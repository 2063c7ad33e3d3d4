//! Documents of every kind that deployments hold, the same ones for the same seed.

use chrono::{DateTime, Datelike, NaiveDateTime, NaiveTime, TimeDelta, Timelike};
use fastrand::Rng;

use super::json::Json;

/// A document, and what its maker knows of it.
pub struct Made {
    pub id: String,
    pub document: Json,
    /// Its local time and its seconds since 1970, if its date can be read.
    pub date: Option<(NaiveDateTime, i64)>,
    pub subject: Option<String>,
    /// Whether a link may have to change it: then its attachments are a list, or none.
    pub is_tagged: bool,
}

/// So many documents. Each kind of member comes round in turn, beside others by lot.
pub fn documents(seed: u64, count: usize) -> Vec<Made> {
    let mut random = Rng::with_seed(seed);
    (0..count).map(|turn| document(&mut random, turn)).collect()
}

fn document(random: &mut Rng, turn: usize) -> Made {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    let id = uuid::Builder::from_random_bytes(bytes)
        .into_uuid()
        .to_string();
    let is_tagged = turn.is_multiple_of(2);
    let (created_at, date) = created_at(random, turn);
    let (subject, shown) = subject(random);
    let mut members: Vec<(&str, Option<Json>)> = vec![
        ("uuid", Some(Json::text(&id))),
        ("vcon", version(random)),
        ("created_at", created_at),
        ("subject", subject),
        (
            "updated_at",
            maybe(random, Json::text("2025-02-12T00:00:00Z")),
        ),
        ("parties", list_or_none(random, is_tagged, party)),
        ("dialog", list_or_none(random, is_tagged, dialog)),
        ("analysis", list_or_none(random, is_tagged, analysis)),
        ("attachments", attachments(random, turn, is_tagged)),
        ("group", group(random)),
        ("redacted", redacted(random)),
        ("meta", unknown(random, 3)),
        ("größe \"x\"", unknown(random, 2)),
    ];
    let amended = Json::object(&[("uuid", Json::text("11111111-2222-4333-8444-555555555555"))]);
    names(random, &mut members, "appended", "amended", amended);
    // An extension that is asked for keeps links from changing the document.
    let critical = if is_tagged {
        Json::List(Vec::new())
    } else {
        Json::texts(&["lawful_basis"])
    };
    names(random, &mut members, "must_support", "critical", critical);
    random.shuffle(&mut members);
    let members = members.into_iter();
    let members = members.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Made {
        id,
        document: Json::Object(members.collect()),
        date,
        subject: shown,
        is_tagged,
    }
}

fn maybe(random: &mut Rng, value: Json) -> Option<Json> {
    random.bool().then_some(value)
}

fn one_of<T: Clone>(random: &mut Rng, all: &[T]) -> T {
    all[random.usize(..all.len())].clone()
}

/// A member under its old name, its new one, both, or neither.
fn names(
    random: &mut Rng,
    members: &mut Vec<(&'static str, Option<Json>)>,
    old: &'static str,
    new: &'static str,
    value: Json,
) {
    let kind = random.u8(..4);
    if kind == 1 || kind == 3 {
        members.push((old, Some(value.clone())));
    }
    if kind == 2 || kind == 3 {
        let value = if kind == 3 {
            one_of(random, &[Json::Null, value])
        } else {
            value
        };
        members.push((new, Some(value)));
    }
}

fn version(random: &mut Rng) -> Option<Json> {
    let versions = [
        Some(Json::text("0.0.1")),
        Some(Json::text("0.0.2")),
        Some(Json::text("0.3.0")),
        Some(Json::text("0.4.0")),
        Some(Json::Null),
        Some(Json::number("1")),
        None,
    ];
    one_of(random, &versions)
}

fn subject(random: &mut Rng) -> (Option<Json>, Option<String>) {
    let text = one_of(
        random,
        &["Checkup", "Größe 漢字 \"quoted\"", "a\\b\n\tc", ""],
    );
    match random.u8(..6) {
        0 => (None, None),
        1 => (Some(Json::Null), None),
        2 => (
            Some(one_of(random, &[Json::number("7"), Json::texts(&["x"])])),
            None,
        ),
        _ => (Some(Json::text(text)), Some(text.to_owned())),
    }
}

fn group(random: &mut Rng) -> Option<Json> {
    let kinds = [
        None,
        Some(Json::List(Vec::new())),
        Some(Json::List(vec![Json::object(&[("uuid", Json::text("g"))])])),
        Some(Json::Null),
        Some(Json::Object(Vec::new())),
    ];
    one_of(random, &kinds)
}

fn redacted(random: &mut Rng) -> Option<Json> {
    let kinds = [
        None,
        Some(Json::Object(Vec::new())),
        Some(Json::object(&[
            ("uuid", Json::text("r")),
            ("type", Json::Null),
        ])),
        Some(Json::Null),
        Some(Json::List(Vec::new())),
    ];
    one_of(random, &kinds)
}

fn unknown(random: &mut Rng, depth: u32) -> Option<Json> {
    let value = anything(random, depth);
    maybe(random, value)
}

/// A value that nobody looks at.
fn anything(random: &mut Rng, depth: u32) -> Json {
    match random.u8(..if depth == 0 { 5 } else { 7 }) {
        0 => Json::Null,
        1 => Json::Bool(random.bool()),
        2 => Json::number(one_of(
            random,
            &[
                "0",
                "-7",
                "1.0",
                "2.50",
                "1e3",
                "123456789012345678901234567890",
                "-0.0",
            ],
        )),
        3 => Json::text(one_of(
            random,
            &["", "text", "é\u{1f600}", "a\"b\\c", "\u{7f}\u{2028}"],
        )),
        4 => Json::text("[\"no body\"]"),
        5 => Json::List(
            (0..random.usize(..3))
                .map(|_| anything(random, depth - 1))
                .collect(),
        ),
        _ => Json::object(&[
            ("mimetype", anything(random, depth - 1)),
            ("appended", anything(random, depth - 1)),
            ("encoding", Json::text("text")),
        ]),
    }
}

/// A list of up to three parts and things that are none; or what else stands in its place.
fn list_or_none(
    random: &mut Rng,
    is_tagged: bool,
    part: impl Fn(&mut Rng) -> Json,
) -> Option<Json> {
    match random.u8(..12) {
        0 => None,
        1 => Some(Json::Null),
        2 if !is_tagged => Some(part(random)),
        _ => {
            let count = random.usize(..4);
            let parts = (0..count).map(|_| match random.u8(..8) {
                0 => one_of(
                    random,
                    &[
                        Json::Null,
                        Json::text("x"),
                        Json::number("7"),
                        Json::List(vec![]),
                    ],
                ),
                _ => part(random),
            });
            Some(Json::List(parts.collect()))
        }
    }
}

fn party(random: &mut Rng) -> Json {
    Json::object(&[
        ("name", Json::text(one_of(random, &["Zoë", "Front desk"]))),
        ("mimetype", Json::text("kept/here")),
        ("tel", Json::text("+15550100101")),
    ])
}

/// What every part may have.
fn part(random: &mut Rng, own: Vec<(&'static str, Option<Json>)>) -> Json {
    let mut members = own;
    let schema = Json::text(one_of(random, &["1", "https://example.org/schema"]));
    names(random, &mut members, "schema_version", "schema", schema);
    names(
        random,
        &mut members,
        "mimetype",
        "mediatype",
        Json::text("text/plain"),
    );
    names(
        random,
        &mut members,
        "must_support",
        "critical",
        Json::List(Vec::new()),
    );
    members.push(("unknown", unknown(random, 2)));
    random.shuffle(&mut members);
    let members = members.into_iter();
    let members = members.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Json::Object(members.collect())
}

/// A body, and what is said of its encoding: of JSON text only what is true.
fn body(random: &mut Rng) -> (Option<Json>, Option<Json>) {
    let value = Json::object(&[
        ("score", Json::number(one_of(random, &["60", "0.5"]))),
        ("words", Json::texts(&["Größe", "a\"b"])),
        ("none", Json::Null),
    ]);
    let (body, is_text) = match random.u8(..8) {
        0 => (None, true),
        1 => (Some(Json::Null), false),
        2 => (Some(Json::number("7")), false),
        3 => (Some(Json::Text(value.written())), false),
        4 => (Some(value), false),
        5 => (Some(Json::List(vec![value, Json::number("1")])), false),
        6 => (
            Some(one_of(random, &[Json::Object(vec![]), Json::List(vec![])])),
            false,
        ),
        _ => (
            Some(Json::text(one_of(random, &["plain text", "", "ü"]))),
            true,
        ),
    };
    let encoding = match random.u8(..6) {
        0 => None,
        1 => Some(Json::text("text")),
        2 => Some(Json::Null),
        3 => Some(Json::text("base64url")),
        4 if !is_text => Some(Json::text("json")),
        _ => Some(Json::text("none")),
    };
    (body, encoding)
}

fn dialog(random: &mut Rng) -> Json {
    let (body, encoding) = body(random);
    let own = vec![
        (
            "type",
            Some(Json::text(one_of(random, &["text", "recording"]))),
        ),
        ("start", Some(Json::text("2025-02-11T08:15:00+00:00"))),
        (
            "parties",
            Some(Json::List(vec![Json::number("0"), Json::number("1")])),
        ),
        ("duration", maybe(random, Json::number("42.0"))),
        ("body", body),
        ("encoding", encoding),
    ];
    part(random, own)
}

fn analysis(random: &mut Rng) -> Json {
    let (body, encoding) = body(random);
    let own = vec![
        (
            "type",
            Some(Json::text(one_of(random, &["summary", "transcript"]))),
        ),
        ("dialog", Some(Json::number("0"))),
        ("vendor", Some(Json::text("somebody"))),
        ("body", body),
        ("encoding", encoding),
    ];
    part(random, own)
}

fn attachment(random: &mut Rng) -> Json {
    let (body, encoding) = body(random);
    let mut own = vec![
        ("party", Some(Json::number("0"))),
        ("body", body),
        ("encoding", encoding),
    ];
    names(random, &mut own, "type", "purpose", Json::text("note"));
    part(random, own)
}

fn attachments(random: &mut Rng, turn: usize, is_tagged: bool) -> Option<Json> {
    let all = list_or_none(random, is_tagged, attachment);
    let tags = tags(random, turn / 2);
    match (all, tags) {
        (Some(Json::List(mut all)), Some(tags)) => {
            all.insert(random.usize(..=all.len()), tags);
            Some(Json::List(all))
        }
        (all, _) => all,
    }
}

/// An attachment of tags, in each shape in turn.
fn tags(random: &mut Rng, turn: usize) -> Option<Json> {
    let object = Json::object(&[
        ("mood", Json::text("good: very")),
        ("score", Json::number("7")),
        ("sure", Json::Bool(true)),
        ("more", Json::object(&[("a", Json::number("1"))])),
    ]);
    let list = Json::texts(&["mood:good", "vip:yes"]);
    let mixed = Json::List(vec![
        Json::text("mood:good"),
        Json::object(&[("name", Json::text("x"))]),
        Json::Null,
        Json::number("7"),
    ]);
    let (body, encoding) = match turn % 14 {
        0 => (Some(Json::Text(list.written())), "json"),
        1 => (Some(list), "json"),
        2 => (Some(object), "json"),
        3 => {
            // In the order that any reader gives them.
            let object = Json::object(&[("a", Json::number("1")), ("b", Json::text("x"))]);
            (Some(Json::Text(object.written())), "json")
        }
        4 => (Some(mixed), "none"),
        5 => (Some(Json::text("mood:good")), "none"),
        6 => (Some(Json::text("")), "none"),
        7 => (Some(Json::Null), "none"),
        8 => (None, "none"),
        9 => (Some(Json::texts(&["checked:checked"])), "json"),
        10 => (Some(Json::text("[\"checked:checked\",\"x:y\"]")), "json"),
        11 => (Some(Json::List(Vec::new())), "text"),
        12 => (Some(Json::text("{}")), "json"),
        _ => return None,
    };
    let mut own = vec![
        ("party", maybe(random, Json::number("0"))),
        ("body", body),
        ("encoding", Some(Json::text(encoding))),
    ];
    match random.u8(..4) {
        0 => own.push(("type", Some(Json::text("tags")))),
        1 => own.extend([
            ("type", Some(Json::text("tags"))),
            ("purpose", Some(Json::text("note"))),
        ]),
        2 => own.extend([
            ("purpose", Some(Json::text("tags"))),
            ("type", Some(Json::text("other"))),
        ]),
        _ => own.push(("purpose", Some(Json::text("tags")))),
    }
    Some(part(random, own))
}

/// A date in each form in turn, and what it says.
fn created_at(random: &mut Rng, turn: usize) -> (Option<Json>, Option<(NaiveDateTime, i64)>) {
    let unix = random.i64(86_400..2_000_000_000);
    let utc = DateTime::from_timestamp(unix, 0)
        .expect("a date")
        .naive_utc();
    let offset = one_of(
        random,
        &[0, 3600, -8 * 3600, 5 * 3600 + 1800, 14 * 3600, -12 * 3600],
    );
    let local = utc + TimeDelta::seconds(offset);
    let sign = if offset < 0 { '-' } else { '+' };
    let (hours, minutes) = (offset.abs() / 3600, offset.abs() / 60 % 60);
    let shown = |form: &str| local.format(form).to_string();
    let here = Some((local, unix));
    let as_utc = Some((local, local.and_utc().timestamp()));
    let midnight = local.date().and_time(NaiveTime::MIN);
    let midnight = Some((midnight, midnight.and_utc().timestamp()));
    let half = local + TimeDelta::milliseconds(500);
    let iso = shown("%Y-%m-%dT%H:%M:%S");
    let text = |text: String| Some(Json::Text(text));
    match turn % 25 {
        0 => (text(format!("{iso}{sign}{hours:02}:{minutes:02}")), here),
        1 => (text(format!("{iso}Z")), as_utc),
        2 => (text(iso), as_utc),
        3 => (
            text(format!("{iso}.500{sign}{hours:02}:{minutes:02}")),
            Some((half, unix)),
        ),
        4 => (
            text(format!("{iso},5{sign}{hours:02}{minutes:02}")),
            Some((half, unix)),
        ),
        5 => (text(shown("%Y%m%dT%H%M%SZ")), as_utc),
        6 => (
            text(format!(
                "{}{sign}{hours:02}{minutes:02}",
                shown("%Y%m%dT%H%M%S")
            )),
            here,
        ),
        7 => (text(shown("%G-W%V-%uT%H:%M:%Sz")), as_utc),
        8 => (text(shown("%GW%V%u")), midnight),
        9 => (text(shown("%Y-%jt%H:%M:%SZ")), as_utc),
        10 => (text(shown("%Y%j")), midnight),
        11 => (text(shown("%Y-%m-%d")), midnight),
        12 => (text(shown("%Y%m%d")), midnight),
        13 => {
            let hour = local
                .date()
                .and_hms_opt(local.hour(), 0, 0)
                .expect("a time");
            (
                text(shown("%Y-%m-%dT%H")),
                Some((hour, hour.and_utc().timestamp())),
            )
        }
        14 => {
            let minute = local - TimeDelta::seconds(local.second().into());
            (
                text(shown("%Y-%m-%d %H:%M")),
                Some((minute, minute.and_utc().timestamp())),
            )
        }
        15 => {
            let there = local + TimeDelta::seconds(20);
            let sign_of = if offset < 0 { -20 } else { 20 };
            let text_of = there.format("%Y-%m-%dT%H:%M:%S");
            let unix = there.and_utc().timestamp() - offset - sign_of;
            (
                text(format!("{text_of}{sign}{hours:02}:{minutes:02}:20")),
                Some((there, unix)),
            )
        }
        16 => {
            let next = local
                .date()
                .succ_opt()
                .expect("a day")
                .and_time(NaiveTime::MIN);
            (
                text(shown("%Y-%m-%dT24:00")),
                Some((next, next.and_utc().timestamp())),
            )
        }
        17 => (text(shown("%a, %d %b %Y %H:%M:%S GMT")), as_utc),
        18 => {
            let day = local.day();
            let rest = shown("%b %Y %H:%M:%S");
            (
                text(format!("{day} {rest} {sign}{hours:02}{minutes:02}")),
                here,
            )
        }
        19 => (Some(Json::Number(unix.to_string())), Some((utc, unix))),
        20 => {
            // Before 1973 it would be taken for seconds.
            let unix = unix.max(100_000_000);
            let utc = DateTime::from_timestamp(unix, 0)
                .expect("a date")
                .naive_utc();
            (Some(Json::Number(format!("{unix}000"))), Some((utc, unix)))
        }
        21 => {
            let unix = unix.max(100_000_000);
            let utc = DateTime::from_timestamp(unix, 0)
                .expect("a date")
                .naive_utc();
            (text(format!("{unix}.0")), Some((utc, unix)))
        }
        22 => (text(shown("+00%Y-%m-%dT%H:%M:%SZ")), as_utc),
        23 => {
            let unreadable = [
                Json::text("some day"),
                Json::text("2025-02-30"),
                Json::Bool(true),
                Json::List(Vec::new()),
            ];
            (Some(one_of(random, &unreadable)), None)
        }
        _ => (one_of(random, &[None, Some(Json::Null)]), None),
    }
}
