//! The byte format of manifests in the ledger.
//!
//! A manifest consists of the version, the epoch, the generation, the wall time, the watermark, the number of keys,
//! and then positions, operators and parts, each list preceded by its length. In version 2, positions have pushing
//! times, candidates and timestamps, and the parts are followed by the un-final bytes and by the time since which all
//! partitions are idle. Version 3 adds the changes in force. The last eight bytes are the first eight bytes of the SHA-256 of everything before them.
//! Numbers are encoded as in rounds; an optional value is preceded by a 1, or is a 0 if it is absent.

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, SHARDS, ShardId, Since};
use headwater_sinks::{Generation, LedgerId};
use sha2::{Digest, Sha256};

use super::format::{
    CHANGES_VERSION, Damaged, Reader, VERSION, decode_change, encode_change, signed, text, unsigned,
};
use crate::coordination::ingest::PushTime;
use crate::coordination::{
    AllIdle, InForce, Manifest, Operator, Part, PartKind, PartName, Position, Versions, are_chains,
};

/// The number of bytes of the hash that are stored.
const CHECKSUM_BYTES: usize = 8;

const BASE: u8 = 0;
const DELTA: u8 = 1;
const PUSHING_TIME: u8 = 1;
const IDLE: u8 = 2;
const CANDIDATE: u8 = 4;
const TIMESTAMP: u8 = 8;

/// Encodes a manifest.
pub fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut out = vec![VERSION];
    unsigned(&mut out, manifest.epoch.0);
    unsigned(&mut out, manifest.generation.0);
    signed(&mut out, manifest.wall_ms);
    signed(&mut out, manifest.watermark.0);
    out.push(u8::from(manifest.keys.is_some()));
    if let Some(keys) = manifest.keys {
        unsigned(&mut out, keys);
    }
    unsigned(&mut out, manifest.positions.len() as u64);
    for position in &manifest.positions {
        signed(&mut out, position.next.0);
        let PushTime { greatest, candidate } = position.push;
        let times = [
            (PUSHING_TIME, greatest.map(|time| time.0)),
            (CANDIDATE, candidate.map(|time| time.0)),
            (TIMESTAMP, position.timestamp_ms),
        ];
        let idle = if position.idle { IDLE } else { 0 };
        let flags =
            times.iter().filter(|(_, time)| time.is_some()).fold(idle, |flags, (flag, _)| flags | flag);
        out.push(flags);
        times.iter().filter_map(|(_, time)| *time).for_each(|time| signed(&mut out, time));
    }
    unsigned(&mut out, manifest.operators.len() as u64);
    for operator in &manifest.operators {
        text(&mut out, &operator.name);
        unsigned(&mut out, operator.version.into());
    }
    unsigned(&mut out, manifest.parts.len() as u64);
    for Part { name, hash, bytes } in &manifest.parts {
        text(&mut out, &name.ledger_id.0);
        unsigned(&mut out, name.generation.0);
        unsigned(&mut out, name.epoch.0);
        unsigned(&mut out, name.shard.0.into());
        out.push(match name.kind {
            PartKind::Base => BASE,
            PartKind::Delta => DELTA,
        });
        out.extend_from_slice(hash);
        unsigned(&mut out, *bytes);
    }
    unsigned(&mut out, manifest.unfinal.len() as u64);
    for (partition, through, bytes) in &manifest.unfinal {
        unsigned(&mut out, partition.0.into());
        signed(&mut out, through.0);
        unsigned(&mut out, *bytes);
    }
    out.push(u8::from(manifest.all_idle.is_some()));
    if let Some(AllIdle { since_ms, lag_ms }) = manifest.all_idle {
        signed(&mut out, since_ms);
        signed(&mut out, lag_ms);
    }
    let in_force = manifest.in_force.as_slice();
    unsigned(&mut out, in_force.len() as u64);
    for InForce { since: Since { epoch, ends, last_time }, change } in in_force {
        unsigned(&mut out, epoch.0);
        unsigned(&mut out, ends.len() as u64);
        ends.iter().for_each(|end| signed(&mut out, end.0));
        signed(&mut out, last_time.0);
        encode_change(&mut out, change);
    }
    let checksum = checksum(&out);
    out.extend_from_slice(&checksum);
    out
}

