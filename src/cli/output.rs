//! Output of commands: results on standard output, progress by [`crate::logging::progress`] on standard error. All printing in this crate uses this
//! module, so that a closed pipe or a full disk never causes a panic.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

use thiserror::Error;

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

#[cfg(test)]
mod tests {
    use super::*;

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
