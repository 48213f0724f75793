//! The form of events between processes: differences to the event before, and only the fields that an event has.
//!
//! ```text
//!   flags │ partition, Δoffset, Δevent time, Δtimestamp │ key hash │ lengths of the text │ spans │ other fields │ text
//!   u16     variable-length integers                      u64        variable-length       those that the flags name
//! ```
//!
//! It is never stored, so that it may change with each release: the processes of a cluster run the same program. A received
//! event is validated like a decoded one.

use std::sync::Arc;

use bincode::Options;
use headwater_dataflows::{Epoch, EventTime, KeyHash, Offset, Partition, Position};

use super::{Body, Event, Kind, RecordKey, Span};

/// An event with its epoch and its multiplicity.
pub(super) type Update<E> = (E, Epoch, isize);

const AMOUNT: u16 = 1;
const LOCATION: u16 = 1 << 1;
const MERCHANT: u16 = 1 << 2;
const RETRIES: u16 = 1 << 3;
/// The epoch of the event before, and an insertion.
const SAME_EPOCH: u16 = 1 << 4;
const USUAL_KEY: u16 = 1 << 5;
const OTHER_KEY: u16 = 1 << 6;
/// A kind beyond the standard ones.
const OTHER_KIND: u16 = 1 << 7;
/// The first of the flags of the spans in [`optional`].
const SPANS: u16 = 1 << 8;
/// The place of a standard kind.
const KIND_SHIFT: u32 = 14;

/// The kinds that the flags can say, in the order of their numbers.
pub(super) const KINDS: [Kind; 4] = [Kind::Transaction, Kind::UserActivity, Kind::IotSensor, Kind::ApiCall];

/// Returns the spans that an event may lack, apart from that of the merchant.
fn optional(body: &Body) -> [Span; 6] {
    [body.currency, body.merchant_category, body.ip_address, body.session_id, body.device_id, body.attributes]
}

/// The values that the next event is the difference to.
#[derive(Default)]
struct Previous {
    offset: i64,
    event_time: i64,
    epoch: u64,
}

/// Appends a batch; `extra` appends what an element has beyond the event.
pub fn write<E: AsRef<Event>>(batch: &[Update<E>], out: &mut Vec<u8>, extra: impl Fn(&E, &mut Vec<u8>)) {
    // What a usual event takes beside its text is less than 80 bytes.
    out.reserve(16 + batch.iter().map(|(element, ..)| element.as_ref().body.text.len() + 80).sum::<usize>());
    write_varint(batch.len() as u64, out);
    let mut previous = Previous::default();
    for (element, epoch, count) in batch {
        write_event(element.as_ref(), *epoch, *count, &mut previous, out);
        extra(element, out);
    }
}

fn write_event(event: &Event, epoch: Epoch, count: isize, previous: &mut Previous, out: &mut Vec<u8>) {
    let Event { position, event_time, key_hash, body } = event;
    let mut flags = 0;
    let mut set = |flag: u16, is_set: bool| flags |= if is_set { flag } else { 0 };
    set(AMOUNT, body.amount.is_some());
    set(LOCATION, body.location.is_some());
    set(MERCHANT, body.merchant_id != Span::ABSENT || body.merchant != 0);
    set(RETRIES, body.retries != 0);
    set(SAME_EPOCH, epoch.0 == previous.epoch && count == 1);
    set(USUAL_KEY, body.record_key == RecordKey::Usual);
    set(OTHER_KEY, matches!(body.record_key, RecordKey::Other(_)));
    for (at, span) in optional(body).into_iter().enumerate() {
        set(SPANS << at, span != Span::ABSENT);
    }
    match KINDS.iter().position(|kind| *kind == body.kind) {
        Some(kind) => flags |= (kind as u16) << KIND_SHIFT,
        None => flags |= OTHER_KIND,
    }
    out.extend_from_slice(&flags.to_le_bytes());
    write_varint(u64::from(position.partition.0), out);
    write_signed(position.offset.0.wrapping_sub(previous.offset), out);
    write_signed(event_time.0.wrapping_sub(previous.event_time), out);
    write_signed(body.timestamp.wrapping_sub(event_time.0), out);
    out.extend_from_slice(&key_hash.0.to_le_bytes());
    write_varint(body.text.len() as u64, out);
    write_varint(u64::from(body.original), out);
    write_span(body.key, out);
    write_span(body.id, out);
    if flags & AMOUNT != 0 {
        write_signed(body.amount.unwrap_or_default(), out);
    }
    if let Some((lat, lon)) = body.location {
        out.extend_from_slice(&lat.to_le_bytes());
        out.extend_from_slice(&lon.to_le_bytes());
    }
    if flags & MERCHANT != 0 {
        out.extend_from_slice(&body.merchant.to_le_bytes());
        write_span(body.merchant_id, out);
    }
    optional(body).into_iter().filter(|span| *span != Span::ABSENT).for_each(|span| write_span(span, out));
    if flags & RETRIES != 0 {
        write_varint(u64::from(body.retries), out);
    }
    if let RecordKey::Other(key) = &body.record_key {
        write_bytes(key, out);
    }
    if flags & OTHER_KIND != 0 {
        write_bytes(&bincode::options().serialize(&body.kind).expect("bytes can be written to memory"), out);
    }
    if flags & SAME_EPOCH == 0 {
        write_varint(epoch.0, out);
        write_signed(count as i64, out);
    }
    out.extend_from_slice(body.text.as_bytes());
    *previous = Previous { offset: position.offset.0, event_time: event_time.0, epoch: epoch.0 };
}

