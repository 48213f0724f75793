//! Reading a section: each key is asked for once, with what it must be; everything wrong is noted, and nothing that
//! nobody asked for is let pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use super::keys::{KEYS, Key};
use super::tree::{Item, Node, Origin};
use super::values::{duration_ms, size_bytes};

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it was written.
    pub origin: Origin,
    /// The key, from the top.
    pub key: String,
    /// What is wrong, and what was expected.
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

/// What is noted while sections are read.
#[derive(Default)]
pub struct Diagnostics {
    pub errors: Vec<ConfigError>,
    /// What is valid, and probably not what is meant.
    pub warnings: Vec<ConfigError>,
    /// The effective value of every key that was asked for, as TOML, in order.
    pub effective: Vec<(String, String)>,
}

/// A section of the configuration; it may be missing, and then has its defaults.
pub struct Section<'a> {
    /// From the top, with a dot at the end; empty at the top.
    path: String,
    /// The same, as the reference names it.
    name: String,
    entries: Option<&'a BTreeMap<String, Item>>,
    asked: BTreeSet<String>,
}

impl<'a> Section<'a> {
    pub fn top(item: &'a Item) -> Section<'a> {
        let Node::Table(entries) = &item.node else { unreachable!("a document is a table") };
        Section { path: String::new(), name: String::new(), entries: Some(entries), asked: BTreeSet::new() }
    }

    /// A section in which nothing is written.
    pub fn none() -> Section<'a> {
        Section { path: String::new(), name: String::new(), entries: None, asked: BTreeSet::new() }
    }

