//! Files as sink: one file of a directory for each kind of output.

use std::path::{Path, PathBuf};

use headwater_sinks::Sink;
use headwater_sinks::file::FileConfig;

use crate::connectors::check::Outcome;
use crate::connectors::{
    Check, OutputKind, SinkConfig, SinkConnector, SinkContext, SinkKind, TablesConfig, writable,
};
use crate::outputs::SinkJob;
use crate::settings::{Diagnostics, Section, keys};

pub const SINK: SinkKind = SinkKind {
    name: "file",
    keys: keys! {
        "sinks.file.path" = required: "Directory of NDJSON files, created if it does not exist: one file for each kind of output, named as in `outputs`, and `progress.json`, which says up to which byte each file is committed. Each pipeline needs a directory of its own. Without `[ledger]`, a start appends again what it reads again."
        "sinks.file.outputs" = "[\"enriched-events\", \"alerts\", \"windows\", \"dead-letters\"]": "Outputs to write, each to the file `OUTPUT.ndjson`."
        "sinks.file.commit_interval" = "\"200ms\"": "Minimum time between the beginnings of two rounds. Each round syncs the files that it appends to, so longer intervals cost less."
    },
    read: |section, diagnostics| read(section, diagnostics).map(SinkConfig::File),
};

/// The outputs, as their files are named.
const FILES: [(&str, OutputKind); 4] = [
    ("enriched-events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
    ("dead-letters", OutputKind::DeadLetters),
];

/// NDJSON files to write.
#[derive(Clone, Debug)]
pub struct FileSinkConfig {
    /// The directory of the files.
    pub path: PathBuf,
    /// The tables to write, each to a file.
    pub tables: TablesConfig,
}

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<FileSinkConfig> {
    let path = section.file("path", diagnostics);
    let tables = TablesConfig::read(section, "outputs", &FILES, diagnostics);
    Some(FileSinkConfig { path: path?, tables: tables? })
}

impl SinkConnector for FileSinkConfig {
    fn jobs(&self, name: &str, _context: SinkContext<'_>) -> Vec<SinkJob> {
        let sink = FileConfig { name: name.into(), path: self.path.clone() }.build();
        vec![self.tables.job(Box::new(sink), true)]
    }

    fn check(&self, name: &str, context: SinkContext<'_>) -> Vec<Check> {
        let what = format!("directory {}", self.path.display());
        vec![Check::of(format!("sinks.{name}"), what, directory_of_files(&self.path, name, context.pipeline))]
    }

    fn targets(&self) -> Vec<String> {
        vec![format!("directory {}", self.path.display())]
    }

    fn sharing_objection(&self, _has_ledger: bool) -> Option<String> {
        let reason = "several processes cannot share the directory of a file sink: remove the sink, or start one \
                      process with more workers (-w)";
        Some(reason.to_owned())
    }
}

/// Checks that the directory of a file sink can be written, and that it belongs to this pipeline.
fn directory_of_files(path: &Path, name: &str, pipeline: &str) -> Outcome {
    if path.exists() && !path.is_dir() {
        return Err(format!("it is not a directory: set `sinks.{name}.path` to another path").into());
    }
    FileConfig { name: name.to_owned(), path: path.to_owned() }.build().peek_progress(pipeline)?;
    writable(path)
}
