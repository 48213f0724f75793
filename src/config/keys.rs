//! Every key there is, with its default and the reason for it: what the reader asks for, and what the reference in
//! `docs/configuration.md` says.

/// A key of the configuration.
pub struct Key {
    /// Its path, with dots.
    pub path: &'static str,
    /// Its default, as TOML.
    pub default: Option<&'static str>,
    /// Whether it must be given where its section is.
    pub required: bool,
    /// What it means, and why the default is what it is.
    pub doc: &'static str,
}

macro_rules! keys {
    (@default) => { None };
    (@default required) => { None };
    (@default $default:literal) => { Some($default) };
    (@required required) => { true };
    (@required $($default:literal)?) => { false };
    ($($path:literal $(= $default:tt)? : $doc:literal)*) => {
        &[$(Key { path: $path, default: keys!(@default $($default)?), required: keys!(@required $($default)?), doc: $doc }),*]
    };
}

/// Every key, in the order of the reference. No default and not required: without it the thing is switched off.
pub const KEYS: &[Key] = keys! {
    "pipeline" = required: "Name of the pipeline: lower-case letters, digits, `-` and `_`. It prefixes rows, transactional ids and internal topics, and is the consumer group."

    "source.kind" = required: "Where records come from: `kafka`, `file` (NDJSON: each file is a partition, each line an offset) or `generator`."
    "source.strict_fields" = "false": "Whether an optional field of a wrong form (an amount that is not a number, half a location) makes its record a dead letter. Off, the field is taken as absent, counted in `headwater_field_errors_total` and named in the log, and the event takes part in everything else."
    "source.brokers" = "\"127.0.0.1:9092\"": "Kafka: bootstrap servers, a list separated by commas."
    "source.topic" = "\"raw-events\"": "Kafka: the topic to read."
    "source.start_from" = "\"earliest\"": "Kafka: where to start if nothing is recorded yet: `earliest`, `latest`, or an RFC 3339 time. The earliest loses nothing."
    "source.paths": "File: the files to read, one or a list. A source that ends closes all windows."
    "source.epoch_records" = "1000": "File and generator: how many records of each partition an epoch has. It decides what is late, so the same input gives the same results with every run and any number of workers."
    "source.max_jump" = "\"1h\"": "File: a record further than this beyond all before it pushes the watermark only once the next one confirms it: no clock stood by when a line was written that its time could be held against."
    "source.seed" = "1": "Generator: another seed gives another stream."
    "source.partitions" = "6": "Generator: how many partitions; six, like `raw-events`."
    "source.users" = "50000": "Generator: how many users; at the default pace each is far below every threshold."
    "source.devices" = "20000": "Generator: how many devices."
    "source.pace" = "500": "Generator: events per second of event time, however fast they are read."
    "source.records": "Generator: how many records; without it, for ever."
    "source.disorder" = "0.02": "Generator: share of events up to 4 s out of order."
    "source.late" = "0.001": "Generator: share of events that come minutes too late."
    "source.duplicates" = "0.002": "Generator: share of records that repeat a recent one."
    "source.malformed" = "0.001": "Generator: share of records that are not JSON."
    "source.invalid" = "0.001": "Generator: share of records that break a rule."
    "source.inject" = "true": "Generator: whether fraud is injected, for every pattern."

    "time.epoch" = "\"10ms\"": "How long an epoch lasts, at least. Shorter ones answer sooner, longer ones cost less."
    "time.max_out_of_orderness" = "\"5s\"": "How far behind the newest event of its partition an event may be and still count. Final answers wait as long."
    "time.idle_timeout" = "\"1s\"": "How long a partition must be silent at its end before it no longer holds back the watermark."
    "time.max_future_skew" = "\"5m\"": "How far beyond its record's timestamp an event may claim to be; a wrong clock must not push the watermark."
    "time.max_drift": "How far ahead of the slowest partition one may be read, in event time. `limits.unfinal_bytes` bounds what that costs in memory, so that none is needed."
    "time.held_warning" = "\"1m\"": "How long an upstream transaction that is left open may hold a partition before the process is not ready and the log says so. Final results wait for it from the start."
    "time.held_timeout": "How long an upstream transaction that is left open may hold final results up. After that its partition counts as idle, and its records, should they ever be committed, are late. Without it they are waited for."
    "time.idle_advance": "How long all partitions must have been idle for the watermark to follow the wall clock, keeping its lag: then windows close and absences fire though a whole feed is dead, and what comes after all is late. Without it the watermark stays."

    "limits.bytes_in_flight" = "\"64MiB\"": "How much a process may have read that is not committed: it bounds memory when a sink is slow."
    "limits.unfinal_bytes" = "\"256MiB\"": "How much the events of a process that are not final yet may take. At the end of it only the slowest partition is read, until the watermark moves."
    "limits.epochs_in_flight" = "1000": "How many epochs may lie between reading and the slowest sink: ten seconds at the usual length."
    "limits.dedup_horizon" = "\"1m\"": "Within which event time a repeated event id of a key is a duplicate; `0s` switches it off. Producers retry within seconds."
    "limits.drain" = "\"30s\"": "How long a run that was asked to stop may take to finish what it has read. Then it ends with exit code 1 and names the sink that does not answer."

    "state.kind" = "\"fjall\"": "Where checkpoints are put: `fjall` or `rocksdb` (if built with that feature), a folder of one process, or `redis`, which several share. Without `[checkpoint]` nothing is."
    "state.path" = "\"state\"": "fjall and RocksDB: the folder. A relative path is of the working directory; `check` shows the absolute one, which is best given where a service may start elsewhere."
    "state.url": "Redis: where it is, for instance `redis://user@127.0.0.1:6379/0`, or `rediss://` for TLS. It must have `appendonly yes`, `appendfsync always` and `maxmemory-policy noeviction`, or it is refused: what is put would not be there after a crash."
    "state.url_file": "Redis: the file that holds the URL."
    "state.password_file": "Redis: the file that holds the password, for a URL without one."
    "state.ca_file": "Redis with TLS: the file of the CA that signed its certificate, PEM; without it, the CAs that the system trusts."
    "state.cert_file": "Redis with TLS: the file of the client's certificate, PEM, if the server demands one."
    "state.key_file": "Redis with TLS: the file of that certificate's key, PEM."
    "state.durability" = "\"checked\"": "Redis: `checked` asks it by `CONFIG GET` whether it keeps what it is given; `assumed` takes the operator's word, for a server that does not permit `CONFIG`. If the word is wrong, checkpoints may be gone after a crash."
    "state.ttl" = "\"30d\"": "How long a key is remembered after its last event, in event time; what comes later is as if of a new key. No shorter than any pattern looks back; windows are waited for."

    "windows.name" = required: "Name of the window: lower-case letters, digits and `_`."
    "windows.kind" = required: "`tumbling` (size), `sliding` (size, every) or `session` (gap)."
    "windows.by" = "\"user_id\"": "Which keys: `user_id`, `device_id`, or `key` for both. An event has one key, of a user or of a device: `device_id` is that of `iot_sensor` events only, and other events that name a device are in no window by `device_id`."
    "windows.size": "Tumbling and sliding: how long a window is."
    "windows.every": "Sliding: how far apart windows start; the size is a multiple of it. Each event is in size ÷ every windows of its key, each of which takes about 800 bytes while it is open: above 10,000 a start warns, above 100,000 it is refused."
    "windows.gap": "Session: the inactivity gap that ends it."
    "windows.emit" = "\"final\"": "`final`: once, when nothing can change it any more; `revised`: also before."
    "windows.revise_every" = "\"1s\"": "Revised windows are shown at most this often, counted in epochs."

    "patterns.velocity_spike.more_than" = "100": "More events than this within the time."
    "patterns.velocity_spike.within" = "\"1h\"": "Within this time."
    "patterns.velocity_spike.severity" = "\"high\"": "Alert severity: `low`, `medium`, `high` or `critical`."
    "patterns.velocity_spike.emit" = "\"immediate\"": "`immediate`: at once, and revoked if history changes; `final`: when nothing can change it."
    "patterns.rapid_fire_burst.at_least" = "10": "At least so many events within the time."
    "patterns.rapid_fire_burst.within" = "\"10s\"": "Within this time."
    "patterns.rapid_fire_burst.severity" = "\"high\"": "Alert severity."
    "patterns.rapid_fire_burst.emit" = "\"immediate\"": "When it is given."
    "patterns.merchant_diversity.at_least" = "8": "At least so many distinct merchants within the time."
    "patterns.merchant_diversity.within" = "\"1h\"": "Within this time."
    "patterns.merchant_diversity.severity" = "\"medium\"": "Alert severity."
    "patterns.merchant_diversity.emit" = "\"immediate\"": "When it is given."
    "patterns.amount_anomaly.sigmas" = "3.0": "Further than so many standard deviations from the mean of the key's earlier amounts."
    "patterns.amount_anomaly.high_sigmas" = "5.0": "Beyond so many the severity is at least high."
    "patterns.amount_anomaly.at_least" = "30": "How many earlier amounts there must be: fewer say little about a key."
    "patterns.amount_anomaly.min_sigma" = "0.01": "The standard deviation counts as this if it is below: a key that always pays the same does not alert at a cent."
    "patterns.amount_anomaly.min_relative_sigma" = "0.01": "Likewise, as a share of the mean; the greater of the two counts. A key that always pays the same alerts when it pays much more, and not for a change of its prices by `sigmas` × 1%."
    "patterns.amount_anomaly.per_currency" = "false": "Whether each currency has statistics of its own. Off, since most keys pay in one, and a few amounts of another say little."
    "patterns.amount_anomaly.severity" = "\"medium\"": "Alert severity."
    "patterns.amount_anomaly.emit" = "\"immediate\"": "When it is given."
    "patterns.impossible_travel.more_than_km" = "50.0": "Further than this from the key's previous located event: below it, positions are too rough."
    "patterns.impossible_travel.more_than_kmh" = "900.0": "Faster than this: airliners fly no faster."
    "patterns.impossible_travel.severity" = "\"critical\"": "Alert severity."
    "patterns.impossible_travel.emit" = "\"immediate\"": "When it is given."

    "ledger.kind" = required: "Where the record of what was done is kept, by which a start goes on exactly: `postgres`, or `sqlite` on a volume that follows the first process. Without the section a start has empty state, and results near a crash may be lost or repeated."
    "ledger.path": "SQLite: the ledger's file. It is not to be shared with a sink's: each waits for the other's locks."
    "ledger.url": "PostgreSQL: where the database is, as in `sinks.postgres.url`; without it, where `sinks.postgres` writes."
    "ledger.url_file": "PostgreSQL: the file that holds the URL."
    "ledger.password_file": "PostgreSQL: the file that holds the password, for a URL without one."

    "checkpoint.interval" = "\"10s\"": "How long after one checkpoint the next begins, by the epochs' wall times. A start does again what came after the last one: shorter intervals make it quicker, longer ones write less. The section needs `[ledger]`."
    "checkpoint.keep" = "3": "How many checkpoints a start can go back to, the beginning of the pipeline being the first: if the newest cannot be read, the one before is as right and takes longer."

    "sinks.kafka.brokers" = "\"127.0.0.1:9092\"": "Bootstrap servers, a list separated by commas."
    "sinks.kafka.topics" = "[\"enriched-events\", \"alerts\", \"dead-letters\"]": "Which outputs to write; each goes to the topic of its name. Or a table of names, such as `[sinks.kafka.topics]` with `alerts = \"fraud.alerts\"`: then only the outputs that it names are written."
    "sinks.kafka.commit_interval" = "\"0ms\"": "Least time between the beginnings of two transactions; they adapt to the load, so none is needed."
    "sinks.kafka.topics.enriched-events": "The topic of the enriched events. Also `enriched_events`."
    "sinks.kafka.topics.alerts": "The topic of the alerts."
    "sinks.kafka.topics.dead-letters": "The topic of the dead letters. Also `dead_letters`."
    "sinks.postgres.url": "Where the database is, such as `postgres://headwater@127.0.0.1/headwater`, or a list of `key=value`. For TLS, as libpq has it: `sslmode` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`; `allow` is `prefer`, the default: TLS if the server offers it, unverified, and a warning if not), `sslrootcert` (a file, or `system`), `sslcert` and `sslkey`. `connect_timeout` is 10 s unless given. Required, unless `url_file` is given."
    "sinks.postgres.url_file": "The file that holds the URL."
    "sinks.postgres.password_file": "The file that holds the password, for a URL without one."
    "sinks.postgres.schema": "The schema that the tables are in, made if it is not there; without it, where the connection puts tables. Tables belong to one pipeline: each one of a database needs a schema of its own. Lower-case letters, digits and `_`."
    "sinks.postgres.tables" = "[\"events\", \"alerts\", \"windows\", \"dead_letters\"]": "Which outputs to write."
    "sinks.postgres.commit_interval" = "\"200ms\"": "Least time between the beginnings of two transactions: larger ones cost less."
    "sinks.sqlite.path" = required: "The database file."
    "sinks.sqlite.tables" = "[\"events\", \"alerts\", \"windows\", \"dead_letters\"]": "Which outputs to write."
    "sinks.sqlite.commit_interval" = "\"200ms\"": "Least time between the beginnings of two transactions."

    "http.listen" = "\"127.0.0.1:9464\"": "Where `/livez`, `/readyz` and `/metrics` are served: only to this machine, unless told otherwise."
    "log.format" = "\"human\"": "`human` or `json`."
    "log.level" = "\"info\"": "`error`, `warn`, `info`, `debug` or `trace`."
};

