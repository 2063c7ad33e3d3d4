//! Which index a part belongs to.

use super::section::Section;

/// The longest name of an index, in bytes.
const LONGEST: usize = 255;

/// The index for parts of a section that are distinguished by this word.
pub(super) fn index(prefix: &str, section: Section, word: Option<&str>) -> String {
    let mut name = format!("{prefix}{}", section.stem());
    if let Some(word) = word {
        name.push('_');
        name.extend(word.to_lowercase().chars().map(legal));
    }
    name.truncate(name.floor_char_boundary(LONGEST));
    name
}

/// The character, or what stands for it where the name of an index cannot have it.
fn legal(character: char) -> char {
    let forbidden = matches!(
        character,
        '\\' | '/' | '*' | '?' | '"' | '<' | '>' | '|' | ',' | '#' | ':'
    );
    if forbidden || character.is_whitespace() || character.is_control() {
        '_'
    } else {
        character
    }
}

/// What is wrong with a prefix; nothing where the names that begin with it are legal.
pub(super) fn fault(prefix: &str) -> Option<&'static str> {
    if prefix.starts_with(['-', '_', '+']) {
        Some("must not begin with -, _ or +")
    } else if prefix.to_lowercase() != prefix {
        Some("must be in lower case")
    } else if prefix
        .chars()
        .any(|character| legal(character) != character)
    {
        Some("must not hold spaces nor any of \\ / * ? \" < > | , # :")
    } else if prefix.len() > 100 {
        Some("must not be longer than 100 bytes")
    } else {
        None
    }
}

/// The section whose parts an index holds, by its name: that of an index that we write to, or of
/// one behind such a name (`vcon_dialog-000001`).
pub(super) fn section(prefix: &str, index: &str) -> Option<Section> {
    let name = index.strip_prefix(prefix)?;
    Section::ALL.into_iter().find(|section| {
        name.strip_prefix(section.stem())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '-']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_legal() {
        for (section, word, name) in [
            (Section::Parties, None, "p_vcon_parties"),
            (Section::Parties, Some("Agent"), "p_vcon_parties_agent"),
            (Section::Dialog, None, "p_vcon_dialog"),
            (
                Section::Analysis,
                Some("a/b\\c*d?e\"f<g>h|i j,k#l:m\nn"),
                "p_vcon_analysis_a_b_c_d_e_f_g_h_i_j_k_l_m_n",
            ),
            (Section::Attachments, Some("ÉTÉ"), "p_vcon_attachments_été"),
            (
                Section::Attachments,
                Some("-_+."),
                "p_vcon_attachments_-_+.",
            ),
        ] {
            assert_eq!(index("p_", section, word), name);
        }
        let long = index("p_", Section::Analysis, Some(&"é".repeat(300)));
        assert_eq!(long.len(), 254);
        assert!(long.ends_with('é'));
    }

    #[test]
    fn prefixes_that_no_index_can_have_are_refused() {
        for good in ["", "calls_", "a-b.c_", "größe_", ".hidden_"] {
            assert_eq!(fault(good), None, "{good}");
        }
        let long = "x".repeat(101);
        for bad in [
            "-a", "_a", "+a", "Calls_", "a b", "a/b", "a*", "a,b", "a:b", "a#", &long,
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn an_index_is_known_by_its_name() {
        for (name, expected) in [
            ("p_vcon_parties", Some(Section::Parties)),
            ("p_vcon_parties_agent", Some(Section::Parties)),
            ("p_vcon_dialog-000001", Some(Section::Dialog)),
            ("p_vcon_analysis_x", Some(Section::Analysis)),
            ("p_vcon_attachments_x", Some(Section::Attachments)),
            ("p_vcon_dialogue", None),
            ("p_vcon_archive", None),
            ("vcon_dialog", None),
        ] {
            assert_eq!(section("p_", name), expected, "{name}");
        }
    }
}
