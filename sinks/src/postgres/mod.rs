//! PostgreSQL: append-only tables by binary `COPY`, keyed tables by way of staging tables, one transaction a round.
//!
//! Every round begins by moving this writer's progress row on, which fails once a later start has written: so a
//! writer that was asleep cannot come back. If the outcome of a COMMIT is unknown, the old backend is ended, and the
//! progress row says what happened.

mod encode;
mod session;

use std::collections::{BTreeMap, HashMap};

use headwater_dataflows::Epoch;
use tokio::runtime::Runtime;
use tokio_postgres::config::SslMode;

use self::session::{Session, Unfit};
use crate::Changes;
use crate::contract::{CommitError, CommitPermit, OpenError, Progress, Sink, StageError, Start};
use crate::tables::TABLES;

/// Where to write.
#[derive(Clone)]
pub struct PostgresConfig {
    /// The sink's name.
    pub name: String,
    /// `postgres://user:password@host:port/database`.
    pub url: String,
    /// Whether to leave out rows of append-only tables at or below the greatest offset stored: for starts that read
    /// again what was committed before, since without a checkpoint nothing else says how far that was.
    pub skip_stored: bool,
}

impl PostgresConfig {
    /// The sink, to be opened.
    pub fn build(self) -> PostgresSink {
        PostgresSink { config: self, open: None, staged: BTreeMap::new() }
    }
}

/// Writes tables into a PostgreSQL database.
pub struct PostgresSink {
    config: PostgresConfig,
    open: Option<Open>,
    staged: BTreeMap<Epoch, Vec<Changes>>,
}

struct Open {
    runtime: Runtime,
    server: tokio_postgres::Config,
    session: Option<Session>,
    start: Start,
    through: Epoch,
    stored: HashMap<i64, i64>,
}

/// How a round ended.
enum Round {
    Committed,
    Fenced,
    /// It did not happen.
    Failed(tokio_postgres::Error),
    /// COMMIT was sent to this backend, and no answer came.
    Unknown(i32, tokio_postgres::Error),
}

impl PostgresSink {
    fn refused(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Refused { sink: self.config.name.clone(), reason: reason.into() }
    }

    fn unavailable(&self, source: impl std::error::Error + Send + Sync + 'static) -> OpenError {
        OpenError::Unavailable {
            sink: self.config.name.clone(),
            what: "the database".into(),
            source: Box::new(source),
        }
    }

    fn unfit(&self, unfit: Unfit) -> OpenError {
        match unfit {
            Unfit::Error(error) => self.unavailable(error),
            Unfit::Refused(reason) => self.refused(reason),
        }
    }

    async fn prepare(
        &self,
        server: &tokio_postgres::Config,
        start: &Start,
    ) -> Result<(Session, Vec<Progress>, Epoch, HashMap<i64, i64>), OpenError> {
        let name = &self.config.name;
        let session = Session::connect(server, start, name).await.map_err(|unfit| self.unfit(unfit))?;
        session.migrate().await.map_err(|unfit| self.unfit(unfit))?;
        let failed = |error| self.unavailable(error);
        let progress = session.progress(&start.pipeline, name).await.map_err(failed)?;
        if let Some(other) = progress.iter().find(|progress| progress.lineage != start.lineage) {
            return Err(self.refused(format!("its progress belongs to another ledger ({})", other.lineage.0)));
        }
        if let Some(later) = progress.iter().find(|progress| progress.generation > start.generation) {
            return Err(
                self.refused(format!("a later start (generation {}) has written here", later.generation))
            );
        }
        session.end_older(start, name).await.map_err(failed)?;
        let through = progress.iter().map(|progress| progress.through).max().unwrap_or_default();
        session.begin_progress(start, name, through).await.map_err(failed)?;
        session.make_stages().await.map_err(failed)?;
        let stored =
            if self.config.skip_stored { session.stored().await.map_err(failed)? } else { HashMap::new() };
        let own = session.own_progress(start, name).await.map_err(failed)?.unwrap_or(through);
        Ok((session, progress, own, stored))
    }

