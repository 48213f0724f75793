-- The outbox of routes, and the deliveries that are made of it. `headwater_outbox` has the columns of `alerts` in the
-- tables of outputs; each row is a change of an alert, in the order of commits, until a delivery is made of it.
CREATE TABLE headwater_outbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id text NOT NULL, status text NOT NULL, rule text NOT NULL, rule_version integer NOT NULL,
    severity text NOT NULL, key_kind text NOT NULL, "key" text NOT NULL, event_ids jsonb NOT NULL,
    event_time timestamptz NOT NULL, epoch bigint NOT NULL, final boolean NOT NULL, details jsonb NOT NULL
);

-- The start whose deliverer may write.
CREATE TABLE headwater_deliverer (one bigint PRIMARY KEY, ledger_id text NOT NULL, generation bigint NOT NULL);

-- The alerts of a route that groups or repeats: those that are active, and changes that are not in a delivery yet.
CREATE TABLE headwater_group_alerts (
    route text NOT NULL, group_key text NOT NULL, alert_id text NOT NULL, status text NOT NULL,
    changed bigint NOT NULL, notified bigint NOT NULL, since_ms bigint NOT NULL, alert text NOT NULL,
    PRIMARY KEY (route, group_key, alert_id)
);
CREATE TABLE headwater_groups (
    route text NOT NULL, group_key text NOT NULL, due_ms bigint NOT NULL, sent_ms bigint NOT NULL,
    PRIMARY KEY (route, group_key)
);
CREATE INDEX headwater_groups_due ON headwater_groups (due_ms);

-- Deliveries that are not delivered: `state` is waiting or dead. Their id and content do not change once they are tried.
CREATE TABLE headwater_deliveries (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id text NOT NULL, route text NOT NULL, group_key text NOT NULL, state text NOT NULL, content text NOT NULL,
    created_ms bigint NOT NULL, attempts bigint NOT NULL, next_ms bigint NOT NULL, error text NOT NULL,
    changed_ms bigint NOT NULL
);
CREATE INDEX headwater_deliveries_due ON headwater_deliveries (route, state, next_ms);
CREATE INDEX headwater_deliveries_group ON headwater_deliveries (route, group_key, seq);

-- One row per writer and start, made when the writer opens: `through` is null until its first commit, and
-- `fenced_by` is set by the later start that took over. `shards` is a set of 64 bits.
CREATE TABLE headwater_progress (
    pipeline text NOT NULL, sink text NOT NULL, generation bigint NOT NULL, writer integer NOT NULL,
    lineage text NOT NULL, shards bigint NOT NULL, through bigint, fenced_by bigint,
    PRIMARY KEY (pipeline, sink, generation, writer)
);
