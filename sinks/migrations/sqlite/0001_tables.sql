-- Times are RFC 3339 texts in UTC, which sort and which SQLite's date functions read. Decimal numbers are texts,
-- since SQLite has no exact type for them: CAST(amount AS REAL) to compute.
CREATE TABLE events (
    partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, epoch INTEGER NOT NULL, event_id TEXT NOT NULL,
    event_type TEXT NOT NULL, key_kind TEXT NOT NULL, "key" TEXT NOT NULL, event_time TEXT NOT NULL, amount TEXT,
    currency TEXT, merchant_id TEXT, merchant_category TEXT, ip_address TEXT, session_id TEXT, device_id TEXT,
    lat REAL, lon REAL, attributes TEXT, amount_band TEXT NOT NULL, key_events INTEGER NOT NULL,
    key_amount_mean REAL, since_previous_ms INTEGER, km_from_previous REAL,
    PRIMARY KEY (partition, "offset")
) WITHOUT ROWID;

CREATE INDEX events_key_time ON events ("key", event_time);

CREATE TABLE alerts (
    alert_id TEXT PRIMARY KEY NOT NULL, status TEXT NOT NULL, rule TEXT NOT NULL, rule_version INTEGER NOT NULL,
    severity TEXT NOT NULL, key_kind TEXT NOT NULL, "key" TEXT NOT NULL, event_ids TEXT NOT NULL,
    event_time TEXT NOT NULL, epoch INTEGER NOT NULL, final INTEGER NOT NULL, details TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX alerts_rule_time ON alerts (rule, event_time);
CREATE INDEX alerts_key ON alerts ("key");

CREATE TABLE window_aggregates (
    window_name TEXT NOT NULL, key_kind TEXT NOT NULL, "key" TEXT NOT NULL, start TEXT NOT NULL, "end" TEXT NOT NULL,
    count INTEGER NOT NULL, amount_count INTEGER NOT NULL, amount_sum TEXT NOT NULL, mean REAL, min TEXT, max TEXT,
    stddev REAL, distinct_merchants INTEGER NOT NULL, final INTEGER NOT NULL, epoch INTEGER NOT NULL,
    PRIMARY KEY (window_name, key_kind, "key", start)
) WITHOUT ROWID;

CREATE TABLE dead_letters (
    partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, reason TEXT NOT NULL, field TEXT, message TEXT NOT NULL,
    "key" BLOB, value BLOB, timestamp TEXT NOT NULL, epoch INTEGER NOT NULL, retries INTEGER NOT NULL,
    PRIMARY KEY (partition, "offset")
) WITHOUT ROWID;

CREATE TABLE headwater_progress (
    pipeline TEXT NOT NULL, sink TEXT NOT NULL, generation INTEGER NOT NULL, writer INTEGER NOT NULL,
    lineage TEXT NOT NULL, shards INTEGER NOT NULL, through INTEGER NOT NULL,
    PRIMARY KEY (pipeline, sink, generation, writer)
) WITHOUT ROWID;
