//! The section `[fields]`: the values of a record that make an event.

use std::sync::Arc;

use crate::decode::{
    Const, FieldMap, FieldSource, Form, Format, MAX_OWN, MappedField, Path, TimeFormat, decimal_micros,
    rfc3339_ms,
};
use crate::fields::{FieldId, FieldType, Layout, STANDARD};
use crate::settings::tree::Item;
use crate::settings::{Diagnostics, Node, Section};

/// Names that fields of one's own cannot have: those of members that outputs add, and words of rules.
const RESERVED: [&str; 17] = [
    "epoch",
    "key_kind",
    "key",
    "amount_band",
    "key_events",
    "key_amount_mean",
    "since_previous_ms",
    "km_from_previous",
    "time",
    "event",
    "lists",
    "in",
    "as",
    "true",
    "false",
    "null",
    "has",
];

/// Reads the section. Returns the layout also if a field has an error, so that others can refer to it; the field is then
/// a text.
pub(super) fn read(
    mut section: Section<'_>,
    format: Format,
    diagnostics: &mut Diagnostics,
) -> (Option<Arc<FieldMap>>, Arc<Layout>) {
    let mut read = Vec::new();
    let mut own = Vec::new();
    let errors = diagnostics.errors.len();
    for (name, item) in section.items() {
        let standard = STANDARD.iter().position(|(known, _)| known == name);
        if standard.is_none() && !is_own_name(name) {
            let expected = if RESERVED.contains(&name.as_str()) {
                "another name: this one is reserved"
            } else {
                "a name of at most 63 lower-case letters, digits and _ that begins with a letter"
            };
            section.report_error(name, format!("expected {expected}"), diagnostics);
            continue;
        }
        let expected = standard.map(|at| STANDARD[at].1);
        let definition = Definition::of(item, name, expected);
        let id = match standard {
            Some(at) => FieldId(at as u16),
            None => {
                let kind = definition.as_ref().map_or(FieldType::String, |definition| definition.kind);
                own.push((name.as_str().into(), kind));
                FieldId((STANDARD.len() + own.len() - 1) as u16)
            }
        };
        match definition {
            Ok(Definition { kind, source, required }) => {
                let always = [FieldId::EVENT_ID, FieldId::EVENT_TIME].contains(&id);
                read.push(MappedField::new(name, id, kind, source, required || always));
                diagnostics
                    .effective
                    .push((format!("{}{name}", section.path()), item.node.value().to_toml()));
            }
            Err(message) => section.report_error(name, message, diagnostics),
        }
    }
    if own.len() > MAX_OWN {
        section.report_error("", format!("at most {MAX_OWN} fields can be added"), diagnostics);
    }
    for (name, path) in format.defaults.iter().filter(|(name, _)| !section.has(name)) {
        let at = STANDARD.iter().position(|(known, _)| known == name).expect("a standard field");
        let source = path_source(path, Form::Plain).expect("a valid path");
        read.push(MappedField::new(name, FieldId(at as u16), STANDARD[at].1, source, true));
    }
    if !section.has("event_time") && format.defaults.is_empty() {
        let message = "is missing: name the path of the event's time, or `{ format = \"kafka\" }` for the record's \
                       timestamp";
        section.report_error("event_time", message, diagnostics);
    }
    section.end(diagnostics);
    // Fields are ordered by name, whatever their order in the file.
    let layout = Arc::new(Layout::new(own));
    let map = (diagnostics.errors.len() == errors)
        .then(|| FieldMap::new(Arc::clone(&layout), read, (format.envelope)()));
    (map.map(Arc::new), layout)
}

fn is_own_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(allowed)
        && !RESERVED.contains(&name)
}

/// A field as it is defined.
struct Definition {
    kind: FieldType,
    source: FieldSource,
    required: bool,
}

/// The keys of a definition.
const KEYS: [&str; 10] =
    ["path", "const", "type", "format", "zone", "scale", "not", "required", "lat", "lon"];

