//! Faults of every kind at random moments, for as long as one likes: `scripts/torture --minutes M --seed S`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::checkpoints::files;
use crate::common::Random;
use crate::crash::Files;
use crate::crash_points::{needs_services, usual};
use crate::input_faults::{Clock, Input};
use crate::kafka::Killed;
use crate::live::{Running, wait_for};
use crate::services::Service;

/// How many faults a stream is given before it may come to its end.
const FAULTS: usize = 15;

/// What is tortured: files into SQLite with state in fjall, or Kafka into everything with state in Redis.
enum Victim {
    Files(Box<Files>),
    Services(Box<Killed>),
}

fn workers(random: &mut Random) -> &'static str {
    ["1", "2", "3"][random.below(3) as usize]
}

impl Victim {
    fn command(&self, random: &mut Random) -> Command {
        match self {
            Victim::Files(files) => files.command(workers(random)),
            Victim::Services(killed) => killed.to_end(workers(random)),
        }
    }

    /// The command that also closes the stream.
    fn last_command(&self, random: &mut Random) -> Command {
        match self {
            Victim::Files(files) => files.command(workers(random)),
            Victim::Services(killed) => killed.command(workers(random)),
        }
    }

    fn judge(&self) {
        match self {
            Victim::Files(files) => files.judge(),
            Victim::Services(killed) => killed.judge(),
        }
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        match self {
            Victim::Files(files) => files.path(name),
            Victim::Services(killed) => killed.path(name),
        }
    }

    /// One fault; says which, or nothing if the run came to the end of its input before.
    fn fault(&self, input: Option<&mut Input>, random: &mut Random) -> Option<&'static str> {
        // Files are soon at their end.
        let delay = random.below(if matches!(self, Victim::Files(_)) { 300 } else { 1200 });
        let delay = Duration::from_millis(delay);
        let kind = random.below(if matches!(self, Victim::Services(_)) { 22 } else { 10 });
        if let (Victim::Services(killed), Some(input), 15..) = (self, input, kind) {
            return Some(upset(killed, input, delay, random));
        }
        if kind < 4 {
            let mut points = usual();
            points.retain(|point| matches!(self, Victim::Services(_)) || !needs_services(point));
            let (point, nth) = (points[random.below(points.len() as u64) as usize], 1 + random.below(6));
            let mut command = self.command(random);
            command.env("HEADWATER_CRASH_AT", format!("{point}:{nth}"));
            let mut run = Running::start(command, self.log("run.log"));
            let status = run.end();
            if self.has_failed(&run, status) {
                return Some("failed");
            }
            assert!(status.success() || status.signal() == Some(6), "{point}:{nth} {status}\n{}", run.log());
            return (!status.success()).then_some("crash point");
        }
        let mut run = Running::start(self.command(random), self.log("run.log"));
        std::thread::sleep(delay);
        if let Some(status) = run.ended()
            && self.has_failed(&run, status)
        {
            return Some("failed");
        }
        // A folder of state belongs to one process: whoever sleeps on it cannot be replaced.
        if kind < 7 || (kind > 7 && matches!(self, Victim::Files(_))) {
            return run.kill_if_alive().then_some("kill -9");
        }
        if kind == 7 {
            run.terminate();
            let status = run.end();
            // It may not have come to where it takes the signal, or a service has just come back.
            let early = status.signal() == Some(15) && run.log().is_empty();
            assert!(status.success() || early || self.has_failed(&run, status), "{status}\n{}", run.log());
            return Some("SIGTERM");
        }
        match self {
            Victim::Services(killed) if kind >= 10 => disturb(killed, run, random),
            _ => self.freeze(run, random),
        }
    }

    /// Whether a run has failed because of a service that has just come back: it is to be started again.
    fn has_failed(&self, run: &Running, status: ExitStatus) -> bool {
        let failed = status.code() == Some(1);
        assert!(!failed || matches!(self, Victim::Services(_)), "{}", run.log());
        failed
    }

    /// It is left in peace, and comes to its end.
    fn ends(&self, random: &mut Random) {
        for _ in 0..5 {
            let mut run = Running::start(self.last_command(random), self.log("run.log"));
            let status = run.end();
            if !self.has_failed(&run, status) {
                assert!(status.success(), "{status}\n{}", run.log());
                return;
            }
        }
        panic!("it fails again and again");
    }

    /// Another takes over while a run is asleep; it wakes up, finds itself fenced, and disturbs nothing.
    fn freeze(&self, mut run: Running, random: &mut Random) -> Option<&'static str> {
        run.signal("STOP");
        std::thread::sleep(Duration::from_millis(100));
        let mut successor = Running::start(self.command(random), self.log("successor.log"));
        let claimed = || successor.log().contains("claimed the ledger").then_some(());
        wait_for("the successor", claimed);
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        run.signal("CONT");
        let status = run.end();
        let fenced = status.code() == Some(3);
        // It may have come to its end before it was stopped, or have lost its connections while it slept.
        assert!(fenced || matches!(status.code(), Some(0 | 1)), "{status}\n{}", run.log());
        // On waking up it may have taken back its transactional ids, before it found that it may not write.
        if let Some(ended) = successor.ended() {
            if generation(&run) > generation(&successor) {
                // It was asleep before it had taken over, and is the successor itself; unless the other one was done before.
                assert!(
                    status.success() && matches!(ended.code(), Some(0 | 3)),
                    "{status} {ended}\n{}",
                    successor.log()
                );
                return None;
            }
            assert!(
                ended.success()
                    || ended.code() == Some(1) && successor.log().contains("fenced again by a zombie"),
                "{ended}\n{}",
                successor.log()
            );
            return (!ended.success()).then_some("frozen, disturbed its successor");
        }
        successor.kill();
        Some(if fenced { "frozen, fenced" } else { "frozen, failed" })
    }
}

