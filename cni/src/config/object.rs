//! Reading keys of a JSON object into types, with errors that name the key, its value and what is expected.

use crate::error::{Error, code};
use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
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

/// A key's value, with `null` as absent.
pub(super) fn present<'a>(raw: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    raw.get(key).filter(|value| !value.is_null())
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
    T::deserialize(value).map(Some).map_err(|why| misfit(key, value, &why))
}

/// Reads an object into a structure; keys that it does not have are passed over, and `null` is as absent. `path` is
/// where the object stands in the configuration, as `ipam`, or empty for the configuration itself.
///
/// # Errors
/// Code 7 for a value that does not fit and for a key that is missing, naming it.
pub fn parse_object<T: DeserializeOwned>(raw: &Map<String, Value>, path: &str) -> Result<T, Error> {
    // serde's errors do not say which key they are about: remember the one that was handed out last.
    let last: Cell<Option<(&str, &Value)>> = Cell::new(None);
    let mut entries = raw.iter().filter(|(_, value)| !value.is_null());
    let watched = std::iter::from_fn(|| {
        last.set(entries.next().map(|(key, value)| (key.as_str(), value)));
        last.get()
    });
    T::deserialize(MapDeserializer::new(watched)).map_err(|why: serde_json::Error| match last.get() {
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
    Error::config(key, show(value), allowed)
}
