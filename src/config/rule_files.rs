//! Files of rules, which a configuration names instead of having the rules itself.
//!
//! ```text
//!   rules = ["rules/*.toml", { id = … }] ─▶ paths ─▶ files ─▶ their [[rules]] ─▶ rules = [{ id = … }, …]
//! ```
//!
//! The tree of the configuration gets the tables of the files in the place of their paths, so that whatever reads the
//! tree sees the same rules wherever they were written. Their origins name the files.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::settings::tree::{self, Item};
use crate::settings::{ConfigError, Diagnostics, Node, Origin, environment, nearest};

/// The key that names files, and the only key of such a file.
const RULES: &str = "rules";

/// The names of environment variables that were replaced, and the errors of those that are not set.
type Substituted = (BTreeSet<String>, Vec<ConfigError>);

/// Returns the paths of the files that a configuration names, as far as they are found.
pub(super) fn paths(tree: &Item) -> Vec<PathBuf> {
    let Node::Table(entries) = &tree.node else { return Vec::new() };
    let patterns: Vec<&str> = match entries.get(RULES).map(|item| item.node.value()) {
        Some(Node::Array(items)) => items.iter().filter_map(|item| item.node.text()).collect(),
        Some(node) => node.text().into_iter().collect(),
        None => Vec::new(),
    };
    patterns.into_iter().filter_map(|pattern| find(pattern).ok()).flatten().collect()
}

/// Replaces each path in `rules` by the rules of its files, and `${NAME}` in the texts of the files.
pub(super) fn read(
    tree: &mut Item,
    environment: &[(String, String)],
    diagnostics: &mut Diagnostics,
) -> Substituted {
    let mut reading = Reading {
        environment,
        diagnostics,
        seen: BTreeSet::new(),
        rules: Vec::new(),
        substituted: Substituted::default(),
    };
    let Node::Table(entries) = &mut tree.node else { return reading.substituted };
    let Some(item) = entries.get_mut(RULES) else { return reading.substituted };
    let items = match item.node.value() {
        Node::Array(items) => items.clone(),
        // One path needs no list.
        Node::Text(_) => vec![item.clone()],
        _ => return reading.substituted,
    };
    for item in items {
        match item.node.text().map(str::to_owned) {
            Some(pattern) => reading.read_pattern(&pattern, &item.origin),
            None => reading.rules.push(item),
        }
    }
    let Reading { rules, substituted, .. } = reading;
    item.node = Node::Array(rules);
    substituted
}

struct Reading<'a> {
    environment: &'a [(String, String)],
    diagnostics: &'a mut Diagnostics,
    /// The absolute paths of the files that were read: each is read once.
    seen: BTreeSet<PathBuf>,
    rules: Vec<Item>,
    substituted: Substituted,
}

impl Reading<'_> {
    fn report(&mut self, origin: &Origin, key: &str, message: impl Into<String>) {
        let (origin, key) = (origin.clone(), key.to_owned());
        self.diagnostics.errors.push(ConfigError { origin, key, message: message.into() });
    }

    fn read_pattern(&mut self, pattern: &str, origin: &Origin) {
        let files = match find(pattern) {
            Ok(files) => files,
            Err(message) => return self.report(origin, RULES, message),
        };
        for path in files {
            let is_new = match std::path::absolute(&path) {
                Ok(absolute) => self.seen.insert(absolute),
                Err(_) => true,
            };
            if is_new {
                self.read_file(&path, origin);
            }
        }
    }

    /// Reads a file. `origin` is the place that names it.
    fn read_file(&mut self, path: &Path, origin: &Origin) {
        let name: Arc<str> = path.display().to_string().into();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot read {name}: {error}{}", relative_to(path));
                return self.report(origin, RULES, message);
            }
        };
        let file = match tree::parse_file(&text, &name) {
            Ok(file) => file,
            Err((place, message)) => return self.report(&place, "the file", message),
        };
        let Node::Table(entries) = file.node else { return };
        for (key, item) in entries {
            match item.node {
                Node::Array(items) if key == RULES => self.add_rules(items),
                _ if key == RULES => {
                    let message = format!("expected sections [[{RULES}]], got {}", item.node.kind());
                    self.report(&item.origin, &key, message);
                }
                _ => {
                    let way_on = match nearest(&key, std::iter::once(RULES)) {
                        Some(near) => format!("did you mean {near}?"),
                        None => "move this to the configuration that names the file".to_owned(),
                    };
                    let message = format!("a file of rules has only sections [[{RULES}]]; {way_on}");
                    self.report(&item.origin, &key, message);
                }
            }
        }
    }

    fn add_rules(&mut self, items: Vec<Item>) {
        for mut item in items {
            if matches!(item.node, Node::Text(_)) {
                let message = "a file of rules names no further files; name them in the configuration";
                self.report(&item.origin, RULES, message);
                continue;
            }
            let path = format!("{RULES}[{}]", self.rules.len());
            let (names, mut errors) = environment::substitute_at(&mut item, path, self.environment);
            self.substituted.0.extend(names);
            self.substituted.1.append(&mut errors);
            self.rules.push(item);
        }
    }
}

/// Returns the files that a path names, sorted: one, or those that match the `*` in its last segment.
fn find(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(pattern);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(format!("expected the path of a file with [[{RULES}]], got {pattern:?}"));
    };
    if folder.as_os_str().as_encoded_bytes().contains(&b'*') {
        return Err(format!(
            "{pattern:?}: only the last segment of a path can contain `*`, as in \"{RULES}/*.toml\"; name each folder"
        ));
    }
    if !name.contains('*') {
        return Ok(vec![path.to_owned()]);
    }
    let read = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |error| format!("cannot read the folder {}: {error}{}", read.display(), relative_to(path));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(read).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_match = entry.file_name().to_str().is_some_and(|entry| is_match(name, entry));
        // Links count as what they lead to: mounted configurations of Kubernetes are links.
        if is_match && !entry.path().is_dir() {
            found.push(folder.join(entry.file_name()));
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(format!(
            "no file matches {pattern:?}{}; correct the path, or remove it",
            relative_to(path)
        ));
    }
    Ok(found)
}

/// Returns the folder that a relative path starts from, for errors.
fn relative_to(path: &Path) -> String {
    match std::env::current_dir() {
        Ok(folder) if path.is_relative() => {
            format!(" (relative to the working directory {})", folder.display())
        }
        _ => String::new(),
    }
}

/// Returns true if a name of a file matches a pattern with `*`. Hidden files match no pattern, and tests of rules, which
/// may lie beside the rules, do not either.
fn is_match(pattern: &str, name: &str) -> bool {
    let is_left_out = name.starts_with('.') || name.ends_with("_test.toml") || name.ends_with(".test.toml");
    !is_left_out && is_wildcard_match(pattern, name)
}

/// Returns true if a text is a pattern in which each `*` stands for any characters.
fn is_wildcard_match(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests;
