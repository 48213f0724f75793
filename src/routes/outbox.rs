//! The outbox: what the deliverer reads and writes of it.

use super::alert::AlertChange;
use super::content::Content;
use super::database::{Database, OutboxPlace, Row, Statement, StoreError};
use super::grouping::{GroupAlert, Turn};
use crate::outputs::Severity;

/// An open outbox.
pub struct Outbox {
    database: Database,
}

/// A delivery that waits and is due.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The number by which deliveries are ordered.
    pub seq: i64,
    /// The stable id.
    pub id: String,
    /// The group, of which one delivery after the other is made.
    pub group_key: String,
    /// The content.
    pub content: Content,
    /// The time at which it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// The number of attempts that failed.
    pub attempts: i64,
}

/// A delivery as `headwater deliveries list` shows it.
#[derive(Clone, Debug)]
pub struct ListedDelivery {
    /// The stable id.
    pub id: String,
    /// The name of the route.
    pub route: String,
    /// True if it was given up or rejected.
    pub is_dead: bool,
    /// The number of attempts that failed.
    pub attempts: i64,
    /// The time at which it was made or last retried by hand, in milliseconds since 1970.
    pub created_ms: i64,
    /// The time of the next attempt, in milliseconds since 1970.
    pub next_ms: i64,
    /// The number of alerts.
    pub alerts: usize,
    /// The error of the last attempt; empty if there was none.
    pub error: String,
}

/// The deliveries of a route that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The name of the route.
    pub route: String,
    /// Their number.
    pub count: i64,
    /// The time at which the oldest was made, in milliseconds since 1970.
    pub oldest_ms: i64,
}

/// The writer of an outbox, by which later starts fence earlier ones.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The id of the ledger.
    pub ledger_id: String,
    /// The generation of the start.
    pub generation: i64,
}

impl Writer {
    /// Returns the statement that changes a row only while no later start has taken over.
    fn fence(&self) -> Statement {
        let fence = "UPDATE headwater_deliverer SET generation = $1 WHERE one = 1 AND generation = $1 AND ledger_id = $2";
        Statement::new(fence, [self.generation.into(), self.ledger_id.as_str().into()])
    }
}

/// The most rows of the outbox that are read at once.
pub const BATCH: usize = 500;

impl Outbox {
    /// Opens an outbox; None if its tables do not exist, because no run has had routes.
    ///
    /// # Errors
    /// If the database cannot be used.
    pub async fn open(place: &OutboxPlace) -> Result<Option<Outbox>, StoreError> {
        if matches!(place, OutboxPlace::Sqlite(path) if !path.exists()) {
            return Ok(None);
        }
        let mut database = Database::open(place).await?;
        Ok(database.has_tables().await?.then_some(Outbox { database }))
    }

    /// Takes over from the deliverers of earlier starts, which cannot write from then on.
    ///
    /// # Errors
    /// If a later start has taken over, or the database fails.
    pub async fn take_over(&mut self, writer: &Writer) -> Result<(), StoreError> {
        let claim = "INSERT INTO headwater_deliverer (one, ledger_id, generation) VALUES (1, $1, $2)
                     ON CONFLICT (one) DO UPDATE SET ledger_id = excluded.ledger_id, generation = excluded.generation
                     WHERE headwater_deliverer.ledger_id <> excluded.ledger_id
                        OR headwater_deliverer.generation <= excluded.generation";
        let claim = Statement::new(claim, [writer.ledger_id.as_str().into(), writer.generation.into()]);
        self.database.write(&[claim]).await.map(drop)
    }

    /// Executes statements in one transaction, unless a later start has taken over.
    ///
    /// # Errors
    /// If a later start has taken over, or the database fails.
    pub async fn write(&mut self, writer: &Writer, changes: Vec<Statement>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let statements: Vec<_> = std::iter::once(writer.fence()).chain(changes).collect();
        self.database.write(&statements).await.map(drop)
    }

