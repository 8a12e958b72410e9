//! Columns of text, as wide as their widest cell.

/// Prints rows below a heading.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&heading, &widths);
    for row in rows {
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
    fn columns_are_as_wide_as_their_widest_cell_and_no_blank_ends_a_line() {
        let rows = [["a".to_owned(), "10.42.0.0/16".to_owned()], ["longer".to_owned(), String::new()]];
        let text = super::table(["NAME", "SUBNET"], &rows);
        assert_eq!(text, "NAME     SUBNET\na        10.42.0.0/16\nlonger\n");
    }
}
