//! A configuration as it was written: a tree of values, each with where it comes from.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the file, on this line, counted from 1.
    Line(usize),
    /// In an environment variable of this name.
    Environment(String),
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Line(line) => write!(f, "line {line}"),
            Origin::Environment(name) => f.write_str(name),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value.
#[derive(Clone, Debug)]
pub struct Item {
    pub origin: Origin,
    pub node: Node,
}

#[derive(Clone, Debug)]
pub enum Node {
    Table(BTreeMap<String, Item>),
    Array(Vec<Item>),
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Node {
    /// What it is, for complaints.
    pub fn describe(&self) -> String {
        match self {
            Node::Table(_) => "a table".into(),
            Node::Array(_) => "an array".into(),
            Node::Text(text) => format!("{text:?}"),
            Node::Int(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::Bool(value) => value.to_string(),
        }
    }

    /// As TOML, for the effective configuration.
    pub fn to_toml(&self) -> String {
        match self {
            Node::Text(text) => toml::Value::String(text.clone()).to_string(),
            Node::Float(value) => toml::Value::Float(*value).to_string(),
            Node::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| item.node.to_toml()).collect();
                format!("[{}]", items.join(", "))
            }
            other => other.describe(),
        }
    }
}

/// Reads a file's text, and lets `HEADWATER__SECTION__KEY` override what it says.
///
/// # Errors
/// If it is not TOML: where, and what is wrong.
pub fn parse(text: &str, environment: &[(String, String)]) -> Result<Item, (Origin, String)> {
    let line = |at: usize| Origin::Line(1 + text[..at.min(text.len())].matches('\n').count());
    let table = DeTable::parse(text)
        .map_err(|error| (line(error.span().map_or(0, |span| span.start)), error.message().to_owned()))?;
    let mut root = table_item(table.get_ref(), Origin::Line(1), &line);
    for (name, value) in environment {
        let Some(path) = name.strip_prefix("HEADWATER__") else { continue };
        let path: Vec<_> = path.split("__").map(str::to_lowercase).collect();
        let origin = Origin::Environment(name.clone());
        set(&mut root, &path, scalar(value, &origin), &origin);
    }
    Ok(root)
}

/// An environment variable's text: a TOML value if it is one, else the text itself.
fn scalar(text: &str, origin: &Origin) -> Item {
    let document = format!("value = {text}");
    let parsed = DeTable::parse(&document).ok().and_then(|table| {
        let table = table_item(table.get_ref(), origin.clone(), &|_| origin.clone());
        match table.node {
            Node::Table(mut entries) => entries.remove("value"),
            _ => None,
        }
    });
    parsed.unwrap_or_else(|| Item { origin: origin.clone(), node: Node::Text(text.to_owned()) })
}

fn set(item: &mut Item, path: &[String], value: Item, origin: &Origin) {
    let Some((first, rest)) = path.split_first() else {
        *item = value;
        return;
    };
    if !matches!(item.node, Node::Table(_)) {
        *item = Item { origin: origin.clone(), node: Node::Table(BTreeMap::new()) };
    }
    if let Node::Table(entries) = &mut item.node {
        let missing = || Item { origin: origin.clone(), node: Node::Table(BTreeMap::new()) };
        set(entries.entry(first.clone()).or_insert_with(missing), rest, value, origin);
    }
}

fn table_item(table: &DeTable<'_>, origin: Origin, line: &dyn Fn(usize) -> Origin) -> Item {
    let entries = table
        .iter()
        .map(|(name, value)| {
            (name.get_ref().to_string(), item(value.get_ref(), line(name.span().start), line))
        })
        .collect();
    Item { origin, node: Node::Table(entries) }
}

fn item(value: &DeValue<'_>, origin: Origin, line: &dyn Fn(usize) -> Origin) -> Item {
    let node = match value {
        DeValue::String(text) => Node::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Node::Int(number),
            Err(_) => Node::Text(number.as_str().to_owned()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Node::Float(number),
            Err(_) => Node::Text(number.as_str().to_owned()),
        },
        DeValue::Boolean(value) => Node::Bool(*value),
        DeValue::Datetime(time) => Node::Text(time.to_string()),
        DeValue::Array(values) => Node::Array(
            values.iter().map(|value| item(value.get_ref(), line(value.span().start), line)).collect(),
        ),
        DeValue::Table(table) => return table_item(table, origin, line),
    };
    Item { origin, node }
}