impl Definition {
    /// Reads the definition of a field; `expected` is the type of a standard field.
    fn of(item: &Item, name: &str, expected: Option<FieldType>) -> Result<Definition, String> {
        if let Some(text) = item.node.text() {
            let kind = expected.unwrap_or(FieldType::String);
            return Ok(Definition { kind, source: path_source(text, Form::Plain)?, required: false });
        }
        let Node::Table(entries) = item.node.value() else {
            return Err(format!(
                "expected a path such as \"txn.id\", or a table such as {{ path = \"txn.id\" }}, got {}",
                item.node.value().kind()
            ));
        };
        if let Some(unknown) = entries.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key `{unknown}`; known are {}", KEYS.join(", ")));
        }
        let get = |key: &str| entries.get(key).map(|item| item.node.value());
        let text = |key: &str| match get(key) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(format!("expected text for `{key}`, got {}", other.kind())),
        };
        let flag = |key: &str| match get(key) {
            None => Ok(false),
            Some(Node::Bool(flag)) => Ok(*flag),
            Some(other) => Err(format!("expected true or false for `{key}`, got {}", other.describe())),
        };
        let has = |key: &str| entries.contains_key(key);
        let kind = kind(text("type")?, expected, name, entries.contains_key("lat") || has("lon"))?;
        let required = flag("required")?;
        let source = if has("const") {
            only(entries.keys(), &["const", "type", "required"], "a constant")?;
            FieldSource::Const(constant(get("const").expect("it has it"), kind)?)
        } else if has("lat") || has("lon") {
            only(entries.keys(), &["lat", "lon", "type", "required"], "`lat` and `lon`")?;
            let (Some(lat), Some(lon)) = (text("lat")?, text("lon")?) else {
                return Err("expected both `lat` and `lon`".to_owned());
            };
            FieldSource::Place { lat: path(lat)?, lon: path(lon)? }
        } else if text("format")? == Some("kafka") {
            only(entries.keys(), &["format", "type", "required"], "the record's timestamp")?;
            if kind != FieldType::Timestamp {
                return Err("expected `type = \"timestamp\"` for the record's timestamp".to_owned());
            }
            FieldSource::RecordTimestamp
        } else {
            let Some(at) = text("path")? else {
                return Err("expected `path`, `const`, `lat` and `lon`, or `format = \"kafka\"`".to_owned());
            };
            let form = form(kind, get("scale"), flag("not")?, text("format")?, text("zone")?)?;
            path_source(at, form)?
        };
        Ok(Definition { kind, source, required })
    }
}

/// Returns where a value is: a path in the data or, after `@`, in the envelope.
fn path_source(text: &str, form: Form) -> Result<FieldSource, String> {
    let (in_envelope, text) = match text.strip_prefix('@') {
        Some(rest) => (true, format!("${rest}")),
        None => (false, text.to_owned()),
    };
    Ok(FieldSource::Path { path: path(&text)?, in_envelope, form })
}

fn path(text: &str) -> Result<Path, String> {
    Path::parse(text).map_err(|expected| format!("expected {expected}, got {text:?}"))
}

/// Checks that a definition has only these keys.
fn only<'a>(keys: impl Iterator<Item = &'a String>, allowed: &[&str], what: &str) -> Result<(), String> {
    match keys.into_iter().find(|key| !allowed.contains(&key.as_str())) {
        Some(key) => Err(format!("`{key}` does not apply to {what}")),
        None => Ok(()),
    }
}

/// Returns the type of a field.
fn kind(
    named: Option<&str>,
    expected: Option<FieldType>,
    name: &str,
    is_place: bool,
) -> Result<FieldType, String> {
    let named = match named {
        None => None,
        Some(text) => {
            let known = FieldType::OWN.into_iter().find(|kind| kind.as_str() == text);
            let names = FieldType::OWN.map(FieldType::as_str).join(", ");
            Some(known.ok_or_else(|| format!("expected a `type` that is one of {names}, got {text:?}"))?)
        }
    };
    let usual = if is_place { FieldType::Location } else { FieldType::String };
    match (named, expected) {
        (Some(named), Some(expected)) if named != expected => {
            Err(format!("`{name}` has the type {expected}; give another name to a field of type {named}"))
        }
        (_, Some(FieldType::Location)) | (Some(FieldType::Location), _) if !is_place => {
            Ok(FieldType::Location)
        }
        (named, expected) => {
            let kind = named.or(expected).unwrap_or(usual);
            if is_place && kind != FieldType::Location {
                return Err(format!("`lat` and `lon` make a location; `{name}` has the type {kind}"));
            }
            Ok(kind)
        }
    }
}

