//! Records of one's own schema become events; what does not fit is refused with its path.

use headwater_dataflows::patterns::Location;
use headwater_dataflows::{Event as _, EventTime, Offset, Partition, Position};
use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::decode::{Decoder, Reason, Rejection};
use crate::event::Event;
use crate::fields::Value;
use crate::source::Raw;

const SCHEMA: &str = r#"
event_id   = "txn.id"
event_time = { path = "ts", type = "timestamp", format = "unix_s" }
event_type = { const = "payment" }
user_id    = "account.id"
amount     = { path = "amt", type = "decimal", scale = 2 }
location   = { lat = "geo.lat", lon = "geo.lng" }
card       = "card.hash"
country    = { path = "geo.cc", required = true }
declined   = { path = "resp.ok", type = "boolean", not = true }
first_item = "items[0]['stock.unit']"
tries      = { path = "resp.tries", type = "integer" }
score      = { path = "resp.score", type = "float" }
opened     = { path = "account.opened", type = "timestamp", format = "%d/%m/%Y %H:%M", zone = "Europe/Paris" }
"#;

const RECORD: &str = r#"{"txn":{"id":4711},"ts":1767323045.678,"account":{"id":"a\u00e9","opened":"15/07/2020 10:30"},
"amt":"1999","geo":{"lat":48.85,"lng":2.35,"cc":"FR"},"card":{"hash":"c-1"},"resp":{"ok":false,"tries":3,"score":0.5},
"items":[{"stock.unit":"sku-1"},{"stock.unit":"sku-2"}],"further":[1,{"deep":null}]}"#;

fn map(fields: &str) -> Arc<FieldMap> {
    map_of("json", fields)
}

fn map_of(format: &str, fields: &str) -> Arc<FieldMap> {
    let text = format!(
        "pipeline = \"p\"\n[source]\nkind = \"generator\"\nformat = \"{format}\"\n[fields]\n{fields}"
    );
    let config = Config::parse_without_sinks(&text, std::iter::empty()).expect("a valid configuration");
    config.plan.decoding.fields.expect("fields")
}

fn decode_by(map: &Arc<FieldMap>, text: &str, strict: bool) -> (Result<Event, Rejection>, Vec<String>) {
    let mut decoder = MappedDecoder::new(Arc::clone(map), strict);
    let raw = Raw {
        position: Position { partition: Partition(1), offset: Offset(7) },
        timestamp: 1_767_323_000_000,
        key: Some(b"a\xc3\xa9"),
        value: Some(text.as_bytes()),
        retries: 2,
        producer: None,
    };
    let result = decoder.decode(raw);
    (result, decoder.field_errors().iter().map(|error| error.message.clone()).collect())
}

fn decode(fields: &str, text: &str) -> Event {
    let (event, errors) = decode_by(&map(fields), text, true);
    assert_eq!(errors, Vec::<String>::new());
    event.expect("a valid record")
}

fn value<'a>(map: &FieldMap, event: &'a Event, name: &str) -> Value<'a> {
    event.value(map.layout().field(name).expect("a field").0)
}

