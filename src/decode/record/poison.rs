//! Tests with the poison corpus in `tests/poison`: every record has the result of its case, and none affects the next.

use std::collections::BTreeSet;

use headwater_dataflows::{Offset, Partition, Position};
use serde_json::Value as Json;

use super::*;
use crate::event::split_key;

fn bytes(pieces: &[Json]) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        match (piece["text"].as_str(), piece["base64"].as_str(), piece["repeat"].as_str()) {
            (Some(text), None, None) => all.extend_from_slice(text.as_bytes()),
            (None, Some(text), None) => all.extend(from_base64(text)),
            (None, None, Some(text)) => {
                let times = piece["times"].as_u64().expect("how often") as usize;
                all.extend(text.repeat(times).into_bytes());
            }
            _ => panic!("no such piece: {piece}"),
        }
    }
    all
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'=').map(digit).collect();
    let mut bytes = Vec::new();
    for chunk in digits.chunks(4) {
        let word =
            chunk.iter().fold(0u32, |word, &digit| word << 6 | u32::from(digit)) << (6 * (4 - chunk.len()));
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}

/// Returns an event's value for a member of a case.
fn member_of(event: &Event, member: &str) -> Json {
    let (kind, key) = split_key(event.key());
    match member {
        "event_id" => event.id().into(),
        "event_type" => event.event_type().into(),
        "key_kind" => kind.as_str().into(),
        "key" => key.into(),
        "event_time" => event.event_time().0.into(),
        "amount" => event.amount().into(),
        "lat" => event.location().map(|at| at.lat).into(),
        "lon" => event.location().map(|at| at.lon).into(),
        "currency" => event.currency().into(),
        "merchant_id" => event.merchant_id().into(),
        "merchant_category" => event.merchant_category().into(),
        "ip_address" => event.ip_address().into(),
        "session_id" => event.session_id().into(),
        "device_id" => event.device_id().into(),
        "attributes" => event.attributes().into(),
        other => panic!("unknown member of a case: {other}"),
    }
}

/// Returns the outcome of a strict decoder if it differs from the case: the first field with an error must reject the
/// record, types before rules.
fn strict_mismatch(decoder: &mut JsonDecoder, raw: Raw<'_>, case: &Json) -> Option<String> {
    let place = |field: &str| FIELDS.iter().position(|name| *name == field);
    let absent = case["absent"].as_object().expect("the fields that are absent").iter();
    let absent = absent.map(|(field, reason)| (reason != "malformed", place(field), field.as_str(), reason));
    let first = absent.min_by_key(|&(rule, place, ..)| (rule, place));
    let outcome = decoder.decode(raw);
    let right = match (&outcome, first) {
        (Ok(_), None) => case["expect"] == "valid" && decoder.field_errors().is_empty(),
        (Err(_), None) => case["expect"] != "valid",
        (Err(rejection), Some((_, _, field, reason))) => {
            rejection.field.as_deref() == Some(field) && reason == rejection.reason.as_str()
        }
        (Ok(_), Some(_)) => false,
    };
    (!right).then(|| format!("{:?}", outcome.map(|event| event.id().to_owned())))
}

#[test]
fn every_case_of_the_corpus_has_its_expected_result() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/poison/cases.json");
    let cases: Vec<Json> = serde_json::from_slice(&std::fs::read(path).expect("the corpus")).expect("JSON");
    assert!(cases.len() >= 200);
    let (mut decoder, mut strict) = (JsonDecoder::new(false), JsonDecoder::new(true));
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().expect("a name");
        let value = case["value"].as_array().map(|pieces| bytes(pieces));
        let position = Position { partition: Partition(0), offset: Offset(0) };
        let raw =
            Raw { position, timestamp: 0, key: None, value: value.as_deref(), retries: 0, producer: None };
        wrong.extend(strict_mismatch(&mut strict, raw, case).map(|found| format!("{name}: strict: {found}")));
        match decoder.decode(raw) {
            Ok(event) => {
                let absent = case["absent"].as_object().expect("the fields that are absent");
                let found = decoder.field_errors().iter().map(|error| &*error.field);
                if found.collect::<BTreeSet<_>>() != absent.keys().map(String::as_str).collect() {
                    wrong.push(format!("{name}: {:?}, expected {absent:?}", decoder.field_errors()));
                }
                if case["expect"] != "valid" {
                    wrong.push(format!("{name}: valid, expected {}", case["expect"]));
                }
                for (member, expected) in case["event"].as_object().into_iter().flatten() {
                    let found = member_of(&event, member);
                    let same = match (found.as_f64(), expected.as_f64()) {
                        (Some(found), Some(expected)) => found == expected,
                        _ if member == "attributes" => {
                            let parsed = |text: &Json| {
                                text.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok())
                            };
                            found == *expected || parsed(&found) == parsed(expected)
                        }
                        _ => found == *expected,
                    };
                    if !same {
                        wrong.push(format!("{name}: {member} is {found}, expected {expected}"));
                    }
                }
            }
            Err(rejection) => {
                let (reason, field) = (rejection.reason.as_str(), rejection.field.as_deref());
                if case["expect"] != reason || case["field"].as_str() != field {
                    wrong.push(format!(
                        "{name}: {reason} {field:?} ({}), expected {} {}",
                        rejection.message, case["expect"], case["field"]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
