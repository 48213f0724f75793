//! `headwater bench stages`: measures the cost of each stage of the main job alone, and compares the whole job with the
//! sum.
//!
//! ```text
//!   generator ─▶ topic ─┬▶ read                               ┐
//!                       ├▶ read, decode                       │ each alone: CPU-seconds per million events
//!   generator, decoded ─┼▶ dataflow, encoded for a set's sinks│
//!                       ├▶ produce, COPY of the encoded output┘
//!                       └▶ the whole job with each set of sinks: events/s ÷ (cores ÷ sum of its stages)
//! ```
//!
//! CPU time is measured for this process, including the threads of clients, and for the machine, including the broker
//! and the database if they run on it, and all other processes.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use differential_dataflow::{AsCollection, VecCollection};
use headwater_dataflows::RefusedLog;
use headwater_dataflows::{Captures, ControlStream, Epoch, Partition};
use headwater_sinks::{Changes, CommitPermit, Generation, LedgerId, Shards, WriterContext};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::generic::operator::empty;

use super::args::StagesArgs;
use super::drive::{Drive, events};
use super::report::{Cpu, JobMeasurement, Report, StageMeasurement};
use super::scratch::Scratch;
use super::usage;
use crate::assembly;
use crate::cli::output::{self, note};
use crate::cli::{kafka_source, load, stop};
use crate::config::{Config, OutputKind, SinkConfig, SinksConfig};
use crate::decode::{Decoder, JsonDecoder};
use crate::event::Event;
use crate::metrics::Metrics;
use crate::outputs::SinkJob;
use crate::outputs::{EncodedOutputs, SinkEncoding, SinkRoute};
use crate::pipeline::{Inputs, Plan, RuleHistory, compute};
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::produce::{Produced, Producer};
use crate::source::{Budget, Raw};

/// The number of epochs per commit when a sink is measured alone: the events of 200 ms at 90,000 events per second.
const EPOCHS_PER_ROUND: usize = 3;

/// The maximum number of records per read, as in the runtime.
const BUDGET: usize = 1024;

/// The timeout for further records before the end of the topic.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The polling interval.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Measures all stages and prints the report.
///
/// # Errors
/// If the configuration is unsuitable, or a measurement fails.
pub fn stages(args: &StagesArgs) -> anyhow::Result<()> {
    let mut config = load(&args.config)?;
    config.routes.clear();
    let StagesArgs { pace, users, partitions, .. } = *args;
    let settings = GeneratorSettings { pace, users, partitions, ..GeneratorSettings::default() };
    settings.validate().map_err(anyhow::Error::msg)?;
    let stopping = Arc::new(AtomicBool::new(false));
    stop::handle_requests(stop::signals()?, &stopping, None);
    let mut bench = Bench { args, config, settings, stopping, scratch: Scratch::new() };
    let measured = bench.measure();
    let removed = bench.scratch.remove();
    let report = measured?;
    removed?;
    Ok(output::report(args.json, || report.json(), || report.to_string())?)
}

/// A set of sinks, with its stages besides reading, decoding and the dataflow.
struct SinkSet {
    name: &'static str,
    sinks: SinksConfig,
    extra_stages: &'static [&'static str],
}

