//! The maintenance of a sink's tables: partitions and views of dashboards. It has a thread and a session of its own, so
//! that no round waits for it, except for the moments in which it changes partitions ([`ddl`]).
//!
//! ```text
//!   once a minute ─▶ partitions ahead ─▶ rows out of the default partition ─▶ partitions older than the retention
//!   every interval ─▶ views that are missing ─▶ REFRESH MATERIALIZED VIEW CONCURRENTLY
//! ```
//!
//! One process of a pipeline maintains the tables. It ends once a later start has taken over: that start may keep rows
//! for longer. A failure is logged, and the work is attempted again.

mod dashboards;

use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Address, Session, SessionError};
use super::partitions::{Partitioning, Start, ddl, on_demand};
use crate::contract::WriterContext;
use crate::tables::{TABLES, Table};

/// The interval of the maintenance of partitions.
const INTERVAL: Duration = Duration::from_secs(60);

/// The minimum time between two warnings.
const WARNINGS: Duration = Duration::from_secs(60);

/// The timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The number of rows of a period above which they stay in the default partition: moving them would lock it for long.
const MOST_MOVED: i64 = 1_000_000;

/// The tasks of the maintenance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks {
    /// The partitioning of the tables; `None` if they are not partitioned.
    pub partitioning: Option<Partitioning>,
    /// The interval at which the views of dashboards are refreshed; `None` to leave them alone.
    pub dashboards: Option<Duration>,
}

/// The thread of the maintenance. Dropping it ends the thread.
pub(super) struct Maintenance {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.stop.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the maintenance of the tables panicked");
        }
    }
}

impl Maintenance {
    /// Starts the thread for a writer that has opened its sink.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn spawn(
        tasks: Tasks,
        address: Address,
        sink: String,
        context: WriterContext,
    ) -> std::io::Result<Maintenance> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let name = format!("tables-{sink}");
        let maintainer = Maintainer { tasks, address, sink, context, session: None, last_warning: None };
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(async {
                // If the sink is dropped, the session is closed: an open transaction is rolled back.
                match select(Box::pin(maintainer.run()), stopped).await {
                    Either::Left(((), _)) | Either::Right(_) => {}
                }
            });
        })?;
        Ok(Maintenance { stop: Some(stop), thread: Some(thread) })
    }
}

struct Maintainer {
    tasks: Tasks,
    address: Address,
    sink: String,
    context: WriterContext,
    session: Option<Session>,
    last_warning: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Task {
    Partitions,
    Dashboards,
}

/// The result of a task that was carried out.
#[derive(Clone, Copy, PartialEq)]
enum Done {
    Completed,
    /// A later start has taken over.
    Replaced,
}

impl Maintainer {
    async fn run(mut self) {
        let now = Instant::now();
        let mut partitions_due = self.tasks.partitioning.map(|_| now);
        let mut dashboards_due = self.tasks.dashboards.map(|_| now);
        while let Some(due) = [partitions_due, dashboards_due].into_iter().flatten().min() {
            sleep_until(due).await;
            let began = Instant::now();
            let done = if partitions_due.is_some_and(|due| due <= began) {
                partitions_due = Some(began + INTERVAL);
                self.attempt(Task::Partitions).await
            } else {
                let done = self.attempt(Task::Dashboards).await;
                // A refresh that takes long is repeated less often: at most a tenth of the time is spent on it.
                let pause = self.tasks.dashboards.unwrap_or(INTERVAL).max(9 * began.elapsed());
                dashboards_due = Some(Instant::now() + pause);
                done
            };
            if done == Done::Replaced {
                tracing::info!(
                    sink = self.sink,
                    "a later start maintains the tables; this one no longer does"
                );
                return;
            }
        }
    }

    /// Carries out a task. Logs an error.
    async fn attempt(&mut self, task: Task) -> Done {
        let outcome = match self.session().await {
            Ok(session) => {
                let done = match task {
                    Task::Partitions => self.maintain_partitions(&session).await,
                    Task::Dashboards => self.refresh_dashboards(&session).await,
                };
                // An unfinished transaction must not be continued.
                self.session = done.is_ok().then_some(session);
                done
            }
            Err(error) => Err(error),
        };
        outcome.unwrap_or_else(|error| {
            let what = match task {
                Task::Partitions => "partitions",
                Task::Dashboards => "views of dashboards",
            };
            self.warn_of(what, &error);
            Done::Completed
        })
    }

    /// Logs that the maintenance of `what` failed.
    fn warn_of(&mut self, what: &str, error: &SessionError) {
        let cause = match error.is_lock_timeout() {
            true => "; a session that reads the tables for long delays it, see pg_stat_activity",
            false => "",
        };
        self.warn(&format!(
            "the maintenance of the {what} failed and will be attempted again: {error}{cause}"
        ));
    }

    /// Logs a warning, unless there was one within a minute.
    fn warn(&mut self, message: &str) {
        if self.last_warning.is_none_or(|last| last.elapsed() >= WARNINGS) {
            self.last_warning = Some(Instant::now());
            tracing::warn!(sink = self.sink, "{message}");
        }
    }

