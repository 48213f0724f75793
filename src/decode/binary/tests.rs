use headwater_dataflows::{Offset, Partition, Position};

use super::*;
use crate::decode::{AVRO, Decoding, JSON, PROTOBUF, Reason};
use crate::fields::Layout;

const AVRO_SCHEMA: &str = r#"{"type":"record","name":"Event","fields":[
    {"name":"event_id","type":"string"},
    {"name":"event_type","type":{"type":"enum","name":"Kind","symbols":["transaction","iot_sensor"]}},
    {"name":"user_id","type":["null","long"]},
    {"name":"event_time","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"amount","type":["null",{"type":"bytes","logicalType":"decimal","precision":18,"scale":2}]}]}"#;

const JSON_TEXT: &str = r#"{"event_id":"e1","event_type":"transaction","user_id":9007199254740993,"event_time":"2026-01-02T03:04:05.678901Z","amount":-12.34}"#;

/// The same record in Avro.
fn avro_record() -> Vec<u8> {
    let mut record = vec![4, b'e', b'1', 0, 2];
    record.extend(zigzag(9_007_199_254_740_993));
    record.extend(zigzag(1_767_323_045_678_901));
    record.extend([2, 4, 0xfb, 0x2e]);
    record
}

const PROTO_SCHEMA: &str = r#"syntax = "proto3"; import "google/protobuf/timestamp.proto";
    enum Kind { transaction = 0; iot_sensor = 1; }
    message Event { string event_id = 1; Kind event_type = 2; uint64 user_id = 3;
        google.protobuf.Timestamp event_time = 4; string amount = 5; }"#;

/// The same record in Protobuf.
fn proto_record() -> Vec<u8> {
    let mut record = vec![0x0a, 2, b'e', b'1', 0x18];
    record.extend(varint(9_007_199_254_740_993));
    let mut time = vec![0x08];
    time.extend(varint(1_767_323_045));
    time.push(0x10);
    time.extend(varint(678_901_000));
    record.extend([0x22, time.len() as u8]);
    record.extend(time);
    record.extend([0x2a, 6]);
    record.extend(b"-12.34");
    record
}

fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = value;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out
}

fn zigzag(value: i64) -> Vec<u8> {
    varint((value << 1 ^ value >> 63) as u64)
}

/// A registry with the schemas 1 of Avro and 2 of Protobuf.
#[derive(Debug)]
struct Two;

impl SchemaRegistry for Two {
    fn fetch(&self, id: u32) -> Fetched {
        match id {
            1 => Fetched::Schema(BinaryKind::Avro.compile(AVRO_SCHEMA, &[]).expect("valid")),
            2 => Fetched::Schema(BinaryKind::Protobuf.compile(PROTO_SCHEMA, &[]).expect("valid")),
            _ => Fetched::Unusable(format!("schema {id} is unknown")),
        }
    }

    fn place(&self) -> String {
        String::new()
    }
}

fn raw(value: Option<&[u8]>) -> Raw<'_> {
    let position = Position { partition: Partition(1), offset: Offset(2) };
    Raw { position, timestamp: 3, key: Some(b"u1"), value, retries: 4, producer: None }
}

fn decoder(format: crate::decode::Format, binary: Option<Binary>) -> Box<dyn Decoder> {
    Decoding { binary, ..format.standard() }.decoder()
}

fn by_registry() -> Box<dyn Decoder> {
    decoder(AVRO, Some(Binary::Registry(Schemas::new(Box::new(Two), UnknownId::DeadLetter))))
}

fn framed(id: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, id], payload].concat()
}

