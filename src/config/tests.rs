use super::*;

const MINIMAL: &str =
    "pipeline = \"fraud\"\n[source]\nkind = \"generator\"\n[sinks.sqlite]\npath = \"a.db\"\n";

fn parse(text: &str) -> Result<Config, Complaints> {
    Config::parse(text, std::iter::empty())
}

fn complaints(text: &str) -> Vec<String> {
    parse(text).expect_err(text).0.iter().map(Complaint::to_string).collect()
}

#[test]
fn defaults_are_in_force_where_nothing_is_said() {
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
fn a_key_is_remembered_for_as_long_as_a_pattern_looks_back() {
    assert_eq!(parse(MINIMAL).expect("valid").plan.limits.ttl_ms, 2_592_000_000);
    let velocity = format!("{MINIMAL}[patterns.velocity_spike]\n[state]\n");
    assert_eq!(parse(&format!("{velocity}ttl = \"1h\"\n")).expect("valid").plan.limits.ttl_ms, 3_600_000);
    let short = "line 8: state.ttl: a pattern looks back on 3600000 ms: keys must be remembered for as long";
    assert_eq!(complaints(&format!("{velocity}ttl = \"59m\"\n")), [short]);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_line() {
    let text = "pipeline = \"Fraud\"\n[source]\nkind = \"kafka\"\nbroker = \"x\"\n[time]\nepoch = \"10\"\nidle_timeout = 5\n\
                [[windows]]\nname = \"w\"\nkind = \"sliding\"\nsize = \"1m\"\n[patterns.velocity_spike]\nmore_than = 0\n[sinks.sqlite]\n";
    assert_eq!(
        complaints(text),
        [
            "line 1: pipeline: expected at most 63 lower-case letters, digits, - and _",
            "line 4: source.broker: there is no such key; did you mean brokers?",
            "line 6: time.epoch: expected a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\", got \"10\"",
            "line 7: time.idle_timeout: expected a duration such as \"10ms\", \"5s\", \"1m\", \"1h\" or \"30d\", got 5",
            "line 13: patterns.velocity_spike.more_than: expected a whole number from 1 to 1000000, got 0",
            "line 14: sinks: expected at least one of [sinks.kafka], [sinks.postgres] and [sinks.sqlite]",
            "sinks.sqlite.path: is missing",
            "windows[0].every: this kind of window needs it",
        ]
    );
    assert!(complaints("pipeline = ").first().is_some_and(|first| first.starts_with("line 1: the file: ")));
}

#[test]
fn checkpoints_need_a_ledger() {
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"l.db\"\n";
    assert_eq!(
        parse(&format!("{MINIMAL}{ledger}")).expect("valid").checkpoint,
        None,
        "off without its section"
    );
    let config = parse(&format!("{MINIMAL}{ledger}[checkpoint]\n")).expect("valid");
    let defaults = CheckpointConfig { interval: Duration::from_secs(10), keep: 3 };
    assert_eq!(config.checkpoint, Some(defaults));
    assert_eq!(
        complaints(&format!("{MINIMAL}[checkpoint]\nkeep = 0\n")),
        [
            "line 6: checkpoint: checkpoints need a [ledger], which says what they consist of",
            "line 7: checkpoint.keep: expected a whole number from 1 to 100, got 0",
        ]
    );
}

#[test]
#[cfg(not(feature = "rocksdb"))]
fn what_the_program_was_built_without_is_said() {
    assert_eq!(
        complaints(&format!("{MINIMAL}[state]\nkind = \"rocksdb\"\npath = \"s\"\n")),
        ["line 7: state.kind: this program was built without RocksDB, which takes `--features rocksdb`"]
    );
}

#[test]
fn the_environment_overrides_any_key() {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
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

#[test]
fn secrets_show_nowhere() {
    let text = "pipeline = \"p\"\n[source]\nkind = \"kafka\"\n[source.options]\n\"sasl.password\" = \"canary\"\n\
                [sinks.postgres]\nurl = \"postgres://u:canary@h/d\"\n[sinks.kafka.options]\n\"sasl.password\" = \"canary\"\n";
    let config = parse(text).expect("valid");
    let SourceConfig::Kafka(source) = &config.source else { panic!("a topic") };
    assert_eq!(source.options["sasl.password"], "canary");
    assert!(
        !config.effective().contains("canary") && !format!("{config:?}").contains("canary"),
        "{config:?}"
    );
}

#[test]
fn the_effective_configuration_reads_back_as_itself() {
    let text = format!(
        "{MINIMAL}[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"1m\"\n[patterns.amount_anomaly]\n"
    );
    let config = parse(&text).expect("valid");
    let windows = |line: &&str| !line.starts_with("windows[");
    let again: String = config.effective().lines().filter(windows).map(|line| format!("{line}\n")).collect();
    let again = parse(&again).expect("what is printed can be read");
    let expected: Vec<_> = config.effective.iter().filter(|(key, _)| !key.starts_with("windows[")).collect();
    assert_eq!(again.effective.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn the_reference_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, reference()).expect("the repository can be written");
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), reference(), "run with UPDATE_DOCS=1");
}
