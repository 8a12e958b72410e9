//! The table: what was measured, both sides, the ratio, the budget, and whether it holds.

use serde_json::{Value, json};
use std::time::Duration;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Nanoseconds.
    Ns,
    /// Per second.
    PerSecond,
    /// MiB.
    MiB,
    /// 10⁹ bits per second.
    GBitPerSecond,
    /// A number of things.
    Count,
}

/// What a row has to be.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// Nothing: for information.
    None,
    /// Weft at most this share of the other side.
    RatioAtMost(f64),
    /// Weft at least this many times the other side.
    RatioAtLeast(f64),
    /// Weft at most this.
    AtMost(f64),
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    what: String,
    other: Option<f64>,
    weft: f64,
    unit: Unit,
    budget: Budget,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.other.filter(|other| *other > 0.0).map(|other| self.weft / other)
    }

    fn verdict(&self) -> Option<bool> {
        match self.budget {
            Budget::None => None,
            Budget::RatioAtMost(most) => Some(self.ratio().is_some_and(|ratio| ratio <= most)),
            Budget::RatioAtLeast(least) => Some(self.ratio().is_some_and(|ratio| ratio >= least)),
            Budget::AtMost(most) => Some(self.weft <= most),
        }
    }

    fn budget(&self) -> String {
        match self.budget {
            Budget::None => String::new(),
            Budget::RatioAtMost(most) if most < 1.0 => format!("≤ 1/{:.0}", 1.0 / most),
            Budget::RatioAtMost(most) => format!("≤ {most}×"),
            Budget::RatioAtLeast(least) => format!("≥ {least}×"),
            Budget::AtMost(most) => format!("≤ {}", shown(most, self.unit)),
        }
    }
}

fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Ms => format!("{value:.2} ms"),
        Unit::Ns => format!("{value:.0} ns"),
        Unit::PerSecond => format!("{value:.0} /s"),
        Unit::MiB => format!("{value:.1} MiB"),
        Unit::GBitPerSecond => format!("{value:.1} Gbit/s"),
        Unit::Count => format!("{value:.0}"),
    }
}

/// All rows so far.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    table: bool,
}

impl Report {
    /// An empty one, to be printed as a table or as JSON.
    pub fn new(table: bool) -> Report {
        Report { rows: Vec::new(), notes: Vec::new(), table }
    }

    /// Adds a row; says on standard error that it is there, as a whole run takes minutes.
    pub fn row(&mut self, what: &str, other: Option<f64>, weft: f64, unit: Unit, budget: Budget) {
        let row = Row { what: what.to_owned(), other, weft, unit, budget };
        eprintln!("measured: {what}: {}", shown(weft, unit));
        self.rows.push(row);
    }

    /// Adds a sentence below the table.
    pub fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Whether every budget holds.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.verdict() != Some(false))
    }

    /// Prints everything.
    pub fn print(&self) {
        if !self.table {
            let rows: Vec<Value> = self.rows.iter().map(as_json).collect();
            println!("{:#}", json!({"rows": rows, "notes": self.notes, "passed": self.passed()}));
            return;
        }
        let head = ["what", "peer or before", "Weft", "ratio", "budget", ""].map(str::to_owned);
        let mut lines = vec![head];
        for row in &self.rows {
            let ratio = match row.ratio() {
                Some(ratio) if ratio < 0.5 => format!("1/{:.1}", 1.0 / ratio),
                Some(ratio) => format!("{ratio:.2}×"),
                None => String::new(),
            };
            let verdict = row.verdict().map_or("", |held| if held { "PASS" } else { "FAIL" });
            let other = row.other.map(|other| shown(other, row.unit)).unwrap_or_default();
            lines.push([
                row.what.clone(),
                other,
                shown(row.weft, row.unit),
                ratio,
                row.budget(),
                verdict.to_owned(),
            ]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
                let pad = " ".repeat(width - cell.chars().count());
                if at == 0 || at == 5 { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
            });
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        for note in &self.notes {
            println!("{note}");
        }
    }
}

fn as_json(row: &Row) -> Value {
    let unit = match row.unit {
        Unit::Ms => "ms",
        Unit::Ns => "ns",
        Unit::PerSecond => "per second",
        Unit::MiB => "MiB",
        Unit::GBitPerSecond => "Gbit/s",
        Unit::Count => "count",
    };
    json!({"what": row.what, "peer": row.other, "weft": row.weft, "unit": unit, "ratio": row.ratio(),
           "budget": row.budget(), "passed": row.verdict()})
}

/// The median, in milliseconds.
pub fn median(times: &[Duration]) -> f64 {
    quantile(times, 0.5)
}

/// The median of plain figures.
pub fn median_of(figures: &[f64]) -> f64 {
    quantile_of(figures, 0.5)
}

/// The figure below which this share of them lies.
pub fn quantile_of(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The value below which this share of the times lies, in milliseconds.
pub fn quantile(times: &[Duration], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_one_in_the_middle() {
        let times: Vec<_> = [5, 1, 9].map(Duration::from_millis).to_vec();
        assert!((median(&times) - 5.0).abs() < 1e-9);
        assert!((quantile(&times, 1.0) - 9.0).abs() < 1e-9);
        assert!((median_of(&[5.0, 1.0, 9.0]) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn budgets_are_kept_or_not() {
        let mut report = Report::new(true);
        report.row("a", Some(60.0), 2.0, Unit::Ms, Budget::RatioAtMost(1.0 / 25.0));
        assert!(report.passed());
        report.row("b", None, 7.0, Unit::MiB, Budget::AtMost(6.0));
        assert!(!report.passed());
    }
}
