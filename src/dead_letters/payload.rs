//! The text of a payload: the values in it, the place of an error, masked values, and edits. The payload need not be
//! valid JSON: whatever can be read before the first error is used.

use std::ops::Range;

use super::Place;

/// The maximum nesting depth, the same as the decoder's.
const MAX_DEPTH: usize = 64;

/// The text that replaces a masked value.
pub const MASK: &str = "\"***\"";

/// Calls `each` for every value of an object, at every depth, up to the first syntax error: with the path of names that
/// leads to the value, separated by dots, and its bytes. An element of an array has the path of the array. Returns the
/// byte of the error; None if the payload is one JSON value.
fn visit(text: &str, each: &mut dyn FnMut(&str, Range<usize>)) -> Option<usize> {
    let mut scan = Scan { text, bytes: text.as_bytes(), at: 0, path: String::new(), each };
    scan.space();
    let scanned = scan.value(1).and_then(|()| {
        scan.space();
        if scan.at < scan.bytes.len() { Err(()) } else { Ok(()) }
    });
    scanned.err().map(|()| scan.at)
}

struct Scan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    /// The current byte; that of the error, after one.
    at: usize,
    path: String,
    each: &'a mut dyn FnMut(&str, Range<usize>),
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), ()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(())
    }

    fn value(&mut self, depth: usize) -> Result<(), ()> {
        match self.peek() {
            Some(b'{' | b'[') if depth > MAX_DEPTH => Err(()),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(drop),
            _ => self.scalar(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), ()> {
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
            self.expect(b':')?;
            self.space();
            let (length, start) = (self.path.len(), self.at);
            if depth > 1 && length > 0 {
                self.path.push('.');
            }
            self.path += &unescaped(&self.text[name]);
            let scanned = self.value(depth + 1);
            // An incomplete value is a value, too: it may have to be masked.
            (self.each)(&self.path, start..self.at);
            self.path.truncate(length);
            scanned?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b'}'),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), ()> {
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
                _ => return self.expect(b']'),
            }
        }
    }

    /// Scans a string; returns its range with the quotes. The error of an incomplete string is at its beginning.
    fn string(&mut self) -> Result<Range<usize>, ()> {
        let start = self.at;
        self.expect(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at);
                }
                Some(b'\\') if self.at + 1 < self.bytes.len() => {
                    // The escaped character may have several bytes.
                    self.at += 1;
                    self.at += self.text[self.at..].chars().next().map_or(1, char::len_utf8);
                }
                Some(0x20..) => self.at += 1,
                _ => {
                    self.at = start;
                    return Err(());
                }
            }
        }
    }

    /// Scans a number or a literal.
    fn scalar(&mut self) -> Result<(), ()> {
        let rest = &self.text[self.at..];
        let len =
            rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
        let word = &rest[..len];
        // A number ends at its first wrong character; the error is there.
        let valid = match word.as_bytes().first() {
            None => return Err(()),
            Some(b'-' | b'0'..=b'9') => number_len(word),
            Some(_) if ["true", "false", "null"].contains(&word) => len,
            Some(_) => 0,
        };
        self.at += valid;
        if valid == len { Ok(()) } else { Err(()) }
    }
}

/// Returns the length of the longest prefix that is a JSON number.
fn number_len(word: &str) -> usize {
    let is_number = |text: &str| serde_json::from_str::<serde_json::Number>(text).is_ok();
    (1..=word.len().min(400)).rev().find(|&len| is_number(&word[..len])).unwrap_or(0)
}

/// Returns the text of a string literal.
fn unescaped(literal: &str) -> String {
    serde_json::from_str(literal).unwrap_or_else(|_| literal.trim_matches('"').to_owned())
}

/// Returns the bytes of the last value with this path.
pub fn find(text: &str, path: &str) -> Option<Range<usize>> {
    let mut found = None;
    visit(text, &mut |of, range| {
        if of == path {
            found = Some(range);
        }
    });
    found
}

/// Returns the place that a decoder's error is about: the position in the message, or the value of the field.
pub fn place(text: &str, field: Option<&str>, message: &str) -> Option<Place> {
    let at_byte = message.rsplit_once(" at byte ").and_then(|(_, number)| number.parse::<usize>().ok());
    let range = match at_byte {
        Some(at) => {
            let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at))?;
            at..at + text[at..].chars().next().map_or(0, char::len_utf8)
        }
        None => find(text, field?)?,
    };
    let characters = |bytes: usize| text[..bytes].chars().count();
    Some(Place { start: characters(range.start), end: characters(range.end) })
}

