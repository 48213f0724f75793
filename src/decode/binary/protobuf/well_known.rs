//! The messages of Google's and Confluent's files that registries do not store, and those that are more than their
//! fields: a timestamp is an instant, a wrapper is its value.

use super::descriptor::{EnumProto, FieldProto, File, MessageProto};

/// A message that is written in a form of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WellKnown {
    /// An instant.
    Timestamp,
    /// A span of time.
    Duration,
    /// The value of its only field, or the zero of its type.
    Wrapper,
    /// The object of its only field.
    Struct,
    /// The array of its only field.
    ListValue,
    /// The value of the field that is set, or null.
    Value,
    /// A decimal number of Confluent.
    Decimal,
}

impl WellKnown {
    /// Returns the form of the message with this full name, if it has one.
    pub fn of(name: &str) -> Option<WellKnown> {
        let name = match name {
            "confluent.type.Decimal" => return Some(WellKnown::Decimal),
            name => name.strip_prefix("google.protobuf.")?,
        };
        Some(match name {
            "Timestamp" => WellKnown::Timestamp,
            "Duration" => WellKnown::Duration,
            "Struct" => WellKnown::Struct,
            "ListValue" => WellKnown::ListValue,
            "Value" => WellKnown::Value,
            name if WRAPPERS.iter().any(|(wrapper, _)| *wrapper == name) => WellKnown::Wrapper,
            _ => return None,
        })
    }
}

/// Wrappers of values, with the number of the type.
const WRAPPERS: [(&str, u64); 9] = [
    ("DoubleValue", 1),
    ("FloatValue", 2),
    ("Int64Value", 3),
    ("UInt64Value", 4),
    ("Int32Value", 5),
    ("UInt32Value", 13),
    ("BoolValue", 8),
    ("StringValue", 9),
    ("BytesValue", 12),
];

/// The numbers of types in descriptors.
const DOUBLE: u64 = 1;
const FLOAT: u64 = 2;
const INT64: u64 = 3;
const INT32: u64 = 5;
const BOOL: u64 = 8;
const TEXT: u64 = 9;
const BYTES: u64 = 12;
const UINT32: u64 = 13;

/// Messages, each with its fields, from number 1 on: name and type.
type Messages = &'static [(&'static str, &'static [(&'static str, u64)])];

/// The files: package and messages.
const FILES: [(&str, Messages); 3] = [
    (
        "google.protobuf",
        &[
            ("Timestamp", &[("seconds", INT64), ("nanos", INT32)]),
            ("Duration", &[("seconds", INT64), ("nanos", INT32)]),
            ("Any", &[("type_url", TEXT), ("value", BYTES)]),
            ("Empty", &[]),
        ],
    ),
    (
        "google.type",
        &[
            ("Money", &[("currency_code", TEXT), ("units", INT64), ("nanos", INT32)]),
            ("LatLng", &[("latitude", DOUBLE), ("longitude", DOUBLE)]),
            ("Date", &[("year", INT32), ("month", INT32), ("day", INT32)]),
            ("TimeOfDay", &[("hours", INT32), ("minutes", INT32), ("seconds", INT32), ("nanos", INT32)]),
            ("Decimal", &[("value", TEXT)]),
            ("Color", &[("red", FLOAT), ("green", FLOAT), ("blue", FLOAT)]),
        ],
    ),
    ("confluent.type", &[("Decimal", &[("value", BYTES), ("precision", UINT32), ("scale", INT32)])]),
];

/// Returns the files.
pub(super) fn files() -> Vec<File> {
    let mut files: Vec<_> = FILES
        .iter()
        .map(|(package, messages)| File {
            package: (*package).to_owned(),
            messages: messages.iter().map(|(name, fields)| message(name, fields)).collect(),
            enums: Vec::new(),
            is_proto3: true,
        })
        .collect();
    let google = &mut files[0];
    google.messages.extend(WRAPPERS.iter().map(|(name, kind)| message(name, &[("value", *kind)])));
    google.messages.push(repeated("FieldMask", "paths", TEXT, ""));
    google.messages.push(repeated("ListValue", "values", 0, "Value"));
    google.messages.push(repeated("Struct", "fields", 0, "Struct.FieldsEntry"));
    let mut entry = message("Struct.FieldsEntry", &[("key", TEXT), ("value", 0)]);
    entry.is_map_entry = true;
    entry.fields[1].type_name = "Value".to_owned();
    google.messages.push(entry);
    google.messages.push(value());
    google.enums.push(EnumProto { name: "NullValue".to_owned(), values: vec![(0, "NULL_VALUE".to_owned())] });
    files
}

fn message(name: &str, fields: &[(&str, u64)]) -> MessageProto {
    let fields = (1..).zip(fields).map(|(number, (name, kind))| FieldProto {
        name: (*name).to_owned(),
        number,
        kind: *kind,
        ..FieldProto::default()
    });
    MessageProto { name: name.to_owned(), fields: fields.collect(), ..MessageProto::default() }
}

/// Returns a message with one field, which is repeated.
fn repeated(name: &str, field: &str, kind: u64, type_name: &str) -> MessageProto {
    let mut message = message(name, &[(field, kind)]);
    message.fields[0].is_repeated = true;
    message.fields[0].type_name = type_name.to_owned();
    message
}

/// Returns the message of any JSON value.
fn value() -> MessageProto {
    let members = [
        ("null_value", 0),
        ("number_value", DOUBLE),
        ("string_value", TEXT),
        ("bool_value", BOOL),
        ("struct_value", 0),
        ("list_value", 0),
    ];
    let mut value = message("Value", &members);
    for (at, name) in [(0, "NullValue"), (4, "Struct"), (5, "ListValue")] {
        value.fields[at].type_name = name.to_owned();
    }
    value.fields.iter_mut().for_each(|field| field.oneof = Some(0));
    value
}