    async fn session(&mut self) -> Result<Session, SessionError> {
        match self.session.take().filter(|session| !session.client.is_closed()) {
            Some(session) => Ok(session),
            None => timeout(CONNECT_TIMEOUT, Session::connect(&self.address))
                .await
                .unwrap_or(Err(SessionError::TimedOut("connecting"))),
        }
    }

    /// Returns true if no later start has taken over.
    async fn is_current(&self, session: &Session) -> Result<bool, SessionError> {
        let current = "
            SELECT EXISTS (SELECT FROM headwater_progress WHERE pipeline = $1 AND sink = $2 AND generation = $3
                               AND writer = $4 AND fenced_by IS NULL)
               AND NOT EXISTS (SELECT FROM headwater_progress
                               WHERE pipeline = $1 AND sink = $2 AND generation > $3)";
        let (generation, writer) = (self.context.generation.0 as i64, self.context.process as i32);
        let row = session
            .client
            .query_one(current, &[&self.context.pipeline, &self.sink, &generation, &writer])
            .await?;
        Ok(row.get(0))
    }

    async fn refresh_dashboards(&self, session: &Session) -> Result<Done, SessionError> {
        for view in &dashboards::VIEWS {
            if !self.is_current(session).await? {
                return Ok(Done::Replaced);
            }
            if dashboards::ensure(session, view).await? {
                tracing::info!(sink = self.sink, view = view.name, "created the view of dashboards");
            } else {
                dashboards::refresh(session, view).await?;
            }
        }
        Ok(Done::Completed)
    }

    async fn maintain_partitions(&mut self, session: &Session) -> Result<Done, SessionError> {
        let Some(partitioning) = self.tasks.partitioning else { return Ok(Done::Completed) };
        let mut failed = None;
        for table in &TABLES {
            if !self.is_current(session).await? {
                return Ok(Done::Replaced);
            }
            // A table that a reader blocks must not keep the others from being maintained.
            if let Err(error) = self.maintain_table(session, table, &partitioning).await {
                if session.client.is_closed() {
                    return Err(error);
                }
                failed = Some((table.name, error));
            }
        }
        if let Some((table, error)) = failed {
            self.warn_of(&format!("partitions of {table}"), &error);
        }
        Ok(Done::Completed)
    }

    async fn maintain_table(
        &mut self,
        session: &Session,
        table: &Table,
        partitioning: &Partitioning,
    ) -> Result<(), SessionError> {
        let now = "SELECT (extract(epoch FROM now()) * 1000)::bigint";
        let now: i64 = session.client.query_one(now, &[]).await?.get(0);
        let upcoming = partitioning.upcoming(now);
        self.create(session, table, partitioning, &upcoming).await?;
        for (start, rows) in ddl::strays(session, table, partitioning, now).await? {
            self.move_strays(session, table, partitioning, start, rows).await?;
        }
        match partitioning.oldest(now) {
            Some(oldest) => self.remove_older(session, table, partitioning, oldest).await,
            None => Ok(()),
        }
    }

    async fn create(
        &self,
        session: &Session,
        table: &Table,
        partitioning: &Partitioning,
        starts: &[Start],
    ) -> Result<(), SessionError> {
        let period = partitioning.period;
        let created = ddl::patiently(async || ddl::create(session, table, period, starts).await).await?;
        on_demand::log_created(&self.sink, table, &created);
        Ok(())
    }

    /// Moves the rows of a period from the default partition to one of their own.
    async fn move_strays(
        &mut self,
        session: &Session,
        table: &Table,
        partitioning: &Partitioning,
        start: Start,
        rows: i64,
    ) -> Result<(), SessionError> {
        let partitions = ddl::attached(session, table, partitioning.period).await?.len();
        if partitions >= on_demand::MOST {
            self.warn(&format!("{}: {}", table.name, on_demand::too_many(partitions)));
            return Ok(());
        }
        if rows > MOST_MOVED {
            self.warn(&format!(
                "{rows} rows of {} stay in the default partition: moving so many would block rounds",
                partitioning.period.partition(table, start)
            ));
            return Ok(());
        }
        self.create(session, table, partitioning, &[start]).await
    }

    /// Drops the partitions before `oldest`, and deletes such rows of the default partition.
    async fn remove_older(
        &self,
        session: &Session,
        table: &Table,
        partitioning: &Partitioning,
        oldest: Start,
    ) -> Result<(), SessionError> {
        let period = partitioning.period;
        let first_kept = period.partition(table, oldest);
        for name in ddl::attached(session, table, period).await? {
            if name >= first_kept {
                break;
            }
            let bytes = ddl::size(session, &name).await?;
            let is_permitted = async || self.is_current(session).await;
            if !ddl::patiently(async || ddl::drop(session, &name, is_permitted).await).await? {
                return Ok(());
            }
            tracing::info!(
                sink = self.sink,
                partition = name,
                bytes,
                first_kept,
                "dropped a partition that is older than the retention"
            );
        }
        let deleted =
            ddl::delete_older(session, table, oldest, async || self.is_current(session).await).await?;
        if deleted > 0 {
            tracing::warn!(
                sink = self.sink,
                table = table.name,
                rows = deleted,
                first_kept,
                "removed rows of the default partition that are older than the retention: they were when they arrived"
            );
        }
        Ok(())
    }
}
