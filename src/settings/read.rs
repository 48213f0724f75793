//! Readers of configuration sections. Each key is read once, with the type and range that it must have. All errors are
//! collected, and keys that are never read are reported as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use super::key::Key;
use super::tree::{Item, Node, Origin};
use super::values::{duration_ms, size_bytes};

/// An error of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The place where the value was written.
    pub origin: Origin,
    /// The full path of the key.
    pub key: String,
    /// The error, and the expected value.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => write!(f, "{}: {}", self.key, self.message),
            origin => write!(f, "{origin}: {}: {}", self.key, self.message),
        }
    }
}

/// The results that are collected while sections are read.
#[derive(Default)]
pub struct Diagnostics {
    pub errors: Vec<ConfigError>,
    /// Warnings about valid settings that are probably mistakes.
    pub warnings: Vec<ConfigError>,
    /// The effective value of each key that was read, as TOML, in the order of reading.
    pub effective: Vec<(String, String)>,
}

/// A function that returns the key with a path in the reference.
pub type FindKey = fn(&str) -> Option<&'static Key>;

/// A section of the configuration. A missing section has the defaults of its keys.
pub struct Section<'a> {
    find_key: FindKey,
    /// The full path, with a dot at the end; empty at the top level.
    path: String,
    /// The path in the reference, which has no array indexes.
    name: String,
    entries: Option<&'a BTreeMap<String, Item>>,
    /// The keys that were read.
    read_keys: BTreeSet<String>,
}

impl<'a> Section<'a> {
    /// Returns the top level of a document.
    pub fn top(item: &'a Item, find_key: FindKey) -> Section<'a> {
        let Node::Table(entries) = &item.node else { unreachable!("a document is a table") };
        Section {
            find_key,
            path: String::new(),
            name: String::new(),
            entries: Some(entries),
            read_keys: BTreeSet::new(),
        }
    }

    /// Reports all keys that were not read.
    pub fn end_of(section: &mut Section<'a>, diagnostics: &mut Diagnostics) {
        let find_key = section.find_key;
        let none = Section {
            find_key,
            path: String::new(),
            name: String::new(),
            entries: None,
            read_keys: BTreeSet::new(),
        };
        std::mem::replace(section, none).end(diagnostics);
    }

    /// Returns this section with the keys of another section of the reference, such as `sinks.postgres`.
    pub fn described_as(self, name: &str) -> Section<'a> {
        Section { name: format!("{name}."), ..self }
    }

