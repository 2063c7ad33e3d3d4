//! One mapping of `config.yml`, read by accessors that record every fault.

use std::any::Any;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::error::{Fault, listed};
use self::forms::{OptionForms, OptionKind};
use self::substitution::Environment;
use self::yaml::{Mapping, Node, NodeKind, joined};
use crate::secret::Secret;
use crate::spelling::did_you_mean;

pub(crate) mod error;
pub(crate) mod forms;
pub(crate) mod scalars;
pub(crate) mod substitution;
pub(crate) mod yaml;

/// The most that an option in seconds can say: some thirty years.
const MOST_SECONDS: f64 = 1e9;

/// One module's `options:`, read by accessors that record every fault.
///
/// An accessor gives the option's value, or the default where it is absent, `null` or faulty; of a
/// number or switch also where it is an empty text. A faulty option makes the whole configuration
/// fail, so what it was replaced by is never used.
pub struct Options {
    path: String,
    noun: &'static str,
    line: usize,
    entries: Mapping,
    asked: Vec<String>,
    /// Keys without an effect, of which all is said.
    told: Vec<String>,
    /// It is no mapping at all: what is missing in it need not be reported as well.
    is_broken: bool,
    pub(crate) faults: Vec<Fault>,
    pub(crate) warnings: Vec<Fault>,
    /// Where values come from that do not stand in the file; `None` once they have been filled in.
    environment: Option<Arc<Environment>>,
    /// The single values as they stand in the file, where something was filled in.
    written: HashMap<String, String>,
    owner: String,
    looked_up: Arc<[Secret]>,
    common: Common,
    /// What is asked for, if that is to be known.
    forms: Option<Box<OptionForms>>,
}

/// What the lanes of a process share of one link or storage; the module says what it is.
#[derive(Clone, Default)]
pub(crate) struct Common(Arc<OnceLock<Arc<dyn Any + Send + Sync>>>);

/// Whether a single string counts as a list of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lone {
    /// It does.
    Counts,
    /// It is a fault.
    Refused,
}

impl Options {
    /// The entries of `node`, which stands under the key `path` on `line`.
    pub(crate) fn new(path: &str, noun: &'static str, line: usize, node: &Node) -> Self {
        let mut faults = Vec::new();
        let entries = match &node.kind {
            NodeKind::Mapping(entries) => entries.clone(),
            other if other.is_empty() => Mapping::new(),
            other => {
                let message = format!("is {}, not a mapping", other.described());
                faults.push(Fault::at(line, path, message));
                Mapping::new()
            }
        };
        Self {
            path: path.to_owned(),
            noun,
            line,
            entries,
            asked: Vec::new(),
            told: Vec::new(),
            is_broken: !faults.is_empty(),
            faults,
            warnings: Vec::new(),
            environment: None,
            written: HashMap::new(),
            owner: String::new(),
            looked_up: Arc::new([]),
            common: Common::default(),
            forms: None,
        }
    }

    fn note(&mut self, key: &str, kind: OptionKind, default: Option<serde_json::Value>) {
        if let Some(forms) = &mut self.forms {
            forms.note(key, kind, default);
        }
    }

    pub(crate) fn set_common(&mut self, common: &Common) {
        self.common = common.clone();
    }

