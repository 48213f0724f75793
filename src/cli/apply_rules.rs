//! `headwater rules apply`: sends the rules of a configuration to its run.

use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::rules::ApplyRulesArgs;
use super::{config_error, load, output, warn};
use crate::client::{Client, Endpoint, HttpOptions};
use crate::config::{Config, HttpConfig};

/// The limits of the request. The run answers within ten seconds.
const OPTIONS: HttpOptions = HttpOptions {
    allow_private: true,
    connect_timeout: Duration::from_secs(5),
    timeout: Duration::from_secs(15),
};

/// The maximum size of an answer, in bytes.
const MAX_BYTES: usize = 4 << 20;

/// Sends the rules of a configuration to its run, and prints what changes.
///
/// # Errors
/// If the configuration is wrong, the run cannot be reached, or it refuses the rules.
pub fn apply(args: &ApplyRulesArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    warn(&config);
    let http = config.http.as_ref();
    let Some(url) = args.url.clone().or_else(|| http.map(url_of)) else {
        let message = "the run has no HTTP server, which takes the rules: add [http], or change the rules with a stop and a \
                       start";
        return Err(config_error("http", message).into());
    };
    let change = send(&config, http, &url, args.dry_run)
        .with_context(|| format!("cannot apply the rules to the run of {}", config.plan.pipeline))?;
    Ok(output::report(args.json, || change.clone(), || text(&change, args.dry_run))?)
}

/// Returns the address of a server on this machine.
fn url_of(http: &HttpConfig) -> String {
    let scheme = if http.tls.is_some() { "https" } else { "http" };
    let mut address = http.listen;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    format!("{scheme}://{address}")
}

fn send(config: &Config, http: Option<&HttpConfig>, url: &str, dry_run: bool) -> anyhow::Result<Value> {
    let failed = anyhow::Error::msg;
    let endpoint = Endpoint::parse(&format!("{}/api/v1/rules", url.trim_end_matches('/')));
    let endpoint = endpoint.map_err(failed).with_context(|| format!("--url {url}"))?;
    let client = match http.and_then(|http| http.peer_ca_file.as_ref()) {
        Some(file) => Client::with_authorities(file),
        None => Client::new(),
    };
    let client = client.map_err(failed)?;
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    if let Some(token) = http.and_then(|http| http.token.as_ref()) {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).context("http.token")?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let rules: Vec<_> = config.plan.rules.iter().map(|rule| &*rule.text).collect();
    let body = json!({ "rules": rules, "settings": config.semantics(), "dry_run": dry_run }).to_string();
    let request = endpoint.request(Method::PUT, headers, body).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sent = runtime.block_on(client.send(&endpoint, OPTIONS, request, read));
    let (status, body) = sent.with_context(|| format!("at {endpoint}"))??;
    let answer: Value = serde_json::from_slice(&body)
        .with_context(|| format!("what answers at {endpoint} is not a run of Headwater"))?;
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let detail = answer["detail"].as_str().unwrap_or("the log of the run says why");
    Err(anyhow::anyhow!("{detail}"))
}

async fn read(response: hyper::Response<Incoming>) -> anyhow::Result<(StatusCode, Vec<u8>)> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?;
    Ok((status, body.to_bytes().into()))
}

fn text(change: &Value, dry_run: bool) -> String {
    let names = |key: &str| change[key].as_array().cloned().unwrap_or_default();
    let mut text = String::new();
    for rule in names("added") {
        text += &format!("added {}{}\n", rule["id"].as_str().unwrap_or_default(), complete(&rule));
    }
    for id in names("removed") {
        text += &format!("removed {}: what it has raised stays\n", id.as_str().unwrap_or_default());
    }
    for rule in names("changed") {
        let state = match rule["keeps_state"].as_bool() {
            Some(true) => "keeps its state",
            _ => "begins without state",
        };
        text += &format!("changed {}, {state}{}\n", rule["id"].as_str().unwrap_or_default(), complete(&rule));
    }
    text += &format!(
        "{} added, {} removed, {} changed, {} unchanged\n",
        names("added").len(),
        names("removed").len(),
        names("changed").len(),
        change["unchanged"]
    );
    text + &match (change["epoch"].as_u64(), dry_run) {
        (Some(epoch), _) => {
            format!("version {} is in force for events after epoch {epoch}\n", change["version"])
        }
        (None, true) => "nothing was changed\n".to_owned(),
        (None, false) => format!("version {} is in force already\n", change["version"]),
    }
}

/// Returns the events for which the alerts of a rule are complete.
fn complete(rule: &Value) -> String {
    if rule["waits"] == true {
        return ": reads its past first, and then enters as if it had always been there (`headwater status`)"
            .to_owned();
    }
    match (rule["complete_from"].as_str(), rule["knows_since"].as_str()) {
        (Some(from), _) => format!(": complete from {from} on"),
        (_, Some(since)) => format!(": knows events after {since}"),
        _ => String::new(),
    }
}
