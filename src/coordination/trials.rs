//! What the model and the simulation share: random numbers that a seed repeats, and guards that can be taken out.

use std::collections::BTreeMap;
use std::ops::Range;

/// Which promise was broken.
pub type Violation = &'static str;

/// A small generator of random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// A number that looks random, and is the same for the same `z`.
    pub fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `bound`, which is above 0.
    pub fn below<N: TryInto<u64> + TryFrom<u64>>(&mut self, bound: N) -> N {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let below = bound.try_into().ok().and_then(|bound| N::try_from(Random::mix(self.0) % bound).ok());
        below.expect("the bound is above 0")
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }
}

/// Makes `Guards`, a switch for each, `ALL` of them, and for each the test that without it this promise `breaks`.
macro_rules! guards {
    ($($guard:ident: $broken:literal),* $(,)?) => {
        /// What holds the promises up.
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

/// Runs one seed after the other until this promise breaks.
///
/// # Panics
/// If it does not.
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
    panic!("without the guard {expected:?} was expected, and these broke: {broken:?}");
}
