//! No schema and no record in Avro or Protobuf makes decoding panic, or take more than the bytes of a record explain.
#![no_main]

use std::sync::Arc;

use headwater::decode::{AVRO, Binary, BinaryKind, Decoding, FileSchema, Format, Framing, PROTOBUF};
use headwater::source::Raw;
use libfuzzer_sys::fuzz_target;

fn decode(format: Format, schema: FileSchema, record: &[u8]) {
    let binary = Binary::File { schema: Arc::new(schema), framing: Framing::None, digest: "".into() };
    let mut decoder = Decoding { binary: Some(binary), ..format.standard() }.decoder();
    let _ = decoder.decode(Raw {
        position: Default::default(),
        timestamp: 1_767_323_045_700,
        key: None,
        value: Some(record),
        retries: 0,
        producer: None,
    });
}

fuzz_target!(|input: (&str, &[u8], &[u8])| {
    let (text, descriptors, record) = input;
    if let Ok(schema) = FileSchema::avro(text) {
        decode(AVRO, schema, record);
    }
    let _ = BinaryKind::Protobuf.compile(text, &[]);
    if let Ok(schema) = FileSchema::protobuf(descriptors, "M") {
        decode(PROTOBUF, schema, record);
    }
});
