//! The tree of values of a configuration, each with its origin.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

/// The place where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file, counted from 1.
    Line(usize),
    /// A line of a further file, whose path is as the configuration names it.
    LineOf(Arc<str>, usize),
    /// An environment variable of this name.
    Environment(String),
    /// The default of the key.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Line(line) => write!(f, "line {line}"),
            Origin::LineOf(path, line) => write!(f, "{path} line {line}"),
            Origin::Environment(name) => f.write_str(name),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value with its origin. It does not implement `Debug`, because it may hold a secret.
#[derive(Clone)]
pub struct Item {
    pub origin: Origin,
    pub node: Node,
    /// The original text, if `${NAME}` in it was replaced.
    pub written: Option<String>,
}

#[derive(Clone)]
pub enum Node {
    Table(BTreeMap<String, Item>),
    Array(Vec<Item>),
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// The text of an environment variable, and its value for a key that is not text.
    Environment(String, Box<Node>),
}

impl Item {
    fn new(origin: Origin, node: Node) -> Item {
        Item { origin, node, written: None }
    }

    /// Returns a value that was written nowhere.
    pub fn of_default(node: Node) -> Item {
        Item::new(Origin::Default, node)
    }

    /// Returns the text that an environment variable of another program sets.
    pub fn of_variable(name: &str, text: &str) -> Item {
        Item::new(Origin::Environment(name.to_owned()), Node::Text(text.to_owned()))
    }

    /// Returns a description for error messages about keys that are not secret. A text that may be an address is
    /// omitted.
    pub fn describe(&self) -> String {
        if let Some(written) = &self.written {
            return format!("{written:?}");
        }
        match &self.node {
            Node::Text(text) | Node::Environment(text, _)
                if text.contains(['@', '=']) || text.contains("://") =>
            {
                "other text".into()
            }
            Node::Environment(text, _) => format!("{text:?}"),
            node => node.describe(),
        }
    }

    /// Returns true if the value was set by an environment variable.
    pub fn is_from_environment(&self) -> bool {
        matches!(self.origin, Origin::Environment(_))
    }
}

impl Node {
    /// Returns the value for a key that is not text.
    pub fn value(&self) -> &Node {
        match self {
            Node::Environment(_, value) => value,
            node => node,
        }
    }

    /// Returns the value for a key that is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) | Node::Environment(text, _) => Some(text),
            _ => None,
        }
    }

    /// Returns the type of the value, for error messages about values that may be secret.
    pub fn kind(&self) -> &'static str {
        match self {
            Node::Table(_) => "a table",
            Node::Array(_) => "an array",
            Node::Text(_) | Node::Environment(..) => "text",
            Node::Int(_) | Node::Float(_) => "a number",
            Node::Bool(_) => "a boolean",
        }
    }

    /// Returns a description of the value for error messages.
    pub fn describe(&self) -> String {
        match self {
            Node::Table(_) | Node::Array(_) => self.kind().into(),
            Node::Text(text) | Node::Environment(text, _) => format!("{text:?}"),
            Node::Int(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::Bool(value) => value.to_string(),
        }
    }

    /// Returns the value as TOML, for the effective configuration.
    pub fn to_toml(&self) -> String {
        match self {
            Node::Text(text) => toml::Value::String(text.clone()).to_string(),
            Node::Float(value) => toml::Value::Float(*value).to_string(),
            Node::Environment(_, value) => value.to_toml(),
            Node::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| item.node.to_toml()).collect();
                format!("[{}]", items.join(", "))
            }
            Node::Table(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|(key, item)| format!("{key} = {}", item.node.to_toml())).collect();
                format!("{{ {} }}", entries.join(", "))
            }
            other => other.describe(),
        }
    }
}

/// Parses a TOML text and applies the overrides of `HEADWATER__SECTION__KEY` variables.
///
/// # Errors
/// If the text is not TOML: the line, and the error.
pub fn parse(text: &str, environment: &[(String, String)]) -> Result<Item, (Origin, String)> {
    let mut root = parse_with(text, &Origin::Line)?;
    for (name, value) in environment {
        let Some(path) = name.strip_prefix("HEADWATER__") else { continue };
        let path: Vec<_> = path.split("__").map(str::to_lowercase).collect();
        let origin = Origin::Environment(name.clone());
        set(&mut root, &path, scalar(value, &origin), &origin);
    }
    Ok(root)
}

/// Parses the TOML text of a further file, whose lines are places in the file with this path.
///
/// # Errors
/// If the text is not TOML: the line, and the error.
pub fn parse_file(text: &str, path: &Arc<str>) -> Result<Item, (Origin, String)> {
    parse_with(text, &|line| Origin::LineOf(Arc::clone(path), line))
}

fn parse_with(text: &str, origin: &dyn Fn(usize) -> Origin) -> Result<Item, (Origin, String)> {
    let line = |at: usize| origin(1 + text[..at.min(text.len())].matches('\n').count());
    let table = DeTable::parse(text)
        .map_err(|error| (line(error.span().map_or(0, |span| span.start)), error.message().to_owned()))?;
    Ok(table_item(table.get_ref(), origin(1), &line))
}

/// Converts the text of an environment variable. The item has the text and, if the text is TOML, its value.
fn scalar(text: &str, origin: &Origin) -> Item {
    let document = format!("value = {text}");
    let parsed = DeTable::parse(&document).ok().and_then(|table| {
        let table = table_item(table.get_ref(), origin.clone(), &|_| origin.clone());
        match table.node {
            Node::Table(mut entries) => entries.remove("value").map(|item| item.node),
            _ => None,
        }
    });
    let value = parsed.unwrap_or_else(|| Node::Text(text.to_owned()));
    Item::new(origin.clone(), Node::Environment(text.to_owned(), Box::new(value)))
}

/// Removes the lines of values, where they would not be those of the file that is read.
pub fn clear_places(item: &mut Item) {
    if let Origin::Line(_) = item.origin {
        item.origin = Origin::Default;
    }
    match &mut item.node {
        Node::Table(entries) => entries.values_mut().for_each(clear_places),
        Node::Array(items) => items.iter_mut().for_each(clear_places),
        _ => {}
    }
}

fn set(item: &mut Item, path: &[String], value: Item, origin: &Origin) {
    let Some((first, rest)) = path.split_first() else {
        *item = value;
        return;
    };
    if !matches!(item.node, Node::Table(_)) {
        *item = Item::new(origin.clone(), Node::Table(BTreeMap::new()));
    }
    if let Node::Table(entries) = &mut item.node {
        let missing = || Item::new(origin.clone(), Node::Table(BTreeMap::new()));
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
    Item::new(origin, Node::Table(entries))
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
    Item::new(origin, node)
}