    /// Writes a round and its progress.
    async fn round(&self, open: &Open, session: &Session, through: Epoch) -> Round {
        let written = async {
            if !session.begin(&open.start, &self.config.name, open.through, through).await? {
                session.client.batch_execute("ROLLBACK").await?;
                return Ok(false);
            }
            let round: Vec<&Changes> =
                self.staged.range(..=through).flat_map(|(_, changes)| changes).collect();
            for (index, table) in TABLES.iter().enumerate() {
                session.write(index, table, &round, &open.stored).await?;
            }
            Ok(true)
        };
        match written.await {
            Ok(false) => Round::Fenced,
            Ok(true) => match session.client.batch_execute("COMMIT").await {
                Ok(()) => Round::Committed,
                // An answer from the server says that it did not commit; silence says nothing.
                Err(error) if error.as_db_error().is_some() && !session.client.is_closed() => {
                    Round::Failed(error)
                }
                Err(error) => Round::Unknown(session.pid, error),
            },
            Err(error) => Round::Failed(error),
        }
    }

    /// A session for the next attempt.
    async fn connect(&self, open: &Open) -> Result<Session, String> {
        let text = |unfit| match unfit {
            Unfit::Error(error) => describe(&error),
            Unfit::Refused(reason) => reason,
        };
        let session = Session::connect(&open.server, &open.start, &self.config.name).await.map_err(text)?;
        session.make_stages().await.map_err(|error| describe(&error))?;
        Ok(session)
    }

    /// What became of a round whose COMMIT was not answered: whether the progress row has moved, once the backend
    /// that may still be at work is gone.
    async fn settle(&self, open: &Open, pid: i32) -> Result<(Session, Option<Epoch>), String> {
        let session = self.connect(open).await?;
        let gone = session.end_backend(pid).await.map_err(|error| describe(&error))?;
        if !gone {
            return Err(format!("the old backend {pid} does not end"));
        }
        let own =
            session.own_progress(&open.start, &self.config.name).await.map_err(|error| describe(&error))?;
        Ok((session, own))
    }
}

/// An error with its causes, in one line.
fn describe(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl Sink for PostgresSink {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn open(&mut self, start: &Start) -> Result<Vec<Progress>, OpenError> {
        let server: tokio_postgres::Config =
            self.config.url.parse().map_err(|_| self.refused("its url is not one of PostgreSQL"))?;
        if !matches!(server.get_ssl_mode(), SslMode::Disable | SslMode::Prefer) {
            return Err(self.refused("sslmode demands TLS, which this build does not have"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| self.unavailable(error))?;
        let (session, progress, through, stored) = runtime.block_on(self.prepare(&server, start))?;
        self.open =
            Some(Open { runtime, server, session: Some(session), start: start.clone(), through, stored });
        Ok(progress)
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        self.staged.entry(epoch).or_default().push(changes);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let (sink, through) = (self.config.name.clone(), permit.through());
        let failed = |reason: String| CommitError::Failed { sink: sink.clone(), through, reason };
        let Some(mut open) = self.open.take() else { return Err(failed("the sink is not open".into())) };
        let result = (|| {
            let session = match open.session.take().filter(|session| !session.client.is_closed()) {
                Some(session) => session,
                None => open.runtime.block_on(self.connect(&open)).map_err(failed)?,
            };
            match open.runtime.block_on(self.round(&open, &session, through)) {
                Round::Committed => {
                    open.session = Some(session);
                    Ok(())
                }
                Round::Fenced => {
                    let reason =
                        "a later start has written, or its progress row is not as it was left".to_owned();
                    Err(CommitError::Fenced { sink: sink.clone(), reason })
                }
                // The session is dropped, and its transaction with it.
                Round::Failed(error) => Err(failed(describe(&error))),
                Round::Unknown(pid, error) => {
                    let unknown = |reason| CommitError::Indeterminate { sink: sink.clone(), through, reason };
                    drop(session);
                    let (session, own) = open.runtime.block_on(self.settle(&open, pid)).map_err(unknown)?;
                    open.session = Some(session);
                    match own {
                        Some(own) if own == through => Ok(()),
                        Some(own) if own == open.through => Err(failed(describe(&error))),
                        _ => Err(unknown("the progress row is not as it was left".into())),
                    }
                }
            }
        })();
        if result.is_ok() {
            open.through = through;
            self.staged = self.staged.split_off(&through.next());
        }
        self.open = Some(open);
        result
    }
}
