//! Tests of docker-compose.yml.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use headwater::cli::args;
use headwater::cli::command::{Command, ProduceArgs, RunArgs, TopicsCommand};
use headwater::config::Config;
use serde_json::Value;

use crate::image::is_pinned;
use crate::{entries, path, text, texts, yaml};

const FILE: &str = "docker-compose.yml";
const OWN_IMAGE: &str = concat!("headwater:", env!("CARGO_PKG_VERSION"));

fn services() -> BTreeMap<String, Value> {
    let services: BTreeMap<_, _> =
        entries(&yaml(FILE)["services"]).map(|(name, service)| (name.to_owned(), service.clone())).collect();
    assert!(!services.is_empty());
    services
}

fn runs_once(service: &Value) -> bool {
    service["restart"] == "no"
}

/// Replaces each `${NAME:-default}` in a text by its default.
fn interpolated(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (variable, after) = rest.split_once('}').expect("a closing brace");
    let (_, default) = variable.split_once(":-").expect("a default");
    format!("{before}{default}{}", interpolated(after))
}

/// Returns a service's environment, with the defaults of all variables.
fn environment(service: &Value) -> Vec<(String, String)> {
    entries(&service["environment"])
        .map(|(name, value)| (name.to_owned(), interpolated(value.as_str().expect("a quoted text"))))
        .collect()
}

/// Returns the mounts of a service as pairs of source and target.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let mounts = texts(&service["volumes"]).into_iter();
    mounts.map(|mount| mount.split_once(':').expect("SOURCE:TARGET")).collect()
}

#[test]
fn every_service_exists_with_a_pinned_image() {
    let services = services();
    let names: BTreeSet<_> = services.keys().map(String::as_str).collect();
    let expected = [
        "engine",
        "grafana",
        "kafka",
        "kafka-ui",
        "postgres",
        "producer",
        "prometheus",
        "receiver",
        "redis",
        "topics",
    ];
    assert_eq!(names, expected.into());
    for (name, service) in &services {
        let image = service["image"].as_str().expect("an image");
        assert!(is_pinned(image), "{name}: {image}");
        if service["build"].is_null() {
            assert!(!image.starts_with("headwater"), "{name}");
        } else {
            assert_eq!(image, OWN_IMAGE, "{name}");
            assert_eq!(
                service["pull_policy"], "build",
                "{name}: the image must not be pulled from a registry"
            );
            assert!(path(service["build"]["dockerfile"].as_str().expect("a Dockerfile")).is_file());
        }
    }
    assert!(services["postgres"]["image"].as_str().is_some_and(|image| image.starts_with("postgres:16.")));
    assert!(services["redis"]["image"].as_str().is_some_and(|image| image.starts_with("redis:7.")));
}

#[test]
fn lasting_services_have_health_checks_that_others_await() {
    let services = services();
    for (name, service) in &services {
        if !runs_once(service) {
            assert_eq!(service["restart"], "unless-stopped", "{name}");
            let check = &service["healthcheck"];
            let test = texts(&check["test"]);
            assert!(matches!(test[0], "CMD" | "CMD-SHELL") && test.len() > 1, "{name}: {test:?}");
            for key in ["interval", "timeout", "start_period", "retries"] {
                assert!(!check[key].is_null(), "{name}: {key}");
            }
        }
        for (other, how) in entries(&service["depends_on"]) {
            let awaited = services.get(other).unwrap_or_else(|| panic!("{name} waits for {other}"));
            let expected =
                if runs_once(awaited) { "service_completed_successfully" } else { "service_healthy" };
            assert_eq!(how["condition"], expected, "{name} waits for {other}");
        }
    }
}

#[test]
fn ports_are_published_on_the_loopback_interface_only() {
    let mut published = BTreeMap::new();
    for (name, service) in &services() {
        for port in texts(&service["ports"]) {
            let parts: Vec<_> = port.split(':').collect();
            let [address, host, container] = parts[..] else { panic!("{name}: {port}") };
            assert_eq!(address, "127.0.0.1", "{name}: {port}");
            assert!(container.parse::<u16>().is_ok(), "{name}: {port}");
            let host: u16 = host.parse().expect("a port");
            assert_eq!(published.insert(host, name.clone()), None, "{port} is published twice");
        }
    }
    assert_eq!(published[&8080], "kafka-ui");
    assert_eq!(published[&3000], "grafana");
}