/// Something befalls one of the services that a run needs, or the run's connections to it; then the run is killed, if it has
/// not failed.
fn disturb(killed: &Killed, mut run: Running, random: &mut Random) -> Option<&'static str> {
    let services = killed.services();
    let service = [Service::Kafka, Service::Postgres, Service::Redis][random.below(3) as usize];
    let proxy = services.proxy(service);
    let time = Duration::from_millis(random.below(2500));
    let kind = match random.below(6) {
        0 if service == Service::Kafka && random.below(2) == 0 => {
            services.control("stop", service);
            services.control("start", service);
            "broker restarted"
        }
        0 => {
            services.control("restart", service);
            "service killed"
        }
        1 => {
            proxy.hold_answers();
            std::thread::sleep(Duration::from_millis(100));
            services.control("kill", service);
            proxy.cut();
            services.control("start", service);
            "service killed before its answer"
        }
        2 => {
            proxy.cut();
            std::thread::sleep(time);
            "cut off"
        }
        3 => {
            proxy.hold_requests();
            std::thread::sleep(time);
            "held back"
        }
        4 => {
            proxy.slow();
            std::thread::sleep(time);
            "slow"
        }
        _ => {
            let doing = ["COPY", "COMMIT", "UPDATE"][random.below(3) as usize];
            killed.end_backends(doing);
            "backends ended"
        }
    };
    proxy.mend();
    std::thread::sleep(Duration::from_millis(random.below(1500)));
    match run.ended() {
        None => run.kill(),
        Some(status) => assert!(matches!(status.code(), Some(0 | 1)), "{kind}: {status}\n{}", run.log()),
    }
    Some(kind)
}

/// Something befalls the input of a run that goes on, or its clock; then the run is killed.
fn upset(killed: &Killed, input: &mut Input, delay: Duration, random: &mut Random) -> &'static str {
    let mut command = killed.live(workers(random));
    let is_clock = random.below(4) == 0;
    let clock = is_clock.then(|| Clock::of(&mut command, killed.path("clock"), random));
    let mut run = Running::start(command, killed.path("run.log"));
    std::thread::sleep(delay);
    let kind = match clock {
        Some(clock) => {
            clock.step(random);
            input.produce(200);
            std::thread::sleep(Duration::from_millis(random.below(2000)));
            clock.step(random);
            "clock set"
        }
        None => input.befall(random),
    };
    std::thread::sleep(Duration::from_millis(random.below(2500)));
    assert_eq!(run.ended(), None, "{kind}: {}", run.log());
    run.kill();
    kind
}

/// As which generation a run has taken over, if it has.
fn generation(run: &Running) -> Option<u64> {
    let log = run.log();
    let (_, rest) = log.split_once("claimed the ledger generation=")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_process_that_wakes_up_when_another_has_taken_over_writes_nothing() {
    let mut random = Random(0xda94_2042_e4dd_58b5);
    let victim = Victim::Services(Box::new(Killed::new("frozen", 90_000, 14)));
    let mut fenced = 0;
    for workers in ["3", "2", "3"] {
        let Victim::Services(killed) = &victim else { unreachable!("it is one") };
        let run = Running::start(killed.command(workers), victim.log("run.log"));
        let before = killed.stored();
        wait_for("work", || (killed.stored() > before).then_some(()));
        fenced += u32::from(victim.freeze(run, &mut random) == Some("frozen, fenced"));
    }
    assert!(fenced > 0, "none was asleep while it had something to write");
    victim.ends(&mut random);
    victim.judge();
}

#[test]
#[ignore = "as long as one likes: scripts/torture"]
fn torture() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
    };
    let (minutes, seed) = (number("HEADWATER_TORTURE_MINUTES", 5), number("HEADWATER_TORTURE_SEED", 1));
    let begun = Instant::now();
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    let mut streams = 0;
    while begun.elapsed() < Duration::from_secs(60 * minutes) {
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(streams).max(1));
        let of_stream = random.below(1 << 31);
        let (victim, mut input) = match streams % 3 {
            0 => (Victim::Files(Box::new(files(of_stream, 240_000))), None),
            _ => {
                let (killed, mut input) = Killed::with_input(&format!("torture_{streams}"), of_stream);
                input.produce(10_000);
                (Victim::Services(Box::new(killed)), Some(input))
            }
        };
        let mut faults = 0;
        for _ in 0..FAULTS {
            match (victim.fault(input.as_mut(), &mut random), &mut input) {
                (Some(kind), _) => {
                    *kinds.entry(kind).or_default() += 1;
                    faults += 1;
                }
                (None, Some(input)) => input.produce(2_000),
                (None, None) => break,
            }
        }
        if let (Some(input), Victim::Services(killed)) = (&mut input, &victim) {
            input.record(&killed.path("records.ndjson"));
        }
        victim.ends(&mut random);
        victim.judge();
        streams += 1;
        println!(
            "seed {seed}, stream {streams}: {faults} faults, every result exactly once; so far {kinds:?}"
        );
    }
    let kills: u64 = kinds.values().sum();
    println!("verdict: {streams} streams, {kills} faults {kinds:?}: every result exactly once (seed {seed})");
    assert!(kills > 0, "nothing was tortured");
}
