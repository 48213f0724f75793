//! The forms of events between processes, of which a program uses one.

use headwater_dataflows::Epoch;

#[cfg(feature = "abomonation")]
pub(crate) use super::abomonated as form;
#[cfg(not(feature = "abomonation"))]
pub(crate) use super::packed as form;
use super::{Event, packed};

/// An event with its epoch and its multiplicity.
type Update = (Event, Epoch, isize);

/// A form of events between processes.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Its name.
    pub name: &'static str,
    /// Appends a batch.
    pub write: fn(&[Update], &mut Vec<u8>),
    /// Reads a batch, or says why the bytes are none; ignores bytes after it.
    pub read: fn(&[u8]) -> Result<Vec<Update>, String>,
}

/// The forms that this program knows; it uses the last one.
pub const FORMS: &[Form] = &[
    Form {
        name: "packed",
        write: |batch, out| packed::write(batch, out, |_, _| {}),
        read: |bytes| packed::read(bytes, |event, _| Ok(event)),
    },
    #[cfg(feature = "abomonation")]
    Form {
        name: "abomonation",
        write: |batch, out| super::abomonated::write(batch, out, |_, _| {}),
        read: |bytes| super::abomonated::read(bytes, |event, _| Ok(event)),
    },
];

#[cfg(test)]
mod tests;
