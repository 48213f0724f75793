//! Windows: the events of a key, divided by event time and aggregated.
//!
//! A window [start, end) is final when the watermark is at or above end − 1 ms. Closing a window frees its state but
//! does not retract its last row, which stays in the collection.

mod aggregate;
mod aligned;
mod distinct;
mod session;
mod sliding;
mod tumbling;

pub use aggregate::{Aggregate, Statistics, Summary};
pub(crate) use aligned::Aligned;
pub use session::Session;
pub(crate) use session::Sessions;
pub use sliding::Sliding;
pub use tumbling::Tumbling;

use serde::{Deserialize, Serialize};

use crate::{Epoch, EventTime, OwnedKey};

/// The maximum number of open windows of an operator that a visit of a key's state makes rows of, the latest first.
/// Bounds the time for which a visit holds up the worker.
const MAX_VISITED: usize = 100;

/// A window of event time, [start, end).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The first instant of the window.
    pub start: EventTime,
    /// The first instant after the window.
    pub end: EventTime,
}

/// The aggregate of a window, from which the user's function makes a result.
#[derive(Debug)]
pub struct Row<'a, K, S> {
    /// The key.
    pub key: &'a K,
    /// The window.
    pub window: Window,
    /// The aggregate of the window's events.
    pub summary: &'a S,
    /// True if the window is final.
    pub closed: bool,
}

/// The times at which the row of a window is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmitPolicy {
    /// Once, when the window is final.
    Final,
    /// Also before the window is final, at most once in every `epochs` epochs. Each row retracts the previous one.
    Early {
        /// The interval in epochs, at least 1.
        epochs: u64,
    },
    /// Never: nobody takes the rows. Windows can still be read with the state of their keys.
    Never,
}

impl EmitPolicy {
    /// Returns true if rows are emitted before their windows are final.
    fn is_early(self) -> bool {
        matches!(self, EmitPolicy::Early { .. })
    }

    /// Returns true if rows are due at `epoch`, given that they were last emitted at `last`.
    fn due(self, last: Option<Epoch>, epoch: Epoch) -> bool {
        match self {
            EmitPolicy::Final | EmitPolicy::Never => false,
            EmitPolicy::Early { epochs } => {
                last.is_none_or(|last| epoch.0 / epochs.max(1) > last.0 / epochs.max(1))
            }
        }
    }
}

/// A function that makes a result from a row.
pub(crate) trait Render<E: crate::Event, S, D>: Fn(Row<'_, OwnedKey<E>, S>) -> D + 'static {}
impl<E: crate::Event, S, D, F: Fn(Row<'_, OwnedKey<E>, S>) -> D + 'static> Render<E, S, D> for F {}