fn members(event: &Event) -> String {
    let mut out = Vec::new();
    event.write_members(&Layout::default(), &mut out);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn records_of_all_formats_become_the_same_event() {
    let expected = decoder(JSON, None).decode(raw(Some(JSON_TEXT.as_bytes()))).expect("valid");
    let proto = [&[0][..], &proto_record()].concat();
    let mut decoder = by_registry();
    for record in [framed(1, &avro_record()), framed(2, &proto), framed(1, &avro_record())] {
        let event = decoder.decode(raw(Some(&record))).expect("valid");
        assert_eq!(members(&event), members(&expected));
        assert_eq!((event.key(), event.user_id()), (expected.key(), expected.user_id()));
        assert_eq!((event.retries(), event.record_key()), (4, Some(b"u1".as_slice())));
        assert_eq!(event.original(), record, "dead letters have the record as it came");
        // Between processes, and in checkpoints.
        let stored = bincode::serialize(&event).expect("encoded");
        let restored: Event = bincode::deserialize(&stored).expect("decoded");
        assert_eq!((members(&restored), restored.original()), (members(&expected), &*record));
    }
}

#[test]
fn a_schema_in_a_file_needs_no_registry() {
    let avro = Arc::new(FileSchema::avro(AVRO_SCHEMA).expect("valid"));
    for (framing, record) in [(Framing::Confluent, framed(9, &avro_record())), (Framing::None, avro_record())]
    {
        let binary = Binary::File { schema: Arc::clone(&avro), framing, digest: "".into() };
        assert!(binary.gate().is_none(), "nothing is waited for");
        let event = decoder(AVRO, Some(binary)).decode(raw(Some(&record))).expect("valid");
        assert_eq!((event.amount(), event.original()), (Some(-12_340_000), &*record));
    }
}

#[test]
fn what_cannot_be_decoded_is_malformed_and_named() {
    let mut decoder = by_registry();
    let mut reject = |value: Option<&[u8]>| {
        let Rejection { reason, field, message } = decoder.decode(raw(value)).expect_err("rejected");
        assert_eq!(reason, Reason::Malformed, "{message}");
        (field.map(|field| field.into_owned()), message)
    };
    let mut whole = |value: Option<&[u8]>, part: &str| {
        let (field, message) = reject(value);
        assert!(field.is_none() && message.contains(part), "{field:?} {message}");
    };
    whole(None, "the record has no value");
    whole(Some(b""), "it has 0 bytes, fewer than the 5");
    whole(Some(&[0, 0, 0, 1]), "it has 4 bytes");
    whole(Some(JSON_TEXT.as_bytes()), "its magic byte is 0x7b, not 0");
    whole(Some(&framed(3, b"x")), "schema 3 is unknown");
    whole(Some(&framed(2, &[2, 8])), "no message with the indexes [4]");
    whole(Some(&framed(1, &[&avro_record()[..], &[0, 0]].concat())), "2 bytes are left after the record");
    whole(Some(&vec![0; (1 << 20) + 1]), "more than 1 MiB");
    let (field, message) = reject(Some(&framed(1, &[4, b'e'])));
    assert_eq!(field.as_deref(), Some("event_id"));
    assert!(message.starts_with("not decodable by schema 1: event_id: it ends too early"), "{message}");
}

#[test]
fn an_event_without_a_valid_value_is_rejected_as_in_json() {
    let (proto, json) = ([&[0][..], &proto_record()].concat(), JSON_TEXT.replace("\"e1\"", "\"\""));
    // The id is left out, so that it is not in the message.
    let without_id = framed(2, &[&proto[..1], &proto[5..]].concat());
    let rejection = by_registry().decode(raw(Some(&without_id))).expect_err("no id");
    assert_eq!((rejection.reason, rejection.field.as_deref()), (Reason::Invalid, Some("event_id")));
    let in_json = decoder(JSON, None).decode(raw(Some(json.as_bytes()))).expect_err("no id");
    assert_eq!((in_json.reason, in_json.field), (rejection.reason, rejection.field));
}

#[test]
fn formats_have_names_and_versions() {
    for format in [AVRO, PROTOBUF] {
        assert_eq!(format.binary.map(BinaryKind::as_str), Some(format.name));
        assert!(format.version >= 1);
    }
}
