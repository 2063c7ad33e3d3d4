//! Which vCons a link takes: a sample of them (`sampling_rate`), those with something in them (`only_if`).

use crate::link::sampler;
use crate::options::Options;
use crate::vcon::{Entry, Vcon, VconError};

/// The vCons that a link takes.
pub(in crate::link) struct Selection {
    /// The link's name.
    seed: String,
    rate: f64,
    only_if: Option<OnlyIf>,
}

/// A vCon is taken if an entry of `section` with this type or purpose has `includes` in its body.
struct OnlyIf {
    section: Section,
    name: String,
    includes: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Analysis,
    Attachments,
}

impl Selection {
    /// Reads `sampling_rate` and `only_if`.
    pub fn open(options: &mut Options) -> Self {
        let rate = options.number_or("sampling_rate", 1.0);
        if !(0.0..=1.0).contains(&rate) {
            options.fault(
                "sampling_rate",
                "is a part of the vCons, from 0 (none) to 1 (all)",
            );
        }
        Self {
            seed: options.owner().to_owned(),
            rate,
            only_if: OnlyIf::open(options),
        }
    }

    /// Whether the link takes this vCon.
    ///
    /// The sample is drawn by the link's name and the vCon's id, not anew each time: a vCon comes back to the
    /// link for each of its dialogs, and after each failure, and must get the same answer.
    pub fn takes(&self, vcon: &Vcon) -> Result<bool, VconError> {
        if sampler::lot(&self.seed, vcon.id()) >= self.rate {
            return Ok(false);
        }
        let only_if = self.only_if.as_ref();
        only_if.map_or(Ok(true), |only_if| only_if.holds(vcon))
    }
}

impl OnlyIf {
    fn open(options: &mut Options) -> Option<Self> {
        let [mut section, mut kind, mut purpose, mut includes] = [const { None }; 4];
        for (key, value) in options.string_map("only_if") {
            match key.as_str() {
                "section" => section = Some(value),
                "type" => kind = Some(value),
                "purpose" => purpose = Some(value),
                "includes" => includes = Some(value),
                _ => options.warn(
                    "only_if",
                    format!("unknown key `{key}` has no effect (known: section, type, purpose, includes)"),
                ),
            }
        }
        if section.is_none() && kind.is_none() && purpose.is_none() && includes.is_none() {
            return None;
        }
        let section = match section.as_deref() {
            Some("analysis") => Some(Section::Analysis),
            Some("attachments") => Some(Section::Attachments),
            Some(_) => {
                options.fault("only_if", "its `section` is analysis or attachments");
                None
            }
            None => {
                options.fault("only_if", "has no `section`: analysis or attachments");
                None
            }
        };
        let name = purpose.or(kind);
        if name.is_none() {
            options.fault("only_if", "has no `type` (or `purpose`)");
        }
        Some(Self {
            section: section?,
            name: name?,
            includes: includes.unwrap_or_default(),
        })
    }

    fn holds(&self, vcon: &Vcon) -> Result<bool, VconError> {
        Ok(match self.section {
            // One tag of the list, not a part of one.
            Section::Attachments if self.name == "tags" => {
                let tags = vcon.tags()?;
                tags.iter()
                    .any(|(name, value)| format!("{name}:{value}") == self.includes)
            }
            Section::Analysis => vcon.analysis()?.any(|it| self.fits(&it)),
            Section::Attachments => vcon.attachments()?.any(|it| self.fits(&it)),
        })
    }

    fn fits(&self, entry: &Entry<'_>) -> bool {
        let is_named = |key| entry.text(key).as_deref() == Some(&self.name);
        let is_it = match self.section {
            Section::Analysis => is_named("type"),
            Section::Attachments => is_named("purpose") || is_named("type"),
        };
        is_it && includes(entry, &self.includes)
    }
}

/// Whether a text is in the body of an entry: in its text, in its JSON, or in a string of that.
pub(in crate::link) fn includes(entry: &Entry<'_>, text: &str) -> bool {
    if entry.text("body").is_some_and(|body| body.contains(text)) {
        return true;
    }
    let Some(body) = entry.body() else {
        return text.is_empty();
    };
    let value = serde_json::from_str(body.get()).unwrap_or_default();
    body.get().contains(text) || is_in(&value, text)
}

