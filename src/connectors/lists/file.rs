//! A list in a file: text, CSV or NDJSON.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::values::{Collector, Raw, key, member, object, row};
use super::{ListBounds, ListReader, ListReading};
use crate::connectors::csv_fields;
use crate::lists::{Entries, Schema};
use crate::settings::{Diagnostics, Section};

/// The time between two looks at a file.
const EVERY: Duration = Duration::from_secs(1);

/// The age from which on the time of a file says whether it has changed: clocks of file systems are coarse.
const SETTLED: Duration = Duration::from_secs(3);

/// A file with a list.
#[derive(Clone, Debug)]
pub struct FileListConfig {
    /// The path.
    pub path: PathBuf,
    format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Format {
    /// One key in each line.
    Lines,
    /// With the column of the key; None: the first.
    Csv(Option<String>),
    /// With the member of the key.
    Ndjson(String),
}

pub(super) fn read(
    section: &mut Section<'_>,
    schema: &Schema,
    diagnostics: &mut Diagnostics,
) -> Option<FileListConfig> {
    let path = section.file("path", diagnostics);
    if path.is_none() && !section.has("path") {
        section.report_missing("path", diagnostics);
    }
    let key = section.text("key", diagnostics);
    let path = path?;
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Format::Csv(key),
        Some("ndjson" | "jsonl") => match key {
            Some(key) => Format::Ndjson(key),
            None => {
                section.report_error("key", "is missing: the name of the member with the key", diagnostics);
                return None;
            }
        },
        _ if !schema.columns.is_empty() || key.is_some() => {
            let message = "a file with columns ends with .csv or .ndjson; any other has one key in each line";
            section.report_error("path", message, diagnostics);
            return None;
        }
        _ => Format::Lines,
    };
    Some(FileListConfig { path, format })
}

impl FileListConfig {
    pub(super) fn reader(&self, schema: Schema, bounds: ListBounds) -> FileReader {
        FileReader { config: self.clone(), schema, bounds, seen: None }
    }
}

/// The properties by which a file is the same as before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns true if a later change would have another time.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(self.changed.0.max(self.modified.0).unsigned_abs());
        now.checked_sub(changed).is_some_and(|age| age >= SETTLED)
    }
}

pub(super) struct FileReader {
    config: FileListConfig,
    schema: Schema,
    bounds: ListBounds,
    /// The file that was read without an error.
    seen: Option<Identity>,
}

impl ListReader for FileReader {
    fn read(&mut self) -> Result<ListReading, String> {
        let path = &self.config.path;
        let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        let mut file = File::open(path).map_err(failed)?;
        let identity = Identity::of(&file.metadata().map_err(failed)?);
        if self.seen.as_ref() == Some(&identity) {
            return Ok(ListReading::default());
        }
        self.seen = None;
        self.bounds
            .check_bytes(usize::try_from(identity.length).unwrap_or(usize::MAX))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let mut bytes = Vec::new();
        file.by_ref().take(self.bounds.bytes as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let after = Identity::of(&file.metadata().map_err(failed)?);
        if after != identity || bytes.len() as u64 != identity.length {
            return Err(format!("{} changed while it was read: it is read again", path.display()));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..valid].iter().filter(|&&byte| byte == b'\n').count();
            format!("{}:{line}: the line is not UTF-8", path.display())
        })?;
        let (entries, warnings) = parse(&self.config, &self.schema, self.bounds, &text)?;
        self.seen = Some(identity).filter(Identity::is_settled);
        Ok(ListReading { entries: Some(entries), refused: 0, warnings })
    }

    fn pause(&self) -> Duration {
        EVERY
    }
}

/// Returns the entries of a text, and warnings.
fn parse(
    config: &FileListConfig,
    schema: &Schema,
    bounds: ListBounds,
    text: &str,
) -> Result<(Entries, Vec<String>), String> {
    let at = |line: usize| place(&config.path, line);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let columns = match &config.format {
        Format::Csv(key) => {
            let (line, header) =
                lines.next().ok_or_else(|| format!("{}: expected a header with the columns", at(1)))?;
            Columns::of(schema, key.as_deref(), header).map_err(|error| format!("{}: {error}", at(line)))?
        }
        _ => Columns::default(),
    };
    let mut collector = Collector::new(bounds);
    for (line, text) in lines {
        let entry = match &config.format {
            Format::Lines if text.trim_start().starts_with('#') => continue,
            Format::Lines => key(schema.key, &Raw::of_text(text.trim())).map(|key| (key, Box::default())),
            Format::Csv(_) => columns.entry(schema, text),
            Format::Ndjson(name) => object(text).and_then(|object| {
                let row = row(schema, |_, column| member(&object, column))?;
                Ok((key(schema.key, &member(&object, name))?, row))
            }),
        };
        let (key, row) = entry.map_err(|error| format!("{}: {error}", at(line)))?;
        collector.add(key, row, || at(line)).map_err(|error| format!("{}: {error}", at(line)))?;
    }
    Ok(collector.end())
}

fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// The places of the columns in a line of CSV.
#[derive(Default)]
struct Columns {
    count: usize,
    key: usize,
    values: Vec<usize>,
}

impl Columns {
    fn of(schema: &Schema, key: Option<&str>, header: &str) -> Result<Columns, String> {
        let names = csv_fields(header)?;
        let find = |name: &str| {
            let known = || names.iter().map(|name| name.trim()).collect::<Vec<_>>().join(", ");
            let at = names.iter().position(|known| known.trim() == name);
            at.ok_or_else(|| format!("there is no column {name}; columns: {}", known()))
        };
        let values = schema.columns.iter().map(|(name, _)| find(name)).collect::<Result<_, _>>()?;
        Ok(Columns { count: names.len(), key: key.map_or(Ok(0), find)?, values })
    }

    fn entry(&self, schema: &Schema, line: &str) -> Result<(crate::lists::Key, crate::lists::Row), String> {
        let cells = csv_fields(line)?;
        if cells.len() != self.count {
            return Err(format!("expected {} columns, got {}", self.count, cells.len()));
        }
        let row = row(schema, |at, _| Raw::of_text(cells[self.values[at]].trim()))?;
        Ok((key(schema.key, &Raw::of_text(cells[self.key].trim()))?, row))
    }
}

#[cfg(test)]
mod tests;
