//! Grafana's dashboards: every panel has what a reader needs, and queries a provisioned data source for what exists.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::monitoring::known_metrics;
use crate::promql::metrics_of;
use crate::{path, text, yaml};

/// The path at which Grafana serves the runbook.
pub const RUNBOOK: &str = "/public/headwater/runbook.md";

const FOLDER: &str = "deploy/grafana/dashboards";

/// Returns the provisioned data sources.
pub fn data_sources() -> Vec<Value> {
    let sources = yaml("deploy/grafana/provisioning/datasources/headwater.yml");
    sources["datasources"].as_array().cloned().expect("data sources")
}

/// Returns the dashboards with their file names.
fn dashboards() -> Vec<(String, Value)> {
    let entries = std::fs::read_dir(path(FOLDER)).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let parsed = |name: &str| serde_json::from_str(&text(&format!("{FOLDER}/{name}"))).expect(FOLDER);
    names.map(|name| (name.clone(), parsed(&name))).collect()
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().unwrap_or_else(|| panic!("{key}: no list in {of}"))
}

fn string<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("{key}: no text in {of}"))
}

/// Returns all panels that show something, with a name for messages.
fn panels(name: &str, dashboard: &Value) -> Vec<(String, Value)> {
    let all = list(dashboard, "panels").iter().filter(|panel| panel["type"] != "row");
    all.map(|panel| (format!("{name}: {}", string(panel, "title")), panel.clone())).collect()
}

/// Returns the query of a target.
fn query(target: &Value) -> &str {
    let key = if target["datasource"]["uid"] == "postgres" { "rawSql" } else { "expr" };
    string(target, key)
}

#[test]
fn identifiers_and_titles_are_unique() {
    let (mut uids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    let dashboards = dashboards();
    let names: BTreeSet<_> = dashboards.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["analyst.json", "platform.json"].into());
    for (name, dashboard) in &dashboards {
        assert_eq!(string(dashboard, "uid"), format!("headwater-{}", name.trim_end_matches(".json")));
        assert!(uids.insert(string(dashboard, "uid").to_owned()) && dashboard["schemaVersion"].is_u64());
        assert!(titles.insert(string(dashboard, "title").to_owned()), "{name}");
        let mut ids = BTreeSet::new();
        for panel in list(dashboard, "panels") {
            let id = panel["id"].as_u64().expect("an id");
            assert!(ids.insert(id), "{name}: {} has the id {id} of another panel", panel["title"]);
        }
    }
}

#[test]
fn panels_do_not_overlap() {
    for (name, dashboard) in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in list(&dashboard, "panels") {
            let [x, y, w, h] =
                ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a number"));
            assert!(w > 0 && h > 0 && x + w <= 24, "{name}: {}", panel["title"]);
            for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(place), "{name}: {} overlaps at {place:?}", panel["title"]);
            }
        }
    }
}

#[test]
fn panels_have_a_description_a_unit_and_a_provisioned_source() {
    let sources = data_sources();
    for (name, dashboard) in dashboards() {
        for (title, panel) in panels(&name, &dashboard) {
            assert!(string(&panel, "description").len() > 30, "{title}: say what it means and what to do");
            let unit = &panel["fieldConfig"]["defaults"]["unit"];
            assert!(unit.as_str().is_some_and(|unit| !unit.is_empty()), "{title}: {unit}");
            let targets = list(&panel, "targets");
            let references: BTreeSet<_> = targets.iter().map(|target| string(target, "refId")).collect();
            assert!(!targets.is_empty() && references.len() == targets.len(), "{title}: {references:?}");
            for of in targets.iter().chain([&panel]) {
                let of = &of["datasource"];
                let is_it = |source: &&Value| source["uid"] == of["uid"] && source["type"] == of["type"];
                assert!(sources.iter().any(|source| is_it(&source)), "{title}: {of}");
            }
        }
    }
}

#[test]
fn queries_name_existing_metrics_and_use_the_time_range() {
    let known_metrics = known_metrics();
    for (name, dashboard) in dashboards() {
        let variables =
            list(&dashboard["templating"], "list").iter().map(|variable| string(variable, "name"));
        let variables: BTreeSet<_> = variables.chain(["__rate_interval", "__range", "__interval"]).collect();
        for (title, panel) in panels(&name, &dashboard) {
            for target in list(&panel, "targets") {
                let query = query(target);
                if target["datasource"]["uid"] == "postgres" {
                    assert!(query.contains("$__timeFilter("), "{title}: {query}");
                } else {
                    let queried = metrics_of(query);
                    assert!(!queried.is_empty() && queried.is_subset(&known_metrics), "{title}: {queried:?}");
                }
                // What Grafana replaces: $name, ${name:format}, and the data source's macros, such as $__timeFilter(…).
                for used in query.split('$').skip(1) {
                    let used = used.trim_start_matches('{');
                    let end =
                        used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(used.len());
                    let is_macro = used[..end].starts_with("__time") && used[end..].starts_with('(');
                    assert!(variables.contains(&used[..end]) || is_macro, "{title}: ${}", &used[..end]);
                }
            }
        }
        for annotation in list(&dashboard["annotations"], "list") {
            assert!(metrics_of(string(annotation, "expr")).is_subset(&known_metrics), "{annotation}");
        }
    }
}

#[test]
fn links_lead_to_dashboards_and_entries_of_the_runbook() {
    let (book, dashboards) = (text("docs/runbook.md"), dashboards());
    let entries = book.lines().filter_map(|line| line.strip_prefix("### "));
    let entries: BTreeSet<_> = entries.map(|entry| entry.to_lowercase().replace(' ', "-")).collect();
    let uids: BTreeSet<_> = dashboards.iter().map(|(_, dashboard)| string(dashboard, "uid")).collect();
    for (name, dashboard) in &dashboards {
        let variables = list(&dashboard["templating"], "list");
        let runbook = variables.iter().find(|variable| variable["name"] == "runbook").expect("the runbook");
        assert_eq!((string(runbook, "query"), &runbook["current"]["value"]), (RUNBOOK, &RUNBOOK.into()));
        let of_panels = list(dashboard, "panels").iter().flat_map(|panel| panel["links"].as_array());
        let mut with_entry = 0;
        for link in of_panels.flatten().chain(list(dashboard, "links")) {
            let url = string(link, "url");
            if let Some(entry) = url.strip_prefix("${runbook}#") {
                assert!(entries.contains(entry), "{name}: {url}");
                with_entry += 1;
            } else {
                let uid = url.strip_prefix("/d/");
                assert!(url == "${runbook}" || uid.is_some_and(|uid| uids.contains(uid)), "{name}: {url}");
            }
        }
        assert!(with_entry > 0, "{name}");
    }
}

#[test]
fn descriptions_name_existing_keys_columns_and_commands() {
    let documents = ["docs/configuration.md", "docs/metrics.md", "docs/runbook.md"].map(text).concat();
    let migration = text("sinks/migrations/postgres/0001_tables.sql");
    for (name, dashboard) in dashboards() {
        for (title, panel) in panels(&name, &dashboard) {
            let queries = list(&panel, "targets").iter().map(query).collect::<Vec<_>>().concat();
            let description = string(&panel, "description");
            for quoted in description.split('`').skip(1).step_by(2) {
                let last = quoted.rsplit('.').next().unwrap_or_default();
                let is_known = documents.contains(&format!("`{last}")) || documents.contains(quoted);
                let is_column = migration.contains(quoted) && queries.contains(quoted);
                let is_alias = queries.contains(&format!(" AS {quoted}"));
                assert!(is_known || is_column || is_alias, "{title}: `{quoted}`");
            }
        }
    }
}
