//! The PostgreSQL sink (versions 14 to 18): one transaction per round, on a connection of its own.
//!
//! ```text
//!   stage ── rows, encoded ──▶ by epoch ──┐
//!                                         │   BEGIN
//!   commit(through E) ────────────────────┼─▶ progress: last → E, unless fenced      else: CommitError::Fenced
//!                                         │   append-only: COPY to the table
//!                                         │   keyed: COPY to the session's table, INSERT … ON CONFLICT, DELETE
//!                                         └─▶ COMMIT ── no reply? terminate the backend, read progress: E or last?
//! ```
//!
//! Each writer has one progress row for each start, inserted when it opens. Opening first terminates the backends of
//! older starts, then sets `fenced_by` on their rows. A round that an older start has in progress is then either
//! committed, and its progress is read here, or its commit fails as fenced.
//!
//! Tables can be partitioned by time; a session of its own creates and drops the partitions, beside the rounds.

mod connect_error;
mod connection;
mod encode;
mod maintenance;
mod partitions;
pub mod probe;
mod progress;
mod refused;
mod schema;
mod sql;
mod staged;
mod target;
#[cfg(feature = "tls")]
mod tls;

pub use connect_error::ConnectError;
pub use partitions::{Partitioning, Period};
pub use target::Target;

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_dataflows::Epoch;
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::types::ToSql;

use self::connection::{Address, Backend, Session, SessionError};
use self::maintenance::{Maintenance, Tasks};
use self::partitions::OnDemand;
use self::progress::Row;
use self::staged::{LastChanges, Staged, Stored};
use crate::contract::{CommitError, CommitPermit, OpenError, Progress, Sink, StageError, WriterContext};
use crate::crash;
use crate::tables::{Mode, TABLES, TableSet};
use crate::{Changes, Secret};

/// The timeout of opening, and of a round without its COMMIT. Far above what either needs: the timeouts of the server
/// apply first, as long as the server responds.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

/// The timeout of a COMMIT. After it, the outcome is read from the progress row.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The timeout of reading an unknown outcome.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(30);

/// The configuration of a PostgreSQL sink.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// The sink's name.
    pub name: String,
    /// The server and database, as `postgres://user:password@host:port/database`.
    pub url: Secret,
    /// The schema of the tables, created if it does not exist; if `None`, the default schema of the connection. Tables
    /// belong to one pipeline, so each pipeline of a database needs a schema of its own. Lower-case letters, digits and
    /// `_` only.
    pub schema: Option<String>,
    /// True if rows of input records that are already stored are skipped. For pipelines that read their input again
    /// from offsets older than their progress. It costs one lookup for each row up to the greatest stored offset.
    pub skip_stored: bool,
    /// The partitioning of the tables by time; `None` for plain tables. It applies to new tables: existing ones must be
    /// partitioned in the same way. The retention may change with any start.
    pub partitioning: Option<Partitioning>,
    /// The interval at which the materialised views for dashboards are refreshed; `None` to leave them alone.
    pub dashboards: Option<Duration>,
    /// The tables to write.
    pub set: TableSet,
}

impl PostgresConfig {
    /// Builds the sink, which is not open yet.
    pub fn build(self) -> PostgresSink {
        PostgresSink { config: self, open: None, staged: BTreeMap::new() }
    }
}

/// A sink that writes tables of a PostgreSQL database.
pub struct PostgresSink {
    config: PostgresConfig,
    open: Option<Open>,
    staged: BTreeMap<Epoch, Vec<Staged>>,
}

struct Open {
    /// Runs the sessions while a method of the sink is being called.
    runtime: Runtime,
    writer: Writer,
    stored: Stored,
    /// The thread that maintains the tables. Dropping this ends it.
    _maintenance: Option<Maintenance>,
}

/// The writer of one start. It lives longer than its sessions.
struct Writer {
    address: Address,
    sink: String,
    set: TableSet,
    context: WriterContext,
    /// The epoch in the progress row of this writer.
    through: Option<Epoch>,
    /// The partitions of the tables; `None` if they are not partitioned.
    partitions: Option<OnDemand>,
    session: Option<Session>,
    /// The backend of a dropped session: it may still hold locks, and its COMMIT may still happen.
    abandoned: Option<Backend>,
}

/// The result of writing a round, before its COMMIT.
enum WriteResult {
    Written,
    Fenced,
}

