use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::decode::{Binary, BinaryKind, Fetched, SchemaRegistry, Schemas, UnknownId};
use crate::source::NO_TIMESTAMP;

/// A registry that has these ids.
#[derive(Clone, Debug, Default)]
struct Known(Arc<Mutex<HashSet<u32>>>);

impl SchemaRegistry for Known {
    fn fetch(&self, id: u32) -> Fetched {
        match self.0.lock().expect("a lock").contains(&id) {
            true => Fetched::Schema(BinaryKind::Avro.compile("\"long\"", &[]).expect("valid")),
            false => Fetched::Unavailable("down".to_owned()),
        }
    }

    fn place(&self) -> String {
        String::new()
    }
}

/// Two partitions: by partition the ids of the records' schemas, the position, the limit, and true if it is paused.
#[derive(Default)]
struct Script {
    ids: [Vec<u8>; 2],
    positions: [usize; 2],
    limits: [Option<usize>; 2],
    paused: [bool; 2],
}

#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

impl Reader for Scripted {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        let script = &mut *self.0.borrow_mut();
        let mut read = 0;
        for at in 0..2 {
            let end = script.limits[at].unwrap_or(usize::MAX).min(script.ids[at].len());
            while !script.paused[at] && script.positions[at] < end && read < budget.records {
                let value = [0, 0, 0, 0, script.ids[at][script.positions[at]], 2];
                let offset = Offset(script.positions[at] as i64);
                each(Raw {
                    position: Position { partition: Partition(at as u32), offset },
                    timestamp: NO_TIMESTAMP,
                    key: Some(b"k"),
                    value: Some(&value),
                    retries: 0,
                    producer: None,
                });
                script.positions[at] += 1;
                read += 1;
            }
        }
        Ok(read)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        let script = self.0.borrow();
        let state = |at: usize| {
            let (position, end) = (script.positions[at], script.ids[at].len());
            let (position, backlog) = (Offset(position as i64), (end - position) as u64);
            PartitionState::finite(Partition(at as u32), position, backlog == 0, backlog)
        };
        vec![state(0), state(1)]
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        self.0.borrow_mut().paused[partition.0 as usize] = paused;
        Ok(())
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.0.borrow_mut().limits[partition.0 as usize] = limit.map(|limit| limit.0 as usize);
        Ok(())
    }
}

/// A withholding reader of a script, and the ids that its registry has.
struct Fixture {
    script: Scripted,
    known: Known,
    reader: Box<dyn Reader>,
}

impl Fixture {
    fn new(ids: [&[u8]; 2]) -> Fixture {
        let (script, known) = (Scripted::default(), Known::default());
        script.0.borrow_mut().ids = ids.map(<[u8]>::to_vec);
        let schemas = Schemas::new(Box::new(known.clone()), UnknownId::Hold);
        let gate = Binary::Registry(schemas).gate().expect("a registry");
        let reader = withholding(Box::new(script.clone()), vec![gate]);
        Fixture { script, known, reader }
    }

    fn register(&self, id: u32) {
        self.known.0.lock().expect("a lock").insert(id);
    }

    /// Reads with this budget until these records have come: partition and offset.
    fn expect(&mut self, records: usize, expected: &[(u32, i64)]) {
        let mut read = Vec::new();
        let started = Instant::now();
        while read.len() < expected.len() && started.elapsed() < Duration::from_secs(10) {
            read.extend(self.read(records));
        }
        // The order of partitions depends on when a schema is there.
        read.sort_by_key(|(partition, _)| *partition);
        assert_eq!(read, expected);
    }

    fn read(&mut self, records: usize) -> Vec<(u32, i64)> {
        let mut read = Vec::new();
        let mut each = |raw: Raw<'_>| read.push((raw.position.partition.0, raw.position.offset.0));
        let count = self.reader.read(Budget::records(records), &mut each).expect("read");
        assert_eq!(count, read.len(), "the count is that of the records that were emitted");
        read
    }

    fn state(&self, partition: usize) -> (i64, bool, bool, u64) {
        let PartitionState { position, is_withheld, ended, backlog, .. } =
            self.reader.partitions()[partition];
        (position.0, is_withheld, ended, backlog)
    }
}

#[test]
fn records_wait_for_their_schema_in_order() {
    let mut fixture = Fixture::new([&[1, 2, 1, 1], &[1, 1]]);
    fixture.register(1);
    fixture.expect(100, &[(0, 0), (1, 0), (1, 1)]);
    assert_eq!(fixture.state(0), (1, true, false, 3), "to others, the rest was not read");
    assert_eq!(fixture.state(1), (2, false, true, 0), "the other partition goes on");
    assert!(fixture.read(100).is_empty());
    assert!(fixture.script.0.borrow().paused[0], "no more of it is read meanwhile");
    fixture.register(2);
    fixture.expect(2, &[(0, 1), (0, 2), (0, 3)]);
    assert_eq!(fixture.state(0), (4, false, true, 0));
    assert!(!fixture.script.0.borrow().paused[0]);
}

#[test]
fn limits_and_pauses_apply_to_withheld_records() {
    let mut fixture = Fixture::new([&[2, 2, 2], &[]]);
    fixture.read(2);
    assert_eq!(fixture.state(0), (0, true, false, 3));
    fixture.register(2);
    fixture.reader.set_limit(Partition(0), Some(Offset(1))).expect("set");
    fixture.reader.set_paused(Partition(0), true).expect("set");
    std::thread::sleep(Duration::from_millis(300));
    assert!(fixture.read(100).is_empty(), "it is paused");
    fixture.reader.set_paused(Partition(0), false).expect("set");
    fixture.expect(100, &[(0, 0)]);
    assert!(fixture.read(100).is_empty(), "the limit is reached");
    assert_eq!(fixture.state(0).0, 1);
    fixture.reader.set_limit(Partition(0), None).expect("set");
    fixture.expect(100, &[(0, 1), (0, 2)]);
}

#[test]
fn without_a_budget_nothing_is_emitted() {
    let mut fixture = Fixture::new([&[2, 2], &[]]);
    fixture.read(1);
    fixture.register(2);
    std::thread::sleep(Duration::from_millis(300));
    let mut each = |_: Raw<'_>| panic!("a record without a budget");
    assert_eq!(fixture.reader.read(Budget::NONE, &mut each).expect("read"), 0);
    fixture.expect(100, &[(0, 0), (0, 1)]);
}
