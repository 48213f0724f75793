//! Records as a function of seed, partition and offset.

use super::episode::{Blocks, EpisodeEvent, RULES, STRAGGLER_MS};
use super::settings::GeneratorSettings;
use crate::json::{write_int, write_micros, write_string, write_time};

/// A generator of records, which writes them into reusable buffers.
pub struct RecordMaker {
    settings: GeneratorSettings,
    blocks: Blocks,
    /// The record's key: the name of its event's key.
    pub key: Vec<u8>,
    /// The record's value.
    pub value: Vec<u8>,
}

/// The kind of a background record, drawn with the rates of the settings.
enum RecordKind {
    Plain,
    Disorder,
    Late,
    Duplicate,
    Malformed,
    Invalid,
}

/// Mixes the bits of its input: the finaliser of splitmix64 (G. Steele et al., "Fast Splittable Pseudorandom Number
/// Generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A splitmix64 random number generator with its state.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

impl RecordMaker {
    /// Creates a generator of records. The settings must be valid.
    pub fn new(settings: GeneratorSettings) -> RecordMaker {
        let blocks = Blocks::new(&settings);
        RecordMaker { settings, blocks, key: Vec::with_capacity(64), value: Vec::with_capacity(512) }
    }

    fn rng(&self, partition: u32, offset: u64, stream: u64) -> SplitMix64 {
        SplitMix64(mix(self.settings.seed ^ mix(offset ^ (u64::from(partition) << 48) ^ mix(stream))))
    }

    fn draw_kind(&self, partition: u32, offset: u64) -> RecordKind {
        let share = self.rng(partition, offset, 1).next_u64() as f64 / u64::MAX as f64;
        let s = &self.settings;
        let mut upto = 0.0;
        for (rate, kind) in [
            (s.disorder, RecordKind::Disorder),
            (s.late, RecordKind::Late),
            (s.duplicates, RecordKind::Duplicate),
            (s.malformed, RecordKind::Malformed),
            (s.invalid, RecordKind::Invalid),
        ] {
            upto += rate;
            if share < upto {
                return kind;
            }
        }
        RecordKind::Plain
    }

