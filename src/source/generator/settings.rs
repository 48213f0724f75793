//! Settings of the generator, and their defaults.

use headwater_dataflows::EventTime;

/// Settings of the generator. Rates are shares of all records, 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSettings {
    /// The seed: different seeds generate different records.
    pub seed: u64,
    /// The number of partitions.
    pub partitions: u32,
    /// The number of users. 50,000 users at the default pace have 36 events per hour each, far below every threshold.
    pub users: u32,
    /// The number of devices.
    pub devices: u32,
    /// Events per second of event time, over all partitions, independent of the speed of reading. 500 is a busy shop.
    pub pace: u32,
    /// The time of the first event: 2026-01-01T00:00:00Z.
    pub start: EventTime,
    /// The number of records, over all partitions; None for no limit.
    pub records: Option<u64>,
    /// Share of events that arrive up to 4 s after events with later times: less than the usual bound of 5 s.
    pub disorder: f64,
    /// Share of events that arrive 2 to 10 minutes late.
    pub late: f64,
    /// Share of records that repeat one of the last 200 of their partition.
    pub duplicates: f64,
    /// Share of records that are not JSON.
    pub malformed: f64,
    /// Share of records that are JSON but not valid events.
    pub invalid: f64,
    /// True if fraud is injected.
    pub inject: bool,
    /// True if an event of each injected burst arrives out of order, after the burst: the alert is revoked, and raised at
    /// the event before. Only for records whose times are given.
    pub stragglers: bool,
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
            stragglers: false,
        }
    }
}

impl GeneratorSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// If a setting is invalid; the error names it.
    pub fn validate(&self) -> Result<(), String> {
        let rates = [
            ("disorder", self.disorder),
            ("late", self.late),
            ("duplicates", self.duplicates),
            ("malformed", self.malformed),
            ("invalid", self.invalid),
        ];
        if let Some((name, rate)) = rates.iter().find(|(_, rate)| !(0.0..=1.0).contains(rate)) {
            return Err(format!("{name} must be a share between 0 and 1, not {rate}"));
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
                "pace must be at least {} (20 per partition), so that injected episodes fit",
                self.partitions * 20
            ));
        }
        Ok(())
    }

    /// Returns the event time of an offset before any disorder, in milliseconds since 1970.
    pub(super) fn time(&self, partition: u32, offset: u64) -> i64 {
        let index = u128::from(offset) * u128::from(self.partitions) + u128::from(partition);
        self.start.0 + (index * 1000 / u128::from(self.pace)) as i64
    }
}
