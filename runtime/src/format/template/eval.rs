//! Filling a template from a JSON object, printing values as Go does.

use super::{Operand, Part};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::borrow::Cow;

/// Where a part of a template is filled: the object (`$`), the value in hand (`.`) and the variables of ranges.
pub struct Scope<'a> {
    root: &'a Value,
    dot: Cow<'a, Value>,
    variables: Vec<(String, Value)>,
}

impl<'a> Scope<'a> {
    /// The outermost scope.
    pub fn new(root: &'a Value) -> Scope<'a> {
        Scope { root, dot: Cow::Borrowed(root), variables: Vec::new() }
    }

    /// Fills these parts.
    pub fn parts(&self, parts: &[Part], out: &mut String) -> Result<()> {
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Print(operands) => out.push_str(&shown(&self.action(operands)?)),
                Part::If { test, then, otherwise } => {
                    self.parts(if truth(&self.action(test)?) { then } else { otherwise }, out)?;
                }
                Part::Range { key, value, over, body } => {
                    let items: Vec<(Value, Value)> = match self.action(over)? {
                        Value::Array(items) => {
                            items.into_iter().enumerate().map(|(index, item)| (index.into(), item)).collect()
                        }
                        Value::Object(items) => {
                            items.into_iter().map(|(key, item)| (key.into(), item)).collect()
                        }
                        Value::Null => Vec::new(),
                        other => bail!("--format: range works on lists and maps, not on {}", shown(&other)),
                    };
                    for (index, item) in items {
                        let mut variables = self.variables.clone();
                        variables.extend(key.clone().map(|name| (name, index)));
                        variables.extend(value.clone().map(|name| (name, item.clone())));
                        let inner = Scope { root: self.root, dot: Cow::Owned(item), variables };
                        inner.parts(body, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn action(&self, operands: &[Operand]) -> Result<Value> {
        match operands {
            [Operand::Function(name), rest @ ..] => {
                let values: Vec<Value> =
                    rest.iter().map(|operand| self.operand(operand)).collect::<Result<_>>()?;
                function(name, &values)
            }
            [one] => self.operand(one),
            _ => bail!("--format: two values without a function before them"),
        }
    }

    fn operand(&self, operand: &Operand) -> Result<Value> {
        match operand {
            Operand::Field(path) => walk(&self.dot, path),
            Operand::Variable(name, path) if name.is_empty() => walk(self.root, path),
            Operand::Variable(name, path) => {
                let variable = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) =
                    variable.ok_or_else(|| anyhow!("--format: ${name} is not set by a range"))?;
                walk(value, path)
            }
            Operand::Text(text) => Ok(text.clone().into()),
            Operand::Number(number) => Ok((*number).into()),
            Operand::Nested(operands, path) => walk(&self.action(operands)?, path),
            Operand::Function(name) => bail!("--format: {name} needs a value"),
        }
    }
}

fn walk(value: &Value, path: &[String]) -> Result<Value> {
    let mut value = value;
    for name in path {
        let Value::Object(object) = value else {
            bail!("--format: .{name} is asked of {}, which has no fields", shown(value));
        };
        value = object.get(name).ok_or_else(|| {
            let known = object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            anyhow!("--format: there is no field {name}; there are {known}")
        })?;
    }
    Ok(value.clone())
}

fn function(name: &str, values: &[Value]) -> Result<Value> {
    let wrong = || {
        let got = values.iter().map(shown).collect::<Vec<_>>().join(" ");
        anyhow!("--format: {name} cannot work on {got:?}")
    };
    match (name, values) {
        ("json", [value]) => Ok(value.to_string().into()),
        ("len", [Value::Array(items)]) => Ok(items.len().into()),
        ("len", [Value::Object(items)]) => Ok(items.len().into()),
        ("len", [Value::String(text)]) => Ok(text.len().into()),
        ("upper", [Value::String(text)]) => Ok(text.to_uppercase().into()),
        ("lower", [Value::String(text)]) => Ok(text.to_lowercase().into()),
        ("title", [Value::String(text)]) => {
            let mut chars = text.chars();
            let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
            Ok((first + chars.as_str()).into())
        }
        ("println", values) => Ok((values.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n").into()),
        ("join", [Value::Array(items), Value::String(with)]) => {
            Ok(items.iter().map(shown).collect::<Vec<_>>().join(with).into())
        }
        ("split", [Value::String(text), Value::String(at)]) => Ok(text.split(at.as_str()).collect()),
        ("index", [value, keys @ ..]) if !keys.is_empty() => {
            let mut value = value;
            for key in keys {
                value = match (value, key) {
                    (Value::Object(object), Value::String(key)) => object.get(key).unwrap_or(&Value::Null),
                    (Value::Array(items), Value::Number(at)) => {
                        let at =
                            at.as_u64().and_then(|at| usize::try_from(at).ok()).with_context(wrong_index)?;
                        items
                            .get(at)
                            .ok_or_else(|| anyhow!("--format: index {at} is beyond the list's end"))?
                    }
                    _ => return Err(wrong()),
                };
            }
            Ok(value.clone())
        }
        _ => Err(wrong()),
    }
}

fn wrong_index() -> &'static str {
    "--format: an index is 0 or more"
}

/// Go's idea of false: false, 0, nothing and what is empty.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

/// A value as Go prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(items) => {
            let pairs = items.iter().map(|(key, value)| format!("{key}:{}", shown(value)));
            format!("map[{}]", pairs.collect::<Vec<_>>().join(" "))
        }
    }
}
