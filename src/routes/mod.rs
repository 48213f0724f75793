//! Routes: alerts delivered to people and other systems over HTTP, at least once.
//!
//! ```text
//!   sink `routes` ── a round's changes of alerts, with its progress ──▶ outbox
//!                                                                         │ Deliverer, in process 0
//!          filter by route, group ◀───────────────────────────────────────┘
//!                 └──▶ deliveries: id and content fixed ──▶ render, sign ──▶ POST ─┬─▶ 2xx: deleted
//!                            ▲                                                     ├─▶ failed: again after a back-off
//!                            └────────────── headwater deliveries retry ── dead ◀──┴─▶ rejected, or given up
//! ```
//!
//! The outbox is written like any other sink, exactly once. The deliverer has its own connection, threads and state, and
//! nothing of the dataflow waits for it. Of one alert, or one group, at most one delivery is under way, the oldest first.

mod alert;
mod circuit;
mod content;
mod database;
mod deliverer;
mod grouping;
mod http;
mod outbox;
mod payload;
mod signature;

pub use alert::{AlertChange, AlertFilter, Label};
pub use database::{OutboxPlace, StoreError};
pub use deliverer::{Deliverer, DeliverySettings};
pub use grouping::Grouping;
pub use http::{PostError, post};
pub use outbox::{ListedDelivery, Outbox};
pub use payload::{Target, TargetKind};
pub use signature::check_secret;

use crate::client::Client;

impl Target {
    /// Connects to the receiver and sends nothing. Returns what was found.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn probe(&self) -> Result<String, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
        let found = runtime.block_on(Client::new()?.probe(&self.endpoint, self.http));
        // A look-up of the name may still be going on.
        runtime.shutdown_background();
        found
    }
}

/// The name of the sink that writes the outbox.
pub const SINK: &str = "routes";

/// A route: which alerts go where, and how.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name, which deliveries and metrics carry.
    pub name: String,
    /// The alerts that are delivered.
    pub filter: AlertFilter,
    /// The grouping of alerts into deliveries.
    pub grouping: Grouping,
    /// The receiver and the form of its requests.
    pub target: Target,
    /// The time after which a delivery is given up, in milliseconds since it was made.
    pub give_up_after_ms: i64,
}
