//! Keys and values that were renamed. The old spellings work, with a warning; the ledger keeps them, so that pipelines
//! that were started with them can resume.

use super::read::{ConfigError, Diagnostics};
use super::tree::{Item, Node};

/// A key that was renamed.
struct RenamedKey {
    section: &'static str,
    old: &'static str,
    new: &'static str,
}

/// A value that was renamed.
struct RenamedValue {
    section: &'static str,
    key: &'static str,
    old: &'static str,
    new: &'static str,
}

const KEYS: [RenamedKey; 2] = [
    RenamedKey { section: "limits", old: "drain", new: "shutdown_timeout" },
    RenamedKey { section: "windows", old: "every", new: "slide" },
];

const VALUES: [RenamedValue; 1] =
    [RenamedValue { section: "windows", key: "emit", old: "revised", new: "early" }];

/// Replaces old spellings in a configuration by the current ones, with a warning each.
pub fn modernize(tree: &mut Item, diagnostics: &mut Diagnostics) {
    for renamed in &KEYS {
        for_each_table(tree, renamed.section, |path, table| {
            let Some(item) = table.remove(renamed.old) else { return };
            let RenamedKey { old, new, .. } = renamed;
            let (origin, key) = (item.origin.clone(), format!("{path}.{old}"));
            if table.contains_key(*new) {
                let message = format!("is the old name of `{new}`, which is set too; remove one of them");
                diagnostics.errors.push(ConfigError { origin, key, message });
            } else {
                let message = format!("is deprecated: use `{new}`");
                diagnostics.warnings.push(ConfigError { origin, key, message });
                table.insert((*new).to_owned(), item);
            }
        });
    }
    for renamed in &VALUES {
        for_each_table(tree, renamed.section, |path, table| {
            let RenamedValue { key, old, new, .. } = renamed;
            let Some(item) = table.get_mut(*key).filter(|item| item.node.text() == Some(old)) else { return };
            let message = format!("{old:?} is deprecated: use {new:?}");
            let key = format!("{path}.{key}");
            diagnostics.warnings.push(ConfigError { origin: item.origin.clone(), key, message });
            item.node = Node::Text((*new).to_owned());
        });
    }
}

type Table = std::collections::BTreeMap<String, Item>;

/// Calls a function with the path and the entries of a section, or of each section of an array.
fn for_each_table(tree: &mut Item, section: &str, mut act: impl FnMut(&str, &mut Table)) {
    let Node::Table(entries) = &mut tree.node else { return };
    match entries.get_mut(section).map(|item| &mut item.node) {
        Some(Node::Table(table)) => act(section, table),
        Some(Node::Array(items)) => {
            for (at, item) in items.iter_mut().enumerate() {
                if let Node::Table(table) = &mut item.node {
                    act(&format!("{section}[{at}]"), table);
                }
            }
        }
        _ => {}
    }
}

/// Returns an effective key and its value as the ledger stores them.
pub fn persisted(key: &str, value: &str) -> (String, String) {
    let is_of = |section: &str, name: &str| {
        let rest = key.strip_prefix(section).and_then(|rest| rest.strip_suffix(name));
        rest.is_some_and(|rest| rest.ends_with('.') && (rest == "." || rest.starts_with('[')))
    };
    let old_key = KEYS.iter().find(|renamed| is_of(renamed.section, renamed.new));
    let old_value = VALUES.iter().find(|renamed| {
        is_of(renamed.section, renamed.key) && value == Node::Text(renamed.new.to_owned()).to_toml()
    });
    let key = old_key.map_or(key.to_owned(), |renamed| {
        format!("{}{}", key.strip_suffix(renamed.new).unwrap_or(key), renamed.old)
    });
    (key, old_value.map_or(value.to_owned(), |renamed| Node::Text(renamed.old.to_owned()).to_toml()))
}
