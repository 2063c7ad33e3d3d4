//! What a fuzzer runs on jq filters, and on documents with filters that come to an end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::filter::Filter;

/// Filters that use what documents hold as much as they can, and end whatever that is.
const FILTERS: [&str; 24] = [
    ".",
    ".parties[0].name",
    ".attachments[]? | select(.type == \"tags\") | .body",
    ".analysis[]? | .body | fromjson",
    "[paths] | length",
    "[.. | strings | test(\"a.*b\")] | any",
    "[.. | strings | @base64d]",
    "[.. | strings | @uri, @html, @sh, @json, @text]",
    "[.. | strings | try (todate) catch .]",
    "[.. | numbers | try (todate, gmtime, mktime) catch .]",
    "[.. | strings | try (fromdate, strptime(\"%Y-%m-%dT%H:%M:%SZ\")) catch .]",
    "[.. | strings | try (tonumber) catch .] | add",
    "[.. | numbers] | (add, min, max, sort, unique)",
    "[.. | arrays | try implode catch .]",
    "[.. | strings | explode | implode]",
    "[.. | objects | to_entries, keys, length]",
    "[.. | arrays | flatten, reverse, group_by(.), (.[1:-1])]",
    "[.. | numbers | floor, sqrt, (. % 7 | try . catch 0)?, -., . * 1e300]",
    "tojson | fromjson | tojson",
    ".x as $x | .y | try has($x) catch .",
    ".re as $re | [.. | strings | try test($re) catch .]",
    ".x as $x | .y | try .[$x:] catch .",
    ".fmt as $f | .x | try strftime($f) catch .",
    "[.. | strings | ltrimstr(\"a\"), rtrimstr(\"b\"), split(\"a\"), ascii_downcase]",
];

thread_local! {
    static COMPILED: Vec<Filter> = FILTERS
        .iter()
        .map(|code| Filter::compile(code).unwrap_or_else(|why| panic!("{code}: {why}")))
        .collect();
}

/// The text of a filter: compiled or refused in words.
pub fn jq_filter(data: &[u8]) {
    let Ok(code) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(why) = Filter::compile(code) {
        assert!(!why.is_empty());
        assert!(why.len() <= 64 * 1024, "{} bytes", why.len());
    }
}

/// A document with a filter that its first byte chooses: what comes out is the same at each time.
pub fn jq_document(data: &[u8]) {
    let Some((choice, json)) = data.split_first() else {
        return;
    };
    let Ok(json) = std::str::from_utf8(json) else {
        return;
    };
    COMPILED.with(|filters| {
        let filter = &filters[usize::from(*choice) % filters.len()];
        let first = filter.matches(json);
        if let Err(why) = &first {
            assert!(why.chars().count() <= 1000, "{} bytes", why.len());
        }
        assert_eq!(filter.matches(json), first);
    });
}
