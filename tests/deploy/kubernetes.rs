//! Tests of the Kubernetes manifests in deploy/kubernetes, which deploy/helm/check renders from the Helm chart: they fit
//! the program, the image, the alerts and each other. The check, which needs Helm, holds that they are up to date.

use std::collections::{BTreeMap, BTreeSet};

use headwater::cli::args;
use headwater::cli::command::{Command, RunArgs};
use headwater::cli::hosts::{ProcessName, Service};
use headwater::config::Config;
use serde::Deserialize;
use serde_json::Value;

use crate::image::is_pinned;
use crate::{entries, text, texts, yaml};

const CHART: &str = "deploy/helm/headwater";
const SECRETS: &str = "/etc/headwater/secrets";
const CONFIG: &str = "/etc/headwater/config/headwater.toml";

/// A rendered manifest: its name, and its objects by kind.
struct Manifest {
    name: &'static str,
    objects: BTreeMap<String, Value>,
}

impl Manifest {
    fn read(name: &'static str) -> Manifest {
        let mut objects = BTreeMap::new();
        for object in objects_of(&format!("deploy/kubernetes/{name}.yaml")) {
            let kind = object["kind"].as_str().expect("a kind").to_owned();
            assert!(objects.insert(kind.clone(), object).is_none(), "{name}: two objects of kind {kind}");
        }
        Manifest { name, objects }
    }

    fn all() -> [Manifest; 3] {
        ["single", "cluster", "dev"].map(Manifest::read)
    }

    fn object(&self, kind: &str) -> &Value {
        self.objects.get(kind).unwrap_or_else(|| panic!("{}: no {kind}", self.name))
    }

    fn pod(&self) -> &Value {
        &self.object("StatefulSet")["spec"]["template"]["spec"]
    }

