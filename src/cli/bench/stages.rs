//! `headwater bench stages`: what each stage of the main job costs alone, and how much of it the whole job reaches.
//!
//! ```text
//!   generator ─▶ topic ─┬▶ read                               ┐
//!                       ├▶ read, decode                       │ each alone: CPU-seconds per million events
//!   generator, decoded ─┼▶ dataflow, told to each set's sinks │
//!                       ├▶ produce, COPY: what it told them   ┘
//!                       └▶ the whole job with each set of sinks: events/s ÷ (cores ÷ sum of its stages)
//! ```
//!
//! CPU time is this process's, the clients' threads included, and the machine's, with the broker and the database if they
//! are there and with whatever else runs.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use differential_dataflow::AsCollection;
use headwater_dataflows::{Captures, Epoch, Partition};
use headwater_sinks::{Changes, CommitPermit, Generation, LedgerId, Shards, WriterContext};
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::generic::operator::empty;

use super::drive::{Drive, events};
use super::report::{Cpu, Measured, Report, Whole};
use super::scratch::Scratch;
use super::usage;
use crate::cli::command::StagesArgs;
use crate::cli::output::{note, out, outln};
use crate::cli::{build, kafka_source, load, stop};
use crate::config::{Config, OutputKind, SinksConfig};
use crate::decode::Decoder;
use crate::event::Event;
use crate::metrics::Metrics;
use crate::outputs::{SinkEncoding, SinkRoute};
use crate::runtime::{Inputs, SinkJob, compute};
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::produce::{Produced, Producer};
use crate::source::{Budget, Raw};

/// How many epochs a sink commits at a time when it is measured alone: what 200 ms bring at 90 thousand a second.
const EPOCHS_A_ROUND: usize = 3;

/// How many records are read at a time, as the runtime does.
const BUDGET: usize = 1024;

/// How long the topic may deliver nothing before its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often is looked for news.
const PAUSE: Duration = Duration::from_millis(1);

/// Measures and prints.
///
/// # Errors
/// If the configuration is not fit, or something fails on the way.
pub fn stages(args: &StagesArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let settings = GeneratorSettings { pace: args.pace, ..GeneratorSettings::default() };
    settings.validate().map_err(anyhow::Error::msg)?;
    let stopping = Arc::new(AtomicBool::new(false));
    stop::on(stop::signals()?, &stopping, None);
    let mut bench = Bench { args, config, settings, stopping, scratch: Scratch::new() };
    let measured = bench.measure();
    let removed = bench.scratch.remove();
    let report = measured?;
    removed?;
    if args.json {
        outln!("{}", report.json())?;
    } else {
        out!("{report}")?;
    }
    Ok(())
}

/// A set of sinks, and what it takes beside reading, decoding and the dataflow.
struct SinkSet {
    name: &'static str,
    sinks: SinksConfig,
    also: &'static [&'static str],
}

/// The sets that a configuration has the services for, and those that it has not, with the reason.
fn sink_sets(sinks: &SinksConfig) -> (Vec<SinkSet>, BTreeMap<&'static str, &'static str>) {
    let topics = |topics: &[OutputKind]| {
        let kafka = sinks.kafka.clone().map(|mut kafka| {
            kafka.write_only(topics);
            kafka
        });
        SinksConfig { kafka, postgres: None, sqlite: None }
    };
    let (alerts, enriched) =
        (topics(&[OutputKind::Alerts]), topics(&[OutputKind::Alerts, OutputKind::Events]));
    let tables = SinksConfig { postgres: sinks.postgres.clone(), ..enriched.clone() };
    let all = [
        SinkSet { name: "alerts", sinks: alerts, also: &[] },
        SinkSet { name: "enriched", sinks: enriched, also: &["produce"] },
        SinkSet { name: "postgres", sinks: tables, also: &["produce", "copy"] },
    ];
    let missing = |set: &SinkSet| match (&set.sinks.kafka, &set.sinks.postgres) {
        (None, _) => Some("there is no [sinks.kafka]"),
        (_, None) if set.also.contains(&"copy") => Some("there is no [sinks.postgres]"),
        _ => None,
    };
    let left_out = all.iter().filter_map(|set| Some((set.name, missing(set)?))).collect();
    (all.into_iter().filter(|set| missing(set).is_none()).collect(), left_out)
}

