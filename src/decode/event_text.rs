//! The text of an event under construction: the record, followed by the values that are not ranges of it.

use std::ops::Range;

use headwater_dataflows::KeyHash;

use super::scan::{Scanner, Text};
use crate::event::{KeyKind, RecordKey, Span};
use crate::source::Raw;

/// The text of an event under construction.
pub(super) struct EventText<'a> {
    /// The original record.
    pub record: &'a str,
    /// The part after it, in a buffer of the decoder.
    pub appended: &'a mut String,
}

impl EventText<'_> {
    /// Returns the text of a span.
    pub fn str(&self, span: Span) -> &str {
        let Range { start, end } = span.range();
        match start.checked_sub(self.record.len()) {
            None => &self.record[start..end],
            Some(start) => &self.appended[start..end - self.record.len()],
        }
    }

    /// Returns the number of bytes so far.
    fn end(&self) -> usize {
        self.record.len() + self.appended.len()
    }

    /// Appends a text and returns its span.
    pub fn append(&mut self, piece: &str) -> Span {
        let start = self.end();
        self.appended.push_str(piece);
        Span::new(start..self.end())
    }

    /// Returns the span of a string literal of the record; appends its text if it has escapes.
    #[inline]
    pub fn literal(&mut self, text: Text) -> Span {
        if !text.escaped {
            return text.span;
        }
        let start = self.end();
        Scanner::new(self.record, 0).unescape(&text, self.appended);
        Span::new(start..self.end())
    }

    /// Appends the key of this kind and name, with its prefix.
    pub fn append_key(&mut self, kind: KeyKind<'_>, name: Span) -> Span {
        let start = self.end();
        match self.record.get(name.range()) {
            Some(name) => kind.push_prefixed(name, self.appended),
            None => {
                let name = self.str(name).to_owned();
                kind.push_prefixed(&name, self.appended);
            }
        }
        Span::new(start..self.end())
    }

    /// Returns the hash of the text of a span; 0 if it is absent.
    pub fn hash(&self, span: Span) -> KeyHash {
        if span == Span::ABSENT { KeyHash(0) } else { KeyHash::of(self.str(span).as_bytes()) }
    }

    /// Returns the key of the record of an event whose key has this name, if it has one.
    pub fn record_key(&self, raw: &Raw<'_>, name: Option<Span>) -> RecordKey {
        match raw.key {
            None => RecordKey::Absent,
            Some(key) if name.is_some_and(|name| self.str(name).as_bytes() == key) => RecordKey::Usual,
            Some(key) => RecordKey::Other(key.into()),
        }
    }

    /// Returns the whole text.
    pub fn joined(&self) -> Box<str> {
        let mut text = String::with_capacity(self.end());
        text.push_str(self.record);
        text.push_str(self.appended);
        text.into_boxed_str()
    }
}
