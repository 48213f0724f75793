//! Generated records in Avro and Protobuf, and their schemas. Benchmarks use them, too.

use headwater::decode::{decimal_micros, rfc3339_ms};
use serde_json::{Map, Value, json};

/// The enum that both versions of the schema refer to.
pub const KIND: &str = r#"{"type":"enum","name":"Kind","namespace":"shop","symbols":["transaction","user_activity","iot_sensor","api_call"]}"#;

/// Returns the schema of events. The second version has another unit of time, and one more field, which comes first.
pub fn avro_schema(version: u32) -> String {
    let optional = |kind: Value| json!(["null", kind]);
    let text = |name: &str| json!({ "name": name, "type": optional(json!("string")) });
    let location = json!({ "type": "record", "name": "Place", "fields": [
        { "name": "lat", "type": "double" }, { "name": "lon", "type": "double" }] });
    let time = if version == 1 { "timestamp-millis" } else { "timestamp-micros" };
    let channel = (version > 1).then(|| json!({ "name": "channel", "type": "string" }));
    let fields = channel.into_iter().chain([
        text("event_id"),
        json!({ "name": "event_type", "type": ["string", "shop.Kind"] }),
        json!({ "name": "event_time", "type": optional(json!({ "type": "long", "logicalType": time })) }),
        text("user_id"),
        text("device_id"),
        json!({ "name": "amount", "type": optional(
            json!({ "type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 6 })) }),
        text("currency"),
        text("merchant_id"),
        text("merchant_category"),
        text("ip_address"),
        text("session_id"),
        json!({ "name": "location", "type": optional(location) }),
        json!({ "name": "attributes", "type": optional(
            json!({ "type": "map", "values": ["string", "double"] })) }),
    ]);
    json!({ "type": "record", "name": "Event", "namespace": "shop", "fields": fields.collect::<Vec<_>>() })
        .to_string()
}

/// The value that records of the second version have in their new field.
pub const CHANNEL: &str = "app";

/// Returns a record of a version of the schema, with its id.
pub fn avro_record(id: u32, version: u32, event: &Map<String, Value>) -> Vec<u8> {
    let mut out = header(id);
    if version > 1 {
        sized(CHANNEL.as_bytes(), &mut out);
    }
    let text = |name: &str, out: &mut Vec<u8>| match event.get(name).and_then(Value::as_str) {
        Some(text) => {
            zigzag(1, out);
            sized(text.as_bytes(), out);
        }
        None => zigzag(0, out),
    };
    text("event_id", &mut out);
    let kind = event["event_type"].as_str().expect("text");
    match ["transaction", "user_activity", "iot_sensor", "api_call"].iter().position(|name| *name == kind) {
        Some(at) => {
            zigzag(1, &mut out);
            zigzag(at as i64, &mut out);
        }
        None => {
            zigzag(0, &mut out);
            sized(kind.as_bytes(), &mut out);
        }
    }
    match time_ms(event) {
        Some(ms) => {
            zigzag(1, &mut out);
            zigzag(if version == 1 { ms } else { ms * 1000 }, &mut out);
        }
        None => zigzag(0, &mut out),
    }
    text("user_id", &mut out);
    text("device_id", &mut out);
    match event.get("amount") {
        Some(amount) => {
            zigzag(1, &mut out);
            let micros = decimal_micros(&amount.to_string()).expect("a number");
            sized(&micros.to_be_bytes(), &mut out);
        }
        None => zigzag(0, &mut out),
    }
    for name in ["currency", "merchant_id", "merchant_category", "ip_address", "session_id"] {
        text(name, &mut out);
    }
    match event.get("location") {
        Some(place) => {
            zigzag(1, &mut out);
            for name in ["lat", "lon"] {
                out.extend_from_slice(&place[name].as_f64().expect("a number").to_le_bytes());
            }
        }
        None => zigzag(0, &mut out),
    }
    match event.get("attributes").and_then(Value::as_object) {
        Some(attributes) => {
            zigzag(1, &mut out);
            zigzag(attributes.len() as i64, &mut out);
            for (name, value) in attributes {
                sized(name.as_bytes(), &mut out);
                match value {
                    Value::String(text) => {
                        zigzag(0, &mut out);
                        sized(text.as_bytes(), &mut out);
                    }
                    number => {
                        zigzag(1, &mut out);
                        out.extend_from_slice(&number.as_f64().expect("a number").to_le_bytes());
                    }
                }
            }
            zigzag(0, &mut out);
        }
        None => zigzag(0, &mut out),
    }
    out
}

/// The place of an event, in a file of its own.
pub const PROTO_PLACE: &str =
    "syntax = \"proto3\"; package shop.common; message Place { double lat = 1; double lon = 2; }";

/// The message of events, the second in its file.
pub const PROTO_EVENT: &str = r#"syntax = "proto3";
package shop.v1;
import "place.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/struct.proto";
message Unused { int32 a = 1; }
message Event {
  optional string event_id = 1;
  string event_type = 2;
  google.protobuf.Timestamp event_time = 3;
  optional string user_id = 4;
  optional string device_id = 5;
  optional string amount = 6;
  optional string currency = 7;
  optional string merchant_id = 8;
  optional string merchant_category = 9;
  optional string ip_address = 10;
  optional string session_id = 11;
  common.Place location = 12;
  map<string, google.protobuf.Value> attributes = 13;
}"#;

/// Returns a message of [`PROTO_EVENT`], with the id of its schema.
pub fn proto_record(id: u32, event: &Map<String, Value>) -> Vec<u8> {
    let mut out = header(id);
    // The indexes of the message: one, which is 1.
    out.extend([2, 2]);
    let text = |number: u64, name: &str, out: &mut Vec<u8>| {
        if let Some(value) = event.get(name) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            field(number, text.as_bytes(), out);
        }
    };
    // Fields may come in any order.
    for (number, name) in
        [(11, "session_id"), (10, "ip_address"), (9, "merchant_category"), (8, "merchant_id")]
    {
        text(number, name, &mut out);
    }
    for (at, name) in
        ["event_id", "event_type", "", "user_id", "device_id", "amount", "currency"].into_iter().enumerate()
    {
        text(at as u64 + 1, name, &mut out);
    }
    if let Some(ms) = time_ms(event) {
        let mut time = vec![0x08];
        varint(ms.div_euclid(1000) as u64, &mut time);
        time.push(0x10);
        varint(ms.rem_euclid(1000) as u64 * 1_000_000, &mut time);
        field(3, &time, &mut out);
    }
    if let Some(location) = event.get("location") {
        let mut place = Vec::new();
        for (tag, name) in [(0x09, "lat"), (0x11, "lon")] {
            place.push(tag);
            place.extend_from_slice(&location[name].as_f64().expect("a number").to_le_bytes());
        }
        field(12, &place, &mut out);
    }
    for (name, value) in event.get("attributes").and_then(Value::as_object).into_iter().flatten() {
        let mut any = Vec::new();
        match value {
            Value::String(text) => field(3, text.as_bytes(), &mut any),
            number => {
                any.push(0x11);
                any.extend_from_slice(&number.as_f64().expect("a number").to_le_bytes());
            }
        }
        let mut entry = Vec::new();
        field(1, name.as_bytes(), &mut entry);
        field(2, &any, &mut entry);
        field(13, &entry, &mut out);
    }
    out
}

fn time_ms(event: &Map<String, Value>) -> Option<i64> {
    match event.get("event_time")? {
        Value::String(text) => Some(rfc3339_ms(text).expect("a time")),
        number => number.as_i64(),
    }
}

fn header(id: u32) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&id.to_be_bytes());
    out
}

fn field(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(number << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    zigzag(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

fn zigzag(value: i64, out: &mut Vec<u8>) {
    varint((value << 1 ^ value >> 63) as u64, out);
}

fn varint(value: u64, out: &mut Vec<u8>) {
    let mut rest = value;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
