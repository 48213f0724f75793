//! Files as source: each file is a partition, each line an offset.

use std::path::PathBuf;
use std::sync::Arc;

use headwater_dataflows::Offset;

use crate::connectors::{Check, SourceConfig, SourceConnector, SourceContext, SourceKind};
use crate::settings::{Diagnostics, Section, keys};
use crate::source::file::history::FileHistory;
use crate::source::file::{FileSource, check_repeatable};
use crate::source::history::RecordHistory;
use crate::source::{Source, SourceError};

pub const SOURCE: SourceKind = SourceKind {
    name: "file",
    keys: keys! {
        "source.paths": "File: the path of the file to read, or a list of paths. All windows close at the end of the files."
        "source.max_jump" = "\"1h\"": "File: a record whose time is further than this ahead of all records before it advances the watermark only after the next record confirms it. The lines of a file have no record timestamp to check their time against."
    },
    identity: &["source.paths"],
    is_bounded: true,
    read: |section, diagnostics| read(section, diagnostics).map(SourceConfig::File),
};

/// Files to read; the index of a file is its partition.
#[derive(Clone, Debug)]
pub struct FileSourceConfig {
    /// The paths of the files.
    pub paths: Vec<PathBuf>,
}

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<FileSourceConfig> {
    let paths = section.list("paths", diagnostics);
    if paths.is_none() {
        section.report_error("paths", "a file source needs `paths`", diagnostics);
    }
    Some(FileSourceConfig { paths: paths?.into_iter().map(PathBuf::from).collect() })
}

impl SourceConnector for FileSourceConfig {
    fn open(&self, _: SourceContext, _: Option<Vec<Offset>>) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(FileSource::open(self.paths.clone())?))
    }

    fn check(&self, _context: &SourceContext) -> Vec<Check> {
        let check = |path: &PathBuf| {
            let opened = std::fs::File::open(path).map(|_| "readable".to_owned());
            Check::of("source", format!("file {}", path.display()), opened)
        };
        self.paths.iter().map(check).collect()
    }

    fn history(&self, epoch_records: i64) -> Result<Box<dyn RecordHistory>, String> {
        Ok(Box::new(FileHistory::new(self.paths.clone(), epoch_records)?))
    }

    fn check_repeatable(&self, why: &str) -> Result<(), SourceError> {
        check_repeatable(&self.paths, why)
    }
}
