//! Random faults for a chosen time: `scripts/torture --minutes M --seed S`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::checkpoints::checkpointed_files;
use crate::common::Random;
use crate::crash::Files;
use crate::crash_points::{common_points, needs_services};
use crate::input_faults::{Clock, Input};
use crate::kafka::CrashPipeline;
use crate::live::{Process, wait_for};
use crate::services::Service;

/// The greatest number of faults per stream.
const FAULTS: usize = 15;

/// The pipeline under test: files into SQLite with state in fjall, or Kafka into every sink with state in Redis.
enum Target {
    Files(Box<Files>),
    Services(Box<CrashPipeline>),
}

fn workers(random: &mut Random) -> &'static str {
    ["1", "2", "3"][random.below(3) as usize]
}

impl Target {
    fn command(&self, random: &mut Random) -> Command {
        match self {
            Target::Files(files) => files.command(workers(random)),
            Target::Services(pipeline) => pipeline.until_end_command(workers(random)),
        }
    }

    /// Returns the command for a run that also closes the stream.
    fn last_command(&self, random: &mut Random) -> Command {
        match self {
            Target::Files(files) => files.command(workers(random)),
            Target::Services(pipeline) => pipeline.command(workers(random)),
        }
    }

    fn judge(&self) {
        match self {
            Target::Files(files) => files.judge(),
            Target::Services(pipeline) => pipeline.judge(),
        }
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        match self {
            Target::Files(files) => files.path(name),
            Target::Services(pipeline) => pipeline.path(name),
        }
    }

    /// Injects one fault and returns its kind, or `None` if the run reached the end of its input before.
    fn fault(&self, input: Option<&mut Input>, random: &mut Random) -> Option<&'static str> {
        // A run over files ends soon.
        let delay = random.below(if matches!(self, Target::Files(_)) { 300 } else { 1200 });
        let delay = Duration::from_millis(delay);
        let kind = random.below(if matches!(self, Target::Services(_)) { 22 } else { 10 });
        if let (Target::Services(pipeline), Some(input), 15..) = (self, input, kind) {
            return Some(disturb_input(pipeline, input, delay, random));
        }
        if kind < 4 {
            let mut points = common_points();
            points.retain(|point| matches!(self, Target::Services(_)) || !needs_services(point));
            let (point, nth) = (points[random.below(points.len() as u64) as usize], 1 + random.below(6));
            let mut command = self.command(random);
            command.env("HEADWATER_CRASH_AT", format!("{point}:{nth}"));
            let mut run = Process::start(command, self.log("run.log"));
            let status = run.wait();
            if self.has_failed(&run, status) {
                return Some("failed");
            }
            assert!(status.success() || status.signal() == Some(6), "{point}:{nth} {status}\n{}", run.log());
            return (!status.success()).then_some("crash point");
        }
        let mut run = Process::start(self.command(random), self.log("run.log"));
        std::thread::sleep(delay);
        if let Some(status) = run.try_wait()
            && self.has_failed(&run, status)
        {
            return Some("failed");
        }
        // A state directory belongs to one process, so a frozen process blocks its successor.
        if kind < 7 || (kind > 7 && matches!(self, Target::Files(_))) {
            return run.kill_if_alive().then_some("kill -9");
        }
        if kind == 7 {
            run.terminate();
            let status = run.wait();
            // The run may not have installed its signal handler yet, or a service may have just come back.
            let early = status.signal() == Some(15) && run.log().is_empty();
            assert!(status.success() || early || self.has_failed(&run, status), "{status}\n{}", run.log());
            return Some("SIGTERM");
        }
        match self {
            Target::Services(pipeline) if kind >= 10 => disturb_service(pipeline, run, random),
            _ => self.freeze(run, random),
        }
    }

    /// Returns true if a run has failed because of a service that has just come back, and must be started again.
    fn has_failed(&self, run: &Process, status: ExitStatus) -> bool {
        let failed = status.code() == Some(1);
        assert!(!failed || matches!(self, Target::Services(_)), "{}", run.log());
        failed
    }

    /// Runs the pipeline to its end without faults.
    fn run_to_end(&self, random: &mut Random) {
        for _ in 0..5 {
            let mut run = Process::start(self.last_command(random), self.log("run.log"));
            let status = run.wait();
            if !self.has_failed(&run, status) {
                assert!(status.success(), "{status}\n{}", run.log());
                return;
            }
        }
        panic!("five runs in a row have failed");
    }

    /// Freezes a run while a successor takes over. When the run resumes, it finds itself fenced and writes nothing.
    fn freeze(&self, mut run: Process, random: &mut Random) -> Option<&'static str> {
        run.signal("STOP");
        std::thread::sleep(Duration::from_millis(100));
        let mut successor = Process::start(self.command(random), self.log("successor.log"));
        let claimed = || successor.log().contains("claimed the ledger").then_some(());
        wait_for("the successor", claimed);
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        run.signal("CONT");
        let status = run.wait();
        let fenced = status.code() == Some(3);
        // The run may have ended before it was frozen, or have lost its connections while it was frozen.
        assert!(fenced || matches!(status.code(), Some(0 | 1)), "{status}\n{}", run.log());
        // The resumed run may have taken back its transactional ids before it noticed that it is fenced.
        if let Some(ended) = successor.try_wait() {
            if generation(&run) > generation(&successor) {
                // The run was frozen before its own claim and is the successor itself, unless the other run ended
                // before.
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

/// Injects a fault into a service or into the run's connections to it, then kills the run unless it has failed.
fn disturb_service(pipeline: &CrashPipeline, mut run: Process, random: &mut Random) -> Option<&'static str> {
    let services = pipeline.services();
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
            proxy.hold_responses();
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
            proxy.slow_down();
            std::thread::sleep(time);
            "slow"
        }
        _ => {
            let statement = ["COPY", "COMMIT", "UPDATE"][random.below(3) as usize];
            pipeline.terminate_backends(statement);
            "backends ended"
        }
    };
    proxy.restore();
    std::thread::sleep(Duration::from_millis(random.below(1500)));
    match run.try_wait() {
        None => run.kill(),
        Some(status) => assert!(matches!(status.code(), Some(0 | 1)), "{kind}: {status}\n{}", run.log()),
    }
    Some(kind)
}

