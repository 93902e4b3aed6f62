//! Aligned columns.

use super::Style;
use super::human::clean;
use std::io::{self, Write};

/// Side of a column that its text keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a heading. Column widths come from the content; the last column is never padded.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

/// Between two columns.
const GAP: &str = "  ";

impl Table {
    /// A table with these columns and no rows.
    pub fn new<const N: usize>(columns: [(&str, Align); N]) -> Self {
        let columns = columns.map(|(name, align)| (name.to_owned(), align));
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Control characters are made visible, so that no name can play with the terminal.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "one cell for each column");
        self.rows
            .push(cells.iter().map(|cell| clean(cell)).collect());
    }

    /// The same without its first column.
    pub fn without_first(mut self) -> Self {
        self.columns.remove(0);
        self.rows.iter_mut().for_each(|row| drop(row.remove(0)));
        self
    }

    /// The same without its last column.
    pub fn without_last(mut self) -> Self {
        self.columns.pop();
        self.rows.iter_mut().for_each(|row| drop(row.pop()));
        self
    }

    /// Writes heading and rows, each line behind `indent`.
    pub fn write(&self, out: &mut dyn Write, style: Style, indent: &str) -> io::Result<()> {
        let width = |text: &str| text.chars().count();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(n, (name, _))| {
                let cells = self.rows.iter().map(|row| width(&row[n]));
                cells.chain([width(name)]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &String>| {
            let mut text = String::new();
            for (n, cell) in cells.enumerate() {
                let space = " ".repeat(widths[n].saturating_sub(width(cell)));
                if n > 0 {
                    text.push_str(GAP);
                }
                match self.columns[n].1 {
                    Align::Left => text.push_str(&(cell.clone() + &space)),
                    Align::Right => text.push_str(&(space + cell)),
                }
            }
            text.trim_end().to_owned()
        };
        let heading = line(&mut self.columns.iter().map(|(name, _)| name));
        writeln!(out, "{indent}{}", style.bold(&heading))?;
        self.rows
            .iter()
            .try_for_each(|row| writeln!(out, "{indent}{}", line(&mut row.iter())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(table: &Table, on: bool) -> String {
        let mut out = Vec::new();
        table.write(&mut out, Style::new(on), "  ").unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new([
            ("id", Align::Left),
            ("bytes", Align::Right),
            ("name", Align::Left),
        ]);
        table.row(["a".into(), "7".into(), "é".into()]);
        table.row(["abcd".into(), "1234567".into(), String::new()]);
        assert_eq!(
            text(&table, false),
            "  id      bytes  name\n  a           7  é\n  abcd  1234567\n"
        );
        assert!(text(&table, true).starts_with("  \x1b[1mid"));
    }

    #[test]
    fn names_cannot_play_with_the_terminal() {
        let mut table = Table::new([("name", Align::Left)]);
        table.row(["\x1b[2Jred\n".into()]);
        assert_eq!(text(&table, false), "  name\n  \\x1b[2Jred\\n\n");
    }
}
