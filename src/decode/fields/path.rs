//! Paths to values of a JSON document: `txn.id`, `$.txn.id`, `a['b.c'][0]`.

use std::fmt;

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member of an object.
    Member(Box<str>),
    /// The element of an array, from 0.
    Element(usize),
}

/// A path to a value; without steps, the whole document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// Parses a path.
    ///
    /// # Errors
    /// Says what is expected, and at which byte.
    pub fn parse(text: &str) -> Result<Path, String> {
        let mut steps = Vec::new();
        let (mut rest, rooted) = match text.strip_prefix('$') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let fail = |rest: &str, what: &str| {
            Err(format!(
                "a path such as \"txn.id\" or \"a['b.c'][0]\" ({what} at byte {})",
                text.len() - rest.len()
            ))
        };
        if text.is_empty() {
            return fail(rest, "a name is missing");
        }
        let mut is_first = !rooted;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('[') {
                let step = match inner.chars().next() {
                    Some(quote @ ('\'' | '"')) => {
                        let inner = &inner[1..];
                        let Some(end) = inner.find(quote) else {
                            return fail(rest, "the quote is not closed");
                        };
                        let step = Step::Member(inner[..end].into());
                        rest = &inner[end + 1..];
                        step
                    }
                    _ => {
                        let len = inner.bytes().take_while(u8::is_ascii_digit).count();
                        let Ok(index) = inner[..len].parse() else {
                            return fail(inner, "expected an index or a quoted name");
                        };
                        rest = &inner[len..];
                        Step::Element(index)
                    }
                };
                let Some(after) = rest.strip_prefix(']') else { return fail(rest, "expected ']'") };
                rest = after;
                steps.push(step);
            } else {
                if !is_first {
                    match rest.strip_prefix('.') {
                        Some(after) => rest = after,
                        None => return fail(rest, "expected '.' or '['"),
                    }
                }
                let len = rest.find(['.', '[']).unwrap_or(rest.len());
                if len == 0 {
                    return fail(rest, "a name is missing");
                }
                steps.push(Step::Member(rest[..len].into()));
                rest = &rest[len..];
            }
            is_first = false;
        }
        Ok(Path(steps))
    }

    /// Returns the steps.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Returns this path within the value at another path.
    pub fn within(&self, outer: &Path) -> Path {
        Path(outer.0.iter().chain(&self.0).cloned().collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("$");
        }
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Member(name) if name.is_empty() || name.contains(['.', '[', '$', '\'']) => {
                    let quote = if name.contains('\'') { '"' } else { '\'' };
                    write!(f, "[{quote}{name}{quote}]")?;
                }
                Step::Member(name) if at == 0 => f.write_str(name)?,
                Step::Member(name) => write!(f, ".{name}")?,
                Step::Element(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parsed_and_displayed() {
        for (text, displayed) in [
            ("id", "id"),
            ("$.txn.id", "txn.id"),
            ("a['b.c'][0]", "a['b.c'][0]"),
            ("$['a'].b", "a.b"),
            ("['it\"s'].x", "it\"s.x"),
            ("items[12].price", "items[12].price"),
            ("$", "$"),
            ("grüße.größe", "grüße.größe"),
        ] {
            let path = Path::parse(text).expect(text);
            assert_eq!(path.to_string(), displayed, "{text}");
            assert_eq!(Path::parse(displayed).as_ref(), Ok(&path), "{text}");
        }
    }

    #[test]
    fn malformed_paths_are_refused_with_their_place() {
        for (text, what) in [
            ("", "a name is missing at byte 0"),
            ("a..b", "a name is missing at byte 2"),
            ("a.", "a name is missing at byte 2"),
            (".a", "a name is missing at byte 0"),
            ("a[", "expected an index or a quoted name at byte 2"),
            ("a['b", "the quote is not closed at byte 1"),
            ("a[0", "expected ']' at byte 3"),
            ("a[0]b", "expected '.' or '[' at byte 4"),
            ("$a", "expected '.' or '[' at byte 1"),
            ("a[-1]", "expected an index or a quoted name at byte 2"),
        ] {
            let error = Path::parse(text).map(|path| path.to_string());
            assert!(error.as_ref().is_err_and(|error| error.contains(what)), "{text}: {error:?}");
        }
    }
}
