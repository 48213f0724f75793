//! No bytes make the decoder panic; what it takes is JSON to another parser too, and what it writes it reads back.
#![no_main]

use headwater::decode::{Decoder, JsonDecoder};
use headwater::source::Raw;
use headwater_dataflows::{Offset, Partition, Position};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

/// Unknown fields move one level down, into the attributes: what was at the deepest level is then too deep to be read
/// again. Bytes that nest less than this keep clear of it.
const OPENINGS: usize = 60;

fuzz_target!(|bytes: &[u8]| {
    let position = Position { partition: Partition(0), offset: Offset(0) };
    let raw = Raw { position, timestamp: 0, key: None, value: Some(bytes), retries: 0, producer: None };
    let mut decoder = JsonDecoder::default();
    let Ok(event) = decoder.decode(raw) else { return };
    assert!(serde_json::from_slice::<IgnoredAny>(bytes).is_ok(), "taken, but not JSON");
    if bytes.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() > OPENINGS {
        return;
    }
    let mut json = b"{".to_vec();
    event.write_members(&mut json);
    json.push(b'}');
    let again = decoder.decode(Raw { value: Some(&json), ..raw }).expect("what was written is read");
    let members_of = |event: &headwater::event::Event| {
        let mut members = Vec::new();
        event.write_members(&mut members);
        (members, event.key().to_owned(), event.event_time(), event.amount())
    };
    assert_eq!(members_of(&again), members_of(&event));
});
