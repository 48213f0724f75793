use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::decode::binary::hostile::Random;

fn parse(schema: &Value, references: &[Value]) -> Result<AvroSchema, String> {
    let references: Vec<_> = references.iter().map(Value::to_string).collect();
    AvroSchema::parse(&schema.to_string(), &references)
}

fn transcode(schema: &AvroSchema, bytes: &[u8]) -> Result<String, String> {
    let mut out = JsonText::default();
    let written = schema.transcode(bytes, &mut out);
    let text = || String::from_utf8(out.bytes().to_vec()).expect("UTF-8");
    written.map(|()| text()).map_err(|error| error.to_string())
}

fn record(fields: &[(&str, Value)]) -> Value {
    let fields: Vec<_> = fields.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect();
    json!({ "type": "record", "name": "R", "fields": fields })
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A value that another implementation (fastavro) has encoded.
#[derive(Deserialize)]
struct Vector {
    schema: String,
    hex: String,
    json: String,
}

#[test]
fn values_of_another_implementation_become_json() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("vectors.json")).expect("JSON");
    assert_eq!(vectors.len(), 20);
    for Vector { schema, hex, json } in vectors {
        let compiled = AvroSchema::parse(&schema, &[]).expect(&schema);
        assert_eq!(transcode(&compiled, &bytes_of(&hex)).as_deref(), Ok(json.as_str()), "{schema}");
    }
}

/// A type, with what encodes its values and what they become in JSON, apart from the decoder.
enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Double,
    Text,
    Bytes,
    Enum(usize),
    Millis,
    Decimal,
    Nullable(Box<Shape>),
    Array(Box<Shape>),
    Map(Box<Shape>),
    Record(Vec<Shape>),
}

fn shape(random: &mut Random, depth: usize) -> Shape {
    let inner = |random: &mut Random| Box::new(shape(random, depth + 1));
    match random.below(if depth > 3 { 10 } else { 14 }) {
        0 => Shape::Null,
        1 => Shape::Boolean,
        2 => Shape::Int,
        3 => Shape::Long,
        4 => Shape::Double,
        5 => Shape::Text,
        6 => Shape::Bytes,
        7 => Shape::Enum(1 + random.below(4)),
        8 => Shape::Millis,
        9 => Shape::Decimal,
        10 => match inner(random) {
            // A union has no union in it, and null only once.
            other if matches!(*other, Shape::Null | Shape::Nullable(_)) => *other,
            other => Shape::Nullable(other),
        },
        11 => Shape::Array(inner(random)),
        12 => Shape::Map(inner(random)),
        _ => Shape::Record((0..random.below(5)).map(|_| shape(random, depth + 1)).collect()),
    }
}