/// Returns the sets of sinks whose services are configured, and the names of the other sets with the reason.
fn sink_sets(sinks: &SinksConfig) -> (Vec<SinkSet>, BTreeMap<&'static str, &'static str>) {
    let topics = |topics: &[OutputKind]| {
        let only = |(name, sink): (&String, &SinkConfig)| match sink {
            SinkConfig::Kafka(kafka) => {
                let mut kafka = kafka.clone();
                kafka.write_only(topics);
                Some((name.clone(), SinkConfig::Kafka(kafka)))
            }
            _ => None,
        };
        SinksConfig(sinks.0.iter().filter_map(only).collect())
    };
    let (alerts, enriched) =
        (topics(&[OutputKind::Alerts]), topics(&[OutputKind::Alerts, OutputKind::Events]));
    let mut tables = enriched.clone();
    let is_postgres = |(_, sink): &(&String, &SinkConfig)| matches!(sink, SinkConfig::Postgres(_));
    tables.0.extend(sinks.0.iter().filter(is_postgres).map(|(name, sink)| (name.clone(), sink.clone())));
    let all = [
        SinkSet { name: "alerts", sinks: alerts, extra_stages: &[] },
        SinkSet { name: "enriched", sinks: enriched, extra_stages: &["produce"] },
        SinkSet { name: "postgres", sinks: tables, extra_stages: &["produce", "copy"] },
    ];
    let missing = |set: &SinkSet| match (set.sinks.kafka().next(), set.sinks.postgres().next()) {
        (None, _) => Some("there is no [sinks.kafka]"),
        (_, None) if set.extra_stages.contains(&"copy") => Some("there is no [sinks.postgres]"),
        _ => None,
    };
    let skipped = all.iter().filter_map(|set| Some((set.name, missing(set)?))).collect();
    (all.into_iter().filter(|set| missing(set).is_none()).collect(), skipped)
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
        let (mut sets, mut skipped) = sink_sets(&self.config.sinks);
        if let Some(only) = &self.args.only {
            sets.retain(|set| set.name == only);
            skipped.retain(|name, _| name == only);
        }
        let mut report = Report::new(self.args, skipped);
        self.fill_topic()?;
        // Measure the whole job first, because later stages hold all events in memory, which would raise its peak
        // memory.
        for set in &sets {
            let job = self.measure_job(set)?;
            report.add_job(set.name, job);
        }
        if self.args.only.is_none() {
            self.measure_stages(&sets, &mut report)?;
        }
        Ok(report)
    }

    /// Measures the stages of whole jobs, each alone.
    fn measure_stages(&mut self, sets: &[SinkSet], report: &mut Report) -> anyhow::Result<()> {
        report.add_stage("read", self.measure_read(|raw| _ = black_box(raw))?);
        let mut decoder = JsonDecoder::default();
        report.add_stage("read_decode", self.measure_read(|raw| _ = black_box(decoder.decode(raw)))?);

        let events = events(self.settings.clone(), self.args.events);
        for set in sets {
            let stage = format!("dataflow_{}", set.name);
            report.add_stage(&stage, self.measure_dataflow(set, &events)?);
        }
        let has = |stage| sets.iter().any(|set| set.extra_stages.contains(&stage));
        if has("produce") {
            report.add_stage(
                "produce",
                self.measure_write("produce", &events, |sinks| {
                    sinks.0.retain(|_, sink| matches!(sink, SinkConfig::Kafka(_)));
                    // Alerts are few and have a separate writer.
                    sinks.0.values_mut().for_each(|sink| {
                        if let SinkConfig::Kafka(kafka) = sink {
                            kafka.write_only(&[OutputKind::Events]);
                        }
                    });
                })?,
            );
        }
        if has("copy") {
            let only_postgres = |_: &String, sink: &mut SinkConfig| matches!(sink, SinkConfig::Postgres(_));
            report.add_stage(
                "copy",
                self.measure_write("copy", &events, |sinks| sinks.0.retain(only_postgres))?,
            );
        }
        for set in sets {
            let dataflow = format!("dataflow_{}", set.name);
            report.set_stages(set.name, ["read_decode", &dataflow].iter().chain(set.extra_stages));
        }
        Ok(())
    }

    fn check_interrupted(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.stopping.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Creates the input topic and fills it.
    fn fill_topic(&mut self) -> anyhow::Result<()> {
        let topic = self.scratch.input(&mut self.config, self.settings.partitions)?;
        let source = kafka_source(&self.config)?;
        let partitions = u64::from(self.settings.partitions);
        let mut maker = RecordMaker::new(self.settings.clone());
        let records = (0..self.args.events as u64).map(|n| {
            let (partition, offset) = ((n % partitions) as u32, n / partitions);
            maker.make(partition, offset, None);
            let (key, value) = (Some(maker.key.clone()), Some(padded(&maker.value, self.args.record_bytes)));
            Produced { partition: Some(partition), key, value, headers: Vec::new() }
        });
        note!("producing {} records …", self.args.events);
        let producer = Producer::connect(&source.brokers, &source.options, &topic)?;
        producer.run(records, None, &self.stopping, &mut |_| {})?;
        self.check_interrupted()
    }

    /// Measures the whole job as `headwater run --bounded --drain` runs it. Time counts from the first event, because
    /// opening sinks takes seconds.
    fn measure_job(&mut self, set: &SinkSet) -> anyhow::Result<JobMeasurement> {
        note!("running the whole job with the sinks of {} …", set.name);
        let mut config = self.config.clone();
        config.sinks = set.sinks.clone();
        self.scratch.isolate(&mut config, set.name)?;
        config.plan.close_at_end = true;
        let metrics = Arc::new(Metrics::default());
        let workers = timely::Config::process(self.args.workers);
        let mut job = assembly::job(&config, true, workers, Arc::clone(&metrics))?;
        job.sinks = assembly::sinks(&config, &self.scratch.topic_prefix(set.name));
        job.stopping = Arc::clone(&self.stopping);
        let peak = usage::reset_peak();
        let cpu_before = cpu()?;
        let done = AtomicBool::new(false);
        let (result, first, last) = thread::scope(|scope| {
            let first = scope.spawn(|| {
                while metrics.event_count() == 0 && !done.load(Ordering::Relaxed) {
                    thread::sleep(POLL_INTERVAL);
                }
                (Instant::now(), cpu())
            });
            let result = crate::runtime::run(job);
            let last = Instant::now();
            done.store(true, Ordering::Relaxed);
            (result, first.join(), last)
        });
        result?;
        self.check_interrupted()?;
        let (first, cpu_at_first) = first.expect("a panic ends the process");
        let wall = last.saturating_duration_since(first);
        // The machine's CPU time counts from the first event, because other processes may be busy while sinks are
        // opened.
        let cpu = cpu()? - Cpu { process: cpu_before.process, machine: cpu_at_first?.machine };
        let peak_bytes = usage::peak_bytes().filter(|_| peak);
        Ok(JobMeasurement {
            measured: StageMeasurement { events: self.args.events as u64, wall, cpu },
            peak_bytes,
        })
    }

    /// Measures reading the input topic to its end on this thread.
    fn measure_read(&self, mut each: impl FnMut(Raw<'_>)) -> anyhow::Result<StageMeasurement> {
        note!("reading …");
        let mut config = self.config.clone();
        // No offset is ever committed to this group, so Kafka never creates it.
        config.plan.pipeline = format!("{}reader", self.scratch.prefix).into();
        let cpu_before = cpu()?;
        let source = assembly::source(&config, true)(None)?;
        let starts: Vec<_> = (0..).map(Partition).zip(source.start().iter().copied()).collect();
        let mut reader = source.reader(&starts)?;
        let mut first = None;
        let mut last = Instant::now();
        let mut count = 0;
        loop {
            let read = reader.read(Budget::records(BUDGET), &mut each)?;
            count += read as u64;
            if read > 0 {
                last = Instant::now();
                first.get_or_insert(last);
            } else if reader.partitions().iter().all(|partition| partition.ended) {
                break;
            } else {
                anyhow::ensure!(
                    last.elapsed() < READ_TIMEOUT,
                    "no records were received for {READ_TIMEOUT:?}"
                );
                self.check_interrupted()?;
                thread::sleep(POLL_INTERVAL);
            }
        }
        let wall = first.map_or(Duration::ZERO, |first| last - first);
        Ok(StageMeasurement { events: count, wall, cpu: cpu()? - cpu_before })
    }

    /// Measures the dataflow over events in memory, including encoding for the sinks of a set.
    fn measure_dataflow(&self, set: &SinkSet, events: &[Event]) -> anyhow::Result<StageMeasurement> {
        note!("running the dataflow for the sinks of {} …", set.name);
        let mut config = self.config.clone();
        config.sinks = set.sinks.clone();
        let sinks = assembly::sinks(&config, "");
        let routes: Arc<[SinkRoute]> = sinks.iter().map(|sink| SinkRoute::to_all(sink.encoding)).collect();
        let plan = config.plan;
        let metrics = Arc::new(Metrics::default());
        let behind_ms = plan.time.max_out_of_orderness_ms;
        let drive = Drive { workers: self.args.workers, behind_ms, close: true };
        let spent =
            drive.run(events, move |events, control| encode(events, control, &plan, &routes, &metrics));
        self.check_interrupted()?;
        let alone = spent.cpu.context(NO_CPU_TIME)?;
        let cpu = Cpu { process: alone, machine: alone };
        Ok(StageMeasurement { events: events.len() as u64, wall: spent.wall, cpu })
    }

    /// Measures writing to the first sink that `choose` leaves. Its input is the output of the dataflow, already
    /// encoded.
    fn measure_write(
        &mut self,
        stage: &str,
        events: &[Event],
        choose: impl FnOnce(&mut SinksConfig),
    ) -> anyhow::Result<StageMeasurement> {
        note!("measuring {stage} …");
        let mut config = self.config.clone();
        choose(&mut config.sinks);
        self.scratch.isolate(&mut config, stage)?;
        let sinks = assembly::sinks(&config, &self.scratch.topic_prefix(stage));
        let SinkJob { mut sink, encoding, .. } =
            sinks.into_iter().next().context("the configuration has no sink for this stage")?;
        let mut rounds = encode_events(&config, events, encoding);
        sink.open(&WriterContext {
            pipeline: config.plan.pipeline.to_string(),
            ledger_id: LedgerId(format!("{:032x}", crate::wall::wall_ms())),
            generation: Generation(1),
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        })?;
        let (started, cpu_before) = (Instant::now(), cpu()?);
        for round in rounds.chunks_mut(EPOCHS_PER_ROUND) {
            let mut through = Epoch(0);
            for (epoch, all) in round {
                all.drain(..).try_for_each(|changes| sink.stage(*epoch, changes))?;
                through = *epoch;
            }
            sink.commit(CommitPermit::granted(through))?;
            self.check_interrupted()?;
        }
        Ok(StageMeasurement {
            events: events.len() as u64,
            wall: started.elapsed(),
            cpu: cpu()? - cpu_before,
        })
    }
}

/// Returns a record with an attribute that makes it at least this long. What is no object stays as it is.
fn padded(record: &[u8], least: u32) -> Vec<u8> {
    const ATTRIBUTE: &[u8] = br#","padding":""}"#;
    let mut padded = record.to_vec();
    let missing = (least as usize).saturating_sub(record.len());
    if missing > 0 && padded.pop_if(|last| *last == b'}').is_some() {
        let (name, end) = ATTRIBUTE.split_at(ATTRIBUTE.len() - 2);
        padded.extend_from_slice(name);
        padded.resize(padded.len() + (missing + 1).saturating_sub(ATTRIBUTE.len()), b'x');
        padded.extend_from_slice(end);
    }
    padded
}

/// Builds the dataflow of a plan, without rejected records and captures, and returns its output, encoded for the routes.
fn encode<'scope>(
    events: VecCollection<'scope, Epoch, Event>,
    control: ControlStream<'scope>,
    plan: &Plan,
    routes: &Arc<[SinkRoute]>,
    metrics: &Arc<Metrics>,
) -> StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)> {
    let scope = events.inner.scope();
    let (rejected, captures) = (empty(scope).as_collection(), Captures::off(scope));
    let inputs = Inputs { events, rejected, control, refused: Some(RefusedLog::default()) };
    compute(inputs, &captures, plan, &RuleHistory::of(plan), routes, metrics, None).encoded
}

