//! Partitions that the next round of a writer needs, made before the round begins.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::connection::{Session, SessionError};
use super::{Partitioning, Start, ddl};
use crate::tables::{TABLES, Table};

/// The number of partitions of a table above which rows no longer get partitions of their own: statements over the whole
/// table become slow. Records with random times could otherwise make any number.
pub(in super::super) const MOST: usize = 1_000;

/// The size of a default partition above which a round does not make partitions, in bytes: its rows have to be read.
const LARGEST_DEFAULT: i64 = 64 * 1024 * 1024;

/// The time after which a failed creation is attempted again. Until then, rows go to the default partition, and the
/// maintenance moves them.
const PAUSE: Duration = Duration::from_secs(60);

/// The number of remembered periods, which bounds the memory.
const REMEMBERED: usize = 100_000;

/// The partitions that a writer makes.
pub(in super::super) struct OnDemand {
    partitioning: Partitioning,
    /// The tables and periods that have a partition, or must do without one.
    decided: HashSet<(usize, Start)>,
    paused_until: Option<Instant>,
}

impl OnDemand {
    pub fn new(partitioning: Partitioning) -> OnDemand {
        OnDemand { partitioning, decided: HashSet::new(), paused_until: None }
    }

    /// Makes the partitions that the rows of these days need. A failure is logged: the rows then go to the default
    /// partition.
    pub async fn prepare(&mut self, session: &Session, sink: &str, days: &[BTreeSet<i64>; TABLES.len()]) {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        if self.decided.len() > REMEMBERED {
            self.decided.clear();
        }
        for (index, table) in TABLES.iter().enumerate() {
            let starts: BTreeSet<_> =
                days[index].iter().filter_map(|&day| self.partitioning.period.start_of(day)).collect();
            let missing: Vec<_> =
                starts.into_iter().filter(|&start| !self.decided.contains(&(index, start))).collect();
            if missing.is_empty() {
                continue;
            }
            match self.create(session, sink, table, &missing).await {
                Ok(()) => self.decided.extend(missing.into_iter().map(|start| (index, start))),
                Err(error) => {
                    self.paused_until = Some(Instant::now() + PAUSE);
                    tracing::warn!(
                        sink,
                        table = table.name,
                        %error,
                        "cannot make a partition; its rows go to the default partition for now"
                    );
                    return;
                }
            }
        }
    }

    /// Creates those partitions of `missing` that the table lacks and that it should have.
    async fn create(
        &self,
        session: &Session,
        sink: &str,
        table: &Table,
        missing: &[Start],
    ) -> Result<(), SessionError> {
        let period = self.partitioning.period;
        let attached = ddl::attached(session, table, period).await?;
        let now = wall_ms();
        let wanted: Vec<_> = missing
            .iter()
            .copied()
            .filter(|&start| {
                self.partitioning.admits(start, now) && !attached.contains(&period.partition(table, start))
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if attached.len() + wanted.len() > MOST {
            return Err(SessionError::Refused(too_many(attached.len())));
        }
        if ddl::default_size(session, table).await? > LARGEST_DEFAULT {
            let reason = "the default partition is large: the maintenance moves its rows";
            return Err(SessionError::Refused(reason.to_owned()));
        }
        let created = ddl::create(session, table, period, &wanted).await?;
        log_created(sink, table, &created);
        Ok(())
    }
}

/// Returns the reason why a table with so many partitions gets no more.
pub(in super::super) fn too_many(partitions: usize) -> String {
    format!(
        "the table has {partitions} partitions, of at most {MOST}: rows of further times stay in the default partition; \
         set `retention`, correct the times of the records, or use `partition_by = \"month\"` in a new `schema`"
    )
}

/// Logs the partitions that were created, if there are any.
pub(in super::super) fn log_created(sink: &str, table: &Table, created: &ddl::Created) {
    if let (Some(first), Some(last)) = (created.names.first(), created.names.last()) {
        tracing::info!(
            sink,
            table = table.name,
            count = created.names.len(),
            first,
            last,
            moved_rows = created.moved,
            "created partitions"
        );
    }
}

/// Returns the wall time, in milliseconds since 1970.
fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
