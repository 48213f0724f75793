//! All configuration keys, with their defaults and the reasons for them: those of connectors and the others. The reader
//! looks keys up here, and the reference in `docs/configuration.md` is generated from them.

use crate::connectors::{LIST_KEYS, SINKS, SOURCES, STORES};
use crate::settings::{Key, keys};

/// The keys before those of the kinds of sources.
const FIRST: &[Key] = keys! {
    "pipeline" = required: "Name of the pipeline: lower-case letters, digits, `-` and `_`. It prefixes rows, transactional ids and internal topics, and is the id of the consumer group."
    "rules": "Files that contain `[[rules]]` sections and nothing else: a list of paths, relative to the working directory. A path whose last segment contains `*`, such as `rules/*.toml`, stands for all files that match it, by name, without those whose names begin with `.` or end with `_test.toml` or `.test.toml`. The rules are read as if they were here: in which file a rule is makes no difference. `[[rules]]` sections of this file are the alternative; a list can have both, `rules = [\"rules/*.toml\", { id = \"large\", match = true }]`."
    "rules_reload" = "\"off\"": "`auto`: this file and its files of rules are watched; changed rules come into force within about a second, without a stop. If a file is not valid, or more than rules has changed, the rules stay as they are, and the log says why. `off`: rules change with `headwater rules apply`, or with a start."

    "source.kind" = required: "Kind of source: `kafka`, `file` (NDJSON: each file is a partition, each line an offset) or `generator`."
    "source.format" = "\"json\"": "Format of the records: `json`, one object per record; `cloudevents`, events in the JSON format of CloudEvents 1.0; `debezium`, changes of rows by Debezium in JSON; both need [fields](fields.md). `avro` and `protobuf`: records of a topic by [schemas](fields.md#avro-and-protobuf), which need `[source.schema_registry]` or a schema in a file."
    "source.strict_fields" = "false": "`true`: a malformed optional field (an amount that is not a number, half a location) makes its record a dead letter. `false`: the field is treated as absent, counted in `headwater_field_errors_total` and named in the log; the event is processed without it."
    "source.epoch_records" = "1000": "File and generator: number of records per partition in an epoch. It decides which events are late, so that the same input gives the same results in every run, with any number of workers."
};

