use serde::Deserialize;

use super::*;
use crate::decode::binary::hostile::Random;

const PAYMENT: &str = include_str!("payment.proto");
const DESCRIPTORS: &[u8] = include_bytes!("payment.desc");

fn parse(text: &str) -> Result<MessageSet, String> {
    MessageSet::parse([text].into_iter())
}

fn transcode(set: &MessageSet, name: &str, bytes: &[u8]) -> Result<String, String> {
    let mut out = JsonText::default();
    let written = set.transcode(set.root(name).expect("a message"), bytes, &mut out);
    let text = || String::from_utf8(out.bytes().to_vec()).expect("UTF-8");
    written.map(|()| text()).map_err(|error| error.to_string())
}

/// A message that another implementation (Google's in Python) has encoded.
#[derive(Deserialize)]
struct Vector {
    hex: String,
    json: String,
}

fn vectors() -> Vec<(Vec<u8>, String)> {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("vectors.json")).expect("JSON");
    assert_eq!(vectors.len(), 21);
    let byte = |hex: &str, at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    let bytes = |hex: &str| (0..hex.len()).step_by(2).map(|at| byte(hex, at)).collect();
    vectors.into_iter().map(|Vector { hex, json }| (bytes(&hex), json)).collect()
}

#[test]
fn messages_of_another_implementation_become_json() {
    let sets = [parse(PAYMENT).expect("valid"), MessageSet::parse_set(DESCRIPTORS).expect("valid")];
    for (bytes, json) in vectors() {
        for set in &sets {
            assert_eq!(transcode(set, "shop.v1.Payment", &bytes).as_deref(), Ok(json.as_str()));
        }
    }
}

#[test]
fn indexes_select_a_message() {
    let set = parse(PAYMENT).expect("valid");
    let name = |record: &[u8]| {
        set.root_of(record).map(|(root, rest)| (set.messages[root.0.0].name.clone(), rest.len()))
    };
    assert_eq!(name(&[0, 1, 2]), Ok(("shop.v1.Payment".to_owned(), 2)), "the short form of the first");
    assert_eq!(name(&[2, 0, 1, 2]), Ok(("shop.v1.Payment".to_owned(), 2)));
    assert_eq!(name(&[4, 0, 0]), Ok(("shop.v1.Payment.Geo".to_owned(), 0)));
    assert_eq!(name(&[6, 0, 0, 0]), Ok(("shop.v1.Payment.Geo.Deep".to_owned(), 0)));
    for wrong in [&[2u8, 2][..], &[4, 0, 2], &[], &[1], &[2], &[2, 1], &[0xff, 0xff, 0xff, 0xff, 0x0f]] {
        name(wrong).expect_err("no such message");
    }
}

