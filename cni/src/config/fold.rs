//! Keys match whatever the case of their letters, as they do for everything that is written in Go.
//!
//! Much of the world relies on that without knowing: containerd writes `HostPort` in `portMappings` and `RangeStart` in
//! `ipRanges`, and conflists have `ipmasq`. A key in the exact spelling goes before one in another.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde_json::{Error, Map, Value};

/// A key's value, in whatever spelling, with `null` as absent.
pub fn present<'a>(raw: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let found = raw.get(key).or_else(|| {
        let mut entries = raw.iter();
        entries.find(|(other, _)| other.eq_ignore_ascii_case(key)).map(|(_, value)| value)
    });
    found.filter(|value| !value.is_null())
}

/// The field that a key of an object is for; keys that are for none keep their spelling.
pub(super) fn field_of<'a>(
    raw: &Map<String, Value>,
    key: &'a str,
    fields: &'static [&'static str],
) -> &'a str {
    if fields.contains(&key) {
        return key;
    }
    let field = fields.iter().copied().find(|field| field.eq_ignore_ascii_case(key));
    field.filter(|field| !raw.contains_key(*field)).unwrap_or(key)
}

/// A value, to be read into a type whose structures find their fields in any spelling.
#[derive(Clone, Copy)]
pub(super) struct Folded<'de>(pub(super) &'de Value);

impl<'de> IntoDeserializer<'de, Error> for Folded<'de> {
    type Deserializer = Folded<'de>;

    fn into_deserializer(self) -> Folded<'de> {
        self
    }
}

impl<'de> Deserializer<'de> for Folded<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => SeqDeserializer::new(items.iter().map(Folded)).deserialize_any(visitor),
            Value::Object(raw) => {
                let entries = raw.iter().map(|(key, value)| (key.as_str(), Folded(value)));
                MapDeserializer::new(entries).deserialize_any(visitor)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Object(raw) = self.0 else { return self.deserialize_any(visitor) };
        let entries = raw.iter().map(|(key, value)| (field_of(raw, key, fields), Folded(value)));
        MapDeserializer::new(entries).deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}
