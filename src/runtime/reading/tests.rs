use super::*;

/// A partition that is as it was put.
struct Still(PartitionState);

impl Reader for Still {
    fn read(&mut self, _: usize, _: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        Ok(0)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        vec![self.0]
    }

    fn set_paused(&mut self, _: Partition, _: bool) -> Result<(), SourceError> {
        Ok(())
    }

    fn set_limit(&mut self, _: Partition, _: Option<Offset>) -> Result<(), SourceError> {
        Ok(())
    }
}

/// What a start that goes on from a position binds in its first epoch, with nothing read.
fn first_bindings(idle: bool, backlog: u64) -> Vec<Binding> {
    let state = PartitionState {
        partition: Partition(0),
        position: Offset(7),
        at_end_since: (backlog == 0).then(Instant::now),
        ended: false,
        backlog,
    };
    let settings = ReadSettings {
        idle_timeout: Duration::from_secs(60),
        max_future_skew_ms: 0,
        max_drift_ms: 0,
        bytes_in_flight: 1,
        strict_fields: false,
    };
    let context = ReadContext {
        positions: [Position { next: Offset(7), max_event_time: Some(EventTime(5)), idle }].into(),
        stopping: Arc::default(),
        watermark: Rc::new(Cell::new(EventTime(3))),
        committed: Probe::new(),
        failure: Failure::default(),
        metrics: Arc::default(),
    };
    let mut reading = Reading::new(0, Box::new(Still(state)), settings, context);
    reading.close(&Tick { wall_ms: 0, slowest: None, replay: None }).bindings
}

/// Otherwise the others' watermark would go on without it, and what waits there would be late.
#[test]
fn a_partition_that_was_idle_at_the_checkpoint_and_has_records_now_is_bound_as_not_idle_at_once() {
    let bindings = first_bindings(true, 3);
    let expected = Binding {
        partition: Partition(0),
        end: Offset(7),
        timestamp: None,
        max_event_time: None,
        idle: false,
    };
    assert_eq!(bindings, [expected]);
    assert_eq!(first_bindings(false, 3), [], "nothing has changed");
    // The time for which it must be silent begins anew with a start: it is bound as idle again once that is over.
    assert_eq!(first_bindings(true, 0), [expected]);
}