#[test]
fn types_of_imported_files_are_found_by_scope() {
    let common = "syntax = \"proto3\"; package shop.common; message Geo { double lat = 1; }";
    let main = "syntax = \"proto2\"; package shop.v1; import public 'common.proto';\
                message M { required common.Geo geo = 1; optional .shop.common.Geo other = 2;\
                optional group Old = 3 { optional int32 a = 1; } optional int32 zero = 4 [default = 7]; }";
    let set = MessageSet::parse([common, main].into_iter()).expect("valid");
    let mut bytes = vec![0x0a, 9, 9];
    bytes.extend_from_slice(&1.5f64.to_le_bytes());
    bytes.extend([0x1b, 0x08, 1, 0x1c]);
    assert_eq!(transcode(&set, "shop.v1.M", &bytes).as_deref(), Ok(r#"{"geo":{"lat":1.5}}"#));
    let error = parse(main).expect_err("not imported");
    assert!(error.contains("\"common.Geo\" of the field shop.v1.M.geo is not defined"), "{error}");
}

#[test]
fn files_that_are_not_valid_name_the_line() {
    for (text, part) in [
        ("syntax = \"proto3\";\nmessage M {\n  string id 1;\n}", "line 3: expected '='"),
        ("message M {\n string id = one;\n}", "line 2: expected a number, got \"one\""),
        ("message M {", "line 1: expected a name"),
        ("\n\nmethod M {}", "line 3: expected a declaration, got \"method\""),
        ("message M { int32 a = 1; int32 b = 1; }", "M has the field number 1 twice"),
        ("/* open", "line 1: a comment is not closed"),
        ("option x = \"open;", "line 1: a text is not closed"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains(part), "{error}");
    }
    let nested = "message M {".repeat(100);
    assert!(parse(&nested).expect_err("too deep").contains("nest deeper than 64"));
    let error = parse(PAYMENT).expect("valid").root("shop.v1.Paiment").expect_err("misspelt");
    assert!(error.contains("there are") && error.contains("shop.v1.Payment.Geo"), "{error}");
}

#[test]
fn errors_name_the_field() {
    let set = parse(PAYMENT).expect("valid");
    for (bytes, expected) in [
        (&[0x10, 0x80][..], "it ends within a number"),
        (&[0x0a, 5, b'a'], "it ends too early: 5 bytes expected, 1 left"),
        (&[0x0a, 1, 0xff], "id: a text is not UTF-8 at byte 0"),
        (&[0x08, 1], "id: a text was written as a number of variable length"),
        (&[0xca, 0x01, 2, 0x08, 1], "geo.lat: a double was written as a number of variable length"),
        (&[0x00, 1], "a field has the number 0"),
        (&[0x0f], "the field 1 has the wire type 7"),
        (&[0xfb, 0x0f, 0x08, 1], "it ends within a number"),
    ] {
        assert_eq!(transcode(&set, "shop.v1.Payment", bytes), Err(expected.to_owned()));
    }
}

#[test]
fn damaged_messages_never_panic() {
    let set = parse(PAYMENT).expect("valid");
    let mut random = Random::new(1);
    for (bytes, _) in vectors() {
        for _ in 0..2000 {
            let _ = transcode(&set, "shop.v1.Payment", &random.damaged(&bytes));
        }
        let mut descriptors = DESCRIPTORS.to_vec();
        for _ in 0..50 {
            descriptors = random.damaged(&descriptors);
            let _ = MessageSet::parse_set(&descriptors);
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    let mut random = Random::new(2);
    for _ in 0..2000 {
        let damaged = String::from_utf8_lossy(&random.damaged(PAYMENT.as_bytes())).into_owned();
        let _ = parse(&damaged);
    }
}

/// A record of 1 MiB must not cost more than the time to read it, whatever it repeats.
#[test]
fn repeated_fields_cost_no_more_than_their_bytes() {
    let set = parse(PAYMENT).expect("valid");
    let started = std::time::Instant::now();
    // Members of a oneof in turn: card, account.
    let turns = [0xe2, 0x01, 0, 0xe8, 0x01, 0].repeat((1 << 20) / 6);
    transcode(&set, "shop.v1.Payment", &turns).expect("the last one counts");
    // Entries of a map, all different.
    let entries: Vec<u8> = (0..130_000u32)
        .flat_map(|at| [0xb2, 0x01, 6, 0x0a, 4, b'0' + (at % 10) as u8].into_iter().chain(key(at / 10)))
        .collect();
    let _ = transcode(&set, "shop.v1.Payment", &entries);
    // Messages within messages, each of which is in two parts that are merged.
    let mut nested = Vec::new();
    for _ in 0..60 {
        let mut outer = vec![0xba, 0x02, 0];
        outer.extend([0xba, 0x02]);
        let mut length = nested.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend_from_slice(&nested);
        nested = outer;
    }
    transcode(&set, "shop.v1.Payment", &nested).expect("merged");
    // Empty messages, each of which has many zeros in JSON.
    let empty = [0xd2, 0x01, 0].repeat((1 << 20) / 3);
    transcode(&set, "shop.v1.Payment", &empty).expect_err("more than 1 MiB of JSON");
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}

/// Returns three characters of a number below 13,000.
fn key(number: u32) -> [u8; 3] {
    [b'a' + (number % 24) as u8, b'a' + (number / 24 % 24) as u8, b'a' + (number / 576) as u8]
}
