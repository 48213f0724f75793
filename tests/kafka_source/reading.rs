//! A reader whose records a test collects.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater::coordination::ingest::PartitionState;
use headwater::source::kafka::KafkaSource;
use headwater::source::{Budget, Reader, Source, SourceError};
use headwater_dataflows::Partition;

/// A reader of all partitions, with the records read so far, by partition, as offset and value.
pub struct Reading {
    pub reader: Box<dyn Reader>,
    pub got: BTreeMap<u32, Vec<(i64, String)>>,
}

impl Reading {
    pub fn of(source: &KafkaSource) -> Reading {
        let owned: Vec<_> = source.start().iter().zip(0..).map(|(&from, p)| (Partition(p), from)).collect();
        Reading { reader: source.reader(&owned).expect("it reads"), got: BTreeMap::new() }
    }

    pub fn step(&mut self, budget: usize) -> Result<usize, SourceError> {
        let got = &mut self.got;
        let begun = Instant::now();
        let count = self.reader.read(Budget::records(budget), &mut |raw| {
            let value = String::from_utf8(raw.value.unwrap_or_default().to_vec()).expect("text");
            got.entry(raw.position.partition.0).or_default().push((raw.position.offset.0, value));
        });
        assert!(begun.elapsed() < Duration::from_secs(1), "reading must not block");
        std::thread::sleep(Duration::from_millis(1));
        count
    }

    pub fn until(&mut self, what: &str, done: impl Fn(&Reading) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "not within 30 s: {what}; {:?}", self.reader.partitions());
            self.step(500).expect("it reads");
        }
    }

    pub fn keep_reading(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.step(500).expect("it reads");
        }
    }

    /// Returns true if a partition's position equals its last high watermark.
    pub fn at_end(&self, partition: u32) -> bool {
        let state = self.state(partition);
        state.available && state.high_watermark == Some(state.position)
    }

    pub fn state(&self, partition: u32) -> PartitionState {
        let of = |state: &PartitionState| state.partition == Partition(partition);
        self.reader.partitions().into_iter().find(of).expect("it is owned")
    }

    pub fn values(&self, partition: u32) -> Vec<&str> {
        self.got.get(&partition).map_or_else(Vec::new, |got| got.iter().map(|(_, v)| &**v).collect())
    }

    pub fn ended(&self) -> bool {
        self.reader.partitions().iter().all(|state| state.ended)
    }
}
