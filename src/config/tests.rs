use headwater_sinks::postgres::{Partitioning, Period};

use super::*;

pub(super) mod rules;

const MINIMAL: &str =
    "pipeline = \"fraud\"\n[source]\nkind = \"generator\"\n[sinks.sqlite]\npath = \"a.db\"\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, std::iter::empty())
}

fn errors(text: &str) -> Vec<String> {
    parse(text).expect_err(text).0.iter().map(ConfigError::to_string).collect()
}

fn sqlite_tables(config: &Config) -> Vec<OutputKind> {
    let tables = config.sinks.0.values().filter_map(|sink| match sink {
        SinkConfig::Sqlite(sqlite) => Some(sqlite.tables.tables.clone()),
        _ => None,
    });
    tables.flatten().collect()
}

#[test]
fn sinks_of_one_kind_have_names_of_their_own() {
    let second = "[sinks.archive]\nkind = \"sqlite\"\npath = \"b.db\"\ntables = [\"events\"]\n";
    let config = parse(&format!("{MINIMAL}{second}")).expect("valid");
    let names: Vec<_> = config.sinks.0.keys().map(String::as_str).collect();
    assert_eq!(names, ["archive", "sqlite"]);
    assert!(config.effective().contains("sinks.archive.kind = \"sqlite\"\n"), "{}", config.effective());
    assert_eq!(
        parse(&format!("{MINIMAL}kind = \"sqlite\"\n")).expect("valid").effective(),
        parse(MINIMAL).expect("valid").effective()
    );
    let topics = "[sinks.more]\nkind = \"kafka\"\n[sinks.more.topics]\nalerts = \"a\"\n";
    assert!(parse(&format!("{MINIMAL}[sinks.kafka]\n{topics}")).is_ok());
    for (section, expected) in [
        ("[sinks.archive]\npath = \"b.db\"", "sinks.archive.kind: is missing: expected \"kafka\" or"),
        ("[sinks.archive]\nkind = \"disk\"", "sinks.archive.kind: expected \"kafka\" or"),
        ("[sinks.kafka]\nkind = \"sqlite\"", "sinks.kafka.kind: a sink named kafka is of that kind"),
        ("[sinks.B]\nkind = \"sqlite\"\npath = \"b.db\"", "sinks.B.kind: the name of a sink has at most"),
        ("[sinks.b]\nkind = \"sqlite\"\npath = \"a.db\"", "sinks: sinks.b and sinks.sqlite both write file"),
        (
            "[sinks.kafka]\n[sinks.b]\nkind = \"kafka\"",
            "sinks: sinks.b and sinks.kafka both write topic alerts at",
        ),
        (
            "[sinks.a]\nkind = \"kafka\"\n[sinks.a-alerts]\nkind = \"sqlite\"\npath = \"b.db\"",
            "sinks: sinks.a and sinks.a-alerts both have a writer named a-alerts: rename one",
        ),
        ("[sinks.b]\nkind = \"sqlite\"\npath = \"b.db\"\ncolour = 1", "sinks.b.colour: unknown key"),
    ] {
        let errors = errors(&format!("{MINIMAL}{section}\n"));
        assert!(errors.iter().any(|error| error.contains(expected)), "{section}: {errors:?}");
    }
}

#[test]
fn missing_keys_have_their_defaults() {
    let config = parse(MINIMAL).expect("valid");
    assert_eq!(config.plan.time.epoch, Duration::from_millis(10));
    assert_eq!(config.plan.limits.bytes_in_flight, 64 << 20);
    assert!(config.plan.patterns.velocity_spike.is_none(), "a pattern without a section does not run");
    let config = parse(&format!("{MINIMAL}[patterns.velocity_spike]\n")).expect("valid");
    assert_eq!(
        config.plan.patterns.velocity_spike.map(|plan| (plan.at_least, plan.within_ms)),
        Some((101, 3_600_000))
    );
}

#[test]
fn ttl_must_not_be_shorter_than_a_pattern_span() {
    assert_eq!(parse(MINIMAL).expect("valid").plan.limits.ttl_ms, 2_592_000_000);
    let velocity = format!("{MINIMAL}[patterns.velocity_spike]\n[state]\n");
    assert_eq!(parse(&format!("{velocity}ttl = \"1h\"\n")).expect("valid").plan.limits.ttl_ms, 3_600_000);
    let short = "line 8: state.ttl: the longest rule spans 3600000 ms: `ttl` must not be shorter";
    assert_eq!(errors(&format!("{velocity}ttl = \"59m\"\n")), [short]);
}