/// Returns the place of a decoder's error in a masked payload.
pub fn place_in_masked(masked: &Masked, field: Option<&str>, message: &str) -> Option<Place> {
    let is_syntax = message.contains(" at byte ");
    if !is_syntax || masked.secrets.is_empty() {
        return place(&masked.text, field, message);
    }
    let characters = |text: &str| text.chars().count();
    let start = characters(&masked.text[..masked.cut?]);
    Some(Place { start, end: characters(&masked.text) })
}

/// Returns true if a mask applies to a path: it is the whole path, or its last name.
fn is_masked(path: &str, fields: &[String]) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    fields.iter().any(|field| field == path || field == last)
}

/// A payload with masked values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The payload.
    pub text: String,
    /// The texts that were replaced.
    pub secrets: Vec<String>,
    /// The byte from which on all is replaced, because of a syntax error.
    pub cut: Option<usize>,
}

/// Replaces the values of fields. From a syntax error on, nothing says what a value is, so all the rest is replaced.
pub fn mask(text: &str, fields: &[String]) -> Masked {
    let mut ranges = Vec::new();
    let error = visit(text, &mut |path, range| {
        if is_masked(path, fields) {
            ranges.push(range);
        }
    });
    ranges.extend(error.filter(|_| !fields.is_empty()).map(|at| at..text.len()));
    // An enclosing value first.
    ranges.sort_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
    let mut masked = Masked { text: String::with_capacity(text.len()), secrets: Vec::new(), cut: None };
    let mut at = 0;
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        if range.start < at {
            continue;
        }
        masked.text += &text[at..range.start];
        masked.cut = (error == Some(range.start) && range.end == text.len()).then_some(masked.text.len());
        masked.text += MASK;
        let secret = &text[range.clone()];
        // A string as it is written, and as it reads.
        if let Some(inner) = secret.strip_prefix('"') {
            let inner = inner.strip_suffix('"').unwrap_or(inner);
            masked.secrets.extend([inner.to_owned(), unescaped(secret)]);
        } else {
            masked.secrets.push(secret.to_owned());
        }
        at = range.end;
    }
    masked.text += &text[at..];
    masked.secrets.retain(|secret| !secret.is_empty());
    masked.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    masked
}

impl Masked {
    /// Returns a text without the replaced values. A short one is replaced only where it is a word: a letter of its own
    /// is in most texts.
    pub fn clean(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| replace(&text, secret))
    }
}

/// The length from which on a replaced value is looked for within words, in bytes.
const LONG: usize = 4;

fn replace(text: &str, secret: &str) -> String {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(secret) {
        let end = at + secret.len();
        let before = if at == 0 { out.chars().next_back() } else { rest[..at].chars().next_back() };
        let within = is_part(before) || is_part(rest[end..].chars().next());
        out += &rest[..at];
        out += if within && secret.len() < LONG { secret } else { "***" };
        rest = &rest[end..];
    }
    out + rest
}

