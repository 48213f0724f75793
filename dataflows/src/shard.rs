//! Hashes and shards of keys. They never change, because checkpoints and sinks store them.

use serde::{Deserialize, Serialize};

use crate::Partition;

/// The number of logical shards of a pipeline. Never changes, because progress is stored per shard.
pub const SHARDS: u32 = 64;

/// The version of [`KeyHash::of`], stored with all data that depends on it.
pub const KEY_HASH_VERSION: u32 = 1;

/// A 64-bit hash of a key, computed once when a record is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyHash(pub u64);

/// One of the [`SHARDS`] logical shards, given by the top bits of the [`KeyHash`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u32);

const SECRET: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x8cb9_2ba7_2f3d_8dd7];

/// Returns the XOR of the two halves of the 128-bit product, which mixes 128 bits of input into 64.
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl KeyHash {
    /// Hashes bytes by folded multiplication, eight at a time.
    ///
    /// The hash is the same on every machine and in every release: see [`KEY_HASH_VERSION`]. It does not resist an
    /// attacker who can choose keys.
    pub const fn of(bytes: &[u8]) -> KeyHash {
        KeyHash::of_seeded(bytes, 0)
    }

    /// Like [`of`](KeyHash::of), with a different hash function for each seed.
    pub const fn of_seeded(bytes: &[u8], seed: u64) -> KeyHash {
        let mut state = fold(seed ^ SECRET[0], SECRET[2]) ^ (bytes.len() as u64);
        let mut rest = bytes;
        while let Some((word, after)) = rest.split_first_chunk::<8>() {
            state = fold(state ^ u64::from_le_bytes(*word), SECRET[1]);
            rest = after;
        }
        state = fold(state ^ tail(bytes, rest), SECRET[2]);
        KeyHash(fold(state ^ SECRET[0], SECRET[1]))
    }

    /// Returns the shard of a key with this hash.
    pub const fn shard(self) -> ShardId {
        ShardId((self.0 >> 58) as u32)
    }
}

impl ShardId {
    /// Returns the shard of the outputs for records of a partition that have no key yet.
    pub const fn of_partition(Partition(partition): Partition) -> ShardId {
        ShardId(partition % SHARDS)
    }

    /// Returns the index of the worker, of `peers`, that owns this shard.
    pub const fn worker(self, peers: usize) -> usize {
        self.0 as usize % peers
    }
}

/// Returns the last bytes of `bytes`, which are `rest`, fewer than eight: little-endian, zero-extended. Reads them with as few
/// loads as possible, some bytes twice.
const fn tail(bytes: &[u8], rest: &[u8]) -> u64 {
    let len = rest.len();
    if len == 0 {
        return 0;
    }
    if let Some(last) = bytes.last_chunk::<8>() {
        return u64::from_le_bytes(*last) >> (64 - 8 * len);
    }
    if let (Some(first), Some(last)) = (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
        let (first, last) = (u32::from_le_bytes(*first) as u64, u32::from_le_bytes(*last) as u64);
        return first | (last << (8 * (len - 4)));
    }
    let (middle, last) = (len / 2, len - 1);
    rest[0] as u64 | ((rest[middle] as u64) << (8 * middle)) | ((rest[last] as u64) << (8 * last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes of version 1. If the test fails, the hash has changed, and stored shards are invalid.
    const GOLDEN: [u64; 6] = [
        0x272d_05de_8c2a_71a0,
        0xb09e_b6fd_fb23_04ea,
        0x1f69_fd87_6a33_a657,
        0xbdc5_8d07_3ad8_4e44,
        0x732c_050e_89b9_c6d7,
        0x69c6_0f45_454f_234f,
    ];

    #[test]
    fn hashes_never_change() {
        let hashes = [b"".as_slice(), b"u42", b"d42", b"uuser-000017", b"12345678", b"123456789abcdefgh"]
            .map(|key| KeyHash::of(key).0);
        assert_eq!(hashes, GOLDEN, "{hashes:#018x?}");
    }

    #[test]
    fn the_last_bytes_are_read_as_one_number() {
        let bytes: Vec<u8> = (0xf1..0xff).chain(1..10).collect();
        for len in 0..bytes.len() {
            let (bytes, at) = (&bytes[..len], len / 8 * 8);
            let one_by_one = bytes[at..].iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte));
            assert_eq!(tail(bytes, &bytes[at..]), one_by_one, "{len}");
        }
    }

    #[test]
    fn shards_are_even() {
        let mut counts = [0u32; SHARDS as usize];
        for user in 0..64_000 {
            counts[KeyHash::of(format!("uuser-{user}").as_bytes()).shard().0 as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
