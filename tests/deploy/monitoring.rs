//! Prometheus and Grafana: they query existing metrics at the right addresses.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::promql::metrics_of;
use crate::{path, text, texts, yaml};

/// Returns the names of all series: those of the program, and `up` of Prometheus.
fn known_metrics() -> BTreeSet<String> {
    let source = text("src/metrics.rs");
    let program = source.split("#[cfg(test)]").next().unwrap_or_default();
    let names = program.split('"').skip(1).step_by(2).filter(|name| is_metric(name));
    let mut known_metrics: BTreeSet<_> = names.map(str::to_owned).collect();
    assert!(known_metrics.contains("headwater_events_total"), "{known_metrics:?}");
    let histograms: Vec<_> =
        known_metrics.iter().filter(|name| name.ends_with("_seconds")).cloned().collect();
    for name in histograms {
        known_metrics.extend(["bucket", "sum", "count"].map(|suffix| format!("{name}_{suffix}")));
    }
    known_metrics.insert("up".to_owned());
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

fn dashboard() -> Value {
    serde_json::from_str(&text("deploy/grafana/dashboards/headwater.json")).expect("JSON")
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().expect("panels")
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
fn panels_query_existing_metrics_of_the_data_source() {
    let known_metrics = known_metrics();
    let sources = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    let source = &sources["datasources"][0];
    let (dashboard, mut ids) = (dashboard(), BTreeSet::new());
    assert!(!panels(&dashboard).is_empty());
    for panel in panels(&dashboard) {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64()), "{title}: duplicate id");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let queried = metrics_of(target["expr"].as_str().expect("an expression"));
            assert!(!queried.is_empty() && queried.is_subset(&known_metrics), "{title}: {queried:?}");
            assert_eq!(target["datasource"]["uid"], source["uid"], "{title}");
        }
    }
}

#[test]
fn panels_do_not_overlap() {
    let (dashboard, mut taken) = (dashboard(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a number"));
        assert!(x + w <= 24, "{}", panel["title"]);
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{} overlaps another panel at {place:?}", panel["title"]);
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
    let sources = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(sources["datasources"][0]["url"], "http://prometheus:9090");
}