/// The reference, as Markdown.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\nTOML. `headwater check CONFIG` prints what is in force, or everything that is wrong, with key, line and what was\n\
         expected. A pattern or a sink runs if its section is there, however empty.\n\n\
         `HEADWATER__SECTION__KEY` in the environment overrides any key. Its value is taken as it is where the key is text,\n\
         and as TOML where it is a number, a truth value or a list. A variable that begins with `HEADWATER_` and is not\n\
         one of Headwater's is an error, but those that Kubernetes and Docker set for services.\n\n\
         `${NAME}` in a text of the file is replaced by that environment variable, which must be set; `$${` is `${`. The\n\
         value is text.\n\n\
         **Secrets** are addresses (`url`) and the options of the Kafka client. Each can be given in a file instead, whose\n\
         last line end is left out: `url_file`, and for options such as `\"sasl.password_file\" = \"/run/secrets/kafka\"`.\n\
         `password_file` adds a password to an address without one. `check` shows addresses without passwords, and of the\n\
         options only the values of those that are known to hold no secret; errors and logs show neither.\n\n\
         `[source.options]` and `[sinks.kafka.options]` go to the Kafka client as they are, by\n\
         [its names](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md): TLS, SASL, fetch sizes.\n\
         `headwater check --connect CONFIG` tries every connection, topic and permission.\n\n\
         Generated from the table that the program reads by; do not edit.\n",
    );
    let mut section = None;
    for key in KEYS {
        let (of, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if section != Some(of) {
            section = Some(of);
            let title = match of {
                "" => "Top level".to_owned(),
                "windows" => "`[[windows]]`".to_owned(),
                of => format!("`[{of}]`"),
            };
            text.push_str(&format!("\n## {title}\n\n| key | default | meaning |\n| --- | --- | --- |\n"));
        }
        let default = match key.default {
            Some(default) => format!("`{default}`"),
            None if key.required => "required".to_owned(),
            None => "none".to_owned(),
        };
        text.push_str(&format!("| `{name}` | {default} | {} |\n", key.doc));
    }
    text
}
