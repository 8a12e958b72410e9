//! Tables as Docker prints them: no lines, columns padded to their widest cell and three spaces more.

/// Spaces between a column's widest cell and the next column.
const GAP: usize = 3;

/// A table that grows row by row.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub fn new(headings: impl IntoIterator<Item = String>) -> Table {
        Table { rows: vec![headings.into_iter().collect()] }
    }

    /// Adds a row. Control characters are taken out, so that a name or a command cannot break the lines.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| cell.chars().filter(|c| !c.is_control()).collect();
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The whole text, with a newline after each row and none of the padding at its end.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + GAP - cell.chars().count()));
            }
            line.truncate(line.trim_end().len());
            line.push('\n');
            line
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_three_more() {
        let mut table = Table::new(["NAME".into(), "DRIVER".into()]);
        table.row(["a".into(), "bridge".into()]);
        table.row(["größer".into(), String::new()]);
        assert_eq!(table.render(), "NAME     DRIVER\na        bridge\ngrößer\n");
    }

    #[test]
    fn a_cell_cannot_break_the_line() {
        let mut table = Table::new(["COMMAND".into()]);
        table.row(["sh -c 'a\nb'".into()]);
        assert_eq!(table.render(), "COMMAND\nsh -c 'ab'\n");
    }
}