    /// Returns true if the key is set.
    pub fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// Returns the subsection of this name; None if it is missing.
    pub fn section(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<Section<'a>> {
        self.read_keys.insert(key.to_owned());
        let item = self.entries?.get(key)?;
        let path = format!("{}{key}", self.path);
        match item.node.value() {
            Node::Table(entries) => Some(Section {
                find_key: self.find_key,
                path: format!("{path}."),
                name: format!("{}{key}.", self.name),
                entries: Some(entries),
                read_keys: BTreeSet::new(),
            }),
            other => {
                let message = format!("expected a section, got {}", other.kind());
                diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key: path, message });
                None
            }
        }
    }

    /// Returns the subsection of this name, or one with defaults if it is missing.
    pub fn section_or_default(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Section<'a> {
        self.section(key, diagnostics).unwrap_or_else(|| Section {
            find_key: self.find_key,
            path: format!("{}{key}.", self.path),
            name: format!("{}{key}.", self.name),
            entries: None,
            read_keys: BTreeSet::new(),
        })
    }

    /// Returns the sections of an array, `[[key]]`.
    pub fn sections(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Vec<Section<'a>> {
        self.read_keys.insert(key.to_owned());
        let Some(item) = self.entries.and_then(|entries| entries.get(key)) else { return Vec::new() };
        let Node::Array(items) = item.node.value() else {
            let message = format!("expected sections [[{key}]], got {}", item.node.kind());
            diagnostics.errors.push(ConfigError {
                origin: item.origin.clone(),
                key: format!("{}{key}", self.path),
                message,
            });
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let path = format!("{}{key}[{at}]", self.path);
            match &item.node {
                Node::Table(entries) => sections.push(Section {
                    find_key: self.find_key,
                    path: format!("{path}."),
                    name: format!("{}{key}.", self.name),
                    entries: Some(entries),
                    read_keys: BTreeSet::new(),
                }),
                other => {
                    let message = format!("expected a section, got {}", other.kind());
                    diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key: path, message });
                }
            }
        }
        sections
    }

    /// Returns the full path, with a dot at the end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the section as an inline table in TOML, as it was written.
    pub fn to_toml(&self) -> String {
        Node::Table(self.entries.cloned().unwrap_or_default()).to_toml()
    }

    /// Returns the first place of the section's values; [`Origin::Default`] if it has none.
    pub fn origin(&self) -> Origin {
        let origins = self.entries.into_iter().flat_map(|entries| entries.values()).map(|item| &item.origin);
        origins.min().cloned().unwrap_or(Origin::Default)
    }

    /// Returns the value of a key and marks the key as read.
    pub fn item(&mut self, key: &str) -> Option<&'a Item> {
        self.read_keys.insert(key.to_owned());
        self.entries?.get(key)
    }

    /// Returns all keys and values and marks the keys as read.
    pub fn items(&mut self) -> impl Iterator<Item = (&'a String, &'a Item)> + use<'a> {
        self.read_keys.extend(self.entries.into_iter().flatten().map(|(key, _)| key.clone()));
        self.entries.into_iter().flatten()
    }

    fn definition(&self, key: &str) -> &'static Key {
        let name = format!("{}{key}", self.name);
        (self.find_key)(&name).expect("every key that is read is in the reference")
    }

    /// Reads a key. `read` converts the value, or returns a description of the expected value.
    pub fn get<T>(
        &mut self,
        key: &str,
        diagnostics: &mut Diagnostics,
        read: impl Fn(&Node) -> Result<T, String>,
    ) -> Option<T> {
        self.get_with_display(key, diagnostics, |node| {
            let value = node.value();
            read(value).map(|read| (read, value.to_toml()))
        })
    }

    /// Reads a text key. `read` converts the text, or returns a description of the expected value. The text of an
    /// environment variable is used unchanged.
    pub fn get_text<T>(
        &mut self,
        key: &str,
        diagnostics: &mut Diagnostics,
        read: impl Fn(Option<&str>) -> Result<T, String>,
    ) -> Option<T> {
        self.get_with_display(key, diagnostics, |node| {
            let text = node.text();
            read(text).map(|read| (read, Node::Text(text.unwrap_or_default().to_owned()).to_toml()))
        })
    }

    /// Reads a key. `read` converts the value and returns its displayed form, or a description of the expected value.
    fn get_with_display<T>(
        &mut self,
        key: &str,
        diagnostics: &mut Diagnostics,
        read: impl Fn(&Node) -> Result<(T, String), String>,
    ) -> Option<T> {
        let definition = self.definition(key);
        let path = format!("{}{key}", self.path);
        let default;
        let item = match self.item(key) {
            Some(item) => item,
            None => match definition.default {
                Some(text) => {
                    default = super::tree::parse(&format!("value = {text}"), &[])
                        .unwrap_or_else(|_| unreachable!("defaults are TOML"));
                    let Node::Table(entries) = &default.node else { unreachable!("a document is a table") };
                    &entries["value"]
                }
                None => {
                    if definition.required {
                        self.report_missing(key, diagnostics);
                    }
                    return None;
                }
            },
        };
        match read(&item.node) {
            Ok((value, display)) => {
                diagnostics.effective.push((path, display));
                Some(value)
            }
            Err(expected) => {
                let message = format!("expected {expected}, got {}", item.describe());
                diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key: path, message });
                None
            }
        }
    }

    /// Reports that a required key is missing.
    pub fn report_missing(&self, key: &str, diagnostics: &mut Diagnostics) {
        let first = self.entries.and_then(|entries| entries.values().next());
        diagnostics.errors.push(ConfigError {
            origin: first.map_or(Origin::Default, |item| item.origin.clone()),
            key: format!("{}{key}", self.path),
            message: "is missing".to_owned(),
        });
    }

    /// Reads a duration of at least `least_ms`; returns milliseconds.
    pub fn duration(&mut self, key: &str, least_ms: i64, diagnostics: &mut Diagnostics) -> Option<i64> {
        self.get_text(key, diagnostics, |text| match text.and_then(duration_ms) {
            Some(ms) if ms >= least_ms => Ok(ms),
            Some(_) => Err(format!("a duration of at least {least_ms} ms")),
            None => Err("a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\"".into()),
        })
    }

    /// Reads a size in bytes.
    pub fn size(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<usize> {
        self.get_text(key, diagnostics, |text| {
            let size = text.and_then(size_bytes).and_then(|size| usize::try_from(size).ok());
            size.filter(|&size| size > 0).ok_or_else(|| "a size such as \"64MiB\"".into())
        })
    }

    /// Reads an integer within a range.
    pub fn int(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        diagnostics: &mut Diagnostics,
    ) -> Option<i64> {
        self.get(key, diagnostics, |node| match node {
            Node::Int(value) if range.contains(value) => Ok(*value),
            _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
        })
    }

    /// Reads a number within a range.
    pub fn float(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
        diagnostics: &mut Diagnostics,
    ) -> Option<f64> {
        self.get(key, diagnostics, |node| match node {
            Node::Int(value) if range.contains(&(*value as f64)) => Ok(*value as f64),
            Node::Float(value) if range.contains(value) => Ok(*value),
            _ => Err(format!("a number from {} to {}", range.start(), range.end())),
        })
    }

    /// Reads a boolean.
    pub fn bool(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
        self.get(key, diagnostics, |node| match node {
            Node::Bool(value) => Ok(*value),
            _ => Err("true or false".into()),
        })
    }

    /// Reads text that is not empty.
    pub fn text(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<String> {
        self.get_text(key, diagnostics, |text| match text {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err("text".into()),
        })
    }

    /// Reads a path. The returned and displayed path is absolute; a relative path is resolved against the working
    /// directory.
    pub fn file(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<PathBuf> {
        self.get_with_display(key, diagnostics, |node| {
            let text = node.text().filter(|text| !text.is_empty()).ok_or("a path")?;
            let path = std::path::absolute(text).map_err(|error| format!("a path ({error})"))?;
            let display = Node::Text(path.display().to_string()).to_toml();
            Ok((path, display))
        })
    }

    /// Reads one of a fixed set of words.
    pub fn choice<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
        diagnostics: &mut Diagnostics,
    ) -> Option<T> {
        self.get_text(key, diagnostics, |text| {
            let found = choices.iter().find(|(word, _)| Some(*word) == text);
            let words =
                || choices.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
            found.map(|(_, value)| *value).ok_or_else(words)
        })
    }

    /// Reads a list of words from a fixed set.
    pub fn choices<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<T>> {
        self.get(key, diagnostics, |node| {
            let words = || choices.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
            let expected = || format!("a list of some of {}", words());
            let Node::Array(items) = node else { return Err(expected()) };
            items
                .iter()
                .map(|item| match &item.node {
                    Node::Text(text) => {
                        choices.iter().find(|(word, _)| word == text).map(|(_, value)| *value)
                    }
                    _ => None,
                })
                .collect::<Option<Vec<T>>>()
                .ok_or_else(expected)
        })
    }

    /// Reads a text or a list of texts.
    pub fn list(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<Vec<String>> {
        let text = |node: &Node| node.text().filter(|text| !text.is_empty()).map(str::to_owned);
        self.get_with_display(key, diagnostics, |node| {
            let (list, display): (Option<Vec<_>>, _) = match node.value() {
                list @ Node::Array(items) => {
                    (items.iter().map(|item| text(&item.node)).collect(), list.to_toml())
                }
                _ => {
                    let text = text(node);
                    let display = Node::Text(text.clone().unwrap_or_default()).to_toml();
                    (text.map(|text| vec![text]), display)
                }
            };
            match list {
                Some(list) if !list.is_empty() => Ok((list, display)),
                _ => Err("text, or a list of texts".into()),
            }
        })
    }

    /// Reports an error that concerns several values.
    pub fn report_error(&self, key: &str, message: impl Into<String>, diagnostics: &mut Diagnostics) {
        diagnostics.errors.push(self.config_error(key, message));
    }

    /// Adds a warning about a valid setting that is probably a mistake.
    pub fn warn(&self, key: &str, message: impl Into<String>, diagnostics: &mut Diagnostics) {
        diagnostics.warnings.push(self.config_error(key, message));
    }

    fn config_error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let item = self.entries.and_then(|entries| entries.get(key));
        let origin = item.map_or(Origin::Default, |item| item.origin.clone());
        ConfigError { origin, key: format!("{}{key}", self.path), message: message.into() }
    }

    /// Reports each key that was not read as unknown.
    pub fn end(self, diagnostics: &mut Diagnostics) {
        for (key, item) in
            self.entries.into_iter().flatten().filter(|(key, _)| !self.read_keys.contains(*key))
        {
            let message = match nearest(key, self.read_keys.iter().map(String::as_str)) {
                Some(nearest) => format!("unknown key; did you mean {nearest}?"),
                None => {
                    let known: Vec<_> = self.read_keys.iter().map(String::as_str).collect();
                    format!("unknown key; known keys: {}", known.join(", "))
                }
            };
            let key = format!("{}{key}", self.path);
            diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key, message });
        }
    }
}

/// Returns the known word that `word` is probably a misspelling of: their edit distance is at most 3 and at most a
/// third of the length.
pub fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    crate::spelling::nearest(word, words, (word.len().max(3) / 3).min(3))
}