#[test]
fn a_record_of_ones_own_schema_becomes_an_event() {
    let map = map(SCHEMA);
    let (event, errors) = decode_by(&map, RECORD, true);
    let event = event.expect("a valid record");
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!((event.id(), event.key(), event.event_type()), ("4711", "uaé", "payment"));
    assert_eq!(event.event_time(), EventTime(1_767_323_045_678));
    assert_eq!((event.amount(), event.user_id(), event.device_id()), (Some(19_990_000), Some("aé"), None));
    assert_eq!((event.original(), event.retries()), (RECORD.as_bytes(), 2));
    assert_eq!(event.record_key(), Some("aé".as_bytes()));
    let values = ["card", "country", "declined", "first_item", "tries", "score", "opened", "location"]
        .map(|name| value(&map, &event, name));
    let expected = [
        Value::String("c-1"),
        Value::String("FR"),
        Value::Boolean(true),
        Value::String("sku-1"),
        Value::Integer(3),
        Value::Float(0.5),
        Value::Timestamp(1_594_801_800_000),
        Value::Location(Location { lat: 48.85, lon: 2.35 }),
    ];
    assert_eq!(values, expected);
    let mut written = vec![b'{'];
    event.write_members(map.layout(), &mut written);
    written.push(b'}');
    let written: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
    assert_eq!(
        written,
        serde_json::json!({
            "event_id": "4711", "event_type": "payment", "user_id": "aé", "event_time": "2026-01-02T03:04:05.678Z",
            "amount": 19.99, "location": {"lat": 48.85, "lon": 2.35}, "card": "c-1", "country": "FR",
            "declined": true, "first_item": "sku-1", "opened": "2020-07-15T08:30:00.000Z", "score": 0.5, "tries": 3,
        })
    );
    let attributes = event.all_attributes(map.layout()).expect("own fields");
    let attributes: serde_json::Value = serde_json::from_str(&attributes).expect("JSON");
    assert_eq!(attributes["card"], "c-1");
    assert_eq!(attributes.as_object().map(serde_json::Map::len), Some(7));
}

