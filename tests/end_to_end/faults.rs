//! Faults of services and connections: services that die and come back, connections that are cut, held back or slow.
//! The run may fail, and is then restarted as by a supervisor; at the end every result is stored exactly once.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{headwater, succeed};
use crate::crash::assert_refused;
use crate::kafka::{CrashPipeline, Stream};
use crate::live::{Process, wait_for};
use crate::services::{Service, Services};

/// The number of records that are in progress when a fault occurs.
const RECORDS: u64 = 12_000;

/// A run that is restarted whenever it fails.
struct RestartedRun {
    pipeline: CrashPipeline,
    stream: Stream,
    run: Process,
    produced: u64,
    starts: u32,
}

impl RestartedRun {
    fn new(services: Services, name: &str, seed: u64) -> RestartedRun {
        let (pipeline, stream) = CrashPipeline::on(services, name, seed);
        let run = start(&pipeline, 1);
        RestartedRun { pipeline, stream, run, produced: 0, starts: 1 }
    }

    fn services(&self) -> &Services {
        self.pipeline.services()
    }

    fn start(&mut self) {
        self.starts += 1;
        self.run = start(&self.pipeline, self.starts);
    }

    /// Produces more records and waits until the run has stored some of them.
    fn start_work(&mut self) {
        self.stream.produce(RECORDS);
        self.produced += RECORDS;
        let enough = self.produced - RECORDS + RECORDS / 10;
        self.wait_restarting("to work", |run| run.pipeline.stored() >= enough);
    }

    /// Waits until the run has stored all records.
    fn wait_until_caught_up(&mut self) {
        self.wait_restarting("to catch up", |run| run.pipeline.stored() >= run.produced);
        assert_eq!(self.pipeline.stored(), self.produced);
    }

    fn wait_restarting(&mut self, what: &str, condition: impl Fn(&RestartedRun) -> bool) {
        wait_for(what, || {
            if let Some(status) = self.run.try_wait() {
                assert_eq!(status.code(), Some(1), "the run did not exit with code 1\n{}", self.run.log());
                self.start();
            }
            condition(self).then_some(())
        });
    }

    /// Injects a fault while the run is working, removes it, and waits until the run has caught up.
    fn survive_fault(&mut self, fault: &str, inject: impl FnOnce(&mut RestartedRun)) {
        self.start_work();
        let starts = self.starts;
        inject(self);
        let mended = Instant::now();
        self.wait_until_caught_up();
        println!(
            "{fault}: started again {} times, everything stored {:.1} s later",
            self.starts - starts,
            mended.elapsed().as_secs_f64()
        );
    }

    /// Stops the run, processes and closes the rest of the input, and compares the results with the oracle.
    fn stop_and_judge(&mut self) {
        self.run.terminate();
        self.run.expect_success();
        let mut last = Process::start(self.pipeline.command("2"), self.pipeline.path("last.log"));
        last.expect_success();
        self.pipeline.judge();
    }
}

fn start(pipeline: &CrashPipeline, nth: u32) -> Process {
    Process::start(
        pipeline.live_command(if nth.is_multiple_of(2) { "1" } else { "2" }),
        pipeline.path("run.log"),
    )
}

#[test]
fn a_run_survives_faults_of_services_and_connections() {
    use Service::{Kafka, Postgres, Redis};
    let mut run = RestartedRun::new(Services::own(), "faults", 61);
    for service in [Kafka, Postgres, Redis] {
        run.survive_fault(&format!("{service:?} is killed and comes back"), |run| {
            run.services().control("restart", service);
        });
        run.survive_fault(&format!("{service:?} cannot be reached"), |run| {
            run.services().proxy(service).cut();
            sleep(Duration::from_secs(2));
            run.services().proxy(service).restore();
        });
        run.survive_fault(&format!("requests to {service:?} are held back"), |run| {
            run.services().proxy(service).hold_requests();
            sleep(Duration::from_secs(3));
            run.services().proxy(service).restore();
        });
        run.survive_fault(&format!("{service:?} is slow"), |run| {
            run.services().proxy(service).slow_down();
            sleep(Duration::from_secs(2));
            run.services().proxy(service).restore();
        });
        run.survive_fault(&format!("{service:?} is killed before it responds"), |run| {
            run.services().proxy(service).hold_responses();
            sleep(Duration::from_millis(200));
            run.services().control("kill", service);
            run.services().proxy(service).cut();
            run.services().control("start", service);
            run.services().proxy(service).restore();
        });
    }
    for statement in ["COPY", "COMMIT"] {
        run.survive_fault(&format!("PostgreSQL terminates a backend in a {statement}"), |run| {
            assert!(run.pipeline.terminate_backends(statement), "no backend was in a {statement}");
        });
    }
    for _ in 0..2 {
        run.survive_fault("an EndTxn request arrives after its sender was killed", |run| {
            run.services().proxy(Kafka).hold_end_txn();
            run.wait_restarting("the end of a transaction", |run| {
                run.services().proxy(Kafka).is_holding_end_txn()
            });
            run.run.kill();
            let before = run.pipeline.stored();
            run.start();
            run.wait_restarting("its successor", |run| run.pipeline.stored() > before);
            run.services().proxy(Kafka).restore();
        });
    }
    run.stop_and_judge();

    // The state of the checkpoint is gone, so the start is refused. (`judge` has deleted the topics.)
    succeed(
        headwater(&["topics", "create"])
            .arg(run.pipeline.path("run.toml"))
            .env("HEADWATER__SOURCE__BROKERS", &run.services().kafka)
            .env("HEADWATER__SINKS__KAFKA__BROKERS", &run.services().kafka),
    );
    let mut redis = redis::Client::open(&*run.services().redis)
        .and_then(|client| client.get_connection())
        .expect("connected");
    ::redis::cmd("FLUSHALL").exec(&mut redis).expect("flushed");
    assert_refused(&mut run.pipeline.command("2"), "it is missing");
}
