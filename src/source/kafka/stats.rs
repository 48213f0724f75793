//! What librdkafka's statistics say of the partitions being read.
//!
//! They are the only place where a reader learns the high watermark, and the offset after transaction markers and
//! aborted records, without asking the broker and waiting for the answer.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

/// How often statistics are taken, in milliseconds: a fifth of the default idle timeout.
pub(super) const INTERVAL_MS: &str = "200";
/// How long the leader may hold a fetch back when there is no data, in milliseconds: so often it is heard from.
pub(super) const FETCH_WAIT_MS: &str = "100";
/// When nothing has come from the leader for this long, what is known of its partitions may be old. Together with
/// [`INTERVAL_MS`] it is less than the default idle timeout, so that a silent broker is not taken for a silent topic.
const SILENCE: Duration = Duration::from_millis(600);

/// What is known of a partition at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The next offset to be fetched: all records before it are in the reader's queue, or were, or do not exist.
    pub next: Option<i64>,
    /// The offset after the last record of the partition, committed or not.
    pub high_watermark: Option<i64>,
    /// The offset after the last record whose transaction is decided: what is beyond is not handed out yet.
    pub stable_offset: Option<i64>,
    /// Who leads the partition: the broker and the leader's epoch.
    pub leader: (i32, i32),
    /// Whether the leader is connected, has answered lately, and is being fetched from.
    pub fresh: bool,
}

/// What is known of each partition of `topic`; nothing if the statistics cannot be read.
pub(super) fn parse(json: &[u8], topic: &str) -> Vec<(i32, Seen)> {
    let mut statistics: Statistics = match serde_json::from_slice(json) {
        Ok(statistics) => statistics,
        Err(error) => {
            tracing::warn!(%error, "librdkafka's statistics cannot be read: no partition will count as idle");
            return Vec::new();
        }
    };
    let Some(topic) = statistics.topics.remove(topic) else { return Vec::new() };
    let answering = |id: i32| {
        statistics.brokers.values().any(|broker| {
            broker.nodeid == id
                && broker.state == "UP"
                && (0..SILENCE.as_micros() as i64).contains(&broker.rxidle)
        })
    };
    let offset = |raw: i64| (raw >= 0).then_some(raw);
    let seen = |partition: &PartitionStatistics| Seen {
        next: offset(partition.next_offset),
        high_watermark: offset(partition.hi_offset),
        stable_offset: offset(partition.ls_offset),
        leader: (partition.leader, partition.leader_epoch),
        fresh: partition.fetch_state == "active" && answering(partition.broker),
    };
    topic.partitions.values().map(|partition| (partition.partition, seen(partition))).collect()
}

#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: HashMap<String, BrokerStatistics>,
    #[serde(default)]
    topics: HashMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    nodeid: i32,
    state: String,
    /// Microseconds since anything was received; negative if nothing was.
    rxidle: i64,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    partition: i32,
    /// Whom it is fetched from.
    broker: i32,
    leader: i32,
    leader_epoch: i32,
    fetch_state: String,
    next_offset: i64,
    hi_offset: i64,
    ls_offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(state: &str, rxidle: i64, fetch_state: &str) -> String {
        format!(
            r#"{{"name":"x","brokers":{{"b:1/1":{{"nodeid":1,"state":"{state}","rxidle":{rxidle},"tx":3}}}},
            "topics":{{"t":{{"partitions":{{
              "0":{{"partition":0,"broker":1,"leader":1,"leader_epoch":4,"fetch_state":"{fetch_state}",
                    "next_offset":7,"hi_offset":9,"ls_offset":8}},
              "1":{{"partition":1,"broker":-1,"leader":-1,"leader_epoch":-1,"fetch_state":"none",
                    "next_offset":-1001,"hi_offset":-1001,"ls_offset":-1001}}}}}}}}}}"#
        )
    }

    fn of(partition: i32, json: &str) -> Seen {
        let seen = parse(json.as_bytes(), "t");
        seen.into_iter().find(|&(p, _)| p == partition).expect("the partition is in it").1
    }

    #[test]
    fn offsets_are_read_and_unknown_ones_are_none() {
        let json = json("UP", 100_000, "active");
        let known = Seen {
            next: Some(7),
            high_watermark: Some(9),
            stable_offset: Some(8),
            leader: (1, 4),
            fresh: true,
        };
        assert_eq!(of(0, &json), known);
        let unknown =
            Seen { next: None, high_watermark: None, stable_offset: None, leader: (-1, -1), fresh: false };
        assert_eq!(of(1, &json), unknown);
    }

    #[test]
    fn a_leader_that_is_away_silent_or_not_fetched_from_is_not_fresh() {
        for (state, rxidle, fetch) in
            [("DOWN", 0, "active"), ("UP", 600_000, "active"), ("UP", -1, "active"), ("UP", 0, "stopped")]
        {
            assert!(!of(0, &json(state, rxidle, fetch)).fresh, "{state} {rxidle} {fetch}");
        }
    }

    #[test]
    fn what_is_not_statistics_says_nothing() {
        for json in ["", "{}", "[1]", r#"{"topics":{"t":3}}"#, r#"{"topics":{"u":{"partitions":{}}}}"#] {
            assert_eq!(parse(json.as_bytes(), "t"), []);
        }
    }
}
