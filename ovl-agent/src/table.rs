//! Columns of text, as wide as their widest cell.

/// A text of the store or another program on one line of a terminal, which does nothing that the text says: control characters,
/// and those that change the direction of writing (Unicode, UAX #9), are escaped.
pub fn plain(text: &str) -> String {
    let is_printed = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_printed(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// Prints rows below a heading.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&heading, &widths);
    for row in &rows {
        text.push_str(&line(&row.each_ref().map(String::as_str), &widths));
    }
    text
}

fn line(cells: &[&str], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        line.push_str(&format!("{cell:<width$}   "));
    }
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    #[test]
    fn texts_of_others_do_nothing_to_a_terminal() {
        assert_eq!(super::plain("\u{1b}[31m\r\n\u{9b}\u{202e}é ü"), r"\u{1b}[31m\r\n\u{9b}\u{202e}é ü");
        let text = super::table(["NAME"], &[["a\nb\u{7}".to_owned()]]);
        assert_eq!(text, "NAME\na\\nb\\u{7}\n");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_no_blank_ends_a_line() {
        let rows = [["a".to_owned(), "10.42.0.0/16".to_owned()], ["longer".to_owned(), String::new()]];
        let text = super::table(["NAME", "SUBNET"], &rows);
        assert_eq!(text, "NAME     SUBNET\na        10.42.0.0/16\nlonger\n");
    }
}
