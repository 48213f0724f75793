-- The outbox of routes, and the deliveries that are made of it. `headwater_outbox` has the columns of `alerts` in the
-- tables of outputs; each row is a change of an alert, in the order of commits, until a delivery is made of it.
CREATE TABLE headwater_outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    alert_id TEXT NOT NULL, status TEXT NOT NULL, rule TEXT NOT NULL, rule_version INTEGER NOT NULL,
    severity TEXT NOT NULL, key_kind TEXT NOT NULL, "key" TEXT NOT NULL, event_ids TEXT NOT NULL,
    event_time TEXT NOT NULL, epoch INTEGER NOT NULL, final INTEGER NOT NULL, details TEXT NOT NULL
);

-- The start whose deliverer may write.
CREATE TABLE headwater_deliverer (one INTEGER PRIMARY KEY, ledger_id TEXT NOT NULL, generation INTEGER NOT NULL);

-- The alerts of a route that groups or repeats: those that are active, and changes that are not in a delivery yet.
CREATE TABLE headwater_group_alerts (
    route TEXT NOT NULL, group_key TEXT NOT NULL, alert_id TEXT NOT NULL, status TEXT NOT NULL,
    changed INTEGER NOT NULL, notified INTEGER NOT NULL, since_ms INTEGER NOT NULL, alert TEXT NOT NULL,
    PRIMARY KEY (route, group_key, alert_id)
) WITHOUT ROWID;
CREATE TABLE headwater_groups (
    route TEXT NOT NULL, group_key TEXT NOT NULL, due_ms INTEGER NOT NULL, sent_ms INTEGER NOT NULL,
    PRIMARY KEY (route, group_key)
) WITHOUT ROWID;
CREATE INDEX headwater_groups_due ON headwater_groups (due_ms);

-- Deliveries that are not delivered: `state` is waiting or dead. Their id and content do not change once they are tried.
CREATE TABLE headwater_deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    delivery_id TEXT NOT NULL, route TEXT NOT NULL, group_key TEXT NOT NULL, state TEXT NOT NULL, content TEXT NOT NULL,
    created_ms INTEGER NOT NULL, attempts INTEGER NOT NULL, next_ms INTEGER NOT NULL, error TEXT NOT NULL,
    changed_ms INTEGER NOT NULL
);
CREATE INDEX headwater_deliveries_due ON headwater_deliveries (route, state, next_ms);
CREATE INDEX headwater_deliveries_group ON headwater_deliveries (route, group_key, seq);

CREATE TABLE headwater_progress (
    pipeline TEXT NOT NULL, sink TEXT NOT NULL, generation INTEGER NOT NULL, writer INTEGER NOT NULL,
    lineage TEXT NOT NULL, shards INTEGER NOT NULL, through INTEGER NOT NULL,
    PRIMARY KEY (pipeline, sink, generation, writer)
) WITHOUT ROWID;
-- The last start that has opened each sink, whether or not it has committed anything: no other one may commit.
CREATE TABLE headwater_starts (
    pipeline TEXT NOT NULL, sink TEXT NOT NULL, lineage TEXT NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY (pipeline, sink)
) WITHOUT ROWID;
