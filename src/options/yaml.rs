//! YAML text as a small tree that remembers lines and the way scalars were written.
//!
//! `saphyr` resolves plain scalars (`0644` becomes the number 644), while the meaning of a scalar
//! here depends on the option that reads it. So the text is taken from the source again, at the
//! place that `saphyr` gives for the scalar.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use indexmap::map::Entry as Slot;
use saphyr::{LoadableYamlNode, MarkedYamlOwned, ScalarOwned, ScanError, YamlDataOwned};
use saphyr_parser::{Event, Parser};

use super::error::Fault;

/// The longest key. It bounds the paths in messages, of which there may be many.
const LONGEST_KEY: usize = 1024;

/// A value and the line it begins on.
#[derive(Clone)]
pub(crate) struct Node {
    pub line: usize,
    pub kind: NodeKind,
    /// Whether it stands in the file without quotes.
    pub plain: bool,
}

/// What a value is.
#[derive(Clone)]
pub(crate) enum NodeKind {
    /// Nothing, `~` or `null`.
    Null,
    /// The text as it was written, without quotes.
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Mapping),
}

/// The entries of a mapping in the order of the file.
pub(crate) type Mapping = IndexMap<String, Entry>;

/// The value under a key, and the key's line.
#[derive(Clone)]
pub(crate) struct Entry {
    pub line: usize,
    pub value: Node,
}

impl NodeKind {
    /// Whether it says nothing: empty, or an empty text, list or mapping.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Scalar(text) => text.trim().is_empty(),
            Self::Sequence(items) => items.is_empty(),
            Self::Mapping(entries) => entries.is_empty(),
        }
    }

    /// What it is, as in "is a list, not a string".
    pub fn described(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Scalar(_) => "a single value",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// Reads the one document in `text`; `None` where there is none.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, Vec<Fault>> {
    if let Some(fault) = exceeded(text) {
        return Err(vec![fault]);
    }
    let source: Vec<char> = text.chars().collect();
    let documents =
        MarkedYamlOwned::load_from_str(text).map_err(|error| vec![not_yaml(&error, &source)])?;
    if let Some(second) = documents.get(1) {
        let line = second.span.start.line();
        let message = "a second YAML document begins before this line; there can be only one";
        return Err(vec![Fault::at(line, "", message)]);
    }
    let Some(document) = documents.first() else {
        return Ok(None);
    };
    let mut reader = YamlReader {
        source: &source,
        anchors: HashMap::new(),
        plain: Plain::default(),
        faults: Vec::new(),
    };
    let node = reader.node(document, "");
    if reader.faults.is_empty() {
        Ok(match node.kind {
            NodeKind::Null => None,
            _ => Some(node),
        })
    } else {
        Err(reader.faults)
    }
}

/// The fault of a text that is not YAML.
fn not_yaml(error: &ScanError, source: &[char]) -> Fault {
    let marker = error.marker();
    let message = if error.info() == "duplicated key in mapping" {
        let rest = source.get(marker.index()..).unwrap_or_default();
        let key: String = rest
            .iter()
            .take_while(|c| !matches!(c, ':' | '\n' | '\r'))
            .collect();
        format!("the key `{}` is here a second time", key.trim())
    } else {
        format!("not valid YAML: {}", error.info())
    };
    Fault {
        line: Some(marker.line()),
        column: Some(marker.col() + 1),
        key: String::new(),
        message,
    }
}

/// Turns `saphyr`'s tree into ours.
struct YamlReader<'a> {
    source: &'a [char],
    /// The text of anchored scalars: an alias to one has the alias's place in the source.
    anchors: HashMap<String, String>,
    plain: Plain,
    faults: Vec<Fault>,
}

