//! YAML as a tree that knows its lines, and the reading of it: every refusal names the file, the line, the key, the value
//! and what is allowed.

use anyhow::{Result, anyhow};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;
use std::str::FromStr;

/// What stands behind a key, or in a list.
#[derive(Debug, Clone)]
enum Value {
    Nothing,
    Text(String),
    List(Vec<Spanned<Value>>),
    Map(Vec<(Spanned<String>, Spanned<Value>)>),
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        inner.deserialize_any(Any)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = access.next_key()? {
            map.push((key, access.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

/// A value with its place: file, line, and the key that leads to it (`containers[2].ip`).
#[derive(Debug, Clone)]
pub struct Node<'f> {
    file: &'f str,
    line: u64,
    key: String,
    value: Value,
}

/// The root of a YAML text; `file` is what errors call it.
///
/// # Errors
/// It is no YAML.
pub fn parse<'f>(file: &'f str, text: &str) -> Result<Node<'f>> {
    let root: Spanned<Value> = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line());
        let what = error.without_snippet().to_string();
        // The place stands before it already, and what the parser's options are called is of no use here.
        let what = what.split(" at line ").next().unwrap_or(&what);
        anyhow!("{file}:{line}: {}", what.split(", set Duplicate").next().unwrap_or(what))
    })?;
    Ok(Node { file, line: root.referenced.line(), key: String::new(), value: root.value })
}

impl<'f> Node<'f> {
    /// An error at this place.
    pub fn wrong(&self, what: impl fmt::Display) -> anyhow::Error {
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        anyhow!("{}:{}: {key}{what}", self.file, self.line)
    }

    /// An error that says what the value is, and what is allowed.
    pub fn refused(&self, allowed: impl fmt::Display) -> anyhow::Error {
        let key = if self.key.is_empty() { "the file".to_owned() } else { self.key.clone() };
        let value = match &self.value {
            Value::Nothing => "nothing".to_owned(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "keys".to_owned(),
        };
        anyhow!("{}:{}: {key} is {value}: allowed is {allowed}", self.file, self.line)
    }

    fn child(&self, key: String, value: &Spanned<Value>) -> Node<'f> {
        Node { file: self.file, line: value.referenced.line(), key, value: value.value.clone() }
    }

    /// The text of a scalar.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&self, allowed: &str) -> Result<&str> {
        match &self.value {
            Value::Text(text) if !text.is_empty() => Ok(text),
            _ => Err(self.refused(allowed)),
        }
    }

    /// A scalar that reads as `T`.
    ///
    /// # Errors
    /// It does not.
    pub fn get<T: FromStr>(&self, allowed: &str) -> Result<T> {
        self.text(allowed)?.parse().map_err(|_| self.refused(allowed))
    }

    /// A number within bounds.
    ///
    /// # Errors
    /// It is none, or out of bounds.
    pub fn number(&self, from: u32, to: u32) -> Result<u32> {
        let allowed = format!("a number from {from} to {to}");
        let number: u32 = self.get(&allowed)?;
        (from..=to).contains(&number).then_some(number).ok_or_else(|| self.refused(&allowed))
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    /// Whether it is a map.
    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// The elements of a list; one that is not written as a list is a list of one.
    pub fn list(&self) -> Vec<Node<'f>> {
        match &self.value {
            Value::List(list) => {
                let each = list.iter().enumerate();
                each.map(|(at, value)| self.child(format!("{}[{}]", self.key, at + 1), value)).collect()
            }
            Value::Nothing => Vec::new(),
            _ => vec![self.clone()],
        }
    }

    /// The texts of a list of scalars.
    ///
    /// # Errors
    /// One is none.
    pub fn texts(&self, allowed: &str) -> Result<Vec<String>> {
        self.list().iter().map(|each| each.text(allowed).map(str::to_owned)).collect()
    }

    /// The keys and values of a map, whatever they are.
    ///
    /// # Errors
    /// It is none.
    pub fn pairs(&self, allowed: &str) -> Result<Vec<(String, Node<'f>)>> {
        match &self.value {
            Value::Map(map) => {
                let each = map.iter();
                Ok(each
                    .map(|(key, value)| (key.value.clone(), self.child(self.below(&key.value), value)))
                    .collect())
            }
            _ => Err(self.refused(allowed)),
        }
    }

    fn below(&self, key: &str) -> String {
        if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) }
    }

    /// A map that may have these keys.
    ///
    /// # Errors
    /// It is no map, or has another key.
    pub fn map(&self, allowed: &'static [&'static str]) -> Result<Map<'f>> {
        let entries = match &self.value {
            Value::Map(map) => map,
            Value::Nothing => &Vec::new(),
            _ => return Err(self.refused(format!("the keys {}", allowed.join(", ")))),
        };
        if let Some((key, _)) = entries.iter().find(|(key, _)| !allowed.contains(&key.value.as_str())) {
            let place = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
            let line = key.referenced.line();
            let known = allowed.join(", ");
            return Err(anyhow!(
                "{}:{line}: {place}unknown key {:?}: allowed are {known}",
                self.file,
                key.value
            ));
        }
        let each = entries.iter();
        let entries =
            each.map(|(key, value)| (key.value.clone(), self.child(self.below(&key.value), value))).collect();
        Ok(Map { at: Node { value: Value::Nothing, ..self.clone() }, entries })
    }
}

