//! Figures and tables as text for people.

/// Formats a time in ms, as short as possible.
pub(crate) fn time(millis: f64) -> String {
    match millis {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

/// A count with its thousands separated.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn cores(cores: f64) -> String {
    format!("{cores:.2}")
}

/// What the columns after the first hold, and how they are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Figures, to the right.
    Figures,
    /// Text, to the left.
    Text,
}

/// A table in lines.
pub(super) fn align(head: &[&str], rows: &[Vec<String>], align: Align) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut row = |cells: Vec<&str>| {
        let cells = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == 0 || align == Align::Text {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        let cells: Vec<String> = cells.collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    };
    row(head.to_vec());
    for cells in rows {
        row(cells.iter().map(String::as_str).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: times and counts are short and lose nothing that matters.
    #[test]
    fn figures_are_readable() {
        assert_eq!(
            [0.5, 12.4, 999.0, 12_345.0].map(time),
            ["0.50 ms", "12 ms", "999 ms", "12.35 s"]
        );
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
