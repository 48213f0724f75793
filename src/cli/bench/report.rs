//! What `headwater bench stages` found, in figures.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::command::StagesArgs;

/// What some events took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How many events.
    pub events: u64,
    /// From the first to the last.
    pub wall: Duration,
    /// CPU time.
    pub cpu: Cpu,
}

/// CPU time, so far or of a stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of this process.
    pub process: Duration,
    /// Of the whole machine: the broker, the database, and whatever else runs there.
    pub machine: Duration,
}

impl std::ops::Sub for Cpu {
    type Output = Cpu;

    fn sub(self, earlier: Cpu) -> Cpu {
        Cpu { process: self.process - earlier.process, machine: self.machine - earlier.machine }
    }
}

impl Measured {
    /// Events a second.
    fn rate(&self) -> f64 {
        self.events as f64 / self.wall.as_secs_f64()
    }

    /// CPU-seconds of this process per million events.
    fn cost(&self) -> f64 {
        self.cpu.process.as_secs_f64() * 1e6 / self.events as f64
    }

    /// CPU-seconds of the machine per million events.
    fn machine_cost(&self) -> f64 {
        self.cpu.machine.as_secs_f64() * 1e6 / self.events as f64
    }
}

/// What the whole job took.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// As for a stage.
    pub measured: Measured,
    /// The most memory it had, in bytes; none if the kernel does not say.
    pub peak_bytes: Option<u64>,
}

/// All figures.
#[derive(Debug)]
pub struct Report {
    events: usize,
    workers: usize,
    pace: u32,
    cores: usize,
    stages: Vec<(String, Measured)>,
    wholes: Vec<(&'static str, Whole)>,
    /// By set of sinks, CPU-seconds per million events of its stages: this process's, and the machine's.
    sums: BTreeMap<&'static str, (f64, f64)>,
    left_out: BTreeMap<&'static str, &'static str>,
}

impl Report {
    /// Without figures yet.
    pub fn new(args: &StagesArgs, left_out: BTreeMap<&'static str, &'static str>) -> Report {
        Report {
            events: args.events,
            workers: args.workers,
            pace: args.pace,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            stages: Vec::new(),
            wholes: Vec::new(),
            sums: BTreeMap::new(),
            left_out,
        }
    }

    /// Takes in a stage.
    pub fn stage(&mut self, name: &str, measured: Measured) {
        self.stages.push((name.to_owned(), measured));
    }

    /// Takes in the whole job with a set of sinks.
    pub fn whole(&mut self, set: &'static str, whole: Whole) {
        self.wholes.push((set, whole));
    }

    /// Says of which stages the job with a set of sinks consists; those not measured cost nothing.
    pub fn sum<'n>(&mut self, set: &'static str, stages: impl IntoIterator<Item = &'n &'n str>) {
        let measured =
            |name: &&str| self.stages.iter().find(|(stage, _)| stage == name).map(|(_, measured)| *measured);
        let sums = stages.into_iter().filter_map(measured).fold((0.0, 0.0), |(process, machine), stage| {
            (process + stage.cost(), machine + stage.machine_cost())
        });
        self.sums.insert(set, sums);
    }

    /// The share that the whole job reaches of what the cores could do if this process's part of its stages were all
    /// there is to do.
    fn roofline_fraction(&self, set: &str, whole: &Whole) -> Option<f64> {
        self.of_cores(whole, self.sums.get(set)?.0)
    }

    /// The same, with what brokers and databases on the same cores take of the stages.
    fn machine_roofline_fraction(&self, set: &str, whole: &Whole) -> Option<f64> {
        self.of_cores(whole, self.sums.get(set)?.1)
    }

    fn of_cores(&self, whole: &Whole, sum: f64) -> Option<f64> {
        (sum > 0.0).then(|| whole.measured.rate() / (self.cores as f64 * 1e6 / sum))
    }

    /// The share of the whole job's CPU time that its stages take alone: the rest is what joining them costs. It holds on
    /// a busy machine, too.
    fn cpu_fraction(&self, set: &str, whole: &Whole) -> Option<f64> {
        let (sum, _) = self.sums.get(set).filter(|_| !whole.measured.cpu.process.is_zero())?;
        Some(sum / whole.measured.cost())
    }

