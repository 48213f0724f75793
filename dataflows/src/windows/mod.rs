//! Windows: the events of a key, cut by event time and summed up.
//!
//! A window [start, end) is final when the watermark is at or above end − 1 ms. Closing it frees its state and
//! retracts nothing: its last row stays in the collection.

mod aggregate;
mod aligned;
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

/// A window of event time, [start, end).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The first instant in it.
    pub start: EventTime,
    /// The first instant after it.
    pub end: EventTime,
}

/// A window's answer, on the way to the result that the user makes of it.
#[derive(Debug)]
pub struct Row<'a, K, S> {
    /// The key.
    pub key: &'a K,
    /// The window.
    pub window: Window,
    /// What its events come to.
    pub summary: &'a S,
    /// Whether the window is final.
    pub closed: bool,
}

/// When a window's row is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// Once, when the window is final.
    Final,
    /// Also before, at most once in so many epochs; each row retracts the one before.
    Revised {
        /// One or more.
        epochs: u64,
    },
}

impl Refresh {
    /// Whether rows are due at `epoch`, the latest time having been at `last`.
    fn due(self, last: Option<Epoch>, epoch: Epoch) -> bool {
        match self {
            Refresh::Final => false,
            Refresh::Revised { epochs } => {
                last.is_none_or(|last| epoch.0 / epochs.max(1) > last.0 / epochs.max(1))
            }
        }
    }
}

/// What makes a result of a row.
pub(crate) trait Render<E: crate::Event, S, D>: Fn(Row<'_, OwnedKey<E>, S>) -> D + 'static {}
impl<E: crate::Event, S, D, F: Fn(Row<'_, OwnedKey<E>, S>) -> D + 'static> Render<E, S, D> for F {}
