//! Injected fraud: one episode, with its own user, in each block of a partition's offsets.
//!
//! A block lasts 150 s of event time, whatever the pace. The block's number alone determines the offsets of the episode
//! and the content of their events. Each event that completes a pattern is marked.

use super::settings::GeneratorSettings;

/// The injected rules. Successive blocks use them in this order.
pub(super) const RULES: [&str; 5] =
    ["velocity_spike", "rapid_fire_burst", "merchant_diversity", "amount_anomaly", "impossible_travel"];

/// The index of the burst in [`RULES`].
const BURST: usize = 1;

/// The time by which a straggler's event time precedes the event that completes the burst: less than the usual bound
/// of 5 s, and less than the 10 s of the burst.
pub(super) const STRAGGLER_MS: i64 = 2_000;

/// The length of a block, in seconds of event time. 101 events in it are more than a second apart, so that a velocity
/// spike is not also a burst.
const BLOCK_SECONDS: u64 = 150;

/// The division of offsets into blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Offsets per block.
    len: u64,
    /// Offsets per 1000 seconds of event time.
    per_1000_seconds: u64,
}

/// One event of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EpisodeEvent {
    pub block: u64,
    pub rule: usize,
    /// The index of the event in the episode.
    pub step: u64,
    /// True if the event completes the pattern.
    pub is_trigger: bool,
}

impl Blocks {
    pub fn new(settings: &GeneratorSettings) -> Blocks {
        let per_1000_seconds = u64::from(settings.pace) * 1000 / u64::from(settings.partitions);
        Blocks { len: per_1000_seconds * BLOCK_SECONDS / 1000, per_1000_seconds }
    }

    fn rule(&self, partition: u32, block: u64) -> usize {
        ((block + u64::from(partition)) % RULES.len() as u64) as usize
    }

    /// Returns the number of events in a rule's episode, and their distance in offsets.
    fn events(&self, rule: usize) -> (u64, u64) {
        let spread = |events: u64| (events, self.len / (events + 1));
        match rule {
            0 => spread(101),
            // Nine times 0.8 s are less than 10 s.
            1 => (10, (self.per_1000_seconds * 8 / 10_000).max(1)),
            2 => spread(8),
            3 => spread(31),
            _ => spread(2),
        }
    }

    /// Returns the episode's event at an offset, if there is one.
    pub fn event_at(&self, partition: u32, offset: u64) -> Option<EpisodeEvent> {
        let (block, within) = (offset / self.len, offset % self.len);
        let rule = self.rule(partition, block);
        let (events, apart) = self.events(rule);
        let step = (within / apart).checked_sub(1)?;
        let hit = within % apart == 0 && step < events;
        hit.then_some(EpisodeEvent { block, rule, step, is_trigger: step + 1 == events })
    }

    /// Returns the event of a burst that arrives out of order at an offset, right after the burst, if there is one.
    pub fn straggler_at(&self, partition: u32, offset: u64) -> Option<EpisodeEvent> {
        let burst = self.event_at(partition, offset.checked_sub(1)?)?;
        let follows = burst.rule == BURST && burst.is_trigger;
        follows.then_some(EpisodeEvent { step: burst.step + 1, is_trigger: false, ..burst })
    }

    /// Returns the rule of a block, and the offset of the event that completes its pattern.
    pub fn trigger(&self, partition: u32, block: u64) -> (usize, u64) {
        let rule = self.rule(partition, block);
        let (events, apart) = self.events(rule);
        (rule, block * self.len + events * apart)
    }
}

impl EpisodeEvent {
    /// Returns the amount, in millionths, for an amount anomaly: 45 to 55 for the first 30 events, then 5,000.
    pub fn amount(&self) -> Option<i64> {
        let usual = 45_000_000 + (self.step * 7919 % 1000) as i64 * 10_000;
        (self.rule == 3).then_some(if self.is_trigger { 5_000_000_000 } else { usual })
    }

    /// Returns the merchant, a different one for each event.
    pub fn merchant(&self) -> Option<u64> {
        (self.rule == 2).then_some(self.step)
    }

    /// Returns the location: Paris, then Tokyo.
    pub fn place(&self) -> Option<(&'static str, &'static str)> {
        (self.rule == 4).then_some(if self.is_trigger {
            ("35.6762", "139.6503")
        } else {
            ("48.8566", "2.3522")
        })
    }
}
