//! Which values stand in the file without quotes. `saphyr` does not tell, so the source is looked
//! at.

use std::collections::HashSet;

use saphyr::{MarkedYamlOwned, YamlDataOwned};

/// Tells values without quotes from others, in the order of the file.
#[derive(Default)]
pub(super) struct Plain {
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
