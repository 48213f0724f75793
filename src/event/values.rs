//! The values of an event by field, as expressions read them.

use headwater_dataflows::patterns::Location;

use super::{Event, Slot, Span};
use crate::fields::{FieldId, Value};

impl Event {
    /// Returns the value of a field.
    pub fn value(&self, field: FieldId) -> Value<'_> {
        fn text(text: Option<&str>) -> Value<'_> {
            text.map_or(Value::Absent, Value::String)
        }
        match field {
            FieldId::EVENT_ID => Value::String(self.id()),
            FieldId::EVENT_TYPE => Value::String(self.event_type()),
            FieldId::USER_ID => text(self.user_id()),
            FieldId::DEVICE_ID => text(self.device_id()),
            FieldId::EVENT_TIME => Value::Timestamp(self.event_time.0),
            FieldId::AMOUNT => self.body.amount.map_or(Value::Absent, Value::Decimal),
            FieldId::CURRENCY => text(self.currency()),
            FieldId::MERCHANT_ID => text(self.merchant_id()),
            FieldId::MERCHANT_CATEGORY => text(self.merchant_category()),
            FieldId::IP_ADDRESS => text(self.ip_address()),
            FieldId::SESSION_ID => text(self.session_id()),
            FieldId::LOCATION => self.location().map_or(Value::Absent, Value::Location),
            FieldId::ATTRIBUTES => self.attributes().map_or(Value::Absent, Value::Object),
            own => self.own(own),
        }
    }

    /// Returns true if the event has the field. Reads no text.
    pub(crate) fn has(&self, field: FieldId) -> bool {
        let body = &self.body;
        let span = match field {
            FieldId::EVENT_ID | FieldId::EVENT_TYPE | FieldId::EVENT_TIME => return true,
            FieldId::USER_ID => return self.user_id().is_some(),
            FieldId::AMOUNT => return body.amount.is_some(),
            FieldId::LOCATION => return body.location.is_some(),
            FieldId::DEVICE_ID => body.device_id,
            FieldId::CURRENCY => body.currency,
            FieldId::MERCHANT_ID => body.merchant_id,
            FieldId::MERCHANT_CATEGORY => body.merchant_category,
            FieldId::IP_ADDRESS => body.ip_address,
            FieldId::SESSION_ID => body.session_id,
            FieldId::ATTRIBUTES => body.attributes,
            own => return !matches!(self.slot(own), Slot::Absent),
        };
        span != Span::ABSENT
    }

    /// Returns the value of a field that is held as a whole number, if the event has it.
    #[inline]
    pub(crate) fn whole(&self, field: FieldId) -> Option<i64> {
        match field {
            FieldId::AMOUNT => self.body.amount,
            FieldId::EVENT_TIME => Some(self.event_time.0),
            own => match *self.slot(own) {
                Slot::Decimal(value) | Slot::Integer(value) | Slot::Timestamp(value) => Some(value),
                _ => None,
            },
        }
    }

    /// Returns the slot of one of the user's own fields; `Absent` for other fields.
    fn slot(&self, field: FieldId) -> &Slot {
        field.own().and_then(|at| self.body.extension()?.own.get(at)).unwrap_or(&Slot::Absent)
    }

    /// Returns the value of one of the user's own fields.
    pub(super) fn own(&self, field: FieldId) -> Value<'_> {
        match *self.slot(field) {
            Slot::Absent => Value::Absent,
            Slot::String(span) => span.of(&self.body.text).map_or(Value::Absent, Value::String),
            Slot::Decimal(micros) => Value::Decimal(micros),
            Slot::Integer(integer) => Value::Integer(integer),
            Slot::Float(float) => Value::Float(float),
            Slot::Boolean(boolean) => Value::Boolean(boolean),
            Slot::Timestamp(ms) => Value::Timestamp(ms),
            Slot::Location(lat, lon) => Value::Location(Location { lat, lon }),
        }
    }
}
