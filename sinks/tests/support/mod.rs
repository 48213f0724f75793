//! Shared code of the tests of sinks: changes to stage, and a separate database for each test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::atomic::{AtomicU32, Ordering};

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::{PostgresConfig, PostgresSink};
use headwater_sinks::{Cell, Changes, CommitPermit, Generation, LedgerId, Shards, WriterContext, tables};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Returns the context of a start of the pipeline `fraud` with one process.
pub fn context(generation: u64) -> WriterContext {
    WriterContext {
        pipeline: "fraud".to_owned(),
        ledger_id: LedgerId("00112233445566778899aabbccddeeff".to_owned()),
        generation: Generation(generation),
        process: 0,
        shards: Shards::ALL,
        max_processes: 1,
        adopt: None,
    }
}

/// Returns a permit up to an epoch.
pub fn permit(through: u64) -> CommitPermit {
    CommitPermit::granted(Epoch(through))
}

/// Returns the row of an alert.
pub fn alert(id: &str, status: &str) -> Changes {
    let mut changes = Changes::default();
    add_alert(&mut changes, id, status);
    changes
}

/// Adds the row of an alert.
pub fn add_alert(changes: &mut Changes, id: &str, status: &str) {
    add_change(changes, tables::ALERTS, id, status);
}

/// Adds the row of an alert to the table of alerts, or the outbox.
pub fn add_change(changes: &mut Changes, table: u8, id: &str, status: &str) {
    let mut row = changes.rows.row(table);
    row.cell(Cell::Text(id)).cell(Cell::Text(status)).cell(Cell::Text("velocity_spike")).cell(Cell::Int(1));
    row.cell(Cell::Text("high")).cell(Cell::Text("user")).cell(Cell::Text("u1")).cell(Cell::Json("[\"e\"]"));
    row.cell(Cell::Time(1_700_000_000_000)).cell(Cell::Int(1)).cell(Cell::Bool(false)).cell(Cell::Json("{}"));
    if table == tables::ALERTS {
        row.cell(Cell::Text("live"));
    }
    row.end();
}

/// Adds the deletion of the row of an alert.
pub fn delete_alert(changes: &mut Changes, id: &str) {
    changes.rows.delete(tables::ALERTS).cell(Cell::Text(id)).end();
}

/// Returns the row of a dead letter.
pub fn dead_letter(partition: i64, offset: i64) -> Changes {
    let mut changes = Changes::default();
    let mut row = changes.rows.row(tables::DEAD_LETTERS);
    row.cell(Cell::Int(partition)).cell(Cell::Int(offset)).cell(Cell::Text("late")).cell(Cell::Null);
    row.cell(Cell::Text("too late")).cell(Cell::Null).cell(Cell::Bytes(&[0, 255])).cell(Cell::Time(0));
    row.cell(Cell::Int(1)).cell(Cell::Int(0)).end();
    changes
}

/// Returns the row of an event.
pub fn event(partition: i64, offset: i64, id: &str) -> Changes {
    let mut changes = Changes::default();
    add_event(&mut changes, partition, offset, id, 1_700_000_000_123, 12_500_000, "{\"a\":1}");
    changes
}

/// Adds the row of an event with a time in milliseconds, an amount in millionths and attributes.
pub fn add_event(
    changes: &mut Changes,
    partition: i64,
    offset: i64,
    id: &str,
    time: i64,
    amount: i128,
    attributes: &str,
) {
    let mut row = changes.rows.row(tables::EVENTS);
    row.cell(Cell::Int(partition)).cell(Cell::Int(offset)).cell(Cell::Int(7)).cell(Cell::Text(id));
    row.cell(Cell::Text("transaction")).cell(Cell::Text("user")).cell(Cell::Text(id)).cell(Cell::Time(time));
    row.cell(Cell::Micros(amount)).cell(Cell::Text("EUR"));
    for _ in 0..5 {
        row.cell(Cell::Null);
    }
    row.cell(Cell::Float(-0.5))
        .cell(Cell::Float(179.25))
        .cell(Cell::Json(attributes))
        .cell(Cell::Text("<100"));
    row.cell(Cell::Int(i64::MAX)).cell(Cell::Null).cell(Cell::Null).cell(Cell::Null).end();
}

/// A session of the test.
pub struct Session {
    runtime: Runtime,
    client: Client,
}

impl Session {
    fn new(config: &Config) -> Session {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await.expect("the test server is available");
            tokio::spawn(connection);
            client
        });
        Session { runtime, client }
    }

    /// Runs statements and returns the rows. Fields are joined by `|`; null is `∅`.
    pub fn rows(&self, sql: &str) -> Vec<String> {
        let answer = self.runtime.block_on(self.client.simple_query(sql));
        let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let fields = (0..row.len()).map(|at| row.get(at).unwrap_or("∅"));
                Some(fields.collect::<Vec<_>>().join("|"))
            }
            _ => None,
        });
        rows.collect()
    }

    /// Runs statements and returns the only field of the only row.
    pub fn one(&self, sql: &str) -> String {
        let mut rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "{sql}");
        rows.remove(0)
    }
}

/// A database of one test, which is dropped with this value.
pub struct Database {
    server: String,
    name: String,
    /// A session in the database.
    pub session: Option<Session>,
}

impl Database {
    /// Creates a database.
    pub fn create() -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Ok(server) = std::env::var("HEADWATER_TEST_POSTGRES") else {
            panic!("these tests need a PostgreSQL server: set HEADWATER_TEST_POSTGRES, or run scripts/test");
        };
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let config: Config = server.parse().expect("an address");
        Session::new(&config).rows(&format!("CREATE DATABASE {name}"));
        let session = Some(Session::new(config.clone().dbname(&name)));
        Database { server, name, session }
    }

    /// Returns the address of the database.
    pub fn url(&self) -> String {
        let (server, _) = self.server.rsplit_once('/').expect("postgres://user@host:port/database");
        format!("{server}/{}", self.name)
    }

    /// Returns the configuration of a sink that writes here.
    pub fn config(&self) -> PostgresConfig {
        PostgresConfig {
            name: "postgres".to_owned(),
            url: self.url().into(),
            schema: None,
            skip_stored: false,
            partitioning: None,
            dashboards: None,
            set: tables::TableSet::Outputs,
        }
    }

    /// Returns a sink that writes here and is not open yet.
    pub fn sink(&self) -> PostgresSink {
        self.config().build()
    }

    /// Opens another session.
    pub fn connect(&self) -> Session {
        Session::new(&self.url().parse().expect("an address"))
    }

    /// See [`Session::rows`].
    pub fn rows(&self, sql: &str) -> Vec<String> {
        self.session.as_ref().expect("present until dropped").rows(sql)
    }

    /// See [`Session::one`].
    pub fn one(&self, sql: &str) -> String {
        self.session.as_ref().expect("present until dropped").one(sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.session = None;
        let server = Session::new(&self.server.parse().expect("an address"));
        server.rows(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}
