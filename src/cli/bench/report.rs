//! What `headwater bench stages` found, in figures.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::args::StagesArgs;

/// What some events took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How many events.
    pub events: u64,
    /// From the first to the last.
    pub wall: Duration,
    /// CPU time of this process.
    pub cpu: Duration,
}

impl Measured {
    /// Events a second.
    fn rate(&self) -> f64 {
        self.events as f64 / self.wall.as_secs_f64()
    }

    /// CPU-seconds per million events.
    fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.events as f64
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
    /// By set of sinks, CPU-seconds per million events of its stages.
    sums: BTreeMap<&'static str, f64>,
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
        let cost = |name: &&str| {
            self.stages.iter().find(|(stage, _)| stage == name).map_or(0.0, |(_, measured)| measured.cost())
        };
        let sum = stages.into_iter().map(cost).sum();
        self.sums.insert(set, sum);
    }

    /// The share that the whole job reaches of what the cores could do if its stages were all there is to it.
    fn roofline_fraction(&self, set: &str, whole: &Whole) -> Option<f64> {
        let sum = self.sums.get(set).filter(|sum| **sum > 0.0)?;
        Some(whole.measured.rate() / (self.cores as f64 * 1e6 / sum))
    }

    /// The share of the whole job's CPU time that its stages take alone: the rest is what joining them costs. It holds on
    /// a busy machine, too.
    fn cpu_fraction(&self, set: &str, whole: &Whole) -> Option<f64> {
        let sum = self.sums.get(set).filter(|_| !whole.measured.cpu.is_zero())?;
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
            "events_per_s": stages(&|stage| stage.rate().round()),
            "whole_events_per_s": wholes(&|_, whole| json!(whole.measured.rate().round())),
            "whole_cpu_s_per_million": wholes(&|_, whole| json!(whole.measured.cost())),
            "peak_rss_bytes": wholes(&|_, whole| json!(whole.peak_bytes)),
            "roofline_fraction": wholes(&|set, whole| json!(self.roofline_fraction(set, whole))),
            "cpu_fraction": wholes(&|set, whole| json!(self.cpu_fraction(set, whole))),
            "left_out": self.left_out,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>12} {:>22}", "alone", "events/s", "CPU-s/million events")?;
        for (name, stage) in &self.stages {
            writeln!(f, "{name:<20} {:>12.0} {:>22.2}", stage.rate(), stage.cost())?;
        }
        writeln!(
            f,
            "\n{:<20} {:>12} {:>22} {:>10} {:>14} {:>14}",
            "the whole, into",
            "events/s",
            "CPU-s/million events",
            "peak MiB",
            "sum of its CPU",
            "of cores ÷ sum"
        )?;
        for (name, whole) in &self.wholes {
            let peak = whole.peak_bytes.map_or("-".to_owned(), |bytes| (bytes >> 20).to_string());
            let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.2}"));
            let (cpu, roofline) =
                (share(self.cpu_fraction(name, whole)), share(self.roofline_fraction(name, whole)));
            let (rate, cost) = (whole.measured.rate(), whole.measured.cost());
            writeln!(f, "{name:<20} {rate:>12.0} {cost:>22.2} {peak:>10} {cpu:>14} {roofline:>14}")?;
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
        let (wall, cpu) = (Duration::from_secs(wall_s), Duration::from_secs(cpu_s));
        Measured { events: 1_000_000, wall, cpu }
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
        assert_eq!(json["cpu_fraction"]["alerts"], 0.8);
        assert_eq!(json["whole_events_per_s"]["alerts"], 250_000.0);
        assert_eq!(json["cpu_s_per_million"]["copy"], 9.0);
        assert_eq!(json["left_out"]["postgres"], "there is no [sinks.postgres]");
        let text = report.to_string();
        assert!(text.contains("postgres") && text.contains("left out"), "{text}");
    }
}