    /// Reads the first changes of alerts in the outbox, each with its number.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn changes(&mut self) -> Result<Vec<(i64, AlertChange)>, StoreError> {
        let read = format!(
            "SELECT seq, alert_id, status, rule, CAST(rule_version AS bigint), severity, key_kind, \"key\",
                    CAST(event_ids AS text), {}, epoch, CAST(CAST(final AS integer) AS bigint), CAST(details AS text)
             FROM headwater_outbox ORDER BY seq LIMIT {BATCH}",
            self.database.time("event_time")
        );
        let rows = self.database.query(&Statement::new(read, [])).await?;
        rows.into_iter().map(|mut row| Ok((row.int()?, alert(&mut row)?))).collect()
    }

    /// Reads the oldest deliveries of a route that are due, at most one of each group.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn due(&mut self, route: &str, now_ms: i64, most: usize) -> Result<Vec<Delivery>, StoreError> {
        let due = "SELECT d.seq, d.delivery_id, d.group_key, d.content, d.created_ms, d.attempts
                   FROM headwater_deliveries AS d
                   WHERE d.route = $1 AND d.state = 'waiting' AND d.next_ms <= $2 AND NOT EXISTS (
                       SELECT 1 FROM headwater_deliveries AS earlier
                       WHERE earlier.route = d.route AND earlier.group_key = d.group_key
                         AND earlier.state = 'waiting' AND earlier.seq < d.seq)
                   ORDER BY d.next_ms, d.seq LIMIT $3";
        let values = [route.into(), now_ms.into(), (most as i64).into()];
        let rows = self.database.query(&Statement::new(due, values)).await?;
        rows.into_iter()
            .map(|mut row| {
                Ok(Delivery {
                    seq: row.int()?,
                    id: row.text()?,
                    group_key: row.text()?,
                    content: parse(&row.text()?)?,
                    created_ms: row.int()?,
                    attempts: row.int()?,
                })
            })
            .collect()
    }

    /// Reads the deliveries of a group before one, with their numbers.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn earlier(
        &mut self,
        route: &str,
        group_key: &str,
        seq: i64,
    ) -> Result<Vec<(i64, Content)>, StoreError> {
        let earlier =
            "SELECT seq, content FROM headwater_deliveries WHERE route = $1 AND group_key = $2 AND seq < $3";
        let values = [route.into(), group_key.into(), seq.into()];
        let rows = self.database.query(&Statement::new(earlier, values)).await?;
        rows.into_iter().map(|mut row| Ok((row.int()?, parse(&row.text()?)?))).collect()
    }

    /// Reads the groups of a route that are due: their keys, and the times of their last deliveries.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn due_groups(&mut self, route: &str, now_ms: i64) -> Result<Vec<(String, i64)>, StoreError> {
        let due = "SELECT group_key, sent_ms FROM headwater_groups WHERE route = $1 AND due_ms <= $2
                   ORDER BY due_ms LIMIT 100";
        let rows = self.database.query(&Statement::new(due, [route.into(), now_ms.into()])).await?;
        rows.into_iter().map(|mut row| Ok((row.text()?, row.int()?))).collect()
    }

    /// Reads the groups of a route with changes that no delivery has, like [`due_groups`](Outbox::due_groups).
    ///
    /// # Errors
    /// If the database fails.
    pub async fn changed_groups(&mut self, route: &str) -> Result<Vec<(String, i64)>, StoreError> {
        let changed =
            "SELECT g.group_key, g.sent_ms FROM headwater_groups AS g WHERE g.route = $1 AND EXISTS (
                           SELECT 1 FROM headwater_group_alerts AS a
                           WHERE a.route = g.route AND a.group_key = g.group_key AND a.changed = 1)";
        let rows = self.database.query(&Statement::new(changed, [route.into()])).await?;
        rows.into_iter().map(|mut row| Ok((row.text()?, row.int()?))).collect()
    }

    /// Reads the alerts of a group, the oldest change first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn group_alerts(
        &mut self,
        route: &str,
        group_key: &str,
    ) -> Result<Vec<GroupAlert>, StoreError> {
        let alerts = "SELECT changed, notified, since_ms, alert FROM headwater_group_alerts
                      WHERE route = $1 AND group_key = $2 ORDER BY since_ms, alert_id";
        let rows = self.database.query(&Statement::new(alerts, [route.into(), group_key.into()])).await?;
        rows.into_iter()
            .map(|mut row| {
                Ok(GroupAlert {
                    is_changed: row.int()? == 1,
                    is_notified: row.int()? == 1,
                    since_ms: row.int()?,
                    alert: parse(&row.text()?)?,
                })
            })
            .collect()
    }

    /// Counts the deliveries that wait, by route.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn waiting(&mut self) -> Result<Vec<Waiting>, StoreError> {
        let count =
            "SELECT route, count(*), min(created_ms) FROM headwater_deliveries WHERE state = 'waiting'
                     GROUP BY route ORDER BY route";
        let rows = self.database.query(&Statement::new(count, [])).await?;
        rows.into_iter()
            .map(|mut row| Ok(Waiting { route: row.text()?, count: row.int()?, oldest_ms: row.int()? }))
            .collect()
    }

    /// Reads at most `most` deliveries in the order in which they were made, dead ones first; with `dead`, only those.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list(&mut self, dead: bool, most: usize) -> Result<Vec<ListedDelivery>, StoreError> {
        let list = "SELECT delivery_id, route, state, attempts, created_ms, next_ms, content, error
                    FROM headwater_deliveries WHERE state = 'dead' OR $1 = 0 ORDER BY state, seq LIMIT $2";
        let values = [i64::from(dead).into(), (most as i64).into()];
        let rows = self.database.query(&Statement::new(list, values)).await?;
        rows.into_iter()
            .map(|mut row| {
                Ok(ListedDelivery {
                    id: row.text()?,
                    route: row.text()?,
                    is_dead: row.text()? == "dead",
                    attempts: row.int()?,
                    created_ms: row.int()?,
                    next_ms: row.int()?,
                    alerts: parse::<Content>(&row.text()?)?.alerts.len(),
                    error: row.text()?,
                })
            })
            .collect()
    }

    /// Lets dead deliveries wait again, of a route, with an id, or all. Returns their number.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn retry(
        &mut self,
        route: Option<&str>,
        id: Option<&str>,
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        let retry = "UPDATE headwater_deliveries
                     SET state = 'waiting', attempts = 0, created_ms = $1, next_ms = $1, changed_ms = $1
                     WHERE state = 'dead' AND ($2 = '' OR route = $2) AND ($3 = '' OR delivery_id = $3)";
        let values = [now_ms.into(), route.unwrap_or("").into(), id.unwrap_or("").into()];
        match self.database.write(&[Statement::new(retry, values)]).await {
            // Nothing was dead.
            Err(StoreError::Fenced) => Ok(0),
            result => result,
        }
    }
}

