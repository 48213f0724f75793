//! Prometheus and Grafana: alerts query existing metrics, and paths and addresses fit the compose file.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::dashboards::{RUNBOOK, data_sources};
use crate::promql::metrics_of;
use crate::{path, text, texts, yaml};

/// Returns the names of all series: those of the program, and those of Prometheus itself.
pub fn known_metrics() -> BTreeSet<String> {
    let source = ["src/metrics/commits.rs", "src/metrics/lists.rs", "src/metrics.rs"].map(text).concat();
    let program = source.split("#[cfg(test)]").next().unwrap_or_default();
    let names = program.split('"').skip(1).step_by(2).filter(|name| is_metric(name));
    let mut known_metrics: BTreeSet<_> = names.map(str::to_owned).collect();
    assert!(known_metrics.contains("headwater_events_total"), "{known_metrics:?}");
    let histograms: Vec<_> =
        known_metrics.iter().filter(|name| name.ends_with("_seconds")).cloned().collect();
    for name in histograms {
        known_metrics.extend(["bucket", "sum", "count"].map(|suffix| format!("{name}_{suffix}")));
    }
    known_metrics.extend(["up", "ALERTS"].map(str::to_owned));
    known_metrics
}

fn is_metric(name: &str) -> bool {
    let prefixed = name.starts_with("headwater_") || name.starts_with("process_");
    prefixed && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
}

fn alerts() -> Vec<Value> {
    let groups = yaml("deploy/prometheus/alerts.yml")["groups"].as_array().cloned().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().cloned().expect("rules")).collect()
}

#[test]
fn alerts_query_existing_metrics() {
    let known_metrics = known_metrics();
    let alerts = alerts();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let queried = metrics_of(alert["expr"].as_str().expect("an expression"));
        assert!(!queried.is_empty() && queried.is_subset(&known_metrics), "{}: {queried:?}", alert["alert"]);
        assert!(alert["labels"]["severity"].is_string(), "{}", alert["alert"]);
        assert!(alert["annotations"]["summary"].is_string(), "{}", alert["alert"]);
    }
}

#[test]
fn alerts_name_their_entry_in_the_runbook_and_have_unit_tests() {
    let tests = yaml("deploy/prometheus/alerts.test.yml");
    let tests = tests["tests"].as_array().expect("tests").iter();
    let cases = tests.flat_map(|test| test["alert_rule_test"].as_array().cloned().expect("cases"));
    let (raised, silent): (Vec<_>, Vec<_>) = cases.partition(|case| case["exp_alerts"].is_array());
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("a name");
        let entry = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], entry);
        for cases in [&raised, &silent] {
            assert!(cases.iter().any(|case| case["alertname"] == name), "{name}: both kinds of test");
        }
    }
}

#[test]
fn the_documentation_names_existing_metrics() {
    let known_metrics = known_metrics();
    for file in ["docs/runbook.md", "docs/metrics.md", "docs/configuration.md", "README.md"] {
        let text = text(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        // Tables, roles and crates begin with the same word.
        let is_metric = |word: &&str| {
            let units = ["_total", "_seconds", "_bytes", "_records", "_epoch", "_ms"];
            word.starts_with("headwater_") && units.iter().any(|unit| word.ends_with(unit))
        };
        // A row of the table says that a metric is the old name of another.
        let is_deprecated = |word: &str| {
            text.lines().any(|line| line.starts_with(&format!("| `{word}` |")) && line.contains("Deprecated"))
        };
        for word in words.filter(is_metric) {
            assert!(known_metrics.contains(word) || is_deprecated(word), "{file}: {word}");
        }
    }
}

#[test]
fn paths_and_addresses_match_the_compose_file() {
    let compose = yaml("docker-compose.yml");
    let mounted = |service: &str, target: &str| {
        let mounts = texts(&compose["services"][service]["volumes"]);
        let found =
            mounts.iter().find_map(|mount| mount.strip_suffix(&format!(":{target}:ro")).map(str::to_owned));
        found.unwrap_or_else(|| panic!("{service}: nothing is mounted at {target}"))
    };
    for rules in texts(&yaml("deploy/prometheus/prometheus.yml")["rule_files"]) {
        assert!(path(&mounted("prometheus", &format!("/etc/prometheus/{rules}"))).is_file(), "{rules}");
    }
    let providers = yaml("deploy/grafana/provisioning/dashboards/headwater.yml");
    let dashboards = providers["providers"][0]["options"]["path"].as_str().expect("a path");
    let home = &compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    let home = home.as_str().and_then(|home| home.strip_prefix(dashboards)).expect("one of the dashboards");
    assert!(path(&format!("{}{home}", mounted("grafana", dashboards))).is_file(), "{home}");
    let runbook = mounted("grafana", &format!("/usr/share/grafana{RUNBOOK}"));
    assert_eq!(runbook.trim_start_matches("./"), "docs/runbook.md");

    let sources = data_sources();
    let of = |uid: &str| sources.iter().find(|source| source["uid"] == uid).expect("a data source");
    assert_eq!(of("prometheus")["url"], "http://prometheus:9090");
    let (postgres, server) = (of("postgres"), &compose["services"]["postgres"]["environment"]);
    assert_eq!(postgres["url"], "postgres:5432");
    assert_eq!(postgres["jsonData"]["database"], server["POSTGRES_DB"]);
    let role = postgres["user"].as_str().expect("a role");
    let script = mounted("postgres", "/docker-entrypoint-initdb.d/reader.sh");
    assert!(text(&script).contains(&format!("CREATE ROLE {role} LOGIN")), "{role}");
    // Both services get the role's password from one variable.
    assert_eq!(postgres["secureJsonData"]["password"], "$READER_PASSWORD");
    assert!(text(&script).contains("\\getenv password READER_PASSWORD"));
    assert!(server["READER_PASSWORD"].is_string());
    let grafana = &compose["services"]["grafana"]["environment"];
    assert_eq!(grafana["READER_PASSWORD"], server["READER_PASSWORD"]);
}
