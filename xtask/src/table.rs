//! Text for people: headings, tables with aligned columns, numbers with units.

use std::io::IsTerminal;

/// A section's title; bold on a terminal, unless NO_COLOR is set.
pub fn heading(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match std::io::stdout().is_terminal() && !plain {
        true => format!("\x1b[1m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// Rows under a heading row; every column but the first is aligned to the right.
#[derive(Clone, Debug)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these column titles and no rows.
    pub fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self(vec![titles.map(str::to_owned).to_vec()])
    }

    /// Adds a row of as many cells as there are titles.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.0[0].len(), "one cell for each column");
        self.0.push(cells.to_vec());
    }

    /// The lines, indented by two spaces.
    pub fn lines(&self) -> String {
        let width = |cell: &String| cell.chars().count();
        let widths: Vec<usize> = (0..self.0[0].len())
            .map(|n| self.0.iter().map(|row| width(&row[n])).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.0 {
            let mut line = String::from(" ");
            for (n, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[n] - width(cell));
                line += &match n {
                    0 => format!(" {cell}{space}"),
                    _ => format!("  {space}{cell}"),
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// A time with three digits.
pub fn nanos(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match value {
        ..10.0 => format!("{value:.2} {unit}"),
        ..100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// A size in binary units.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A number with its thousands apart.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Values in order, for percentiles by nearest rank.
#[derive(Clone, Debug, Default)]
pub struct Sorted(Vec<u64>);

impl Sorted {
    /// Sorts the values.
    pub fn new(values: impl IntoIterator<Item = u64>) -> Self {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        Self(values)
    }

    /// The smallest value that `share` (of 1) of all values do not exceed; 0 of none.
    pub fn at(&self, share: f64) -> u64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        let last = self.0.len().saturating_sub(1);
        self.0
            .get(rank.saturating_sub(1).min(last))
            .copied()
            .unwrap_or(0)
    }

    /// No values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["phase", "p50"]);
        table.row(["stop".into(), "593 µs".into()]);
        table.row(["é".into(), "1.2 ms".into()]);
        assert_eq!(
            table.lines(),
            "  phase     p50\n  stop   593 µs\n  é      1.2 ms\n"
        );
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted = Sorted::new((1..=100).rev());
        assert_eq!(
            (sorted.at(0.5), sorted.at(0.99), sorted.at(1.0)),
            (50, 99, 100)
        );
        assert_eq!(Sorted::new([7]).at(0.5), 7);
        assert_eq!(Sorted::default().at(0.5), 0);
    }

    #[test]
    fn numbers_carry_units() {
        assert_eq!(nanos(593_013), "593 µs");
        assert_eq!(nanos(6_320_000), "6.32 ms");
        assert_eq!(bytes(2_891_579), "2.8 MiB");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(999), "999");
    }
}
