use std::sync::Arc;

use headwater_dataflows::{EventTime, Offset, Partition, Position};

use super::*;
use crate::cli::bench::drive::{events, in_order};
use crate::event::{Body, Extension, Kind, RecordKey, Slot, Span, Transcoded};

fn round_trip(form: &Form, batch: &[Update]) -> Vec<Update> {
    let mut bytes = vec![];
    (form.write)(batch, &mut bytes);
    bytes.extend_from_slice(&[0; 7]);
    (form.read)(&bytes).expect("valid")
}

/// Events with each field, or without it, and with values at their limits.
fn unusual() -> Vec<Event> {
    let of = |change: fn(&mut Event, &mut Body)| {
        let mut event = events(in_order(), 1).remove(0);
        let mut body = (*event.body).clone();
        change(&mut event, &mut body);
        event.body = Arc::new(body);
        event
    };
    vec![
        of(|event, body| {
            event.position = Position { partition: Partition(u32::MAX), offset: Offset(i64::MAX) };
            (event.event_time, body.timestamp) = (EventTime(i64::MIN), i64::MAX);
            (body.amount, body.retries) = (Some(i64::MIN), u32::MAX);
        }),
        of(|event, body| {
            event.position.offset = Offset(i64::MIN);
            event.event_time = EventTime(i64::MAX);
            (body.amount, body.location) = (None, Some((-0.0, f64::INFINITY)));
            let all = Span { start: 0, len: body.text.len() as u32 };
            (body.session_id, body.attributes, body.device_id, body.ip_address) = (all, all, all, all);
        }),
        of(|_, body| {
            body.record_key = RecordKey::Other(vec![0xff, 0].into());
            (body.merchant, body.merchant_id, body.currency) = (7, Span::ABSENT, Span::ABSENT);
        }),
        of(|_, body| {
            body.record_key = RecordKey::Absent;
            body.kind = Kind::Extended(Box::new(Extension {
                event_type: Span { start: 0, len: 1 },
                user_id: Span::ABSENT,
                has_id: true,
                is_mapped: true,
                own: [Slot::Absent, Slot::Decimal(-1), Slot::String(Span { start: 1, len: 2 })].into(),
            }));
        }),
        of(|_, body| {
            let record = vec![0, 1, 0xff].into();
            body.kind = Kind::Transcoded(Box::new(Transcoded { record, kind: Kind::IotSensor }));
        }),
    ]
}

#[test]
fn events_are_the_same_in_each_form() {
    let mut all = events(in_order(), 1000);
    all.extend(unusual());
    let counts = [1, 1, -1, isize::MAX, isize::MIN];
    let epochs = [1, 1, 1, 2, u64::MAX, 0];
    let batch: Vec<_> =
        (0..).zip(all).map(|(at, event)| (event, Epoch(epochs[at % 6]), counts[at % 5])).collect();
    for form in FORMS {
        for size in [1, 7, batch.len()] {
            for batch in batch.chunks(size) {
                assert_eq!(round_trip(form, batch), batch, "{}", form.name);
            }
        }
        assert_eq!(round_trip(form, &[]), [], "{}", form.name);
    }
}

#[test]
fn packed_events_are_smaller_than_those_of_bincode() {
    let batch: Vec<_> = events(in_order(), 146).into_iter().map(|event| (event, Epoch(1), 1)).collect();
    let (mut packed, text) = (vec![], batch.iter().map(|(event, ..)| event.body.text.len()).sum::<usize>());
    (FORMS[0].write)(&batch, &mut packed);
    let bincode = bincode::serialize(&batch).expect("written").len();
    assert!((packed.len() - text) * 2 < bincode - text, "{} and {bincode} with {text} of text", packed.len());
}

#[test]
fn damaged_batches_are_errors() {
    let batch: Vec<_> =
        events(in_order(), 20).into_iter().chain(unusual()).map(|event| (event, Epoch(1), 1)).collect();
    for form in FORMS {
        let mut bytes = vec![];
        (form.write)(&batch, &mut bytes);
        for length in 0..bytes.len() {
            (form.read)(&bytes[..length]).expect_err("it ends too early");
        }
        // Other bytes may be a batch, of other events; each span must lie within its text.
        for at in 0..bytes.len() {
            for other in [0, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = other;
                for (event, ..) in (form.read)(&bytes).into_iter().flatten() {
                    assert!(event.body.is_valid());
                    let _ = (event.id(), event.key(), event.original(), event.event_type());
                }
            }
        }
        let error = (form.read)(&[0xff; 16]).expect_err("it has no events");
        assert!(error.contains("from another process is malformed"), "{error}");
    }
}
