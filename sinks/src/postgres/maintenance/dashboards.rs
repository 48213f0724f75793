//! Materialised views for dashboards, over the rows of the last seven days; of alerts, over live ones. With partitions, a refresh reads only the
//! partitions of these days.

use sha2::{Digest, Sha256};

use super::super::connection::{Session, SessionError};

/// The key of the advisory lock of statements that create or refresh views.
const VIEWS_LOCK: i64 = 0x6865_6164_7669_6577;

/// A view.
pub(super) struct View {
    /// Its name.
    pub name: &'static str,
    /// The columns that identify a row: a refresh beside readers needs a unique index.
    key: &'static str,
    select: &'static str,
}

/// All views.
pub(super) const VIEWS: [View; 4] = [
    View {
        name: "headwater_alerts_by_hour",
        key: "hour, rule, severity",
        select:
            "SELECT date_trunc('hour', event_time, 'UTC') AS hour, rule, severity,
                        count(*) FILTER (WHERE status = 'raised') AS raised,
                        count(*) FILTER (WHERE status = 'revoked') AS revoked
                 FROM alerts WHERE mode = 'live' AND event_time >= now() - interval '7 days' GROUP BY 1, 2, 3",
    },
    View {
        name: "headwater_top_keys",
        key: "key_kind, \"key\"",
        select: "SELECT top.key_kind, top.\"key\", top.alerts, top.last_alert, counted.events
                 FROM (SELECT key_kind, \"key\", count(*) AS alerts, max(event_time) AS last_alert
                       FROM alerts
                       WHERE mode = 'live' AND status = 'raised' AND event_time >= now() - interval '7 days'
                       GROUP BY 1, 2 ORDER BY alerts DESC, 1, 2 LIMIT 100) AS top
                 CROSS JOIN LATERAL (SELECT count(*) AS events FROM events
                       WHERE events.\"key\" = top.\"key\" AND events.key_kind = top.key_kind
                         AND events.event_time >= now() - interval '7 days') AS counted",
    },
    View {
        name: "headwater_volumes_by_type",
        key: "hour, event_type",
        select: "SELECT date_trunc('hour', event_time, 'UTC') AS hour, event_type, count(*) AS events
                 FROM events WHERE event_time >= now() - interval '7 days' GROUP BY 1, 2",
    },
    View {
        name: "headwater_dead_letters_by_reason",
        key: "hour, reason, field",
        select: "SELECT date_trunc('hour', timestamp, 'UTC') AS hour, reason, coalesce(field, '') AS field,
                        count(*) AS dead_letters
                 FROM dead_letters WHERE timestamp >= now() - interval '7 days' GROUP BY 1, 2, 3",
    },
];

impl View {
    /// Returns the comment of the view, which contains the hash of its definition.
    fn comment(&self) -> String {
        let hash =
            Sha256::new().chain_update(self.key).chain_update([0]).chain_update(self.select).finalize();
        let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{COMMENT}{hash}")
    }
}

/// The beginning of the comment of every view.
const COMMENT: &str = "View of Headwater for dashboards, definition ";

/// Begins a transaction that creates or refreshes a view. Returns false if another session does so.
async fn begin(session: &Session) -> Result<bool, SessionError> {
    // Above any refresh. Neither readers nor rounds wait for it.
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '1h'";
    session.client.batch_execute(begin).await?;
    let lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(current_schema(), $1))";
    Ok(session.client.query_one(lock, &[&VIEWS_LOCK]).await?.get(0))
}

/// Creates a view if it does not exist, or has the definition of another version. Returns true if it was created.
///
/// # Errors
/// If the name belongs to something else.
pub(super) async fn ensure(session: &Session, view: &View) -> Result<bool, SessionError> {
    let (name, comment) = (view.name, view.comment());
    let existing =
        "SELECT coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class WHERE oid = to_regclass($1)";
    let existing: Option<String> = session.client.query_opt(existing, &[&name]).await?.map(|row| row.get(0));
    match &existing {
        Some(found) if *found == comment => return Ok(false),
        Some(found) if !found.starts_with(COMMENT) => {
            let reason = format!(
                "{name} exists and is not a view of Headwater: rename it, or set `dashboards = false`"
            );
            return Err(SessionError::Refused(reason));
        }
        _ => {}
    }
    let is_alone = begin(session).await?;
    if is_alone {
        let View { key, select, .. } = view;
        let make = format!(
            "DROP MATERIALIZED VIEW IF EXISTS {name};
             CREATE MATERIALIZED VIEW {name} AS {select};
             CREATE UNIQUE INDEX ON {name} ({key});
             COMMENT ON MATERIALIZED VIEW {name} IS '{comment}'"
        );
        session.client.batch_execute(&make).await?;
    }
    session.client.batch_execute("COMMIT").await?;
    Ok(is_alone)
}

/// Refreshes a view. Readers see the rows of before until it ends.
pub(super) async fn refresh(session: &Session, view: &View) -> Result<(), SessionError> {
    if begin(session).await? {
        let refresh = format!("REFRESH MATERIALIZED VIEW CONCURRENTLY {}", view.name);
        session.client.batch_execute(&refresh).await?;
    }
    Ok(session.client.batch_execute("COMMIT").await?)
}
