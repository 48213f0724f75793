//! Events of a test: their fields by name, decoded as the fields of the configuration are.
//!
//! ```text
//!   { at, arrives, repeat, every, FIELD = value … } ─▶ JSON by field names ─▶ identity map of the layout ─▶ Event
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_dataflows::{Offset, Partition, Position};
use serde_json::{Map, Value};

use super::offset::{self, BEGINNING_MS};
use crate::decode::{
    Const, Decoder, Envelope, FieldMap, FieldSource, Form, MappedDecoder, MappedField, Path, Rejection,
    rfc3339_ms,
};
use crate::event::{Event, EventType};
use crate::fields::{FieldId, FieldType, Layout, STANDARD};
use crate::json::{decimal, rfc3339};
use crate::settings::{Diagnostics, Node, Section};
use crate::source::Raw;

/// The maximum number of events of a test.
const MAX_EVENTS: usize = 100_000;

/// Events that arrive at the same time, in the order of the file.
pub type Arrival = Vec<Event>;

/// The fields that events of a test can have.
pub struct TestFields {
    /// A map in which the path of each field is its name.
    map: Arc<FieldMap>,
    /// The names and types of the fields that records can have.
    known: Vec<(String, FieldType)>,
    /// The values of fields that are constant.
    constants: BTreeMap<String, Value>,
    /// True if the types of events are those of the standard event.
    has_standard_types: bool,
}

impl TestFields {
    /// Returns the fields of a configuration: those of `[fields]`, or of the standard event.
    pub fn new(configured: Option<&FieldMap>) -> TestFields {
        let layout = configured.map_or_else(Arc::<Layout>::default, |map| Arc::clone(map.layout()));
        let fields = layout.fields().enumerate().map(|(at, (name, kind))| {
            let path = Path::parse(&format!("['{name}']")).expect("a quoted name is a path");
            let id = FieldId(at as u16);
            let is_required = [FieldId::EVENT_ID, FieldId::EVENT_TIME].contains(&id);
            let source = FieldSource::Path { path, in_envelope: false, form: Form::Plain };
            MappedField::new(name, id, kind, source, is_required)
        });
        let map = Arc::new(FieldMap::new(Arc::clone(&layout), fields.collect(), Envelope::none()));
        let mapped = configured.map(|map| map.fields().iter());
        let of_records: Vec<(String, FieldType)> = match mapped.clone() {
            Some(fields) => fields.map(|field| (field.name.to_string(), field.kind)).collect(),
            None => STANDARD.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect(),
        };
        let constants = mapped.into_iter().flatten().filter_map(|field| match &field.source {
            FieldSource::Const(value) => Some((field.name.to_string(), json_of(value))),
            _ => None,
        });
        TestFields {
            map,
            known: of_records.into_iter().filter(|(name, _)| name != "event_time").collect(),
            constants: constants.collect(),
            has_standard_types: configured.is_none(),
        }
    }

    /// Returns the plan's fields: the map of the records of tests.
    pub fn map(&self) -> &Arc<FieldMap> {
        &self.map
    }

    /// Reads the events of a test, in the order of arrival.
    pub fn read(&self, sections: Vec<Section<'_>>, diagnostics: &mut Diagnostics) -> Vec<Arrival> {
        let mut records = Vec::new();
        let mut count = 0;
        for mut section in sections {
            let item = self.read_item(&mut section, diagnostics);
            if let Some(item) = item {
                let numbers = count + 1..=count + item.repeat;
                count += item.repeat;
                if count > MAX_EVENTS {
                    let message = format!("a test has at most {MAX_EVENTS} events");
                    section.report_error("repeat", message, diagnostics);
                    return Vec::new();
                }
                let first = records.len();
                records.extend(numbers.zip(0..).map(|(number, index)| item.record(number, index)));
                if let Err(rejection) = self.decode(&records[first], Offset(0)) {
                    let field = rejection.field.as_deref().unwrap_or("at");
                    section.report_error(field, rejection.message, diagnostics);
                    records.truncate(first);
                }
            }
            section.end(diagnostics);
        }
        records.sort_by_key(|record| record.arrives_ms);
        self.arrivals(&records)
    }

    /// Returns the events of valid records, which are sorted by arrival.
    fn arrivals(&self, records: &[Record]) -> Vec<Arrival> {
        let mut offsets = (0..).map(Offset);
        let arrivals = records.chunk_by(|a, b| a.arrives_ms == b.arrives_ms).map(|together| {
            let events = together.iter().zip(&mut offsets);
            events.filter_map(|(record, offset)| self.decode(record, offset).ok()).collect()
        });
        arrivals.collect()
    }