/// Runs the dataflow over these events and returns its encoded output for a sink, by epoch.
fn encode_events(config: &Config, events: &[Event], encoding: SinkEncoding) -> Vec<(Epoch, Vec<Changes>)> {
    let plan = config.plan.clone();
    let routes: Arc<[SinkRoute]> = Arc::new([SinkRoute::to_all(encoding)]);
    let all: Arc<Mutex<BTreeMap<Epoch, Vec<Changes>>>> = Arc::default();
    let (metrics, gathered) = (Arc::new(Metrics::default()), Arc::clone(&all));
    let drive = Drive { workers: 1, behind_ms: plan.time.max_out_of_orderness_ms, close: true };
    drive.run(events, move |events, control| {
        let all = Arc::clone(&gathered);
        let encoded = encode(events, control, &plan, &routes, &metrics);
        encoded.inspect(move |(epoch, encoded)| {
            let changes = encoded.iter().filter(|changes| !changes.is_empty()).cloned();
            all.lock()
                .expect("no thread panics while it holds the lock")
                .entry(*epoch)
                .or_default()
                .extend(changes);
        })
    });
    let all = std::mem::take(&mut *all.lock().expect("no thread panics while it holds the lock"));
    all.into_iter().collect()
}

const NO_CPU_TIME: &str = "cannot measure CPU time on this system: this needs Linux and /proc";

