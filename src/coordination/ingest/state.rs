//! The state of a partition as its reader reports it.

use headwater_dataflows::{Offset, Partition};

/// The state of one partition of a reader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartitionState {
    /// The partition.
    pub partition: Partition,
    /// The offset of the next record. All records before it have been emitted or do not exist.
    pub position: Offset,
    /// The offset after the last record, committed or not, at the last observation.
    pub high_watermark: Option<Offset>,
    /// The offset of the first record of the oldest transaction that was open at the last observation, or the high
    /// watermark.
    pub stable_offset: Option<Offset>,
    /// The number of observations of the leader. Two states with the same number rest on the same end of the log.
    pub observation: u64,
    /// The number of leader changes and failures, each of which made the last observation stale.
    pub leader_failures: u64,
    /// True if the leader responds.
    pub available: bool,
    /// True if the record at the position was read, but cannot be decoded yet, because its schema is not known.
    pub is_withheld: bool,
    /// True if the position has reached the end offset of a bounded run: no records follow.
    pub ended: bool,
    /// The number of records that are known to exist at or after the position.
    pub backlog: u64,
}

impl PartitionState {
    /// Returns the state of a partition whose input is complete and finite.
    pub fn finite(partition: Partition, position: Offset, ended: bool, backlog: u64) -> PartitionState {
        PartitionState {
            partition,
            position,
            high_watermark: ended.then_some(position),
            stable_offset: None,
            observation: 0,
            leader_failures: 0,
            available: true,
            is_withheld: false,
            ended,
            backlog,
        }
    }
}
