//! The queries of the analyst's dashboard in Grafana, on the tables that a run has written.

use std::fs;
use std::process::Command;

use crate::common::{FLOW, headwater, root, succeed};
use crate::postgres::Database;

#[test]
fn every_query_of_the_analyst_dashboard_returns_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    let (database, config) = (Database::create("dashboards"), dir.path().join("run.toml"));
    let text = format!(
        "pipeline = \"dashboards\"\n[source]\nkind = \"generator\"\nrecords = 20000\nusers = 300\ndevices = 100\n\
         malformed = 0.01\ninvalid = 0.01\n[sinks.postgres]\nurl = {:?}\n{FLOW}",
        database.url()
    );
    fs::write(&config, text).expect("written");
    succeed(headwater(&["run", "--bounded"]).arg(&config));
    let printed = succeed(Command::new(root().join("scripts/monitoring")).arg("--sql").arg(database.url()));
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    let dashboard =
        fs::read_to_string(root().join("deploy/grafana/dashboards/analyst.json")).expect("readable");
    // Once for all keys and once for one.
    let queries = 2 * dashboard.matches("\"rawSql\"").count();
    assert!(printed.starts_with(&format!("{queries} queries of SQL return rows")), "{printed}");
}
