use super::*;
use crate::dead_letters::{LetterId, Place, SourceRecord};

fn letter(value: &str) -> Letter {
    let text = |text: &str| Some(text.to_owned());
    Letter {
        id: LetterId { partition: 2, offset: 7 },
        partition: 2,
        offset: 7,
        reason: "invalid".to_owned(),
        field: text("user_id"),
        message: text("user_id is no text"),
        time: text("2026-03-01T02:00:00.000Z"),
        retries: 0,
        sent_again: Some(false),
        producer: None,
        source: SourceRecord {
            topic: text("payments"),
            partition: Some(1),
            offset: Some(9),
            timestamp: None,
        },
        key: text("k"),
        key_base64: None,
        value: text(value),
        value_base64: None,
        bytes: value.len(),
        original_bytes: None,
        place: None,
        headers: vec![("reason".to_owned(), "invalid".to_owned())],
    }
}

#[test]
fn a_dead_letter_is_always_one_line() {
    assert_eq!(
        line(&letter("{\"user_id\":1}\n\u{1b}[31m\u{fffd}")),
        "2:7        payments:1:9         invalid    2026-03-01T02:00:00.000Z    no     22  user_id       \
         user_id is no text: {\"user_id\":1}\\n\\u{1b}[31m\u{fffd}"
    );
    let long = line(&letter(&"ä".repeat(100)));
    assert!(long.ends_with(&format!("{}…", "ä".repeat(MAX_DISPLAY))), "{long}");
}

/// Returns the payload of a letter as it is shown.
fn shown(value: &str, place: Option<(usize, usize)>) -> String {
    let place = place.map(|(start, end)| Place { start, end });
    let text = show::text(&Letter { place, ..letter(value) });
    let (_, payload) = text.split_once("bytes\n").expect("a payload");
    payload.split_once("headers\n").expect("headers").0.to_owned()
}

#[test]
fn a_payload_is_indented_and_the_place_is_marked() {
    assert_eq!(
        shown(r#"{"a" :{},"user_id":[1,"x\"{"],"é":[]}"#, Some((19, 29))),
        "  {\n    \"a\": {},\n    \"user_id\": [\n               ^ user_id is no text\n      1,\n      \"x\\\"{\"\n    ],\n    \
         \"é\": []\n  }\n"
    );
    assert_eq!(
        shown(r#"{"é":1.5}"#, Some((5, 8))),
        "  {\n    \"é\": 1.5\n         ^^^ user_id is no text\n  }\n"
    );
}

#[test]
fn a_payload_that_is_not_json_is_shown_as_it_is() {
    assert_eq!(shown("oops\n{\u{1b}", Some((0, 1))), "  oops\n  ^ user_id is no text\n  {\\u{1b}\n");
    assert_eq!(shown("{\"a\":", Some((5, 5))), "  {\"a\":\n       ^ user_id is no text\n", "at the end");
    let text = show::text(&Letter { value: None, ..letter("{}") });
    assert!(text.contains("hidden, because fields are masked"), "{text}");
}

#[test]
fn the_report_counts_unsent_dead_letters_by_reason() {
    let skipped = Skipped { sent_before: 2, ..Skipped::default() };
    let report = RetryReport { sent: 3, skipped, exhausted: 1, ..RetryReport::default() };
    assert_eq!(
        sentence(&report, "payments"),
        "3 dead letters sent to topic payments; not sent: 2 were already sent, 1 have been retried 3 times"
    );
    assert_eq!(json!(report)["skipped"]["sent_before"], 2);
    let dry = sentence(&RetryReport { sent: 1, dry_run: true, ..RetryReport::default() }, "payments");
    assert_eq!(dry, "1 dead letter would be sent to topic payments; nothing was sent");
}