impl YamlReader<'_> {
    fn node(&mut self, node: &MarkedYamlOwned, path: &str) -> Node {
        let line = node.span.start.line();
        let kind = match &node.data {
            YamlDataOwned::Value(ScalarOwned::Null) => NodeKind::Null,
            YamlDataOwned::Value(ScalarOwned::String(text))
            | YamlDataOwned::Representation(text, ..) => NodeKind::Scalar(text.clone()),
            YamlDataOwned::Value(_) => NodeKind::Scalar(self.written(node)),
            YamlDataOwned::Sequence(items) => {
                NodeKind::Sequence(items.iter().map(|item| self.node(item, path)).collect())
            }
            YamlDataOwned::Mapping(entries) => {
                let entries = entries.iter();
                NodeKind::Mapping(self.mapping(entries, path))
            }
            YamlDataOwned::Tagged(..) => {
                // What looks like a tag may be a password without quotes, so it is not shown.
                let message = "what begins with `!` is a tag; put it in quotes if it is text";
                self.faults.push(Fault::at(line, path, message));
                NodeKind::Null
            }
            YamlDataOwned::Alias(_) | YamlDataOwned::BadValue => {
                let message = "the value is not what its tag or alias promises";
                self.faults.push(Fault::at(line, path, message));
                NodeKind::Null
            }
        };
        let plain = self.plain.is(node, self.source);
        Node { line, kind, plain }
    }

    fn mapping<'n>(
        &mut self,
        entries: impl Iterator<Item = (&'n MarkedYamlOwned, &'n MarkedYamlOwned)>,
        path: &str,
    ) -> Mapping {
        let mut mapping = Mapping::new();
        let mut merged = Vec::new();
        for (key, value) in entries {
            let line = key.span.start.line();
            let NodeKind::Scalar(name) = self.node(key, path).kind else {
                let message = "a key must be a single word or a quoted string";
                self.faults.push(Fault::at(line, path, message));
                continue;
            };
            if name.len() > LONGEST_KEY {
                let message = format!("a key is longer than {LONGEST_KEY} bytes");
                self.faults.push(Fault::at(line, path, message));
                continue;
            }
            let path = joined(path, &name);
            let value = self.node(value, &path);
            if name == "<<" {
                merged.push(value);
                continue;
            }
            match mapping.entry(name) {
                Slot::Vacant(slot) => {
                    slot.insert(Entry { line, value });
                }
                Slot::Occupied(_) => {
                    let message = "this key is here a second time";
                    self.faults.push(Fault::at(line, path, message));
                }
            }
        }
        for node in merged {
            self.merge(&mut mapping, node, path);
        }
        mapping
    }

    /// The merge key `<<`: adds what the mapping does not have itself.
    fn merge(&mut self, mapping: &mut Mapping, node: Node, path: &str) {
        match node.kind {
            NodeKind::Mapping(other) => {
                for (name, entry) in other {
                    mapping.entry(name).or_insert(entry);
                }
            }
            NodeKind::Sequence(items) => {
                for item in items {
                    self.merge(mapping, item, path);
                }
            }
            NodeKind::Null | NodeKind::Scalar(_) => {
                let message = "takes a mapping, or a list of mappings";
                self.faults
                    .push(Fault::at(node.line, joined(path, "<<"), message));
            }
        }
    }

    /// The text of a plain scalar as it stands in the source.
    fn written(&mut self, node: &MarkedYamlOwned) -> String {
        let place = node.span.start.index()..node.span.end.index();
        let text: String = self.source.get(place).unwrap_or_default().iter().collect();
        let mut rest = text.trim();
        let mut anchor = None;
        while let Some(word) = rest.split_whitespace().next()
            && word.starts_with(['&', '!'])
        {
            anchor = word.strip_prefix('&').or(anchor);
            rest = rest[word.len()..].trim_start();
        }
        if let Some(alias) = rest.strip_prefix('*') {
            return self.anchors.get(alias).cloned().unwrap_or_default();
        }
        let text = rest.trim_matches(['"', '\'']).to_owned();
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor.to_owned(), text.clone());
        }
        text
    }
}