/// Statements that remove changes from the outbox.
pub fn remove_changes(seqs: &[i64]) -> Option<Statement> {
    let numbers: Vec<_> = seqs.iter().map(i64::to_string).collect();
    let remove = || format!("DELETE FROM headwater_outbox WHERE seq IN ({})", numbers.join(", "));
    (!seqs.is_empty()).then(|| Statement::new(remove(), []))
}

/// Makes a delivery.
pub fn make_delivery(route: &str, group_key: &str, content: &Content) -> Statement {
    let make = "INSERT INTO headwater_deliveries
                    (delivery_id, route, group_key, state, content, created_ms, attempts, next_ms, error, changed_ms)
                VALUES ($1, $2, $3, 'waiting', $4, $5, 0, $5, '', $5)";
    let values = [
        content.id().into(),
        route.into(),
        group_key.into(),
        encode(content).into(),
        content.created_ms.into(),
    ];
    Statement::new(make, values)
}

/// Removes a delivery that was delivered or has nothing left.
pub fn remove_delivery(seq: i64) -> Statement {
    Statement::new("DELETE FROM headwater_deliveries WHERE seq = $1", [seq.into()])
}

/// Replaces the content of a delivery that is not under way.
pub fn replace_content(seq: i64, content: &Content) -> Statement {
    let replace = "UPDATE headwater_deliveries SET delivery_id = $2, content = $3 WHERE seq = $1";
    Statement::new(replace, [seq.into(), content.id().into(), encode(content).into()])
}

/// Records a failed attempt; the next one is not before `next_ms`.
pub fn record_failure(delivery: &Delivery, error: &str, next_ms: i64, now_ms: i64) -> Statement {
    let failure = "UPDATE headwater_deliveries SET attempts = $2, next_ms = $3, error = $4, changed_ms = $5
                   WHERE seq = $1";
    let values =
        [delivery.seq.into(), (delivery.attempts + 1).into(), next_ms.into(), error.into(), now_ms.into()];
    Statement::new(failure, values)
}

/// Records that a delivery was given up or rejected.
pub fn record_death(delivery: &Delivery, error: &str, now_ms: i64) -> Statement {
    let death = "UPDATE headwater_deliveries SET state = 'dead', attempts = $2, error = $3, changed_ms = $4
                 WHERE seq = $1";
    let values = [delivery.seq.into(), (delivery.attempts + 1).into(), error.into(), now_ms.into()];
    Statement::new(death, values)
}

