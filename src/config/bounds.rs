//! How large and how deep a YAML text becomes once its aliases are replaced by what they stand for.
//!
//! `saphyr` bounds the number of values that aliases make, neither their size nor their depth: a
//! text of one megabyte that is aliased ten thousand times would be ten gigabytes in memory, and
//! what is nested too deeply would be more than the stack can bear, because the tree is read by
//! recursion. So the text is gone through once before there is a tree.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser};

use super::error::Fault;

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
struct Open {
    anchor: usize,
    /// The size of all that came before it.
    before: usize,
    /// The depth of what is in it.
    depth: usize,
}

/// What is wrong where the text passes a bound; nothing where it never does, or where it is not
/// YAML before that.
pub(super) fn exceeded(text: &str) -> Option<Fault> {
    let mut total = 0_usize;
    let mut anchored: HashMap<usize, Extent> = HashMap::new();
    let mut open: Vec<Open> = Vec::new();
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
                open.push(Open {
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
