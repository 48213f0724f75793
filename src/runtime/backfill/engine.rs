//! The evaluation of rules over the events before their entry, alone: without sinks, windows and other rules.
//!
//! ```text
//!   Rereading ─ epochs ─▶ without refused events ─▶ VirtualRun, rules alone ─▶ states at the watermark
//! ```
//!
//! Which events were admitted is known, so the watermark need not be that of the run: it only has to be below every
//! admitted event that is still to come. If one comes too late, all is read again with a watermark that lags more.

use std::collections::HashSet;
use std::sync::Arc;

use headwater_dataflows::{EventTime, Offset, Position, RefusedEvents};

use super::gate::BoundState;
use crate::pipeline::{Limits, Plan, RulePasts, RulePlan, VirtualRun};
use crate::runtime::rereading::{RereadSettings, Rereading};
use crate::source::{Source, SourceError};

/// The factor between the lags of two attempts.
const MORE_LAG: i64 = 8;

/// The least lag of the second attempt, in milliseconds.
const LEAST_LAG_MS: i64 = 60_000;

/// The evaluation of rules over earlier events.
pub struct Engine {
    run: VirtualRun,
    rereading: Rereading,
    /// Earlier events are not needed.
    since: EventTime,
    watermark: EventTime,
}

/// The reason why the states at a point cannot be made.
#[derive(Debug)]
pub enum EngineError {
    /// An admitted event came later than the lag of the watermark permits.
    Late,
    /// The source cannot be read.
    Source(SourceError),
    /// The run ends.
    Ended,
    /// The states cannot be decoded.
    Damaged(String),
}

/// Returns a plan that evaluates these rules alone. `attempt` is the number of attempts before, each with less lag.
pub fn plan_of(plan: &Plan, rules: Vec<RulePlan>, attempt: u32) -> Plan {
    let mut alone = Plan { rules, windows: Vec::new(), patterns: Default::default(), ..plan.clone() };
    // Duplicates are among the refused events.
    alone.limits = Limits { dedup_horizon_ms: 0, ..alone.limits };
    if attempt > 0 {
        let lag = alone.time.max_out_of_orderness_ms.max(LEAST_LAG_MS);
        alone.time.max_out_of_orderness_ms = lag.saturating_mul(MORE_LAG.saturating_pow(attempt));
    }
    alone
}

impl Engine {
    /// Begins to read a source from these offsets. Only events after `since` count.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn begin(
        plan: &Plan,
        source: Arc<dyn Source>,
        starts: &[Offset],
        is_topic: bool,
        since: EventTime,
    ) -> Result<Engine, SourceError> {
        let settings = RereadSettings { is_topic, closes: false, ends: Some(starts.to_vec()) };
        let rereading = Rereading::begin(source, starts, &[plan], settings)?;
        Ok(Engine { run: VirtualRun::new(plan), rereading, since, watermark: EventTime::MIN })
    }

    /// Goes on to a bound state. Calls `each` with the number of records read so far, until it returns false.
    ///
    /// # Errors
    /// If the source cannot be read, an event is late, or `each` has returned false.
    pub fn go_on(
        &mut self,
        to: &BoundState,
        refused: &RefusedEvents,
        each: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), EngineError> {
        self.rereading.go_on(to.positions.clone()).map_err(EngineError::Source)?;
        while let Some(epoch) = self.rereading.next_epoch().map_err(EngineError::Source)? {
            let Some(input) = epoch.into_iter().next() else { continue };
            let (since, positions): (_, &HashSet<Position>) = (self.since, &refused.positions);
            let admitted = input.events.into_iter().filter(|event| {
                let at = headwater_dataflows::Event::position(event);
                event.event_time() > since && !positions.contains(&at)
            });
            self.watermark = self.watermark.max(input.watermark.min(to.watermark));
            let results = self.run.arrive_with_watermark(admitted, self.watermark);
            if !results.refused.is_empty() {
                return Err(EngineError::Late);
            }
            if !each(self.rereading.records()) {
                return Err(EngineError::Ended);
            }
        }
        Ok(())
    }

    /// Returns the states of the rules at a bound state that it has gone on to.
    ///
    /// # Errors
    /// If they cannot be decoded.
    pub fn pasts(&mut self, at: &BoundState) -> Result<RulePasts, EngineError> {
        self.watermark = at.watermark;
        let captured = self.run.states(at.watermark);
        RulePasts::of_captured(&captured).map_err(|damage| EngineError::Damaged(damage.to_string()))
    }

    /// Returns the number of records that were read.
    pub fn records(&self) -> u64 {
        self.rereading.records()
    }
}