/// A map whose keys are known ones.
#[derive(Debug)]
pub struct Map<'f> {
    at: Node<'f>,
    entries: Vec<(String, Node<'f>)>,
}

impl<'f> Map<'f> {
    /// What stands behind a key.
    pub fn get(&self, key: &str) -> Option<&Node<'f>> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// What stands behind a key that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn need(&self, key: &str) -> Result<&Node<'f>> {
        self.get(key).ok_or_else(|| self.at.wrong(format_args!("the key {key:?} is missing")))
    }

    /// The place of the map.
    pub fn at(&self) -> &Node<'f> {
        &self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "name: x\nhosts:\n  - name: a\n  - {name: b, mtu: 9000}\nmtu: 20\n";

    #[test]
    fn values_are_read_with_their_places() {
        let root = parse("lab.yaml", FILE).unwrap();
        let map = root.map(&["name", "hosts", "mtu"]).unwrap();
        assert_eq!(map.need("name").unwrap().text("a name").unwrap(), "x");
        let hosts = map.need("hosts").unwrap().list();
        assert_eq!(hosts.len(), 2);
        let second = hosts[1].map(&["name", "mtu"]).unwrap();
        assert_eq!(second.need("mtu").unwrap().number(1280, 9000).unwrap(), 9000);
        assert!(second.get("ip").is_none());
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_key_and_what_is_allowed() {
        let root = parse("lab.yaml", FILE).unwrap();
        let unknown = root.map(&["name", "hosts"]).unwrap_err().to_string();
        assert_eq!(unknown, "lab.yaml:5: unknown key \"mtu\": allowed are name, hosts");
        let map = root.map(&["name", "hosts", "mtu"]).unwrap();
        let small = map.need("mtu").unwrap().number(1280, 9000).unwrap_err().to_string();
        assert_eq!(small, "lab.yaml:5: mtu is \"20\": allowed is a number from 1280 to 9000");
        let host = map.need("hosts").unwrap().list()[1].map(&["name"]).unwrap_err().to_string();
        assert_eq!(host, "lab.yaml:4: hosts[2]: unknown key \"mtu\": allowed are name");
        let missing = map.need("hosts").unwrap().list()[0].map(&["name", "ip"]).unwrap();
        let missing = missing.need("ip").unwrap_err().to_string();
        assert_eq!(missing, "lab.yaml:3: hosts[1]: the key \"ip\" is missing");
        let list = map.need("hosts").unwrap().text("a name").unwrap_err().to_string();
        assert_eq!(list, "lab.yaml:3: hosts is a list: allowed is a name");
    }

    #[test]
    fn what_is_no_yaml_is_told_with_its_line() {
        let twice = parse("f", "a: 1\na: 2\n").unwrap_err().to_string();
        assert_eq!(twice, "f:2: duplicate mapping key: a");
        assert!(parse("f", "a: [\n").unwrap_err().to_string().starts_with("f:1: "));
    }
}