    /// Generates the record at an offset. Returns its timestamp, in milliseconds since 1970: the event time before any
    /// disorder. `now` replaces that time.
    pub fn make(&mut self, partition: u32, offset: u64, now: Option<i64>) -> i64 {
        self.key.clear();
        self.value.clear();
        let time = now.unwrap_or_else(|| self.settings.time(partition, offset));
        if let Some(event) = self.blocks.event_at(partition, offset).filter(|_| self.settings.inject) {
            self.write_episode(partition, offset, event, time);
            return time;
        }
        if now.is_some()
            && self.settings.stragglers
            && let Some(event) = self.blocks.straggler_at(partition, offset)
        {
            self.write_episode(partition, offset, event, time - STRAGGLER_MS);
            return time;
        }
        let mut rng = self.rng(partition, offset, 2);
        match self.draw_kind(partition, offset) {
            RecordKind::Plain => self.write_background(partition, offset, time),
            RecordKind::Disorder => self.write_background(partition, offset, time - rng.below(4000) as i64),
            RecordKind::Late => {
                self.write_background(partition, offset, time - 120_000 - rng.below(480_000) as i64)
            }
            RecordKind::Duplicate => {
                let back = offset.saturating_sub(1 + rng.below(200));
                let then =
                    time - (self.settings.time(partition, offset) - self.settings.time(partition, back));
                self.write_background(partition, back, then);
            }
            RecordKind::Malformed => {
                self.write_background(partition, offset, time);
                match rng.below(4) {
                    0 => self.value.truncate(self.value.len() / 2),
                    1 => self.value[0] = b'[',
                    2 => self.value.push(b'}'),
                    _ => self.value[1] = 0xff,
                }
            }
            RecordKind::Invalid => {
                self.write_background(partition, offset, time);
                // An unknown type, an empty id, or a time before 1970.
                let invalid: &[u8] = match rng.below(3) {
                    0 => br#"{"event_type":"refund","#,
                    1 => br#"{"event_type":"api_call","event_id":"","#,
                    _ => br#"{"event_type":"api_call","event_id":"x","event_time":-1,"#,
                };
                self.value.clear();
                self.value.extend_from_slice(invalid);
                self.value.extend_from_slice(br#""user_id":"nobody","amount":1}"#);
            }
        }
        time
    }

    /// Returns the rule and offset of every event below `end` that completes an injected pattern.
    pub fn injections(&self, partition: u32, end: u64) -> impl Iterator<Item = (&'static str, u64)> {
        let blocks = self.blocks;
        let all =
            (0..).map(move |block| blocks.trigger(partition, block)).take_while(move |(_, at)| *at < end);
        all.filter(|_| self.settings.inject).map(|(rule, at)| (RULES[rule], at))
    }

    fn write_head(&mut self, partition: u32, offset: u64, kind: &str, key_name: &str, time: i64) {
        let out = &mut self.value;
        out.extend_from_slice(b"{\"event_id\":\"");
        write_int(out, i64::from(partition));
        out.push(b'-');
        write_int(out, offset as i64);
        out.extend_from_slice(b"\",\"event_type\":");
        write_string(out, kind);
        out.extend_from_slice(b",\"");
        out.extend_from_slice(key_name.as_bytes());
        out.extend_from_slice(b"\":\"");
        out.extend_from_slice(&self.key);
        out.extend_from_slice(b"\",\"event_time\":\"");
        write_time(out, time.max(0));
        out.push(b'"');
    }

    fn write_episode(&mut self, partition: u32, offset: u64, event: EpisodeEvent, time: i64) {
        self.key.extend_from_slice(b"picked-");
        write_int(&mut self.key, i64::from(partition));
        self.key.push(b'-');
        write_int(&mut self.key, event.block as i64);
        self.write_head(partition, offset, "transaction", "user_id", time);
        let out = &mut self.value;
        if let Some(amount) = event.amount() {
            out.extend_from_slice(b",\"currency\":\"EUR\",\"amount\":");
            write_micros(out, amount);
        }
        if let Some(merchant) = event.merchant() {
            out.extend_from_slice(b",\"merchant_id\":\"shop-");
            write_int(out, merchant as i64);
            out.push(b'"');
        }
        if let Some((lat, lon)) = event.place() {
            for piece in [",\"location\":{\"lat\":", lat, ",\"lon\":", lon, "}"] {
                out.extend_from_slice(piece.as_bytes());
            }
        }
        if event.is_trigger {
            out.extend_from_slice(b",\"attributes\":{\"injected\":\"");
            out.extend_from_slice(RULES[event.rule].as_bytes());
            out.extend_from_slice(b"\"}");
        }
        out.push(b'}');
    }

    /// Writes an ordinary event: few merchants per user, amounts within 2.5 σ, locations near the user's home.
    fn write_background(&mut self, partition: u32, offset: u64, time: i64) {
        const CURRENCIES: [&str; 4] = ["EUR", "USD", "GBP", "JPY"];
        const CATEGORIES: [&str; 6] = ["grocery", "fuel", "travel", "restaurant", "electronics", "pharmacy"];
        let mut rng = self.rng(partition, offset, 3);
        let kind = rng.below(100);
        let iot = kind >= 90;
        let (population, name) =
            if iot { (self.settings.devices, "device-") } else { (self.settings.users, "user-") };
        let partitions = u64::from(self.settings.partitions);
        let who = rng.below(u64::from(population) / partitions) * partitions + u64::from(partition);
        self.key.extend_from_slice(name.as_bytes());
        write_int(&mut self.key, who as i64);
        let (kind, key_name) = match kind {
            0..45 => ("transaction", "user_id"),
            45..70 => ("user_activity", "user_id"),
            70..90 => ("api_call", "user_id"),
            _ => ("iot_sensor", "device_id"),
        };
        self.write_head(partition, offset, kind, key_name, time);
        let habits = mix(who ^ 0x5bd1_e995);
        let out = &mut self.value;
        match kind {
            "transaction" => {
                // The sum of two uniform draws: at most 2.45 σ from its mean.
                let amount = 5_000_000
                    + habits % 90_000_000 / 10_000 * 10_000
                    + rng.below(4000) * 10_000
                    + rng.below(4000) * 10_000;
                out.extend_from_slice(b",\"amount\":");
                write_micros(out, amount as i64);
                let merchant = (habits >> 8).wrapping_add(rng.below(5) * 7) % 5000;
                out.extend_from_slice(b",\"currency\":");
                write_string(out, CURRENCIES[(habits >> 40) as usize % CURRENCIES.len()]);
                out.extend_from_slice(b",\"merchant_id\":\"merchant-");
                write_int(out, merchant as i64);
                out.extend_from_slice(b"\",\"merchant_category\":");
                write_string(out, CATEGORIES[merchant as usize % CATEGORIES.len()]);
                // Within a few kilometres of the user's home.
                let micro = |base: i64, rng: &mut SplitMix64| base + rng.below(100_000) as i64 - 50_000;
                let lat = micro((habits >> 16) as i64 % 60_000_000, &mut rng);
                let lon = micro((habits >> 24) as i64 % 170_000_000, &mut rng);
                out.extend_from_slice(b",\"location\":{\"lat\":");
                write_micros(out, lat);
                out.extend_from_slice(b",\"lon\":");
                write_micros(out, lon);
                out.push(b'}');
            }
            "iot_sensor" => {
                out.extend_from_slice(b",\"attributes\":{\"temperature\":");
                write_micros(out, 18_000_000 + rng.below(900) as i64 * 10_000);
                out.extend_from_slice(b",\"battery\":");
                write_int(out, rng.below(101) as i64);
                out.extend_from_slice(b"}");
            }
            _ => {
                out.extend_from_slice(b",\"session_id\":\"s-");
                write_int(out, (mix(who ^ (time / 1_800_000) as u64) % 1_000_000_000) as i64);
                out.extend_from_slice(b"\",\"ip_address\":\"10.");
                write_int(out, (habits >> 32) as i64 & 255);
                out.push(b'.');
                write_int(out, (habits >> 40) as i64 & 255);
                out.push(b'.');
                write_int(out, (habits >> 48) as i64 & 255);
                out.extend_from_slice(b"\",\"attributes\":{\"path\":\"/v1/items/");
                write_int(out, rng.below(10_000) as i64);
                out.extend_from_slice(b"\"}");
            }
        }
        out.push(b'}');
    }
}