#[test]
fn a_retention_needs_partitions_and_is_longer_than_windows() {
    let with = |keys: &str| {
        format!(
            "{MINIMAL}[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"3d\"\n\
             [sinks.postgres]\nurl = \"postgres://u@h/d\"\n{keys}"
        )
    };
    let config = parse(&with("partition_by = \"month\"\nretention = \"90d\"\ndashboards = true\n"));
    let config = config.expect("valid");
    let sink = config.sinks.postgres().next().expect("a sink");
    let retention = Some(Duration::from_secs(90 * 86_400));
    assert_eq!(sink.partitioning, Some(Partitioning { period: Period::Month, retention }));
    assert_eq!(sink.dashboards, Some(Duration::from_secs(60)));
    let config = parse(&with("")).expect("valid");
    let sink = config.sinks.postgres().next().expect("a sink");
    assert_eq!((sink.partitioning, sink.dashboards), (None, None));

    for (keys, error) in [
        (
            "retention = \"90d\"\n",
            "retention: whole partitions are dropped: set `partition_by = \"day\"` as well",
        ),
        ("partition_by = \"hour\"\n", "partition_by: expected \"day\" or \"month\", got \"hour\""),
        (
            "partition_by = \"day\"\nretention = \"23h\"\n",
            "retention: expected a duration of at least 86400000 ms, got \"23h\"",
        ),
        (
            "partition_by = \"day\"\nretention = \"3d\"\n",
            "the `retention` of sinks.postgres must not be shorter than the longest window or pattern with \
             `max_out_of_orderness`, 259205000 ms",
        ),
    ] {
        let errors = errors(&with(keys));
        assert!(errors.len() == 1 && errors[0].contains(error), "{errors:?}");
    }
}

#[test]
fn old_names_of_keys_work_with_a_warning_and_stay_in_the_ledger() {
    let with = |slide: &str, emit: &str, timeout: &str| {
        format!(
            "{MINIMAL}[[windows]]\nname = \"w\"\nkind = \"sliding\"\nsize = \"2s\"\n{slide} = \"1s\"\nemit = {emit:?}\n\
             [limits]\n{timeout} = \"5s\"\n"
        )
    };
    let (old, new) = (with("every", "revised", "drain"), with("slide", "early", "shutdown_timeout"));
    let (old, new) = (parse(&old).expect("valid"), parse(&new).expect("valid"));
    assert_eq!(old.effective(), new.effective());
    assert_eq!(old.semantics(), new.semantics());
    assert!(new.semantics().contains(".every = \"1s\"\n"), "{}", new.semantics());
    assert!(new.semantics().contains(".emit = \"revised\"\n"), "{}", new.semantics());
    assert_eq!((old.shutdown_timeout, new.warnings.len()), (Duration::from_secs(5), 0));
    let warnings: Vec<_> = old.warnings.iter().map(ConfigError::to_string).collect();
    assert_eq!(
        warnings,
        [
            "line 13: limits.drain: is deprecated: use `shutdown_timeout`",
            "line 10: windows[0].every: is deprecated: use `slide`",
            "line 11: windows[0].emit: \"revised\" is deprecated: use \"early\"",
        ]
    );
    let from_variable = [("HEADWATER__LIMITS__DRAIN".to_owned(), "7s".to_owned())];
    let config = Config::parse(MINIMAL, from_variable.into_iter()).expect("valid");
    assert_eq!((config.shutdown_timeout, config.warnings.len()), (Duration::from_secs(7), 1));
    let both = format!("{MINIMAL}[limits]\ndrain = \"1s\"\nshutdown_timeout = \"2s\"\n");
    assert_eq!(
        errors(&both),
        ["line 7: limits.drain: is the old name of `shutdown_timeout`, which is set too; remove one of them"]
    );
}

#[test]
fn overlapping_sliding_windows_are_refused_or_warned_about() {
    let sliding = |size: &str, slide: &str| {
        format!(
            "{MINIMAL}[[windows]]\nname = \"w\"\nkind = \"sliding\"\nsize = {size:?}\nslide = {slide:?}\n"
        )
    };
    let error = "line 10: windows[0].slide: each event is in 3600000 windows of its key, about 2881 MB of memory per key; \
                   the most is 100000: choose a larger `slide` or a smaller `size`";
    assert_eq!(errors(&sliding("1h", "1ms")), [error]);
    let warnings = |text: &str| {
        parse(text).expect("valid").warnings.iter().map(ConfigError::to_string).collect::<Vec<_>>()
    };
    let many = "line 10: windows[0].slide: each event is in 86400 windows of its key, about 70 MB of memory per key; a larger \
                `slide` needs less memory";
    assert_eq!(warnings(&sliding("1d", "1s")), [many]);
    assert_eq!(warnings(&sliding("10000s", "1s")), [""; 0]);
    assert_eq!(parse(&sliding("100000s", "1s")).expect("the most").warnings.len(), 1);
}