/// Returns how a value is read.
fn form(
    kind: FieldType,
    scale: Option<&Node>,
    not: bool,
    format: Option<&str>,
    zone: Option<&str>,
) -> Result<Form, String> {
    if scale.is_some() && kind != FieldType::Decimal {
        return Err(format!("`scale` applies to the type decimal, not to {kind}"));
    }
    if not && kind != FieldType::Boolean {
        return Err(format!("`not` applies to the type boolean, not to {kind}"));
    }
    if (format.is_some() || zone.is_some()) && kind != FieldType::Timestamp {
        return Err(format!("`format` and `zone` apply to the type timestamp, not to {kind}"));
    }
    match (scale, format) {
        (Some(Node::Int(scale @ 0..=18)), _) => Ok(Form::Scaled(*scale as u32)),
        (Some(other), _) => {
            Err(format!("expected a `scale` from 0 to 18 (decimal places), got {}", other.describe()))
        }
        (None, _) if not => Ok(Form::Negated),
        (None, Some(format)) => time_format(format, zone).map(Form::Time),
        (None, None) if zone.is_some() => {
            Err("`zone` applies to a `format` with a strftime pattern".to_owned())
        }
        (None, None) => Ok(Form::Plain),
    }
}

fn time_format(format: &str, zone: Option<&str>) -> Result<TimeFormat, String> {
    let known = match format {
        "rfc3339" => TimeFormat::Rfc3339,
        "unix_s" => TimeFormat::UnixSeconds,
        "unix_ms" => TimeFormat::UnixMillis,
        "unix_us" => TimeFormat::UnixMicros,
        "unix_ns" => TimeFormat::UnixNanos,
        pattern if pattern.contains('%') => {
            let zone = match zone {
                None => jiff::tz::TimeZone::UTC,
                Some(name) => jiff::tz::TimeZone::get(name).map_err(|_| {
                    format!("expected a `zone` of the IANA database, such as \"Europe/Paris\", got {name:?}")
                })?,
            };
            if let Err(error) = jiff::fmt::strtime::format(
                pattern,
                &jiff::Zoned::new(jiff::Timestamp::UNIX_EPOCH, zone.clone()),
            ) {
                return Err(format!("expected a strftime pattern as `format`, got {pattern:?}: {error}"));
            }
            return Ok(TimeFormat::Pattern { pattern: pattern.into(), zone });
        }
        other => {
            return Err(format!(
                "expected a `format` that is rfc3339, unix_s, unix_ms, unix_us, unix_ns, kafka or a strftime pattern, got \
                 {other:?}"
            ));
        }
    };
    match zone {
        Some(_) => Err("`zone` applies to a `format` with a strftime pattern".to_owned()),
        None => Ok(known),
    }
}

/// Returns the value of a constant.
fn constant(node: &Node, kind: FieldType) -> Result<Const, String> {
    let wrong = || format!("expected a `const` of the type {kind}, got {}", node.describe());
    match (kind, node) {
        (FieldType::String, Node::Text(text)) if !text.contains('\0') && text.len() <= 256 => {
            Ok(Const::String(text.as_str().into()))
        }
        (FieldType::String, Node::Int(number)) => Ok(Const::String(number.to_string().into())),
        (FieldType::Decimal, Node::Text(text)) => decimal_micros(text).map(Const::Decimal).ok_or_else(wrong),
        (FieldType::Decimal, Node::Int(_) | Node::Float(_)) => {
            decimal_micros(&node.describe()).map(Const::Decimal).ok_or_else(wrong)
        }
        (FieldType::Integer, Node::Int(number)) => Ok(Const::Integer(*number)),
        (FieldType::Float, Node::Int(number)) => Ok(Const::Float(*number as f64)),
        (FieldType::Float, Node::Float(number)) if number.is_finite() => Ok(Const::Float(*number)),
        (FieldType::Boolean, Node::Bool(flag)) => Ok(Const::Boolean(*flag)),
        (FieldType::Timestamp, Node::Text(text)) => {
            rfc3339_ms(text).map(Const::Timestamp).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}
