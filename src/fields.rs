//! Fields: the names and types of an event's values, and the slots that hold them.
//!
//! ```text
//!   [fields] ─▶ Layout: name ─▶ FieldId, type        record ─▶ decode ─▶ Event: FieldId ─▶ Value
//! ```
//!
//! The fields of the standard event have fixed ids; a user's own fields follow, in the order of the layout.

use std::fmt;

use headwater_dataflows::patterns::Location;

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text.
    String,
    /// A decimal number with six digits after the point, exact.
    Decimal,
    /// A whole number of 64 bits.
    Integer,
    /// A floating-point number.
    Float,
    /// True or false.
    Boolean,
    /// An instant, in milliseconds since 1970.
    Timestamp,
    /// Latitude and longitude, in degrees.
    Location,
    /// A JSON object, as text.
    Object,
}

impl FieldType {
    /// The types that a user's own field can have.
    pub const OWN: [FieldType; 7] = [
        FieldType::String,
        FieldType::Decimal,
        FieldType::Integer,
        FieldType::Float,
        FieldType::Boolean,
        FieldType::Timestamp,
        FieldType::Location,
    ];

    /// Returns the name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            FieldType::String => "string",
            FieldType::Decimal => "decimal",
            FieldType::Integer => "integer",
            FieldType::Float => "float",
            FieldType::Boolean => "boolean",
            FieldType::Timestamp => "timestamp",
            FieldType::Location => "location",
            FieldType::Object => "object",
        }
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The value of a field of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// The event does not have the field.
    Absent,
    /// Text.
    String(&'a str),
    /// A decimal number, in millionths.
    Decimal(i64),
    /// A whole number.
    Integer(i64),
    /// A floating-point number, never NaN or infinite.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// An instant, in milliseconds since 1970.
    Timestamp(i64),
    /// A place.
    Location(Location),
    /// A JSON object, as text.
    Object(&'a str),
}

/// Identifies a field of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldId(pub(crate) u16);

macro_rules! standard_fields {
    ($($constant:ident = $id:literal $name:literal $type:ident)*) => {
        /// The fields of the standard event: name and type, by id.
        pub const STANDARD: &[(&str, FieldType)] = &[$(($name, FieldType::$type)),*];

        impl FieldId {
            $(
                #[doc = concat!("The standard field `", $name, "`.")]
                pub const $constant: FieldId = FieldId($id);
            )*
        }
    };
}

standard_fields! {
    EVENT_ID = 0 "event_id" String
    EVENT_TYPE = 1 "event_type" String
    USER_ID = 2 "user_id" String
    DEVICE_ID = 3 "device_id" String
    EVENT_TIME = 4 "event_time" Timestamp
    AMOUNT = 5 "amount" Decimal
    CURRENCY = 6 "currency" String
    MERCHANT_ID = 7 "merchant_id" String
    MERCHANT_CATEGORY = 8 "merchant_category" String
    IP_ADDRESS = 9 "ip_address" String
    SESSION_ID = 10 "session_id" String
    LOCATION = 11 "location" Location
    ATTRIBUTES = 12 "attributes" Object
}

impl FieldId {
    /// Returns the index among the user's own fields; None for a field of the standard event.
    pub(crate) fn own(self) -> Option<usize> {
        usize::from(self.0).checked_sub(STANDARD.len())
    }
}

/// The fields of the events of a pipeline: those of the standard event, then the user's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    own: Vec<(Box<str>, FieldType)>,
}

impl Layout {
    /// Returns the layout of the standard event and further fields.
    pub fn new(own: Vec<(Box<str>, FieldType)>) -> Layout {
        Layout { own }
    }

    /// Returns the id and the type of a field.
    pub fn field(&self, name: &str) -> Option<(FieldId, FieldType)> {
        let at = self.fields().position(|(known, _)| known == name)?;
        self.fields().nth(at).map(|(_, kind)| (FieldId(at as u16), kind))
    }

    /// Returns the names and types of all fields, by id.
    pub fn fields(&self) -> impl Iterator<Item = (&str, FieldType)> {
        let own = self.own.iter().map(|(name, kind)| (&**name, *kind));
        STANDARD.iter().copied().chain(own)
    }

    /// Returns the name of a field.
    pub fn name(&self, field: FieldId) -> &str {
        self.fields().nth(field.0.into()).map_or("", |(name, _)| name)
    }

    /// Returns the ids, names and types of the user's own fields.
    pub fn own(&self) -> impl Iterator<Item = (FieldId, &str, FieldType)> {
        let fields = self.fields().enumerate().skip(STANDARD.len());
        fields.map(|(at, (name, kind))| (FieldId(at as u16), name, kind))
    }
}
