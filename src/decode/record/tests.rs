use headwater_dataflows::{Offset, Partition, Position};
use proptest::prelude::*;

use super::*;
use crate::decode::Reason;
use crate::fields::Layout;

const VALID: &str = r#"{"event_id":"e1","event_type":"transaction","user_id":"u1","event_time":"2026-01-02T03:04:05.678Z","amount":12.5,"currency":"EUR","merchant_id":"m1","location":{"lat":48.85,"lon":2.35},"attributes":{"a":1}}"#;

fn raw(value: &[u8]) -> Raw<'_> {
    let position = Position { partition: Partition(1), offset: Offset(2) };
    Raw { position, timestamp: 3, key: Some(b"u1"), value: Some(value), retries: 0, producer: None }
}

fn decode(text: &str) -> Result<Event, Rejection> {
    JsonDecoder::default().decode(raw(text.as_bytes()))
}

fn decode_strictly(text: &str) -> Result<Event, Rejection> {
    JsonDecoder::new(true).decode(raw(text.as_bytes()))
}

/// Returns the valid record with one field replaced, or removed if there is no value.
fn with(name: &str, value: Option<&str>) -> String {
    let mut record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(VALID).expect("valid");
    record.remove(name);
    let mut text = serde_json::to_string(&record).expect("JSON");
    if let Some(value) = value {
        text.insert_str(1, &format!("\"{name}\":{value},"));
    }
    text
}

