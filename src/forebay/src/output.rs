//! Tables and JSON, from the same values.

use crate::cli::Format;
use comfy_table::{CellAlignment, Table, TableStyle};
use forebay_control::ControlError;
use forebay_control::error::Result;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Prints a value: as JSON, or as what `table` makes of it.
pub(crate) fn show<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<()> {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(value)
                .map_err(|error| ControlError::failed(format!("no JSON of the answer: {error}")))?;
            print(&text)
        }
        Format::Table => print(&table(value)),
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn line<T: Serialize>(value: &T) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|error| ControlError::failed(format!("no JSON of the answer: {error}")))?;
    print(&text)
}

/// Prints a text and ends its line. A reader that has gone ends the program quietly, as `head`
/// expects.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let newline: &[u8] = if text.is_empty() || text.ends_with('\n') { b"" } else { b"\n" };
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(newline))
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(ControlError::failed(format!("standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Whether somebody watches: then there are progress bars.
pub(crate) fn is_watched(format: Format) -> bool {
    format == Format::Table && io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// A plain table; columns named in `right` hold numbers.
pub(crate) fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        // Two blanks between columns, none before the first.
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).copied().unwrap_or_default())
}

/// A count for people.
pub(crate) fn count(value: f64) -> String {
    match value {
        v if v >= 999_950.0 => format!("{:.2}M", v / 1e6),
        v if v >= 9_999.5 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// Microseconds for people.
pub(crate) fn micros(us: f64) -> String {
    match us {
        us if us >= 9_999_950.0 => format!("{:.1} s", us / 1e6),
        us if us >= 9_999.5 => format!("{:.1} ms", us / 1e3),
        us => format!("{us:.0} us"),
    }
}

/// Seconds for people.
pub(crate) fn seconds(s: u64) -> String {
    match s {
        s if s >= 86_400 => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
        s if s >= 3600 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        s if s >= 60 => format!("{}m{:02}s", s / 60, s % 60),
        s => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(
            (count(12.4), count(12_400.0), count(1.5e6)),
            ("12".into(), "12.4k".into(), "1.50M".into())
        );
        assert_eq!((micros(80.2), micros(12_340.0)), ("80 us".into(), "12.3 ms".into()));
        assert_eq!(
            (seconds(59), seconds(3700), seconds(90_000)),
            ("59s".into(), "1h01m".into(), "1d01h".into())
        );
    }

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let text = table(
            &["NAME", "N"],
            &[1],
            vec![vec!["a".into(), "10".into()], vec!["long".into(), "9".into()]],
        );
        assert_eq!(text, "NAME   N\na     10\nlong   9\n");
    }
}