fn cpu() -> anyhow::Result<Cpu> {
    let (process, machine) = usage::process_cpu().zip(usage::machine_cpu()).context(NO_CPU_TIME)?;
    Ok(Cpu { process, machine })
}

#[cfg(test)]
mod tests {
    use super::super::drive::{EPOCH, in_order};
    use super::*;

    const KAFKA: &str = "pipeline = \"x\"\n[source]\nkind = \"kafka\"\n[sinks.kafka]\n";

    fn names(text: &str) -> (Vec<&'static str>, Vec<&'static str>) {
        let config = Config::parse(text, std::iter::empty()).expect("valid");
        let (sets, skipped) = sink_sets(&config.sinks);
        (sets.iter().map(|set| set.name).collect(), skipped.into_keys().collect())
    }

    #[test]
    fn sets_without_their_service_are_skipped() {
        let postgres = format!("{KAFKA}[sinks.postgres]\nurl = \"postgres://x@y/z\"\n");
        assert_eq!(names(&postgres), (vec!["alerts", "enriched", "postgres"], vec![]));
        assert_eq!(names(KAFKA), (vec!["alerts", "enriched"], vec!["postgres"]));
        let sqlite = "pipeline = \"x\"\n[source]\nkind = \"kafka\"\n[sinks.sqlite]\npath = \"x.db\"\n";
        assert_eq!(names(sqlite), (vec![], vec!["alerts", "enriched", "postgres"]));
    }

    #[test]
    fn records_are_padded_to_a_length() {
        let record = br#"{"id":"a"}"#;
        assert_eq!(padded(record, 10), record);
        assert_eq!(padded(record, 11), br#"{"id":"a","padding":""}"#);
        let long = padded(record, 100);
        assert_eq!(long.len(), 100);
        assert!(serde_json::from_slice::<serde_json::Value>(&long).is_ok());
        assert_eq!(padded(b"not JSON", 100), b"not JSON");
    }

    #[test]
    fn every_event_is_encoded_and_epochs_ascend() {
        let events = events(in_order(), EPOCH + 100);
        let config = Config::parse(KAFKA, std::iter::empty()).expect("valid");
        let encoding = assembly::sinks(&config, "").pop().expect("the sink of events").encoding;
        let rounds = encode_events(&config, &events, encoding);
        assert!(rounds.is_sorted_by_key(|(epoch, _)| *epoch));
        let encoded = rounds.iter().flat_map(|(_, all)| all).map(|changes| changes.messages.iter().count());
        assert!(encoded.sum::<usize>() >= events.len());
    }
}
