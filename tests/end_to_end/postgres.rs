//! A PostgreSQL database for one test.

use std::fs;
use std::io::Write;
use std::path::Path;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::services::Services;

/// A database that is dropped with this value.
pub struct Database {
    server: String,
    name: String,
}

impl Database {
    /// Creates a database on the server that all tests share.
    pub fn create(name: &str) -> Database {
        Database::create_on(&Services::shared().postgres, name)
    }

    /// Creates a database on a server.
    pub fn create_on(server: &str, name: &str) -> Database {
        let server = server.to_owned();
        let database = Database { server, name: format!("{name}_{}", std::process::id()) };
        query(&database.server, &format!("CREATE DATABASE {}", database.name));
        database
    }

    /// Returns the URL of the database.
    pub fn url(&self) -> String {
        let (server, _) = self.server.rsplit_once('/').expect("postgres://user@host:port/database");
        format!("{server}/{}", self.name)
    }

    /// Returns the first field of each row of a query.
    pub fn query(&self, sql: &str) -> Vec<String> {
        query(&self.url(), sql)
    }

    /// Returns true if the table exists.
    pub fn has_table(&self, table: &str) -> bool {
        self.query(&format!("SELECT to_regclass('{table}') IS NOT NULL")) == ["t"]
    }

    /// Returns the greatest number in a column of a table; 0 if there is none.
    pub fn max_of(&self, table: &str, column: &str) -> i64 {
        match self.has_table(table) {
            true => self.number(&format!("SELECT coalesce(max({column}), 0) FROM {table}")),
            false => 0,
        }
    }

    /// Returns the last epoch of the ledger in this database; 0 if there is none.
    pub fn recorded(&self) -> i64 {
        self.max_of("headwater_bindings", "through").max(self.max_of("headwater_manifests", "epoch"))
    }

    /// Returns the number that a query selects.
    pub fn number(&self, sql: &str) -> i64 {
        self.query(sql)[0].parse().expect("a number")
    }

    /// Writes the tables of a schema to a directory, in the format of the oracle's `compare.py`.
    pub fn dump(&self, schema: &str, out: &Path) {
        fs::create_dir(out).expect("a folder");
        for (table, from) in [
            ("events", "events"),
            ("alerts", "alerts"),
            ("windows", "window_aggregates"),
            ("dead_letters", "(SELECT *, encode(sha256(value), 'hex') AS value_sha256 FROM dead_letters)"),
        ] {
            let rows = self.query(&format!(
                "SET timezone = 'UTC'; SET search_path = {schema}; SELECT row_to_json(row) FROM {from} AS row"
            ));
            let file = fs::File::create(out.join(format!("{table}.ndjson"))).expect("a file");
            let mut file = std::io::BufWriter::new(file);
            rows.iter().try_for_each(|row| writeln!(file, "{row}")).expect("written");
            file.flush().expect("written");
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        query(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

pub fn query(url: &str, sql: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answer = runtime.block_on(async {
        let (client, connection): (Client, _) = tokio_postgres::connect(url, NoTls).await.expect("connected");
        tokio::spawn(connection);
        client.simple_query(sql).await
    });
    let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let field = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    answer.into_iter().filter_map(field).collect()
}
