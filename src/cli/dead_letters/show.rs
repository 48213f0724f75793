//! A dead letter as text: its headers, and its payload with the offending part marked.

use super::super::output::{escaped, push_escaped};
use super::{MAX_DISPLAY, sent_again, source};
use crate::dead_letters::{Letter, Place};

/// The maximum length of a payload that is printed, in characters.
const MAX_PAYLOAD: usize = 100_000;
/// The maximum length of a header that is printed, in characters.
const MAX_HEADER: usize = 500;

/// Returns a letter as text.
pub fn text(letter: &Letter) -> String {
    let or_none = |text: &Option<String>| escaped(text.as_deref().unwrap_or("-"), MAX_HEADER);
    let key = letter.key_base64.as_ref().map(|key| format!("{key} (base64)"));
    let source_time = letter.source.timestamp.as_ref().map_or(String::new(), |time| format!(", {time}"));
    let mut lines = vec![
        format!("dead letter {}: {}", letter.id, escaped(&letter.reason, MAX_DISPLAY)),
        format!("message   {}", or_none(&letter.message)),
        format!("field     {}", or_none(&letter.field)),
        format!("producer  {}", or_none(&letter.producer)),
        format!("record    {}{source_time}", source(letter)),
        format!("time      {}", or_none(&letter.time)),
        format!("sent      {}", sent_again(letter)),
        format!("retries   {}", letter.retries),
        format!("key       {}", or_none(&key.or_else(|| letter.key.clone()))),
    ];
    lines.push(match letter.original_bytes {
        Some(bytes) => format!("value     {} of {bytes} bytes", letter.bytes),
        None => format!("value     {} bytes", letter.bytes),
    });
    lines.extend(payload(letter).into_iter().map(|line| format!("  {line}")));
    lines.push("headers".to_owned());
    for (name, value) in &letter.headers {
        lines.push(format!("  {}: {}", escaped(name, MAX_HEADER), escaped(value, MAX_HEADER)));
    }
    lines.join("\n") + "\n"
}

/// Returns the lines of the payload, with marks below the offending part.
fn payload(letter: &Letter) -> Vec<String> {
    let Some(value) = &letter.value else {
        let hidden = match (&letter.value_base64, letter.bytes) {
            (Some(value), _) => format!("{} (base64)", escaped(value, MAX_PAYLOAD)),
            (None, 0) => "(no value)".to_owned(),
            (None, _) => "(not text, and hidden, because fields are masked)".to_owned(),
        };
        return vec![hidden];
    };
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok();
    let mut page = Lines::new(letter.place);
    for (at, c) in value.chars().enumerate().take(MAX_PAYLOAD) {
        if is_json { page.json(at, c) } else { page.plain(at, c) }
    }
    page.end(value.chars().count());
    let message = escaped(letter.message.as_deref().unwrap_or_default(), MAX_HEADER);
    page.with_marks(&message)
}

/// Lines of a payload, as they are laid out character by character.
struct Lines {
    place: Option<Place>,
    lines: Vec<String>,
    /// The line with the first marked character, and the columns of its marks.
    marks: Option<(usize, usize, usize)>,
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    /// True after the beginning of an object or array, until something is in it.
    opened: bool,
}

impl Lines {
    fn new(place: Option<Place>) -> Lines {
        let lines = vec![String::new()];
        Lines { place, lines, marks: None, depth: 0, in_string: false, after_backslash: false, opened: false }
    }

    /// Adds a character, and marks it if it is in the place.
    fn push(&mut self, at: usize, c: char) {
        let number = self.lines.len() - 1;
        let line = self.lines.last_mut().expect("there is a first line");
        let start = line.chars().count();
        match c {
            // The text of the payload keeps its own escapes.
            '\\' => line.push(c),
            c => push_escaped(c, line),
        }
        let end = line.chars().count();
        if self.place.is_some_and(|place| (place.start..place.end).contains(&at)) {
            match &mut self.marks {
                None => self.marks = Some((number, start, end)),
                Some((marked, _, last)) if *marked == number => *last = end,
                Some(_) => {}
            }
        }
    }

    fn new_line(&mut self) {
        self.lines.push("  ".repeat(self.depth));
    }

    /// Lays out a character of valid JSON.
    fn json(&mut self, at: usize, c: char) {
        if self.in_string {
            self.push(at, c);
            self.in_string = c != '"' || self.after_backslash;
            self.after_backslash = c == '\\' && !self.after_backslash;
            return;
        }
        if c.is_whitespace() {
            return;
        }
        let was_opened = std::mem::replace(&mut self.opened, matches!(c, '{' | '['));
        if matches!(c, '}' | ']') {
            self.depth = self.depth.saturating_sub(1);
            if !was_opened {
                self.new_line();
            }
        } else if was_opened {
            self.new_line();
        }
        self.push(at, c);
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            ',' => self.new_line(),
            ':' => self.lines.last_mut().expect("there is a first line").push(' '),
            _ => {}
        }
    }

    /// Lays out a character of other text.
    fn plain(&mut self, at: usize, c: char) {
        match c {
            '\n' => self.new_line(),
            c => self.push(at, c),
        }
    }

    /// Ends a payload of this many characters: an error at its end is marked behind it.
    fn end(&mut self, length: usize) {
        if length > MAX_PAYLOAD {
            self.lines.push("…".to_owned());
        } else if self.place.is_some_and(|place| place.start >= length) && self.marks.is_none() {
            let last = self.lines.len() - 1;
            let column = self.lines[last].chars().count();
            self.marks = Some((last, column, column + 1));
        }
    }

    fn with_marks(mut self, message: &str) -> Vec<String> {
        if let Some((line, start, end)) = self.marks {
            let marks = format!("{}{} {message}", " ".repeat(start), "^".repeat((end - start).max(1)));
            self.lines.insert(line + 1, marks);
        }
        self.lines
    }
}