#[test]
fn all_errors_are_reported_at_once_with_their_lines() {
    let text = "pipeline = \"Fraud\"\n[source]\nkind = \"kafka\"\nbroker = \"x\"\n[time]\nepoch = \"10\"\nidle_timeout = 5\n\
                [[windows]]\nname = \"w\"\nkind = \"sliding\"\nsize = \"1m\"\n[patterns.velocity_spike]\nmore_than = 0\n[sinks.sqlite]\n";
    assert_eq!(
        errors(text),
        [
            "line 1: pipeline: expected at most 63 lower-case letters, digits, - and _",
            "line 4: source.broker: unknown key; did you mean brokers?",
            "line 6: time.epoch: expected a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\", got \"10\"",
            "line 7: time.idle_timeout: expected a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\", got 5",
            "line 13: patterns.velocity_spike.more_than: expected a whole number from 1 to 1000000, got 0",
            "sinks.sqlite.path: is missing",
            "windows[0].slide: this kind of window needs this key",
        ]
    );
    assert_eq!(
        errors(&format!("{MINIMAL}[sinks.kafka]\nbrokers = \"b\"\n[sinks.kafka.topics]\nevents = \"x\"\n")),
        [
            "line 8: sinks.kafka.topics: expected a topic for at least one output",
            "line 9: sinks.kafka.topics.events: unknown key; known keys: alerts, dead-letters, \
             dead_letters, enriched-events, enriched_events",
        ]
    );
    assert!(errors("pipeline = ").first().is_some_and(|first| first.starts_with("line 1: the file: ")));
}

#[test]
fn checkpoints_need_a_ledger() {
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"l.db\"\n";
    assert_eq!(
        parse(&format!("{MINIMAL}{ledger}")).expect("valid").checkpoint,
        None,
        "disabled without its section"
    );
    let config = parse(&format!("{MINIMAL}{ledger}[checkpoint]\n")).expect("valid");
    let defaults = CheckpointConfig { interval: Duration::from_secs(10), keep: 3 };
    assert_eq!(config.checkpoint, Some(defaults));
    assert_eq!(
        errors(&format!("{MINIMAL}[checkpoint]\nkeep = 0\n")),
        [
            "line 6: checkpoint: checkpoints need a [ledger], which stores their manifests",
            "line 7: checkpoint.keep: expected a whole number from 1 to 100, got 0",
        ]
    );
}

#[test]
#[cfg(not(feature = "rocksdb"))]
fn kinds_that_were_not_built_are_refused() {
    assert_eq!(
        errors(&format!("{MINIMAL}[state]\nkind = \"rocksdb\"\npath = \"s\"\n")),
        [
            "line 7: state.kind: this program was built without RocksDB: build it with `cargo build --release --features rocksdb`"
        ]
    );
}

#[test]
#[cfg(not(feature = "object-store"))]
fn object_stores_that_were_not_built_are_refused() {
    assert_eq!(
        errors(&format!("{MINIMAL}[state]\nkind = \"object_store\"\nurl = \"s3://a\"\nregion = \"b\"\n")),
        [
            "line 7: state.kind: this program was built without object stores: build it with `cargo build --release --features object-store`"
        ]
    );
}