#[test]
fn mounted_files_exist_and_volumes_are_declared() {
    let mut used = BTreeSet::new();
    for (name, service) in &services() {
        for (source, target) in mounts(service) {
            match source.strip_prefix("./") {
                Some(relative) => {
                    assert!(path(relative).exists(), "{name}: {source}");
                    assert!(target.ends_with(":ro"), "{name}: {source} is not read-only");
                }
                None => assert!(used.insert(source.to_owned()), "{name}: {source} is shared"),
            }
        }
    }
    let declared: BTreeSet<_> = entries(&yaml(FILE)["volumes"]).map(|(name, _)| name.to_owned()).collect();
    assert_eq!(used, declared);
}

/// Parses the configuration file that a service's command names, with the service's mounts and environment.
fn configuration(service: &Value, config: &std::path::Path) -> Config {
    let target = format!("{}:ro", config.display());
    let mounted = mounts(service).into_iter().find(|(_, to)| *to == target).expect("the file is mounted");
    let relative = mounted.0.strip_prefix("./").expect("a file of the repository");
    Config::parse(&text(relative), environment(service).into_iter())
        .unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn commands_and_configuration_are_parsed_as_intended() {
    let services = services();
    let command = |name: &str| {
        let service = &services[name];
        let environment: BTreeMap<_, _> = environment(service).into_iter().collect();
        let words = texts(&service["command"]).into_iter().map(Into::into);
        args::parse(words, |name| environment.get(name).cloned())
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let Command::Topics(TopicsCommand::Create(config)) = command("topics") else { panic!("topics") };
    configuration(&services["topics"], &config.config);
    let Command::Produce(ProduceArgs { config, seconds: None, .. }) = command("producer") else {
        panic!("the producer has a time limit")
    };
    configuration(&services["producer"], &config);
    let Command::Run(RunArgs { config, workers: 2, processes: None, bounded: false, .. }) = command("engine")
    else {
        panic!("the engine does not run for ever with two workers")
    };
    let config = configuration(&services["engine"], &config);
    let sinks = config.effective();
    assert!(sinks.contains("postgres://headwater:***@postgres/headwater"), "{sinks}");

    // The published port, the readiness probe and the scrape target must be the port that the engine listens on.
    let listen = config.http.expect("an address for HTTP").listen;
    assert!(listen.ip().is_unspecified(), "other containers cannot reach the port");
    let port = listen.port();
    assert_eq!(texts(&services["engine"]["ports"]), [format!("127.0.0.1:{port}:{port}")]);
    assert!(text("deploy/ready").contains(&format!("/dev/tcp/127.0.0.1/{port} ")));
    let scrape = yaml("deploy/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0].clone();
    assert_eq!(texts(&scrape["targets"]), [format!("engine:{port}")]);
}

#[test]
fn the_route_to_the_example_receiver_is_valid_without_its_comment_signs() {
    let receiver = &services()["receiver"];
    assert_eq!(texts(&receiver["profiles"]), ["receiver"], "it starts only if it is asked for");
    let file = text("deploy/headwater.toml");
    let start = file.find("# [[routes]]").expect("a route");
    let (before, route) = file.split_at(start);
    let (route, after) = route.split_once("\n\n").expect("an empty line after the route");
    let route: Vec<_> = route.lines().map(|line| line.strip_prefix("# ").expect("a comment")).collect();
    let file = format!("{before}{}\n\n{after}", route.join("\n"));
    let config = Config::parse(&file, std::iter::empty()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.routes.len(), 1);

    let secret = receiver["environment"]["WEBHOOK_SECRET"].as_str().expect("a secret");
    assert!(route.iter().any(|line| line.contains(secret)), "the same secret at both ends");
    let port = texts(&receiver["command"]).last().copied().expect("a port");
    assert!(route.iter().any(|line| line.contains(&format!("http://receiver:{port}/"))));
}

#[test]
fn the_broker_advertises_the_addresses_that_clients_use() {
    let services = services();
    let kafka: BTreeMap<_, _> = environment(&services["kafka"]).into_iter().collect();
    let config: toml::Table = text("deploy/headwater.toml").parse().expect("TOML");
    let brokers = config["source"]["brokers"].as_str().expect("brokers");
    assert_eq!(config["sinks"]["kafka"]["brokers"].as_str(), Some(brokers));
    let ui: BTreeMap<_, _> = environment(&services["kafka-ui"]).into_iter().collect();
    assert_eq!(ui["KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS"], brokers);

    let routes: Vec<_> = kafka["KAFKA_LISTENERS"].split(',').collect();
    let advertised: BTreeSet<_> = kafka["KAFKA_ADVERTISED_LISTENERS"].split(',').collect();
    let port = brokers.rsplit_once(':').expect("a port").1;
    assert!(advertised.contains(format!("BROKER://{brokers}").as_str()), "{advertised:?}");
    assert!(routes.contains(&format!("BROKER://:{port}").as_str()), "{routes:?}");
    let [published] = texts(&services["kafka"]["ports"])[..] else { panic!("one port") };
    let (outside, inside) = published.rsplit_once(':').expect("a port");
    assert!(advertised.contains(format!("HOST://{outside}").as_str()), "{advertised:?}");
    assert!(routes.contains(&format!("HOST://:{inside}").as_str()), "{routes:?}");

    // The producer's health check looks for a connection to that port, which /proc/net/tcp lists in hexadecimal.
    let check = texts(&services["producer"]["healthcheck"]["test"]).join(" ");
    assert!(check.contains(&format!(":{:04X} 01 ", port.parse::<u16>().expect("a port"))), "{check}");
}

/// The environment variables that third-party images read, by service; a misspelt name would be silently ignored.
const READ_BY_IMAGES: [(&str, &[&str]); 5] = [
    ("receiver", &["WEBHOOK_SECRET"]),
    (
        "kafka",
        &[
            "KAFKA_ADVERTISED_LISTENERS",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE",
            "KAFKA_CONTROLLER_LISTENER_NAMES",
            "KAFKA_CONTROLLER_QUORUM_VOTERS",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS",
            "KAFKA_INTER_BROKER_LISTENER_NAME",
            "KAFKA_LISTENERS",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
            "KAFKA_LOG_DIRS",
            "KAFKA_LOG_RETENTION_HOURS",
            "KAFKA_NODE_ID",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR",
            "KAFKA_PROCESS_ROLES",
            "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR",
            "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR",
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR",
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR",
        ],
    ),
    ("kafka-ui", &["KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS", "KAFKA_CLUSTERS_0_NAME"]),
    // READER_PASSWORD is read by mounted files: deploy/postgres/reader.sh and Grafana's data source.
    ("postgres", &["POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_USER", "READER_PASSWORD"]),
    (
        "grafana",
        &[
            "GF_ANALYTICS_CHECK_FOR_UPDATES",
            "GF_ANALYTICS_REPORTING_ENABLED",
            "GF_AUTH_ANONYMOUS_ENABLED",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH",
            "GF_SECURITY_ADMIN_PASSWORD",
            "READER_PASSWORD",
        ],
    ),
];

#[test]
fn every_environment_variable_is_read_by_something() {
    let read_by_images = BTreeMap::from(READ_BY_IMAGES);
    for (name, service) in &services() {
        let queried = RefCell::new(BTreeSet::new());
        let command = args::parse(["run".into(), "a.toml".into()], |name| {
            queried.borrow_mut().insert(name.to_owned());
            None
        });
        assert!(matches!(command, Ok(Command::Run(_))));
        for (variable, value) in environment(service) {
            if service["image"] == OWN_IMAGE {
                let overrides = variable.starts_with("HEADWATER__");
                assert!(overrides || queried.borrow().contains(&variable), "{name}: {variable}");
            } else {
                let read =
                    read_by_images.get(name.as_str()).is_some_and(|read| read.contains(&variable.as_str()));
                assert!(read, "{name}: {variable}={value}");
            }
        }
    }
}

#[test]
fn the_password_of_the_database_is_the_same_at_both_ends() {
    let services = services();
    let password = services["postgres"]["environment"]["POSTGRES_PASSWORD"].as_str().expect("a password");
    let url = services["engine"]["environment"]["HEADWATER__SINKS__POSTGRES__URL"].as_str().expect("a URL");
    assert_eq!(url, format!("postgres://headwater:{password}@postgres/headwater"));
}
