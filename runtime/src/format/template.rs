//! The part of Go's templates that people use with `--format`: `{{.Field.Inner}}`, `{{json .Field}}`, `{{len .Field}}`,
//! `{{upper .}}`, `{{lower .}}`, `{{join .List ","}}`, `{{index .Map "key"}}`, `{{range .List}}…{{end}}` and
//! `{{range $key, $value := .Map}}…{{end}}`, `{{if .Field}}…{{else}}…{{end}}`, `{{println .}}`.
//!
//! Anything else is an error that names it: a template must not silently print something else than was asked.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

mod eval;
mod lex;

use eval::Scope;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    /// Words of an action: a function and its operands, or one operand.
    Print(Vec<Operand>),
    Range {
        key: Option<String>,
        value: Option<String>,
        over: Vec<Operand>,
        body: Vec<Part>,
    },
    If {
        test: Vec<Operand>,
        then: Vec<Part>,
        otherwise: Vec<Part>,
    },
}

/// What an action computes with.
#[derive(Debug, Clone, PartialEq)]
enum Operand {
    /// `.A.B`; empty for `.`
    Field(Vec<String>),
    /// `$x.A`; an empty name for `$`, the whole object
    Variable(String, Vec<String>),
    Text(String),
    Number(i64),
    /// `(index .A "b").C`
    Nested(Vec<Operand>, Vec<String>),
    Function(String),
}

/// How a block ended.
enum Closed {
    Text,
    End,
    Else,
}

impl Template {
    /// Parses a template. `\t` and `\n`, written as two characters in a shell's single quotes, are a tab and a newline.
    ///
    /// # Errors
    /// An action that is not known or not closed.
    pub fn parse(text: &str) -> Result<Template> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut tokens = lex::tokens(&text)?.into_iter();
        let (parts, end) = block(&mut tokens)?;
        match end {
            Closed::Text => Ok(Template { parts }),
            Closed::End => bail!("--format: {{{{end}}}} without a {{{{range}}}} or {{{{if}}}} before it"),
            Closed::Else => bail!("--format: {{{{else}}}} without an {{{{if}}}} before it"),
        }
    }

    /// Fills the template from an object.
    ///
    /// # Errors
    /// A field that the object has not; a function with operands that it cannot work on.
    pub fn render(&self, object: &Value) -> Result<String> {
        let mut out = String::new();
        Scope::new(object).parts(&self.parts, &mut out)?;
        Ok(out)
    }

    /// The first field that is printed, for a column's heading.
    pub fn first_field(&self) -> Option<String> {
        self.parts.iter().find_map(|part| match part {
            Part::Print(operands) => operands.iter().find_map(|operand| match operand {
                Operand::Field(path) => path.last().cloned(),
                _ => None,
            }),
            _ => None,
        })
    }
}

fn block(tokens: &mut impl Iterator<Item = lex::Token>) -> Result<(Vec<Part>, Closed)> {
    let mut parts = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            lex::Token::Text(text) => {
                parts.push(Part::Text(text));
                continue;
            }
            lex::Token::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action.as_str(), ""));
        match word {
            "end" => return Ok((parts, Closed::End)),
            "else" => return Ok((parts, Closed::Else)),
            "range" => {
                let (key, value, over) = range_head(rest)?;
                let (body, Closed::End) = block(tokens)? else {
                    bail!("--format: {{{{{action}}}}} has no {{{{end}}}}");
                };
                parts.push(Part::Range { key, value, over, body });
            }
            "if" => {
                let test = lex::operands(rest)?;
                let (then, end) = block(tokens)?;
                let otherwise = match end {
                    Closed::Else => match block(tokens)? {
                        (otherwise, Closed::End) => otherwise,
                        _ => bail!("--format: {{{{{action}}}}} has no {{{{end}}}}"),
                    },
                    Closed::End => Vec::new(),
                    Closed::Text => bail!("--format: {{{{{action}}}}} has no {{{{end}}}}"),
                };
                parts.push(Part::If { test, then, otherwise });
            }
            _ => parts.push(Part::Print(lex::operands(&action)?)),
        }
    }
    Ok((parts, Closed::Text))
}

/// `$key, $value := .Map`, `$value := .List` or `.List`.
fn range_head(text: &str) -> Result<(Option<String>, Option<String>, Vec<Operand>)> {
    let Some((names, over)) = text.split_once(":=") else {
        return Ok((None, None, lex::operands(text)?));
    };
    let name = |text: &str| {
        let name = text.trim().strip_prefix('$').filter(|name| !name.is_empty());
        name.map(str::to_owned)
            .ok_or_else(|| anyhow!("--format: {:?} is no variable like $name", text.trim()))
    };
    let over = lex::operands(over)?;
    match names.split_once(',') {
        Some((key, value)) => Ok((Some(name(key)?), Some(name(value)?), over)),
        None => Ok((None, Some(name(names)?), over)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str) -> Result<String> {
        let object = json!({
            "Name": "www", "State": {"Pid": 7, "Running": true, "Error": ""}, "Cmd": ["sh", "-c"],
            "Networks": {"web": {"IPAddress": "10.0.0.2"}, "db.x": {"IPAddress": "10.1.0.2"}}, "None": null,
        });
        Template::parse(template)?.render(&object)
    }

    #[test]
    fn fields_and_functions() {
        assert_eq!(render("{{.Name}} {{ .State.Pid }}").unwrap(), "www 7");
        assert_eq!(render("{{json .Cmd}}").unwrap(), r#"["sh","-c"]"#);
        assert_eq!(render("{{.Cmd}}").unwrap(), "[sh -c]");
        assert_eq!(render(r#"{{join .Cmd " "}}"#).unwrap(), "sh -c");
        assert_eq!(render("{{len .Networks}}{{upper .Name}}").unwrap(), "2WWW");
        assert_eq!(render(r#"{{index .Cmd 1}}"#).unwrap(), "-c");
        assert_eq!(render(r#"{{(index .Networks "db.x").IPAddress}}"#).unwrap(), "10.1.0.2");
        assert_eq!(render(r"{{.Name}}\t{{.State.Running}}").unwrap(), "www\ttrue");
        assert_eq!(render("{{.None}}").unwrap(), "<no value>");
    }

    #[test]
    fn ranges_and_conditions() {
        assert_eq!(render("{{range .Networks}}{{.IPAddress}} {{end}}").unwrap(), "10.0.0.2 10.1.0.2 ");
        assert_eq!(
            render("{{range $k, $v := .Networks}}{{$k}}={{$v.IPAddress}};{{end}}").unwrap(),
            "web=10.0.0.2;db.x=10.1.0.2;"
        );
        assert_eq!(render("{{range .Cmd}}{{.}},{{$.Name}} {{end}}").unwrap(), "sh,www -c,www ");
        assert_eq!(render("{{if .State.Error}}bad{{else}}good{{end}}").unwrap(), "good");
        assert_eq!(render("{{if .State.Running}}up{{end}}").unwrap(), "up");
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        for (template, named) in [
            ("{{.Nmae}}", "Nmae"),
            ("{{.Name", "}}"),
            ("{{printf .Name}}", "printf"),
            ("{{range .Cmd}}", "end"),
            ("{{end}}", "end"),
            ("{{.Name | upper}}", "|"),
            ("{{len .State.Pid}}", "len"),
        ] {
            let error = render(template).unwrap_err().to_string();
            assert!(error.contains(named), "{template}: {error}");
        }
    }
}