#[test]
#[cfg(feature = "object-store")]
fn settings_of_object_stores_fit_their_url() {
    let of = |keys: &str| errors(&format!("{MINIMAL}[state]\nkind = \"object_store\"\n{keys}"));
    for (keys, expected) in [
        ("", "state.url: state in an object store needs a url, such as `s3://bucket/prefix`"),
        ("url = \"https://a/b\"\n", "line 8: state.url: expected s3://BUCKET/PREFIX, gs://"),
        (
            "url = \"s3://hunter2@a\"\n",
            "line 8: state.url: expected a bucket and a prefix without credentials",
        ),
        (
            "url = \"s3://a\"\naccount = \"b\"\n",
            "line 9: state.account: applies to `az://` only: remove this key",
        ),
        (
            "url = \"gs://a\"\nregion = \"b\"\n",
            "line 9: state.region: applies to `s3://` only: remove this key",
        ),
        (
            "url = \"s3://a\"\naccess_key_id = \"b\"\n",
            "line 9: state.access_key_id: `access_key_id` and `secret_access_key`, or",
        ),
        (
            "url = \"s3://a\"\nsecret_access_key = \"hunter2\"\n",
            "line 9: state.secret_access_key: `access_key_id` and `secret_access_key`, or",
        ),
        (
            "url = \"s3://a\"\nendpoint = \"http://b:1\"\n",
            "line 9: state.endpoint: the endpoint is not encrypted: use https://, or, for tests",
        ),
        (
            "url = \"s3://a\"\nendpoint = \"b\"\n",
            "line 9: state.endpoint: expected a URL such as \"https://minio",
        ),
        (
            "url = \"s3://a\"\nretry_timeout = \"1ms\"\n",
            "line 9: state.retry_timeout: expected a duration of at least",
        ),
        ("url = \"s3://a\"\npath = \"b\"\n", "line 9: state.path: "),
    ] {
        let errors = of(keys);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{keys}: {errors:?}");
    }
    for keys in [
        "url = \"s3://a/b\"\nregion = \"r\"\naccess_key_id = \"i\"\nsecret_access_key = \"s\"\nendpoint = \"https://h:1\"\n",
        "url = \"s3://a\"\nendpoint = \"http://h:1/\"\nallow_http = true\n",
        "url = \"gs://a\"\nservice_account_file = \"f.json\"\n",
        "url = \"az://a/b\"\naccount = \"c\"\naccount_key = \"d\"\n",
        "url = \"file:///var/lib/headwater\"\n",
    ] {
        let text = format!("{MINIMAL}[state]\nkind = \"object_store\"\n{keys}");
        assert!(Config::parse(&text, std::iter::empty()).is_ok(), "{keys}");
    }
}

#[test]
fn environment_overrides_any_key() {
    let environment = [
        set("HEADWATER__TIME__MAX_OUT_OF_ORDERNESS", "7s"),
        set("HEADWATER__SOURCE__SEED", "9"),
        set("HEADWATER__PATTERNS__RAPID_FIRE_BURST__AT_LEAST", "3"),
        set("HEADWATER_WORKERS", "2"),
    ];
    let config = Config::parse(MINIMAL, environment.into_iter()).expect("valid");
    assert_eq!(config.plan.time.max_out_of_orderness_ms, 7000);
    assert_eq!(config.plan.patterns.rapid_fire_burst.map(|plan| plan.at_least), Some(3));
    let wrong =
        Config::parse(MINIMAL, [set("HEADWATER__TIME__EPOCH", "soon")].into_iter()).expect_err("no duration");
    assert!(
        wrong.to_string().starts_with("HEADWATER__TIME__EPOCH: time.epoch: expected a duration"),
        "{wrong}"
    );
}

