//! Kafka: TLS, SASL, codecs, and errors in options.

use std::time::{Duration, Instant};

use headwater::source::generator::{GeneratorSettings, RecordMaker};
use headwater::topics::{TopicSpec, Topics};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::{Services, assert_connect_fails, closed_port, headwater, silent_port};

fn config(brokers: &str, options: &str) -> String {
    format!(
        "pipeline = \"connections\"\n[source]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\n[source.options]\n{options}\n\
         [sinks.sqlite]\npath = \"out.db\"\n"
    )
}

/// Produces records to one partition with the given codec.
fn produce(brokers: &str, codec: &str, partition: u32, records: u64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("compression.type", codec).set("linger.ms", "50");
    let producer: BaseProducer = config.create().expect("a producer");
    let mut maker = RecordMaker::new(GeneratorSettings {
        malformed: 0.0,
        invalid: 0.0,
        late: 0.0,
        duplicates: 0.0,
        ..GeneratorSettings::default()
    });
    for n in 0..records {
        maker.make(partition, n, None);
        let record =
            BaseRecord::to("codecs").partition(partition as i32).key(&maker.key).payload(&maker.value);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(Duration::from_secs(10)).expect("delivered");
}

/// Returns the codec of a partition's first batch as stored by the broker: the last three bits of its attributes.
fn stored_codec(services: &Services, partition: usize) -> u8 {
    let dir = services.of("SERVICES_DIR");
    let log = format!("{dir}/kafka/data/codecs-{partition}/00000000000000000000.log");
    std::fs::read(log).expect("a log")[22] & 7
}

#[test]
fn topics_are_read_with_every_codec() {
    let services = Services::up(&["kafka"]);
    let brokers = services.of("TEST_KAFKA");
    let dir = tempfile::tempdir().expect("a directory");
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    let cluster = Topics::connect(brokers, &Default::default()).expect("a client");
    cluster.create(&[TopicSpec::new("codecs", codecs.len() as u32)]).expect("created");
    for (partition, codec) in codecs.into_iter().enumerate() {
        produce(brokers, codec, partition as u32, 200);
        assert_eq!(usize::from(stored_codec(&services, partition)), partition, "{codec}");
    }
    let config = config(brokers, "").replace("[source.options]", "topic = \"codecs\"\n[source.options]");
    let result = headwater(dir.path(), &["run", "--bounded", "--drain"], &config);
    assert_eq!(result.code, Some(0), "{result:?}");
    let database = rusqlite::Connection::open(dir.path().join("out.db")).expect("a database");
    for (partition, codec) in codecs.into_iter().enumerate() {
        let count = "SELECT count(*) FROM events WHERE partition = ?1";
        let read: i64 = database.query_row(count, [partition as i64], |row| row.get(0)).expect("a count");
        assert_eq!(read, 200, "{codec}");
    }
}

#[test]
fn invalid_client_options_exit_with_code_2_and_their_line() {
    let dir = tempfile::tempdir().expect("a directory");
    for (options, expected) in [
        (
            "\"sasl.pasword\" = \"canary\"",
            "line 6: source.options.sasl.pasword: the option is unknown to the Kafka client; did you mean sasl.password?",
        ),
        ("\"fetch.wait.max.ms\" = \"soon\"", "line 6: source.options.fetch.wait.max.ms: "),
        ("\"enable.auto.commit\" = true", "Headwater sets it itself"),
    ] {
        let result = headwater(dir.path(), &["run"], &config("127.0.0.1:1", options));
        assert_eq!(result.code, Some(2), "{result:?}");
        assert!(result.err.contains(expected), "{expected:?} is not in {}", result.err);
    }
    // An error that only appears when a client is created.
    let options = "\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanisms\" = \"PLAIN\"";
    let result = headwater(dir.path(), &["run"], &config("127.0.0.1:1", options));
    assert_eq!(result.code, Some(2), "{result:?}");
    assert!(result.err.contains("sasl.username"), "{}", result.err);
}

#[test]
fn errors_of_unreachable_brokers_are_distinguished() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = format!("127.0.0.1:{}", closed_port());
    assert_connect_fails(
        dir.path(),
        &config(&refused, ""),
        1,
        &format!("broker {refused} cannot be reached"),
    );
    assert_connect_fails(
        dir.path(),
        &config("nowhere.invalid:9092", ""),
        1,
        "the host name of broker nowhere.invalid:9092 is unknown",
    );
    let (_listener, port) = silent_port();
    assert_connect_fails(
        dir.path(),
        &config(&format!("127.0.0.1:{port}"), ""),
        1,
        &format!("127.0.0.1:{port}"),
    );
    let started = Instant::now();
    let result = headwater(dir.path(), &["run"], &config(&refused, ""));
    assert_eq!(result.code, Some(1), "the failure is not permanent: {result:?}");
    assert!(result.err.contains("cannot be reached") && started.elapsed() < crate::BOUND, "{result:?}");
}