/// The outcome of a COMMIT that failed or timed out.
enum Outcome {
    Committed,
    NotCommitted,
    Fenced,
}

impl Writer {
    fn generation(&self) -> i64 {
        self.context.generation.0 as i64
    }

    fn process(&self) -> i32 {
        self.context.process as i32
    }

    /// Reads all progress of this sink.
    ///
    /// # Errors
    /// If the tables belong to another pipeline, if the progress belongs to another ledger, or if a later start has
    /// opened the sink.
    async fn read_progress(&self, session: &Session) -> Result<Vec<Progress>, SessionError> {
        if let Some(owner) = progress::other_pipeline(session, &self.context.pipeline).await? {
            return Err(SessionError::Refused(progress::belongs_to(&owner)));
        }
        let rows = progress::read(session, &self.context.pipeline, &self.sink).await?;
        // Adopting replaces all progress, whichever ledger it belongs to.
        let checked = if self.context.adopt.is_some() { &[][..] } else { &rows };
        for Row { ledger_id, generation, .. } in checked {
            if let Some(reason) = self.context.objection(&self.sink, ledger_id, *generation) {
                return Err(SessionError::Refused(reason));
            }
        }
        Ok(rows.into_iter().filter_map(Row::into_progress).collect())
    }

    /// Fences older starts and inserts the progress row of this writer. Returns the progress found.
    async fn take_over(&mut self, session: &Session) -> Result<Vec<Progress>, SessionError> {
        // Checked before any backend is terminated: a start that is refused must not disturb the current writer.
        self.read_progress(session).await?;
        session.end_backends(|name| is_older(name, &self.sink, &self.context)).await?;

        let client = &session.client;
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        // One lock per schema, so that of two pipelines that open at the same time the second sees the first.
        let one_at_a_time = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), $1))";
        client.query(one_at_a_time, &[&sql::MIGRATION_LOCK]).await?;
        // Checked again, because another start may have taken over since. Read once more below, after older rounds have
        // ended.
        self.read_progress(session).await?;
        let (pipeline, generation, process) = (&self.context.pipeline, self.generation(), self.process());
        let adopted = self.context.adopt.map(|through| through.0 as i64);
        if adopted.is_some() {
            let forget = "DELETE FROM headwater_progress WHERE pipeline = $1 AND sink = $2";
            client.execute(forget, &[pipeline, &self.sink]).await?;
        } else {
            let fence = "UPDATE headwater_progress SET fenced_by = $3
                         WHERE pipeline = $1 AND sink = $2 AND generation < $3 AND fenced_by IS NULL";
            client.execute(fence, &[pipeline, &self.sink, &generation]).await?;
        }
        let enter =
            "INSERT INTO headwater_progress (pipeline, sink, generation, writer, lineage, shards, through)
                     VALUES ($1, $2, $3, $4, $5, $6, $7)
                     ON CONFLICT (pipeline, sink, generation, writer) DO UPDATE SET shards = excluded.shards
                     RETURNING through";
        let (ledger_id, shards) = (&self.context.ledger_id.0, self.context.shards.0 as i64);
        let values: [&(dyn ToSql + Sync); 7] =
            [pipeline, &self.sink, &generation, &process, ledger_id, &shards, &adopted];
        let own = client.query_one(enter, &values).await?;
        self.through = own.get::<_, Option<i64>>(0).map(|through| Epoch(through as u64));
        let progress = self.read_progress(session).await?;
        client.batch_execute("COMMIT").await?;
        Ok(progress)
    }

    /// Returns the current session, or a new one after the backend of the previous session has terminated.
    async fn session(&mut self) -> Result<Session, SessionError> {
        if let Some(session) = self.session.take() {
            if !session.client.is_closed() {
                return Ok(session);
            }
            self.abandoned = Some(session.backend);
        }
        let session = Session::connect(&self.address).await?;
        if let Some(backend) = self.abandoned {
            session.end_backend(backend).await?;
            self.abandoned = None;
        }
        session.make_tables(self.set).await?;
        Ok(session)
    }

    /// Writes a round, without its COMMIT.
    async fn write(
        &mut self,
        session: &mut Session,
        staged: &BTreeMap<Epoch, Vec<Staged>>,
        through: Epoch,
    ) -> Result<WriteResult, SessionError> {
        let round = || staged.range(..=through).flat_map(|(_, staged)| staged);
        if let Some(partitions) = &mut self.partitions {
            partitions.prepare(session, &self.sink, &staged::days(round())).await;
        }
        session.client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        let advance = session.prepared(sql::ADVANCE).await?;
        let (generation, process, through_number) = (self.generation(), self.process(), through.0 as i64);
        let last = self.through.map(|last| last.0 as i64);
        let advanced = session
            .client
            .execute(
                &advance,
                &[&self.context.pipeline, &self.sink, &generation, &process, &through_number, &last],
            )
            .await?;
        if advanced == 0 {
            return Ok(WriteResult::Fenced);
        }
        for (index, table) in self.set.tables() {
            match table.mode {
                Mode::Append => {
                    let appended = round().map(|staged| staged.appended[index].as_slice());
                    copy_some(session, &sql::copy(table), appended).await?;
                    let replayed = round().map(|staged| staged.replayed[index].as_slice());
                    if copy_some(session, &sql::copy_staged(table), replayed).await? {
                        session.client.batch_execute(&sql::append_missing(table)).await?;
                    }
                }
                Mode::Upsert { key } => {
                    let last = LastChanges::of(round(), index);
                    if copy_some(session, &sql::copy_deleted(table, key), last.deleted.into_iter()).await? {
                        session.client.batch_execute(&sql::remove(table, key)).await?;
                    }
                    if copy_some(session, &sql::copy_staged(table), last.rows.into_iter()).await? {
                        session.client.batch_execute(&sql::merge(table, self.partitions.is_some())).await?;
                    }
                }
            }
        }
        crash::point("postgres.written");
        Ok(WriteResult::Written)
    }

    /// Determines the outcome of a COMMIT through `through` that failed or timed out. Retries until [`OUTCOME_TIMEOUT`]
    /// has passed.
    async fn resolve_outcome(&mut self, through: Epoch) -> Result<Outcome, SessionError> {
        let deadline = Instant::now() + OUTCOME_TIMEOUT;
        loop {
            match self.read_own_progress(deadline).await {
                Ok(found) if found == Some(through) => return Ok(Outcome::Committed),
                Ok(found) if found == self.through => return Ok(Outcome::NotCommitted),
                Ok(_) => return Ok(Outcome::Fenced),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(error) => {
                    tracing::warn!(sink = self.sink, %error, "the outcome of the commit is still unknown; retrying")
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Reads the epoch in the progress row of this writer, after its previous backend has terminated.
    async fn read_own_progress(&mut self, deadline: Instant) -> Result<Option<Epoch>, SessionError> {
        let read = async {
            let session = self.session().await?;
            let own = "SELECT through FROM headwater_progress
                       WHERE pipeline = $1 AND sink = $2 AND generation = $3 AND writer = $4";
            let (generation, process) = (self.generation(), self.process());
            let row = session
                .client
                .query_opt(own, &[&self.context.pipeline, &self.sink, &generation, &process])
                .await?;
            self.session = Some(session);
            Ok(row.and_then(|row| row.get::<_, Option<i64>>(0)).map(|through| Epoch(through as u64)))
        };
        let left = deadline.saturating_duration_since(Instant::now());
        timeout(left, read).await.unwrap_or(Err(SessionError::TimedOut("reading the outcome of the commit")))
    }

    /// Writes and commits a round.
    async fn commit(
        &mut self,
        staged: &BTreeMap<Epoch, Vec<Staged>>,
        through: Epoch,
    ) -> Result<(), CommitError> {
        let sink = self.sink.clone();
        let failed = |error: SessionError| {
            let (sink, reason) = (sink.clone(), error.to_string());
            match error.is_caused_by_rows() {
                true => {
                    let hint = match error
                        .refused_row()
                        .and_then(|(table, detail)| refused::output(staged, through, table, detail))
                    {
                        Some((epoch, output)) => skip_hint(&sink, epoch, &output),
                        None => format!(
                            "`--skip {sink}:EPOCH:OUTPUT` leaves an output out; EPOCH is the epoch of the row, \
                             OUTPUT its table and key (events/PARTITION/OFFSET, alerts/ID, \
                             window_aggregates/WINDOW/KIND/KEY/START)"
                        ),
                    };
                    CommitError::Refused { sink, through, reason: format!("{reason}; {hint}") }
                }
                false => CommitError::Failed { sink, through, reason },
            }
        };
        let fenced = || CommitError::Fenced {
            sink: sink.clone(),
            reason: "another writer has changed its progress row".to_owned(),
        };

        let mut session = timeout(ROUND_TIMEOUT, self.session())
            .await
            .unwrap_or(Err(SessionError::TimedOut("reconnecting")))
            .map_err(failed)?;
        // Unless this round is committed, the next session must terminate this backend.
        self.abandoned = Some(session.backend);
        let written = timeout(ROUND_TIMEOUT, self.write(&mut session, staged, through)).await;
        match written.unwrap_or(Err(SessionError::TimedOut("writing the round"))).map_err(failed)? {
            WriteResult::Written => {}
            WriteResult::Fenced => return Err(fenced()),
        }
        let committed = timeout(COMMIT_TIMEOUT, session.client.batch_execute("COMMIT")).await;
        let error = match committed {
            Ok(Ok(())) => {
                self.abandoned = None;
                self.session = Some(session);
                self.through = Some(through);
                return Ok(());
            }
            Ok(Err(error)) => SessionError::Store(error),
            Err(_) => SessionError::TimedOut("COMMIT"),
        };
        drop(session);
        tracing::warn!(sink, %through, %error, "COMMIT failed or timed out; reading its outcome");
        match self.resolve_outcome(through).await {
            Ok(Outcome::Committed) => {
                self.through = Some(through);
                Ok(())
            }
            Ok(Outcome::NotCommitted) => Err(failed(error)),
            Ok(Outcome::Fenced) => Err(fenced()),
            Err(last) => {
                let reason = format!("{error}; reading the outcome failed: {last}");
                Err(CommitError::Indeterminate { sink, through, reason })
            }
        }
    }
}

/// Returns the hint for skipping an output.
fn skip_hint(sink: &str, epoch: Epoch, output: &str) -> String {
    format!("`--skip {sink}:{epoch}:{output}` leaves it out, at this sink only")
}

/// Copies rows. Returns true if there were any.
async fn copy_some<'a>(
    session: &mut Session,
    copy: &str,
    rows: impl Iterator<Item = &'a [u8]>,
) -> Result<bool, SessionError> {
    let mut rows = rows.filter(|rows| !rows.is_empty()).peekable();
    let has_rows = rows.peek().is_some();
    if has_rows {
        session.copy(copy, rows).await?;
    }
    Ok(has_rows)
}

/// Reads the greatest stored offset of each partition.
async fn read_stored(session: &Session) -> Result<Stored, SessionError> {
    let mut stored = Stored::default();
    for table in TABLES.iter().filter(|table| table.mode == Mode::Append) {
        for row in session.client.query(&sql::greatest_offsets(table.name), &[]).await? {
            let (partition, offset): (i32, i64) = (row.get(0), row.get(1));
            let greatest = stored.0.entry(partition.into()).or_insert(offset);
            *greatest = (*greatest).max(offset);
        }
    }
    Ok(stored)
}

/// Returns the prefix, before the generation, of the `application_name` of all writers of a sink.
///
/// The server truncates names to 63 bytes and replaces characters that are not ASCII. Names that this would change, or
/// that contain the separator, are replaced by their hash.
fn application_prefix(sink: &str, context: &WriterContext) -> String {
    let pipeline = &context.pipeline;
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    if plain(pipeline) && plain(sink) && pipeline.len() + sink.len() <= 24 {
        return format!("headwater:{pipeline}:{sink}:");
    }
    let hash = Sha256::new().chain_update(pipeline).chain_update([0]).chain_update(sink).finalize();
    let hash: String = hash[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("headwater:{hash}:")
}

/// Returns true if a backend with this `application_name` belongs to an older start of this pipeline and sink.
fn is_older(application_name: &str, sink: &str, context: &WriterContext) -> bool {
    application_name
        .strip_prefix(&application_prefix(sink, context))
        .and_then(|rest| rest.split_once(':'))
        .and_then(|(generation, _)| generation.parse::<u64>().ok())
        .is_some_and(|generation| generation < context.generation.0)
}

impl PostgresSink {
    /// Starts the maintenance of the tables, in one process and if there is something to do. `name` is that of the
    /// writer's sessions.
    fn maintain(
        &self,
        tasks: Tasks,
        context: &WriterContext,
        name: &str,
    ) -> Result<Option<Maintenance>, OpenError> {
        if context.process > 0 || tasks.partitioning.is_none() && tasks.dashboards.is_none() {
            return Ok(None);
        }
        let (url, schema) = (self.config.url.expose(), self.config.schema.as_deref());
        let address = Address::parse(url, schema, &format!("{name}:tables"))
            .map_err(|error| self.open_error("PostgreSQL".to_owned(), error.into()))?;
        let sink = self.config.name.clone();
        let spawned = Maintenance::spawn(tasks, address, sink.clone(), context.clone());
        spawned.map(Some).map_err(|error| OpenError::Unavailable {
            sink,
            what: "a thread for its tables".to_owned(),
            source: Box::new(error),
        })
    }

    fn open_error(&self, what: String, error: SessionError) -> OpenError {
        let sink = self.config.name.clone();
        match error {
            SessionError::Refused(reason) => OpenError::Refused { sink, reason: format!("{what}: {reason}") },
            error => OpenError::Unavailable { sink, what, source: Box::new(error) },
        }
    }
}

impl Sink for PostgresSink {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let sink = self.config.name.clone();
        let name =
            format!("{}{}:{}", application_prefix(&sink, context), context.generation, context.process);
        let address = Address::parse(self.config.url.expose(), self.config.schema.as_deref(), &name)
            .map_err(|error| self.open_error("PostgreSQL".to_owned(), error.into()))?;
        let what = address.to_string();
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(|error| OpenError::Unavailable {
                sink: sink.clone(),
                what: "a runtime".to_owned(),
                source: Box::new(error),
            })?;
        let PostgresConfig { set, partitioning, dashboards, .. } = self.config;
        let mut writer = Writer {
            address,
            sink,
            set,
            context: context.clone(),
            through: None,
            partitions: partitioning.map(OnDemand::new),
            session: None,
            abandoned: None,
        };
        // The maintenance of an earlier call would use its progress row.
        self.open = None;
        let opening = async {
            let session = Session::connect(&writer.address).await?;
            let schema = self.config.schema.as_deref();
            schema::migrate(&session, schema, set, partitioning.as_ref(), &writer.sink).await?;
            let progress = writer.take_over(&session).await?;
            let stored =
                if self.config.skip_stored { read_stored(&session).await? } else { Stored::default() };
            session.make_tables(set).await?;
            Ok((session, progress, stored))
        };
        let opened = runtime.block_on(async {
            timeout(ROUND_TIMEOUT, opening).await.unwrap_or(Err(SessionError::TimedOut("opening the sink")))
        });
        let (session, progress, stored) = opened.map_err(|error| self.open_error(what, error))?;
        writer.session = Some(session);
        let _maintenance = self.maintain(Tasks { partitioning, dashboards }, context, &name)?;
        self.open = Some(Open { runtime, writer, stored, _maintenance });
        Ok(progress)
    }

    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        let address =
            Address::parse(self.config.url.expose(), self.config.schema.as_deref(), "headwater-status")
                .map_err(|error| self.open_error("PostgreSQL".to_owned(), error.into()))?;
        let peeking = progress::peek_progress(&address, pipeline, &self.config.name);
        let progress = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(peeking),
            Err(error) => Err(SessionError::Refused(format!("cannot start a runtime: {error}"))),
        };
        progress.map_err(|error| self.open_error(address.to_string(), error))
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        let error = |reason: String| StageError { sink: self.config.name.clone(), epoch, reason };
        let Some(open) = &self.open else { return Err(error("the sink is not open".to_owned())) };
        let mut staged = Staged::encode(&changes, &open.stored).map_err(|(output, reason)| {
            error(format!("{reason}; {}", skip_hint(&self.config.name, epoch, &output)))
        })?;
        if self.config.partitioning.is_some() {
            staged.days = partitions::days(&changes);
        }
        self.staged.entry(epoch).or_default().push(staged);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let through = permit.through();
        let Some(Open { runtime, writer, .. }) = &mut self.open else {
            let (sink, reason) = (self.config.name.clone(), "the sink is not open".to_owned());
            return Err(CommitError::Failed { sink, through, reason });
        };
        runtime.block_on(writer.commit(&self.staged, through))?;
        self.staged = self.staged.split_off(&through.next());
        Ok(())
    }
}
