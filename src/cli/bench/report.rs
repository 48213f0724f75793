//! The report of `headwater bench stages`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::StagesArgs;

/// The time that a number of events took.
#[derive(Clone, Copy, Debug)]
pub struct StageMeasurement {
    /// The number of events.
    pub events: u64,
    /// The wall time from the first event to the last.
    pub wall: Duration,
    /// The CPU time.
    pub cpu: Cpu,
}

/// CPU time: a total so far, or the difference of two totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The CPU time of this process.
    pub process: Duration,
    /// The CPU time of the whole machine, including the broker, the database and all other processes.
    pub machine: Duration,
}

impl std::ops::Sub for Cpu {
    type Output = Cpu;

    fn sub(self, earlier: Cpu) -> Cpu {
        Cpu { process: self.process - earlier.process, machine: self.machine - earlier.machine }
    }
}

impl StageMeasurement {
    /// Returns the events per second.
    fn rate(&self) -> f64 {
        self.events as f64 / self.wall.as_secs_f64()
    }

    /// Returns the CPU-seconds of this process per million events.
    fn cost(&self) -> f64 {
        self.cpu.process.as_secs_f64() * 1e6 / self.events as f64
    }

    /// Returns the CPU-seconds of the machine per million events.
    fn machine_cost(&self) -> f64 {
        self.cpu.machine.as_secs_f64() * 1e6 / self.events as f64
    }
}

/// The measurement of the whole job.
#[derive(Clone, Copy, Debug)]
pub struct JobMeasurement {
    /// The events and times, as for a stage.
    pub measured: StageMeasurement,
    /// The peak memory in bytes; None if the kernel does not report it.
    pub peak_bytes: Option<u64>,
}

/// All measurements.
#[derive(Debug)]
pub struct Report {
    events: usize,
    workers: usize,
    pace: u32,
    users: u32,
    partitions: u32,
    record_bytes: u32,
    cores: usize,
    stages: Vec<(String, StageMeasurement)>,
    jobs: Vec<(&'static str, JobMeasurement)>,
    /// The sum of CPU-seconds per million events over the stages of each set of sinks: of this process, and of the
    /// machine.
    sums: BTreeMap<&'static str, (f64, f64)>,
    skipped: BTreeMap<&'static str, &'static str>,
}

impl Report {
    /// Returns a report without measurements.
    pub fn new(args: &StagesArgs, skipped: BTreeMap<&'static str, &'static str>) -> Report {
        Report {
            events: args.events,
            workers: args.workers,
            pace: args.pace,
            users: args.users,
            partitions: args.partitions,
            record_bytes: args.record_bytes,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            stages: Vec::new(),
            jobs: Vec::new(),
            sums: BTreeMap::new(),
            skipped,
        }
    }

    /// Adds the measurement of a stage.
    pub fn add_stage(&mut self, name: &str, measured: StageMeasurement) {
        self.stages.push((name.to_owned(), measured));
    }

    /// Adds the measurement of the whole job with a set of sinks.
    pub fn add_job(&mut self, set: &'static str, job: JobMeasurement) {
        self.jobs.push((set, job));
    }

    /// Sets the stages of the job with a set of sinks. Stages without a measurement cost nothing.
    pub fn set_stages<'n>(&mut self, set: &'static str, stages: impl IntoIterator<Item = &'n &'n str>) {
        let measured =
            |name: &&str| self.stages.iter().find(|(stage, _)| stage == name).map(|(_, measured)| *measured);
        let sums = stages.into_iter().filter_map(measured).fold((0.0, 0.0), |(process, machine), stage| {
            (process + stage.cost(), machine + stage.machine_cost())
        });
        self.sums.insert(set, sums);
    }

    /// Returns the rate of the whole job as a share of the rate that the cores could reach if they did only this
    /// process's work in the stages.
    fn roofline_fraction(&self, set: &str, job: &JobMeasurement) -> Option<f64> {
        self.share_of_cores(job, self.sums.get(set)?.0)
    }

    /// Returns the same share, with the work of brokers and databases on the same cores included in the stages.
    fn machine_roofline_fraction(&self, set: &str, job: &JobMeasurement) -> Option<f64> {
        self.share_of_cores(job, self.sums.get(set)?.1)
    }

    fn share_of_cores(&self, job: &JobMeasurement, sum: f64) -> Option<f64> {
        (sum > 0.0).then(|| job.measured.rate() / (self.cores as f64 * 1e6 / sum))
    }

    /// Returns the CPU time of the separate stages as a share of the CPU time of the whole job. The rest is the cost of
    /// combining them. The share is valid on a busy machine, too.
    fn cpu_fraction(&self, set: &str, job: &JobMeasurement) -> Option<f64> {
        let (sum, _) = self.sums.get(set).filter(|_| !job.measured.cpu.process.is_zero())?;
        Some(sum / job.measured.cost())
    }