/// Decodes a manifest.
///
/// # Errors
/// If the bytes are not a complete and unchanged manifest of a known version.
pub fn decode(bytes: &[u8]) -> Result<Manifest, Damaged> {
    // The version is checked first: another version may have its checksum elsewhere.
    Reader::new(bytes)?;
    let Some((body, end)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(Damaged::Malformed(bytes.len()));
    };
    if *end != checksum(body) {
        return Err(Damaged::WrongChecksum);
    }
    let mut reader = Reader::new(body)?;
    let epoch = Epoch(reader.unsigned()?);
    let generation = Generation(reader.unsigned()?);
    let wall_ms = reader.signed()?;
    let watermark = EventTime(reader.signed()?);
    let keys = match reader.byte()? {
        0 => None,
        1 => Some(reader.unsigned()?),
        _ => return Err(reader.malformed()),
    };
    let positions = read_list(&mut reader, position)?;
    let operators = read_list(&mut reader, |reader| {
        let name = reader.text()?.to_owned();
        let version = u32::try_from(reader.unsigned()?).map_err(|_| reader.malformed())?;
        Ok(Operator { name, version })
    })?;
    let parts = read_list(&mut reader, part)?;
    if !are_chains(&parts) || parts.iter().any(|part| part.name.epoch > epoch) {
        return Err(reader.malformed());
    }
    let (mut unfinal, mut all_idle) = (Vec::new(), None);
    if reader.version >= 2 {
        unfinal = read_list(&mut reader, |reader| {
            let partition = u32::try_from(reader.unsigned()?).map_err(|_| reader.malformed())?;
            Ok((Partition(partition), EventTime(reader.signed()?), reader.unsigned()?))
        })?;
        all_idle = match reader.byte()? {
            0 => None,
            1 => Some(AllIdle { since_ms: reader.signed()?, lag_ms: reader.signed()? }),
            _ => return Err(reader.malformed()),
        };
    }
    let mut in_force = Vec::new();
    if reader.version >= CHANGES_VERSION {
        in_force = read_list(&mut reader, |reader| {
            let epoch = Epoch(reader.unsigned()?);
            let ends = read_list(reader, |reader| Ok(Offset(reader.signed()?)))?;
            let last_time = EventTime(reader.signed()?);
            Ok(InForce { since: Since { epoch, ends, last_time }, change: decode_change(reader)? })
        })?;
    }
    reader.end()?;
    Ok(Manifest {
        epoch,
        generation,
        wall_ms,
        watermark,
        positions,
        unfinal,
        all_idle,
        in_force: Versions::of(in_force),
        operators,
        keys,
        parts,
    })
}

fn position(reader: &mut Reader<'_>) -> Result<Position, Damaged> {
    let next = Offset(reader.signed()?);
    let flags = reader.byte()?;
    let known = PUSHING_TIME | IDLE;
    let known = if reader.version < 2 { known } else { known | CANDIDATE | TIMESTAMP };
    if flags & !known != 0 {
        return Err(reader.malformed());
    }
    let mut optional = |flag: u8| (flags & flag != 0).then(|| reader.signed()).transpose();
    let greatest = optional(PUSHING_TIME)?.map(EventTime);
    let candidate = optional(CANDIDATE)?.map(EventTime);
    let timestamp_ms = optional(TIMESTAMP)?;
    Ok(Position { next, push: PushTime { greatest, candidate }, timestamp_ms, idle: flags & IDLE != 0 })
}

fn part(reader: &mut Reader<'_>) -> Result<Part, Damaged> {
    let ledger_id = LedgerId(reader.text()?.to_owned());
    let generation = Generation(reader.unsigned()?);
    let epoch = Epoch(reader.unsigned()?);
    let shard = reader.unsigned()?;
    let shard = u32::try_from(shard).ok().filter(|&shard| shard < SHARDS).ok_or(reader.malformed())?;
    let kind = match reader.byte()? {
        BASE => PartKind::Base,
        DELTA => PartKind::Delta,
        _ => return Err(reader.malformed()),
    };
    let name = PartName { ledger_id, generation, epoch, shard: ShardId(shard), kind };
    let hash = *reader.chunk::<32>()?;
    Ok(Part { name, hash, bytes: reader.unsigned()? })
}