    /// As one object.
    pub fn json(&self) -> Value {
        let stages = |value: &dyn Fn(&Measured) -> f64| -> Value {
            self.stages.iter().map(|(name, measured)| (name.clone(), json!(value(measured)))).collect()
        };
        let wholes = |value: &dyn Fn(&str, &Whole) -> Value| -> Value {
            self.wholes.iter().map(|(name, whole)| ((*name).to_owned(), value(name, whole))).collect()
        };
        json!({
            "events": self.events,
            "workers": self.workers,
            "pace": self.pace,
            "cores": self.cores,
            "cpu_s_per_million": stages(&Measured::cost),
            "machine_cpu_s_per_million": stages(&Measured::machine_cost),
            "events_per_s": stages(&|stage| stage.rate().round()),
            "whole_events_per_s": wholes(&|_, whole| json!(whole.measured.rate().round())),
            "whole_cpu_s_per_million": wholes(&|_, whole| json!(whole.measured.cost())),
            "peak_rss_bytes": wholes(&|_, whole| json!(whole.peak_bytes)),
            "roofline_fraction": wholes(&|set, whole| json!(self.roofline_fraction(set, whole))),
            "whole_machine_cpu_s_per_million": wholes(&|_, whole| json!(whole.measured.machine_cost())),
            "machine_roofline_fraction": wholes(&|set, whole| json!(self.machine_roofline_fraction(set, whole))),
            "cpu_fraction": wholes(&|set, whole| json!(self.cpu_fraction(set, whole))),
            "left_out": self.left_out,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (own, machine) = ("CPU-s/million events", "of the machine");
        writeln!(f, "{:<20} {:>12} {own:>22} {machine:>16}", "alone", "events/s")?;
        for (name, stage) in &self.stages {
            let (rate, own, machine) = (stage.rate(), stage.cost(), stage.machine_cost());
            writeln!(f, "{name:<20} {rate:>12.0} {own:>22.2} {machine:>16.2}")?;
        }
        writeln!(
            f,
            "\n{:<20} {:>12} {own:>22} {machine:>16} {:>10} {:>14} {:>14} {machine:>16}",
            "the whole, into", "events/s", "peak MiB", "sum of its CPU", "of cores ÷ sum"
        )?;
        for (name, whole) in &self.wholes {
            let peak = whole.peak_bytes.map_or("-".to_owned(), |bytes| (bytes >> 20).to_string());
            let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.2}"));
            let cpu = share(self.cpu_fraction(name, whole));
            let roofline = share(self.roofline_fraction(name, whole));
            let with_services = share(self.machine_roofline_fraction(name, whole));
            let Whole { measured, .. } = whole;
            let (rate, own, machine) = (measured.rate(), measured.cost(), measured.machine_cost());
            write!(f, "{name:<20} {rate:>12.0} {own:>22.2} {machine:>16.2} {peak:>10} {cpu:>14} ")?;
            writeln!(f, "{roofline:>14} {with_services:>16}")?;
        }
        for (name, reason) in &self.left_out {
            writeln!(f, "{name:<20} left out: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(wall_s: u64, cpu_s: u64) -> Measured {
        let (process, machine) = (Duration::from_secs(cpu_s), Duration::from_secs(2 * cpu_s));
        Measured { events: 1_000_000, wall: Duration::from_secs(wall_s), cpu: Cpu { process, machine } }
    }

    #[test]
    fn the_roofline_is_cores_by_the_sum_of_the_stages_of_a_set() {
        let args = StagesArgs { config: "x".into(), events: 1_000_000, pace: 500, workers: 2, json: true };
        let mut report = Report::new(&args, BTreeMap::from([("postgres", "there is no [sinks.postgres]")]));
        report.cores = 2;
        report.stage("read_decode", measured(1, 1));
        report.stage("dataflow_alerts", measured(2, 3));
        report.stage("copy", measured(9, 9));
        report.whole("alerts", Whole { measured: measured(4, 5), peak_bytes: Some(3 << 20) });
        report.sum("alerts", &["read_decode", "dataflow_alerts", "produce"]);
        let json = report.json();
        // Two cores and four CPU-seconds: two seconds at best, and it took four.
        assert_eq!(json["roofline_fraction"]["alerts"], 0.5);
        assert_eq!(json["machine_roofline_fraction"]["alerts"], 1.0);
        assert_eq!(json["cpu_fraction"]["alerts"], 0.8);
        assert_eq!(json["whole_events_per_s"]["alerts"], 250_000.0);
        assert_eq!(json["cpu_s_per_million"]["copy"], 9.0);
        assert_eq!(json["left_out"]["postgres"], "there is no [sinks.postgres]");
        let text = report.to_string();
        assert!(text.contains("postgres") && text.contains("left out"), "{text}");
    }
}
