//! The section `[sinks]`.

use headwater_sinks::kafka::progress_topic;

use super::is_name;
use crate::connectors::{
    PostgresSinkConfig, SINKS, SinkConfig, SinkContext, SinkKind, SinksConfig, SourceConfig,
};
use crate::pipeline::{Time, WindowPlan};
use crate::settings::{Diagnostics, Section, millis};

/// Returns the error of a configuration without a sink.
pub(super) fn no_sink() -> String {
    let sections: Vec<_> = SINKS.iter().map(|kind| format!("[sinks.{}]", kind.name)).collect();
    let (last, others) = sections.split_last().expect("there are kinds of sinks");
    format!("expected at least one of {} and {last}", others.join(", "))
}

/// Reads the section `[sinks]`: each subsection is a sink of the kind that it is named after, or that `kind` names.
pub(super) fn read(top: &mut Section<'_>, diagnostics: &mut Diagnostics) -> SinksConfig {
    let mut sinks = top.section_or_default("sinks", diagnostics);
    let mut read = SinksConfig::default();
    let names: Vec<String> = sinks.items().map(|(name, _)| name.clone()).collect();
    for name in &names {
        let Some(mut section) = sinks.section(name, diagnostics) else { continue };
        let Some(kind) = kind_of(name, &mut section, diagnostics) else { continue };
        let mut section = section.described_as(&format!("sinks.{}", kind.name));
        if let Some(sink) = (kind.read)(&mut section, diagnostics) {
            read.0.insert(name.clone(), sink);
        }
        section.end(diagnostics);
    }
    if names.is_empty() && !top.has("routes") {
        top.report_error("sinks", no_sink(), diagnostics);
    }
    sinks.end(diagnostics);
    read
}

/// Returns the kind of a sink; None if an error was reported.
fn kind_of(
    name: &str,
    section: &mut Section<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<&'static SinkKind> {
    let kinds: Vec<(_, &SinkKind)> = SINKS.iter().map(|kind| (kind.name, kind)).collect();
    let of_name = SINKS.iter().find(|kind| kind.name == name);
    if !is_name(name, "-_") {
        section.report_error(
            "kind",
            "the name of a sink has at most 63 lower-case letters, digits, - and _",
            diagnostics,
        );
        return None;
    }
    if !section.has("kind") {
        if of_name.is_none() {
            let names: Vec<_> = SINKS.iter().map(|kind| format!("{:?}", kind.name)).collect();
            section.report_error("kind", format!("is missing: expected {}", names.join(" or ")), diagnostics);
        }
        return of_name;
    }
    let kind = section.item("kind").and_then(|item| item.node.text());
    let found = kinds.iter().find(|(name, _)| Some(*name) == kind).map(|(_, kind)| *kind);
    match found {
        Some(kind) if of_name.is_none_or(|of_name| of_name.name == kind.name) => {
            if of_name.is_none() {
                diagnostics.effective.push((format!("{}kind", section.path()), format!("{:?}", kind.name)));
            }
            Some(kind)
        }
        Some(kind) => {
            let message = format!(
                "a sink named {name} is of that kind: give a sink of kind {} another name",
                kind.name
            );
            section.report_error("kind", message, diagnostics);
            None
        }
        None => {
            let names: Vec<_> = kinds.iter().map(|(name, _)| format!("{name:?}")).collect();
            section.report_error("kind", format!("expected {}", names.join(" or ")), diagnostics);
            None
        }
    }
}

/// Reports sinks that write to the same place, and topics that are also the source topic or the progress topic.
pub(super) fn check(
    top: &Section<'_>,
    pipeline: Option<&str>,
    source: Option<&SourceConfig>,
    sinks: &SinksConfig,
    diagnostics: &mut Diagnostics,
) {
    check_distinct(top, sinks, diagnostics);
    for (name, sink) in &sinks.0 {
        let SinkConfig::Kafka(sink) = sink else { continue };
        for topic in sink.topics.values() {
            if matches!(source, Some(SourceConfig::Kafka(kafka)) if kafka.topic == *topic) {
                let message = format!("the topic {topic} is also written by sinks.{name}");
                top.report_error("source", message, diagnostics);
            }
            if pipeline.is_some_and(|pipeline| progress_topic(pipeline) == *topic) {
                let message =
                    format!("the topic {topic} stores the pipeline's progress: choose another name");
                top.report_error("sinks", message, diagnostics);
            }
        }
    }
}

/// Reports retentions that remove rows which still change: those of windows and alerts that are not final.
pub(super) fn check_retention(
    top: &Section<'_>,
    sinks: &SinksConfig,
    plan: (&[WindowPlan], i64, Option<Time>),
    diagnostics: &mut Diagnostics,
) {
    let (windows, look_back_ms, time) = plan;
    let lateness = time.map_or(0, |time| time.max_out_of_orderness_ms);
    let longest = windows.iter().map(|window| window.kind.length_ms()).max().unwrap_or(0);
    let least = longest.max(look_back_ms).saturating_add(lateness);
    for (name, sink) in &sinks.0 {
        let SinkConfig::Postgres(PostgresSinkConfig { partitioning: Some(partitioning), .. }) = sink else {
            continue;
        };
        if partitioning.retention.is_some_and(|retention| retention < millis(least)) {
            let message = format!(
                "the `retention` of sinks.{name} must not be shorter than the longest window or pattern with \
                 `max_out_of_orderness`, {least} ms: rows would be removed while they change"
            );
            top.report_error("sinks", message, diagnostics);
        }
    }
}

fn check_distinct(top: &Section<'_>, sinks: &SinksConfig, diagnostics: &mut Diagnostics) {
    let context = SinkContext { pipeline: "", has_ledger: false, topic_prefix: "" };
    let all: Vec<_> = sinks.0.iter().map(|(name, sink)| (name, sink.connector())).collect();
    for (at, (name, sink)) in all.iter().enumerate() {
        for (other_name, other) in &all[..at] {
            let targets = other.targets();
            for target in sink.targets().iter().filter(|target| targets.contains(target)) {
                let message =
                    format!("sinks.{other_name} and sinks.{name} both write {target}: remove it from one");
                top.report_error("sinks", message, diagnostics);
            }
            let (jobs, others) = (sink.jobs(name, context), other.jobs(other_name, context));
            let names: Vec<_> = others.iter().map(|job| job.sink.name()).collect();
            if let Some(same) = jobs.iter().find(|job| names.contains(&job.sink.name())) {
                let same = same.sink.name();
                let message = format!(
                    "sinks.{other_name} and sinks.{name} both have a writer named {same}: rename one"
                );
                top.report_error("sinks", message, diagnostics);
            }
        }
    }
}