#[test]
#[cfg(not(feature = "tls"))]
fn settings_that_need_tls_name_the_cargo_feature() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in ["\"security.protocol\" = \"SSL\"", "\"sasl.mechanisms\" = \"SCRAM-SHA-256\""] {
        let result = headwater(dir.path(), &["run"], &config("127.0.0.1:1", options));
        assert_eq!(result.code, Some(2), "{result:?}");
        assert!(result.err.contains("cargo build --release --features tls"), "{}", result.err);
    }
}

#[test]
#[cfg(feature = "tls")]
fn kafka_supports_tls_and_sasl_and_fails_closed() {
    let services = Services::up(&["tls", "kafka"]);
    let dir = tempfile::tempdir().expect("a directory");
    let plain = services.of("TEST_KAFKA");
    let everything = config(plain, "") + &format!("[sinks.kafka]\nbrokers = \"{plain}\"\n");
    let topics = headwater(dir.path(), &["topics", "create"], &everything);
    assert_eq!(topics.code, Some(0), "{topics:?}");
    let tls = |ca: &str| {
        format!("\"security.protocol\" = \"SSL\"\n\"ssl.ca.location\" = \"{}\"\n", services.file(ca))
    };
    let sasl = |mechanism: &str, password: &str| {
        tls("ca.pem").replace("SSL\"", "SASL_SSL\"")
            + &format!(
                "\"sasl.mechanisms\" = \"{mechanism}\"\n\"sasl.username\" = \"alice\"\n\"sasl.password\" = \"{password}\"\n"
            )
    };
    let certificate = |name: &str| {
        format!(
            "\"ssl.certificate.location\" = \"{}\"\n\"ssl.key.location\" = \"{}\"\n",
            services.file(&format!("{name}.pem")),
            services.file(&format!("{name}.key"))
        )
    };
    let (encrypted, mutual, with_sasl) =
        (services.of("TEST_KAFKA_TLS"), services.of("TEST_KAFKA_MUTUAL"), services.of("TEST_KAFKA_SASL"));
    for (brokers, options) in [
        (encrypted, tls("ca.pem")),
        (mutual, tls("ca.pem") + &certificate("certified")),
        (with_sasl, sasl("PLAIN", "alice-secret")),
        (with_sasl, sasl("SCRAM-SHA-256", "alice-secret")),
        (with_sasl, sasl("SCRAM-SHA-512", "alice-secret")),
    ] {
        let config = config(brokers, &options)
            + &format!("[sinks.kafka]\nbrokers = \"{brokers}\"\n[sinks.kafka.options]\n{options}");
        let result = headwater(dir.path(), &["check", "--connect"], &config);
        assert_eq!(result.code, Some(0), "{result:?}\n{config}");
        let result = headwater(dir.path(), &["run", "--bounded", "--drain"], &config);
        assert_eq!(result.code, Some(0), "{result:?}\n{config}");
    }
    let by_name = |brokers: &str| brokers.replace("127.0.0.1", "localhost");
    for (brokers, options, expected) in [
        (encrypted, tls("other-ca.pem"), "is not trusted: check that `ssl.ca.location` has the CA"),
        (&*by_name(encrypted), tls("ca.pem"), "is for another host name"),
        (encrypted, String::new(), "it may expect TLS or SASL on this port"),
        (plain, tls("ca.pem"), "does not speak TLS on this port"),
        (mutual, tls("ca.pem"), "does not accept the client's certificate, or demands one"),
        (with_sasl, sasl("PLAIN", "wrong"), "does not accept the credentials"),
        (with_sasl, sasl("SCRAM-SHA-256", "wrong"), "does not accept the credentials"),
        (with_sasl, tls("ca.pem"), "it may expect TLS or SASL on this port"),
    ] {
        assert_connect_fails(dir.path(), &config(brokers, &options), 1, expected);
    }
    let missing = tls("ca.pem").replace("ca.pem", "none.pem");
    assert_connect_fails(dir.path(), &config(encrypted, &missing), 2, "none.pem");
}