/// The keys between those of sources and those of state stores.
const MIDDLE: &[Key] = keys! {
    "source.schema_registry.url" = required: "Avro and Protobuf: URL of a schema registry with Confluent's interface (Confluent, Karapace, Redpanda; Apicurio at `/apis/ccompat/v7`), such as `http://127.0.0.1:8081`. Each record is decoded by the schema that it was written with, whose id is in its first bytes. https needs a build with `--features tls`."
    "source.schema_registry.user": "User of the registry, with `password`."
    "source.schema_registry.password": "Password of the user."
    "source.schema_registry.password_file": "File that contains the password."
    "source.schema_registry.token": "Bearer token, instead of a user."
    "source.schema_registry.token_file": "File that contains the token."
    "source.schema_registry.ca_file": "File with the certificate authorities to trust, in PEM, instead of the system's."
    "source.schema_registry.timeout" = "\"5s\"": "Maximum time of a request. While the registry does not answer, records that need a schema which is not known yet wait, and so do those behind them in their partitions; no worker waits."
    "source.schema_registry.unknown_id" = "\"hold\"": "Fate of records whose id has no schema in the registry, or one that cannot be used. `hold`: they wait until it has one, and final results wait for them; `headwater_stalled{cause=\"schema\"}` and the log say so. `dead_letter`: they become dead letters, `malformed`, once the registry has said so twice within a second. The default is exact: whether an id is known depends on when it is asked for, so that with `dead_letter` a replay after a crash can decode a record that was a dead letter before."
    "source.avro.schema_file" = required: "Avro without a registry: file with the schema of all records, in JSON."
    "source.avro.framing" = "\"confluent\"": "Bytes before the record: `confluent`, a zero and the four bytes of an id, which is not looked at; `none`."
    "source.protobuf.descriptor_file" = required: "Protobuf without a registry: file with the descriptors that `protoc --include_imports --descriptor_set_out=FILE` writes."
    "source.protobuf.message" = required: "Full name of the message that records have, such as `shop.v1.Payment`."
    "source.protobuf.framing" = "\"confluent\"": "Bytes before the message: `confluent`, a zero, the four bytes of an id and the indexes of the message, which are not looked at; `none`."

    "time.epoch" = "\"10ms\"": "Minimum length of an epoch. Shorter epochs reduce latency; longer epochs reduce cost. While records wait, an epoch takes up to a tenth of the time that they wait for, and at most five times this."
    "time.max_out_of_orderness" = "\"5s\"": "Maximum time by which an event may be older than the newest event of its partition without being late. Final results are delayed by this time."
    "time.idle_timeout" = "\"1s\"": "Time without new records after which a partition that has been read to its end no longer holds back the watermark."
    "time.max_future_skew" = "\"5m\"": "Maximum time by which an event may be later than the timestamp of its record. It keeps a wrong clock from advancing the watermark."
    "time.max_drift": "Maximum time by which a partition may be read ahead of the slowest one, in event time. Not set by default, because `limits.unfinal_bytes` already bounds the memory that drift takes."
    "time.held_warning" = "\"1m\"": "Time for which an open upstream transaction may hold a partition before the process reports that it is not ready and logs a warning. Final results wait for the transaction from its beginning."
    "time.held_timeout": "Maximum time for which an open upstream transaction may hold final results. After that, its partition counts as idle, and its records are late if they are committed after all. Without it, there is no timeout."
    "time.idle_advance": "Time for which all partitions must be idle before the watermark follows the wall clock, at a constant lag. Windows then close and absences match even if the whole feed is down; records that arrive afterwards are late. Without it, the watermark does not advance while all partitions are idle."

    "limits.bytes_in_flight" = "\"64MiB\"": "Maximum number of bytes that a process has read and not yet committed. It bounds memory if a sink is slow."
    "limits.unfinal_bytes" = "\"256MiB\"": "Maximum memory for un-final events in a process, roughly. From an eighth of it on, and at least 8 MiB, partitions that lead wait within an epoch for the slowest one of the process that has records, as long as that advances; from half of it on, also for those of other processes; at the limit, only the slowest partition is read until the watermark advances."
    "limits.epochs_in_flight" = "1000": "Maximum number of epochs between reading and the slowest sink. The default is ten seconds of epochs of the default length."
    "limits.dedup_horizon" = "\"1m\"": "Span of event time within which a repeated event id of a key is a duplicate; `0s` disables deduplication. The default suits producers that retry within seconds."
    "limits.backfill_horizon" = "\"1d\"": "Event time for which the positions of late and duplicate events are kept, in memory and in checkpoints, 16 bytes each and at most a million. A rule with `backfill` can look back half as far."
    "limits.max_rejected_share" = "\"off\"": "Share of the records that a process reads, such as `0.5`, that may be rejected because they are no events (`malformed` and `invalid`; not late, future or duplicate ones). Above it, once at least 200 records are read within `limits.rejected_window`, the run commits what it has read and ends with exit code 3: after a faulty deployment of a producer, the input waits instead of becoming dead letters. `\"off\"` sets no limit."
    "limits.rejected_window" = "\"1m\"": "Wall time over which `limits.max_rejected_share` is taken."
    "limits.shutdown_timeout" = "\"30s\"": "Maximum time that a run takes to finish the records that it has read, after a request to stop. Then it exits with code 1 and names the sink that does not respond."

    "state.kind" = "\"fjall\"": "State store for checkpoints: `fjall` or `rocksdb` (if built with that feature), a directory that belongs to one process, or `redis` or `object_store` (if built with the feature `object-store`), which several processes can share. Without `[checkpoint]`, nothing is stored."
    "state.ttl" = "\"30d\"": "Time for which the state of a key is kept after its last event, in event time. A later event counts as the first of a new key. It must not be shorter than the time span of any pattern. State of a window is always kept until the window closes."
};

