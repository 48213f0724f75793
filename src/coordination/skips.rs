//! Skips: outputs that are not written to a sink, because the sink refuses them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use headwater_dataflows::Epoch;
use serde::{Deserialize, Serialize};

/// One output that is not written to one sink: `SINK:EPOCH:OUTPUT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skip {
    /// The sink's name.
    pub sink: String,
    /// The epoch of the output.
    pub epoch: Epoch,
    /// The name of the output: of a row by [`row_name`](headwater_sinks::row_name), of a message by
    /// [`MessageNames`](headwater_sinks::MessageNames).
    pub output: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Skip { sink, epoch, output } = self;
        write!(f, "{sink}:{epoch}:{output}")
    }
}

impl FromStr for Skip {
    type Err = String;

    fn from_str(text: &str) -> Result<Skip, String> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let skip = (|| {
            let (sink, epoch, output) = (next()?.to_owned(), next()?.parse().ok()?, next()?.to_owned());
            Some(Skip { sink, epoch: Epoch(epoch), output })
        })();
        skip.ok_or_else(|| {
            format!("expected SINK:EPOCH:OUTPUT, such as postgres:1234:events/3/42, not {text:?}")
        })
    }
}

/// The outputs that are not written to one sink.
#[derive(Clone, Debug, Default)]
pub struct Skips(BTreeMap<Epoch, BTreeSet<String>>);

impl Skips {
    /// Returns the skips of one sink.
    pub fn of(sink: &str, all: &[Skip]) -> Skips {
        let mut skips = Skips::default();
        for skip in all.iter().filter(|skip| skip.sink == sink) {
            skips.0.entry(skip.epoch).or_default().insert(skip.output.clone());
        }
        skips
    }

    /// Returns the names of the skipped outputs of an epoch; None if no output is skipped.
    pub fn in_epoch(&self, epoch: Epoch) -> Option<&BTreeSet<String>> {
        self.0.get(&epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_formatted_as_parsed_and_may_contain_colons() {
        for text in ["kafka:7:enriched-events/user:1/0", "postgres:1234:events/3/42", "a:0:b"] {
            assert_eq!(text.parse::<Skip>().expect(text).to_string(), text);
        }
        for text in ["", "kafka", "kafka:7", "kafka:7:", ":7:a", "kafka:x:a", "kafka:-1:a"] {
            assert!(text.parse::<Skip>().expect_err(text).contains("SINK:EPOCH:OUTPUT"));
        }
    }

    #[test]
    fn a_sink_has_only_its_own_skips() {
        let all = ["a:7:x", "b:7:y", "a:7:z", "a:8:x"].map(|text| text.parse().expect("a skip"));
        let skips = Skips::of("a", &all);
        let names =
            |epoch| skips.in_epoch(Epoch(epoch)).map(|names| names.iter().cloned().collect::<String>());
        assert_eq!([6, 7, 8].map(names), [None, Some("xz".into()), Some("x".into())]);
    }
}