struct Bench<'a> {
    args: &'a StagesArgs,
    config: Config,
    settings: GeneratorSettings,
    stopping: Arc<AtomicBool>,
    scratch: Scratch,
}

impl Bench<'_> {
    fn measure(&mut self) -> anyhow::Result<Report> {
        let (sets, left_out) = sink_sets(&self.config.sinks);
        let mut report = Report::new(self.args, left_out);
        self.fill()?;
        // The whole first: later stages hold all events in memory, which would show in its peak.
        for set in &sets {
            let whole = self.whole(set)?;
            report.whole(set.name, whole);
        }
        report.stage("read", self.reading(|raw| _ = black_box(raw))?);
        let mut decoder = Decoder::default();
        report.stage("read_decode", self.reading(|raw| _ = black_box(decoder.decode(raw)))?);

        let events = events(self.settings.clone(), self.args.events);
        for set in &sets {
            let stage = format!("dataflow_{}", set.name);
            report.stage(&stage, self.dataflow(set, &events)?);
        }
        let has = |stage| sets.iter().any(|set| set.also.contains(&stage));
        if has("produce") {
            report.stage(
                "produce",
                self.writing("produce", &events, |sinks| {
                    sinks.postgres = None;
                    // Alerts have a writer of their own, and are few.
                    sinks.kafka.iter_mut().for_each(|kafka| kafka.write_only(&[OutputKind::Events]));
                })?,
            );
        }
        if has("copy") {
            report.stage("copy", self.writing("copy", &events, |sinks| sinks.kafka = None)?);
        }
        for set in &sets {
            let dataflow = format!("dataflow_{}", set.name);
            report.sum(set.name, ["read_decode", &dataflow].iter().chain(set.also));
        }
        Ok(report)
    }

    fn go_on(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.stopping.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Makes the input topic and fills it.
    fn fill(&mut self) -> anyhow::Result<()> {
        let topic = self.scratch.input(&mut self.config)?;
        let source = kafka_source(&self.config)?;
        let partitions = u64::from(self.settings.partitions);
        let mut maker = RecordMaker::new(self.settings.clone());
        let records = (0..self.args.events as u64).map(|n| {
            let (partition, offset) = ((n % partitions) as u32, n / partitions);
            maker.make(partition, offset, None);
            let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
            Produced { partition: Some(partition), key, value, headers: Vec::new() }
        });
        note!("producing {} records …", self.args.events);
        let producer = Producer::connect(&source.brokers, &source.options, &topic)?;
        producer.run(records, None, &self.stopping, &mut |_| {})?;
        self.go_on()
    }

    /// The job as `headwater run --until-end --close` has it. Time counts from its first event: opening sinks takes
    /// seconds.
    fn whole(&mut self, set: &SinkSet) -> anyhow::Result<Whole> {
        note!("the whole job, {} …", set.name);
        let mut config = self.config.clone();
        config.sinks = set.sinks.clone();
        self.scratch.isolate(&mut config, set.name)?;
        config.plan.close_at_end = true;
        let metrics = Arc::new(Metrics::default());
        let workers = timely::Config::process(self.args.workers);
        let mut job = build::job(&config, true, workers, Arc::clone(&metrics))?;
        job.sinks = build::sinks(&config, &self.scratch.topics_of(set.name));
        job.stopping = Arc::clone(&self.stopping);
        let peak = usage::reset_peak();
        let charged = cpu()?;
        let done = AtomicBool::new(false);
        let (ran, first, last) = thread::scope(|scope| {
            let first = scope.spawn(|| {
                while metrics.event_count() == 0 && !done.load(Ordering::Relaxed) {
                    thread::sleep(PAUSE);
                }
                (Instant::now(), cpu())
            });
            let ran = crate::runtime::run(job);
            let last = Instant::now();
            done.store(true, Ordering::Relaxed);
            (ran, first.join(), last)
        });
        ran?;
        self.go_on()?;
        let (first, begun) = first.expect("a panic ends the process");
        let wall = last.saturating_duration_since(first);
        // The machine may be busy with others while sinks are opened.
        let cpu = cpu()? - Cpu { process: charged.process, machine: begun?.machine };
        let peak_bytes = usage::peak_bytes().filter(|_| peak);
        Ok(Whole { measured: Measured { events: self.args.events as u64, wall, cpu }, peak_bytes })
    }

    /// Reads the input topic to its end, on this thread.
    fn reading(&self, mut each: impl FnMut(Raw<'_>)) -> anyhow::Result<Measured> {
        note!("reading …");
        let mut config = self.config.clone();
        // Never committed to, so the group never comes to be.
        config.plan.pipeline = format!("{}reader", self.scratch.prefix).into();
        let charged = cpu()?;
        let source = build::source(&config, true)(None)?;
        let starts: Vec<_> = (0..).map(Partition).zip(source.start().iter().copied()).collect();
        let mut reader = source.reader(&starts)?;
        let mut begun = None;
        let mut last = Instant::now();
        let mut count = 0;
        loop {
            let read = reader.read(Budget::records(BUDGET), &mut each)?;
            count += read as u64;
            if read > 0 {
                last = Instant::now();
                begun.get_or_insert(last);
            } else if reader.partitions().iter().all(|partition| partition.ended) {
                break;
            } else {
                anyhow::ensure!(last.elapsed() < PATIENCE, "nothing came for {PATIENCE:?}");
                self.go_on()?;
                thread::sleep(PAUSE);
            }
        }
        let wall = begun.map_or(Duration::ZERO, |begun| last - begun);
        Ok(Measured { events: count, wall, cpu: cpu()? - charged })
    }

    /// What is computed of events in memory, and told to the sinks of a set.
    fn dataflow(&self, set: &SinkSet, events: &[Event]) -> anyhow::Result<Measured> {
        note!("the dataflow, {} …", set.name);
        let mut config = self.config.clone();
        config.sinks = set.sinks.clone();
        let sinks = build::sinks(&config, "");
        let routes: Arc<[SinkRoute]> = sinks.iter().map(|sink| SinkRoute::to_all(sink.encoding)).collect();
        let plan = config.plan;
        let metrics = Arc::new(Metrics::default());
        let behind_ms = plan.time.max_out_of_orderness_ms;
        let drive = Drive { workers: self.args.workers, behind_ms, close: true };
        let spent = drive.run(events, move |events, control| {
            let scope = events.inner.scope();
            let (rejected, captures) = (empty(scope).as_collection(), Captures::off(scope));
            compute(Inputs { events, rejected, control }, &captures, &plan, &routes, &metrics).encoded
        });
        self.go_on()?;
        let alone = spent.cpu.context(UNACCOUNTED)?;
        let cpu = Cpu { process: alone, machine: alone };
        Ok(Measured { events: events.len() as u64, wall: spent.wall, cpu })
    }

    /// The only sink that `choose` leaves, fed with all that the dataflow tells it, encoded already.
    fn writing(
        &mut self,
        stage: &str,
        events: &[Event],
        choose: impl FnOnce(&mut SinksConfig),
    ) -> anyhow::Result<Measured> {
        note!("{stage} …");
        let mut config = self.config.clone();
        choose(&mut config.sinks);
        self.scratch.isolate(&mut config, stage)?;
        let sinks = build::sinks(&config, &self.scratch.topics_of(stage));
        let SinkJob { mut sink, encoding, .. } = sinks.into_iter().next().context("there is no such sink")?;
        let mut rounds = encoded(&config, events, encoding);
        sink.open(&WriterContext {
            pipeline: config.plan.pipeline.to_string(),
            ledger_id: LedgerId(format!("{:032x}", crate::wall::wall_ms())),
            generation: Generation(1),
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        })?;
        let (begun, charged) = (Instant::now(), cpu()?);
        for round in rounds.chunks_mut(EPOCHS_A_ROUND) {
            let mut through = Epoch(0);
            for (epoch, all) in round {
                all.drain(..).try_for_each(|changes| sink.stage(*epoch, changes))?;
                through = *epoch;
            }
            sink.commit(CommitPermit::granted(through))?;
            self.go_on()?;
        }
        Ok(Measured { events: events.len() as u64, wall: begun.elapsed(), cpu: cpu()? - charged })
    }
}

/// What the dataflow over these events tells a sink, epoch by epoch.
fn encoded(config: &Config, events: &[Event], encoding: SinkEncoding) -> Vec<(Epoch, Vec<Changes>)> {
    let plan = config.plan.clone();
    let routes: Arc<[SinkRoute]> = Arc::new([SinkRoute::to_all(encoding)]);
    let all: Arc<Mutex<BTreeMap<Epoch, Vec<Changes>>>> = Arc::default();
    let (metrics, gathered) = (Arc::new(Metrics::default()), Arc::clone(&all));
    let drive = Drive { workers: 1, behind_ms: plan.time.max_out_of_orderness_ms, close: true };
    drive.run(events, move |events, control| {
        let scope = events.inner.scope();
        let (rejected, captures) = (empty(scope).as_collection(), Captures::off(scope));
        let all = Arc::clone(&gathered);
        let encoded =
            compute(Inputs { events, rejected, control }, &captures, &plan, &routes, &metrics).encoded;
        encoded.inspect(move |(epoch, encoded)| {
            let changes = encoded.iter().filter(|changes| !changes.is_empty()).cloned();
            all.lock().expect("nobody panics with it").entry(*epoch).or_default().extend(changes);
        })
    });
    let all = std::mem::take(&mut *all.lock().expect("nobody panics with it"));
    all.into_iter().collect()
}

const UNACCOUNTED: &str = "CPU time is not accounted for here: this needs Linux and /proc";

fn cpu() -> anyhow::Result<Cpu> {
    let (process, machine) = usage::process_cpu().zip(usage::machine_cpu()).context(UNACCOUNTED)?;
    Ok(Cpu { process, machine })
}

#[cfg(test)]
mod tests {
    use super::super::drive::{EPOCH, in_order};
    use super::*;

    const KAFKA: &str = "pipeline = \"x\"\n[source]\nkind = \"kafka\"\n[sinks.kafka]\n";

    fn names(text: &str) -> (Vec<&'static str>, Vec<&'static str>) {
        let config = Config::parse(text, std::iter::empty()).expect("valid");
        let (sets, left_out) = sink_sets(&config.sinks);
        (sets.iter().map(|set| set.name).collect(), left_out.into_keys().collect())
    }

    #[test]
    fn a_set_whose_service_is_missing_is_left_out_by_name() {
        let postgres = format!("{KAFKA}[sinks.postgres]\nurl = \"postgres://x@y/z\"\n");
        assert_eq!(names(&postgres), (vec!["alerts", "enriched", "postgres"], vec![]));
        assert_eq!(names(KAFKA), (vec!["alerts", "enriched"], vec!["postgres"]));
        let sqlite = "pipeline = \"x\"\n[source]\nkind = \"kafka\"\n[sinks.sqlite]\npath = \"x.db\"\n";
        assert_eq!(names(sqlite), (vec![], vec!["alerts", "enriched", "postgres"]));
    }

    #[test]
    fn every_event_is_told_once_and_epochs_ascend() {
        let events = events(in_order(), EPOCH + 100);
        let config = Config::parse(KAFKA, std::iter::empty()).expect("valid");
        let encoding = build::sinks(&config, "").pop().expect("the sink of events").encoding;
        let rounds = encoded(&config, &events, encoding);
        assert!(rounds.is_sorted_by_key(|(epoch, _)| *epoch));
        let encoded = rounds.iter().flat_map(|(_, all)| all).map(|changes| changes.messages.iter().count());
        assert!(encoded.sum::<usize>() >= events.len());
    }
}