    /// Whether something is written there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// A section of its own within this one; none if it is missing.
    pub fn section(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<Section<'a>> {
        self.asked.insert(key.to_owned());
        let item = self.entries?.get(key)?;
        let path = format!("{}{key}", self.path);
        match item.node.value() {
            Node::Table(entries) => Some(Section {
                path: format!("{path}."),
                name: format!("{}{key}.", self.name),
                entries: Some(entries),
                asked: BTreeSet::new(),
            }),
            other => {
                let message = format!("expected a section, got {}", other.kind());
                diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key: path, message });
                None
            }
        }
    }

    /// The same, with defaults where it is missing.
    pub fn section_or_default(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Section<'a> {
        self.section(key, diagnostics).unwrap_or_else(|| Section {
            path: format!("{}{key}.", self.path),
            name: format!("{}{key}.", self.name),
            entries: None,
            asked: BTreeSet::new(),
        })
    }

    /// Sections of which there can be several, `[[key]]`.
    pub fn sections(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Vec<Section<'a>> {
        self.asked.insert(key.to_owned());
        let Some(item) = self.entries.and_then(|entries| entries.get(key)) else { return Vec::new() };
        let Node::Array(items) = item.node.value() else {
            let message = format!("expected sections [[{key}]], got {}", item.node.kind());
            diagnostics.errors.push(ConfigError {
                origin: item.origin.clone(),
                key: key.to_owned(),
                message,
            });
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let path = format!("{key}[{at}]");
            match &item.node {
                Node::Table(entries) => sections.push(Section {
                    path: format!("{path}."),
                    name: format!("{key}."),
                    entries: Some(entries),
                    asked: BTreeSet::new(),
                }),
                other => {
                    let message = format!("expected a section, got {}", other.kind());
                    diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key: path, message });
                }
            }
        }
        sections
    }

    /// Its path, with a dot at the end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is written under a key, which is thereby asked for.
    pub fn item(&mut self, key: &str) -> Option<&'a Item> {
        self.asked.insert(key.to_owned());
        self.entries?.get(key)
    }

    /// Everything that is written in it, which is thereby asked for.
    pub fn items(&mut self) -> impl Iterator<Item = (&'a String, &'a Item)> + use<'a> {
        self.asked.extend(self.entries.into_iter().flatten().map(|(key, _)| key.clone()));
        self.entries.into_iter().flatten()
    }

    fn known(&self, key: &str) -> &'static Key {
        let name = format!("{}{key}", self.name);
        KEYS.iter().find(|known| known.path == name).expect("every key that is read is in the reference")
    }

    /// Reads one key by `read`, which takes a value or says what it expected.
    pub fn get<T>(
        &mut self,
        key: &str,
        diagnostics: &mut Diagnostics,
        read: impl Fn(&Node) -> Result<T, String>,
    ) -> Option<T> {
        self.get_shown(key, diagnostics, |node| {
            let value = node.value();
            read(value).map(|read| (read, value.to_toml()))
        })
    }

    /// Reads one key that is text by `read`. What the environment gives for it is taken as it is.
    pub fn get_text<T>(
        &mut self,
        key: &str,
        diagnostics: &mut Diagnostics,
        read: impl Fn(Option<&str>) -> Result<T, String>,
    ) -> Option<T> {
        self.get_shown(key, diagnostics, |node| {
            let text = node.text();
            read(text).map(|read| (read, Node::Text(text.unwrap_or_default().to_owned()).to_toml()))
        })
    }

    /// Reads one key by `read`, which takes a value, and says how it is shown, or what it expected.
    fn get_shown<T>(
        &mut self,
        key: &str,
        diagnostics: &mut Diagnostics,
        read: impl Fn(&Node) -> Result<(T, String), String>,
    ) -> Option<T> {
        let known = self.known(key);
        let path = format!("{}{key}", self.path);
        let default;
        let item = match self.item(key) {
            Some(item) => item,
            None => match known.default {
                Some(text) => {
                    default = super::tree::parse(&format!("value = {text}"), &[])
                        .unwrap_or_else(|_| unreachable!("defaults are TOML"));
                    let Node::Table(entries) = &default.node else { unreachable!("a document is a table") };
                    &entries["value"]
                }
                None => {
                    if known.required {
                        self.report_missing(key, diagnostics);
                    }
                    return None;
                }
            },
        };
        match read(&item.node) {
            Ok((value, shown)) => {
                diagnostics.effective.push((path, shown));
                Some(value)
            }
            Err(expected) => {
                let message = format!("expected {expected}, got {}", item.describe());
                diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key: path, message });
                None
            }
        }
    }

    /// Complains of a key that must be given where its section is.
    pub fn report_missing(&self, key: &str, diagnostics: &mut Diagnostics) {
        let first = self.entries.and_then(|entries| entries.values().next());
        diagnostics.errors.push(ConfigError {
            origin: first.map_or(Origin::Default, |item| item.origin.clone()),
            key: format!("{}{key}", self.path),
            message: "is missing".to_owned(),
        });
    }

    /// A duration of at least `least_ms`, in milliseconds.
    pub fn duration(&mut self, key: &str, least_ms: i64, diagnostics: &mut Diagnostics) -> Option<i64> {
        self.get_text(key, diagnostics, |text| match text.and_then(duration_ms) {
            Some(ms) if ms >= least_ms => Ok(ms),
            Some(_) => Err(format!("a duration of at least {least_ms} ms")),
            None => Err("a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\"".into()),
        })
    }

    /// A size in bytes.
    pub fn size(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<usize> {
        self.get_text(key, diagnostics, |text| {
            let size = text.and_then(size_bytes).and_then(|size| usize::try_from(size).ok());
            size.filter(|&size| size > 0).ok_or_else(|| "a size such as \"64MiB\"".into())
        })
    }

    /// A whole number within a range.
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

    /// A number within a range.
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

    /// True or false.
    pub fn bool(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<bool> {
        self.get(key, diagnostics, |node| match node {
            Node::Bool(value) => Ok(*value),
            _ => Err("true or false".into()),
        })
    }

    /// Text that is not empty.
    pub fn text(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<String> {
        self.get_text(key, diagnostics, |text| match text {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err("text".into()),
        })
    }

    /// A path: absolute as it is shown and returned, a relative one being of the working directory.
    pub fn file(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<PathBuf> {
        self.get_shown(key, diagnostics, |node| {
            let text = node.text().filter(|text| !text.is_empty()).ok_or("a path")?;
            let path = std::path::absolute(text).map_err(|error| format!("a path ({error})"))?;
            let shown = Node::Text(path.display().to_string()).to_toml();
            Ok((path, shown))
        })
    }

    /// One of a few words.
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

    /// A list of words, each one of a few.
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

    /// Texts: one, or a list of them.
    pub fn list(&mut self, key: &str, diagnostics: &mut Diagnostics) -> Option<Vec<String>> {
        let text = |node: &Node| node.text().filter(|text| !text.is_empty()).map(str::to_owned);
        self.get_shown(key, diagnostics, |node| {
            let (list, shown): (Option<Vec<_>>, _) = match node.value() {
                list @ Node::Array(items) => {
                    (items.iter().map(|item| text(&item.node)).collect(), list.to_toml())
                }
                _ => {
                    let text = text(node);
                    let shown = Node::Text(text.clone().unwrap_or_default()).to_toml();
                    (text.map(|text| vec![text]), shown)
                }
            };
            match list {
                Some(list) if !list.is_empty() => Ok((list, shown)),
                _ => Err("text, or a list of texts".into()),
            }
        })
    }

    /// Complains of something that only shows when several values are looked at.
    pub fn report_error(&self, key: &str, message: impl Into<String>, diagnostics: &mut Diagnostics) {
        diagnostics.errors.push(self.config_error(key, message));
    }

    /// Warns of something that is valid, and probably not what is meant.
    pub fn warn(&self, key: &str, message: impl Into<String>, diagnostics: &mut Diagnostics) {
        diagnostics.warnings.push(self.config_error(key, message));
    }

    fn config_error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let item = self.entries.and_then(|entries| entries.get(key));
        let origin = item.map_or(Origin::Default, |item| item.origin.clone());
        ConfigError { origin, key: format!("{}{key}", self.path), message: message.into() }
    }

    /// Complains of every key that nobody asked for.
    pub fn end(self, diagnostics: &mut Diagnostics) {
        for (key, item) in self.entries.into_iter().flatten().filter(|(key, _)| !self.asked.contains(*key)) {
            let message = match nearest(key, self.asked.iter().map(String::as_str)) {
                Some(nearest) => format!("there is no such key; did you mean {nearest}?"),
                None => {
                    let known: Vec<_> = self.asked.iter().map(String::as_str).collect();
                    format!("there is no such key; there are {}", known.join(", "))
                }
            };
            let key = format!("{}{key}", self.path);
            diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key, message });
        }
    }
}

/// The word that another one is probably meant for, if there is one: at most three letters differ, and a third of them.
pub fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = words.map(|known| (distance(known, word), known)).min();
    nearest.filter(|&(distance, _)| distance <= (word.len().max(3) / 3).min(3)).map(|(_, known)| known)
}

/// The Levenshtein distance of two short words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