/// Reads the output of [`write`]; `extra` reads what an element has beyond the event. Bytes after the batch are ignored.
///
/// # Errors
/// If the bytes are anything else.
pub fn read<E>(
    bytes: &[u8],
    extra: impl Fn(Event, &mut Reader<'_>) -> Result<E, Malformed>,
) -> Result<Vec<Update<E>>, String> {
    let mut reader = Reader(bytes);
    let mut previous = Previous::default();
    let mut updates = || {
        let length = reader.varint()? as usize;
        // An event takes more than 16 bytes: a wrong length reserves no more than the message has.
        let mut updates = Vec::with_capacity(length.min(bytes.len() / 16));
        for _ in 0..length {
            let (event, epoch, count) = read_event(&mut reader, &mut previous)?;
            updates.push((extra(event, &mut reader)?, epoch, count));
        }
        Ok(updates)
    };
    updates().map_err(|Malformed(reason)| format!("an event from another process is malformed: {reason}"))
}

fn read_event(reader: &mut Reader<'_>, previous: &mut Previous) -> Result<Update<Event>, Malformed> {
    let flags = u16::from_le_bytes(reader.array()?);
    let has = |flag: u16| flags & flag != 0;
    let position = Position {
        partition: Partition(reader.u32()?),
        offset: Offset(previous.offset.wrapping_add(reader.signed()?)),
    };
    let event_time = previous.event_time.wrapping_add(reader.signed()?);
    let timestamp = event_time.wrapping_add(reader.signed()?);
    let key_hash = KeyHash(u64::from_le_bytes(reader.array()?));
    let (length, original) = (reader.u32()?, reader.u32()?);
    let (key, id) = (reader.span()?, reader.span()?);
    let amount = if has(AMOUNT) { Some(reader.signed()?) } else { None };
    let location = match has(LOCATION) {
        true => Some((f64::from_le_bytes(reader.array()?), f64::from_le_bytes(reader.array()?))),
        false => None,
    };
    let (merchant, merchant_id) = match has(MERCHANT) {
        true => (u64::from_le_bytes(reader.array()?), reader.span()?),
        false => (0, Span::ABSENT),
    };
    let mut spans = [Span::ABSENT; 6];
    for (at, span) in spans.iter_mut().enumerate() {
        if has(SPANS << at) {
            *span = reader.span()?;
        }
    }
    let [currency, merchant_category, ip_address, session_id, device_id, attributes] = spans;
    let retries = if has(RETRIES) { reader.u32()? } else { 0 };
    let record_key = match (has(USUAL_KEY), has(OTHER_KEY)) {
        (true, _) => RecordKey::Usual,
        (_, true) => RecordKey::Other(reader.bytes()?.into()),
        _ => RecordKey::Absent,
    };
    let kind = match has(OTHER_KIND) {
        true => bincode::options().deserialize(reader.bytes()?).map_err(|_| Malformed("its kind"))?,
        false => KINDS[usize::from(flags >> KIND_SHIFT)].clone(),
    };
    let (epoch, count) = match has(SAME_EPOCH) {
        true => (previous.epoch, 1),
        false => (reader.varint()?, reader.signed()? as isize),
    };
    let text = std::str::from_utf8(reader.take(length as usize)?).map_err(|_| Malformed("its text"))?.into();
    *previous = Previous { offset: position.offset.0, event_time, epoch };
    let body = Body {
        text,
        key,
        amount,
        merchant,
        merchant_id,
        location,
        id,
        original,
        retries,
        timestamp,
        record_key,
        currency,
        merchant_category,
        ip_address,
        session_id,
        device_id,
        attributes,
        kind,
    };
    if !body.is_valid() {
        return Err(Malformed("a span lies beyond its text"));
    }
    let event = Event { position, event_time: EventTime(event_time), key_hash, body: Arc::new(body) };
    Ok((event, Epoch(epoch), count))
}

/// Appends an integer with 7 bits in each byte, the lowest first.
pub fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed integer, small if its magnitude is small.
fn write_signed(value: i64, out: &mut Vec<u8>) {
    write_varint(((value << 1) ^ (value >> 63)) as u64, out);
}

fn write_span(span: Span, out: &mut Vec<u8>) {
    write_varint(u64::from(span.start), out);
    write_varint(u64::from(span.len), out);
}

/// Appends bytes after their number.
pub fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// The reason why bytes are not a batch.
#[derive(Debug)]
pub struct Malformed(pub &'static str);

/// The bytes that are not yet read.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[cfg(feature = "abomonation")]
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// Reads bytes of a number that is known from elsewhere.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Reads bytes of a known number.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// Reads bytes after their number.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.varint()?.try_into().map_err(|_| Malformed("a number is too large"))
    }

    fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn span(&mut self) -> Result<Span, Malformed> {
        Ok(Span { start: self.u32()?, len: self.u32()? })
    }
}