/// The path of `key` under `path`.
pub(crate) fn joined(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Tells values without quotes from others, in the order of the file.
#[derive(Default)]
pub(crate) struct Plain {
    /// The anchors of those without quotes.
    anchors: HashSet<String>,
}

impl Plain {
    /// Whether it is a single value without quotes and tag. What names a variable is text, whatever
    /// the variable holds.
    pub fn is(&mut self, node: &MarkedYamlOwned, source: &[char]) -> bool {
        let YamlDataOwned::Value(_) = &node.data else {
            return false;
        };
        let start = node.span.start.index();
        let text = source.get(start..node.span.end.index());
        let text: String = text.unwrap_or_default().iter().collect();
        let mut rest = text.trim();
        let mut anchor = None;
        while let Some(word) = rest.split_whitespace().next()
            && word.starts_with(['&', '!'])
        {
            if word.starts_with('!') {
                return false;
            }
            anchor = word.strip_prefix('&');
            rest = rest[word.len()..].trim_start();
        }
        if let Some(alias) = rest.strip_prefix('*') {
            return self.anchors.contains(alias);
        }
        let plain = !rest.starts_with(['"', '\''])
            && !rest.contains("${")
            && !is_block(source.get(..start).unwrap_or_default());
        if let Some(anchor) = anchor.filter(|_| plain) {
            self.anchors.insert(anchor.to_owned());
        }
        plain
    }
}

/// Whether what stands before a value makes it a block of text: a `|` or `>` at the end of the
/// last line that is not only a comment.
fn is_block(before: &[char]) -> bool {
    let mut blank = before.iter().rev().take_while(|c| c.is_whitespace());
    if !blank.any(|c| *c == '\n') {
        return false;
    }
    for line in before.rsplit(|c| *c == '\n') {
        let line: String = line.iter().collect();
        let bare = line.split(" #").next().unwrap_or_default().trim();
        if !bare.is_empty() && !bare.starts_with('#') {
            let word = bare.split_whitespace().next_back().unwrap_or_default();
            return word.starts_with(['|', '>']);
        }
    }
    false
}

/// The most that a configuration may become, in bytes.
const LARGEST: usize = 64 << 20;

/// How deep lists and mappings may be nested.
const DEEPEST: usize = 500;

/// About what a value takes beside its text, in bytes.
const VALUE: usize = 64;

/// An anchored value.
#[derive(Clone, Copy, Default)]
struct Extent {
    size: usize,
    depth: usize,
}

/// A list or mapping that has begun.
struct OpenNode {
    anchor: usize,
    /// The size of all that came before it.
    before: usize,
    /// The depth of what is in it.
    depth: usize,
}

/// What is wrong where the text passes a bound; nothing where it never does, or where it is not
/// YAML before that.
pub(crate) fn exceeded(text: &str) -> Option<Fault> {
    let mut total = 0_usize;
    let mut anchored: HashMap<usize, Extent> = HashMap::new();
    let mut open: Vec<OpenNode> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        let mut inner = 0;
        match event {
            Event::Scalar(text, _, anchor, _) => {
                let size = VALUE + text.len();
                total = total.saturating_add(size);
                // Values without an anchor have the number 0, to which no alias leads.
                anchored.insert(anchor, Extent { size, depth: 0 });
            }
            Event::Alias(anchor) => {
                let extent = anchored.get(&anchor).copied().unwrap_or_default();
                total = total.saturating_add(VALUE).saturating_add(extent.size);
                inner = extent.depth;
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push(OpenNode {
                    anchor,
                    before: total,
                    depth: 0,
                });
                total = total.saturating_add(VALUE);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let ended = open.pop()?;
                inner = ended.depth + 1;
                let size = total - ended.before;
                anchored.insert(ended.anchor, Extent { size, depth: inner });
            }
            _ => {}
        }
        let depth = open.len() + inner;
        if let Some(outer) = open.last_mut() {
            outer.depth = outer.depth.max(inner);
        }
        let message = if depth > DEEPEST {
            "is nested too deeply".to_owned()
        } else if total > LARGEST {
            let most = LARGEST >> 20;
            format!("with its aliases replaced, the text takes more than {most} MB")
        } else {
            continue;
        };
        return Some(Fault::at(span.start.line(), "", message));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn mapping(text: &str) -> Mapping {
        match parse(text)
            .unwrap_or_else(|f| panic!("{f:?}"))
            .unwrap()
            .kind
        {
            NodeKind::Mapping(mapping) => mapping,
            other => panic!("{}", other.described()),
        }
    }

    fn shown(kind: &NodeKind) -> String {
        match kind {
            NodeKind::Null => "null".into(),
            NodeKind::Scalar(text) => format!("{text:?}"),
            NodeKind::Sequence(items) => {
                let items: Vec<_> = items.iter().map(|item| shown(&item.kind)).collect();
                format!("[{}]", items.join(", "))
            }
            NodeKind::Mapping(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(key, entry)| format!("{key}: {}", shown(&entry.value.kind)))
                    .collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    #[test]
    fn scalars_keep_the_text_they_were_written_with() {
        for (yaml, expected) in [
            ("a: 0644   # é", r#"{a: "0644"}"#),
            ("é: 0o644", r#"{é: "0o644"}"#),
            (
                "a: [012, 1e5 , 1.0,yes, True]",
                r#"{a: ["012", "1e5", "1.0", "yes", "True"]}"#,
            ),
            ("a: '012'\nb: \"x\"", r#"{a: "012", b: "x"}"#),
            (
                "a: &n 012\nb: *n\nc: [*n]",
                r#"{a: "012", b: "012", c: ["012"]}"#,
            ),
            ("a: &m {x: 01}\nb: *m", r#"{a: {x: "01"}, b: {x: "01"}}"#),
            ("a: !!str 012\nb: !!int '7'", r#"{a: "012", b: "7"}"#),
            (
                "a:\nb: ~\nc: null\nd: ''\ne: 'null'",
                r#"{a: null, b: null, c: null, d: "", e: "null"}"#,
            ),
            ("a: |\n  12\n  13\n", r#"{a: "12\n13\n"}"#),
            ("1: x\ntrue: y", r#"{1: "x", true: "y"}"#),
            ("\u{feff}a: 012", r#"{a: "012"}"#),
            ("a: 012\r\nb: 013\r\n", r#"{a: "012", b: "013"}"#),
        ] {
            assert_eq!(shown(&NodeKind::Mapping(mapping(yaml))), expected, "{yaml}");
        }
    }

    #[test]
    fn a_merge_key_adds_what_is_not_there() {
        let yaml = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\none:\n  <<: *b\n  x: 9\ntwo: {<<: [*b, *m]}";
        let mapping = mapping(yaml);
        assert_eq!(shown(&mapping["one"].value.kind), r#"{x: "9", y: "2"}"#);
        assert_eq!(
            shown(&mapping["two"].value.kind),
            r#"{x: "1", y: "2", z: "4"}"#
        );
    }

    #[test]
    fn keys_and_values_know_their_lines() {
        let mapping = mapping("a: 1\n\nb:\n\n  - x\n");
        assert_eq!((mapping["b"].line, mapping["b"].value.line), (3, 5));
    }

    #[test]
    fn faults_name_their_place() {
        for (yaml, line, column, part) in [
            (
                "a: 1\nb: 2\na: 3",
                3,
                Some(1),
                "the key `a` is here a second time",
            ),
            ("a:\n  '1': x\n  1: y", 3, None, "second time"),
            ("a: 1\n b: [", 2, Some(3), "not valid YAML"),
            ("a: 1\n---\nb: 2", 3, None, "second YAML document"),
            ("a:\n  b: !foo 1", 2, None, "is a tag"),
            ("a: !!int x", 1, None, "tag"),
            ("a: *b", 1, Some(4), "not valid YAML"),
            ("? [a]\n: 1", 1, None, "key must be"),
            ("a:\n  <<: 1", 2, None, "takes a mapping"),
            ("a: &a [x, *a]", 1, None, "alias"),
        ] {
            let faults = parse(yaml).err().unwrap_or_default();
            let fault = faults.first().unwrap_or_else(|| panic!("{yaml}"));
            assert_eq!(
                (fault.line, fault.column),
                (Some(line), column),
                "{yaml}: {fault:?}"
            );
            assert!(fault.message.contains(part), "{yaml}: {fault:?}");
        }
    }

    #[test]
    fn depth_and_expansion_are_bounded() {
        let block = format!("a:\n  {}x", "- ".repeat(100_000));
        let flow = "[".repeat(100_000);
        let laughs = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
            c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n\
            e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]";
        for text in [block.as_str(), &flow, laughs] {
            assert!(parse(text).is_err());
        }
        let mut staircase: String = (0..245).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        staircase += &format!("{}{}{}", " ".repeat(246), "[".repeat(250), "]".repeat(250));
        assert!(parse(&staircase).is_ok());
    }

    #[test]
    fn nothing_is_no_document() {
        for text in ["", "\n\n", "# only words\n", "---\n", "~"] {
            assert!(matches!(parse(text), Ok(None)), "{text:?}");
        }
    }
}

#[cfg(test)]
mod bounds_tests {
    use super::*;

    fn line(text: &str) -> Option<usize> {
        exceeded(text).and_then(|fault| fault.line)
    }

    /// `a: &a <text>` and so many aliases to it, each on a line of its own.
    fn aliased(text: &str, times: usize) -> String {
        format!("a: &a {text}\nb:\n{}", "- *a\n".repeat(times))
    }

    #[test]
    fn what_aliases_stand_for_counts_each_time() {
        let long = "x".repeat(1 << 20);
        assert_eq!(line(&long), None);
        assert_eq!(line(&aliased(&long, 60)), None);
        assert_eq!(line(&aliased(&long, 100)), Some(65));
        assert_eq!(line(&aliased(&format!("[{long}]"), 100)), Some(65));
        assert_eq!(line(&aliased(&format!("{{? {long}}}"), 100)), Some(65));
    }

    #[test]
    fn depth_counts_whatever_makes_it() {
        let nested = |n: usize, inner: &str| format!("{}{inner}{}", "[".repeat(n), "]".repeat(n));
        let block = |n: usize, end: &str| format!("a:{end}  {}x", "- ".repeat(n));
        let deep = nested(200, "");
        let by_alias = |n: usize| format!("a: &a {deep}\nb: &b {deep}\nc: {}", nested(n, "*a"));
        let by_aliases = |n: usize| {
            let middle = nested(200, "*a");
            format!("a: &a {deep}\nb: &b {middle}\nc:\n  {}", nested(n, "*b"))
        };
        assert_eq!(line(&block(400, "\n")), None);
        for end in ["\n", "\r", "\r\n"] {
            assert_eq!(line(&block(600, end)), Some(2), "{end:?}");
        }
        assert_eq!((line(&by_alias(250)), line(&by_aliases(90))), (None, None));
        assert_eq!(line(&by_aliases(100)), Some(4));
    }

    #[test]
    fn an_alias_to_itself_and_one_to_nothing_are_left_to_the_parser() {
        for text in ["a: &a [x, *a]", "a: *b", "a: [", ""] {
            assert_eq!(line(text), None, "{text}");
        }
    }
}
