//! The form of events between processes with the feature `abomonation`: copies of memory.
//!
//! ```text
//!   u64: length │ u64: XXH3 of what follows │ lists' headers │ an array of `Flat` │ text of all events │ rest
//! ```
//!
//! `abomonation` trusts the bytes it reads, and its method (a reference to a vector whose pointer is mended later) is undefined behaviour by
//! the rules of Rust (RUSTSEC-2021-0120). So the feature is off unless it is asked for, [`read`] looks at the length and the hash
//! first, copies to aligned memory, and reads only integers and bytes, of which every value is valid; text and spans are
//! checked afterwards, as in [`super::packed`]. Only processes of the same program talk to each other (`cluster::identity`).
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::sync::Arc;

use abomonation::{Abomonation, decode, encode, measure};
use bincode::Options;
use headwater_dataflows::{Epoch, EventTime, KeyHash, Offset, Partition, Position};
use xxhash_rust::xxh3::xxh3_64;

use super::packed::{KINDS, Malformed, Reader, Update, write_bytes};
use super::{Body, Event, RecordKey, Span};

const AMOUNT: u32 = 1;
const LOCATION: u32 = 1 << 1;
const USUAL_KEY: u32 = 1 << 2;
const OTHER_KEY: u32 = 1 << 3;
/// A kind beyond the standard ones.
const OTHER_KIND: u32 = 1 << 4;
/// The place of a standard kind.
const KIND_SHIFT: u32 = 5;

/// The bytes before the batch: its length, and its hash.
const HEADER: usize = 16;

/// The fields of an event beside its text, as integers without space between them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Flat {
    offset: i64,
    event_time: i64,
    timestamp: i64,
    key_hash: u64,
    merchant: u64,
    amount: i64,
    /// The bits of latitude and longitude.
    location: [u64; 2],
    epoch: u64,
    count: i64,
    partition: u32,
    /// The length of the text.
    text: u32,
    original: u32,
    retries: u32,
    flags: u32,
    /// Key, id, merchant, currency, category of the merchant, IP address, session, device, attributes: start and length of each.
    spans: [u32; 18],
    unused: u32,
}

const _: () = assert!(size_of::<Flat>() == 10 * 8 + 24 * 4, "space between integers would be sent as it is");

/// The lists that are sent.
#[derive(Default)]
struct Batch {
    events: Vec<Flat>,
    text: Vec<u8>,
    /// Parts that few events have: other kinds and record keys, and what an element has beyond the event.
    rest: Vec<u8>,
}

impl Abomonation for Flat {}

impl Abomonation for Batch {
    unsafe fn entomb<W: Write>(&self, out: &mut W) -> io::Result<()> {
        // SAFETY: as the caller's; these are all the lists.
        unsafe {
            self.events.entomb(out)?;
            self.text.entomb(out)?;
            self.rest.entomb(out)
        }
    }

    unsafe fn exhume<'b>(&mut self, bytes: &'b mut [u8]) -> Option<&'b mut [u8]> {
        // SAFETY: as the caller's. The events come first, so that they are aligned as the batch is.
        unsafe {
            let bytes = self.events.exhume(bytes)?;
            let bytes = self.text.exhume(bytes)?;
            self.rest.exhume(bytes)
        }
    }

    fn extent(&self) -> usize {
        self.events.extent() + self.text.extent() + self.rest.extent()
    }
}

