//! Code shared by the model and the simulation: reproducible random numbers, and guards that can be removed.

use std::collections::BTreeMap;
use std::ops::Range;

/// The invariant that was violated.
pub type Violation = &'static str;

/// A small random number generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// Returns a pseudo-random number, which is the same for the same `z`.
    pub fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns the next number below `bound`, which must be above 0.
    pub fn below<N: TryInto<u64> + TryFrom<u64>>(&mut self, bound: N) -> N {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let below = bound.try_into().ok().and_then(|bound| N::try_from(Random::mix(self.0) % bound).ok());
        below.expect("the bound is above 0")
    }

    /// Returns true once in `n` times.
    pub fn one_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }
}

/// Defines `Guards` with a switch for each guard, `ALL` with all of them on, and for each guard a test that the named
/// invariant breaks without it.
macro_rules! guards {
    ($($guard:ident: $broken:literal),* $(,)?) => {
        /// The guards that maintain the invariants.
        #[derive(Clone, Debug)]
        struct Guards {
            $($guard: bool,)*
        }

        const ALL: Guards = Guards { $($guard: true,)* };

        $(
            #[test]
            fn $guard() {
                breaks(&Guards { $guard: false, ..ALL }, $broken);
            }
        )*
    };
}
pub(super) use guards;

/// Runs one seed after the other until this invariant breaks.
///
/// # Panics
/// If the invariant does not break.
pub fn breaks_in(seeds: Range<u64>, expected: Violation, mut run: impl FnMut(u64) -> Result<(), Violation>) {
    let mut broken = BTreeMap::new();
    for seed in seeds {
        if let Err(violation) = run(Random::mix(seed)) {
            *broken.entry(violation).or_insert(0) += 1;
            if violation == expected {
                return;
            }
        }
    }
    panic!("{expected:?} should break without the guard; violations: {broken:?}");
}