/// Decodes a list that is preceded by its length. It reserves no memory in advance, because the length may be wrong.
fn read_list<'a, T>(
    reader: &mut Reader<'a>,
    mut one: impl FnMut(&mut Reader<'a>) -> Result<T, Damaged>,
) -> Result<Vec<T>, Damaged> {
    let count = reader.unsigned()?;
    (0..count).map(|_| one(reader)).collect()
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Sha256::digest(bytes);
    std::array::from_fn(|at| hash[at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::coordination::{Change, ListVersion};

    fn part(epoch: u64, shard: u32, kind: PartKind) -> Part {
        let (ledger_id, generation) = (LedgerId("a".into()), Generation(3));
        let name = PartName { ledger_id, generation, epoch: Epoch(epoch), shard: ShardId(shard), kind };
        Part { name, hash: [0xab; 32], bytes: 200 }
    }

    fn manifest() -> Manifest {
        let position = |greatest: Option<EventTime>| Position {
            next: Offset(300),
            push: PushTime { greatest, candidate: None },
            timestamp_ms: None,
            idle: greatest.is_none(),
        };
        Manifest {
            epoch: Epoch(130),
            generation: Generation(4),
            wall_ms: 1_760_000_000_000,
            watermark: EventTime(-2),
            positions: vec![position(Some(EventTime(64))), position(None)],
            unfinal: Vec::new(),
            all_idle: None,
            in_force: Versions::default(),
            operators: vec![Operator { name: "scan".into(), version: 2 }],
            keys: Some(5),
            parts: vec![
                part(100, 0, PartKind::Base),
                part(130, 0, PartKind::Delta),
                part(130, 63, PartKind::Base),
            ],
        }
    }

    /// The encoding of each version, which must never change.
    #[test]
    fn golden_bytes() {
        let parts = {
            let hash: &[u8] = &[0xab; 32];
            let parts = [
                &[3, 1, b'a', 3, 100, 0, 0][..],
                hash,
                &[200, 1, 1, b'a', 3, 130, 1, 0, 1],
                hash,
                &[200, 1, 1, b'a', 3, 130, 1, 63, 0],
                hash,
                &[200, 1],
            ];
            parts.concat()
        };
        let first = [
            // Version, epoch, generation, wall time, watermark, keys.
            &[1, 130, 1, 4, 128, 128, 230, 130, 185, 102, 3, 1, 5][..],
            // Two positions, one operator.
            &[2, 216, 4, 1, 128, 1, 216, 4, 2, 1, 4, b's', b'c', b'a', b'n', 2],
            &parts,
            &[0x2f, 0x6c, 0xdc, 0xce, 0x9a, 0x84, 0x56, 0x99],
        ]
        .concat();
        assert_eq!(decode(&first), Ok(manifest()));

        let mut manifest = manifest();
        manifest.positions[0].push.candidate = Some(EventTime(-1));
        manifest.positions[0].timestamp_ms = Some(5);
        manifest.unfinal = vec![(Partition(1), EventTime(64), 300)];
        manifest.all_idle = Some(AllIdle { since_ms: 1, lag_ms: -1 });
        let second = [
            &[2, 130, 1, 4, 128, 128, 230, 130, 185, 102, 3, 1, 5][..],
            // Two positions, the first with pushing time, candidate and timestamp; one operator.
            &[2, 216, 4, 13, 128, 1, 1, 10, 216, 4, 2, 1, 4, b's', b'c', b'a', b'n', 2],
            &parts,
            // Un-final bytes of one partition, and the time since which all partitions are idle.
            &[1, 1, 128, 1, 172, 2, 1, 2, 1],
        ]
        .concat();
        let checksum = [0x59, 0x77, 0xcd, 0xce, 0x65, 0x41, 0x5e, 0x39];
        assert_eq!(decode(&[&second[..], &checksum].concat()), Ok(manifest.clone()));

        let since = Since { epoch: Epoch(129), ends: vec![Offset(64)], last_time: EventTime(-1) };
        let list = ListVersion { name: "c".into(), hash: [0xab; 32], bytes: 200 };
        let change = Change { rules: Some("ab".into()), lists: vec![list], pasts: None };
        manifest.in_force = Versions::of(vec![InForce { since, change }]);
        let third = [
            &[3],
            &second[1..],
            // One change: its beginning, the rules, and one list.
            &[1, 129, 1, 1, 128, 1, 1, 1, 2, b'a', b'b', 1, 1, b'c'],
            &[0xab; 32],
            &[200, 1],
        ]
        .concat();
        let encoded = encode(&manifest);
        assert_eq!(encoded[..encoded.len() - CHECKSUM_BYTES], third);
        assert_eq!(decode(&encoded), Ok(manifest));
    }

    #[test]
    fn changed_and_truncated_bytes_are_detected() {
        let bytes = encode(&manifest());
        for at in 0..bytes.len() {
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let expected = if at == 0 { Damaged::Version(VERSION ^ 0x10) } else { Damaged::WrongChecksum };
            assert_eq!(decode(&changed), Err(expected), "changed at {at}");
        }
    }

    #[test]
    fn invalid_parts_are_rejected() {
        for parts in [
            vec![part(130, 0, PartKind::Delta)],
            vec![part(131, 0, PartKind::Base)],
            vec![part(100, 1, PartKind::Base), part(100, 0, PartKind::Base)],
        ] {
            let bytes = encode(&Manifest { parts, ..manifest() });
            assert!(matches!(decode(&bytes), Err(Damaged::Malformed(_))));
        }
    }

    fn in_force_of(
        (epoch, ends, last, rules, lists): (u64, Vec<i64>, i64, Option<String>, Vec<String>),
    ) -> InForce {
        let ends = ends.into_iter().map(Offset).collect();
        let since = Since { epoch: Epoch(epoch), ends, last_time: EventTime(last) };
        let list = |name| ListVersion { name, hash: [0xcd; 32], bytes: 7 };
        InForce { since, change: Change { rules, lists: lists.into_iter().map(list).collect(), pasts: None } }
    }

    proptest! {
        #[test]
        fn manifests_round_trip(
            (epoch, generation, wall_ms, watermark) in any::<(u64, u64, i64, i64)>(),
            keys in any::<Option<u64>>(),
            positions in prop::collection::vec(any::<(i64, [Option<i64>; 3], bool)>(), 0..4),
            unfinal in prop::collection::vec(any::<(u32, i64, u64)>(), 0..4),
            all_idle in any::<Option<(i64, i64)>>(),
            in_force in prop::collection::vec(any::<(u64, Vec<i64>, i64, Option<String>, Vec<String>)>(), 0..3),
            operators in prop::collection::vec((".{0,9}", any::<u32>()), 0..4),
            shards in prop::collection::btree_map(0..SHARDS, (0u64..9, any::<u64>(), any::<[u8; 32]>()), 0..5),
        ) {
            let parts = shards.into_iter().flat_map(|(shard, (deltas, bytes, hash))| {
                (0..=deltas.min(epoch)).map(move |at| {
                    let kind = if at == 0 { PartKind::Base } else { PartKind::Delta };
                    Part { hash, bytes, ..part(at, shard, kind) }
                })
            });
            let manifest = Manifest {
                epoch: Epoch(epoch),
                generation: Generation(generation),
                wall_ms,
                watermark: EventTime(watermark),
                positions: positions
                    .into_iter()
                    .map(|(next, [greatest, candidate, timestamp_ms], idle)| Position {
                        next: Offset(next),
                        push: PushTime {
                            greatest: greatest.map(EventTime),
                            candidate: candidate.map(EventTime),
                        },
                        timestamp_ms,
                        idle,
                    })
                    .collect(),
                unfinal: unfinal.into_iter().map(|(p, time, bytes)| (Partition(p), EventTime(time), bytes)).collect(),
                all_idle: all_idle.map(|(since_ms, lag_ms)| AllIdle { since_ms, lag_ms }),
                operators: operators.into_iter().map(|(name, version)| Operator { name, version }).collect(),
                in_force: Versions::of(in_force.into_iter().map(in_force_of).collect()),
                keys,
                parts: parts.collect(),
            };
            prop_assert_eq!(decode(&encode(&manifest)), Ok(manifest));
        }

        #[test]
        fn any_bytes_are_decoded_or_rejected(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = vec![VERSION];
            bytes.extend(body);
            let _ = decode(&bytes);
            bytes.extend(checksum(&bytes));
            let _ = decode(&bytes);
        }
    }
}