/// Injects a fault into the input or the clock of a live run, then kills the run.
fn disturb_input(
    pipeline: &CrashPipeline,
    input: &mut Input,
    delay: Duration,
    random: &mut Random,
) -> &'static str {
    let mut command = pipeline.live_command(workers(random));
    let is_clock = random.below(4) == 0;
    let clock = is_clock.then(|| Clock::attach(&mut command, pipeline.path("clock"), random));
    let mut run = Process::start(command, pipeline.path("run.log"));
    std::thread::sleep(delay);
    let kind = match clock {
        Some(clock) => {
            clock.step(random);
            input.produce(200);
            std::thread::sleep(Duration::from_millis(random.below(2000)));
            clock.step(random);
            "clock set"
        }
        None => input.inject_fault(random),
    };
    std::thread::sleep(Duration::from_millis(random.below(2500)));
    assert_eq!(run.try_wait(), None, "{kind}: {}", run.log());
    run.kill();
    kind
}

/// Returns the generation that a run has claimed, if any.
fn generation(run: &Process) -> Option<u64> {
    let log = run.log();
    let (_, rest) = log.split_once("claimed the ledger generation=")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_frozen_process_writes_nothing_after_a_takeover() {
    let mut random = Random(0xda94_2042_e4dd_58b5);
    let target = Target::Services(Box::new(CrashPipeline::new("frozen", 90_000, 14)));
    let mut fenced = 0;
    for workers in ["3", "2", "3"] {
        let Target::Services(pipeline) = &target else { unreachable!("the target uses services") };
        let run = Process::start(pipeline.command(workers), target.log("run.log"));
        let before = pipeline.stored();
        wait_for("work", || (pipeline.stored() > before).then_some(()));
        fenced += u32::from(target.freeze(run, &mut random) == Some("frozen, fenced"));
    }
    assert!(fenced > 0, "no run was frozen while it had something to write");
    target.run_to_end(&mut random);
    target.judge();
}

/// Returns the number in an environment variable.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
#[ignore = "runs for a chosen time: scripts/torture"]
fn torture() {
    let (minutes, seed) = (number("HEADWATER_TORTURE_MINUTES", 5), number("HEADWATER_TORTURE_SEED", 1));
    let started = Instant::now();
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    let mut streams = 0;
    while started.elapsed() < Duration::from_secs(60 * minutes) {
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(streams).max(1));
        let of_stream = random.below(1 << 31);
        let (target, mut input) = match streams % 3 {
            0 => (Target::Files(Box::new(checkpointed_files(of_stream, 240_000))), None),
            _ => {
                let (pipeline, mut input) =
                    CrashPipeline::with_input(&format!("torture_{streams}"), of_stream);
                input.produce(10_000);
                (Target::Services(Box::new(pipeline)), Some(input))
            }
        };
        let mut faults = 0;
        for _ in 0..FAULTS {
            match (target.fault(input.as_mut(), &mut random), &mut input) {
                (Some(kind), _) => {
                    *kinds.entry(kind).or_default() += 1;
                    faults += 1;
                }
                (None, Some(input)) => input.produce(2_000),
                (None, None) => break,
            }
        }
        if let (Some(input), Target::Services(pipeline)) = (&mut input, &target) {
            input.write_for_oracle(&pipeline.path("records.ndjson"));
        }
        target.run_to_end(&mut random);
        target.judge();
        streams += 1;
        println!(
            "seed {seed}, stream {streams}: {faults} faults, every result exactly once; so far {kinds:?}"
        );
    }
    let kills: u64 = kinds.values().sum();
    println!("verdict: {streams} streams, {kills} faults {kinds:?}: every result exactly once (seed {seed})");
    assert!(kills > 0, "no fault was injected");
}
