//! Kafka, PostgreSQL and Redis: shared by all tests, or owned by one test, which may inject faults into them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::common::{root, succeed};
use crate::live::wait_for;
use crate::proxy::Proxy;

/// The services that a test uses.
pub struct Services {
    /// The bootstrap servers of Kafka.
    pub kafka: String,
    /// The URL of a PostgreSQL server in which databases may be created and dropped.
    pub postgres: String,
    /// The URL of Redis.
    pub redis: String,
    own: Option<OwnedServices>,
}

struct OwnedServices {
    dir: PathBuf,
    /// One proxy in front of each service, or none at all.
    proxies: Vec<Proxy>,
}

/// The kind of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Kafka,
    Postgres,
    Redis,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Kafka => "kafka",
            Service::Postgres => "postgres",
            Service::Redis => "redis",
        }
    }
}

fn required_variable(name: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let variable = format!("HEADWATER_TEST_{name}");
    lookup(&variable)
        .unwrap_or_else(|| panic!("{variable} is not set: scripts/test starts services and sets it"))
}

/// Starts services with `tests/services/start_services` and returns the variables that it prints.
pub fn start_services(command: &mut Command) -> BTreeMap<String, String> {
    // The services outlive the script and must not keep our pipe open.
    let output = command.stderr(Stdio::inherit()).output().expect("started");
    assert!(output.status.success(), "services: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let variables = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Returns host and port of a URL.
fn address(url: &str) -> &str {
    let (begin, end) = host(url);
    &url[begin..end]
}

/// Returns the start and end of host and port in a URL.
fn host(url: &str) -> (usize, usize) {
    let begin =
        url.find('@').or_else(|| url.find("//").map(|at| at + 1)).expect("scheme://[user@]host:port/") + 1;
    (begin, begin + url[begin..].find('/').expect("a path"))
}

impl Services {
    /// Returns the services that all tests share, without fault injection.
    pub fn shared() -> Services {
        let of = |name| required_variable(name, |variable| std::env::var(variable).ok());
        Services { kafka: of("KAFKA"), postgres: of("POSTGRES"), redis: of("REDIS"), own: None }
    }

    /// Starts services for one test, each behind a proxy. They are stopped when this value is dropped.
    pub fn own() -> Services {
        let proxies: Vec<_> = (0..3).map(|_| Proxy::start()).collect();
        let port = proxies[Service::Kafka as usize].address().port().to_string();
        let variables =
            start_services(Command::new(root().join("tests/services/up")).env("HEADWATER_KAFKA_PROXY", port));
        let of = |name: &str| required_variable(name, |variable| variables.get(variable).cloned());
        let dir = PathBuf::from(&variables["HEADWATER_SERVICES_DIR"]);
        let services = Services {
            kafka: of("KAFKA"),
            postgres: of("POSTGRES"),
            redis: of("REDIS"),
            own: Some(OwnedServices { dir, proxies }),
        };
        services.proxy(Service::Kafka).forward_to(&of("KAFKA_BEHIND"));
        for (service, url) in [(Service::Postgres, &services.postgres), (Service::Redis, &services.redis)] {
            services.proxy(service).forward_to(address(url));
        }
        services
    }

    /// Starts three brokers for one test, and uses the shared PostgreSQL and Redis. The brokers are stopped when this
    /// value is dropped.
    pub fn three_brokers() -> Services {
        let variables = start_services(Command::new(root().join("tests/services/up")).arg("kafka3"));
        let shared = |name| required_variable(name, |variable| std::env::var(variable).ok());
        let dir = PathBuf::from(&variables["HEADWATER_SERVICES_DIR"]);
        let services = Services {
            kafka: variables["HEADWATER_TEST_KAFKA3"].clone(),
            postgres: shared("POSTGRES"),
            redis: shared("REDIS"),
            own: Some(OwnedServices { dir, proxies: Vec::new() }),
        };
        // A broker may accept requests a moment before it is in the metadata of the others.
        let cluster = ClientConfig::new().set("bootstrap.servers", &services.kafka).create();
        let cluster: BaseConsumer = cluster.expect("a client");
        wait_for("three brokers", || {
            let metadata = cluster.fetch_metadata(None, Duration::from_secs(10)).ok()?;
            (metadata.brokers().len() == 3).then_some(())
        });
        services
    }

    /// Returns the addresses of Kafka, PostgreSQL and Redis.
    pub fn addresses(&self) -> [String; 3] {
        [self.kafka.clone(), address(&self.postgres).to_owned(), address(&self.redis).to_owned()]
    }

    fn owned(&self) -> &OwnedServices {
        self.own.as_ref().expect("faults need services that the test owns")
    }

    fn proxied(&self, service: Service) -> Option<&Proxy> {
        self.own.as_ref()?.proxies.get(service as usize)
    }

    /// Returns the proxy in front of a service.
    pub fn proxy(&self, service: Service) -> &Proxy {
        self.proxied(service).expect("the service has no proxy")
    }

    /// Returns the bootstrap servers for a run: the proxy, if there is one.
    pub fn kafka_for_run(&self) -> String {
        match self.proxied(Service::Kafka) {
            Some(proxy) => proxy.address().to_string(),
            None => self.kafka.clone(),
        }
    }

    /// Returns the URL of a service for a run: with the address of the proxy, if there is one.
    pub fn url_for_run(&self, service: Service, url: &str) -> String {
        let (begin, end) = host(url);
        match self.proxied(service) {
            Some(proxy) => format!("{}{}{}", &url[..begin], proxy.address(), &url[end..]),
            None => url.to_owned(),
        }
    }

    /// Kills a service, like `kill -9`, or starts it again.
    pub fn control(&self, action: &str, service: Service) {
        self.run_control(action, service.name());
    }

    /// Kills, stops (SIGTERM) or starts one of three brokers, by its id.
    pub fn control_broker(&self, action: &str, id: i32) {
        self.run_control(action, &format!("kafka-{id}"));
    }

    fn run_control(&self, action: &str, name: &str) {
        let mut control = Command::new(root().join("tests/services/control"));
        control.args([action, name]).arg(&self.owned().dir);
        succeed(control.stdout(Stdio::null()).stderr(Stdio::null()));
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(OwnedServices { dir, .. }) = &self.own {
            succeed(Command::new(root().join("tests/services/down")).arg(dir));
        }
    }
}
