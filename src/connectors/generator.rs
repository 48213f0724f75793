//! The generator of test records as source.

use std::sync::Arc;

use headwater_dataflows::Offset;

use super::{Check, SourceConfig, SourceConnector, SourceContext, SourceKind};
use crate::settings::{Diagnostics, Section, keys};
use crate::source::generator::{GeneratorSettings, GeneratorSource};
use crate::source::{Source, SourceError};

pub const SOURCE: SourceKind = SourceKind {
    name: "generator",
    keys: keys! {
        "source.seed" = "1": "Generator: seed of the random stream. Different seeds give different streams."
        "source.partitions" = "6": "Generator: number of partitions. The default of 6 is that of the topic `raw-events`."
        "source.users" = "50000": "Generator: number of users. At the default pace, each user stays far below every threshold."
        "source.devices" = "20000": "Generator: number of devices."
        "source.pace" = "500": "Generator: events per second of event time, independent of the speed at which they are read."
        "source.records": "Generator: number of records. Without it, the stream is endless."
        "source.disorder" = "0.02": "Generator: share of events that are up to 4 s out of order."
        "source.late" = "0.001": "Generator: share of events that are minutes late."
        "source.duplicates" = "0.002": "Generator: share of records that repeat a recent record."
        "source.malformed" = "0.001": "Generator: share of records that are not JSON."
        "source.invalid" = "0.001": "Generator: share of records that are JSON but not a valid event."
        "source.inject" = "true": "Generator: `true` injects fraud for every pattern."
    },
    identity: &["source.seed"],
    is_bounded: true,
    read: |section, diagnostics| read(section, diagnostics).map(SourceConfig::Generator),
};

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<GeneratorSettings> {
    let all = 1..=i64::from(u32::MAX);
    let seed = section.int("seed", 0..=i64::MAX, diagnostics);
    let partitions = section.int("partitions", 1..=1024, diagnostics);
    let users = section.int("users", all.clone(), diagnostics);
    let devices = section.int("devices", all.clone(), diagnostics);
    let pace = section.int("pace", all, diagnostics);
    let records = section.int("records", 0..=i64::MAX, diagnostics);
    let mut rates = [0.0; 5];
    for (rate, key) in rates.iter_mut().zip(["disorder", "late", "duplicates", "malformed", "invalid"]) {
        *rate = section.float(key, 0.0..=1.0, diagnostics)?;
    }
    let [disorder, late, duplicates, malformed, invalid] = rates;
    let settings = GeneratorSettings {
        seed: seed? as u64,
        partitions: partitions? as u32,
        users: users? as u32,
        devices: devices? as u32,
        pace: pace? as u32,
        records: records.map(|records| records as u64),
        disorder,
        late,
        duplicates,
        malformed,
        invalid,
        inject: section.bool("inject", diagnostics)?,
        ..GeneratorSettings::default()
    };
    if let Err(message) = settings.validate() {
        section.report_error("kind", message, diagnostics);
    }
    Some(settings)
}

impl SourceConnector for GeneratorSettings {
    fn open(&self, _: SourceContext, _: Option<Vec<Offset>>) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(GeneratorSource::new(self.clone())?))
    }

    fn check(&self, _context: &SourceContext) -> Vec<Check> {
        Vec::new()
    }
}
