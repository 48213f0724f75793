//! Reading a section: each key is asked for once, with what it must be; everything wrong is noted, and nothing that
//! nobody asked for is let pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use headwater_sinks::kafka::client::check_option;

use super::keys::{KEYS, Key};
use super::tree::{Item, Node, Origin};
use super::values::{duration_ms, size_bytes, without_password};

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Where it was written.
    pub origin: Origin,
    /// The key, from the top.
    pub key: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => write!(f, "{}: {}", self.key, self.message),
            origin => write!(f, "{origin}: {}: {}", self.key, self.message),
        }
    }
}

/// What is noted while sections are read.
#[derive(Default)]
pub struct Notes {
    pub complaints: Vec<Complaint>,
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
    pub fn section(&mut self, key: &str, notes: &mut Notes) -> Option<Section<'a>> {
        self.asked.insert(key.to_owned());
        let item = self.entries?.get(key)?;
        let path = format!("{}{key}", self.path);
        match &item.node {
            Node::Table(entries) => Some(Section {
                path: format!("{path}."),
                name: format!("{}{key}.", self.name),
                entries: Some(entries),
                asked: BTreeSet::new(),
            }),
            other => {
                let message = format!("expected a section, got {}", other.describe());
                notes.complaints.push(Complaint { origin: item.origin.clone(), key: path, message });
                None
            }
        }
    }

    /// The same, with defaults where it is missing.
    pub fn section_or_default(&mut self, key: &str, notes: &mut Notes) -> Section<'a> {
        self.section(key, notes).unwrap_or_else(|| Section {
            path: format!("{}{key}.", self.path),
            name: format!("{}{key}.", self.name),
            entries: None,
            asked: BTreeSet::new(),
        })
    }

    /// Sections of which there can be several, `[[key]]`.
    pub fn sections(&mut self, key: &str, notes: &mut Notes) -> Vec<Section<'a>> {
        self.asked.insert(key.to_owned());
        let Some(item) = self.entries.and_then(|entries| entries.get(key)) else { return Vec::new() };
        let Node::Array(items) = &item.node else {
            let message = format!("expected sections [[{key}]], got {}", item.node.describe());
            notes.complaints.push(Complaint { origin: item.origin.clone(), key: key.to_owned(), message });
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
                    let message = format!("expected a section, got {}", other.describe());
                    notes.complaints.push(Complaint { origin: item.origin.clone(), key: path, message });
                }
            }
        }
        sections
    }

    /// All entries, as texts: for settings that are passed on as they are.
    pub fn texts(&mut self, notes: &mut Notes) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (key, item) in self.entries.into_iter().flatten() {
            self.asked.insert(key.clone());
            let text = match &item.node {
                Node::Text(text) => text.clone(),
                Node::Table(_) | Node::Array(_) => {
                    let message =
                        format!("expected text, a number or a truth value, got {}", item.node.describe());
                    let key = format!("{}{key}", self.path);
                    notes.complaints.push(Complaint { origin: item.origin.clone(), key, message });
                    continue;
                }
                other => other.describe(),
            };
            let secret = ["password", "secret", "token", ".key"].iter().any(|word| key.contains(word));
            let shown = if secret { "***".to_owned() } else { text.clone() };
            notes.effective.push((format!("{}{key:?}", self.path), Node::Text(shown).to_toml()));
            texts.insert(key.clone(), text);
        }
        texts
    }

    /// Options for the Kafka client, each of which it must know and take.
    pub fn kafka_options(&mut self, notes: &mut Notes) -> BTreeMap<String, String> {
        let options = self.texts(notes);
        for (key, value) in &options {
            if let Err(wrong) = check_option(key, value) {
                self.complain(key, wrong.to_string(), notes);
            }
        }
        options
    }

    fn known(&self, key: &str) -> &'static Key {
        let name = format!("{}{key}", self.name);
        KEYS.iter().find(|known| known.path == name).expect("every key that is read is in the reference")
    }

    /// Reads one key by `read`, which takes a value or says what it expected.
    pub fn get<T>(
        &mut self,
        key: &str,
        notes: &mut Notes,
        read: impl Fn(&Node) -> Result<T, String>,
    ) -> Option<T> {
        self.asked.insert(key.to_owned());
        let known = self.known(key);
        let path = format!("{}{key}", self.path);
        let default;
        let item = match self.entries.and_then(|entries| entries.get(key)) {
            Some(item) => item,
            None => match known.default {
                Some(text) => {
                    default = super::tree::parse(&format!("value = {text}"), &[]).expect("defaults are TOML");
                    let Node::Table(entries) = &default.node else { unreachable!("a document is a table") };
                    &entries["value"]
                }
                None if known.required => {
                    let origin = self
                        .entries
                        .and_then(|entries| entries.values().next())
                        .map(|item| item.origin.clone());
                    let message = "is missing".to_owned();
                    notes.complaints.push(Complaint {
                        origin: origin.unwrap_or(Origin::Default),
                        key: path,
                        message,
                    });
                    return None;
                }
                None => return None,
            },
        };
        match read(&item.node) {
            Ok(value) => {
                let shown = match &item.node {
                    Node::Text(text) => Node::Text(without_password(text)).to_toml(),
                    other => other.to_toml(),
                };
                notes.effective.push((path, shown));
                Some(value)
            }
            Err(expected) => {
                let message = format!("expected {expected}, got {}", item.node.describe());
                notes.complaints.push(Complaint { origin: item.origin.clone(), key: path, message });
                None
            }
        }
    }

    /// A duration of at least `least_ms`, in milliseconds.
    pub fn duration(&mut self, key: &str, least_ms: i64, notes: &mut Notes) -> Option<i64> {
        self.get(key, notes, |node| match node {
            Node::Text(text) => match duration_ms(text) {
                Some(ms) if ms >= least_ms => Ok(ms),
                Some(_) => Err(format!("a duration of at least {least_ms} ms")),
                None => Err("a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\"".into()),
            },
            _ => Err("a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\"".into()),
        })
    }

    /// A size in bytes.
    pub fn size(&mut self, key: &str, notes: &mut Notes) -> Option<usize> {
        self.get(key, notes, |node| {
            match node {
                Node::Text(text) => {
                    size_bytes(text).and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0)
                }
                _ => None,
            }
            .ok_or_else(|| "a size such as \"64MiB\"".into())
        })
    }

    /// A whole number within a range.
    pub fn int(&mut self, key: &str, range: std::ops::RangeInclusive<i64>, notes: &mut Notes) -> Option<i64> {
        self.get(key, notes, |node| match node {
            Node::Int(value) if range.contains(value) => Ok(*value),
            _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
        })
    }

    /// A number within a range.
    pub fn float(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
        notes: &mut Notes,
    ) -> Option<f64> {
        self.get(key, notes, |node| match node {
            Node::Int(value) if range.contains(&(*value as f64)) => Ok(*value as f64),
            Node::Float(value) if range.contains(value) => Ok(*value),
            _ => Err(format!("a number from {} to {}", range.start(), range.end())),
        })
    }

    /// True or false.
    pub fn bool(&mut self, key: &str, notes: &mut Notes) -> Option<bool> {
        self.get(key, notes, |node| match node {
            Node::Bool(value) => Ok(*value),
            _ => Err("true or false".into()),
        })
    }

    /// Text that is not empty.
    pub fn text(&mut self, key: &str, notes: &mut Notes) -> Option<String> {
        self.get(key, notes, |node| match node {
            Node::Text(text) if !text.is_empty() => Ok(text.clone()),
            _ => Err("text".into()),
        })
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], notes: &mut Notes) -> Option<T> {
        self.get(key, notes, |node| {
            let found = match node {
                Node::Text(text) => choices.iter().find(|(word, _)| word == text),
                _ => None,
            };
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
        notes: &mut Notes,
    ) -> Option<Vec<T>> {
        self.get(key, notes, |node| {
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
    pub fn list(&mut self, key: &str, notes: &mut Notes) -> Option<Vec<String>> {
        self.get(key, notes, |node| {
            let text = |node: &Node| match node {
                Node::Text(text) if !text.is_empty() => Some(text.clone()),
                _ => None,
            };
            let list = match node {
                Node::Array(items) => items.iter().map(|item| text(&item.node)).collect(),
                other => text(other).map(|text| vec![text]),
            };
            list.filter(|list: &Vec<String>| !list.is_empty())
                .ok_or_else(|| "text, or a list of texts".into())
        })
    }

    /// Complains of something that only shows when several values are looked at.
    pub fn complain(&self, key: &str, message: impl Into<String>, notes: &mut Notes) {
        let item = self.entries.and_then(|entries| entries.get(key));
        let origin = item.map_or(Origin::Default, |item| item.origin.clone());
        notes.complaints.push(Complaint {
            origin,
            key: format!("{}{key}", self.path),
            message: message.into(),
        });
    }

    /// Complains of every key that nobody asked for.
    pub fn end(self, notes: &mut Notes) {
        for (key, item) in self.entries.into_iter().flatten().filter(|(key, _)| !self.asked.contains(*key)) {
            let nearest = self
                .asked
                .iter()
                .min_by_key(|asked| distance(asked, key))
                .filter(|asked| distance(asked, key) <= 3);
            let message = match nearest {
                Some(nearest) => format!("there is no such key; did you mean {nearest}?"),
                None => "there is no such key".to_owned(),
            };
            let key = format!("{}{key}", self.path);
            notes.complaints.push(Complaint { origin: item.origin.clone(), key, message });
        }
    }
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
