use super::*;
use crate::event::{Body, Event, Extension, Kind, Slot, Span};
use crate::fields::FieldType;
use crate::pipeline::fixtures::{T, typed};

mod lists;
mod reference;
mod refused;
mod values;

/// The user's own fields of the tests.
const OWN: [(&str, FieldType); 10] = [
    ("n", FieldType::Integer),
    ("m", FieldType::Integer),
    ("score", FieldType::Float),
    ("ratio", FieldType::Float),
    ("fee", FieldType::Decimal),
    ("country", FieldType::String),
    ("city", FieldType::String),
    ("declined", FieldType::Boolean),
    ("opened", FieldType::Timestamp),
    ("home", FieldType::Location),
];

fn layout() -> Layout {
    Layout::new(OWN.into_iter().map(|(name, kind)| (name.into(), kind)).collect())
}

/// The value of one of the user's own fields.
#[derive(Clone, Debug)]
enum Own {
    Text(&'static str),
    Slot(Slot),
}

/// Returns an event of user `ann` with further standard fields and with own fields.
fn event(fields: &str, own: &[(&str, Own)]) -> Event {
    let mut event = typed(7, 0, &format!(r#""event_type":"transaction","user_id":"ann"{fields}"#));
    let body: &mut Body = std::sync::Arc::make_mut(&mut event.body);
    let mut text = String::from(std::mem::take(&mut body.text));
    let mut append = |value: &str| {
        let start = text.len();
        text.push_str(value);
        Span::new(start..text.len())
    };
    let mut slots = vec![Slot::Absent; OWN.len()];
    for (name, value) in own {
        let at = OWN.iter().position(|(known, _)| known == name).expect("an own field");
        slots[at] = match value {
            Own::Text(text) => Slot::String(append(text)),
            Own::Slot(slot) => *slot,
        };
    }
    let extension = Extension {
        event_type: append("transaction"),
        user_id: append("ann"),
        has_id: true,
        is_mapped: true,
        own: slots.into(),
    };
    body.kind = Kind::Extended(Box::new(extension));
    body.text = text.into();
    event
}

/// Returns an event with all fields.
fn full() -> Event {
    event(
        r#","amount":129.95,"currency":"EUR","merchant_id":"shop-1","location":{"lat":52.5,"lon":-13.25},
        "attributes":{"channel":"web","tries":3,"price":"9.90","vip":true,"none":null,"big":9007199254740993,"device":{"os":"x\"y"}}"#,
        &[
            ("n", Own::Slot(Slot::Integer(7))),
            ("m", Own::Slot(Slot::Integer(-2))),
            ("score", Own::Slot(Slot::Float(0.25))),
            ("fee", Own::Slot(Slot::Decimal(100_000))),
            ("country", Own::Text("DE")),
            ("declined", Own::Slot(Slot::Boolean(true))),
            ("opened", Own::Slot(Slot::Timestamp(T - 3_600_000))),
            ("home", Own::Slot(Slot::Location(48.0, 2.0))),
        ],
    )
}
