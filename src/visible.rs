//! Escapes text from elsewhere, so that nobody who writes into Redis, replies to a request or names a file
//! can steer a terminal, forge a line of the log, or hide in one.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};

/// Whether a terminal shows the character, and does nothing else with it.
///
/// Not visible are: control characters (C0, C1, DEL), separators of lines and paragraphs, spaces other
/// than the usual one, characters that change the direction of text (U+202A to U+202E, U+2066 to U+2069,
/// U+200E, U+200F, U+061C), that change or join the character before them, and that have no shape.
pub fn is_visible(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Letters and a symbol by their category, blanks to the eye.
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => false,
        c => c.escape_debug().len() == 1,
    }
}

/// Marks on one character, more than any script has. A higher pile would cover other lines.
const MOST_MARKS: u8 = 4;

/// Whether the character is a mark on the one before it: a vowel sign, an accent.
///
/// Joiners, variation selectors and tags, which have no shape of their own, are no marks.
fn is_mark(c: char) -> bool {
    let has_shape = !matches!(c, '\u{34f}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e0fff}');
    // `escape_debug` escapes a mark at the beginning of a text, but not behind a letter.
    c > '~' && has_shape && !is_visible(c) && format!("a{c}").escape_debug().eq(['a', c])
}

/// Tells, one by one, which characters of a text need no escape.
#[derive(Default)]
struct VisibilityFilter {
    /// How many more marks the previous character takes.
    room: u8,
}

impl VisibilityFilter {
    fn shows(&mut self, c: char) -> bool {
        if is_visible(c) {
            self.room = if c == ' ' { 0 } else { MOST_MARKS };
            return true;
        }
        if self.room > 0 && is_mark(c) {
            self.room -= 1;
            return true;
        }
        self.room = 0;
        false
    }
}

/// The text on one line of visible characters; others are escaped as in Rust strings: `\n`, `\u{1b}`.
/// Marks stay on the character that they belong to.
pub fn printable(text: &str) -> Cow<'_, str> {
    let mut filter = VisibilityFilter::default();
    if text.chars().all(|c| filter.shows(c)) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut filter = VisibilityFilter::default();
    text.chars().for_each(|c| push(&mut shown, &mut filter, c));
    shown.into()
}

/// The text with its line breaks, and otherwise as [`printable`] has it.
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut filter = VisibilityFilter::default();
    for c in text.chars() {
        let blank = match c {
            '\n' => "\n",
            '\t' => "    ",
            c => {
                push(&mut shown, &mut filter, c);
                continue;
            }
        };
        shown.push_str(blank);
        filter = VisibilityFilter::default();
    }
    shown
}

/// Displays a value as [`printable`] text.
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0.to_string()))
    }
}

/// Adds the character, or its escape.
fn push(shown: &mut String, filter: &mut VisibilityFilter, c: char) {
    if filter.shows(c) {
        shown.push(c);
        return;
    }
    let escaped = c.escape_debug();
    if escaped.len() > 1 {
        shown.extend(escaped);
    } else {
        shown.extend(c.escape_unicode());
    }
}

/// The JSON with invisible characters as `\u` escapes: an equal document.
pub fn visible_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if is_visible(c) || c == '\n' {
            shown.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_steers_the_terminal() {
        let hostile = "a\x1b[31m\u{9b}2J\r\u{7f}\u{202e}\\n é\n\tb";
        assert_eq!(
            printable(hostile),
            "a\\u{1b}[31m\\u{9b}2J\\r\\u{7f}\\u{202e}\\n é\\n\\tb"
        );
        assert_eq!(
            printable_lines(hostile),
            "a\\u{1b}[31m\\u{9b}2J\\r\\u{7f}\\u{202e}\\n é\n    b"
        );
        assert_eq!(
            visible_json("\"\u{9b}\u{7f}\u{e0001}é\""),
            "\"\\u009b\\u007f\\udb40\\udc01é\""
        );
    }

    #[test]
    fn what_cannot_be_seen_is_escaped_and_nothing_else() {
        let unseen = "\0\x07\x1b\x7f\u{80}\u{85}\u{9f}\u{a0}\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{180e}\
                      \u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\
                      \u{202e}\u{2060}\u{2064}\u{2066}\u{2067}\u{2068}\u{2069}\u{206a}\u{206f}\u{2800}\u{3000}\
                      \u{3164}\u{fe0f}\u{feff}\u{ffa0}\u{fff9}\u{fffb}\u{e000}\u{1d173}\u{e0001}\u{e007f}\u{e0100}";
        for c in unseen.chars() {
            assert!(!is_visible(c), "{c:?}");
            let shown = printable(c.encode_utf8(&mut [0; 4])).into_owned();
            assert!(
                shown.starts_with('\\') && shown.chars().all(is_visible),
                "{shown:?}"
            );
            assert_eq!(Printable(c).to_string(), shown);
        }
        let seen = "a \\ ' \" ~ é ß 漢 かな א ب 한 😀 – … \u{fffd}";
        assert_eq!(printable(seen), seen);
        assert_eq!(visible_json(seen), seen);
    }

    #[test]
    fn marks_stay_on_their_character_and_nowhere_else() {
        for seen in [
            "हिन्दी",
            "ภาษาไทยที่นี่",
            "Jose\u{301} Nu\u{308}n\u{303}ez",
            "e\u{301}\u{302}\u{303}\u{304}x",
            "עִבְרִית",
            "مُحَمَّد",
        ] {
            assert_eq!(printable(seen), seen);
            assert_eq!(printable_lines(seen), seen);
        }
        for (text, shown) in [
            ("\u{301}a", "\\u{301}a"),
            ("a \u{301}", "a \\u{301}"),
            ("a\n\u{301}\u{301}", "a\\n\\u{301}\\u{301}"),
            ("a\u{200b}\u{301}", "a\\u{200b}\\u{301}"),
            // One too many, and all behind it.
            (
                "a\u{301}\u{301}\u{301}\u{301}\u{302}\u{303}",
                "a\u{301}\u{301}\u{301}\u{301}\\u{302}\\u{303}",
            ),
            // Of no shape: joiners, selectors of a variant, tags.
            ("क\u{94d}\u{200d}ष", "क\u{94d}\\u{200d}ष"),
            (
                "a\u{200c}\u{fe0f}\u{e0100}\u{e0041}\u{34f}\u{180b}\u{180f}",
                "a\\u{200c}\\u{fe0f}\\u{e0100}\\u{e0041}\\u{34f}\\u{180b}\\u{180f}",
            ),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable(shown), shown);
        }
        assert_eq!(
            printable_lines("a\n\u{301}\t\u{301}"),
            "a\n\\u{301}    \\u{301}"
        );
    }
}
