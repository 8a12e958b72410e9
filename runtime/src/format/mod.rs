//! What lists and inspections are printed with: tables, Go-like templates and ages in Docker's words.
//!
//! Nothing here knows containers or networks: rows come in as text, objects as JSON.

pub mod age;
pub mod table;
pub mod template;

use anyhow::Result;
use serde_json::{Map, Value};
use std::io::{self, Write};
use table::Table;
use template::Template;

/// One line of a listing: its columns' keys (as templates name them) and texts, in Docker's order.
pub type Row = Vec<(&'static str, String)>;

/// A row as a JSON object, in the order of its columns.
fn object(row: &Row) -> Value {
    Value::Object(row.iter().map(|(key, text)| ((*key).into(), text.clone().into())).collect::<Map<_, _>>())
}

/// Renders a listing.
///
/// `columns` are the table's: a key of the rows and the heading above it. `format` is what `--format` got: nothing or
/// `table` for the table, `json` for one JSON object a line, `table TEMPLATE` for a table of other columns, else a
/// template that is applied to each row.
///
/// # Errors
/// A template that cannot be parsed, or names a field that the rows have not.
pub fn listing(columns: &[(&str, &str)], rows: &[Row], format: Option<&str>) -> Result<String> {
    match format.map(str::trim) {
        None | Some("" | "table") => {
            let cell = |row: &Row, key: &str| {
                row.iter().find(|(name, _)| *name == key).map(|(_, text)| text.clone()).unwrap_or_default()
            };
            let mut table = Table::new(columns.iter().map(|(_, heading)| (*heading).to_owned()));
            for row in rows {
                table.row(columns.iter().map(|(key, _)| cell(row, key)));
            }
            Ok(table.render())
        }
        Some("json") => Ok(rows.iter().map(|row| format!("{}\n", object(row))).collect()),
        Some(text) => match text.strip_prefix("table ") {
            Some(text) => custom_table(columns, rows, text),
            None => {
                let template = Template::parse(text)?;
                let line = |row| template.render(&object(row)).map(|line| line + "\n");
                rows.iter().map(line).collect()
            }
        },
    }
}

/// `table {{.ID}}\t{{.Name}}`: columns part at tabs, headings are the known ones or the field's name in capitals.
fn custom_table(columns: &[(&str, &str)], rows: &[Row], text: &str) -> Result<String> {
    let cells: Vec<Template> =
        text.replace("\\t", "\t").split('\t').map(Template::parse).collect::<Result<_>>()?;
    let heading = |cell: &Template| {
        let field = cell.first_field().unwrap_or_default();
        let known = columns.iter().find(|(key, _)| *key == field).map(|(_, heading)| (*heading).to_owned());
        known.unwrap_or_else(|| field.to_uppercase())
    };
    let mut table = Table::new(cells.iter().map(heading));
    for row in rows {
        let row = object(row);
        let cells: Vec<String> = cells.iter().map(|cell| cell.render(&row)).collect::<Result<_>>()?;
        table.row(cells);
    }
    Ok(table.render())
}

/// Renders what `inspect` found: a JSON array, or with a template one line an object.
///
/// # Errors
/// As [`listing`].
pub fn inspection(objects: &[Value], format: Option<&str>) -> Result<String> {
    match format.map(str::trim) {
        None | Some("") => Ok(four_spaces(&Value::Array(objects.to_vec()))? + "\n"),
        Some("json") => Ok(format!("{}\n", Value::Array(objects.to_vec()))),
        Some(text) => {
            let template = Template::parse(text)?;
            objects.iter().map(|object| template.render(object).map(|line| line + "\n")).collect()
        }
    }
}

/// JSON with an indentation of four, as Docker prints it.
fn four_spaces(value: &Value) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(value, &mut serializer)?;
    Ok(String::from_utf8(out)?)
}

/// Writes to stdout. A reader that has gone away (`runtime ps | head -1`) is not an error.
///
/// # Errors
/// Any other failure of the write.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The first 12 digits of an ID, or all of it.
pub fn short(id: &str, whole: bool) -> String {
    if whole { id.to_owned() } else { id.chars().take(12).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: &[(&str, &str)] = &[("ID", "NETWORK ID"), ("Name", "NAME")];

    fn rows() -> Vec<Row> {
        vec![
            vec![("ID", "0123456789ab".into()), ("Name", "web".into()), ("Driver", "bridge".into())],
            vec![
                ("ID", "ba9876543210".into()),
                ("Name", "a-longer-name".into()),
                ("Driver", "bridge".into()),
            ],
        ]
    }

    #[test]
    fn a_list_is_a_table_of_its_columns() {
        let text = listing(COLUMNS, &rows(), None).unwrap();
        assert_eq!(text, "NETWORK ID     NAME\n0123456789ab   web\nba9876543210   a-longer-name\n");
    }

    #[test]
    fn a_list_as_json_is_an_object_a_line() {
        let text = listing(COLUMNS, &rows(), Some("json")).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert_eq!(text.lines().next(), Some(r#"{"ID":"0123456789ab","Name":"web","Driver":"bridge"}"#));
        assert_eq!(listing(COLUMNS, &rows(), Some("{{json .}}")).unwrap(), text);
    }

    #[test]
    fn a_list_by_template() {
        assert_eq!(listing(COLUMNS, &rows(), Some("{{.Name}}")).unwrap(), "web\na-longer-name\n");
        let text = listing(COLUMNS, &rows(), Some(r"table {{.Name}}\t{{.Driver}}")).unwrap();
        assert_eq!(text.lines().next(), Some("NAME            DRIVER"));
        assert!(listing(COLUMNS, &rows(), Some("{{.Nmae}}")).is_err());
    }

    #[test]
    fn an_inspection_is_an_array_indented_by_four() {
        let text = inspection(&[json!({"Name": "web"})], None).unwrap();
        assert_eq!(text, "[\n    {\n        \"Name\": \"web\"\n    }\n]\n");
        assert_eq!(inspection(&[json!({"Name": "web"})], Some("{{.Name}}")).unwrap(), "web\n");
    }
}
