//! Keys of a test in Redis, and rows to stage.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use headwater_sinks::redis::{RedisServer, RedisSink, RedisSinkConfig};
use headwater_sinks::{Cell, Changes, CommitError, Sink, tables};
use redis::{Commands, Connection};

use crate::support::{context, permit};

pub type Hash = BTreeMap<String, String>;

/// Keys of one test, which are deleted with this value.
pub struct Store {
    pub url: String,
    prefix: String,
    pub ttl: Duration,
}

impl Store {
    pub fn new() -> Store {
        Store::at(std::env::var("HEADWATER_TEST_REDIS").expect("HEADWATER_TEST_REDIS names a Redis"))
    }

    pub fn at(url: String) -> Store {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Store { url, prefix, ttl: Duration::from_secs(3600) }
    }

    pub fn sink(&self) -> RedisSink {
        self.sink_through(&self.url)
    }

    pub fn sink_through(&self, url: &str) -> RedisSink {
        let (name, prefix) = ("redis".to_owned(), self.prefix.clone());
        RedisSinkConfig { name, server: RedisServer::at("sinks.redis", url), prefix, ttl: self.ttl }.build()
    }

    pub fn opened(&self, generation: u64) -> RedisSink {
        let mut sink = self.sink();
        sink.open(&context(generation)).expect("the sink opens");
        sink
    }

    pub fn connection(&self) -> Connection {
        redis::Client::open(&*self.url).and_then(|client| client.get_connection()).expect("a Redis server")
    }

    pub fn key(&self, rest: &str) -> String {
        format!("{}:fraud:{rest}", self.prefix)
    }

    pub fn profile(&self, key: &str) -> Hash {
        self.connection().hgetall(self.key(&format!("user:{key}"))).expect("a hash")
    }

    /// Returns all profiles by key.
    pub fn profiles(&self) -> BTreeMap<String, Hash> {
        let mut connection = self.connection();
        let begin = self.key("user:");
        let keys: Vec<String> = connection.keys(format!("{begin}*")).expect("keys");
        keys.into_iter()
            .map(|key| (key[begin.len()..].to_owned(), connection.hgetall(&key).expect("a hash")))
            .collect()
    }

    pub fn progress_key(&self) -> String {
        self.key("progress:redis")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let mut connection = self.connection();
        let keys: Vec<String> = connection.keys(format!("{}:*", self.prefix)).expect("keys");
        keys.iter().for_each(|key| connection.del(key).expect("deleted"));
    }
}

/// Returns the nth event of a key, at a second.
pub fn event(key: &str, n: i64, second: i64) -> Changes {
    let mut changes = Changes::default();
    add_event(&mut changes, key, n, second, Some(12_500_000), Some((52.5, 13.25)));
    changes
}

pub fn add_event(
    changes: &mut Changes,
    key: &str,
    n: i64,
    second: i64,
    amount: Option<i128>,
    location: Option<(f64, f64)>,
) {
    let id = format!("{key}-{n}");
    let mut row = changes.rows.row(tables::EVENTS);
    row.cell(Cell::Int(0)).cell(Cell::Int(n)).cell(Cell::Int(7)).cell(Cell::Text(&id));
    row.cell(Cell::Text("transaction")).cell(Cell::Text("user")).cell(Cell::Text(key));
    row.cell(Cell::Time(second * 1000)).cell(amount.map_or(Cell::Null, Cell::Micros)).cell(Cell::Text("EUR"));
    for _ in 0..5 {
        row.cell(Cell::Null);
    }
    let degrees = |of: fn((f64, f64)) -> f64| location.map_or(Cell::Null, |at| Cell::Float(of(at)));
    row.cell(degrees(|at| at.0)).cell(degrees(|at| at.1)).cell(Cell::Null).cell(Cell::Text("<100"));
    row.cell(Cell::Int(n)).cell(Cell::Float(12.5)).cell(Cell::Null).cell(Cell::Float(3.25)).end();
}

pub fn add_window(changes: &mut Changes, key: &str, start: i64, count: i64) {
    let mut row = changes.rows.row(tables::WINDOW_AGGREGATES);
    row.cell(Cell::Text("user_1m")).cell(Cell::Text("user")).cell(Cell::Text(key)).cell(Cell::Time(start));
    row.cell(Cell::Time(start + 60_000)).cell(Cell::Int(count)).cell(Cell::Int(count));
    row.cell(Cell::Micros(i128::from(count) * 1_500_000))
        .cell(Cell::Float(1.5))
        .cell(Cell::Micros(1_000_000));
    row.cell(Cell::Micros(2_000_000)).cell(Cell::Float(0.5)).cell(Cell::Int(1)).cell(Cell::Bool(false));
    row.cell(Cell::Int(7)).end();
}

pub fn remove_window(changes: &mut Changes, key: &str, start: i64) {
    let mut row = changes.rows.delete(tables::WINDOW_AGGREGATES);
    row.cell(Cell::Text("user_1m"))
        .cell(Cell::Text("user"))
        .cell(Cell::Text(key))
        .cell(Cell::Time(start))
        .end();
}

pub fn add_alert(changes: &mut Changes, key: &str, id: &str, status: &str, second: i64) {
    let mut row = changes.rows.row(tables::ALERTS);
    row.cell(Cell::Text(id)).cell(Cell::Text(status)).cell(Cell::Text("velocity_spike")).cell(Cell::Int(1));
    row.cell(Cell::Text("high")).cell(Cell::Text("user")).cell(Cell::Text(key)).cell(Cell::Json("[]"));
    row.cell(Cell::Time(second * 1000))
        .cell(Cell::Int(1))
        .cell(Cell::Bool(true))
        .cell(Cell::Json("{}"))
        .cell(Cell::Text("live"))
        .end();
}

/// Returns the events of `keys` keys, one each.
pub fn events_of(keys: usize, n: i64) -> Changes {
    let mut changes = Changes::default();
    (0..keys).for_each(|key| add_event(&mut changes, &format!("k{key}"), n, n, None, None));
    changes
}

/// Commits until the outcome is not `Failed`.
pub fn outcome(sink: &mut RedisSink, through: u64) -> Result<(), CommitError> {
    loop {
        match sink.commit(permit(through)) {
            Err(CommitError::Failed { .. }) => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
}
