//! What the generator is told, and its defaults.

use headwater_dataflows::EventTime;

/// What to generate. Rates are shares of all records, 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSettings {
    /// Another seed gives another stream.
    pub seed: u64,
    /// How many partitions.
    pub partitions: u32,
    /// How many users. 50,000 at the default pace have 36 events an hour each, far below every threshold.
    pub users: u32,
    /// How many devices.
    pub devices: u32,
    /// Events per second of event time, over all partitions; how fast they are read is another matter. 500 is a
    /// busy shop.
    pub pace: u32,
    /// The time of the first event: 2026-01-01T00:00:00Z.
    pub start: EventTime,
    /// How many records, over all partitions; none for ever.
    pub records: Option<u64>,
    /// Share of events that come up to 4 s later than younger ones: less than the usual bound of 5 s.
    pub disorder: f64,
    /// Share of events that come 2 to 10 minutes too late.
    pub late: f64,
    /// Share of records that repeat one of the last 200 of their partition.
    pub duplicates: f64,
    /// Share of records that are not JSON.
    pub malformed: f64,
    /// Share of records that break a rule.
    pub invalid: f64,
    /// Whether fraud is injected.
    pub inject: bool,
}

impl Default for GeneratorSettings {
    fn default() -> Self {
        GeneratorSettings {
            seed: 1,
            partitions: 6,
            users: 50_000,
            devices: 20_000,
            pace: 500,
            start: EventTime(1_767_225_600_000),
            records: None,
            disorder: 0.02,
            late: 0.001,
            duplicates: 0.002,
            malformed: 0.001,
            invalid: 0.001,
            inject: true,
        }
    }
}

impl GeneratorSettings {
    /// Whether they can be carried out.
    ///
    /// # Errors
    /// Says which cannot.
    pub fn validate(&self) -> Result<(), String> {
        let rates = [
            ("disorder", self.disorder),
            ("late", self.late),
            ("duplicates", self.duplicates),
            ("malformed", self.malformed),
            ("invalid", self.invalid),
        ];
        if let Some((name, rate)) = rates.iter().find(|(_, rate)| !(0.0..=1.0).contains(rate)) {
            return Err(format!("{name} is a share between 0 and 1, not {rate}"));
        }
        if rates.iter().map(|(_, rate)| rate).sum::<f64>() > 1.0 {
            return Err(
                "the shares of disorder, late, duplicates, malformed and invalid add up to more than 1"
                    .into(),
            );
        }
        for (name, value) in [("partitions", self.partitions), ("pace", self.pace)] {
            if value == 0 {
                return Err(format!("{name} must be at least 1"));
            }
        }
        for (name, value) in [("users", self.users), ("devices", self.devices)] {
            if value < self.partitions {
                return Err(format!("{name} must be at least the number of partitions, {}", self.partitions));
            }
        }
        if self.pace < self.partitions * 20 {
            return Err(format!(
                "pace must be at least 20 a partition, {}, for injections to fit",
                self.partitions * 20
            ));
        }
        Ok(())
    }

    /// The event time of an offset before any disorder, in milliseconds.
    pub(super) fn time(&self, partition: u32, offset: u64) -> i64 {
        let index = u128::from(offset) * u128::from(self.partitions) + u128::from(partition);
        self.start.0 + (index * 1000 / u128::from(self.pace)) as i64
    }
}