    /// Returns the report as one JSON object.
    pub fn json(&self) -> Value {
        let stages = |value: &dyn Fn(&StageMeasurement) -> f64| -> Value {
            self.stages.iter().map(|(name, measured)| (name.clone(), json!(value(measured)))).collect()
        };
        let jobs = |value: &dyn Fn(&str, &JobMeasurement) -> Value| -> Value {
            self.jobs.iter().map(|(name, job)| ((*name).to_owned(), value(name, job))).collect()
        };
        json!({
            "events": self.events,
            "workers": self.workers,
            "pace": self.pace,
            "users": self.users,
            "partitions": self.partitions,
            "record_bytes": self.record_bytes,
            "cores": self.cores,
            "cpu_s_per_million": stages(&StageMeasurement::cost),
            "machine_cpu_s_per_million": stages(&StageMeasurement::machine_cost),
            "events_per_s": stages(&|stage| stage.rate().round()),
            "whole_events_per_s": jobs(&|_, job| json!(job.measured.rate().round())),
            "whole_cpu_s_per_million": jobs(&|_, job| json!(job.measured.cost())),
            "peak_rss_bytes": jobs(&|_, job| json!(job.peak_bytes)),
            "roofline_fraction": jobs(&|set, job| json!(self.roofline_fraction(set, job))),
            "whole_machine_cpu_s_per_million": jobs(&|_, job| json!(job.measured.machine_cost())),
            "machine_roofline_fraction": jobs(&|set, job| json!(self.machine_roofline_fraction(set, job))),
            "cpu_fraction": jobs(&|set, job| json!(self.cpu_fraction(set, job))),
            "left_out": self.skipped,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (own, machine) = ("CPU-s/million events", "of the machine");
        if !self.stages.is_empty() {
            writeln!(f, "{:<20} {:>12} {own:>22} {machine:>16}", "stage", "events/s")?;
        }
        for (name, stage) in &self.stages {
            let (rate, own, machine) = (stage.rate(), stage.cost(), stage.machine_cost());
            writeln!(f, "{name:<20} {rate:>12.0} {own:>22.2} {machine:>16.2}")?;
        }
        writeln!(
            f,
            "{}{:<20} {:>12} {own:>22} {machine:>16} {:>10} {:>14} {:>14} {machine:>16}",
            if self.stages.is_empty() { "" } else { "\n" },
            "whole job",
            "events/s",
            "peak MiB",
            "stages ÷ job",
            "of cores ÷ sum"
        )?;
        for (name, job) in &self.jobs {
            let peak = job.peak_bytes.map_or("-".to_owned(), |bytes| (bytes >> 20).to_string());
            let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.2}"));
            let cpu = share(self.cpu_fraction(name, job));
            let roofline = share(self.roofline_fraction(name, job));
            let with_services = share(self.machine_roofline_fraction(name, job));
            let JobMeasurement { measured, .. } = job;
            let (rate, own, machine) = (measured.rate(), measured.cost(), measured.machine_cost());
            write!(f, "{name:<20} {rate:>12.0} {own:>22.2} {machine:>16.2} {peak:>10} {cpu:>14} ")?;
            writeln!(f, "{roofline:>14} {with_services:>16}")?;
        }
        for (name, reason) in &self.skipped {
            writeln!(f, "{name:<20} skipped: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(wall_s: u64, cpu_s: u64) -> StageMeasurement {
        let (process, machine) = (Duration::from_secs(cpu_s), Duration::from_secs(2 * cpu_s));
        StageMeasurement {
            events: 1_000_000,
            wall: Duration::from_secs(wall_s),
            cpu: Cpu { process, machine },
        }
    }

    #[test]
    fn roofline_is_the_cores_divided_by_the_sum_of_stages() {
        let args = StagesArgs {
            config: "x".into(),
            events: 1_000_000,
            pace: 500,
            users: 50_000,
            partitions: 6,
            record_bytes: 0,
            only: None,
            workers: 2,
            json: true,
        };
        let mut report = Report::new(&args, BTreeMap::from([("postgres", "there is no [sinks.postgres]")]));
        report.cores = 2;
        report.add_stage("read_decode", measured(1, 1));
        report.add_stage("dataflow_alerts", measured(2, 3));
        report.add_stage("copy", measured(9, 9));
        report.add_job("alerts", JobMeasurement { measured: measured(4, 5), peak_bytes: Some(3 << 20) });
        report.set_stages("alerts", &["read_decode", "dataflow_alerts", "produce"]);
        let json = report.json();
        // Two cores and four CPU-seconds: the best possible time is two seconds, and the job took four.
        assert_eq!(json["roofline_fraction"]["alerts"], 0.5);
        assert_eq!(json["machine_roofline_fraction"]["alerts"], 1.0);
        assert_eq!(json["cpu_fraction"]["alerts"], 0.8);
        assert_eq!(json["whole_events_per_s"]["alerts"], 250_000.0);
        assert_eq!(json["cpu_s_per_million"]["copy"], 9.0);
        assert_eq!(json["left_out"]["postgres"], "there is no [sinks.postgres]");
        let text = report.to_string();
        assert!(text.contains("postgres") && text.contains("skipped"), "{text}");
    }
}
