//! Metrics of lists: what is in force, and how their sources are.

use std::sync::Mutex;

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};

use super::Metrics;
use super::registrar::Registrar;
use crate::lists::{ListHealth, ListStatus, Lists};
use crate::wall::wall_ms;

/// The metrics of lists, which are brought up to date when they are read.
pub(super) struct ListMetrics {
    entries: IntGaugeVec,
    epoch: IntGaugeVec,
    age: GaugeVec,
    errors: IntCounterVec,
    watched: Mutex<Lists>,
}

impl ListMetrics {
    pub fn new(add: &Registrar<'_>) -> prometheus::Result<ListMetrics> {
        Ok(ListMetrics {
            entries: add.gauges(
                "headwater_list_entries",
                "Entries of a list that are in force",
                &["list"],
            )?,
            epoch: add.gauges(
                "headwater_list_epoch",
                "The epoch after which the contents of a list are in force; 0 if they always were",
                &["list"],
            )?,
            age: add.register(GaugeVec::new(
                Opts::new(
                    "headwater_list_age_seconds",
                    "Time since a list was read; the uptime while it was not, in the process that reads it",
                ),
                &["list"],
            )?)?,
            errors: add.counters("headwater_list_errors_total", "Failed readings of a list", &["list"])?,
            watched: Mutex::default(),
        })
    }

    fn lists(&self) -> Lists {
        self.watched.lock().expect("no thread panics while it holds the lock").clone()
    }
}

impl Metrics {
    /// Reports these lists from now on.
    pub fn watch_lists(&self, lists: Lists) {
        *self.lists.watched.lock().expect("no thread panics while it holds the lock") = lists;
    }

    /// Returns the states of the lists.
    pub fn list_status(&self) -> Vec<ListStatus> {
        self.lists.lists().iter().map(|list| list.status()).collect()
    }

    /// Brings the metrics up to date.
    pub(super) fn update_lists(&self) {
        for list in self.lists.lists().iter() {
            let (name, newest) = ([list.name()], list.newest());
            self.lists.entries.with_label_values(&name).set(newest.table.len() as i64);
            self.lists.epoch.with_label_values(&name).set(newest.since.epoch.0 as i64);
            let ListHealth { is_reader: true, read_ms, errors, .. } = list.health() else { continue };
            let uptime = self.started.elapsed().as_secs_f64();
            let age = read_ms.map_or(uptime, |read_ms| wall_ms().saturating_sub(read_ms).max(0) as f64 / 1e3);
            self.lists.age.with_label_values(&name).set(age);
            let counter = self.lists.errors.with_label_values(&name);
            counter.inc_by(errors.saturating_sub(counter.get()));
        }
    }
}
