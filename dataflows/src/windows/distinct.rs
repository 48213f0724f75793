//! Sets of numbers, most of which are small.

use std::collections::BTreeSet;

use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest number of values that need no memory of their own. Most windows of one key have few events.
const FEW: usize = 3;

/// A set of numbers, ascending. Stored as the sequence of its numbers.
#[derive(Clone, Debug)]
pub(super) enum Distinct {
    /// The number of values, and an array that begins with them, ascending.
    Few(u8, [u64; FEW]),
    /// Boxed, so that small sets need no more memory.
    #[expect(clippy::box_collection, reason = "a set in place would make every window larger")]
    Many(Box<BTreeSet<u64>>),
}

impl Default for Distinct {
    fn default() -> Self {
        Distinct::Few(0, [0; FEW])
    }
}

impl Distinct {
    pub fn len(&self) -> usize {
        match self {
            Distinct::Few(len, _) => usize::from(*len),
            Distinct::Many(values) => values.len(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let (few, many) = match self {
            Distinct::Few(len, values) => (&values[..usize::from(*len)], None),
            Distinct::Many(values) => (&[][..], Some(values.iter())),
        };
        few.iter().chain(many.into_iter().flatten()).copied()
    }

    /// Adds a number. Returns true if it is new.
    pub fn insert(&mut self, value: u64) -> bool {
        match self {
            Distinct::Few(len, values) => {
                let count = usize::from(*len);
                let Err(at) = values[..count].binary_search(&value) else { return false };
                if count < FEW {
                    values.copy_within(at..count, at + 1);
                    values[at] = value;
                    *len += 1;
                } else {
                    *self = Distinct::Many(Box::new(values.iter().copied().chain([value]).collect()));
                }
                true
            }
            Distinct::Many(values) => values.insert(value),
        }
    }

    pub fn remove(&mut self, value: u64) {
        match self {
            Distinct::Few(len, values) => {
                let count = usize::from(*len);
                if let Ok(at) = values[..count].binary_search(&value) {
                    values.copy_within(at + 1..count, at);
                    *len -= 1;
                }
            }
            Distinct::Many(values) => {
                values.remove(&value);
            }
        }
    }
}

impl PartialEq for Distinct {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Distinct {}

impl Extend<u64> for Distinct {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, values: I) {
        for value in values {
            self.insert(value);
        }
    }
}

impl Serialize for Distinct {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values = serializer.serialize_seq(Some(self.len()))?;
        for value in self.iter() {
            values.serialize_element(&value)?;
        }
        values.end()
    }
}

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut distinct = Distinct::default();
        distinct.extend(Vec::<u64>::deserialize(deserializer)?);
        Ok(distinct)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_and_is_stored_like_a_set(moves in prop::collection::vec((0u64..9, prop::bool::weighted(0.6)), 0..60)) {
            let (mut distinct, mut set) = (Distinct::default(), BTreeSet::new());
            for (value, adds) in moves {
                if adds {
                    prop_assert_eq!(distinct.insert(value), set.insert(value));
                } else {
                    distinct.remove(value);
                    set.remove(&value);
                }
                prop_assert_eq!(distinct.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(distinct.len(), set.len());
            }
            let stored = bincode::serialize(&distinct).expect("numbers");
            prop_assert_eq!(&stored, &bincode::serialize(&set).expect("numbers"));
            let read: Distinct = bincode::deserialize(&stored).expect("its own form");
            prop_assert_eq!(read, distinct);
        }
    }

    #[test]
    fn a_set_that_was_large_equals_one_that_was_not() {
        let (mut large, mut small) = (Distinct::default(), Distinct::default());
        large.extend([4, 1, 3, 2]);
        [2, 3, 4].iter().for_each(|value| large.remove(*value));
        small.extend([1]);
        assert_eq!(large, small);
    }
}
