//! Errors of expressions: what is wrong, where, and what to write instead.

use std::fmt;

use crate::spelling::nearest;

/// The reason why an expression was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CelError {
    /// The byte of the source at which the error is.
    pub offset: usize,
    /// The line of the source, from 1.
    pub line: usize,
    /// The character of the line, from 1.
    pub column: usize,
    /// The error itself.
    pub message: String,
    /// The expression to write instead, or what else to do.
    pub suggestion: Option<String>,
}

impl CelError {
    /// Sets line and column from the offset.
    pub(super) fn located(mut self, source: &str) -> CelError {
        let before = source.get(..self.offset).unwrap_or(source);
        let line = before.rsplit('\n').next().unwrap_or_default();
        self.line = 1 + before.matches('\n').count();
        self.column = 1 + line.chars().count();
        self
    }

    pub(super) fn new(offset: usize, message: impl Into<String>) -> CelError {
        CelError { offset, line: 1, column: 1, message: message.into(), suggestion: None }
    }

    pub(super) fn suggest(mut self, suggestion: impl Into<String>) -> CelError {
        self.suggestion = Some(suggestion.into());
        self
    }
}

impl fmt::Display for CelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 1 {
            write!(f, "line {}, ", self.line)?;
        }
        write!(f, "column {}: {}", self.column, self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; {suggestion}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CelError {}

/// Returns "did you mean X?" of the nearest of the known names, else the list of all of them.
pub(super) fn names<'a>(word: &str, kind: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    match nearest(word, known.iter().copied(), word.len().div_ceil(3).min(3)) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("known {kind}: {}", known.join(", ")),
    }
}
