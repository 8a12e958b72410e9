//! From a template's text to its actions and their operands.

use super::Operand;
use anyhow::{Result, anyhow, bail};

/// A piece of a template: text as it is, or what stands between `{{` and `}}`.
pub enum Token {
    Text(String),
    Action(String),
}

/// Parts a template. `{{-` and `-}}` take the white space beside them away.
pub fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let (mut rest, mut trim) = (text, false);
    while let Some(start) = rest.find("{{") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        let end = after.find("}}").ok_or_else(|| anyhow!("--format: {{{{{after} is not closed by }}}}"))?;
        let action = &after[..end];
        let (action, trim_before) = match action.strip_prefix("- ") {
            Some(action) => (action, true),
            None => (action, false),
        };
        let (action, trim_after) = match action.strip_suffix(" -") {
            Some(action) => (action, true),
            None => (action, false),
        };
        let before = if trim { before.trim_start() } else { before };
        let before = if trim_before { before.trim_end() } else { before };
        if !before.is_empty() {
            tokens.push(Token::Text(before.to_owned()));
        }
        tokens.push(Token::Action(action.trim().to_owned()));
        (rest, trim) = (&after[end + 2..], trim_after);
    }
    let rest = if trim { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        tokens.push(Token::Text(rest.to_owned()));
    }
    Ok(tokens)
}

/// Reads an action's operands.
pub fn operands(text: &str) -> Result<Vec<Operand>> {
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let operands = sequence(&chars, &mut at, false)?;
    if operands.is_empty() {
        bail!("--format: {{{{{text}}}}} is empty");
    }
    Ok(operands)
}

fn sequence(chars: &[char], at: &mut usize, nested: bool) -> Result<Vec<Operand>> {
    let mut operands = Vec::new();
    while let Some(&c) = chars.get(*at) {
        match c {
            c if c.is_whitespace() => *at += 1,
            ')' if nested => {
                *at += 1;
                return Ok(operands);
            }
            '(' => {
                *at += 1;
                let inner = sequence(chars, at, true)?;
                operands.push(Operand::Nested(inner, path(&word(chars, at))?));
            }
            '"' | '`' => operands.push(Operand::Text(quoted(chars, at)?)),
            _ => operands.push(operand(&word(chars, at))?),
        }
    }
    if nested { Err(anyhow!("--format: a ( is not closed by )")) } else { Ok(operands) }
}

fn word(chars: &[char], at: &mut usize) -> String {
    let start = *at;
    while chars.get(*at).is_some_and(|c| !c.is_whitespace() && !matches!(c, '(' | ')' | '"' | '`')) {
        *at += 1;
    }
    chars[start..*at].iter().collect()
}

fn quoted(chars: &[char], at: &mut usize) -> Result<String> {
    let quote = chars[*at];
    *at += 1;
    let mut text = String::new();
    while let Some(&c) = chars.get(*at) {
        *at += 1;
        match c {
            c if c == quote => return Ok(text),
            '\\' if quote == '"' => {
                text.extend(chars.get(*at));
                *at += 1;
            }
            c => text.push(c),
        }
    }
    bail!("--format: a text is not closed by {quote}")
}

/// `.A.B` as its names; nothing for an empty text and for `.` alone.
fn path(text: &str) -> Result<Vec<String>> {
    let Some(names) = text.strip_prefix('.') else {
        return if text.is_empty() { Ok(Vec::new()) } else { Err(unknown(text)) };
    };
    let good = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    match names {
        "" => Ok(Vec::new()),
        names if names.split('.').all(good) => Ok(names.split('.').map(str::to_owned).collect()),
        _ => Err(unknown(text)),
    }
}

fn operand(text: &str) -> Result<Operand> {
    const FUNCTIONS: &[&str] =
        &["json", "len", "upper", "lower", "join", "index", "println", "title", "split"];
    if let Some(rest) = text.strip_prefix('$') {
        let (name, fields) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
        return Ok(Operand::Variable(name.to_owned(), path(fields)?));
    }
    if text.starts_with('.') {
        return Ok(Operand::Field(path(text)?));
    }
    if let Ok(number) = text.parse() {
        return Ok(Operand::Number(number));
    }
    if FUNCTIONS.contains(&text) {
        return Ok(Operand::Function(text.to_owned()));
    }
    bail!(
        "--format: {text:?} is not known here; there are fields (.Name), range, if, else, end and {}",
        FUNCTIONS.join(", ")
    )
}

fn unknown(text: &str) -> anyhow::Error {
    anyhow!("--format: {text:?} is no field like .Name or .State.Pid")
}
