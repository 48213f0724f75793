//! The sections `[[lists]]`: sets and tables that rules look values up in.

use std::collections::BTreeSet;

use super::{SinksConfig, SourceConfig, is_name};
use crate::connectors::{ListBounds, ListConfig, ListDefaults, read_list_source};
use crate::fields::FieldType;
use crate::lists::{KeyType, Lists, Schema};
use crate::settings::{Diagnostics, Section, millis, nearest};

/// The maximum number of columns.
const MAX_COLUMNS: usize = 64;

/// Words that no name in an expression can be.
const RESERVED: [&str; 21] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

/// A list whose source is not read yet.
pub(super) struct Declared<'a> {
    name: String,
    schema: Schema,
    bounds: ListBounds,
    wait_ms: i64,
    source: Option<Section<'a>>,
}

/// Reads the sections, except the sources.
pub(super) fn read<'a>(top: &mut Section<'a>, diagnostics: &mut Diagnostics) -> Vec<Declared<'a>> {
    let mut names = BTreeSet::new();
    let sections = top.sections("lists", diagnostics).into_iter();
    sections.filter_map(|section| read_list(section, &mut names, diagnostics)).collect()
}

/// Returns empty lists of these names and types.
pub(super) fn registry(declared: &[Declared<'_>]) -> Lists {
    Lists::new(declared.iter().map(|list| (list.name.as_str().into(), list.schema.clone())))
}

/// Reads the sources. Those without a server have that of the pipeline's source or only sink.
pub(super) fn read_sources(
    declared: Vec<Declared<'_>>,
    source: Option<&SourceConfig>,
    sinks: &SinksConfig,
    diagnostics: &mut Diagnostics,
) -> Vec<ListConfig> {
    let mut databases = sinks.postgres();
    let only = databases.next().filter(|_| databases.next().is_none());
    let defaults = ListDefaults {
        kafka: match source {
            Some(SourceConfig::Kafka(kafka)) => Some((kafka.brokers.clone(), kafka.options.clone())),
            _ => None,
        },
        postgres: only.map(|sink| sink.url.clone()),
    };
    let read = |Declared { name, schema, bounds, wait_ms, source }: Declared<'_>| {
        let source = read_list_source(source?, &schema, &defaults, diagnostics)?;
        Some(ListConfig { name, schema, bounds, wait: millis(wait_ms), source })
    };
    declared.into_iter().filter_map(read).collect()
}

/// Reports lists whose contents a restart could not find again.
pub(super) fn check_store(top: &Section<'_>, diagnostics: &mut Diagnostics) {
    if top.has("lists") && top.has("ledger") && !top.has("checkpoint") {
        let message = "lists of a pipeline with a [ledger] need [checkpoint], whose state store keeps the contents that a \
                       start replays events with: add an empty section [checkpoint]";
        top.report_error("lists", message, diagnostics);
    }
}

fn read_list<'a>(
    mut section: Section<'a>,
    names: &mut BTreeSet<String>,
    diagnostics: &mut Diagnostics,
) -> Option<Declared<'a>> {
    let name = section.text("name", diagnostics);
    if let Some(name) = &name {
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !is_name(name, "_") || !begins || RESERVED.contains(&name.as_str()) {
            let message = "expected at most 63 lower-case letters, digits and _ with a letter first, and no word of \
                           expressions such as in";
            section.report_error("name", message, diagnostics);
        } else if !names.insert(name.clone()) {
            section.report_error("name", format!("two lists have the name {name}"), diagnostics);
        }
    }
    let types = [KeyType::String, KeyType::Integer, KeyType::Decimal].map(|kind| (kind.as_str(), kind));
    let key = section.choice("key_type", &types, diagnostics);
    let columns = match section.section("columns", diagnostics) {
        Some(columns) => read_columns(columns, diagnostics),
        None => Vec::new(),
    };
    let entries = section.int("max_entries", 1..=100_000_000, diagnostics);
    let bytes = section.size("max_bytes", diagnostics);
    let wait_ms = section.duration("wait", 0, diagnostics);
    let source = section.section("source", diagnostics);
    if source.is_none() && !section.has("source") {
        let example = "is missing: for example `source = { kind = \"file\", path = \"blocked.txt\" }`";
        section.report_error("source", example, diagnostics);
    }
    section.end(diagnostics);
    Some(Declared {
        name: name?,
        schema: Schema { key: key?, columns },
        bounds: ListBounds { entries: entries? as usize, bytes: bytes? },
        wait_ms: wait_ms?,
        source,
    })
}

fn read_columns(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Vec<(Box<str>, FieldType)> {
    let mut columns = Vec::new();
    for (name, item) in section.items() {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_identifier = (1..=63).contains(&name.len())
            && name.chars().all(allowed)
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && !RESERVED.contains(&name.as_str());
        if !is_identifier {
            let message = "expected the name of a column: at most 63 letters, digits and _";
            section.report_error(name, message, diagnostics);
            continue;
        }
        let known = Schema::TYPES.map(FieldType::as_str);
        let text = item.node.text();
        match Schema::TYPES.into_iter().find(|kind| Some(kind.as_str()) == text) {
            Some(kind) => {
                diagnostics
                    .effective
                    .push((format!("{}{name}", section.path()), item.node.value().to_toml()));
                columns.push((name.as_str().into(), kind));
            }
            None => {
                let suggested = text.and_then(|text| nearest(text, known.into_iter()));
                let suggested = suggested.map_or(String::new(), |name| format!("; did you mean {name:?}?"));
                let message =
                    format!("expected a type: {}, got {}{suggested}", known.join(", "), item.describe());
                section.report_error(name, message, diagnostics);
            }
        }
    }
    if columns.len() > MAX_COLUMNS {
        section.report_error("", format!("a list has at most {MAX_COLUMNS} columns"), diagnostics);
    }
    section.end(diagnostics);
    columns
}

#[cfg(test)]
mod tests;