#[test]
fn a_record_becomes_an_event_with_all_its_fields() {
    let event = decode(VALID).expect("valid");
    assert_eq!((event.id(), event.key(), event.event_type()), ("e1", "uu1", "transaction"));
    assert_eq!(event.event_time(), EventTime(1_767_323_045_678));
    assert_eq!(
        (event.amount(), event.currency(), event.merchant_id()),
        (Some(12_500_000), Some("EUR"), Some("m1"))
    );
    assert_eq!(event.location().map(|at| (at.lat, at.lon)), Some((48.85, 2.35)));
    assert_eq!(event.attributes(), Some(r#"{"a":1}"#));
    assert_eq!((event.session_id(), event.device_id()), (None, None));
    assert_eq!((event.original(), event.record_key()), (VALID.as_bytes(), Some(b"u1".as_slice())));
}

#[test]
fn keys_and_rules_know_the_user_of_a_sensor() {
    let text = VALID
        .replace("transaction", "iot_sensor")
        .replace(r#""user_id":"u1""#, r#""user_id":"u1","device_id":"d1""#);
    let event = decode(&text).expect("valid");
    assert_eq!((event.key(), event.event_type(), event.user_id()), ("dd1", "iot_sensor", Some("u1")));
    assert_eq!(headwater_dataflows::Event::id(&event), Some(b"e1".as_slice()));
    let mut written = Vec::new();
    event.write_members(&Layout::default(), &mut written);
    let written = String::from_utf8(written).expect("UTF-8");
    assert!(!written.contains("user_id") && written.contains(r#""device_id":"d1""#), "{written}");
    let without = decode(&text.replace(r#""user_id":"u1","#, "")).expect("valid");
    assert_eq!((without.key(), without.user_id()), ("dd1", None));
}

#[test]
fn each_broken_rule_has_its_reason_and_field() {
    let long = format!("\"{}\"", "x".repeat(257));
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(70_000));
    let cases: &[(&str, Option<&str>, Reason)] = &[
        ("event_id", None, Reason::Invalid),
        ("event_id", Some("null"), Reason::Invalid),
        ("event_id", Some("\"\""), Reason::Invalid),
        ("event_id", Some("7.5"), Reason::Malformed),
        ("event_type", Some("\"refund\""), Reason::Invalid),
        ("event_type", Some("[]"), Reason::Malformed),
        ("user_id", None, Reason::Invalid),
        ("user_id", Some(&long), Reason::Invalid),
        ("event_time", None, Reason::Invalid),
        ("event_time", Some("1.5"), Reason::Invalid),
        ("event_time", Some("1772330400"), Reason::Invalid),
        ("event_time", Some("\"yesterday\""), Reason::Invalid),
        ("event_time", Some("true"), Reason::Malformed),
        ("amount", Some("1e999"), Reason::Invalid),
        ("amount", Some("\"+1\""), Reason::Invalid),
        ("amount", Some("{}"), Reason::Malformed),
        ("currency", Some(&long), Reason::Invalid),
        ("location", Some("{\"lat\":1}"), Reason::Invalid),
        ("location", Some("{\"lat\":91,\"lon\":0}"), Reason::Invalid),
        ("location", Some("{\"lat\":\"1\",\"lon\":0}"), Reason::Malformed),
        ("location", Some("[1,2]"), Reason::Malformed),
        ("attributes", Some("[]"), Reason::Malformed),
        ("attributes", Some(&huge), Reason::Invalid),
    ];
    for (name, value, reason) in cases {
        let rejection = decode_strictly(&with(name, *value)).expect_err(name);
        assert_eq!(
            (rejection.reason, rejection.field.as_deref()),
            (*reason, Some(*name)),
            "{name} {value:?}"
        );
    }
}

#[test]
fn an_optional_field_with_an_error_is_absent_and_reported() {
    let text = with("location", Some("{\"lat\":null,\"lon\":null}")).replace("12.5", "\"free\"");
    let mut decoder = JsonDecoder::default();
    let event = decoder.decode(raw(text.as_bytes())).expect("an event");
    assert_eq!((event.location().is_none(), event.amount(), event.merchant_id()), (true, None, Some("m1")));
    let errors = [("amount", "amount is not a decimal number"), ("location", "location has no lat")];
    let found = decoder.field_errors().iter().map(|error| (&*error.field, error.message.as_str()));
    assert_eq!(found.collect::<Vec<_>>(), errors);
    decoder.decode(raw(VALID.as_bytes())).expect("valid");
    assert_eq!(decoder.field_errors(), [], "the errors belong to the last record");
}

#[test]
fn whole_numbers_are_ids_digit_by_digit() {
    let event = decode(&with("user_id", Some("18446744073709551615"))).expect("valid");
    assert_eq!((event.key(), event.record_key()), ("u18446744073709551615", Some(b"u1".as_slice())));
    let event = decode(&with("merchant_id", Some("5411"))).expect("valid");
    assert_eq!(event.merchant(), decode(&with("merchant_id", Some("\"5411\""))).expect("valid").merchant());
}

#[test]
fn records_that_are_not_one_json_object_are_malformed() {
    let deep = format!("{}{}{}", "[".repeat(10_000), "1", "]".repeat(10_000));
    for text in [
        "",
        "null",
        "[]",
        "{",
        "{}x",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{'a':1}",
        "{\"a\":NaN}",
        "{\"a\":01}",
        "{\"a\":\"\u{1}\"}",
        "\u{feff}{}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\\ud800\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12",
        "{\"a\":tru}",
        &deep,
        &format!("{{\"a\":{deep}}}"),
    ] {
        let rejection = decode(text).expect_err(text);
        assert_eq!((rejection.reason, rejection.field), (Reason::Malformed, None), "{text:.40}");
    }
    assert_eq!(
        JsonDecoder::default().decode(raw(b"{\"a\":\"\xff\"}")).expect_err("not UTF-8").reason,
        Reason::Malformed
    );
    assert_eq!(
        JsonDecoder::default().decode(Raw { value: None, ..raw(b"") }).expect_err("no value").reason,
        Reason::Malformed
    );
    let twice = VALID.replacen('{', "{\"currency\":null,", 1);
    assert_eq!(decode(&twice).expect_err("twice").field.as_deref(), Some("currency"));
    // The outermost object is at depth 1.
    let nested = |depth: usize| {
        with("attributes", Some(&format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))))
    };
    assert!(decode(&nested(63)).is_ok());
    assert!(decode(&nested(64)).is_err());
}

#[test]
fn unknown_fields_join_the_attributes_which_take_precedence() {
    let text = VALID.replacen('{', r#"{"b":[1, 2],"a":2,"b":"\u0062","\u0063":null,"#, 1);
    assert_eq!(decode(&text).expect("valid").attributes(), Some(r#"{"a":1,"b":"\u0062","\u0063":null}"#));
}

#[test]
fn escaped_strings_are_unescaped() {
    let text = with("user_id", Some(r#""\u00e9\"\ud834\udd1e\n""#)).replace("event_id", "event\\u005fid");
    let event = decode(&text).expect("valid");
    assert_eq!((event.key(), event.id()), ("ué\"𝄞\n", "e1"));
    assert_eq!(event.original(), text.as_bytes());
}

#[test]
fn a_device_is_not_a_user() {
    let text = with("event_type", Some("\"iot_sensor\""));
    assert_eq!(decode(&text).expect_err("no device").field.as_deref(), Some("device_id"));
    let text = text.replacen('{', r#"{"device_id":"u1","#, 1);
    assert_eq!(decode(&text).expect("valid").key(), "du1");
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_rejected(bytes: Vec<u8>) {
        let _ = JsonDecoder::default().decode(raw(&bytes));
    }

    #[test]
    fn damaged_records_are_decoded_or_rejected(at in 0..VALID.len(), byte: u8, cut: bool) {
        let mut bytes = VALID.as_bytes().to_vec();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let _ = JsonDecoder::default().decode(raw(&bytes));
    }

    #[test]
    fn the_scanner_accepts_the_same_json_as_serde_json(text in r#"[\{\}\[\]",:\\u0-9a-f\.eE+\- truefalsn]{0,24}"#) {
        // The value of an unknown field, so that only the grammar matters.
        let record = format!("{{\"x\":{text}}}");
        let ours = decode(&record).expect_err("not an event");
        let theirs = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&record);
        let out_of_range = theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
        if !text.contains("\\u0000") && !out_of_range {
            prop_assert_eq!(ours.reason == Reason::Invalid || ours.field.is_some(), theirs.is_ok(), "{}", record);
        }
    }

    #[test]
    fn an_encoded_event_decodes_to_the_same_event(
        id in "[^\u{0}]{1,20}", user in "[^\u{0}]{1,20}", amount in proptest::option::of(-1_000_000_000_000_000_000i64..=1_000_000_000_000_000_000),
        time in 100_000_000_000i64..253_402_300_800_000, lat in -90f64..=90.0, lon in -180f64..=180.0, merchant in proptest::option::of("[^\u{0}]{0,9}"),
    ) {
        let mut record = serde_json::json!({
            "event_id": id, "event_type": "api_call", "user_id": user, "event_time": time, "location": {"lat": lat, "lon": lon}, "extra": 1,
        });
        if let Some(merchant) = merchant { record["merchant_id"] = merchant.into(); }
        let mut text = record.to_string();
        if let Some(amount) = amount {
            let mut number = Vec::new();
            crate::json::write_micros(&mut number, amount);
            text.insert_str(1, &format!("\"amount\":{},", String::from_utf8_lossy(&number)));
        }
        let event = decode(&text).expect("valid");
        prop_assert_eq!((event.id(), event.amount(), event.event_time().0), (id.as_str(), amount, time));
        let mut written = vec![b'{'];
        event.write_members(&Layout::default(), &mut written);
        written.push(b'}');
        let again = JsonDecoder::default().decode(raw(&written)).expect("the encoded event is valid");
        let members = |event: &Event| {
            let mut out = Vec::new();
            event.write_members(&Layout::default(), &mut out);
            (String::from_utf8_lossy(&out).into_owned(), event.key_hash, event.merchant(), event.location())
        };
        prop_assert_eq!(members(&event), members(&again));
    }
}