    /// What everything that is opened from the same entry of the configuration has in common.
    pub fn common<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let common = self.common.0.get_or_init(|| Arc::<T>::default());
        let common = Arc::clone(common).downcast();
        // A module asks for one type alone.
        common.unwrap_or_default()
    }

    pub(crate) fn set_owner(&mut self, name: &str) {
        name.clone_into(&mut self.owner);
    }

    pub(crate) fn set_looked_up(&mut self, values: &Arc<[Secret]>) {
        self.looked_up = Arc::clone(values);
    }

    /// The values that came from variables and files, which no message may show.
    pub fn looked_up(&self) -> &[Secret] {
        &self.looked_up
    }

    /// The name of the link or storage whose options these are.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// A mapping of anything, as JSON.
    pub fn json(&mut self, key: &str) -> Option<String> {
        self.note(key, OptionKind::Mapping, None);
        self.mapping(key).map(|entries| scalars::object(&entries))
    }

    /// Everything that has not been asked for, as JSON. What stands in the mapping `key` is taken
    /// as if it stood beside it, for names that mean something else there.
    pub fn rest_as_json(&mut self, key: &str) -> String {
        self.note(key, OptionKind::Mapping, None);
        if let Some(forms) = &mut self.forms {
            forms.takes_more = true;
        }
        let within = self.mapping(key).unwrap_or_default();
        let mut rest = Mapping::new();
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            if self.asked.contains(&name) {
                continue;
            }
            // An empty value too is handed on.
            self.node(&name);
            rest.extend(
                self.entries
                    .get_key_value(&name)
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
        }
        rest.extend(within);
        scalars::object(&rest)
    }

    /// The whole mapping as JSON, with everything filled in.
    pub(crate) fn all_as_json(&mut self) -> String {
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            self.node(&name);
        }
        scalars::object(&self.entries)
    }

    /// The options in the mapping `key`, to be read by accessors of their own and given back by
    /// [`Options::adopt`].
    pub fn within(&mut self, key: &str) -> Self {
        self.note(key, OptionKind::Mapping, None);
        if !self.asked.iter().any(|asked| asked == key) {
            self.asked.push(key.to_owned());
        }
        let nothing = Node {
            line: self.line_of(key),
            kind: NodeKind::Null,
            plain: true,
        };
        // What is in it is filled in where it is asked for.
        let entry = self.entries.get(key);
        let node = entry.map_or(&nothing, |entry| &entry.value);
        let path = joined(&self.path, key);
        let mut within = Self::new(&path, self.noun, self.line_of(key), node);
        within.environment.clone_from(&self.environment);
        within.owner.clone_from(&self.owner);
        within.looked_up = Arc::clone(&self.looked_up);
        within
    }

    /// Takes what was found in the mapping `key`, of which all is read.
    pub fn adopt(&mut self, key: &str, mut within: Self) {
        within.finish();
        self.faults.append(&mut within.faults);
        self.warnings.append(&mut within.warnings);
        let (line, entries) = (within.line, within.into_entries());
        match self.entries.get_mut(key) {
            Some(entry) if matches!(entry.value.kind, NodeKind::Mapping(_)) => {
                entry.value.kind = NodeKind::Mapping(entries);
            }
            // What is in it came from variables.
            _ if !entries.is_empty() => {
                let kind = NodeKind::Mapping(entries);
                let plain = false;
                let value = Node { line, kind, plain };
                self.entries
                    .insert(key.to_owned(), yaml::Entry { line, value });
            }
            _ => {}
        }
    }

    /// What was asked for and is given, as JSON.
    pub fn known_as_json(&self) -> String {
        let mut known = self.entries.clone();
        known.retain(|key, _| self.asked.contains(key));
        scalars::object(&known)
    }

    fn mapping(&mut self, key: &str) -> Option<Mapping> {
        match self.value(key)? {
            (_, NodeKind::Mapping(entries)) => Some(entries),
            (_, empty) if empty.is_empty() => Some(Mapping::new()),
            (line, other) => {
                self.mismatch(key, line, &other, "a mapping");
                None
            }
        }
    }

    /// Whether the option is there and not `null`.
    pub fn is_given(&self, key: &str) -> bool {
        let entry = self.entries.get(key);
        entry.is_some_and(|entry| !matches!(entry.value.kind, NodeKind::Null))
    }

    /// Whether `null` stands under `key`.
    pub fn is_null(&self, key: &str) -> bool {
        let entry = self.entries.get(key);
        entry.is_some_and(|entry| matches!(entry.value.kind, NodeKind::Null))
    }

    /// The time in seconds under `key`, if it is given and its module has asked for it.
    pub(crate) fn time_given(&self, key: &str) -> Option<Duration> {
        let is_known = self.asked.iter().any(|asked| asked == key);
        let seconds: f64 = match &self.entries.get(key).filter(|_| is_known)?.value {
            Node {
                kind: NodeKind::Scalar(text),
                plain,
                ..
            } => scalars::any(text.trim(), *plain)?,
            _ => return None,
        };
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// A collection that may be empty, but must be there.
    pub fn require(&mut self, key: &str) {
        if let Some(forms) = &mut self.forms {
            forms.note_required(key);
        }
        if !self.is_given(key) && !self.is_broken {
            self.fault(key, "is required");
        }
    }

    /// The same, with values from variables and files filled in as they are asked for.
    pub(crate) fn filled_from(mut self, environment: &Arc<Environment>) -> Self {
        self.environment = Some(Arc::clone(environment));
        self
    }

    /// A string.
    pub fn string(&mut self, key: &str) -> Option<String> {
        self.note(key, OptionKind::Text, None);
        self.scalar(key, "a string")
    }

    /// A string, or `default` where there is none.
    pub fn string_or(&mut self, key: &str, default: &str) -> String {
        self.note(key, OptionKind::Text, Some(default.into()));
        self.string(key).unwrap_or_else(|| default.to_owned())
    }

    /// A string that must be there and not be empty.
    pub fn required_string(&mut self, key: &str) -> String {
        if let Some(forms) = &mut self.forms {
            forms.note_required(key);
        }
        let before = self.faults.len();
        let value = self.string(key).unwrap_or_default();
        if value.is_empty() && self.faults.len() == before && !self.is_broken {
            self.fault(key, "is required");
        }
        value
    }

    /// A string that is never shown. It may stand in a file that the option `<key>_file` names.
    pub fn secret(&mut self, key: &str) -> Option<Secret> {
        self.note(key, OptionKind::Secret, None);
        let given = self.string(key);
        let found = self.read_file_of(key, given.is_some());
        given.or(found).map(Secret::new)
    }

    /// A string that is not empty: an empty one counts as none.
    pub fn filled_string(&mut self, key: &str) -> Option<String> {
        self.string(key).filter(|text| !text.trim().is_empty())
    }

    /// The same of a string that is never shown.
    pub fn filled_secret(&mut self, key: &str) -> Option<Secret> {
        self.secret(key).filter(|it| !it.reveal().trim().is_empty())
    }

    /// One of the words `known`; `default` if none is given. Another one is a fault, and `None`.
    pub fn word_or(
        &mut self,
        key: &str,
        default: &'static str,
        known: &[&'static str],
    ) -> Option<&'static str> {
        self.note(key, OptionKind::Word(known.to_vec()), Some(default.into()));
        let Some(text) = self.string(key) else {
            return (!self.is_given(key)).then_some(default);
        };
        self.known_word(key, &text, known)
    }

    /// One of the words `known`, which must be given.
    pub fn required_word(&mut self, key: &str, known: &[&'static str]) -> Option<&'static str> {
        self.note(key, OptionKind::Word(known.to_vec()), None);
        let text = self.required_string(key);
        if text.is_empty() {
            return None;
        }
        self.known_word(key, &text, known)
    }

    fn known_word(
        &mut self,
        key: &str,
        text: &str,
        known: &[&'static str],
    ) -> Option<&'static str> {
        let word = known.iter().copied().find(|word| *word == text);
        if word.is_none() {
            let expected = match known {
                [first @ .., last] if !first.is_empty() => {
                    format!("{} or {last}", first.join(", "))
                }
                _ => known.concat(),
            };
            self.fault_of_value(key, text, &expected);
        }
        word
    }

    /// A whole number within `range`, quoted or not.
    pub fn integer_or(&mut self, key: &str, default: i64, range: RangeInclusive<i64>) -> i64 {
        let (least, most) = (*range.start(), *range.end());
        self.note(key, OptionKind::Whole { least, most }, Some(default.into()));
        self.integer(key, range).unwrap_or(default)
    }

    /// The same if it is given.
    pub(crate) fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let (least, most) = (*range.start(), *range.end());
        self.note(key, OptionKind::Whole { least, most }, None);
        let expected = format!("a whole number from {least} to {most}");
        self.parsed(key, &expected, |text, plain| {
            scalars::whole(text, plain).filter(|number| range.contains(number))
        })
    }

    /// A yes or no, in the words of YAML 1.1 or as 1 or 0, quoted or not.
    pub fn bool_or(&mut self, key: &str, default: bool) -> bool {
        self.note(key, OptionKind::Switch, Some(default.into()));
        self.parsed(key, "true or false", |text, _| {
            match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Some(true),
                "false" | "no" | "off" | "0" => Some(false),
                _ => None,
            }
        })
        .unwrap_or(default)
    }

    /// A time in seconds, fractions allowed; not negative.
    pub fn seconds_or(&mut self, key: &str, default: f64) -> Duration {
        self.note(key, OptionKind::Seconds, Some(default.into()));
        let seconds = self.parsed(key, "a number of seconds, 0 or more", |text, plain| {
            let seconds = scalars::any(text, plain)?;
            (0.0..=MOST_SECONDS).contains(&seconds).then_some(seconds)
        });
        Duration::try_from_secs_f64(seconds.unwrap_or(default)).unwrap_or_default()
    }

    /// Permissions of a file, in octal: `0o644`, `0644`, `'0644'`; or as the decimal number that
    /// programs which write YAML make of that, `420`.
    pub fn mode_or(&mut self, key: &str, default: u32) -> u32 {
        let shown = format!("0o{default:o}");
        self.note(key, OptionKind::Permissions, Some(shown.into()));
        let expected = "file permissions in octal, as in 0o644 or '0644', or their decimal number";
        self.parsed(key, expected, scalars::mode).unwrap_or(default)
    }

    /// A number, quoted or not.
    pub fn number_or(&mut self, key: &str, default: f64) -> f64 {
        self.note(key, OptionKind::Number, Some(default.into()));
        self.parsed(key, "a number", scalars::any)
            .unwrap_or(default)
    }

    /// A list of strings; a single string counts as a list of one.
    pub fn strings(&mut self, key: &str) -> Vec<String> {
        let items = self.items(key, Lone::Counts);
        items.into_iter().map(|(_, text)| text).collect()
    }

    /// A mapping of strings to strings that are never shown; one that is `null` is not given.
    pub fn headers(&mut self, key: &str) -> Vec<(String, Secret)> {
        self.note(key, OptionKind::SecretMapping, None);
        let mut headers = Vec::new();
        for (name, entry) in self.mapping(key).unwrap_or_default() {
            match entry.value.kind {
                NodeKind::Scalar(text) => headers.push((name, Secret::new(text))),
                NodeKind::Null => {}
                other => self.mismatch(&joined(key, &name), entry.line, &other, "a string"),
            }
        }
        headers
    }

    /// Tags: a list of names, each perhaps with a value, `name:value`; or a mapping of names to
    /// values. Each becomes `name:value`, where a name stands for its value if it has none.
    pub fn tags(&mut self, key: &str) -> Vec<String> {
        self.note(key, OptionKind::Tags, None);
        if let Some((_, NodeKind::Mapping(_))) = self.value(key) {
            let tags = self.string_map(key).into_iter();
            return tags
                .map(|(name, value)| format!("{name}:{value}"))
                .collect();
        }
        let how = "; write it as name:value";
        let items = self.items_or(key, Lone::Counts, how).into_iter();
        items
            .map(|(_, tag)| match tag.contains(':') {
                true => tag,
                false => format!("{tag}:{tag}"),
            })
            .collect()
    }

    /// A mapping of strings to strings.
    pub fn string_map(&mut self, key: &str) -> Vec<(String, String)> {
        self.note(key, OptionKind::TextMapping, None);
        let mut strings = Vec::new();
        for (name, entry) in self.mapping(key).unwrap_or_default() {
            match entry.value.kind {
                NodeKind::Scalar(text) => strings.push((name, text)),
                other => self.mismatch(&joined(key, &name), entry.line, &other, "a string"),
            }
        }
        strings
    }

    /// Passes over an option that does nothing, without a word.
    pub fn pass_over(&mut self, key: &str) {
        self.note(key, OptionKind::PassedOver, None);
        self.told.push(key.to_owned());
    }

    /// Records an option that is known and does not work here, if it holds anything.
    pub fn not_supported(&mut self, key: &str, why: &str) {
        self.note(key, OptionKind::Refused, None);
        if self.filled_string(key).is_some() {
            self.fault(key, format!("is not supported: {why}"));
        }
    }

    /// Records that something is wrong with the option, at its line.
    pub fn fault(&mut self, key: &str, message: impl Into<String>) {
        let line = self.line_of(key);
        self.fault_at(line, key, message);
    }

    /// Records that the option is hardly what is meant, at its line.
    pub fn warn(&mut self, key: &str, message: impl Into<String>) {
        let line = self.line_of(key);
        self.warn_at(line, key, message);
    }

    /// Records that an option of this name must not be there, and why. It does not count as known.
    pub fn refuse(&mut self, key: &str, why: impl Into<String>) {
        if let Some(entry) = self.entries.shift_remove(key) {
            self.fault_at(entry.line, key, why);
        }
    }

    /// Warns of every key that no accessor has asked for and that holds something. Called once,
    /// after the module has read its options.
    pub fn finish(&mut self) {
        for (key, entry) in &self.entries {
            if self.asked.contains(key) || self.told.contains(key) || entry.value.kind.is_empty() {
                continue;
            }
            let message = format!(
                "unknown {} `{key}` has no effect (known: {}){}",
                self.noun,
                listed(&self.asked),
                did_you_mean(key, &self.asked)
            );
            let unknown = Fault::at(entry.line, self.path.as_str(), message);
            self.warnings.push(unknown);
        }
    }

    /// Warns of a key that the existing worker passes over, if it holds something.
    pub(crate) fn without_effect(&mut self, key: &str, why: &str) {
        self.note(key, OptionKind::WithoutEffect(why.to_owned()), None);
        self.told.push(key.to_owned());
        let entry = self.entries.get(key);
        if entry.is_some_and(|entry| !entry.value.kind.is_empty()) {
            self.warn(key, format!("has no effect: {why}"));
        }
    }

    /// The mapping under `key`, whose entries are called `noun`s; nothing if there is none.
    pub(crate) fn nested(&mut self, key: &str, noun: &'static str) -> Option<Self> {
        self.note(key, OptionKind::Mapping, None);
        let (line, node) = self.node(key)?;
        Some(Self::new(&joined(&self.path, key), noun, line, &node))
    }

    /// Whether anything is wrong until now.
    pub(crate) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Where they stand: the key, and its line.
    pub(crate) fn place(&self) -> (&str, usize) {
        (&self.path, self.line)
    }

    /// The items of a list with their lines.
    pub(crate) fn items(&mut self, key: &str, lone: Lone) -> Vec<(usize, String)> {
        self.items_or(key, lone, "")
    }

    /// The same; `how` says how an item is written that is no string.
    fn items_or(&mut self, key: &str, lone: Lone, how: &str) -> Vec<(usize, String)> {
        let kind = match lone {
            Lone::Counts => OptionKind::Texts,
            Lone::Refused => OptionKind::List,
        };
        self.note(key, kind, None);
        let Some((line, kind)) = self.value(key) else {
            return Vec::new();
        };
        let nodes = match kind {
            NodeKind::Sequence(nodes) => nodes,
            empty if empty.is_empty() => return Vec::new(),
            NodeKind::Scalar(text) if lone == Lone::Counts => return vec![(line, text)],
            other => {
                self.mismatch(key, line, &other, "a list of strings");
                return Vec::new();
            }
        };
        let mut items = Vec::new();
        for (index, node) in nodes.into_iter().enumerate() {
            match node.kind {
                NodeKind::Scalar(text) => items.push((node.line, text)),
                other => {
                    let message = format!(
                        "item {} is {}, not a string{how}",
                        index + 1,
                        other.described()
                    );
                    self.fault_at(node.line, key, message);
                }
            }
        }
        items
    }

    /// The options of a module as they are, with the line of their key; nothing if there are none.
    pub(crate) fn options_of_module(&mut self) -> Option<(usize, Node)> {
        self.note("options", OptionKind::Mapping, None);
        self.node("options")
    }

    /// The value under `key` as it is, and its key's line; nothing where it is absent or `null`.
    pub(crate) fn node(&mut self, key: &str) -> Option<(usize, Node)> {
        if !self.asked.iter().any(|asked| asked == key) {
            self.asked.push(key.to_owned());
            // The first time alone: what was filled in is not to be looked at again.
            self.fill_in(key);
        }
        let entry = self.entries.get(key)?;
        match entry.value.kind {
            NodeKind::Null => None,
            _ => Some((entry.line, entry.value.clone())),
        }
    }

    pub(crate) fn fault_at(&mut self, line: usize, key: &str, message: impl Into<String>) {
        let path = joined(&self.path, key);
        self.faults.push(Fault::at(line, path, message));
    }

    pub(crate) fn warn_at(&mut self, line: usize, key: &str, message: impl Into<String>) {
        let path = joined(&self.path, key);
        self.warnings.push(Fault::at(line, path, message));
    }

    /// The line of the key, or of the mapping where it does not have the key.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        self.entries.get(key).map_or(self.line, |entry| entry.line)
    }

    /// The entries with everything filled in that was asked for.
    pub(crate) fn into_entries(self) -> Mapping {
        self.entries
    }

    fn value(&mut self, key: &str) -> Option<(usize, NodeKind)> {
        self.node(key).map(|(line, node)| (line, node.kind))
    }

    fn scalar(&mut self, key: &str, expected: &str) -> Option<String> {
        match self.value(key)? {
            (_, NodeKind::Scalar(text)) => Some(text),
            (line, other) => {
                self.mismatch(key, line, &other, expected);
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str, bool) -> Option<T>,
    ) -> Option<T> {
        let is_plain = self.node(key).is_some_and(|(_, node)| node.plain);
        let text = self.scalar(key, expected)?;
        if text.trim().is_empty() {
            return None;
        }
        let value = parse(text.trim(), is_plain);
        if value.is_none() {
            self.fault_of_value(key, &text, expected);
        }
        value
    }

    fn fault_of_value(&mut self, key: &str, text: &str, expected: &str) {
        // Not what a variable holds: it may be meant for another option.
        let shown = self.written.get(key).map_or(text, String::as_str);
        let shown: String = shown.chars().take(80).collect();
        self.fault(key, format!("{shown:?} is not {expected}"));
    }

    fn mismatch(&mut self, key: &str, line: usize, found: &NodeKind, expected: &str) {
        let message = format!("is {}, not {expected}", found.described());
        self.fault_at(line, key, message);
    }

    /// The same, with these variables around it.
    #[cfg(test)]
    pub(crate) fn from_yaml_with<const N: usize>(text: &str, variables: [(&str, &str); N]) -> Self {
        Self::from_yaml(text).filled_from(&Arc::new(Environment::of(variables)))
    }

    /// Options as they would stand in a file, for tests of the modules that read them.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn from_yaml(text: &str) -> Self {
        let node = yaml::parse(text).ok().flatten();
        let node = node.unwrap_or(Node {
            line: 1,
            kind: NodeKind::Null,
            plain: false,
        });
        Self::new("options", "option", 1, &node)
    }

    /// The faults recorded until now, as in `port: "x" is not a number`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn faults(&self) -> Vec<String> {
        let shown = |fault: &Fault| {
            let key = fault.key.strip_prefix("options.").unwrap_or(&fault.key);
            format!("{key}: {}", fault.message)
        };
        self.faults.iter().map(shown).collect()
    }

    /// The warnings recorded until now, in the same form.
    #[cfg(test)]
    pub(crate) fn warnings(&self) -> Vec<String> {
        let shown = |warning: &Fault| {
            let key = warning.key.strip_prefix("options.");
            format!("{}: {}", key.unwrap_or(&warning.key), warning.message)
        };
        self.warnings.iter().map(shown).collect()
    }
}

