//! The section `[otlp]`: the export of traces to an OpenTelemetry collector.

use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};

use super::routes;
use crate::client::Endpoint;
use crate::settings::{Diagnostics, Node, Section, millis, tree};

/// The settings of the export of traces.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    /// The address to which spans are sent.
    pub endpoint: Endpoint,
    /// Further headers of requests.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The name of the service in all spans.
    pub service_name: String,
    /// The share of the rounds whose spans are exported, from 0 to 1.
    pub sample_ratio: f64,
    /// The maximum time of a request.
    pub timeout: Duration,
}

/// The path of traces below the address of a collector.
const PATH: &str = "/v1/traces";

/// OpenTelemetry's variables, and the keys that they set if the section has none.
const VARIABLES: [(&str, &str); 2] =
    [("OTEL_EXPORTER_OTLP_ENDPOINT", "endpoint"), ("OTEL_SERVICE_NAME", "service_name")];

/// Adds the keys that OpenTelemetry's variables set, if the section exists. As their specification demands, an empty
/// variable counts as not set.
pub fn add_environment(tree: &mut tree::Item, environment: &[(String, String)]) {
    let tree::Node::Table(entries) = &mut tree.node else { return };
    let Some(tree::Node::Table(section)) = entries.get_mut("otlp").map(|item| &mut item.node) else { return };
    for (variable, key) in VARIABLES {
        let is_set = |(name, value): &&(String, String)| name == variable && !value.is_empty();
        if let Some((_, value)) = environment.iter().find(is_set) {
            section.entry(key.to_owned()).or_insert_with(|| tree::Item::of_variable(variable, value));
        }
    }
}

/// Reads the section.
pub fn read(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Option<OtlpConfig> {
    let endpoint = section.get_text("endpoint", diagnostics, |text| {
        let expected = || "the URL of a collector, such as \"http://localhost:4318\"".to_owned();
        text.filter(|text| !text.is_empty()).map(str::to_owned).ok_or_else(expected)
    });
    let endpoint = endpoint.and_then(|url| match Endpoint::parse(&of_traces(&url)) {
        Ok(endpoint) => Some(endpoint),
        Err(message) => {
            section.report_error("endpoint", message, diagnostics);
            None
        }
    });
    let service_name = section.text("service_name", diagnostics);
    let sample_ratio = section.get("sample_ratio", diagnostics, |node| {
        let ratio = match node {
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => None,
        };
        ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| "a number from 0 to 1".to_owned())
    });
    let timeout = section.duration("timeout", 1, diagnostics).map(millis);
    let headers = routes::read_headers(&mut section, diagnostics);
    if !cfg!(feature = "otlp") {
        let message = "this program was built without OpenTelemetry: build it with `--features otlp`, or remove the \
                       section `[otlp]`";
        section.report_error("endpoint", message, diagnostics);
    }
    section.end(diagnostics);
    Some(OtlpConfig {
        endpoint: endpoint?,
        headers,
        service_name: service_name?,
        sample_ratio: sample_ratio?,
        timeout: timeout?,
    })
}

/// Returns the address of traces at a collector.
fn of_traces(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with(PATH) { url.to_owned() } else { format!("{url}{PATH}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(section: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let text = format!(
            "pipeline = 'p'\nsource = {{ kind = 'generator' }}\nsinks.sqlite.path = 'p.db'\n{section}"
        );
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(&text, environment).map_err(|errors| errors.to_string())
    }

    #[test]
    fn traces_are_sent_below_the_address_of_the_collector() {
        for (url, expected) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("https://a.example/otlp", "https://a.example/otlp/v1/traces"),
            ("https://a.example/v1/traces", "https://a.example/v1/traces"),
        ] {
            assert_eq!(of_traces(url), expected);
        }
    }

    #[test]
    #[cfg(not(feature = "otlp"))]
    fn a_build_without_the_feature_refuses_the_section() {
        let message = parse("[otlp]", &[]).expect_err("refused");
        assert!(message.contains("otlp.endpoint") && message.contains("--features otlp"), "{message}");
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn the_variables_of_opentelemetry_apply_if_a_key_is_not_set() {
        let variables =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:1/x"), ("OTEL_SERVICE_NAME", "fraud")];
        let settings = |section, environment: &[_]| {
            let config = parse(section, environment).expect("valid");
            config.otlp.map(|otlp| (otlp.endpoint.to_string(), otlp.service_name))
        };
        let of = |endpoint: &str, name: &str| Some((endpoint.to_owned(), name.to_owned()));
        assert_eq!(settings("", &variables), None, "they enable nothing");
        assert_eq!(settings("[otlp]", &[]), of("http://localhost:4318", "headwater"));
        assert_eq!(
            settings("[otlp]", &[("OTEL_SERVICE_NAME", "")]),
            of("http://localhost:4318", "headwater")
        );
        assert_eq!(settings("[otlp]", &variables), of("http://collector:1", "fraud"));
        let both = settings("[otlp]\nendpoint = 'http://b:2'\nservice_name = 's'", &variables);
        assert_eq!(both, of("http://b:2", "s"));
        let message =
            parse("[otlp]", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]).expect_err("no URL");
        assert!(message.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: otlp.endpoint: "), "{message}");
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn headers_are_secret_and_the_ratio_is_a_share() {
        let config = parse("[otlp]\nsample_ratio = 0\nheaders = { authorization = 'Bearer xyz' }", &[]);
        let config = config.expect("valid");
        let otlp = config.otlp.as_ref().expect("the section");
        assert_eq!((otlp.headers.len(), otlp.sample_ratio), (1, 0.0));
        assert!(
            config.effective().contains("otlp.headers.authorization = \"***\""),
            "{}",
            config.effective()
        );
        assert!(!format!("{otlp:?}").contains("xyz"));
        let message = parse("[otlp]\nsample_ratio = 1.5", &[]).expect_err("too much");
        assert!(
            message.contains("line 5: otlp.sample_ratio") && message.contains("from 0 to 1"),
            "{message}"
        );
    }
}
