//! librdkafka's statistics of the assigned partitions.
//!
//! They are the only source of the high watermark, and of the offset after transaction markers and aborted records,
//! that does not need a blocking request to the broker.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

/// The interval between statistics, in milliseconds: a fifth of the default idle timeout.
pub(super) const INTERVAL_MS: &str = "200";
/// The maximum time that the leader delays a fetch response without data, in milliseconds; so it responds this often.
pub(super) const FETCH_WAIT_MS: &str = "100";
/// The time without data from the leader after which the statistics of its partitions count as stale. Together with
/// [`INTERVAL_MS`] it is less than the default idle timeout, so that an unresponsive broker does not look like an idle
/// partition.
const STALE_AFTER: Duration = Duration::from_millis(600);

/// The statistics of a partition at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartitionStats {
    /// The next offset to fetch: all records before it are or were in the reader's queue, or do not exist.
    pub next: Option<i64>,
    /// The offset after the last record of the partition, committed or not.
    pub high_watermark: Option<i64>,
    /// The offset after the last record whose transaction is decided (last stable offset); later records are not
    /// visible yet.
    pub stable_offset: Option<i64>,
    /// The partition's leader: the broker id and the leader epoch.
    pub leader: (i32, i32),
    /// True if the leader is connected, has responded recently, and is being fetched from.
    pub fresh: bool,
}

/// Parses the statistics of each partition of `topic`. Returns nothing if they cannot be parsed.
pub(super) fn parse(json: &[u8], topic: &str) -> Vec<(i32, PartitionStats)> {
    let mut statistics: Statistics = match serde_json::from_slice(json) {
        Ok(statistics) => statistics,
        Err(error) => {
            tracing::warn!(%error, "cannot parse librdkafka's statistics: no partition will count as idle");
            return Vec::new();
        }
    };
    let Some(topic) = statistics.topics.remove(topic) else { return Vec::new() };
    let is_responding = |id: i32| {
        statistics.brokers.values().any(|broker| {
            broker.nodeid == id
                && broker.state == "UP"
                && (0..STALE_AFTER.as_micros() as i64).contains(&broker.rxidle)
        })
    };
    let offset = |raw: i64| (raw >= 0).then_some(raw);
    let seen = |partition: &PartitionStatistics| PartitionStats {
        next: offset(partition.next_offset),
        high_watermark: offset(partition.hi_offset),
        stable_offset: offset(partition.ls_offset),
        leader: (partition.leader, partition.leader_epoch),
        fresh: partition.fetch_state == "active" && is_responding(partition.broker),
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
    /// Microseconds since the last data was received; negative if none was.
    rxidle: i64,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    partition: i32,
    /// The id of the broker that it is fetched from.
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

    fn of(partition: i32, json: &str) -> PartitionStats {
        let seen = parse(json.as_bytes(), "t");
        seen.into_iter().find(|&(p, _)| p == partition).expect("statistics of the partition").1
    }

    #[test]
    fn offsets_are_read_and_unknown_ones_are_none() {
        let json = json("UP", 100_000, "active");
        let known = PartitionStats {
            next: Some(7),
            high_watermark: Some(9),
            stable_offset: Some(8),
            leader: (1, 4),
            fresh: true,
        };
        assert_eq!(of(0, &json), known);
        let unknown = PartitionStats {
            next: None,
            high_watermark: None,
            stable_offset: None,
            leader: (-1, -1),
            fresh: false,
        };
        assert_eq!(of(1, &json), unknown);
    }

    #[test]
    fn unresponsive_leaders_and_stopped_fetches_are_not_fresh() {
        for (state, rxidle, fetch) in
            [("DOWN", 0, "active"), ("UP", 600_000, "active"), ("UP", -1, "active"), ("UP", 0, "stopped")]
        {
            assert!(!of(0, &json(state, rxidle, fetch)).fresh, "{state} {rxidle} {fetch}");
        }
    }

    #[test]
    fn other_json_yields_no_statistics() {
        for json in ["", "{}", "[1]", r#"{"topics":{"t":3}}"#, r#"{"topics":{"u":{"partitions":{}}}}"#] {
            assert_eq!(parse(json.as_bytes(), "t"), []);
        }
    }
}