    fn engine(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn data(&self, key: &str) -> &str {
        self.object("ConfigMap")["data"][key].as_str().expect("a text")
    }

    /// Returns the environment of the process with an index.
    fn environment(&self, process: usize) -> BTreeMap<String, String> {
        let variables = self.engine()["env"].as_array().expect("a list");
        let value = |variable: &Value| match variable["value"].as_str() {
            Some(value) => value.to_owned(),
            None => {
                let field = &variable["valueFrom"]["fieldRef"]["fieldPath"];
                assert_eq!(field, "metadata.name");
                format!(
                    "{}-{process}",
                    self.object("StatefulSet")["metadata"]["name"].as_str().expect("a name")
                )
            }
        };
        let named = |variable: &Value| variable["name"].as_str().expect("a name").to_owned();
        variables.iter().map(|variable| (named(variable), value(variable))).collect()
    }

    /// Parses the arguments of the process with an index.
    fn run_args(&self, process: usize) -> RunArgs {
        let environment = self.environment(process);
        let words = texts(&self.engine()["args"]).into_iter().map(Into::into);
        match args::parse(words, |name| environment.get(name).cloned()) {
            Ok(Command::Run(args)) => args,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// Parses the configuration. The files of the Secret are those of a temporary folder.
    fn config(&self) -> Config {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("UTF-8");
        for key in self.secret_keys() {
            std::fs::write(folder.path().join(key), "a secret of 16 bytes or more\n").expect("writable");
        }
        let environment = self.environment(0).into_iter();
        let environment = environment.map(|(name, value)| (name, value.replace(SECRETS, path)));
        Config::parse(&self.data("headwater.toml").replace(SECRETS, path), environment)
            .unwrap_or_else(|errors| panic!("{}: {errors}", self.name))
    }

    /// Returns the keys of the Secret: those that the manifest has, or those that its comment tells to create.
    fn secret_keys(&self) -> BTreeSet<String> {
        if let Some(secret) = self.objects.get("Secret") {
            return entries(&secret["data"]).map(|(key, _)| key.to_owned()).collect();
        }
        let name = self.secret_name();
        let file = text(&format!("deploy/kubernetes/{}.yaml", self.name));
        let comment: Vec<_> = file.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(comment.iter().any(|line| line.contains(&format!("create secret generic {name}"))));
        let words = comment.iter().flat_map(|line| line.split_whitespace());
        let keys = words
            .filter_map(|word| word.strip_prefix("--from-file=").or(word.strip_prefix("--from-literal=")));
        keys.map(|key| key.split_once('=').expect("KEY=VALUE").0.to_owned()).collect()
    }

    fn secret_name(&self) -> &str {
        let volumes = self.pod()["volumes"].as_array().expect("volumes");
        let secret = volumes.iter().find_map(|volume| volume["secret"]["secretName"].as_str());
        secret.expect("a volume of the Secret")
    }
}

/// Returns the objects of a file with several documents.
fn objects_of(relative: &str) -> Vec<Value> {
    let file = text(relative);
    let documents = serde_yaml_ng::Deserializer::from_str(&file);
    let object = |document| {
        let value =
            serde_yaml_ng::Value::deserialize(document).unwrap_or_else(|error| panic!("{relative}: {error}"));
        serde_json::to_value(value).unwrap_or_else(|error| panic!("{relative}: {error}"))
    };
    documents.map(object).filter(|object| !object.is_null()).collect()
}

#[test]
fn arguments_and_configuration_are_parsed_as_intended() {
    for manifest in Manifest::all() {
        let name = manifest.name;
        let config = manifest.config();
        assert!(config.ledger.is_some() && config.checkpoint.is_some(), "{name}: a restart loses results");
        let mounts = manifest.engine()["volumeMounts"].as_array().expect("a list");
        let is_mounted = |path: &str| mounts.iter().any(|mount| mount["mountPath"] == path);
        assert!(is_mounted(SECRETS) && is_mounted(CONFIG.rsplit_once('/').expect("a folder").0), "{name}");
        for key in manifest.secret_keys() {
            let file = format!("{SECRETS}/{key}");
            let is_used = manifest.data("headwater.toml").contains(&file)
                || manifest.environment(0).values().any(|value| *value == file);
            assert!(is_used, "{name}: nothing reads {file}");
        }
        assert_eq!(config.effective().contains("/var/lib/headwater"), name != "cluster");
        assert_eq!(manifest.run_args(0).config.to_str(), Some(CONFIG), "{name}");
    }
}

#[test]
fn each_pod_of_a_cluster_follows_the_service() {
    for manifest in Manifest::all() {
        let (name, set) = (manifest.name, manifest.object("StatefulSet"));
        let replicas = set["spec"]["replicas"].as_u64().expect("a number") as usize;
        assert_eq!(replicas > 1, name == "cluster");
        let (pods, service) = (&set["metadata"]["name"], &manifest.object("Service")["metadata"]["name"]);
        assert_eq!(set["spec"]["serviceName"], *service, "{name}");
        for process in 0..replicas {
            let args = manifest.run_args(process);
            assert_eq!(args.is_elastic(), replicas > 1, "{name}");
            let Some(peers) = args.peers else { continue };
            let set = pods.as_str().expect("a name").to_owned();
            assert_eq!(args.process, ProcessName::Pod { set, ordinal: process }, "{name}");
            assert_eq!(
                peers,
                Service { name: service.as_str().expect("a name").to_owned(), port: 2101 },
                "{name}"
            );
            let ports = manifest.engine()["ports"].as_array().expect("a list");
            assert!(
                ports.iter().any(|port| port["name"] == "cluster" && port["containerPort"] == 2101),
                "{name}"
            );
        }
    }
}

#[test]
fn processes_of_a_cluster_find_each_other_before_they_are_ready() {
    for manifest in Manifest::all() {
        let (name, service) = (manifest.name, &manifest.object("Service")["spec"]);
        assert_eq!(service["clusterIP"], "None", "{name}");
        assert_eq!(service["publishNotReadyAddresses"], true, "{name}");
        let set = &manifest.object("StatefulSet")["spec"];
        assert_eq!(set["podManagementPolicy"], "Parallel", "{name}");
        let strategy = if name == "cluster" { "OnDelete" } else { "RollingUpdate" };
        assert_eq!(set["updateStrategy"]["type"], strategy, "{name}");
        let policy = &manifest.object("NetworkPolicy")["spec"]["ingress"];
        let cluster =
            policy.as_array().into_iter().flatten().find(|rule| rule["ports"][0]["port"] == "cluster");
        let cluster = cluster.expect("a rule for the cluster's port");
        assert_eq!(cluster["ports"][1]["port"], "http", "{name}: processes ask each other about keys");
        let from = &cluster["from"];
        assert_eq!(from.as_array().map(Vec::len), Some(1), "{name}");
        assert_eq!(from[0]["podSelector"], set["selector"], "{name}: other pods reach the cluster's port");
    }
}

#[test]
fn every_selector_matches_the_pods() {
    for manifest in Manifest::all() {
        let set = &manifest.object("StatefulSet")["spec"];
        let labels = &set["template"]["metadata"]["labels"];
        let selectors = [
            &set["selector"]["matchLabels"],
            &manifest.object("Service")["spec"]["selector"],
            &manifest.object("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            &manifest.object("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
            &manifest.pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        ];
        for selector in selectors {
            assert!(entries(selector).count() > 0, "{}", manifest.name);
            assert!(
                entries(selector).all(|(key, value)| labels[key] == *value),
                "{}: {selector}",
                manifest.name
            );
        }
    }
}

#[test]
fn a_pod_is_killed_only_after_the_shutdown_timeout() {
    for manifest in Manifest::all() {
        let grace = manifest.pod()["terminationGracePeriodSeconds"].as_u64().expect("a number");
        let timeout = manifest.config().shutdown_timeout.as_secs();
        assert!(grace >= timeout + 5, "{}: {grace} s, and the run takes up to {timeout} s", manifest.name);
    }
}

#[test]
fn probes_ask_the_port_on_which_the_program_listens() {
    for manifest in Manifest::all() {
        let (name, engine) = (manifest.name, manifest.engine());
        let listen = manifest.config().http.expect("an address for HTTP").listen;
        assert!(listen.ip().is_unspecified(), "{name}: probes cannot reach {listen}");
        let port = engine["ports"].as_array().into_iter().flatten().find(|port| port["name"] == "http");
        assert_eq!(port.expect("a port")["containerPort"], listen.port(), "{name}");
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let get = &engine[probe]["httpGet"];
            assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("http")), "{name}");
        }
        // The longest pause of `--restart` is 60 s.
        let number = |key: &str| engine["livenessProbe"][key].as_u64().expect("a number");
        assert!(number("periodSeconds") * number("failureThreshold") > 60, "{name}");
    }
}

#[test]
fn pods_have_no_rights_that_the_program_does_not_need() {
    let dockerfile = text("deploy/Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    for manifest in Manifest::all() {
        let (name, pod) = (manifest.name, manifest.pod());
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{name}");
        assert_eq!(format!("{}:{}", context["runAsUser"], context["runAsGroup"]), user, "{name}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(manifest.object("ServiceAccount")["automountServiceAccountToken"], false, "{name}");
        let containers = ["initContainers", "containers"].into_iter().flat_map(|key| pod[key].as_array());
        for container in containers.flatten() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            let image = container["image"].as_str().expect("an image");
            assert!(is_pinned(image), "{name}: {image}");
            assert_eq!(image, concat!("headwater:", env!("CARGO_PKG_VERSION")), "{name}");
        }
    }
    let chart = yaml(&format!("{CHART}/Chart.yaml"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn rules_are_those_of_the_alerts_file() {
    let alerts = yaml("deploy/prometheus/alerts.yml");
    let how = "deploy/helm/check --update brings it up to date";
    let cluster = Manifest::read("cluster");
    assert_eq!(cluster.object("PrometheusRule")["spec"], alerts, "deploy/kubernetes/cluster.yaml: {how}");
    let copy = format!("{CHART}/files/alerts.yml");
    assert!(text(&copy) == text("deploy/prometheus/alerts.yml"), "{copy}: {how}");

    // They ask for the job of docker-compose.yml.
    let job = &yaml("deploy/prometheus/prometheus.yml")["scrape_configs"][0]["job_name"];
    let endpoint = &cluster.object("ServiceMonitor")["spec"]["endpoints"][0];
    assert_eq!(endpoint["relabelings"][0]["targetLabel"], "job");
    assert_eq!(endpoint["relabelings"][0]["replacement"], *job);
    let credentials = &endpoint["authorization"]["credentials"];
    assert_eq!(credentials["name"], cluster.secret_name());
    let file = format!("{SECRETS}/{}", credentials["key"].as_str().expect("a key"));
    assert_eq!(cluster.environment(0)["HEADWATER__HTTP__TOKEN_FILE"], file);
}

#[test]
fn the_broker_for_trying_out_is_that_of_the_compose_file() {
    let [service, broker] = &objects_of("deploy/kubernetes/dev-kafka.yaml")[..] else {
        panic!("two objects")
    };
    let pod = &broker["spec"]["template"]["spec"];
    let compose = &yaml("docker-compose.yml")["services"]["kafka"];
    assert_eq!(pod["containers"][0]["image"], compose["image"]);
    let address = format!(
        "{}:{}",
        service["metadata"]["name"].as_str().expect("a name"),
        service["spec"]["ports"][0]["port"]
    );
    let dev = Manifest::read("dev");
    assert!(dev.data("headwater.toml").contains(&format!("brokers = \"{address}\"")), "{address}");
    let variables = pod["containers"][0]["env"].as_array().expect("a list");
    for variable in variables {
        let (name, value) = (variable["name"].as_str().expect("a name"), &variable["value"]);
        match name {
            "KAFKA_ADVERTISED_LISTENERS" => assert_eq!(*value, format!("BROKER://{address}")),
            // This broker has no listener for clients outside of Kubernetes.
            "KAFKA_CONTROLLER_QUORUM_VOTERS" | "KAFKA_LISTENERS" | "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP" => {
            }
            _ => assert_eq!(*value, compose["environment"][name], "{name}"),
        }
    }
}
