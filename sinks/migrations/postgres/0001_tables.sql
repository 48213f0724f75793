-- Times are in whole milliseconds, those beyond what timestamptz holds infinity or -infinity; decimal numbers are exact.
CREATE TABLE events (
    partition integer NOT NULL, "offset" bigint NOT NULL, epoch bigint NOT NULL, event_id text NOT NULL,
    event_type text NOT NULL, key_kind text NOT NULL, "key" text NOT NULL, event_time timestamptz NOT NULL,
    amount numeric, currency text, merchant_id text, merchant_category text, ip_address text, session_id text,
    device_id text, lat double precision, lon double precision, attributes jsonb, amount_band text NOT NULL,
    key_events bigint NOT NULL, key_amount_mean double precision, since_previous_ms bigint,
    km_from_previous double precision,
    PRIMARY KEY (partition, "offset")
);
CREATE INDEX events_key_time ON events ("key", event_time);

CREATE TABLE alerts (
    alert_id text PRIMARY KEY, status text NOT NULL, rule text NOT NULL, rule_version integer NOT NULL,
    severity text NOT NULL, key_kind text NOT NULL, "key" text NOT NULL, event_ids jsonb NOT NULL,
    event_time timestamptz NOT NULL, epoch bigint NOT NULL, final boolean NOT NULL, details jsonb NOT NULL
);
CREATE INDEX alerts_rule_time ON alerts (rule, event_time);
CREATE INDEX alerts_key ON alerts ("key");

CREATE TABLE window_aggregates (
    window_name text NOT NULL, key_kind text NOT NULL, "key" text NOT NULL, start timestamptz NOT NULL,
    "end" timestamptz NOT NULL, count bigint NOT NULL, amount_count bigint NOT NULL, amount_sum numeric NOT NULL,
    mean double precision, min numeric, max numeric, stddev double precision, distinct_merchants bigint NOT NULL,
    final boolean NOT NULL, epoch bigint NOT NULL,
    PRIMARY KEY (window_name, key_kind, "key", start)
);

CREATE TABLE dead_letters (
    partition integer NOT NULL, "offset" bigint NOT NULL, reason text NOT NULL, field text, message text NOT NULL,
    "key" bytea, value bytea, timestamp timestamptz NOT NULL, epoch bigint NOT NULL, retries integer NOT NULL,
    PRIMARY KEY (partition, "offset")
);

-- One row per writer and start, made when the writer opens: `through` is null until its first commit, and
-- `fenced_by` is set by the later start that took over. `shards` is a set of 64 bits.
CREATE TABLE headwater_progress (
    pipeline text NOT NULL, sink text NOT NULL, generation bigint NOT NULL, writer integer NOT NULL,
    lineage text NOT NULL, shards bigint NOT NULL, through bigint, fenced_by bigint,
    PRIMARY KEY (pipeline, sink, generation, writer)
);