/// What is left to say of the values of one option.
#[derive(Default)]
struct Gaps {
    /// Those that could not be looked up: their lines, their keys, and why.
    missing: Vec<(usize, String, String)>,
    /// Those with a `${` that names nothing: their lines and keys.
    strays: Vec<(usize, String)>,
}

impl Options {
    /// Puts values in the places of their names.
    pub(crate) fn fill_in(&mut self, key: &str) {
        let Some(environment) = self.environment.clone() else {
            return;
        };
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let written = match &entry.value.kind {
            NodeKind::Scalar(text) => Some(text.clone()),
            _ => None,
        };
        let mut gaps = Gaps::default();
        expand(&environment, key, &mut entry.value, &mut gaps);
        if let (Some(written), NodeKind::Scalar(text)) = (written, &entry.value.kind)
            && written != *text
        {
            self.written.insert(key.to_owned(), written);
        }
        for (line, key, why) in gaps.missing {
            self.fault_at(line, &key, why);
        }
        for (line, key) in gaps.strays {
            let message = "`${` stays text, as it is for the existing worker: it is not followed by \
                           the name of a variable and `}`; write `$${` for the text `${`";
            self.warn_at(line, &key, message);
        }
    }

    /// Takes an option that is not given from the variable of its name, if that holds something.
    pub(crate) fn take_variable(&mut self, key: &str) {
        let is_given = self.filled_string(key).is_some();
        let variable = |environment: &Arc<Environment>| environment.variable(key);
        if let Some(text) = self
            .environment
            .as_ref()
            .filter(|_| !is_given)
            .and_then(variable)
        {
            let (line, kind, plain) = (self.line, NodeKind::Scalar(text), false);
            let value = Node { line, kind, plain };
            self.entries
                .insert(key.to_owned(), yaml::Entry { line, value });
        }
    }

