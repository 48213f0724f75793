//! The Redis sink: the profile of each key as a hash with a time to live, for services that decide about the key's next
//! event.
//!
//! ```text
//!   PREFIX:PIPELINE:user:ann    HASH   last event, newest window of each name, newest alert of each rule, epoch
//!   PREFIX:PIPELINE:progress:SINK      the last start, and the progress of each writer
//! ```
//!
//! A round is a sequence of **parts**. A part covers the outputs of consecutive epochs and is one call of `round.lua`,
//! which checks that no later start has opened the sink, writes the profiles, and moves the progress. Redis executes a
//! script without anything in between, and stores its writes together. So a part is a transaction with its own progress,
//! and a reader sees all profiles as of one epoch. A part is bounded (`PART`), since other clients wait while a script
//! runs. An epoch with more profiles is a part of several calls, **chunks**; only the last one moves the progress. A start
//! after a crash between two chunks writes the same epoch again, to the same result. Then, for some milliseconds, some
//! profiles are an epoch ahead of others; each one is always as of one epoch.
//!
//! The script is a compare-and-set on the writer's record in the progress, so that no call is applied twice: after a lost
//! answer the round is repeated, and either applies, or finds its own record. What Redis loses, by a failover to a
//! replica that lags or by a crash without `appendfsync always`, it loses of profiles and progress alike: the writer
//! notices that its record went back, and the next start replays from there, or is refused.

mod connection;
mod probe;
mod profile;
mod progress;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headwater_dataflows::Epoch;
use redis::{Cmd, Connection, RedisError, RedisResult, cmd, pipe};

pub use self::connection::{RedisClient, RedisFailure, RedisServer, is_redis_tls, redis_place};
use self::probe::Server;
pub use self::probe::probe;
use self::profile::{Chunk, Profiles, objection};
use self::progress::{Stored, decode, own_epoch, progress_key, record, start, writer_field};
use crate::contract::{CommitError, CommitPermit, OpenError, Progress, Sink, StageError, WriterContext};
use crate::{Changes, Row, crash, row_name};

/// The timeout of one response. A part takes milliseconds; a server that saves or loads its data takes longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The greatest number of profiles that one call of the script writes: about 4 ms, for which other clients wait.
const PART: usize = 250;

/// The number of attempts to take over the sink while its progress keeps changing.
const ATTEMPTS: usize = 100;

/// The configuration of a Redis sink.
#[derive(Clone, Debug)]
pub struct RedisSinkConfig {
    /// The sink's name.
    pub name: String,
    /// The server.
    pub server: RedisServer,
    /// The beginning of all keys.
    pub prefix: String,
    /// The time after its last change at which Redis removes a profile.
    pub ttl: Duration,
}

impl RedisSinkConfig {
    /// Builds the sink, which is not open yet.
    pub fn build(self) -> RedisSink {
        RedisSink { config: self, open: None, staged: BTreeMap::new() }
    }
}

/// A sink that keeps profiles of keys in Redis.
pub struct RedisSink {
    config: RedisSinkConfig,
    open: Option<Open>,
    staged: BTreeMap<Epoch, Vec<Changes>>,
}

struct Open {
    client: RedisClient,
    /// The connection, and the name under which the server knows the script; None after a failure.
    connection: Option<(Connection, String)>,
    context: WriterContext,
    /// Distinguishes this writer from others with the same generation and process.
    token: String,
    /// The epoch in the progress of this writer, if there is one.
    through: Option<Epoch>,
}

/// The outcome of one call of the script that did not write.
enum Obstacle {
    /// The call failed; its outcome may be unknown.
    Failed(RedisError),
    /// The progress is gone.
    Gone,
    /// Another start, as the progress names it.
    OtherStart(String),
    /// The record of this writer is not what it was. Empty: it is gone.
    Changed(String),
    /// A key of a profile has a value of another type.
    Type(String, String),
}

impl RedisSink {
    fn unavailable(&self, client: &RedisClient, error: RedisError) -> OpenError {
        OpenError::Unavailable {
            sink: self.config.name.clone(),
            what: "Redis".to_owned(),
            source: Box::new(client.failure(error)),
        }
    }

    fn refused(&self, reason: String) -> OpenError {
        let place = redis_place(&self.config.server.url).unwrap_or_default();
        let reason = format!("Redis at {place}: {reason}");
        OpenError::Refused { sink: self.config.name.clone(), reason }
    }

    fn client(&self) -> Result<RedisClient, OpenError> {
        self.config.server.client(RESPONSE_TIMEOUT).map_err(|error| OpenError::Unavailable {
            sink: self.config.name.clone(),
            what: "Redis".to_owned(),
            source: Box::new(error),
        })
    }

    fn progress_key(&self, pipeline: &str) -> String {
        progress_key(&self.config.prefix, pipeline, &self.config.name)
    }