fn set(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn text_from_the_environment_is_used_unchanged() {
    let text = MINIMAL.replace("kind = \"generator\"", "kind = \"kafka\"");
    for value in ["12#34", "1e5", "0x10", "1_000", "+5", "0.10", "'q'", "true", "[1]", "${HOME}"] {
        let environment = [set("HEADWATER__SOURCE__OPTIONS__CLIENT.ID", value)];
        let config = Config::parse(&text, environment.into_iter()).expect(value);
        assert!(config.effective().contains(&format!("\"client.id\" = {value:?}")), "{}", config.effective());
    }
    let environment = [
        set("HEADWATER__PIPELINE", "2024"),
        set("HEADWATER__SOURCE__TOPIC", "1e5"),
        set("HEADWATER__SINKS__SQLITE__TABLES", "[\"alerts\"]"),
        set("HEADWATER__LIMITS__EPOCHS_IN_FLIGHT", "0x10"),
    ];
    let config = Config::parse(&text, environment.into_iter()).expect("valid");
    assert_eq!((&*config.plan.pipeline, config.plan.limits.epochs_in_flight), ("2024", 16));
    assert!(matches!(&config.source, SourceConfig::Kafka(kafka) if kafka.topic == "1e5"));
    assert_eq!(sqlite_tables(&config), [OutputKind::Alerts]);
}

#[test]
fn variables_in_texts_are_replaced_and_missing_ones_reported() {
    let text = "pipeline = \"${NAME}-$${x}\"\n[source]\nkind = \"file\"\npaths = [\"${DIR}/a\", \"$5\"]\n[sinks.sqlite]\npath = \"/a.db\"\n";
    let environment = [set("NAME", "fraud"), set("DIR", "/data")];
    let refused = Config::parse(text, environment.clone().into_iter()).expect_err("no name").to_string();
    assert_eq!(refused, "line 1: pipeline: expected at most 63 lower-case letters, digits, - and _");
    let config = Config::parse(&text.replace("-$${x}", ""), environment.into_iter()).expect("valid");
    assert_eq!(&*config.plan.pipeline, "fraud");
    assert!(config.effective().contains("source.paths = [\"/data/a\", \"$5\"]"), "{}", config.effective());
    assert_eq!(
        errors(text),
        [
            "line 1: pipeline: the environment variable NAME is not set; write $${ for the characters ${",
            "line 4: source.paths[0]: the environment variable DIR is not set; write $${ for the characters ${",
        ]
    );
    let number = MINIMAL.replace("[sinks", "seed = \"${N}\"\n[sinks");
    let refused = Config::parse(&number, [set("N", "5")].into_iter()).expect_err("text").to_string();
    assert!(refused.ends_with("got \"${N}\""), "{refused}");
}

#[test]
fn topics_can_be_renamed() {
    let base = "pipeline = \"p\"\n[source]\nkind = \"kafka\"\n[sinks.kafka]\n";
    let topics = |text: &str| parse(text).expect(text).sinks.kafka().next().expect("a sink").topics.clone();
    let name = |name: &str| name.to_owned();
    let usual = [
        (OutputKind::Events, name("enriched-events")),
        (OutputKind::Alerts, name("alerts")),
        (OutputKind::DeadLetters, name("dead-letters")),
    ];
    assert_eq!(topics(base), usual.into());
    let listed = topics(&format!("{base}topics = [\"alerts\"]\n"));
    assert_eq!(listed, [(OutputKind::Alerts, name("alerts"))].into());
    let named =
        format!("{base}[sinks.kafka.topics]\nalerts = \"fraud.alerts\"\ndead_letters = \"fraud.dead\"\n");
    let expected =
        [(OutputKind::Alerts, name("fraud.alerts")), (OutputKind::DeadLetters, name("fraud.dead"))];
    assert_eq!(topics(&named), expected.into());
    assert!(
        parse(&named)
            .expect("valid")
            .effective()
            .contains("sinks.kafka.topics.dead-letters = \"fraud.dead\"")
    );
    for (topic, config_error) in [
        ("raw-events", "the topic raw-events is also written by sinks.kafka"),
        ("headwater-progress-p", "stores the pipeline's progress"),
        ("a b", "expected a topic name"),
        ("fraud.dead", "another output is also written to the topic fraud.dead"),
    ] {
        let refused = errors(&named.replace("fraud.alerts", topic)).join("\n");
        assert!(refused.contains(config_error), "{refused}");
    }
    let unknown = errors(&format!("{base}[sinks.kafka.topics]\nalarms = \"x\"\n"));
    assert!(unknown.iter().any(|config_error| config_error.ends_with("did you mean alerts?")), "{unknown:?}");
}

#[test]
fn effective_configuration_parses_to_itself() {
    let text = format!(
        "{MINIMAL}[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"1m\"\n[patterns.amount_anomaly]\n"
    );
    let config = parse(&text).expect("valid");
    let windows = |line: &&str| !line.starts_with("windows[");
    let again: String = config.effective().lines().filter(windows).map(|line| format!("{line}\n")).collect();
    let again = parse(&again).expect("the printed configuration is valid");
    let expected: Vec<_> = config.effective.iter().filter(|(key, _)| !key.starts_with("windows[")).collect();
    assert_eq!(again.effective.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn reference_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, reference()).expect("the repository can be written");
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), reference(), "run with UPDATE_DOCS=1");
}

#[test]
fn every_rule_of_the_registry_has_a_section() {
    for name in crate::pipeline::patterns() {
        let prefix = format!("patterns.{name}.");
        assert!(keys::keys().any(|key| key.path.starts_with(&prefix)), "{name} has no keys");
        let config = parse(&format!("{MINIMAL}[patterns.{name}]\n")).expect("valid");
        let others = crate::pipeline::patterns().filter(|other| *other != name);
        let effective = config.effective();
        assert!(effective.contains(&prefix), "{effective}");
        others.for_each(|other| assert!(!effective.contains(&format!("patterns.{other}.")), "{effective}"));
    }
}
