//! A strict JSON scanner (RFC 8259): one pass, no allocation, and byte positions for every error.

use std::borrow::Cow;

use crate::event::Span;

/// A syntax error, or a violated limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub at: usize,
    pub what: &'static str,
}

/// A string literal: the text between its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub span: Span,
    /// True if the string has escapes and must be unescaped.
    pub escaped: bool,
}

/// A JSON value, with its span in the text where needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(Span),
    Text(Text),
    Array,
    Object(Span),
}

/// The maximum nesting depth; the outermost object is at depth 1.
const MAX_DEPTH: usize = 64;

pub(super) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Scanner<'a> {
    /// Creates a scanner that starts at byte `at`.
    pub fn new(text: &'a str, at: usize) -> Self {
        Scanner { text, bytes: text.as_bytes(), at }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, SyntaxError> {
        Err(SyntaxError { at: self.at, what })
    }

    /// Returns the text between the quotes of a string.
    pub fn text(&self, text: &Text) -> &'a str {
        &self.text[text.span.range()]
    }

    /// Returns the next byte.
    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Scans an object, and calls `each` with the name, the value and the value's span of every member. `at` must be
    /// at the opening brace, and is after the closing brace afterwards.
    #[inline]
    pub fn members(
        &mut self,
        depth: usize,
        mut each: impl FnMut(Text, Value, Span),
    ) -> Result<(), SyntaxError> {
        self.visit_members(depth, |scanner, name| {
            let start = scanner.at;
            let value = scanner.value(depth + 1)?;
            each(name, value, Span::new(start..scanner.at));
            Ok(())
        })
    }

    /// Scans an object, and calls `visit` with the name of every member, at the beginning of its value; `visit` scans
    /// the value.
    #[inline]
    pub fn visit_members(
        &mut self,
        depth: usize,
        mut visit: impl FnMut(&mut Self, Text) -> Result<(), SyntaxError>,
    ) -> Result<(), SyntaxError> {
        if depth > MAX_DEPTH {
            return self.fail("values nest deeper than 64");
        }
        if self.peek() != Some(b'{') {
            return self.fail("expected an object");
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return self.fail("expected ':'");
            }
            self.at += 1;
            self.space();
            visit(self, name)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.fail("expected ',' or '}'"),
            }
        }
    }

    /// Scans an array, and calls `visit` with the index of every element, at its beginning; `visit` scans the element.
    #[inline]
    pub fn visit_elements(
        &mut self,
        depth: usize,
        mut visit: impl FnMut(&mut Self, usize) -> Result<(), SyntaxError>,
    ) -> Result<(), SyntaxError> {
        if depth > MAX_DEPTH {
            return self.fail("values nest deeper than 64");
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for index in 0.. {
            self.space();
            visit(self, index)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    break;
                }
                _ => return self.fail("expected ',' or ']'"),
            }
        }
        Ok(())
    }

    /// Checks that nothing but white space follows the outermost value.
    pub fn end(&mut self) -> Result<(), SyntaxError> {
        self.space();
        if self.at < self.bytes.len() { self.fail("expected nothing more") } else { Ok(()) }
    }

    /// Scans a value; an array or object is at nesting depth `depth`.
    #[inline]
    pub fn value(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Ok(Value::Number(Span::new(start..self.at)))
            }
            _ => self.other_value(depth),
        }
    }

    /// Scans a value that is neither a string nor a number.
    fn other_value(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let start = self.at;
        match self.peek() {
            Some(b'{') => {
                self.members(depth, |_, _, _| {})?;
                Ok(Value::Object(Span::new(start..self.at)))
            }
            Some(b'[') => {
                self.visit_elements(depth, |scanner, _| scanner.value(depth + 1).map(drop))?;
                Ok(Value::Array)
            }
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => self.fail("expected a value"),
        }
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, SyntaxError> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(value)
        } else {
            self.fail("expected a value")
        }
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return self.fail("expected a digit"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { self.fail("expected a digit") } else { Ok(()) }
    }

    /// Scans a string; rejects control characters, incomplete escapes, unpaired surrogates and NUL.
    #[inline]
    fn string(&mut self) -> Result<Text, SyntaxError> {
        if self.peek() != Some(b'"') {
            return self.fail("expected a string");
        }
        let start = self.at + 1;
        self.at = find_special(self.bytes, start);
        if self.peek() != Some(b'"') {
            return self.escaped_string(start);
        }
        self.at += 1;
        Ok(Text { span: Span::new(start..self.at - 1), escaped: false })
    }

    /// Scans the rest of a string, from its first escape on. The string begins at `start`.
    #[cold]
    fn escaped_string(&mut self, start: usize) -> Result<Text, SyntaxError> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text { span: Span::new(start..self.at - 1), escaped: true });
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return self.fail("control character in a string"),
                None => return self.fail("unterminated string"),
            }
            self.at = find_special(self.bytes, self.at);
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => match self.unit(self.at)? {
                0 => self.fail("NUL in a string"),
                0xD800..=0xDBFF => match self.unit(self.at + 6) {
                    Ok(0xDC00..=0xDFFF) => {
                        self.at += 12;
                        Ok(())
                    }
                    _ => self.fail("half a surrogate pair"),
                },
                0xDC00..=0xDFFF => self.fail("half a surrogate pair"),
                _ => {
                    self.at += 6;
                    Ok(())
                }
            },
            _ => self.fail("invalid escape"),
        }
    }

    /// Parses the UTF-16 code unit of the escape `\uXXXX` at `at`.
    fn unit(&self, at: usize) -> Result<u16, SyntaxError> {
        let digits =
            self.bytes.get(at..at + 6).filter(|escape| escape.starts_with(b"\\u")).map(|escape| &escape[2..]);
        digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
            .ok_or(SyntaxError { at, what: "expected \\u and four hexadecimal digits" })
    }

    /// Returns the text of a string with its escapes replaced.
    #[inline]
    pub fn unescaped(&self, text: &Text) -> Cow<'a, str> {
        if !text.escaped {
            return Cow::Borrowed(self.text(text));
        }
        let mut unescaped = String::new();
        self.unescape(text, &mut unescaped);
        Cow::Owned(unescaped)
    }

    /// Appends a string with its escapes replaced.
    pub fn unescape(&self, text: &Text, out: &mut String) {
        let mut rest = self.text(text);
        while let Some(at) = rest.find('\\') {
            out.push_str(&rest[..at]);
            let escape = &rest[at..];
            let (unescaped, len) = match escape.as_bytes()[1] {
                b'b' => ('\u{8}', 2),
                b'f' => ('\u{c}', 2),
                b'n' => ('\n', 2),
                b'r' => ('\r', 2),
                b't' => ('\t', 2),
                b'u' => {
                    let unit =
                        |at: usize| u16::from_str_radix(&escape[at + 2..at + 6], 16).unwrap_or_default();
                    let first = unit(0);
                    let pair = (0xD800..=0xDBFF).contains(&first);
                    let units = if pair { vec![first, unit(6)] } else { vec![first] };
                    let unescaped = char::decode_utf16(units).next().and_then(Result::ok);
                    (unescaped.unwrap_or(char::REPLACEMENT_CHARACTER), if pair { 12 } else { 6 })
                }
                itself => (char::from(itself), 2),
            };
            out.push(unescaped);
            rest = &escape[len..];
        }
        out.push_str(rest);
    }
}

/// Returns the index of the first quote, backslash or control character at or after `at`. Scans sixteen bytes at a time, in
/// the form that the compiler makes vector instructions of.
#[inline]
pub(super) fn find_special(bytes: &[u8], mut at: usize) -> usize {
    let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>()) {
        let mut marks = [0; 16];
        for (mark, &byte) in marks.iter_mut().zip(chunk) {
            *mark = if is_special(byte) { 0xff } else { 0 };
        }
        let marks = u128::from_le_bytes(marks);
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 16;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&byte| is_special(byte)).unwrap_or(rest.len())
}
