//! A strict scanner of JSON (RFC 8259): one pass, no allocation, byte positions for every complaint.

use std::ops::Range;

/// Why a text is not JSON, or more of it than is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Syntax {
    pub at: usize,
    pub what: &'static str,
}

/// A string's contents, between its quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub range: Range<usize>,
    /// Whether it has escapes, so that its contents are not what it means.
    pub escaped: bool,
}

/// What kind of value stands in a range of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Bool,
    Number(Range<usize>),
    Text(Text),
    Array,
    Object(Range<usize>),
}

/// How deep values may nest; the outermost object is at depth 1.
const MAX_DEPTH: usize = 64;

pub(super) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Scanner<'a> {
    /// From `at` on. The text is UTF-8 already.
    pub fn new(text: &'a str, at: usize) -> Self {
        Scanner { text, bytes: text.as_bytes(), at }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, Syntax> {
        Err(Syntax { at: self.at, what })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// The members of an object, each with its name, its value and the range that the value stands in. `at` is at
    /// its opening brace, and behind its closing one afterwards.
    pub fn members(
        &mut self,
        depth: usize,
        each: &mut dyn FnMut(Text, Value, Range<usize>),
    ) -> Result<(), Syntax> {
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
            let start = self.at;
            let value = self.value(depth + 1)?;
            each(name, value, start..self.at);
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

    /// Behind the outermost value nothing may follow.
    pub fn end(&mut self) -> Result<(), Syntax> {
        self.space();
        if self.at < self.bytes.len() { self.fail("expected nothing more") } else { Ok(()) }
    }

    /// A value at this depth, if it is an array or an object.
    fn value(&mut self, depth: usize) -> Result<Value, Syntax> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'{') => {
                self.members(depth, &mut |_, _, _| {})?;
                Ok(Value::Object(start..self.at))
            }
            Some(b'[') => {
                self.array(depth)?;
                Ok(Value::Array)
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Ok(Value::Number(start..self.at))
            }
            Some(b't') => self.word("true", Value::Bool),
            Some(b'f') => self.word("false", Value::Bool),
            Some(b'n') => self.word("null", Value::Null),
            _ => self.fail("expected a value"),
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, Syntax> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(value)
        } else {
            self.fail("expected a value")
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Syntax> {
        if depth > MAX_DEPTH {
            return self.fail("values nest deeper than 64");
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            self.value(depth + 1)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.fail("expected ',' or ']'"),
            }
        }
    }

    fn number(&mut self) -> Result<(), Syntax> {
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

    fn digits(&mut self) -> Result<(), Syntax> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { self.fail("expected a digit") } else { Ok(()) }
    }

    /// A string, checked: no control characters, whole escapes, surrogates in pairs, no NUL.
    fn string(&mut self) -> Result<Text, Syntax> {
        if self.peek() != Some(b'"') {
            return self.fail("expected a string");
        }
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at = plain_until(self.bytes, self.at);
            match self.peek() {
                Some(b'"') => {
                    let range = start..self.at;
                    self.at += 1;
                    return Ok(Text { range, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.fail("control character in a string"),
                None => return self.fail("the string does not end"),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Syntax> {
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
            _ => self.fail("no such escape"),
        }
    }

    /// The UTF-16 unit that is written `\uXXXX` at `at`.
    fn unit(&self, at: usize) -> Result<u16, Syntax> {
        let digits =
            self.bytes.get(at..at + 6).filter(|escape| escape.starts_with(b"\\u")).map(|escape| &escape[2..]);
        digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
            .ok_or(Syntax { at, what: "expected \\u and four hexadecimal digits" })
    }

    /// Appends what a string means.
    pub fn unescape(&self, text: &Text, out: &mut String) {
        let mut rest = &self.text[text.range.clone()];
        while let Some(at) = rest.find('\\') {
            out.push_str(&rest[..at]);
            let escape = &rest[at..];
            let (meaning, len) = match escape.as_bytes()[1] {
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
                    let meaning = char::decode_utf16(units).next().and_then(Result::ok);
                    (meaning.unwrap_or(char::REPLACEMENT_CHARACTER), if pair { 12 } else { 6 })
                }
                itself => (char::from(itself), 2),
            };
            out.push(meaning);
            rest = &escape[len..];
        }
        out.push_str(rest);
    }
}

/// The first place from `at` on that holds a quote, a backslash or a control character: eight bytes at a time.
fn plain_until(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    /// Marks the zero bytes of a word, and possibly bytes above a zero byte.
    fn zeros(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word & HIGHS
    }
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quotes = zeros(word ^ (ONES * u64::from(b'"')));
        let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
        let controls = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let marks = quotes | backslashes | controls;
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\').unwrap_or(rest.len())
}
