//! Injected fraud: one episode in each block of a partition's offsets, with a user of its own.
//!
//! A block lasts 150 s of event time, whatever the pace. Which of its offsets belong to the episode, and what their
//! events say, follows from the block's number alone. Each event that completes a pattern is marked.

use super::settings::GeneratorSettings;

/// The rules that are injected, in the order in which blocks take turns.
pub(super) const RULES: [&str; 5] =
    ["velocity_spike", "rapid_fire_burst", "merchant_diversity", "amount_anomaly", "impossible_travel"];

/// How long a block lasts, in seconds of event time. 101 events in it are more than a second apart, so that a
/// velocity spike is no burst.
const BLOCK_SECONDS: u64 = 150;

/// How offsets are cut into blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Offsets in a block.
    len: u64,
    /// Offsets in a second of event time, times 1000.
    per_1000_seconds: u64,
}

/// One event of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scene {
    pub block: u64,
    pub rule: usize,
    /// Which of the episode's events it is.
    pub step: u64,
    /// Whether it completes the pattern.
    pub trigger: bool,
}

impl Blocks {
    pub fn new(settings: &GeneratorSettings) -> Blocks {
        let per_1000_seconds = u64::from(settings.pace) * 1000 / u64::from(settings.partitions);
        Blocks { len: per_1000_seconds * BLOCK_SECONDS / 1000, per_1000_seconds }
    }

    fn rule(&self, partition: u32, block: u64) -> usize {
        ((block + u64::from(partition)) % RULES.len() as u64) as usize
    }

    /// How many events the episode of a rule has, and how many offsets they are apart.
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

    /// The episode's event at an offset, if there is one.
    pub fn scene(&self, partition: u32, offset: u64) -> Option<Scene> {
        let (block, within) = (offset / self.len, offset % self.len);
        let rule = self.rule(partition, block);
        let (events, apart) = self.events(rule);
        let step = (within / apart).checked_sub(1)?;
        let hit = within % apart == 0 && step < events;
        hit.then_some(Scene { block, rule, step, trigger: step + 1 == events })
    }

    /// The offset of the trigger of a block.
    pub fn trigger(&self, partition: u32, block: u64) -> (usize, u64) {
        let rule = self.rule(partition, block);
        let (events, apart) = self.events(rule);
        (rule, block * self.len + events * apart)
    }
}

impl Scene {
    /// Whether the episode's events have amounts: the 30 before the trigger between 45 and 55, the trigger 5,000.
    pub fn amount(&self) -> Option<i64> {
        let usual = 45_000_000 + (self.step * 7919 % 1000) as i64 * 10_000;
        (self.rule == 3).then_some(if self.trigger { 5_000_000_000 } else { usual })
    }

    /// The merchant, another for each event.
    pub fn merchant(&self) -> Option<u64> {
        (self.rule == 2).then_some(self.step)
    }

    /// The place: Paris, then Tokyo.
    pub fn place(&self) -> Option<(&'static str, &'static str)> {
        (self.rule == 4).then_some(if self.trigger { ("35.6762", "139.6503") } else { ("48.8566", "2.3522") })
    }
}