    fn stored(
        &self,
        client: &RedisClient,
        connection: &mut Connection,
        pipeline: &str,
    ) -> Result<Stored, OpenError> {
        let key = self.progress_key(pipeline);
        let fields: BTreeMap<String, String> =
            cmd("HGETALL").arg(&key).query(connection).map_err(|error| self.unavailable(client, error))?;
        decode(&fields).map_err(|field| {
            let name = &self.config.name;
            self.refused(format!(
                "the progress {key} cannot be read (field {field}): restore it, or delete the key and start with \
                 `--adopt-sink {name}`"
            ))
        })
    }

    /// Fences older starts and reads the progress, in one transaction: a part of an older start is either contained in
    /// the progress or fails. A start that adopts replaces all progress.
    fn take_over(
        &self,
        client: &RedisClient,
        connection: &mut Connection,
        context: &WriterContext,
        token: &str,
    ) -> Result<Vec<Progress>, OpenError> {
        let key = self.progress_key(&context.pipeline);
        let failed = |error| self.unavailable(client, error);
        for _ in 0..ATTEMPTS {
            cmd("WATCH").arg(&key).exec(connection).map_err(failed)?;
            let mut stored = self.stored(client, connection, &context.pipeline)?;
            let mut transaction = pipe();
            transaction.atomic();
            if let Some(through) = context.adopt {
                let WriterContext { ledger_id, generation, shards, .. } = context.clone();
                stored.progress = vec![Progress { ledger_id, generation, shards, through }];
                transaction.cmd("DEL").arg(&key).ignore();
                let record = record(context, token, through);
                transaction.cmd("HSET").arg(&key).arg(writer_field(context)).arg(record).ignore();
            }
            let objection =
                context.objection_to(&self.config.name, &stored.progress, stored.last_start.as_ref());
            if let Some(reason) = objection {
                return Err(self.refused(reason));
            }
            transaction.cmd("HSET").arg(&key).arg("start").arg(start(context)).ignore();
            // None: the progress has changed since it was read.
            let done: Option<()> = transaction.query(connection).map_err(failed)?;
            if done.is_some() {
                return Ok(stored.progress);
            }
        }
        Err(self.refused(format!("the progress {key} changes while it is read: stop the other starts")))
    }

    /// Returns the staged rows of an epoch, in order.
    fn rows(changes: &[Changes]) -> impl Iterator<Item = Row<'_>> {
        changes.iter().flat_map(|changes| changes.rows.iter())
    }

    /// Returns the next part after an epoch, with its last epoch: as many epochs up to `through` as have at most `PART`
    /// profiles, or one epoch that has more.
    fn next_part(&self, after: Option<Epoch>, through: Epoch) -> (Profiles<'_>, Epoch) {
        let mut profiles = Profiles::default();
        let mut last = None;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (&epoch, changes) in self.staged.range((from, Bound::Included(through))) {
            let is_full = || profiles.len_with(Self::rows(changes)) > PART;
            if let Some(last) = last.filter(|_| !profiles.is_empty() && is_full()) {
                return (profiles, last);
            }
            Self::rows(changes).for_each(|row| profiles.add(epoch, row));
            last = Some(epoch);
        }
        (profiles, through)
    }

    /// Writes a round, part by part.
    fn write(&self, open: &mut Open, through: Epoch) -> Result<(), CommitError> {
        while open.through.is_none_or(|reached| reached < through) {
            let (profiles, last) = self.next_part(open.through, through);
            match self.write_part(open, &profiles, last) {
                Ok(()) => {
                    crash::point("redis.written");
                    open.through = Some(last);
                }
                Err(obstacle) => self.resolve(open, obstacle, through)?,
            }
        }
        Ok(())
    }

    fn write_part(&self, open: &mut Open, profiles: &Profiles<'_>, last: Epoch) -> Result<(), Obstacle> {
        let Open { context, token, through, .. } = &*open;
        let before = through.map_or_else(String::new, |through| record(context, token, through));
        let after = record(context, token, last);
        let mut chunks = profiles.chunks(PART);
        let end = chunks.pop();
        for chunk in &chunks {
            self.call(open, chunk, &before, "")?;
            crash::point("redis.chunk");
        }
        end.map_or(Ok(()), |chunk| self.call(open, &chunk, &before, &after))
    }

    /// Calls the script for one chunk. An empty `after` leaves the progress as it is.
    fn call(&self, open: &mut Open, chunk: &Chunk<'_>, before: &str, after: &str) -> Result<(), Obstacle> {
        let Open { client, connection, context, .. } = open;
        let RedisSinkConfig { prefix, ttl, .. } = &self.config;
        let answer: RedisResult<Vec<String>> = (|| {
            let (connection, script) = match connection {
                Some(connected) => connected,
                None => connection.insert(connect(client)?),
            };
            let (start, field, ttl) = (start(context), writer_field(context), ttl.as_millis().to_string());
            let call = |script: &str| -> Cmd {
                let mut command = cmd("EVALSHA");
                let (key, prefix) =
                    (self.progress_key(&context.pipeline), format!("{prefix}:{}:", context.pipeline));
                chunk.add_to(command.arg(script), &key, &prefix, &[&start, &field, before, after, &ttl]);
                command
            };
            let answer = call(script).query(connection);
            match answer {
                // The server has forgotten the script (SCRIPT FLUSH).
                Err(error) if error.code() == Some("NOSCRIPT") => {
                    *script = load_script(connection)?;
                    call(script).query(connection)
                }
                answer => answer,
            }
        })();
        let answer = answer.map_err(|error| {
            *connection = None;
            Obstacle::Failed(error)
        })?;
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or_default();
        Err(match next().as_str() {
            "done" => return Ok(()),
            "gone" => Obstacle::Gone,
            "fenced" => Obstacle::OtherStart(next()),
            "type" => Obstacle::Type(next(), next()),
            _ => Obstacle::Changed(next()),
        })
    }

    /// Decides what a call means that did not write: the round goes on if an earlier attempt, whose answer was lost, has
    /// written a part.
    fn resolve(&self, open: &mut Open, obstacle: Obstacle, through: Epoch) -> Result<(), CommitError> {
        let sink = self.config.name.clone();
        let key = self.progress_key(&open.context.pipeline);
        let fenced = |reason: String| Err(CommitError::Fenced { sink: sink.clone(), reason });
        match obstacle {
            Obstacle::Failed(error) => {
                let reason = open.client.failure(error).to_string();
                Err(CommitError::Failed { sink, through, reason })
            }
            Obstacle::Type(key, kind) => {
                let reason = format!(
                    "the key {key} of a profile has a {kind}, which another program has written: delete it (`DEL {key}`), \
                     or give the sink a `prefix` of its own"
                );
                Err(CommitError::Refused { sink, through, reason })
            }
            Obstacle::Gone => fenced(format!(
                "the progress {key} is gone: it was deleted, evicted, or Redis has lost its data"
            )),
            Obstacle::OtherStart(other) => {
                fenced(format!("a later start has taken over (generation and ledger: {other})"))
            }
            Obstacle::Changed(found) => match own_epoch(&found, &open.token) {
                Some(reached) if Some(reached) > open.through && reached <= through => {
                    open.through = Some(reached);
                    Ok(())
                }
                Some(reached) => fenced(format!(
                    "the progress {key} went back to epoch {reached}: Redis has lost its last writes, in a failover or a \
                     crash"
                )),
                None if found.is_empty() => fenced(format!(
                    "the progress of this writer in {key} is gone: Redis has lost its last writes"
                )),
                None => fenced(format!("another writer has changed its progress in {key}")),
            },
        }
    }
}