/// The keys between those of state stores and those of sinks.
const RESULTS: &[Key] = keys! {
    "windows.name" = required: "Name of the window: lower-case letters, digits and `_`."
    "windows.kind" = required: "`tumbling` (needs `size`), `sliding` (needs `size` and `slide`) or `session` (needs `gap`)."
    "windows.by" = "\"user_id\"": "Keys to group by. `key` is the key of an event: its device if it is an `iot_sensor` event, else its user. `user_id` and `device_id` are those keys that are users, or devices. `user`, `device` and the names in `[keys]` are key spaces: every event that has the field."
    "windows.size": "Tumbling and sliding: length of a window."
    "windows.slide": "Sliding: distance between the starts of two windows; `size` must be a multiple of it. Each event is in `size` ÷ `slide` windows of its key, and each open window takes about 800 bytes. Above 10,000 windows per event a start warns; above 100,000 it is refused."
    "windows.gap": "Session: inactivity gap that ends a session."
    "windows.emit" = "\"final\"": "`final`: emit once, when the result cannot change any more; `early`: also emit results before that, and revise them."
    "windows.revise_every" = "\"1s\"": "Minimum time between two revisions of a window, rounded up to whole epochs."

    "patterns.velocity_spike.more_than" = "100": "Number of events within the time span that must be exceeded."
    "patterns.velocity_spike.within" = "\"1h\"": "Time span in which events are counted."
    "patterns.velocity_spike.severity" = "\"high\"": "Alert severity: `low`, `medium`, `high` or `critical`."
    "patterns.velocity_spike.emit" = "\"immediate\"": "`immediate`: emit at once, and revoke the alert if an earlier event arrives later and disproves it; `final`: emit once, when the alert cannot change any more."
    "patterns.rapid_fire_burst.at_least" = "10": "Minimum number of events within the time span."
    "patterns.rapid_fire_burst.within" = "\"10s\"": "Time span in which events are counted."
    "patterns.rapid_fire_burst.severity" = "\"high\"": "Alert severity."
    "patterns.rapid_fire_burst.emit" = "\"immediate\"": "Emission: `immediate` or `final`."
    "patterns.merchant_diversity.at_least" = "8": "Minimum number of distinct merchants within the time span."
    "patterns.merchant_diversity.within" = "\"1h\"": "Time span in which merchants are counted."
    "patterns.merchant_diversity.severity" = "\"medium\"": "Alert severity."
    "patterns.merchant_diversity.emit" = "\"immediate\"": "Emission: `immediate` or `final`."
    "patterns.amount_anomaly.sigmas" = "3.0": "Number of standard deviations from the mean of the key's earlier amounts that must be exceeded."
    "patterns.amount_anomaly.high_sigmas" = "5.0": "Number of standard deviations above which the severity is at least `high`."
    "patterns.amount_anomaly.at_least" = "30": "Minimum number of earlier amounts; fewer amounts are no reliable sample of a key."
    "patterns.amount_anomaly.min_sigma" = "0.01": "Lower bound of the standard deviation. It keeps a key that always pays the same amount from raising an alert for a difference of one cent."
    "patterns.amount_anomaly.min_relative_sigma" = "0.01": "Lower bound of the standard deviation as a share of the mean; the greater of the two bounds applies. A key that always pays the same amount raises an alert when it pays much more, but not when its price changes by less than `sigmas` × 1%."
    "patterns.amount_anomaly.per_currency" = "false": "`true` keeps separate statistics for each currency of a key. The default is `false`, because most keys pay in one currency, and a few amounts of another are no reliable sample."
    "patterns.amount_anomaly.severity" = "\"medium\"": "Alert severity."
    "patterns.amount_anomaly.emit" = "\"immediate\"": "Emission: `immediate` or `final`."
    "patterns.impossible_travel.more_than_km" = "50.0": "Distance from the key's previous located event that must be exceeded, in km. Shorter distances are within the error of positions."
    "patterns.impossible_travel.more_than_kmh" = "900.0": "Speed that must be exceeded, in km/h. The default is the maximum speed of airliners."
    "patterns.impossible_travel.severity" = "\"critical\"": "Alert severity."
    "patterns.impossible_travel.emit" = "\"immediate\"": "Emission: `immediate` or `final`."

    "rules.id" = required: "Id of the rule in alerts, metrics and the API: lower-case letters, digits and `_`."
    "rules.by" = "\"key\"": "Keys to group by, as for windows."
    "rules.where": "[CEL](cel.md) expression of the events that the rule considers, such as `event.event_type == 'transaction' && event.amount < 2.0`; without it, all events."
    "rules.match": "`true`: each of these events raises an alert. A rule has exactly one condition: this one, or one of the following sections."
    "rules.severity" = "\"medium\"": "Alert severity: `low`, `medium`, `high` or `critical`, or an expression of one, such as `event.amount > 1000.0 ? 'high' : 'low'`."
    "rules.emit" = "\"immediate\"": "`immediate`: emit at once, and revoke the alert if an earlier event arrives later and disproves it; `final`: emit once, when the alert cannot change any more. Absences are always final."
    "rules.suppress": "Event time after an alert in which the rule raises no further alert of the same key. A condition that still holds at the first event after it raises again."
    "rules.mode" = "\"live\"": "`live`, or `shadow`: a rule on trial. Its alerts are stored in tables and files of sinks, with this mode; they go to no topic, no profile in Redis and no route. A change of the mode keeps the state of the rule."
    "rules.backfill" = "false": "`true`: if the rule is added to a pipeline that has begun, it first reads the events from before, beside the run, and enters as if it had always been there: see [rules](rules.md#backfill). Without it, it begins with the next events."
    "rules.description": "Description for people."
    "rules.count.at_least": "Minimum number of events within the time span. Either this or `more_than`. It raises at the event that reaches it."
    "rules.count.more_than": "Number of events that must be exceeded."
    "rules.count.within" = required: "Time span: the event counts those in (t − `within`, t]."
    "rules.sum.of" = required: "Number to add: a field, or an expression such as `event.amount * 2.0`. Events without it are not considered."
    "rules.sum.more_than": "Sum that must be exceeded. Either this or `at_least`."
    "rules.sum.at_least": "Minimum sum."
    "rules.sum.within" = required: "Time span."
    "rules.average.of" = required: "Number to average: a field or an expression."
    "rules.average.more_than": "Average that must be exceeded. Either this or `at_least`."
    "rules.average.at_least": "Minimum average."
    "rules.average.at_least_events" = "1": "Minimum number of events within the time span."
    "rules.average.within" = required: "Time span."
    "rules.distinct.of" = required: "Value to distinguish: a field or an expression."
    "rules.distinct.at_least" = required: "Minimum number of distinct values within the time span."
    "rules.distinct.within" = required: "Time span."
    "rules.share.of" = required: "Expression of the events that are counted, among those that `where` selects."
    "rules.share.more_than" = required: "Share that must be exceeded, from 0 to 1."
    "rules.share.at_least_events" = required: "Minimum number of events within the time span."
    "rules.share.within" = required: "Time span."
    "rules.outlier.of" = required: "Number to compare with the key's earlier ones: a field or an expression."
    "rules.outlier.sigmas" = "3.0": "Number of standard deviations from the mean that must be exceeded."
    "rules.outlier.high_sigmas": "Number of standard deviations above which the severity is at least `high`."
    "rules.outlier.at_least" = "30": "Minimum number of earlier numbers."
    "rules.outlier.min_sigma" = "0.01": "Lower bound of the standard deviation."
    "rules.outlier.min_relative_sigma" = "0.01": "Lower bound of the standard deviation as a share of the mean; the greater of the two bounds applies."
    "rules.outlier.group_by": "Field or expression: each value of it has statistics of its own, such as `currency`, and so have the events without one."
    "rules.travel.more_than_km" = "50.0": "Distance from the key's previous located event that must be exceeded, in km."
    "rules.travel.more_than_kmh" = "900.0": "Speed that must be exceeded, in km/h."
    "rules.sequence.within" = required: "Time span from the first event to the last."
    "rules.sequence.steps.where" = required: "Expression of the events of the step. Steps follow each other: `steps = [{ where = \"…\" }, { where = \"…\", times = 3 }, { not = \"…\" }]`."
    "rules.sequence.steps.times" = "1": "Number of events that the step takes."
    "rules.sequence.steps.not": "Last step only: expression of events of which none may follow within the time span. The alert is raised when the watermark has passed it."
    "rules.absence.within" = required: "Time span: an alert is raised if no event of the key follows one within it."

    "ledger.kind" = required: "Database of the ledger, from which a start resumes exactly: `postgres`, or `sqlite` on a volume that follows the first process. Without this section, a start has empty state, and results near a crash may be lost or repeated."
    "ledger.path": "SQLite: file of the ledger. Do not use the file of a sink: each would wait for the other's locks."
    "ledger.url": "PostgreSQL: address of the database, as in `sinks.postgres.url`. The default is the database of `sinks.postgres`."
    "ledger.url_file": "PostgreSQL: file that contains the URL."
    "ledger.password_file": "PostgreSQL: file that contains the password, for a URL without one."

    "checkpoint.interval" = "\"10s\"": "Minimum time between the beginnings of two checkpoints, by the wall times of the epochs. A start replays the epochs after the last checkpoint: a shorter interval makes starts faster, a longer one writes less. This section needs `[ledger]`."
    "checkpoint.keep" = "3": "Number of checkpoints that a start can resume from; the beginning of the pipeline counts as the first. If the newest checkpoint cannot be read, the start resumes from the previous one: the results are the same, and the replay takes longer."
};