    /// Puts the text of the file that `<key>_file` names in the place of the option itself.
    pub(crate) fn read_file_of(&mut self, key: &str, is_given: bool) -> Option<String> {
        let file_key = format!("{key}_file");
        let name = self.string(&file_key)?;
        if is_given {
            self.fault(
                &file_key,
                format!("stands beside `{key}`; remove one of them"),
            );
            return None;
        }
        let environment = self.environment.clone()?;
        match environment.file(&name) {
            Ok(text) => {
                let mut entry = self.entries.shift_remove(&file_key)?;
                entry.value.kind = NodeKind::Scalar(text.clone());
                self.entries.insert(key.to_owned(), entry);
                Some(text)
            }
            Err(why) => {
                self.fault(&file_key, why);
                None
            }
        }
    }
}

/// Puts values in the places of their names, wherever they are in `node`. What cannot be looked up
/// is left out.
fn expand(environment: &Environment, key: &str, node: &mut Node, gaps: &mut Gaps) {
    match &mut node.kind {
        NodeKind::Null => {}
        NodeKind::Scalar(text) => match environment.expand(text) {
            Ok(None) => {}
            Ok(Some(expanded)) => {
                *text = expanded.text;
                if expanded.has_stray {
                    gaps.strays.push((node.line, key.to_owned()));
                }
            }
            Err(why) => {
                gaps.missing.push((node.line, key.to_owned(), why));
                node.kind = NodeKind::Null;
            }
        },
        NodeKind::Sequence(items) => items.retain_mut(|item| {
            let before = gaps.missing.len();
            expand(environment, key, item, gaps);
            gaps.missing.len() == before
        }),
        NodeKind::Mapping(entries) => entries.retain(|name, entry| {
            let before = gaps.missing.len();
            expand(environment, &joined(key, name), &mut entry.value, gaps);
            gaps.missing.len() == before
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_the_edge_of_its_range_is_accepted() {
        for (text, expected) in [("1", 1), ("'9'", 9), ("0", 5), ("10", 5), ("1.5", 5)] {
            let mut options = Options::from_yaml(&format!("n: {text}"));
            assert_eq!(options.integer_or("n", 5, 1..=9), expected, "{text}");
            let is_default = expected == 5;
            assert_eq!(options.faults().len(), usize::from(is_default), "{text}");
        }
    }

    #[test]
    fn times_and_modes_that_make_no_sense_are_faults() {
        for (key, text) in [
            ("seconds", "-0.5"),
            ("seconds", "nan"),
            ("seconds", "inf"),
            ("seconds", "1e300"),
            ("mode", "0o10000"),
            ("mode", "0888"),
            ("mode", "0+44"),
            ("mode", "644"),
            ("mode", "'755'"),
            ("mode", "0o"),
        ] {
            let mut options = Options::from_yaml(&format!("{key}: {text}"));
            if key == "mode" {
                assert_eq!(options.mode_or(key, 0o600), 0o600, "{text}");
            } else {
                assert_eq!(
                    options.seconds_or(key, 2.0),
                    Duration::from_secs(2),
                    "{text}"
                );
            }
            assert_eq!(options.faults().len(), 1, "{text}");
        }
    }

    #[test]
    fn an_empty_number_or_switch_is_none() {
        let mut options = Options::from_yaml("{n: '', s: ' ', m: '', b: '', x: ''}");
        assert_eq!(options.integer_or("n", 5, 1..=9), 5);
        assert_eq!(options.seconds_or("s", 2.0), Duration::from_secs(2));
        assert_eq!(options.mode_or("m", 0o600), 0o600);
        assert!(options.bool_or("b", true));
        assert_eq!(options.number_or("x", 0.5), 0.5);
        assert_eq!(options.faults(), [""; 0]);
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_shown() {
        let mut options = Options::from_yaml("password: [hunter2]\nheaders: {a: {hunter3: 1}}");
        assert_eq!(options.secret("password"), None);
        assert_eq!(options.headers("headers"), []);
        options.finish();
        assert_eq!(
            options.faults(),
            [
                "password: is a list, not a string",
                "headers.a: is a mapping, not a string"
            ]
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fill_tests {
    use std::fs;

    use super::*;

    const VARIABLES: [(&str, &str); 4] = [
        ("HOST", "db"),
        ("PORT", "5433"),
        ("WORD", "hunter2"),
        ("NESTED", "${WORD}"),
    ];

    fn secret(options: &mut Options, key: &str) -> Option<String> {
        options.secret(key).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn every_kind_of_option_takes_variables() {
        let text = "host: ${HOST}.example\nport: ${PORT}\npassword: a${WORD}b\nplain: $${WORD}\n\
                    list: ['${HOST}', '${NESTED}']\nheaders: {x-key: 'Bearer ${WORD}'}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        assert_eq!(options.required_string("host"), "db.example");
        // A second time gives the same.
        assert_eq!(options.required_string("host"), "db.example");
        assert_eq!(options.integer_or("port", 1, 1..=65535), 5433);
        assert_eq!(
            secret(&mut options, "password").as_deref(),
            Some("ahunter2b")
        );
        for _ in 0..2 {
            assert_eq!(options.string("plain").as_deref(), Some("${WORD}"));
            assert_eq!(options.strings("list"), ["db", "${WORD}"]);
        }
        let headers = options.headers("headers");
        assert_eq!(headers[0].1.reveal(), "Bearer hunter2");
        options.finish();
        assert_eq!(options.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_variable_that_is_not_set_is_one_fault_with_its_line() {
        let text =
            "host: ${NONE}\nport: ${NONE}\nlist: [a,\n  '${NONE}']\nheaders:\n  x-key: ${NONE}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        options.required_string("host");
        options.integer_or("port", 1, 1..=65535);
        assert_eq!(options.strings("list"), ["a"]);
        options.headers("headers");
        let why = "the variable NONE is not set; write `$${` for the text `${`";
        assert_eq!(
            options.faults(),
            ["host", "port", "list", "headers.x-key"].map(|key| format!("{key}: {why}"))
        );
        let lines: Vec<_> = options.faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [Some(1), Some(2), Some(4), Some(6)]);
    }

    #[test]
    fn what_is_no_variables_form_is_one_warning_with_its_line_and_not_shown() {
        let text = "password: w7${hunter2\nlist: ['a',\n '${WORD}${}']\nheaders:\n  x-key: ${1}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        let password = secret(&mut options, "password");
        assert_eq!(password.as_deref(), Some("w7${hunter2"));
        assert_eq!(options.strings("list"), ["a", "hunter2${}"]);
        assert_eq!(options.headers("headers")[0].1.reveal(), "${1}");
        options.finish();
        assert_eq!(options.faults(), [""; 0]);
        let lines: Vec<_> = options.warnings.iter().map(|it| it.line).collect();
        assert_eq!(lines, [Some(1), Some(3), Some(5)]);
        for (warning, key) in options
            .warnings()
            .iter()
            .zip(["password", "list", "headers.x-key"])
        {
            assert!(warning.starts_with(&format!("{key}: `${{` stays text")));
            assert!(
                warning.contains("write `$${`") && !warning.contains("hunter2"),
                "{warning}"
            );
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_shown_as_it_stands_in_the_file() {
        let text = "port: x${WORD}\nwait: ${WORD}\ntls: ${WORD}";
        let mut options = Options::from_yaml_with(text, VARIABLES);
        options.integer_or("port", 1, 1..=65535);
        options.seconds_or("wait", 1.0);
        options.bool_or("tls", false);
        let faults = options.faults().join("\n");
        assert!(
            faults.contains(r#"port: "x${WORD}" is not a whole number"#),
            "{faults}"
        );
        assert!(!faults.contains("hunter2"), "{faults}");
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pw");
        fs::write(&path, "${WORD}\n").unwrap();
        let variables = [("FOLDER", folder.path().to_str().unwrap())];
        let mut options = Options::from_yaml_with("password_file: ${FOLDER}/pw", variables);
        for _ in 0..2 {
            // What a file holds is not looked at again.
            assert_eq!(secret(&mut options, "password").as_deref(), Some("${WORD}"));
        }
        options.finish();
        assert_eq!(options.faults(), Vec::<String>::new());
        fs::remove_file(path).unwrap();
        let entries = options.into_entries();
        let node = Node {
            line: 1,
            kind: NodeKind::Mapping(entries),
            plain: false,
        };
        let mut again = Options::new("options", "option", 1, &node);
        assert_eq!(secret(&mut again, "password").as_deref(), Some("${WORD}"));
    }

    #[test]
    fn a_file_that_gives_no_secret_is_a_fault() {
        for (text, fault) in [
            (
                "password_file: /none/there",
                "password_file: the file /none/there could not be read: No such file",
            ),
            (
                "password_file: /",
                "password_file: the file / could not be read: it is not",
            ),
            (
                "password_file: [a]",
                "password_file: is a list, not a string",
            ),
            (
                "{password: hunter2, password_file: /none/there}",
                "password_file: stands beside `password`; remove one of them",
            ),
        ] {
            let mut options = Options::from_yaml_with(text, VARIABLES);
            options.secret("password");
            options.finish();
            let faults = options.faults();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].starts_with(fault), "{faults:?}");
        }
    }
}