/// Appends a batch; `extra` appends what an element has beyond the event.
pub fn write<E: AsRef<Event>>(batch: &[Update<E>], out: &mut Vec<u8>, extra: impl Fn(&E, &mut Vec<u8>)) {
    let length = batch.iter().map(|(element, ..)| element.as_ref().body.text.len()).sum();
    let mut lists =
        Batch { events: Vec::with_capacity(batch.len()), text: Vec::with_capacity(length), rest: Vec::new() };
    for (element, epoch, count) in batch {
        let event = element.as_ref();
        lists.events.push(flat(event, *epoch, *count));
        lists.text.extend_from_slice(event.body.text.as_bytes());
        if let RecordKey::Other(key) = &event.body.record_key {
            write_bytes(key, &mut lists.rest);
        }
        if !KINDS.contains(&event.body.kind) {
            let kind =
                bincode::options().serialize(&event.body.kind).expect("bytes can be written to memory");
            write_bytes(&kind, &mut lists.rest);
        }
        extra(element, &mut lists.rest);
    }
    let start = out.len();
    out.reserve(HEADER + measure(&lists));
    out.extend_from_slice(&[0; HEADER]);
    // SAFETY: the lists have integers only, with no space between them.
    unsafe { encode(&lists, out) }.expect("bytes can be written to memory");
    let (header, body) = out[start..].split_at_mut(HEADER);
    header[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
    header[8..].copy_from_slice(&xxh3_64(body).to_le_bytes());
}

fn flat(event: &Event, epoch: Epoch, count: isize) -> Flat {
    let Event { position, event_time, key_hash, body } = event;
    let kind = KINDS.iter().position(|kind| *kind == body.kind);
    let mut flags = kind.map_or(OTHER_KIND, |kind| (kind as u32) << KIND_SHIFT);
    let mut set = |flag: u32, is_set: bool| flags |= if is_set { flag } else { 0 };
    set(AMOUNT, body.amount.is_some());
    set(LOCATION, body.location.is_some());
    set(USUAL_KEY, body.record_key == RecordKey::Usual);
    set(OTHER_KEY, matches!(body.record_key, RecordKey::Other(_)));
    let Body { key, id, merchant_id, currency, merchant_category, ip_address, session_id, .. } = **body;
    let Body { device_id, attributes, .. } = **body;
    let mut spans = [0; 18];
    let all =
        [key, id, merchant_id, currency, merchant_category, ip_address, session_id, device_id, attributes];
    for (pair, span) in spans.chunks_exact_mut(2).zip(all) {
        pair.copy_from_slice(&[span.start, span.len]);
    }
    let (lat, lon) = body.location.unwrap_or_default();
    Flat {
        offset: position.offset.0,
        event_time: event_time.0,
        timestamp: body.timestamp,
        key_hash: key_hash.0,
        merchant: body.merchant,
        amount: body.amount.unwrap_or_default(),
        location: [lat.to_bits(), lon.to_bits()],
        epoch: epoch.0,
        count: count as i64,
        partition: position.partition.0,
        text: body.text.len() as u32,
        original: body.original,
        retries: body.retries,
        flags,
        spans,
        unused: 0,
    }
}

/// Reads the output of [`write`]; `extra` reads what an element has beyond the event. Bytes after the batch are ignored.
///
/// # Errors
/// If the bytes are anything else.
pub fn read<E>(
    bytes: &[u8],
    extra: impl Fn(Event, &mut Reader<'_>) -> Result<E, Malformed>,
) -> Result<Vec<Update<E>>, String> {
    read_batch(bytes, extra)
        .map_err(|Malformed(reason)| format!("an event from another process is malformed: {reason}"))
}

fn read_batch<E>(
    bytes: &[u8],
    extra: impl Fn(Event, &mut Reader<'_>) -> Result<E, Malformed>,
) -> Result<Vec<Update<E>>, Malformed> {
    let mut header = Reader::new(bytes);
    let (length, hash) = (u64::from_le_bytes(header.array()?), u64::from_le_bytes(header.array()?));
    let length = usize::try_from(length).map_err(|_| Malformed("its length"))?;
    let body = header.take(length)?;
    if xxh3_64(body) != hash {
        return Err(Malformed("its checksum does not match"));
    }
    let mut words = vec![0_u64; length.div_ceil(8)];
    // SAFETY: the memory of the words is that of as many bytes or more, and the words are not used otherwise.
    let aligned = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), length) };
    aligned.copy_from_slice(body);
    // SAFETY: the hash says that these are bytes of `encode` of the same program; they are aligned, and outlive the batch.
    let Some((batch, [])) = (unsafe { decode::<Batch>(aligned) }) else {
        return Err(Malformed("its length"));
    };
    let (mut text, mut rest) = (Reader::new(&batch.text), Reader::new(&batch.rest));
    let one = |flat: &Flat| {
        let event = event(flat, &mut text, &mut rest)?;
        Ok((extra(event, &mut rest)?, Epoch(flat.epoch), flat.count as isize))
    };
    batch.events.iter().map(one).collect()
}

fn event(flat: &Flat, text: &mut Reader<'_>, rest: &mut Reader<'_>) -> Result<Event, Malformed> {
    let has = |flag: u32| flat.flags & flag != 0;
    let record_key = match (has(USUAL_KEY), has(OTHER_KEY)) {
        (true, _) => RecordKey::Usual,
        (_, true) => RecordKey::Other(rest.bytes()?.into()),
        _ => RecordKey::Absent,
    };
    let kind = match has(OTHER_KIND) {
        true => bincode::options().deserialize(rest.bytes()?).map_err(|_| Malformed("its kind"))?,
        false => KINDS.get((flat.flags >> KIND_SHIFT) as usize).cloned().ok_or(Malformed("its kind"))?,
    };
    let text = std::str::from_utf8(text.take(flat.text as usize)?).map_err(|_| Malformed("its text"))?;
    let span = |at: usize| Span { start: flat.spans[2 * at], len: flat.spans[2 * at + 1] };
    let [lat, lon] = flat.location.map(f64::from_bits);
    let body = Body {
        text: text.into(),
        key: span(0),
        amount: has(AMOUNT).then_some(flat.amount),
        merchant: flat.merchant,
        merchant_id: span(2),
        location: has(LOCATION).then_some((lat, lon)),
        id: span(1),
        original: flat.original,
        retries: flat.retries,
        timestamp: flat.timestamp,
        record_key,
        currency: span(3),
        merchant_category: span(4),
        ip_address: span(5),
        session_id: span(6),
        device_id: span(7),
        attributes: span(8),
        kind,
    };
    if !body.is_valid() {
        return Err(Malformed("a span lies beyond its text"));
    }
    let position = Position { partition: Partition(flat.partition), offset: Offset(flat.offset) };
    let (event_time, key_hash) = (EventTime(flat.event_time), KeyHash(flat.key_hash));
    Ok(Event { position, event_time, key_hash, body: Arc::new(body) })
}
