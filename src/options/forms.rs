//! What the accessors of [`Options`] are asked for, written down while there is nothing to read: the schema of
//! config.yml is made from that, so the code that reads an option is all that has to say what it is.

use indexmap::IndexMap;
use serde_json::Value;

use super::{Mapping, Node, NodeKind, Options};

/// What was asked for, in this order.
#[derive(Debug, Default)]
pub(crate) struct OptionForms {
    /// Each option by its name.
    pub known: IndexMap<String, OptionForm>,
    /// Those without which there is a fault.
    pub required: Vec<String>,
    /// Whether all others are handed on, whatever they are called.
    pub takes_more: bool,
}

/// What one option is.
#[derive(Debug)]
pub(crate) struct OptionForm {
    pub kind: OptionKind,
    /// What it is if it is not given, if the accessor was told.
    pub default: Option<Value>,
}

/// What an option may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OptionKind {
    Text,
    /// Text that is never shown.
    Secret,
    /// A whole number in this range.
    Whole {
        least: i64,
        most: i64,
    },
    Number,
    /// A time in seconds.
    Seconds,
    Switch,
    Permissions,
    /// One of these.
    Word(Vec<&'static str>),
    /// A list of texts, or a single one.
    Texts,
    /// A list of texts.
    List,
    /// A list of texts, a single one, or a mapping of texts.
    Tags,
    /// A mapping of texts to texts.
    TextMapping,
    /// A mapping of texts to texts that are never shown.
    SecretMapping,
    Mapping,
    /// Known only to be refused if it holds anything.
    Refused,
    /// It does nothing, without a word.
    PassedOver,
    /// It does nothing, and if it holds anything, a warning says why.
    WithoutEffect(String),
}

impl OptionForms {
    /// What `read` asks for.
    pub fn of(read: impl FnOnce(&mut Options)) -> Self {
        let nothing = Node {
            line: 1,
            kind: NodeKind::Mapping(Mapping::new()),
            plain: false,
        };
        let mut options = Options::new("options", "option", 1, &nothing);
        options.forms = Some(Box::default());
        read(&mut options);
        options.forms.map(|forms| *forms).unwrap_or_default()
    }

    /// What the option is, if it is known.
    pub fn kind(&self, key: &str) -> Option<&OptionKind> {
        self.known.get(key).map(|form| &form.kind)
    }

    /// The first accessor knows best what it is; any may know the default.
    pub(super) fn note(&mut self, key: &str, kind: OptionKind, default: Option<Value>) {
        let form = self.known.entry(key.to_owned()).or_insert(OptionForm {
            kind,
            default: None,
        });
        form.default = form.default.take().or(default);
    }

    pub(super) fn note_required(&mut self, key: &str) {
        if !self.required.iter().any(|known| known == key) {
            self.required.push(key.to_owned());
        }
    }
}
