//! No container engine is needed to see that the deployment files fit together and fit the program: that what they
//! mount exists, that commands, configuration and environment are read as they are meant, and that dashboard and alerts
//! ask for metrics that there are.

mod compose;
mod image;
mod monitoring;
mod promql;
mod runbook;

use std::path::PathBuf;

use serde_json::Value;

/// A path of the repository.
fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn text(relative: &str) -> String {
    std::fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// A YAML file; by way of YAML's own values, for which a key given twice is an error.
fn yaml(relative: &str) -> Value {
    let value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"));
    serde_json::to_value(value).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// The texts of a list, or nothing if there is none.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().expect("a list of texts")).collect()
}

/// The entries of a table, or nothing if there is none.
fn entries(table: &Value) -> impl Iterator<Item = (&str, &Value)> {
    table.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}