/// Records that all deliveries of a route are dead, because the configuration does not have it any more.
pub fn record_removed_route(route: &str, now_ms: i64) -> Statement {
    let removed = "UPDATE headwater_deliveries SET state = 'dead', error = $2, changed_ms = $3
                   WHERE route = $1 AND state = 'waiting'";
    let error = "the configuration has no route of this name";
    Statement::new(removed, [route.into(), error.into(), now_ms.into()])
}

/// Removes deliveries that have been dead since before a time.
pub fn remove_dead(before_ms: i64) -> Statement {
    let remove = "DELETE FROM headwater_deliveries WHERE state = 'dead' AND changed_ms < $1";
    Statement::new(remove, [before_ms.into()])
}

/// Adds a change of an alert to its group. A new group is due after the first delay, an older one when the second has
/// passed since its last delivery.
pub fn add_to_group(
    route: &str,
    group_key: &str,
    alert: &AlertChange,
    (wait_ms, interval_ms): (i64, i64),
    now_ms: i64,
) -> [Statement; 2] {
    let group = "INSERT INTO headwater_groups (route, group_key, due_ms, sent_ms) VALUES ($1, $2, $3, 0)
                 ON CONFLICT (route, group_key) DO UPDATE SET due_ms = CASE
                     WHEN headwater_groups.sent_ms = 0 THEN headwater_groups.due_ms
                     WHEN headwater_groups.due_ms < headwater_groups.sent_ms + $4 THEN headwater_groups.due_ms
                     ELSE headwater_groups.sent_ms + $4 END";
    let member = "INSERT INTO headwater_group_alerts
                      (route, group_key, alert_id, status, changed, notified, since_ms, alert)
                  VALUES ($1, $2, $3, $4, 1, 0, $5, $6)
                  ON CONFLICT (route, group_key, alert_id) DO UPDATE SET
                      status = excluded.status, changed = 1, since_ms = excluded.since_ms, alert = excluded.alert";
    let text = serde_json::to_string(alert).expect("an alert encodes as JSON");
    let (id, status) = (alert.alert_id.as_str(), alert.status.as_str());
    let due_ms = now_ms.saturating_add(wait_ms);
    [
        Statement::new(group, [route.into(), group_key.into(), due_ms.into(), interval_ms.into()]),
        Statement::new(
            member,
            [route.into(), group_key.into(), id.into(), status.into(), now_ms.into(), text.into()],
        ),
    ]
}

/// Records a group's turn, with its deliveries.
pub fn record_turn(route: &str, group_key: &str, sent_ms: i64, turn: &Turn) -> Vec<Statement> {
    let mut statements: Vec<_> =
        turn.deliveries.iter().map(|content| make_delivery(route, group_key, content)).collect();
    for id in &turn.forgotten {
        let forget =
            "DELETE FROM headwater_group_alerts WHERE route = $1 AND group_key = $2 AND alert_id = $3";
        statements.push(Statement::new(forget, [route.into(), group_key.into(), id.as_str().into()]));
    }
    let sent_ms = turn.deliveries.first().map_or(sent_ms, |content| content.created_ms);
    match turn.next_ms {
        Some(next_ms) => {
            let notified = "UPDATE headwater_group_alerts SET changed = 0, notified = 1
                            WHERE route = $1 AND group_key = $2 AND changed = 1";
            statements.push(Statement::new(notified, [route.into(), group_key.into()]));
            let next =
                "UPDATE headwater_groups SET due_ms = $3, sent_ms = $4 WHERE route = $1 AND group_key = $2";
            let values = [route.into(), group_key.into(), next_ms.into(), sent_ms.into()];
            statements.push(Statement::new(next, values));
        }
        None => {
            let end = "DELETE FROM headwater_groups WHERE route = $1 AND group_key = $2";
            statements.push(Statement::new(end, [route.into(), group_key.into()]));
        }
    }
    statements
}

fn encode(content: &Content) -> String {
    serde_json::to_string(content).expect("a content encodes as JSON")
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Unavailable(format!("a stored alert or content is damaged: {error}")))
}

/// Reads a change of an alert from the columns of the outbox.
fn alert(row: &mut Row) -> Result<AlertChange, StoreError> {
    Ok(AlertChange {
        alert_id: row.text()?,
        status: row.text()?,
        rule: row.text()?,
        rule_version: row.int()?,
        severity: parse::<Severity>(&format!("{:?}", row.text()?))?,
        key_kind: row.text()?,
        key: row.text()?,
        event_ids: parse(&row.text()?)?,
        event_time: row.text()?,
        epoch: row.int()?,
        r#final: row.int()? == 1,
        details: parse(&row.text()?)?,
    })
}