#[test]
fn what_does_not_fit_names_its_path() {
    let map = map(SCHEMA);
    for (was, is, reason, place, message) in [
        (r#""ts":1767323045.678"#, r#""x":1"#, Reason::Invalid, "ts", "event_time (ts) is missing"),
        (
            "1767323045.678",
            "\"soon\"",
            Reason::Malformed,
            "ts",
            "event_time (ts) must be a number of seconds since 1970",
        ),
        (
            "1767323045.678",
            "1767323045678",
            Reason::Invalid,
            "ts",
            "event_time (ts) is not within the years 1970 to 9999",
        ),
        ("4711", "[]", Reason::Malformed, "txn.id", "event_id (txn.id) must be a string or a whole number"),
        ("4711", "null", Reason::Invalid, "txn.id", "event_id (txn.id) is missing"),
        (
            r#""cc":"FR""#,
            r#""cc":1.5"#,
            Reason::Malformed,
            "geo.cc",
            "country (geo.cc) must be a string or a whole number",
        ),
        (r#","cc":"FR""#, "", Reason::Invalid, "geo.cc", "country (geo.cc) is missing"),
        (r#""id":4711"#, r#""id":1,"id":2"#, Reason::Malformed, "txn.id", "duplicate field txn.id"),
    ] {
        let text = RECORD.replace(was, is);
        assert_ne!(text, RECORD, "{was}");
        let rejection = decode_by(&map, &text, false).0.expect_err(message);
        let found = (rejection.reason, rejection.field.as_deref(), rejection.message.as_str());
        assert_eq!(found, (reason, Some(place), message));
    }
    let (event, _) = decode_by(&map, "[1]", false);
    assert_eq!(event.expect_err("no object").message, "not a JSON object: expected an object at byte 0");
}

#[test]
fn an_optional_field_of_a_wrong_form_is_absent_or_refused() {
    let map = map(SCHEMA);
    for (was, is, field, message) in [
        ("\"1999\"", "\"1 999\"", "amount", "amount (amt) must be a decimal number, as a number or as text"),
        ("\"1999\"", "1e30", "amount", "amount (amt) is larger than 10^12"),
        ("48.85", "99", "location", "location has no latitude from -90 to 90 degrees"),
        ("48.85", "null", "location", "location has no latitude from -90 to 90 degrees"),
        (r#""ok":false"#, r#""ok":0"#, "declined", "declined (resp.ok) must be true or false"),
        (
            ":3,",
            ":3.5,",
            "tries",
            "tries (resp.tries) must be a whole number of 64 bits, as a number or as text",
        ),
        ("0.5", "1e999", "score", "score (resp.score) is larger than a floating-point number can be"),
    ] {
        let text = RECORD.replace(was, is);
        assert_ne!(text, RECORD, "{was}");
        let (event, errors) = decode_by(&map, &text, false);
        assert_eq!(value(&map, &event.expect("an event"), field), Value::Absent, "{message}");
        assert_eq!(errors, [message]);
        let rejection = decode_by(&map, &text, true).0.expect_err(message);
        assert_eq!(rejection.message, message);
    }
    let (_, errors) = decode_by(&map, &RECORD.replace("15/07/2020", "2020-07-15"), false);
    assert!(errors[0].starts_with("opened (account.opened) does not fit the format"), "{errors:?}");
}

#[test]
fn an_event_needs_neither_an_id_nor_a_key() {
    let event = decode("event_time = \"t\"", r#"{"t":"2026-01-02T03:04:05Z","id":"x"}"#);
    let dataflow_id = headwater_dataflows::Event::id(&event);
    assert_eq!((event.id(), dataflow_id, event.event_type()), ("1-7", None, "event"));
    assert!(event.key().starts_with('n'), "{}", event.key());
    assert_eq!(crate::event::split_key(event.key()), (crate::event::KeyKind::Absent, ""));
    assert_eq!(event.record_key(), Some("aé".as_bytes()), "the record's own key is kept");
}

#[test]
fn the_time_can_be_that_of_the_record() {
    let event = decode("event_time = { format = \"kafka\" }", "{}");
    assert_eq!(event.time(), EventTime(1_767_323_000_000));
}

#[test]
fn sensors_are_keyed_by_their_device() {
    let fields = "event_time = \"t\"\nevent_type = \"type\"\ndevice_id = \"dev\"\nuser_id = \"owner\"";
    let event = decode(fields, r#"{"t":1767323045678,"type":"iot_sensor","dev":7,"owner":"ann"}"#);
    assert_eq!((event.key(), event.user_id()), ("d7", Some("ann")));
    let event = decode(fields, r#"{"t":1767323045678,"type":"login","dev":7,"owner":"ann"}"#);
    assert_eq!((event.key(), event.device_id()), ("uann", Some("7")));
}

#[test]
fn attributes_are_an_object_of_the_record() {
    let fields = "event_time = \"t\"\nattributes = \"meta\"\nplan = \"plan\"";
    let event = decode(fields, r#"{"t":1767323045678,"meta":{ "a":[1,2] },"plan":"gold"}"#);
    let layout = Layout::new(vec![("plan".into(), FieldType::String)]);
    assert_eq!(event.all_attributes(&layout).as_deref(), Some(r#"{"a":[1,2],"plan":"gold"}"#));
    let whole = decode("event_time = \"t\"\nattributes = \"$\"", r#" {"t":1767323045678} "#);
    assert_eq!(whole.attributes(), Some(r#"{"t":1767323045678}"#));
}

#[test]
fn fields_of_a_cloud_event_are_in_its_data() {
    let map = map_of("cloudevents", "user_id = \"user\"\nsource = \"@.source\"\namount = \"$.amount\"");
    let record = r#"{"specversion":"1.0","id":"A-1","source":"/pos/7","type":"com.shop.paid","time":"2026-01-02T03:04:05Z",
        "data":{"user":"ann","amount":"1.5","id":"other"}}"#;
    let event = decode_by(&map, record, true).0.expect("a valid record");
    assert_eq!((event.id(), event.event_type(), event.key()), ("A-1", "com.shop.paid", "uann"));
    assert_eq!((event.event_time(), event.amount()), (EventTime(1_767_323_045_000), Some(1_500_000)));
    assert_eq!(value(&map, &event, "source"), Value::String("/pos/7"));
    for (was, is, message) in [
        (r#""data":{"#, r#""data_base64":{"#, "no object at data"),
        (r#""time""#, r#""when""#, "event_time (@.time) is missing"),
        (r#""id":"A-1""#, r#""id":"A-1","id":"B""#, "duplicate field @.id"),
        (r#""data":{"#, r#""data":{},"data":{"#, "duplicate field data"),
    ] {
        let rejection = decode_by(&map, &record.replacen(was, is, 1), true).0.expect_err(message);
        assert_eq!(rejection.message, message);
    }
}

#[test]
fn fields_of_a_change_are_in_the_row_after_or_before_it() {
    let fields = "event_time = { path = \"@.ts_ms\", format = \"unix_ms\" }\nuser_id = \"owner\"\ncity = \"city\"\nop = \"@.op\"";
    let map = map_of("debezium", fields);
    let update = r#"{"before":{"owner":"ann","city":"Rome"},"after":{"owner":"ann","city":null},"op":"u","ts_ms":1767323045678}"#;
    let delete = r#"{"before":{"owner":"ann","city":"Rome"},"after":null,"op":"d","ts_ms":1767323045678}"#;
    for (record, op, city) in [
        (update, "u", Value::Absent),
        (delete, "d", Value::String("Rome")),
        (&*format!(r#"{{"schema":{{}},"payload":{update}}}"#), "u", Value::Absent),
        (&*format!(r#"{{"schema":{{}},"payload":{delete}}}"#), "d", Value::String("Rome")),
    ] {
        let event = decode_by(&map, record, true).0.expect("a valid record");
        assert_eq!((event.key(), event.event_time()), ("uann", EventTime(1_767_323_045_678)), "{record}");
        assert_eq!(value(&map, &event, "op"), Value::String(op), "{record}");
        assert_eq!(value(&map, &event, "city"), city, "{record}");
    }
}

/// Events travel between processes and lie in checkpoints in this encoding.
#[test]
fn extended_events_keep_their_encoding() {
    let map = map(SCHEMA);
    let event = decode_by(&map, RECORD, true).0.expect("a valid record");
    let bytes = bincode::serialize(&event).expect("encodes");
    let decoded: Event = bincode::deserialize(&bytes).expect("decodes");
    assert_eq!(decoded, event);
    assert_eq!(value(&map, &decoded, "card"), Value::String("c-1"));
}

proptest! {
    /// Whatever the bytes are, there is an event or a rejection; and no field is beyond the record's text.
    #[test]
    fn decoding_never_panics(text in "\\PC{0,60}", at in 0..RECORD.len(), len in 0usize..8) {
        let map = map(SCHEMA);
        let _ = decode_by(&map, &text, false);
        let mut record = RECORD.to_owned();
        if record.is_char_boundary(at) && record.is_char_boundary((at + len).min(record.len())) {
            record.replace_range(at..(at + len).min(RECORD.len()), &text);
            if let (Ok(event), _) = decode_by(&map, &record, false) {
                let mut out = Vec::new();
                event.write_members(map.layout(), &mut out);
                prop_assert!(std::str::from_utf8(&out).is_ok());
            }
        }
    }

    /// A standard event that is mapped by its own names is the standard event.
    #[test]
    fn the_identity_map_gives_the_standard_event(
        id in "[a-z0-9]{1,8}", user in "[a-z]{1,5}", ms in 200_000_000_000i64..2_000_000_000_000,
        cents in -1_000_000i64..1_000_000, merchant in proptest::option::of("[a-zé\"]{1,5}"),
    ) {
        let mut record = serde_json::json!({
            "event_id": id, "event_type": "transaction", "user_id": user, "event_time": ms,
            "amount": format!("{}", cents as f64 / 100.0), "location": {"lat": 1.5, "lon": -2},
        });
        if let Some(merchant) = merchant {
            record["merchant_id"] = merchant.into();
        }
        let text = record.to_string();
        let names = ["event_id", "event_type", "user_id", "event_time", "amount", "location", "merchant_id"];
        let fields: String = names.iter().map(|name| format!("{name} = \"{name}\"\n")).collect();
        let mapped = decode(&fields, &text);
        let raw = Raw {
            position: mapped.position(), timestamp: 0, key: None, value: Some(text.as_bytes()), retries: 0,
            producer: None,
        };
        let standard = crate::decode::JsonDecoder::new(true).decode(raw).expect("valid");
        for (name, _) in crate::fields::STANDARD {
            let field = Layout::default().field(name).expect("standard").0;
            prop_assert_eq!(mapped.value(field), standard.value(field), "{}", name);
        }
        prop_assert_eq!(mapped.key_hash(), standard.key_hash());
    }
}
