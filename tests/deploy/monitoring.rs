//! Prometheus and Grafana: they ask for what there is, where it is.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::promql::metrics_of;
use crate::{path, text, texts, yaml};

/// The names of a metric's series: those that the program gives out, and Prometheus' own.
fn known() -> BTreeSet<String> {
    let source = text("src/metrics.rs");
    let program = source.split("#[cfg(test)]").next().unwrap_or_default();
    let names = program.split('"').skip(1).step_by(2).filter(|name| is_metric(name));
    let mut known: BTreeSet<_> = names.map(str::to_owned).collect();
    assert!(known.contains("headwater_events_total"), "{known:?}");
    let histograms: Vec<_> = known.iter().filter(|name| name.ends_with("_seconds")).cloned().collect();
    for name in histograms {
        known.extend(["bucket", "sum", "count"].map(|suffix| format!("{name}_{suffix}")));
    }
    known.insert("up".to_owned());
    known
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
fn alerts_ask_for_metrics_that_there_are() {
    let known = known();
    let alerts = alerts();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let asked = metrics_of(alert["expr"].as_str().expect("an expression"));
        assert!(!asked.is_empty() && asked.is_subset(&known), "{}: {asked:?}", alert["alert"]);
        assert!(alert["labels"]["severity"].is_string(), "{}", alert["alert"]);
        assert!(alert["annotations"]["summary"].is_string(), "{}", alert["alert"]);
    }
}

#[test]
fn panels_ask_for_metrics_that_there_are_of_the_source_that_is_set_up() {
    let known = known();
    let sources = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    let source = &sources["datasources"][0];
    let (dashboard, mut ids) = (dashboard(), BTreeSet::new());
    assert!(!panels(&dashboard).is_empty());
    for panel in panels(&dashboard) {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id is another's");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let asked = metrics_of(target["expr"].as_str().expect("an expression"));
            assert!(!asked.is_empty() && asked.is_subset(&known), "{title}: {asked:?}");
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
            assert!(taken.insert(place), "{} lies on another at {place:?}", panel["title"]);
        }
    }
}

#[test]
fn files_and_addresses_of_the_containers_are_those_that_compose_gives_them() {
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
