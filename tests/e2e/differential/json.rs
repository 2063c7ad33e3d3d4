//! JSON with the order of its keys and the digits of its numbers.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub fn number(text: &str) -> Self {
        Self::Number(text.to_owned())
    }

    pub fn object(members: &[(&str, Json)]) -> Self {
        let member = |(name, value): &(&str, Json)| ((*name).to_owned(), value.clone());
        Self::Object(members.iter().map(member).collect())
    }

    pub fn texts(texts: &[&str]) -> Self {
        Self::List(texts.iter().map(|text| Self::text(text)).collect())
    }

    /// The text without any spaces.
    pub fn written(&self) -> String {
        let quoted = |text: &str| serde_json::to_string(text).expect("a text");
        let joined = |parts: Vec<String>| parts.join(",");
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(text) => text.clone(),
            Self::Text(text) => quoted(text),
            Self::List(items) => {
                format!("[{}]", joined(items.iter().map(Self::written).collect()))
            }
            Self::Object(members) => {
                let member = |(name, value): &(String, Json)| {
                    format!("{}:{}", quoted(name), value.written())
                };
                format!("{{{}}}", joined(members.iter().map(member).collect()))
            }
        }
    }

    pub fn value(&self) -> Value {
        serde_json::from_str(&self.written()).expect("JSON")
    }

    pub fn get(&self, name: &str) -> Option<&Json> {
        let Self::Object(members) = self else {
            return None;
        };
        let mut found = members.iter().filter(|(it, _)| it == name);
        found.next().map(|(_, value)| value)
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn is_text(&self, text: &str) -> bool {
        matches!(self, Self::Text(it) if it == text)
    }

    /// Sets a member in its place, or at the end.
    pub fn set(&mut self, name: &str, value: Json) {
        let Self::Object(members) = self else {
            panic!("not an object: {self:?}");
        };
        match members.iter_mut().find(|(it, _)| it == name) {
            Some((_, place)) => *place = value,
            None => members.push((name.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, name: &str) {
        if let Self::Object(members) = self {
            members.retain(|(it, _)| it != name);
        }
    }

    /// Gives a member another name, in its place.
    pub fn rename(&mut self, old: &str, new: &str) {
        if let Self::Object(members) = self {
            for (name, _) in members.iter_mut().filter(|(it, _)| it == old) {
                new.clone_into(name);
            }
        }
    }

    /// The objects in a list that is a member.
    pub fn parts(&mut self, name: &str) -> Vec<&mut Json> {
        let Self::Object(members) = self else {
            return Vec::new();
        };
        let list = members.iter_mut().find(|(it, _)| it == name);
        match list {
            Some((_, Self::List(items))) => items
                .iter_mut()
                .filter(|item| matches!(item, Self::Object(_)))
                .collect(),
            _ => Vec::new(),
        }
    }
}