/// Connects to the server, which then knows the script.
fn connect(client: &RedisClient) -> RedisResult<(Connection, String)> {
    let mut connection = client.connect()?;
    let script = load_script(&mut connection)?;
    Ok((connection, script))
}

fn load_script(connection: &mut Connection) -> RedisResult<String> {
    cmd("SCRIPT").arg("LOAD").arg(include_str!("round.lua")).query(connection)
}

/// Returns a text that no other `open` returns.
fn token() -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}.{:x}", time.as_nanos(), std::process::id())
}

impl Sink for RedisSink {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let client = self.client()?;
        let failed = |error| self.unavailable(&client, error);
        let (mut connection, script) = connect(&client).map_err(failed)?;
        let server = Server::ask(&mut connection).map_err(failed)?;
        if let Some(reason) = server.objection() {
            return Err(self.refused(reason));
        }
        for warning in server.warnings() {
            tracing::warn!(sink = self.config.name, "{warning}");
        }
        let token = token();
        let progress = self.take_over(&client, &mut connection, context, &token)?;
        self.open = Some(Open {
            client,
            connection: Some((connection, script)),
            context: context.clone(),
            token,
            through: context.adopt,
        });
        Ok(progress)
    }

    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        let client = self.client()?;
        let mut connection = client.connect().map_err(|error| self.unavailable(&client, error))?;
        Ok(self.stored(&client, &mut connection, pipeline)?.progress)
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        let error = |reason| Err(StageError { sink: self.config.name.clone(), epoch, reason });
        if !changes.messages.is_empty() {
            return error("a Redis sink accepts rows, not messages".to_owned());
        }
        let refused = changes.rows.iter().find_map(|row| objection(&row).map(|reason| (row, reason)));
        if let Some((row, reason)) = refused {
            return error(format!("{}: {reason}", row_name(&row)));
        }
        self.staged.entry(epoch).or_default().push(changes);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let through = permit.through();
        let Some(mut open) = self.open.take() else {
            let (sink, reason) = (self.config.name.clone(), "the sink is not open".to_owned());
            return Err(CommitError::Failed { sink, through, reason });
        };
        let result = self.write(&mut open, through);
        if let Some(reached) = open.through {
            self.staged = self.staged.split_off(&reached.next());
        }
        self.open = Some(open);
        result
    }
}
