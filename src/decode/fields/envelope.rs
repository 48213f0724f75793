//! Envelopes: formats that wrap the data of an event in an object of their own.

use super::path::Path;
use super::trie::Trie;
use crate::decode::scan::Value;

/// The place of an event's data in a record. A path of a field begins at the first root that is an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The roots of the data.
    data: Vec<Path>,
    /// The roots of the envelope itself, for paths that begin with `@`.
    outer: Vec<Path>,
}

/// The roots of a record: their indexes among those of the data and of the envelope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roots {
    pub data: usize,
    pub outer: usize,
}

impl Envelope {
    fn new(data: &[&str], outer: &[&str]) -> Envelope {
        let paths = |texts: &[&str]| {
            let parse = |text: &&str| Path::parse(text).expect("the paths of envelopes are valid");
            texts.iter().map(parse).collect()
        };
        Envelope { data: paths(data), outer: paths(outer) }
    }

    /// No envelope: the record is the data.
    pub fn none() -> Envelope {
        Envelope::new(&["$"], &["$"])
    }

    /// The JSON format of CloudEvents 1.0: the data is in `data`.
    pub fn cloud_events() -> Envelope {
        Envelope::new(&["data"], &["$"])
    }

    /// Changes of rows by Debezium, with or without their schema: the row after the change or, if it was deleted, before
    /// it.
    pub fn debezium() -> Envelope {
        Envelope::new(&["payload.after", "after", "payload.before", "before"], &["payload", "$"])
    }

    /// Returns the roots of paths.
    pub(super) fn roots(&self, in_envelope: bool) -> &[Path] {
        if in_envelope { &self.outer } else { &self.data }
    }

    /// Adds the paths of the roots to a trie that has none yet.
    pub(super) fn add_roots(&self, trie: &mut Trie) {
        for root in self.data.iter().chain(&self.outer) {
            trie.add(root);
        }
    }

    /// Returns the roots of a record, given the values of the paths; the paths of the data's roots if the record has none.
    pub(super) fn find(&self, values: &[Option<Value>]) -> Result<Roots, String> {
        let (data, rest) = values.split_at(self.data.len());
        let object = |values: &[Option<Value>]| {
            values.iter().position(|value| matches!(value, Some(Value::Object(_))))
        };
        match (object(data), object(&rest[..self.outer.len()])) {
            (Some(data), Some(outer)) => Ok(Roots { data, outer }),
            _ => {
                let paths: Vec<_> = self.data.iter().map(ToString::to_string).collect();
                Err(format!("no object at {}", paths.join(" or ")))
            }
        }
    }

    /// Returns the path of a root, by its index among all.
    pub(super) fn root(&self, at: usize) -> Option<&Path> {
        self.data.iter().chain(&self.outer).nth(at)
    }
}
