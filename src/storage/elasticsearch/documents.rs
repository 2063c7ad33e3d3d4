//! The documents that are made of a vCon, one for each of its parts.

use super::names;
use super::section::Section;
use crate::vcon::{OpenPart, Outgoing, Parts, VconError};

/// One part as it is indexed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) section: Section,
    /// Its place in the list.
    pub(super) number: usize,
    pub(super) index: String,
    /// JSON on one line.
    pub(super) json: String,
}

/// Makes the documents of a vCon, list by list.
pub(super) fn of(vcon: &Outgoing, prefix: &str) -> Result<Vec<Document>, VconError> {
    let parts = Parts::of(vcon)?;
    let common = common(vcon, &parts)?;
    let mut documents = Vec::new();
    for section in Section::ALL {
        for (number, mut part) in parts.list(section.name())?.into_iter().enumerate() {
            let word = section.word(&part);
            if section.parses_bodies()
                && let Some(body) = part.json_body()
            {
                part.set("body", body);
            }
            for (key, json) in &common {
                part.set(key, json.clone());
            }
            let mut json = String::new();
            part.write(&mut json);
            documents.push(Document {
                section,
                number,
                index: names::index(prefix, section, word.as_deref()),
                json,
            });
        }
    }
    Ok(documents)
}

/// What every document has, as JSON.
fn common(vcon: &Outgoing, parts: &Parts<'_>) -> Result<Vec<(&'static str, String)>, VconError> {
    let mut common = vec![("vcon_id", format!("\"{}\"", vcon.id))];
    let dialog = parts.list("dialog")?;
    if let Some(start) = dialog.first().and_then(|first| first.json("start")) {
        common.push(("started_at", start.to_owned()));
    }
    let attachments = parts.list("attachments")?;
    if let Some(tenant) = attachments.iter().find_map(tenant) {
        common.push(("tenant_id", tenant));
    }
    Ok(common)
}

/// The tenant's id, where an attachment says it: in an object, or in the JSON text of one.
fn tenant(attachment: &OpenPart<'_>) -> Option<String> {
    let purpose = attachment
        .text("purpose")
        .or_else(|| attachment.text("type"));
    if purpose.as_deref() != Some("tenant") {
        return None;
    }
    let text = attachment.text("body");
    let body = text.as_deref().or_else(|| attachment.json("body"))?;
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    let id = body.get("id").filter(|id| !id.is_null())?;
    Some(id.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::{Vcon, Version};

    const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    fn documents(text: &str, version: Version) -> Vec<(String, String)> {
        let mut vcon = Vcon::parse(ID.parse().unwrap(), text.to_owned()).unwrap();
        let documents = of(&vcon.outgoing(version), "p_").unwrap();
        documents
            .into_iter()
            .map(|it| (it.index, it.json))
            .collect()
    }

    #[test]
    fn each_part_is_a_document_of_its_index() {
        let text = r#"{
            "parties": [{"name": "Zoë", "role": "Agent"}, {"meta": {"role": "x"}}],
            "attachments": [
                {"type": "Order Form", "body": {"n": 1.0}},
                {"purpose": "tenant", "type": "x", "body": "{\"id\": 17}", "encoding": "json"},
                {"body": "[1", "encoding": "json"}
            ],
            "analysis": [{"type": "summary", "body": "short"}, {}],
            "dialog": [
                {"start": "2024-03-16T16:09:20Z", "body": "[1]", "encoding": "json", "vcon_id": 7},
                {"start": "2025-01-01T00:00:00Z"}
            ]
        }"#;
        let common =
            format!(r#""vcon_id":"{ID}","started_at":"2024-03-16T16:09:20Z","tenant_id":17"#);
        let expected = [
            ("p_vcon_parties_agent", r#""name":"Zoë","role":"Agent","#),
            ("p_vcon_parties", r#""meta":{"role": "x"},"#),
            (
                "p_vcon_attachments_order_form",
                r#""purpose":"Order Form","body":{"n": 1.0},"encoding":"json","#,
            ),
            (
                "p_vcon_attachments_tenant",
                r#""purpose":"tenant","type":"x","body":{"id": 17},"encoding":"json","#,
            ),
            (
                "p_vcon_attachments_unknown",
                r#""body":"[1","encoding":"json","#,
            ),
            (
                "p_vcon_analysis_summary",
                r#""type":"summary","body":"short","#,
            ),
            ("p_vcon_analysis_unknown", ""),
        ];
        let found = documents(text, Version::Current);
        for (found, (index, json)) in found.iter().zip(expected) {
            assert_eq!(found.0, index);
            assert_eq!(found.1, format!("{{{json}{common}}}"));
        }
        assert_eq!(found.len(), 9);
        assert_eq!(found[7].0, "p_vcon_dialog");
        assert!(found[7].1.contains(r#""body":"[1]""#), "{}", found[7].1);
        assert!(found[7].1.contains(&format!(r#""vcon_id":"{ID}""#)));
        assert_eq!(found[8].0, "p_vcon_dialog");
        assert!(found[8].1.contains(&common), "{}", found[8].1);
    }

    #[test]
    fn the_older_version_has_the_same_indices() {
        let text = r#"{"attachments": [
            {"purpose": "tenant", "body": "{\"id\":\"t\"}", "encoding": "json"}
        ]}"#;
        let found = documents(text, Version::V0_0_1);
        assert_eq!(found[0].0, "p_vcon_attachments_tenant");
        assert_eq!(
            found[0].1,
            format!(
                r#"{{"type":"tenant","body":{{"id":"t"}},"encoding":"none","vcon_id":"{ID}","tenant_id":"t"}}"#
            )
        );
    }

    #[test]
    fn a_vcon_without_dialogs_or_without_anything_has_no_start() {
        assert_eq!(documents("{}", Version::Current), []);
        for text in [
            r#"{"parties":[{}]}"#,
            r#"{"parties":[{}],"dialog":[]}"#,
            r#"{"parties":[{}],"attachments":[{"purpose":"tenant","body":"x"}]}"#,
        ] {
            let found = documents(text, Version::Current);
            assert_eq!(found[0].1, format!(r#"{{"vcon_id":"{ID}"}}"#), "{text}");
        }
    }
}