/// Sets a field of a JSON object to a value, and leaves all other text as it is.
///
/// # Errors
/// If the payload is not an object, or the path leads through a value that is not an object.
pub fn set(text: &str, path: &str, json: &str) -> Result<String, String> {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let (mut found, mut object) = (None, parent.is_empty().then(|| 0..text.trim_end().len()));
    let error = visit(text, &mut |of, range| {
        if of == path {
            found = Some(range);
        } else if of == parent {
            object = Some(range);
        }
    });
    if let Some(at) = error {
        return Err(format!(
            "the payload is not JSON (error at byte {at}), so no field can be set; send an edited file instead"
        ));
    }
    if let Some(Range { start, end }) = found {
        return Ok(format!("{}{json}{}", &text[..start], &text[end..]));
    }
    let object = object.filter(|range| text[range.clone()].trim_start().starts_with('{'));
    let Some(Range { start, end }) = object else {
        return Err(format!("the payload has no object that can hold the field {path}"));
    };
    let before = text[..end - 1].trim_end();
    let comma = if before.len() > start && before.ends_with('{') { "" } else { "," };
    let name = serde_json::Value::from(name);
    Ok(format!("{before}{comma}{name}:{json}{}", &text[end - 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|field| (*field).to_owned()).collect()
    }

    fn placed(text: &str, field: Option<&str>, message: &str) -> Option<String> {
        let Place { start, end } = place(text, field, message)?;
        Some(text.chars().skip(start).take(end - start).collect())
    }

    #[test]
    fn the_place_is_the_value_of_the_field() {
        let text = r#"{"é":"ü","user_id":[1, 2],"at":{"lat":91.5}}"#;
        assert_eq!(placed(text, Some("user_id"), "user_id must be").as_deref(), Some("[1, 2]"));
        assert_eq!(placed(text, Some("at.lat"), "is invalid").as_deref(), Some("91.5"));
        assert_eq!(placed(text, Some("amount"), "amount is missing"), None);
        assert_eq!(placed(text, None, "the record has no value"), None);
        let twice = r#"{"a":1,"a":2}"#;
        assert_eq!(placed(twice, Some("a"), "duplicate field a").as_deref(), Some("2"));
    }

    #[test]
    fn the_place_of_a_syntax_error_is_in_its_message() {
        let text = "{\"é\":x}";
        assert_eq!(placed(text, None, "not a JSON object: expected a value at byte 6").as_deref(), Some("x"));
        assert_eq!(
            place("{\"a\":", None, "expected a value at byte 5"),
            Some(Place { start: 5, end: 5 }),
            "at the end"
        );
        assert_eq!(place("é", None, "expected an object at byte 1"), Some(Place { start: 0, end: 1 }));
        assert_eq!(place("", None, "expected an object at byte 99"), Some(Place { start: 0, end: 0 }));
    }

    #[test]
    fn named_values_are_masked_at_every_depth() {
        let text = r#"{"card":"12\"34","items":[{"card":5},{"pin":{"a":"1"}}],"user":"u"}"#;
        let masked = mask(text, &names(&["card", "items.pin"]));
        assert_eq!(masked.text, r#"{"card":"***","items":[{"card":"***"},{"pin":"***"}],"user":"u"}"#);
        assert_eq!(masked.clean("key 12\"34 and {\"a\":\"1\"}"), "key *** and ***");
        assert_eq!(mask(text, &[]).text, text);
        assert_eq!(mask(r#"{"c\u0061rd":"secret"}"#, &names(&["card"])).text, r#"{"c\u0061rd":"***"}"#);
    }

    #[test]
    fn a_short_secret_is_replaced_as_a_word_only() {
        let masked = mask(r#"{"card":"e","pin":"4711"}"#, &names(&["card", "pin"]));
        assert_eq!(masked.clean("event_type \"e\" of e: x4711y"), "event_type \"***\" of ***: x***y");
    }

    #[test]
    fn nothing_after_a_syntax_error_is_shown_with_a_mask() {
        let fields = names(&["card"]);
        assert_eq!(mask(r#"{"a":1,"b":"x "card":"1234"}"#, &fields).text, r#"{"a":1,"b":"x ""***""#);
        assert_eq!(mask(r#"{"a":1,"card":"12"#, &fields).text, r#"{"a":1,"card":"***""#);
        assert_eq!(mask(r#"{"card":12x4,"a":1}"#, &fields).text, r#"{"card":"***""***""#);
        assert_eq!(mask("oops 1234", &fields).text, MASK);
        assert_eq!(mask("oops 1234", &[]).text, "oops 1234");
    }

    #[test]
    fn a_field_is_set_and_all_other_text_is_kept() {
        let text = "{ \"a\" : 1.50, \"b\":{\"c\":2} }\n";
        assert_eq!(set(text, "a", "2").as_deref(), Ok("{ \"a\" : 2, \"b\":{\"c\":2} }\n"));
        assert_eq!(set(text, "b.c", "[]").as_deref(), Ok("{ \"a\" : 1.50, \"b\":{\"c\":[]} }\n"));
        assert_eq!(set(text, "d", "\"x\"").as_deref(), Ok("{ \"a\" : 1.50, \"b\":{\"c\":2},\"d\":\"x\"}\n"));
        assert_eq!(set(text, "b.d", "3").as_deref(), Ok("{ \"a\" : 1.50, \"b\":{\"c\":2,\"d\":3} }\n"));
        assert_eq!(set("{}", "d", "3").as_deref(), Ok("{\"d\":3}"));
        assert!(set("[1]", "d", "3").is_err() && set("oops", "d", "3").is_err());
        assert!(set(text, "a.x", "3").is_err() && set(text, "x.y", "3").is_err());
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let error = |text: &str| visit(text, &mut |_, _| {});
        assert_eq!(error(&"[".repeat(200_000)), Some(MAX_DEPTH));
        assert_eq!(error("[1, 2, {\"a\": [true, null]}] "), None);
        assert_eq!(error("{\"a\":1}x"), Some(7));
        assert_eq!(error("{\"a\":01}"), Some(6));
        assert_eq!(error("{\"a:1}"), Some(1), "the beginning of the string");
    }
}