    /// Reads one item of the list of events.
    fn read_item(&self, section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<Item> {
        let at_ms = read_offset(section, "at", diagnostics);
        let arrives_ms = read_offset(section, "arrives", diagnostics);
        let has_arrival = section.has("arrives");
        let repeat = section.int("repeat", 1..=MAX_EVENTS as i64, diagnostics);
        let every_ms = section.duration("every", 0, diagnostics);
        if section.has("event_time") {
            let _ = section.item("event_time");
            section.report_error("event_time", "expected `at` for the event time", diagnostics);
        }
        let mut members: Map<String, Value> = self.constants.clone().into_iter().collect();
        for (name, kind) in &self.known {
            let Some(item) = section.item(name) else { continue };
            match self.member(name, *kind, item.node.value()) {
                Ok(value) => drop(members.insert(name.clone(), value)),
                Err(message) => section.report_error(name, message, diagnostics),
            }
        }
        if let (Some(at), Some(arrives)) = (at_ms, arrives_ms)
            && arrives < at
        {
            let message = format!("the event of {} cannot arrive before its time", offset::display(at));
            section.report_error("arrives", message, diagnostics);
            return None;
        }
        let arrives_ms = if has_arrival { arrives_ms } else { at_ms };
        let (at_ms, arrives_ms, every_ms, repeat) = (at_ms?, arrives_ms?, every_ms?, repeat?);
        if every_ms.saturating_mul(repeat - 1).saturating_add(arrives_ms) > offset::MOST_MS {
            let most = offset::display(offset::MOST_MS);
            section.report_error("every", format!("the last event is more than {most} away"), diagnostics);
            return None;
        }
        Some(Item { at_ms, arrives_ms, every_ms, repeat: repeat as usize, members })
    }

    /// Returns the JSON of a field, or a description of the expected value.
    fn member(&self, name: &str, kind: FieldType, node: &Node) -> Result<Value, String> {
        let value = json(node).ok_or("expected a number that is finite")?;
        if let Some(constant) = self.constants.get(name)
            && value != *constant
        {
            return Err(format!("expected {constant}, which [fields] says of each event, got {value}"));
        }
        match (name, &value) {
            ("event_type", Value::String(text))
                if self.has_standard_types && EventType::parse(text).is_none() =>
            {
                Err(format!(
                    "expected transaction, user_activity, iot_sensor or api_call, got {text:?}; other types need \
                     [fields]"
                ))
            }
            (_, Value::String(text)) if kind == FieldType::Timestamp => {
                Ok(match offset::parse_signed(text) {
                    Some(ms) => rfc3339(BEGINNING_MS + ms).into(),
                    None if rfc3339_ms(text).is_ok() => value,
                    None => {
                        return Err(format!(
                            "expected an RFC 3339 time with an offset, or a time after the beginning such as \"5m\" or \
                             \"-90d\", got {text:?}"
                        ));
                    }
                })
            }
            _ => Ok(value),
        }
    }

    fn decode(&self, record: &Record, offset: Offset) -> Result<Event, Rejection> {
        let raw = Raw {
            position: Position { partition: Partition(0), offset },
            timestamp: BEGINNING_MS + record.arrives_ms,
            key: None,
            value: Some(record.text.as_bytes()),
            retries: 0,
            producer: None,
        };
        MappedDecoder::new(Arc::clone(&self.map), true).decode(raw)
    }
}

/// Reads an offset from the beginning of a test, in milliseconds.
pub fn read_offset(section: &mut Section<'_>, key: &str, diagnostics: &mut Diagnostics) -> Option<i64> {
    section.get_text(key, diagnostics, |text| {
        let ms = text.and_then(offset::parse);
        ms.ok_or_else(|| "a time after the beginning such as \"0s\", \"90s\" or \"1h30m\"".to_owned())
    })
}

/// An item of the list of events.
struct Item {
    at_ms: i64,
    arrives_ms: i64,
    every_ms: i64,
    repeat: usize,
    members: Map<String, Value>,
}

impl Item {
    /// Returns one of the records of the item. `number` counts the events of the test from 1, `index` those of the item
    /// from 0.
    fn record(&self, number: usize, index: i64) -> Record {
        let later_ms = self.every_ms.saturating_mul(index);
        let mut members = self.members.clone();
        let time = rfc3339(BEGINNING_MS.saturating_add(self.at_ms).saturating_add(later_ms));
        members.insert("event_time".to_owned(), time.into());
        members.entry("event_id").or_insert_with(|| format!("e{number}").into());
        let text = Value::Object(members).to_string();
        Record { arrives_ms: self.arrives_ms.saturating_add(later_ms), text }
    }
}

/// A record of a test.
struct Record {
    arrives_ms: i64,
    text: String,
}

/// Returns a value as JSON; None if it is a number that is not finite.
pub fn json(node: &Node) -> Option<Value> {
    Some(match node {
        Node::Text(text) | Node::Environment(text, _) => text.as_str().into(),
        Node::Int(number) => (*number).into(),
        Node::Float(number) => serde_json::Number::from_f64(*number)?.into(),
        Node::Bool(flag) => (*flag).into(),
        Node::Array(items) => items.iter().map(|item| json(item.node.value())).collect::<Option<_>>()?,
        Node::Table(entries) => {
            let members = entries.iter().map(|(name, item)| Some((name.clone(), json(item.node.value())?)));
            Value::Object(members.collect::<Option<_>>()?)
        }
    })
}

/// Returns a constant field as JSON.
fn json_of(constant: &Const) -> Value {
    match constant {
        Const::String(text) => text.as_ref().into(),
        Const::Decimal(micros) => decimal((*micros).into()).into(),
        Const::Integer(integer) => (*integer).into(),
        Const::Float(float) => (*float).into(),
        Const::Boolean(boolean) => (*boolean).into(),
        Const::Timestamp(ms) => rfc3339(*ms).into(),
    }
}
