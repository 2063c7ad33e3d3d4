//! Answers, read as they come.
//!
//! An answer is never kept: one of a few megabytes that is made of many small values takes twenty times
//! that as a tree. What is wanted of it is picked out while it is read. What has another form than
//! expected counts as absent, as the servers and their versions differ.

use std::fmt;
use std::io::{BufReader, Read};

use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The most bytes that are kept of one text.
const MOST_OF_A_TEXT: usize = 8 << 10;

/// What is picked out of a value. All of it is passed over unless a method says otherwise.
pub(super) trait Pick {
    /// It is neither an object nor a list.
    fn single(&mut self, _: Single) {}

    /// Reads the value of a field, wanted or not.
    fn field<'de, A: MapAccess<'de>>(&mut self, _: &str, map: &mut A) -> Result<(), A::Error> {
        pass_over(map)
    }

    /// Reads the next item of a list; false if there is none.
    fn item<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(list.next_element::<IgnoredAny>()?.is_some())
    }
}

/// What a value was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Object,
    List,
    Single,
}

/// A value that is neither an object nor a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Single {
    /// The beginning of a text.
    Text(String),
    Number(u64),
    Switch(bool),
    Other,
}

/// Reads a whole answer, which must be JSON.
pub(super) fn read(reader: &mut dyn Read, pick: &mut impl Pick) -> serde_json::Result<Form> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(reader));
    let form = Picking(pick).deserialize(&mut json)?;
    json.end()?;
    Ok(form)
}

/// Reads the value of a field.
pub(super) fn value<'de, A: MapAccess<'de>>(
    map: &mut A,
    pick: &mut impl Pick,
) -> Result<Form, A::Error> {
    map.next_value_seed(Picking(pick))
}

/// Passes over the value of a field.
pub(super) fn pass_over<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// Reads the value of a field if that is neither an object nor a list.
pub(super) fn single<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Single, A::Error> {
    struct Only(Single);
    impl Pick for Only {
        fn single(&mut self, single: Single) {
            self.0 = single;
        }
    }
    let mut only = Only(Single::Other);
    value(map, &mut only)?;
    Ok(only.0)
}

/// Reads the value of a field; what is no text is an empty one.
pub(super) fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    Ok(match single(map)? {
        Single::Text(text) => text,
        _ => String::new(),
    })
}

/// Hands on each item of a list.
pub(super) struct Each<'a, T>(pub(super) &'a mut dyn FnMut(T));

impl<T: DeserializeOwned> Pick for Each<'_, T> {
    fn item<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let item = list.next_element()?;
        Ok(item.map(&mut *self.0).is_some())
    }
}

/// Reads a value into what is picked out of it.
pub(super) struct Picking<'a, P>(pub(super) &'a mut P);

impl<'de, P: Pick> DeserializeSeed<'de> for Picking<'_, P> {
    type Value = Form;

    fn deserialize<D: serde::Deserializer<'de>>(self, value: D) -> Result<Form, D::Error> {
        value.deserialize_any(self)
    }
}

impl<P: Pick> Picking<'_, P> {
    fn single(self, single: Single) -> Form {
        self.0.single(single);
        Form::Single
    }
}

impl<'de, P: Pick> Visitor<'de> for Picking<'_, P> {
    type Value = Form;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Form, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            self.0.field(&name, &mut map)?;
        }
        Ok(Form::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Form, A::Error> {
        while self.0.item(&mut list)? {}
        Ok(Form::List)
    }

    fn visit_str<E>(self, text: &str) -> Result<Form, E> {
        let beginning = &text[..text.floor_char_boundary(MOST_OF_A_TEXT)];
        Ok(self.single(Single::Text(beginning.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Form, E> {
        Ok(self.single(Single::Number(number)))
    }

    fn visit_bool<E>(self, switch: bool) -> Result<Form, E> {
        Ok(self.single(Single::Switch(switch)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Form, E> {
        Ok(self.single(Single::Other))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Form, E> {
        Ok(self.single(Single::Other))
    }

    fn visit_unit<E>(self) -> Result<Form, E> {
        Ok(self.single(Single::Other))
    }
}
