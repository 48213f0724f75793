//! Static tests of the deployment files, without a container engine: mounted files exist, commands, configuration and
//! environment are parsed as intended, and dashboards and alerts query existing metrics.

mod compose;
mod dashboards;
mod guarantees;
mod image;
mod kubernetes;
mod licences;
mod monitoring;
mod promql;
mod rooms;
mod runbook;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Returns the path of a file in the repository.
fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn text(relative: &str) -> String {
    std::fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Returns the path and the text of a Rust file, or of every Rust file below a folder.
fn rust_sources(place: &Path) -> Vec<(PathBuf, String)> {
    if place.is_dir() {
        let entries = std::fs::read_dir(place).expect("a folder");
        return entries.flat_map(|entry| rust_sources(&entry.expect("an entry").path())).collect();
    }
    if place.extension().is_none_or(|extension| extension != "rs") {
        return Vec::new();
    }
    vec![(place.to_owned(), std::fs::read_to_string(place).expect("readable"))]
}

/// Parses a YAML file; conversion from YAML's own values makes a duplicate key an error.
fn yaml(relative: &str) -> Value {
    let value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"));
    serde_json::to_value(value).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Returns the texts of a list; none if it is not a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().expect("a list of texts")).collect()
}

/// Returns the entries of a table; none if it is not a table.
fn entries(table: &Value) -> impl Iterator<Item = (&str, &Value)> {
    table.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}