/// The keys after those of the kinds of sinks.
const LAST: &[Key] = keys! {
    "dead_letters.mask": "Fields of dead letters whose values `headwater dead-letters` and the HTTP API never show: names, or paths such as `card.number`. The values are replaced in payloads, and wherever else they appear in the letter; from a syntax error on, the rest of a payload is hidden, and so is a payload that is not text. What is stored stays as it is."

    "routes.name" = required: "Name of the route, in deliveries, metrics and the log. Routes need `[ledger]`; what they have not delivered yet is in a schema of its own in the ledger's database (`headwater_outbox_PIPELINE`), or in a file beside a ledger in SQLite."
    "routes.rules": "Names of the rules whose alerts are delivered; without it, those of all rules."
    "routes.min_severity": "Least severity: `low`, `medium`, `high` or `critical`. Revocations for PagerDuty and Alertmanager pass whatever their severity, so that no incident stays open."
    "routes.keys": "Keys whose alerts are delivered; without it, those of all keys."
    "routes.where": "[CEL](cel.md#alerts) expression of the alerts that are delivered, such as `alert.severity in ['high', 'critical'] && alert.details.count > 50`; all of `rules`, `min_severity`, `keys` and `where` must accept an alert. Revocations for PagerDuty and Alertmanager pass if it may have held when the alert was raised."
    "routes.send_revoked" = "true": "True to deliver revocations. PagerDuty and Alertmanager resolve the alert."
    "routes.group_by" = "[]": "Fields that the alerts of a group have in common: `rule`, `severity`, `key_kind`, `key`. A delivery has the changes of a group, at most 100. Without it, each change of an alert is a delivery."
    "routes.group_wait" = "\"10s\"": "Time from the first alert of a group to its first delivery, to collect others. An alert that is revoked before is not delivered."
    "routes.group_interval" = "\"5m\"": "Minimum time between a group's deliveries of changes."
    "routes.repeat_interval": "Time after which alerts that are still active are delivered again; without it, they are not."
    "routes.active_for" = "\"24h\"": "Time for which an alert that is not revoked counts as active: it is repeated so long, and Alertmanager resolves it then."
    "routes.give_up_after" = "\"24h\"": "Time after which a delivery that keeps failing is given up. `headwater deliveries list` shows it for 30 days, and `headwater deliveries retry` sends it again."
    "routes.allow_private" = "false": "True to permit a receiver on this machine or in a private network. The default protects services that trust their network, such as the metadata of cloud providers."
    "routes.connect_timeout" = "\"5s\"": "Maximum time to connect to the receiver."
    "routes.timeout" = "\"10s\"": "Maximum time of a request. Of each route at most 4 requests are under way."
    "routes.to.kind" = required: "`webhook` (signed after [Standard Webhooks](https://www.standardwebhooks.com)), `slack` (an incoming webhook), `pagerduty` (Events API v2) or `alertmanager` (API v2)."
    "routes.to.url": "Address of the receiver. Required unless `url_file` is set; the default of `pagerduty` is its Events API. https needs a build with `--features tls`; certificates are verified with the system's authorities (`SSL_CERT_FILE` names others)."
    "routes.to.url_file": "File that contains the URL, which is a secret for Slack."
    "routes.to.secret": "`webhook`: key of the signature, `whsec_` and 24 to 64 bytes in Base64."
    "routes.to.secret_file": "`webhook`: file that contains the key."
    "routes.to.routing_key": "`pagerduty`: routing key of the integration."
    "routes.to.routing_key_file": "`pagerduty`: file that contains the routing key."
    "routes.to.template_file": "File with a Jinja template of the body, which must be JSON: `{{ name }}` is a JSON value. It has `pipeline`, `route`, `id`, `status`, `severity`, `summary`, `time`, `group`, `dedup_key`, `active`, `repeat` and `alerts`, which have the fields of alerts, `summary` and `ends_at`."

    "http.listen" = "\"127.0.0.1:9464\"": "Address that serves the console (`/`), the API (`/api/v1`), `/metrics`, `/livez` and `/readyz`. The default accepts connections from this machine only; another address needs a token, or `insecure`."
    "http.token": "Token that a request must have: `Authorization: Bearer TOKEN`. It has at least 16 bytes. `/livez`, `/readyz` and the page of the console, which has no data, need none."
    "http.token_file": "File that contains the token."
    "http.insecure" = "false": "`true` permits an address that other machines can reach without a token: everyone who reaches it may read results and send dead letters again."
    "http.peer_ca_file": "PEM file with the certificate authorities by which this process verifies the other processes of its cluster, when it asks them about keys and they have `http.tls`. The default is the system's authorities. Certificates must be valid for the names in the host file."
    "http.tls.cert_file" = required: "PEM file with the server's certificate, followed by its intermediate certificates. With this section the server speaks HTTPS only. It needs a build with `--features tls`."
    "http.tls.key_file" = required: "PEM file with the private key."

    "cluster.secret": "Secret that the processes of a cluster prove to each other before they exchange anything, at least 16 bytes: `openssl rand -hex 32` makes one. All have the same. Addresses in the host file that other machines can reach need it. Set it as `HEADWATER__CLUSTER__SECRET`, or in a file."
    "cluster.secret_file": "File that contains the secret."
    "cluster.heartbeat_timeout" = "\"5s\"": "Time without a sign of life after which a process of the cluster is lost, and the others end with exit code 1. Processes send one five times as often. The default is far above the pauses of a loaded machine; a shorter one finds a host that hangs sooner, and at least `500ms`."
    "cluster.tls.cert_file" = required: "PEM file with the certificate of this process, followed by its intermediate certificates. With this section, the connections between processes are encrypted, and both ends show a certificate, which must be valid for the name in the host file and for both server and client. It needs a build with `--features tls`."
    "cluster.tls.key_file" = required: "PEM file with the private key."
    "cluster.tls.ca_file" = required: "PEM file with the certificate authorities by which the other processes are verified: those of the cluster alone, not the system's."

    "otlp.endpoint" = "\"http://localhost:4318\"": "Address of an OpenTelemetry collector, which receives traces by OTLP over HTTP at `/v1/traces` below it. The default is the collector's own. https needs a build with `--features tls`. Without this key, the environment variable `OTEL_EXPORTER_OTLP_ENDPOINT` applies. The section needs a build with `--features otlp`."
    "otlp.service_name" = "\"headwater\"": "The attribute `service.name` of all spans. Without this key, the environment variable `OTEL_SERVICE_NAME` applies."
    "otlp.sample_ratio" = "1.0": "Share of the rounds whose spans are exported, from 0 to 1. There are up to 100 rounds a second, with about five spans each."
    "otlp.timeout" = "\"10s\"": "Maximum time of a request to the collector. The default is OpenTelemetry's. No run waits for it, except at its end for at most 2 s."

    "log.format" = "\"human\"": "`human` or `json`."
    "log.level" = "\"info\"": "`error`, `warn`, `info`, `debug` or `trace`."
};