fn is_in(value: &serde_json::Value, text: &str) -> bool {
    use serde_json::Value;
    match value {
        Value::String(string) => string.contains(text),
        Value::Array(items) => items.iter().any(|item| is_in(item, text)),
        Value::Object(members) => {
            let mut members = members.iter();
            members.any(|(key, value)| key.contains(text) || is_in(value, text))
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::VconId;

    fn selection(yaml: &str) -> Selection {
        let mut options = Options::from_yaml(yaml);
        let selection = Selection::open(&mut options);
        assert_eq!(options.faults(), [""; 0], "{yaml}");
        selection
    }

    fn takes(yaml: &str, document: &str) -> bool {
        let vcon = Vcon::read(VconId::random(), document).unwrap();
        selection(yaml).takes(&vcon).unwrap()
    }

    #[test]
    fn a_vcon_is_taken_if_an_entry_has_the_text_in_it() {
        let document = r#"{"analysis":[{"type":"summary","body":"NEEDS REVIEW soon"},
            {"type":"facts","body":{"mood":"say \"hi\"","n":[1,"deep"]}},
            {"type":"facts","body":"{\"text\": \"as text\"}","encoding":"json"},{"type":"bare"}],
            "attachments":[{"purpose":"tags","body":"[\"desk:north\"]","encoding":"json"},
            {"type":"note","body":"old"},{"purpose":"lead","body":["vip"]}]}"#;
        for (only_if, is_taken) in [
            ("section: analysis, type: summary, includes: REVIEW", true),
            (
                "section: analysis, purpose: summary, includes: REVIEW",
                true,
            ),
            ("section: analysis, type: summary, includes: review", false),
            ("section: analysis, type: other, includes: REVIEW", false),
            (
                "section: analysis, type: facts, includes: 'say \"hi\"'",
                true,
            ),
            ("section: analysis, type: facts, includes: deep", true),
            (
                "section: analysis, type: facts, includes: '\"text\": \"as'",
                true,
            ),
            ("section: analysis, type: facts, includes: mood", true),
            ("section: analysis, type: bare, includes: x", false),
            ("section: analysis, type: bare", true),
            (
                "section: attachments, type: tags, includes: 'desk:north'",
                true,
            ),
            ("section: attachments, type: tags, includes: desk", false),
            ("section: attachments, type: note, includes: old", true),
            ("section: attachments, purpose: lead, includes: vip", true),
            ("section: attachments, purpose: none, includes: vip", false),
        ] {
            let yaml = format!("{{only_if: {{{only_if}}}}}");
            assert_eq!(takes(&yaml, document), is_taken, "{only_if}");
        }
        assert!(takes("{only_if: {}}", document));
        assert!(takes("{}", document));
    }

    #[test]
    fn the_sample_is_as_large_as_asked_and_always_the_same() {
        let mut options = Options::from_yaml("{sampling_rate: 0.3}");
        options.set_owner("summarize");
        let selection = Selection::open(&mut options);
        let vcons: Vec<Vcon> = (0..2000)
            .map(|_| Vcon::read(VconId::random(), "{}").unwrap())
            .collect();
        let drawn = || -> Vec<bool> {
            let takes = |vcon| selection.takes(vcon).unwrap();
            vcons.iter().map(takes).collect()
        };
        let taken = drawn().iter().filter(|it| **it).count();
        assert!((480..720).contains(&taken), "{taken}");
        assert_eq!(drawn(), drawn());
        for _ in 0..100 {
            assert!(takes("{sampling_rate: 1}", "{}"));
            assert!(!takes("{sampling_rate: 0}", "{}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_fault() {
        for text in [
            "{sampling_rate: 2}",
            "{sampling_rate: -1}",
            "{only_if: {type: a}}",
            "{only_if: {section: parties, type: a}}",
            "{only_if: {section: analysis, includes: a}}",
            "{only_if: [a]}",
        ] {
            let mut options = Options::from_yaml(text);
            Selection::open(&mut options);
            assert_eq!(options.faults().len(), 1, "{text}: {:?}", options.faults());
        }
    }
}
