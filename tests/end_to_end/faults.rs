//! What befalls a run from outside: services that die and come back, connections that are cut, held back or slow. It may
//! fail, and is started again, as its supervisor would; at the end every result is there exactly once.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{headwater, succeed};
use crate::crash::refused;
use crate::kafka::{Killed, Stream};
use crate::live::{Running, wait_for};
use crate::services::{Service, Services};

/// How many records are under way when a fault comes.
const RECORDS: u64 = 12_000;

/// A run that goes on, and whoever starts it again.
struct Supervised {
    killed: Killed,
    stream: Stream,
    run: Running,
    produced: u64,
    starts: u32,
}

impl Supervised {
    fn new(services: Services, name: &str, seed: u64) -> Supervised {
        let (killed, stream) = Killed::on(services, name, seed);
        let run = start(&killed, 1);
        Supervised { killed, stream, run, produced: 0, starts: 1 }
    }

    fn services(&self) -> &Services {
        self.killed.services()
    }

    fn start(&mut self) {
        self.starts += 1;
        self.run = start(&self.killed, self.starts);
    }

    /// Gives it more to do, until it is in the middle of that.
    fn works(&mut self) {
        self.stream.produce(RECORDS);
        self.produced += RECORDS;
        let enough = self.produced - RECORDS + RECORDS / 10;
        self.waits("to work", |run| run.killed.stored() >= enough);
    }

    /// Waits until it has stored everything.
    fn catches_up(&mut self) {
        self.waits("to catch up", |run| run.killed.stored() >= run.produced);
        assert_eq!(self.killed.stored(), self.produced);
    }

    fn waits(&mut self, what: &str, condition: impl Fn(&Supervised) -> bool) {
        wait_for(what, || {
            if let Some(status) = self.run.ended() {
                assert_eq!(status.code(), Some(1), "a failure, and nothing else\n{}", self.run.log());
                self.start();
            }
            condition(self).then_some(())
        });
    }

    /// In the middle of its work a fault comes and goes; then it catches up.
    fn withstands(&mut self, fault: &str, disturb: impl FnOnce(&mut Supervised)) {
        self.works();
        let starts = self.starts;
        disturb(self);
        let mended = Instant::now();
        self.catches_up();
        println!(
            "{fault}: started again {} times, everything stored {:.1} s later",
            self.starts - starts,
            mended.elapsed().as_secs_f64()
        );
    }

    /// It is stopped, and what is left is done, closed and judged.
    fn is_right_in_the_end(&mut self) {
        self.run.terminate();
        self.run.ends_well();
        let mut last = Running::start(self.killed.command("2"), self.killed.path("last.log"));
        last.ends_well();
        self.killed.judge();
    }
}

fn start(killed: &Killed, nth: u32) -> Running {
    Running::start(killed.live(if nth.is_multiple_of(2) { "1" } else { "2" }), killed.path("run.log"))
}

#[test]
fn a_run_withstands_what_befalls_its_services_and_its_connections() {
    use Service::{Kafka, Postgres, Redis};
    let mut run = Supervised::new(Services::own(), "faults", 61);
    for service in [Kafka, Postgres, Redis] {
        run.withstands(&format!("{service:?} is killed and comes back"), |run| {
            run.services().control("restart", service);
        });
        run.withstands(&format!("{service:?} cannot be reached"), |run| {
            run.services().proxy(service).cut();
            sleep(Duration::from_secs(2));
            run.services().proxy(service).mend();
        });
        run.withstands(&format!("{service:?} hears nothing"), |run| {
            run.services().proxy(service).hold_requests();
            sleep(Duration::from_secs(3));
            run.services().proxy(service).mend();
        });
        run.withstands(&format!("{service:?} is slow"), |run| {
            run.services().proxy(service).slow();
            sleep(Duration::from_secs(2));
            run.services().proxy(service).mend();
        });
        run.withstands(&format!("{service:?} is killed before its answer comes"), |run| {
            run.services().proxy(service).hold_answers();
            sleep(Duration::from_millis(200));
            run.services().control("kill", service);
            run.services().proxy(service).cut();
            run.services().control("start", service);
            run.services().proxy(service).mend();
        });
    }
    for doing in ["COPY", "COMMIT"] {
        run.withstands(&format!("PostgreSQL ends whoever is in a {doing}"), |run| {
            assert!(run.killed.end_backends(doing), "nobody was in a {doing}");
        });
    }
    for _ in 0..2 {
        run.withstands("an end of a transaction comes when its sender is gone", |run| {
            run.services().proxy(Kafka).hold_at_end_of_transaction();
            run.waits("the end of a transaction", |run| run.services().proxy(Kafka).holds_an_end());
            run.run.kill();
            let before = run.killed.stored();
            run.start();
            run.waits("its successor", |run| run.killed.stored() > before);
            run.services().proxy(Kafka).mend();
        });
    }
    run.is_right_in_the_end();

    // What a checkpoint needs is gone: nothing is made up. (The judge has deleted the topics.)
    succeed(
        headwater(&["topics", "create"])
            .arg(run.killed.path("run.toml"))
            .env("HEADWATER__SOURCE__BROKERS", &run.services().kafka)
            .env("HEADWATER__SINKS__KAFKA__BROKERS", &run.services().kafka),
    );
    let mut redis = redis::Client::open(&*run.services().redis)
        .and_then(|client| client.get_connection())
        .expect("connected");
    ::redis::cmd("FLUSHALL").exec(&mut redis).expect("flushed");
    refused(&mut run.killed.command("2"), "it is missing");
}