/// Returns all keys, in the order of the reference. A key without a default that is not required disables its feature
/// when it is absent.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    let sources = SOURCES.iter().map(|kind| kind.keys);
    let stores = STORES.iter().map(|kind| kind.keys);
    let sinks = SINKS.iter().map(|kind| kind.keys);
    let all = [FIRST].into_iter().chain(sources).chain([MIDDLE]).chain(stores);
    let all = all.chain([LIST_KEYS, RESULTS]);
    all.chain(sinks).chain([LAST]).flatten()
}

/// Returns the key with this path in the reference.
pub fn find(path: &str) -> Option<&'static Key> {
    keys().find(|key| key.path == path)
}

/// Returns the reference as Markdown.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\nA configuration is a TOML file. `headwater check CONFIG` prints the effective values, or every error with its key, its line\n\
         and the expected value. A pattern or a sink is enabled if its section exists, even if the section is empty.\n\n\
         `[sinks.NAME]` with `kind = \"postgres\"` is a further sink of a kind, with the keys of `[sinks.postgres]`: results go to every\n\
         sink. Without `kind`, the name is the kind. A name is part of a sink's progress, so it does not change.\n\n\
         The environment variable `HEADWATER__SECTION__KEY` overrides any key. If the key is text, the value is used unchanged;\n\
         if it is a number, a boolean or a list, the value is parsed as TOML. An unknown variable that begins with `HEADWATER_`\n\
         is an error, except the variables that Kubernetes and Docker set for services.\n\n\
         `${NAME}` in a text of the file is replaced by the value of that environment variable, which must be set. The value is\n\
         text. Write `$${` for the characters `${`.\n\n\
         **Secrets** are addresses (`url`), keys of routes, the secret of a cluster and the options of the Kafka client. Each can be read from a file instead: `url_file`,\n\
         and for options for example `\"sasl.password_file\" = \"/run/secrets/kafka\"`. A line end at the end of the file is\n\
         ignored. `password_file` adds a password to an address without one. `check` prints addresses without passwords, and the\n\
         values of only those options that are known to hold no secret; errors and logs print neither.\n\n\
         `[routes.to.headers]` has further headers of a route's requests, by name, and `[otlp.headers]` those of requests to the\n\
         collector. Their values may be secret.\n\n\
         **`[fields]`** says what an event is, for records of one's own schema: [docs/fields.md](fields.md). **`[keys]`** names further\n\
         keys to group by: `card = \"card\"`, or of several fields `pair = [\"device_id\", \"ip_address\"]`, in which case an event\n\
         needs all of them.\n\n\
         `[source.options]` and `[sinks.kafka.options]` are passed to the Kafka client unchanged, under\n\
         [librdkafka's names](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md): TLS, SASL, fetch sizes.\n\
         `headwater check --connect CONFIG` tests every connection, topic and permission.\n\n\
         This file is generated from `src/config/keys.rs` and `src/connectors`; do not edit it.\n",
    );
    let mut section = None;
    for key in keys() {
        let (of, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if section != Some(of) {
            section = Some(of);
            let title = match of {
                "" => "Top level".to_owned(),
                "windows" => "`[[windows]]`".to_owned(),
                "rules" => "`[[rules]]`".to_owned(),
                "rules.sequence.steps" => "`[[rules.sequence.steps]]`".to_owned(),
                "lists" => "`[[lists]]`".to_owned(),
                "lists.source" => "`[lists.source]`".to_owned(),
                "routes" => "`[[routes]]`".to_owned(),
                "routes.to" => "`[routes.to]`".to_owned(),
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
