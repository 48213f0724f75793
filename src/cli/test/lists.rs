//! The contents of lists in a file with tests: `lists = { blocked = ["10.0.0.1"], merchants = { m1 = { risk = "4.5" } } }`.

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_dataflows::Since;

use crate::connectors::{ListValue, list_key, list_row};
use crate::lists::{Entries, List, Lists, Table, Version};
use crate::settings::tree::Item;
use crate::settings::{Diagnostics, Node, Section, nearest};

/// The contents of lists, by name.
pub type Contents = BTreeMap<String, Entries>;

/// Reads the section `lists` of a file or a test.
pub fn read(section: &mut Section<'_>, lists: &Lists, diagnostics: &mut Diagnostics) -> Contents {
    let mut contents = Contents::new();
    let Some(mut section) = section.section("lists", diagnostics) else { return contents };
    for (name, item) in section.items() {
        let Some(list) = lists.get(name) else {
            let known: Vec<_> = lists.names().collect();
            let message = match nearest(name, known.iter().copied()) {
                Some(near) => format!("there is no list {name}; did you mean {near}?"),
                None if known.is_empty() => "the configuration has no [[lists]]".to_owned(),
                None => format!("there is no list {name}; lists: {}", known.join(", ")),
            };
            section.report_error(name, message, diagnostics);
            continue;
        };
        match entries(list, item) {
            Ok(entries) => drop(contents.insert(name.clone(), entries)),
            Err(message) => section.report_error(name, message, diagnostics),
        }
    }
    section.end(diagnostics);
    contents
}

fn entries(list: &List, item: &Item) -> Result<Entries, String> {
    let schema = list.schema();
    match item.node.value() {
        Node::Array(items) => {
            let entry = |item: &Item| {
                Ok((list_key(schema.key, &value(item))?, list_row(schema, |_, _| ListValue::Absent)?))
            };
            items.iter().map(entry).collect()
        }
        Node::Table(rows) => {
            let entry = |(key, row): (&String, &Item)| {
                let Node::Table(cells) = row.node.value() else {
                    return Err(format!("{key}: expected its columns, such as {{ risk = \"1.5\" }}"));
                };
                if let Some(unknown) = cells.keys().find(|name| schema.column(name).is_none()) {
                    return Err(format!("{key}: the list has no column {unknown}"));
                }
                let row = list_row(schema, |_, name| cells.get(name).map_or(ListValue::Absent, value));
                let row = row.map_err(|error| format!("{key}: {error}"))?;
                Ok((list_key(schema.key, &ListValue::of_text(key))?, row))
            };
            rows.iter().map(entry).collect()
        }
        other => Err(format!("expected a list of keys, or a table of entries by key, got {}", other.kind())),
    }
}

fn value(item: &Item) -> ListValue<'_> {
    match item.node.value() {
        Node::Text(text) => ListValue::Text(text.into()),
        Node::Bool(value) => ListValue::Boolean(*value),
        node @ (Node::Int(_) | Node::Float(_)) => ListValue::Text(node.describe().into()),
        _ => ListValue::Composite,
    }
}

/// Lets the contents of a test come into force for all its events, after those of the file.
pub fn begin(lists: &Lists, of_file: &Contents, of_test: &Contents) {
    for list in lists.iter() {
        let entries = of_test.get(list.name()).or_else(|| of_file.get(list.name()));
        let table = Arc::new(Table::new(entries.cloned().unwrap_or_default()));
        list.begin([Version { since: Since::beginning(), hash: None, table }]);
    }
}
