//! Output of commands: results on standard output, progress by [`crate::logging::progress`] on standard error. All printing in this crate uses this
//! module, so that a closed pipe or a full disk never causes a panic.

use std::fmt::{self, Arguments};
use std::io::{ErrorKind, Write};

use serde_json::Value;
use thiserror::Error;

/// `print!` that returns errors instead of panicking.
macro_rules! out {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!($($text)*)) };
}

/// `println!` that returns errors instead of panicking.
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// `eprintln!` that never panics, and prints JSON if the log format is JSON.
macro_rules! note {
    ($($text:tt)*) => { $crate::logging::progress(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {note, out, outln};

pub(crate) use crate::connectors::counted;

/// An error of writing to standard output.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The reader closed standard output, as `head` does.
    #[error("standard output is closed")]
    Closed,
    /// The write failed.
    #[error("cannot write to standard output")]
    Failed(#[source] std::io::Error),
}

/// Prints to standard output.
pub fn print(text: Arguments<'_>) -> Result<(), OutputError> {
    write(&mut std::io::stdout().lock(), text)
}

fn write(to: &mut impl Write, text: Arguments<'_>) -> Result<(), OutputError> {
    to.write_fmt(text).and_then(|()| to.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => OutputError::Closed,
        _ => OutputError::Failed(error),
    })
}

/// Prints the result of a command: one JSON object on one line, or text.
pub fn report(
    as_json: bool,
    json: impl FnOnce() -> Value,
    text: impl FnOnce() -> String,
) -> Result<(), OutputError> {
    if as_json { outln!("{}", json()) } else { out!("{}", text()) }
}

/// Returns the text as one line for a terminal, with control characters escaped, truncated to `max` characters.
pub fn escaped(text: &str, max: usize) -> String {
    let mut line = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == max {
            line.push('…');
            break;
        }
        push_escaped(c, &mut line);
    }
    line
}

/// Appends a character to a line for a terminal, escaped if a terminal does not display it as it is.
pub fn push_escaped(c: char, line: &mut String) {
    match c {
        '\\' => line.push_str("\\\\"),
        c if c.is_control() || is_invisible(c) => line.extend(c.escape_default()),
        c => line.push(c),
    }
}

/// Returns true for characters that a terminal does not display, or that change the direction of a line.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A table of text. Columns of numbers are aligned to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table with only headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn add<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let column = |at: usize| self.rows.iter().map(move |row| row[at].as_str());
        let widths: Vec<_> =
            (0..columns).map(|at| column(at).map(|cell| cell.chars().count()).max()).collect();
        let is_number = |cell: &str| cell == "-" || cell.parse::<f64>().is_ok();
        let is_numeric: Vec<_> = (0..columns).map(|at| column(at).skip(1).all(is_number)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let width = widths[at].unwrap_or_default();
                line += &match is_numeric[at] {
                    true => format!("{cell:>width$}  "),
                    false => format!("{cell:<width$}  "),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_numbers_to_the_right() {
        let mut table = Table::new(&["topic", "partitions"]);
        table.add(["alerts".to_owned(), "3".to_owned()]);
        table.add(["a".to_owned(), "-".to_owned()]);
        assert_eq!(table.to_string(), "topic   partitions\nalerts           3\na                -\n");
    }

    #[test]
    fn a_full_disk_and_a_closed_pipe_are_errors() {
        let mut full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let failed = anyhow::Error::from(write(&mut full, format_args!("x")).expect_err("it is full"));
        assert_eq!(
            format!("{failed:#}"),
            "cannot write to standard output: No space left on device (os error 28)"
        );

        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert!(matches!(write(&mut writer, format_args!("x")), Err(OutputError::Closed)));
    }
}
