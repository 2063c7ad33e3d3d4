//! Whose fault a refusal is: the vCon's, or that of the index?
//!
//! The server refuses a document with the same status if it does not fit the index, and if nothing fits
//! it: the template names an analyzer that is not there, the index takes no ids, a pipeline is broken.
//! So a refused document is sent again, and beside it, in the same request, one that has nothing but
//! the field that all have. What refuses both alike is the fault of the index.
//!
//! ```text
//! the document │ the minimal one        │ whose fault
//! ─────────────┼────────────────────────┼────────────────────────────────────
//! taken now    │                        │ the place's: it has passed
//! refused      │ taken                  │ the vCon's
//! refused      │ refused alike          │ the place's
//! refused      │ refused otherwise      │ in doubt: what others meet will tell
//! ```
//!
//! The same request removes the minimal document again.

use std::io::Read;

use serde_json::json;

use super::bulk::{self, Verdict};
use super::documents::Document;
use super::fault::{self, Blame};
use crate::vcon::VconId;

/// A trial sends no more documents than this again.
const MOST: usize = 20;

/// A request that tells whose fault a refusal is.
pub(super) struct Trial {
    body: String,
    /// How many documents are sent again, each with a minimal one after it.
    pairs: usize,
}

impl Trial {
    /// Of the first doubtful document of each index.
    pub(super) fn of(id: &VconId, documents: &[Document], doubtful: &[(String, usize)]) -> Self {
        let mut tried: Vec<&Document> = Vec::new();
        for (index, number) in doubtful {
            let is_refused = |it: &&Document| it.index == *index && it.number == *number;
            let is_tried = tried.len() == MOST || tried.iter().any(|it| it.index == *index);
            if !is_tried && let Some(document) = documents.iter().find(is_refused) {
                tried.push(document);
            }
        }
        let nobody = VconId::random();
        let minimal = json!({"vcon_id": nobody.as_str()}).to_string();
        let mut body = String::new();
        let mut action = |verb: &str, index: &str, id: String, document: Option<&str>| {
            let action = json!({verb: {"_index": index, "_id": id}}).to_string();
            for line in std::iter::once(action.as_str()).chain(document) {
                body.push_str(line);
                body.push('\n');
            }
        };
        for (place, document) in tried.iter().enumerate() {
            let (index, own) = (&document.index, format!("{id}_{}", document.number));
            action("index", index, own, Some(&document.json));
            let other = format!("{nobody}_{place}");
            action("index", index, other, Some(&minimal));
        }
        for (place, document) in tried.iter().enumerate() {
            action("delete", &document.index, format!("{nobody}_{place}"), None);
        }
        Self {
            body,
            pairs: tried.len(),
        }
    }

    pub(super) fn body(&self) -> &str {
        &self.body
    }

    /// The most bytes that the answer may have.
    pub(super) fn most(&self) -> u64 {
        bulk::most(3 * self.pairs, &self.body)
    }

    /// Reads the answer: what became of each action, of no more than there are.
    pub(super) fn read(&self, reader: &mut dyn Read) -> serde_json::Result<Verdicts> {
        let mut verdicts = Verdicts::new();
        bulk::read(reader, &mut |verdict| {
            if verdicts.len() < 3 * self.pairs {
                verdicts.push(verdict);
            }
        })?;
        Ok(verdicts)
    }

    /// Who is to blame, by the answer.
    pub(super) fn blame(&self, answer: &Verdicts) -> Blame {
        let pairs = answer.chunks_exact(2).take(self.pairs);
        let blames: Vec<Blame> = pairs.map(|pair| blame_of(&pair[0], &pair[1])).collect();
        if blames.contains(&Blame::VCon) {
            Blame::VCon
        } else if blames.is_empty() || blames.contains(&Blame::Doubt) {
            Blame::Doubt
        } else {
            Blame::Place
        }
    }

