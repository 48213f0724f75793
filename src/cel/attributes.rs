//! Members of a JSON object, looked up in its text.
//!
//! ```text
//!   {"a":{"b":[1,"]"]},"c":"x\ny"}     path c  ─▶  Text("x⏎y")     path a.b  ─▶  Composite     path d  ─▶  None
//! ```
//!
//! The scan steps over values without decoding them. The text is valid JSON, since the decoder checked it; on any other
//! text a lookup finds nothing or a part of it, and does not panic.

use std::borrow::Cow;

/// The value of a member.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Member<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// The text of a number.
    Number(&'a str),
    /// True or false.
    Boolean(bool),
    /// An object or an array.
    Composite,
}

/// Returns the value of a member of an object, by the names on the way to it. None if there is none, or if it is null. Of
/// a name that occurs twice, the last one counts.
pub(super) fn member<'a>(object: &'a str, path: &[Box<str>]) -> Option<Member<'a>> {
    let raw = path.iter().try_fold(object, |object, name| value_of(object, name))?;
    match *raw.as_bytes().first()? {
        b'"' => Some(Member::Text(unescaped(raw)?)),
        b't' => Some(Member::Boolean(true)),
        b'f' => Some(Member::Boolean(false)),
        b'n' => None,
        b'{' | b'[' => Some(Member::Composite),
        _ => Some(Member::Number(raw)),
    }
}

/// Returns the text of a JSON string.
fn unescaped(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    match inner.contains('\\') {
        false => Some(Cow::Borrowed(inner)),
        true => serde_json::from_str::<String>(raw).ok().map(Cow::Owned),
    }
}

/// Returns the raw value of a member of an object.
fn value_of<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let bytes = object.as_bytes();
    let mut found = None;
    let mut at = skip_space(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    loop {
        let start = skip_space(bytes, at + 1);
        if bytes.get(start) != Some(&b'"') {
            return found;
        }
        let end = string_end(bytes, start)?;
        let colon = skip_space(bytes, end);
        if bytes.get(colon) != Some(&b':') {
            return found;
        }
        let value = skip_space(bytes, colon + 1);
        let value_end = value_end(bytes, value)?;
        if is_name(&object[start..end], name) {
            found = Some(&object[value..value_end]);
        }
        at = skip_space(bytes, value_end);
        if bytes.get(at) != Some(&b',') {
            return found;
        }
    }
}

/// Returns true if a raw string is the name.
fn is_name(raw: &str, name: &str) -> bool {
    let inner = &raw[1..raw.len() - 1];
    inner == name || (inner.contains('\\') && unescaped(raw).is_some_and(|text| text == name))
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// Returns the position after a string that starts here.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += special(bytes.get(at..)?)?;
        match bytes[at] {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// Returns the position of the first quote or backslash, looking at eight bytes at once.
fn special(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    // The highest bit of each byte that is zero, and maybe of bytes after it.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    let mut chunks = bytes.chunks_exact(8);
    for (at, chunk) in chunks.by_ref().enumerate() {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let found = zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        if found != 0 {
            return Some(8 * at + found.trailing_zeros() as usize / 8);
        }
    }
    let rest = chunks.remainder();
    let at = rest.iter().position(|&byte| byte == b'"' || byte == b'\\')?;
    Some(bytes.len() - rest.len() + at)
}

/// Returns the position after a value that starts here.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut depth = 0usize;
    loop {
        match bytes.get(at)? {
            b'"' => at = string_end(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth > 0 => at += 1,
            _ => at = scalar_end(bytes, at),
        }
        if depth == 0 {
            return (at > start).then_some(at);
        }
    }
}

/// Returns the position after a number, `true`, `false` or `null` that starts here.
fn scalar_end(bytes: &[u8], start: usize) -> usize {
    let rest = &bytes[start..];
    let end = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
    // A step forward, whatever the text.
    start + end.unwrap_or(rest.len()).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Vec<Box<str>> {
        text.split('.').map(Box::from).collect()
    }

    #[test]
    fn members_are_found_by_their_path() {
        let object = r#" { "a" : {"b":[1,"]}",{"c":2}], "d":-1.5e3}, "t":"x\ny", "e\u0064":"é",
            "n":null,"yes":true,"no":false,"twice":1,"twice":2 , "":"empty","nested":{"a":{"b":"deep"}}} "#;
        for (at, expected) in [
            ("a.d", Some(Member::Number("-1.5e3"))),
            ("a.b", Some(Member::Composite)),
            ("a", Some(Member::Composite)),
            ("t", Some(Member::Text("x\ny".into()))),
            ("ed", Some(Member::Text("é".into()))),
            ("n", None),
            ("yes", Some(Member::Boolean(true))),
            ("no", Some(Member::Boolean(false))),
            ("twice", Some(Member::Number("2"))),
            ("", Some(Member::Text("empty".into()))),
            ("nested.a.b", Some(Member::Text("deep".into()))),
            ("nested.a.c", None),
            ("t.x", None),
            ("missing", None),
        ] {
            assert_eq!(member(object, &path(at)), expected, "{at}");
        }
    }

    proptest! {
        #[test]
        fn members_are_those_of_a_parsed_tree(value in json()) {
            let text = value.to_string();
            for name in ["a", "b", "\"", "é\n"] {
                let expected = match &value[name] {
                    serde_json::Value::Null => None,
                    serde_json::Value::Bool(boolean) => Some(Member::Boolean(*boolean)),
                    serde_json::Value::String(text) => Some(Member::Text(text.as_str().into())),
                    serde_json::Value::Number(number) => {
                        let number = number.to_string();
                        prop_assert_eq!(member(&text, &path(name)), Some(Member::Number(&number)));
                        continue;
                    }
                    _ => Some(Member::Composite),
                };
                prop_assert_eq!(member(&text, &path(name)), expected);
            }
        }

        #[test]
        fn no_text_makes_a_lookup_panic(text in r#"[{}\[\]":,\\ a1é]{0,40}"#) {
            member(&text, &path("a"));
            member(&text, &path("a.é"));
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let scalar = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            r#"[a"\\é\n,}\]]{0,20}"#.prop_map(Into::into),
        ];
        let name = prop_oneof![Just("a"), Just("b"), Just("\""), Just("é\n")].prop_map(String::from);
        let value = scalar.prop_recursive(3, 24, 4, {
            let name = name.clone();
            move |inner| {
                let members = proptest::collection::btree_map(name.clone(), inner.clone(), 0..4);
                prop_oneof![
                    proptest::collection::vec(inner, 0..4).prop_map(Into::into),
                    members.prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
                ]
            }
        });
        proptest::collection::btree_map(name, value, 0..4)
            .prop_map(|map| serde_json::Value::Object(map.into_iter().collect()))
    }
}
