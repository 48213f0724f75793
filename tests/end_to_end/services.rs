//! Where Kafka, PostgreSQL and Redis are: those that all tests share, or a test's own, which it may disturb.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::common::{root, succeed};
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
    proxies: [Proxy; 3],
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
        let proxies: [Proxy; 3] = std::array::from_fn(|_| Proxy::start());
        let mut up = Command::new(root().join("tests/services/up"));
        up.env("HEADWATER_KAFKA_PROXY", proxies[Service::Kafka as usize].address().port().to_string());
        // What it starts goes on, and must not hold our pipe open.
        let output = up.stderr(Stdio::inherit()).output().expect("started");
        assert!(output.status.success(), "services: {}", output.status);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let variables: BTreeMap<_, _> =
            text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('=')).collect();
        let of =
            |name: &str| address(name, |variable| variables.get(variable).map(|&value| value.to_owned()));
        let dir = PathBuf::from(variables["HEADWATER_SERVICES_DIR"]);
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

    fn mine(&self) -> &Own {
        self.own.as_ref().expect("what others use is not disturbed")
    }

    /// The proxy before a service.
    pub fn proxy(&self, service: Service) -> &Proxy {
        &self.mine().proxies[service as usize]
    }

    /// The address of Kafka that a run is given.
    pub fn kafka_of_run(&self) -> String {
        match &self.own {
            Some(_) => self.proxy(Service::Kafka).address().to_string(),
            None => self.kafka.clone(),
        }
    }

    /// What a run is given for the URL of another service.
    pub fn of_run(&self, service: Service, url: &str) -> String {
        let (begin, end) = host(url);
        match &self.own {
            Some(_) => format!("{}{}{}", &url[..begin], self.proxy(service).address(), &url[end..]),
            None => url.to_owned(),
        }
    }

    /// Kills a service, as `kill -9` does, or starts it again.
    pub fn control(&self, action: &str, service: Service) {
        let mut control = Command::new(root().join("tests/services/control"));
        succeed(
            control
                .args([action, service.name()])
                .arg(&self.mine().dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(Own { dir, .. }) = &self.own {
            succeed(Command::new(root().join("tests/services/down")).arg(dir));
        }
    }
}
