//! Reading keys of a JSON object into types, with errors that name the key, its value and what is expected.

use super::fold::{Folded, field_of, present};
use crate::error::{Error, code};
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_json::{Map, Value};
use std::cell::Cell;

/// Longer values are cut in error messages, in characters.
const SHOWN: usize = 200;

/// A value as errors show it.
fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What kind of value this is, for errors.
pub(super) fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A key that must be a string.
pub(super) fn text(raw: &Map<String, Value>, key: &str) -> Result<Option<String>, Error> {
    match present(raw, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Error::config(key, show(other), "a string")),
    }
}

/// A key that must be an object.
pub(super) fn map<'a>(
    raw: &'a Map<String, Value>,
    key: &str,
) -> Result<Option<&'a Map<String, Value>>, Error> {
    match present(raw, key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(Error::config(key, show(other), "an object")),
    }
}

/// One key of an object; absent and `null` are `None`.
///
/// # Errors
/// Code 7 for a value that does not fit, naming the key, the value and what is expected.
pub fn get<T: DeserializeOwned>(raw: &Map<String, Value>, key: &str) -> Result<Option<T>, Error> {
    let Some(value) = present(raw, key) else { return Ok(None) };
    T::deserialize(Folded(value)).map(Some).map_err(|why| misfit(key, value, &why))
}

/// An object whose entries are remembered as they are handed out: serde's errors do not say which key they are about.
struct Watched<'de, 'c> {
    raw: &'de Map<String, Value>,
    last: &'c Cell<Option<(&'de str, &'de Value)>>,
}

impl<'de> Watched<'de, '_> {
    fn visit<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, serde_json::Error> {
        let Watched { raw, last } = self;
        let mut entries = raw.iter().filter(|(_, value)| !value.is_null());
        // At the end nothing is remembered: what serde says then is about a key that is missing.
        let watched = std::iter::from_fn(|| {
            last.set(entries.next().map(|(key, value)| (key.as_str(), value)));
            last.get().map(|(key, value)| (field_of(raw, key, fields), Folded(value)))
        });
        MapDeserializer::new(watched).deserialize_any(visitor)
    }
}

impl<'de> Deserializer<'de> for Watched<'de, '_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, serde_json::Error> {
        self.visit(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, serde_json::Error> {
        self.visit(fields, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Reads an object into a structure; keys that it does not have are passed over, and `null` is as absent. `path` is
/// where the object stands in the configuration, as `ipam`, or empty for the configuration itself.
///
/// # Errors
/// Code 7 for a value that does not fit and for a key that is missing, naming it.
pub fn parse_object<T: DeserializeOwned>(raw: &Map<String, Value>, path: &str) -> Result<T, Error> {
    let last = Cell::new(None);
    T::deserialize(Watched { raw, last: &last }).map_err(|why: serde_json::Error| match last.get() {
        Some((key, value)) if path.is_empty() => misfit(key, value, &why),
        Some((key, value)) => misfit(&format!("{path}.{key}"), value, &why),
        None if path.is_empty() => Error::new(code::INVALID_CONFIG, format!("network configuration: {why}")),
        None => Error::new(code::INVALID_CONFIG, format!("{path:?} in the network configuration: {why}")),
    })
}

/// serde says "invalid type: string \"x\", expected a boolean"; the second half is what is allowed.
fn misfit(key: &str, value: &Value, why: &serde_json::Error) -> Error {
    let why = why.to_string();
    let allowed = why.rsplit_once(", expected ").map_or(why.as_str(), |(_, expected)| expected);
    Error::config(key, show(value), in_words(allowed))
}

/// What serde calls a type, in the words of JSON: users know none of Rust's types.
fn in_words(expected: &str) -> &str {
    match expected {
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "u128" | "usize" => "a whole number, not below 0",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("a tuple") || expected.starts_with("tuple ") => "a list",
        _ => expected,
    }
}
