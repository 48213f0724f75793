//! Where Kafka, PostgreSQL and Redis are: those that all tests share, or a test's own, which it may disturb.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::common::{root, succeed};
use crate::live::wait_for;
use crate::proxy::Proxy;

/// Services, as a test has them.
pub struct Services {
    /// Kafka's address.
    pub kafka: String,
    /// The address of a PostgreSQL server in which databases may be made and dropped.
    pub postgres: String,
    /// Redis's address.
    pub redis: String,
    own: Option<Own>,
}

struct Own {
    dir: PathBuf,
    /// One before each service, or none at all.
    proxies: Vec<Proxy>,
}

/// A service.
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

fn address(name: &str, of: impl Fn(&str) -> Option<String>) -> String {
    let variable = format!("HEADWATER_TEST_{name}");
    of(&variable).unwrap_or_else(|| panic!("{variable} is not set: scripts/test starts services and sets it"))
}

/// Starts services with `tests/services/up`; the variables that it prints.
fn up(command: &mut Command) -> BTreeMap<String, String> {
    // What it starts goes on, and must not hold our pipe open.
    let output = command.stderr(Stdio::inherit()).output().expect("started");
    assert!(output.status.success(), "services: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let variables = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The end of a URL's host and port, and where they begin.
fn host(url: &str) -> (usize, usize) {
    let begin =
        url.find('@').or_else(|| url.find("//").map(|at| at + 1)).expect("scheme://[user@]host:port/") + 1;
    (begin, begin + url[begin..].find('/').expect("a path"))
}

impl Services {
    /// Those that all tests share, and nobody disturbs.
    pub fn shared() -> Services {
        let of = |name| address(name, |variable| std::env::var(variable).ok());
        Services { kafka: of("KAFKA"), postgres: of("POSTGRES"), redis: of("REDIS"), own: None }
    }

    /// A test's own, with a proxy before each. They end with it.
    pub fn own() -> Services {
        let proxies: Vec<_> = (0..3).map(|_| Proxy::start()).collect();
        let port = proxies[Service::Kafka as usize].address().port().to_string();
        let variables = up(Command::new(root().join("tests/services/up")).env("HEADWATER_KAFKA_PROXY", port));
        let of = |name: &str| address(name, |variable| variables.get(variable).cloned());
        let dir = PathBuf::from(&variables["HEADWATER_SERVICES_DIR"]);
        let services = Services {
            kafka: of("KAFKA"),
            postgres: of("POSTGRES"),
            redis: of("REDIS"),
            own: Some(Own { dir, proxies }),
        };
        services.proxy(Service::Kafka).forward_to(&of("KAFKA_BEHIND"));
        for (service, url) in [(Service::Postgres, &services.postgres), (Service::Redis, &services.redis)] {
            let (begin, end) = host(url);
            services.proxy(service).forward_to(&url[begin..end]);
        }
        services
    }

    /// Three brokers of a test's own, and otherwise those that all tests share. The brokers end with it.
    pub fn three_brokers() -> Services {
        let variables = up(Command::new(root().join("tests/services/up")).arg("kafka3"));
        let shared = |name| address(name, |variable| std::env::var(variable).ok());
        let dir = PathBuf::from(&variables["HEADWATER_SERVICES_DIR"]);
        let services = Services {
            kafka: variables["HEADWATER_TEST_KAFKA3"].clone(),
            postgres: shared("POSTGRES"),
            redis: shared("REDIS"),
            own: Some(Own { dir, proxies: Vec::new() }),
        };
        // A broker may take requests a moment before the others know of it.
        let cluster = ClientConfig::new().set("bootstrap.servers", &services.kafka).create();
        let cluster: BaseConsumer = cluster.expect("a client");
        wait_for("three brokers", || {
            let metadata = cluster.fetch_metadata(None, Duration::from_secs(10)).ok()?;
            (metadata.brokers().len() == 3).then_some(())
        });
        services
    }

    fn mine(&self) -> &Own {
        self.own.as_ref().expect("what others use is not disturbed")
    }

    fn proxied(&self, service: Service) -> Option<&Proxy> {
        self.own.as_ref()?.proxies.get(service as usize)
    }

    /// The proxy before a service.
    pub fn proxy(&self, service: Service) -> &Proxy {
        self.proxied(service).expect("a proxy is before each service of its own")
    }

    /// The address of Kafka that a run is given.
    pub fn kafka_of_run(&self) -> String {
        match self.proxied(Service::Kafka) {
            Some(proxy) => proxy.address().to_string(),
            None => self.kafka.clone(),
        }
    }

    /// What a run is given for the URL of another service.
    pub fn of_run(&self, service: Service, url: &str) -> String {
        let (begin, end) = host(url);
        match self.proxied(service) {
            Some(proxy) => format!("{}{}{}", &url[..begin], proxy.address(), &url[end..]),
            None => url.to_owned(),
        }
    }

    /// Kills a service, as `kill -9` does, or starts it again.
    pub fn control(&self, action: &str, service: Service) {
        self.disturb(action, service.name());
    }

    /// The same of one of three brokers, by its id, which may also be stopped gently.
    pub fn control_broker(&self, action: &str, id: i32) {
        self.disturb(action, &format!("kafka-{id}"));
    }

    fn disturb(&self, action: &str, name: &str) {
        let mut control = Command::new(root().join("tests/services/control"));
        control.args([action, name]).arg(&self.mine().dir);
        succeed(control.stdout(Stdio::null()).stderr(Stdio::null()));
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(Own { dir, .. }) = &self.own {
            succeed(Command::new(root().join("tests/services/down")).arg(dir));
        }
    }
}
