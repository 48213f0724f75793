//! Random values and damaged bytes, for the tests of both formats.

/// A source of random numbers that are the same for a seed (splitmix64).
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    pub fn text(&mut self) -> String {
        const CHARS: [char; 8] = ['a', 'Z', '"', '\\', '\n', 'é', '😀', ' '];
        (0..self.below(12)).map(|_| CHARS[self.below(CHARS.len())]).collect()
    }

    /// Returns bytes with some of them changed, added or removed.
    pub fn damaged(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut damaged = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(damaged.len() + 1);
            match self.below(4) {
                0 => damaged.insert(at, self.next() as u8),
                1 => damaged.truncate(at),
                2 if at < damaged.len() => drop(damaged.remove(at)),
                _ if at < damaged.len() => damaged[at] ^= 1 << self.below(8),
                _ => damaged.extend([0xff; 9]),
            }
        }
        damaged
    }
}
