//! The lists of a vCon whose parts are indexed.

use crate::vcon::OpenPart;

/// One of these lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    /// Who took part.
    Parties,
    /// What came with it.
    Attachments,
    /// What was made of it.
    Analysis,
    /// What was said.
    Dialog,
}

impl Section {
    pub(super) const ALL: [Self; 4] = [
        Self::Parties,
        Self::Attachments,
        Self::Analysis,
        Self::Dialog,
    ];

    /// The list's name in the document.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parties => "parties",
            Self::Attachments => "attachments",
            Self::Analysis => "analysis",
            Self::Dialog => "dialog",
        }
    }

    /// What the names of its indices begin with, after the prefix.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Self::Parties => "vcon_parties",
            Self::Attachments => "vcon_attachments",
            Self::Analysis => "vcon_analysis",
            Self::Dialog => "vcon_dialog",
        }
    }

    /// The word that tells the indices of the section apart.
    pub(super) fn word(self, part: &OpenPart<'_>) -> Option<String> {
        let text = |key| part.text(key).filter(|text| !text.is_empty());
        let unknown = || Some("unknown".to_owned());
        match self {
            Self::Parties => text("role"),
            Self::Attachments => text("purpose").or_else(|| text("type")).or_else(unknown),
            Self::Analysis => text("type").or_else(unknown),
            Self::Dialog => None,
        }
    }

    /// Whether a body that is JSON text is indexed as what it says. Dialogs share one index, in
    /// which most bodies are plain text: an object among them would be refused.
    pub(super) fn parses_bodies(self) -> bool {
        matches!(self, Self::Attachments | Self::Analysis)
    }
}