/// Returns the schema. Names are numbered, so that each is defined once.
fn schema(shape: &Shape, names: &mut usize) -> Value {
    let mut name = |prefix: &str| {
        *names += 1;
        format!("{prefix}{names}")
    };
    match shape {
        Shape::Null => json!("null"),
        Shape::Boolean => json!("boolean"),
        Shape::Int => json!("int"),
        Shape::Long => json!({ "type": "long" }),
        Shape::Double => json!("double"),
        Shape::Text => json!("string"),
        Shape::Bytes => json!("bytes"),
        Shape::Enum(symbols) => {
            let symbols: Vec<_> = (0..*symbols).map(|at| format!("S{at}")).collect();
            json!({ "type": "enum", "name": name("E"), "symbols": symbols })
        }
        Shape::Millis => json!({ "type": "long", "logicalType": "timestamp-millis" }),
        Shape::Decimal => json!({ "type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2 }),
        Shape::Nullable(inner) => json!(["null", schema(inner, names)]),
        Shape::Array(inner) => json!({ "type": "array", "items": schema(inner, names) }),
        Shape::Map(inner) => json!({ "type": "map", "values": schema(inner, names) }),
        Shape::Record(fields) => {
            let name = name("R");
            let fields: Vec<_> = (0..)
                .zip(fields)
                .map(|(at, field)| json!({ "name": format!("f{at}"), "type": schema(field, names) }))
                .collect();
            json!({ "type": "record", "name": name, "fields": fields })
        }
    }
}

fn varint(value: i64, out: &mut Vec<u8>) {
    let mut rest = (value << 1 ^ value >> 63) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Encodes a random value; returns what it is in JSON.
fn value(shape: &Shape, random: &mut Random, out: &mut Vec<u8>) -> String {
    let sized = |bytes: &[u8], out: &mut Vec<u8>| {
        varint(bytes.len() as i64, out);
        out.extend_from_slice(bytes);
    };
    match shape {
        Shape::Null => "null".to_owned(),
        Shape::Boolean => {
            let value = random.below(2) == 1;
            out.push(value.into());
            value.to_string()
        }
        Shape::Int => {
            let value = random.next() as i32;
            varint(value.into(), out);
            value.to_string()
        }
        Shape::Long => {
            let value = random.next() as i64 >> random.below(64);
            varint(value, out);
            value.to_string()
        }
        Shape::Double => {
            let value = (random.next() as i32 >> random.below(32)) as f64 / 8.0;
            out.extend_from_slice(&value.to_le_bytes());
            value.to_string()
        }
        Shape::Text => {
            let text = random.text();
            sized(text.as_bytes(), out);
            json!(text).to_string()
        }
        Shape::Bytes => {
            let bytes = random.bytes(20);
            sized(&bytes, out);
            let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
            format!("\"{encoded}\"")
        }
        Shape::Enum(symbols) => {
            let at = random.below(*symbols);
            varint(at as i64, out);
            format!("\"S{at}\"")
        }
        Shape::Millis => {
            let ms = random.next() as i64 % 253_402_300_800_000;
            varint(ms.abs(), out);
            format!("\"{}\"", crate::json::rfc3339(ms.abs()))
        }
        Shape::Decimal => {
            let hundredths = random.next() as i64 >> random.below(64);
            sized(&hundredths.to_be_bytes(), out);
            let (sign, size) = (if hundredths < 0 { "-" } else { "" }, hundredths.unsigned_abs());
            format!("{sign}{}.{:02}", size / 100, size % 100)
        }
        Shape::Nullable(inner) => {
            let is_set = random.below(3) > 0;
            varint(is_set.into(), out);
            if is_set { value(inner, random, out) } else { "null".to_owned() }
        }
        Shape::Array(inner) => {
            let items: Vec<_> = blocks(random, out, &mut |_, random, out| value(inner, random, out));
            format!("[{}]", items.join(","))
        }
        Shape::Map(inner) => {
            let entries: Vec<_> = blocks(random, out, &mut |at, random, out| {
                let key = format!("k{at}\"");
                sized(key.as_bytes(), out);
                format!("{}:{}", json!(key), value(inner, random, out))
            });
            format!("{{{}}}", entries.join(","))
        }
        Shape::Record(fields) => {
            let members: Vec<_> = (0..)
                .zip(fields)
                .map(|(at, field)| format!("\"f{at}\":{}", value(field, random, out)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

/// Encodes items in up to three blocks, some of them with their size in bytes.
fn blocks(
    random: &mut Random,
    out: &mut Vec<u8>,
    item: &mut dyn FnMut(usize, &mut Random, &mut Vec<u8>) -> String,
) -> Vec<String> {
    let mut items = Vec::new();
    for _ in 0..random.below(3) {
        let (count, mut block) = (1 + random.below(3), Vec::new());
        for _ in 0..count {
            items.push(item(items.len(), random, &mut block));
        }
        if random.below(2) == 0 {
            varint(count as i64, out);
        } else {
            varint(-(count as i64), out);
            varint(block.len() as i64, out);
        }
        out.extend_from_slice(&block);
    }
    varint(0, out);
    items
}

#[test]
fn random_values_of_random_schemas_become_json() {
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let shape = shape(&mut random, 0);
        let schema = schema(&shape, &mut 0);
        let compiled = parse(&schema, &[]).unwrap_or_else(|error| panic!("{seed}: {error}: {schema}"));
        let mut bytes = Vec::new();
        let expected = value(&shape, &mut random, &mut bytes);
        assert_eq!(transcode(&compiled, &bytes), Ok(expected), "{seed}: {schema}");
        // Bytes that were changed are another value, or none; neither may panic.
        for _ in 0..20 {
            let _ = transcode(&compiled, &random.damaged(&bytes));
        }
        if let Some(shorter) = bytes.len().checked_sub(1) {
            transcode(&compiled, &bytes[..shorter]).expect_err("a byte is missing");
        }
        bytes.push(0);
        transcode(&compiled, &bytes).expect_err("a byte is left");
    }
}

#[test]
fn named_types_of_references_are_known() {
    let geo = json!({ "type": "record", "name": "a.Geo", "fields": [{ "name": "lat", "type": "double" }] });
    let place = json!({ "type": "record", "name": "a.Place", "fields": [{ "name": "geo", "type": "Geo" }] });
    let main = record(&[("place", json!("a.Place")), ("geo", json!(["null", "a.Geo"]))]);
    let compiled = parse(&main, &[geo.clone(), place.clone(), geo]).expect("valid");
    let mut bytes = 1.5f64.to_le_bytes().to_vec();
    bytes.push(0);
    let json = transcode(&compiled, &bytes).expect("valid");
    assert_eq!(json, r#"{"place":{"geo":{"lat":1.5}},"geo":null}"#);
    let error = parse(&main, &[place]).expect_err("a type is missing");
    assert!(error.contains("a referenced schema") && error.contains("\"Geo\" is not defined"), "{error}");
}

#[test]
fn schemas_that_are_not_valid_say_why() {
    let fixed = |size: Value| json!({ "type": "fixed", "name": "F", "size": size });
    let twice = record(&[("a", json!("int")), ("a", json!("int"))]);
    let again = record(&[("a", record(&[]))]);
    for (schema, part) in [
        (json!(7), "expected a type"),
        (json!([]), "no branches"),
        (json!({ "type": "array" }), "no `items`"),
        (json!({ "name": "x" }), "no `type`"),
        (json!("Missing"), "\"Missing\" is not defined"),
        (fixed(json!(-1)), "no `size`"),
        (fixed(json!(1u64 << 40)), "no `size`"),
        (twice, "the field a twice"),
        (again, "R is defined twice"),
        (record(&[("a", json!("strin"))]), "the field R.a: the type \"strin\""),
    ] {
        let error = parse(&schema, &[]).expect_err("invalid");
        assert!(error.contains(part), "{error}");
    }
    assert!(AvroSchema::parse("{", &[]).expect_err("no JSON").contains("not JSON"));
    AvroSchema::parse("string", &[]).expect("a primitive type without quotes");
}

#[test]
fn errors_name_the_value() {
    let schema =
        record(&[("a", record_named("X", &[("b", json!({ "type": "array", "items": "boolean" }))]))]);
    let compiled = parse(&schema, &[]).expect("valid");
    assert_eq!(transcode(&compiled, &[2, 7]), Err("a.b: a boolean is 7, neither 0 nor 1".to_owned()));
    assert_eq!(
        transcode(&compiled, &[2]),
        Err("a.b: it ends too early: 1 bytes expected, 0 left".to_owned())
    );
    let symbols = json!({ "type": "enum", "name": "E", "symbols": ["A"] });
    let compiled = parse(&record(&[("e", symbols)]), &[]).expect("valid");
    assert_eq!(
        transcode(&compiled, &[2]),
        Err("e: an enum's symbol is number 1, and there are 1".to_owned())
    );
}

fn record_named(name: &str, fields: &[(&str, Value)]) -> Value {
    let mut schema = record(fields);
    schema["name"] = json!(name);
    schema
}

/// Lengths and counts in a record must cost neither memory nor time by themselves.
#[test]
fn huge_lengths_and_counts_are_refused_at_once() {
    let mut huge = Vec::new();
    varint(i64::MAX, &mut huge);
    for kind in [json!("string"), json!("bytes"), json!({ "type": "map", "values": "null" })] {
        let compiled = parse(&kind, &[]).expect("valid");
        transcode(&compiled, &huge).expect_err("too long");
    }
    // Items without bytes: the text grows, not the record.
    let empty = json!({ "type": "array", "items": record(&[]) });
    let error = transcode(&parse(&empty, &[]).expect("valid"), &huge).expect_err("too many");
    assert!(error.contains("more than 1 MiB"), "{error}");
    let mut least = Vec::new();
    varint(i64::MIN, &mut least);
    transcode(&parse(&empty, &[]).expect("valid"), &least).expect_err("too many");
    let endless = json!({ "type": "record", "name": "N", "fields": [{ "name": "n", "type": "N" }] });
    let error = transcode(&parse(&endless, &[]).expect("valid"), &[]).expect_err("endless");
    assert!(error.contains("nest deeper than 64"), "{error}");
}