    /// Whether the answer says that a minimal document is still there.
    pub(super) fn leaves_something(&self, answer: &Verdicts) -> bool {
        let is_done = |place: usize| answer.get(place) == Some(&Some(Verdict::Done));
        (0..self.pairs).any(|pair| is_done(2 * pair + 1) && !is_done(2 * self.pairs + pair))
    }
}

/// What became of each action, as far as the answer says.
pub(super) type Verdicts = Vec<Option<Verdict>>;

/// The table in the module's head.
fn blame_of(document: &Option<Verdict>, minimal: &Option<Verdict>) -> Blame {
    match (document, minimal) {
        (Some(Verdict::Done), _) => Blame::Place,
        (Some(Verdict::Refused(status, reason)), minimal) => {
            match (fault::blame(*status, reason), minimal) {
                (Blame::Place, _) => Blame::Place,
                (_, Some(Verdict::Done)) => Blame::VCon,
                (_, Some(Verdict::Refused(same, other)))
                    if same == status && other.is_as(reason) =>
                {
                    Blame::Place
                }
                (_, Some(Verdict::Refused(status, other))) => match fault::blame(*status, other) {
                    Blame::Place => Blame::Place,
                    Blame::VCon | Blame::Doubt => Blame::Doubt,
                },
                (_, None) => Blame::Doubt,
            }
        }
        (None, _) => Blame::Doubt,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::super::section::Section;
    use super::*;

    const TAKEN: &str = r#"{"index":{"status":201}}"#;
    const REMOVED: &str = r#"{"delete":{"status":200}}"#;
    const ABSENT: &str = r#"{"delete":{"status":404}}"#;
    const MISFIT: &str =
        r#"{"index":{"status":400,"error":{"type":"t","reason":"field [a] of 7"}}}"#;
    const ALIKE: &str =
        r#"{"index":{"status":400,"error":{"type":"t","reason":"field [a] of 8"}}}"#;
    const OTHERWISE: &str = r#"{"index":{"status":400,"error":{"type":"t","reason":"no field"}}}"#;
    const OTHER_KIND: &str =
        r#"{"index":{"status":400,"error":{"type":"u","reason":"field [a] of 7"}}}"#;
    const OTHER_STATUS: &str = r#"{"index":{"status":500,"error":{"type":"t","reason":"field [a] of 7","header":{"processor_type":"set"}}}}"#;
    const BUSY: &str = r#"{"index":{"status":429}}"#;
    const UNKNOWN: &str = r#"{"index":{}}"#;

    fn document(index: &str, number: usize) -> Document {
        Document {
            section: Section::Dialog,
            number,
            index: index.to_owned(),
            json: format!("{{\"number\":{number}}}"),
        }
    }

    /// The answer with these items, as it is read.
    fn answer(items: &[&str]) -> Verdicts {
        let text = format!("{{\"items\":[{}]}}", items.join(","));
        let trial = Trial {
            body: String::new(),
            pairs: MOST,
        };
        trial.read(&mut text.as_bytes()).unwrap()
    }

    fn trial(documents: &[Document]) -> Trial {
        let places = documents.iter().map(|it| (it.index.clone(), it.number));
        let doubtful: Vec<(String, usize)> = places.collect();
        Trial::of(&VconId::random(), documents, &doubtful)
    }

    #[test]
    fn what_refuses_the_minimal_document_as_well_is_the_places_fault() {
        let trial = trial(&[document("a", 0)]);
        for (items, expected) in [
            (&[MISFIT, TAKEN, REMOVED][..], Blame::VCon),
            (&[MISFIT, TAKEN], Blame::VCon),
            (&[MISFIT, ALIKE, ABSENT], Blame::Place),
            (&[MISFIT, OTHERWISE, ABSENT], Blame::Doubt),
            (&[MISFIT, OTHER_KIND, ABSENT], Blame::Doubt),
            (&[MISFIT, OTHER_STATUS, ABSENT], Blame::Doubt),
            (&[MISFIT, BUSY, ABSENT], Blame::Place),
            (&[BUSY, TAKEN, REMOVED], Blame::Place),
            (&[TAKEN, TAKEN, REMOVED], Blame::Place),
            (&[TAKEN, MISFIT, ABSENT], Blame::Place),
            (&[MISFIT, UNKNOWN, ABSENT], Blame::Doubt),
            (&[UNKNOWN, TAKEN, REMOVED], Blame::Doubt),
            (&[MISFIT], Blame::Doubt),
            (&[], Blame::Doubt),
        ] {
            assert_eq!(trial.blame(&answer(items)), expected, "{items:?}");
        }
        assert_eq!(trial.blame(&Verdicts::new()), Blame::Doubt);
    }

    #[test]
    fn one_document_that_is_the_vcons_fault_is_enough_and_one_in_doubt_remains_so() {
        let trial = trial(&[document("a", 0), document("b", 0)]);
        for (pairs, expected) in [
            ([MISFIT, ALIKE, MISFIT, TAKEN], Blame::VCon),
            ([MISFIT, OTHERWISE, MISFIT, TAKEN], Blame::VCon),
            ([MISFIT, ALIKE, MISFIT, OTHERWISE], Blame::Doubt),
            ([MISFIT, ALIKE, MISFIT, ALIKE], Blame::Place),
        ] {
            let items = [&pairs[..], &[REMOVED, ABSENT]].concat();
            assert_eq!(trial.blame(&answer(&items)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn one_document_of_each_index_is_sent_again_and_each_minimal_one_removed() {
        let documents = [document("a", 0), document("a", 1), document("b", 3)];
        let trial = trial(&documents);
        let lines: Vec<Value> = trial
            .body()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let verbs: Vec<String> = lines
            .iter()
            .map(
                |line| match line.as_object().unwrap().iter().next().unwrap() {
                    (verb, about) if about.is_object() => format!("{verb} {}", about["_index"]),
                    (field, value) if field == "number" => value.to_string(),
                    (field, _) => field.clone(),
                },
            )
            .collect();
        let expected = [
            r#"index "a""#,
            "0",
            r#"index "a""#,
            "vcon_id",
            r#"index "b""#,
            "3",
            r#"index "b""#,
            "vcon_id",
            r#"delete "a""#,
            r#"delete "b""#,
        ];
        assert_eq!(verbs, expected);
        assert_eq!(lines[2]["index"]["_id"], lines[8]["delete"]["_id"]);
        assert_eq!(lines[6]["index"]["_id"], lines[9]["delete"]["_id"]);
        assert_ne!(lines[2]["index"]["_id"], lines[0]["index"]["_id"]);
        assert!(trial.body().ends_with('\n'));
    }

    #[test]
    fn a_trial_has_an_end() {
        let documents: Vec<Document> = (0..100).map(|n| document(&format!("i{n}"), n)).collect();
        let trial = trial(&documents);
        assert_eq!(trial.body().lines().count(), MOST * 5);
        assert_eq!(trial.pairs, MOST);
    }

    #[test]
    fn a_minimal_document_that_is_not_removed_is_noticed() {
        let trial = trial(&[document("a", 0), document("b", 0)]);
        for (items, is_left) in [
            ([MISFIT, TAKEN, MISFIT, TAKEN, REMOVED, REMOVED], false),
            ([MISFIT, ALIKE, MISFIT, TAKEN, ABSENT, REMOVED], false),
            ([MISFIT, TAKEN, MISFIT, TAKEN, REMOVED, BUSY], true),
            ([MISFIT, TAKEN, MISFIT, ALIKE, BUSY, ABSENT], true),
        ] {
            assert_eq!(
                trial.leaves_something(&answer(&items)),
                is_left,
                "{items:?}"
            );
        }
        assert!(trial.leaves_something(&answer(&[MISFIT, TAKEN])));
        assert!(!trial.leaves_something(&Verdicts::new()));
    }
}
