//! The sections `[[routes]]`.

use std::collections::{BTreeMap, BTreeSet};

use headwater_sinks::Secret;
use hyper::header::{HeaderName, HeaderValue};

use super::{SEVERITIES, is_name};
use crate::cel::{AlertPredicate, compile_alert_predicate};
use crate::client::{Endpoint, HttpOptions, is_private};
use crate::routes::{AlertFilter, Grouping, Label, Route, SINK, Target, TargetKind, check_secret};
use crate::settings::{Diagnostics, Node, Section, millis, secrets};

/// The address of PagerDuty's Events API.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// The path of Alertmanager's API.
const ALERTMANAGER: &str = "/api/v2/alerts";

/// Reads the routes. `rules` are the names of the rules that can raise alerts.
pub(super) fn read(top: &mut Section<'_>, rules: &[&str], diagnostics: &mut Diagnostics) -> Vec<Route> {
    let sections = top.sections("routes", diagnostics);
    let mut names = BTreeSet::new();
    let routes: Vec<_> = sections
        .into_iter()
        .filter_map(|section| read_route(section, rules, &mut names, diagnostics))
        .collect();
    if top.has("routes") && !top.has("ledger") {
        let message = "routes need a [ledger], whose database also holds what they have not delivered yet";
        top.report_error("routes", message, diagnostics);
    }
    routes
}

/// Reports a sink with the name of the sink of routes.
pub(super) fn check_sinks(top: &Section<'_>, sinks: &super::SinksConfig, diagnostics: &mut Diagnostics) {
    if top.has("routes") && sinks.0.contains_key(SINK) {
        let message =
            format!("the name {SINK} belongs to the sink of [[routes]]: give this sink another name");
        top.report_error("sinks", message, diagnostics);
    }
}

fn read_route(
    mut section: Section<'_>,
    rules: &[&str],
    names: &mut BTreeSet<String>,
    diagnostics: &mut Diagnostics,
) -> Option<Route> {
    let name = section.text("name", diagnostics);
    if let Some(name) = &name {
        if !is_name(name, "-_") {
            section.report_error(
                "name",
                "expected at most 63 lower-case letters, digits, - and _",
                diagnostics,
            );
        }
        if !names.insert(name.clone()) {
            section.report_error("name", format!("two routes have the name {name}"), diagnostics);
        }
    }
    let filter = read_filter(&mut section, rules, diagnostics);
    let grouping = read_grouping(&mut section, diagnostics);
    let give_up_after_ms = section.duration("give_up_after", 1, diagnostics);
    let http = read_http(&mut section, diagnostics);
    let target = match section.section("to", diagnostics) {
        Some(to) => http.and_then(|http| read_target(to, http, diagnostics)),
        None => {
            let example =
                "is missing: for example `to = { kind = \"slack\", url_file = \"/run/secrets/slack\" }`";
            section.report_error("to", example, diagnostics);
            None
        }
    };
    section.end(diagnostics);
    Some(Route {
        name: name?,
        filter: filter?,
        grouping: grouping?,
        target: target?,
        give_up_after_ms: give_up_after_ms?,
    })
}

fn read_filter(
    section: &mut Section<'_>,
    rules: &[&str],
    diagnostics: &mut Diagnostics,
) -> Option<AlertFilter> {
    let wanted: Option<BTreeSet<String>> = section.list("rules", diagnostics).map(BTreeSet::from_iter);
    let keys = section.list("keys", diagnostics).map(BTreeSet::from_iter);
    for unknown in wanted.iter().flatten().filter(|name| !rules.contains(&name.as_str())) {
        let known = if rules.is_empty() { "none".to_owned() } else { rules.join(", ") };
        let message = format!("no rule has the name {unknown}; rules: {known}");
        section.warn("rules", message, diagnostics);
    }
    let min_severity = section.choice("min_severity", &SEVERITIES, diagnostics);
    let condition = read_condition(section, diagnostics);
    let send_revoked = section.bool("send_revoked", diagnostics);
    Some(AlertFilter { rules: wanted, min_severity, keys, condition, send_revoked: send_revoked? })
}

/// Reads the condition on alerts, if there is one without an error.
fn read_condition(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<AlertPredicate> {
    let text = section.text("where", diagnostics)?;
    let compiled = compile_alert_predicate(&text);
    compiled.map_err(|error| section.report_error("where", format!("{error}, in: {text}"), diagnostics)).ok()
}

fn read_grouping(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<Grouping> {
    let by = section.choices("group_by", &Label::ALL, diagnostics);
    let wait_ms = section.duration("group_wait", 0, diagnostics);
    let interval_ms = section.duration("group_interval", 0, diagnostics);
    let repeat_ms = section.duration("repeat_interval", 1000, diagnostics);
    let active_for_ms = section.duration("active_for", 1, diagnostics);
    if by.as_ref().is_some_and(Vec::is_empty) {
        for key in ["group_wait", "group_interval"].into_iter().filter(|key| section.has(key)) {
            section.warn(key, "has no effect without `group_by`", diagnostics);
        }
    }
    Some(Grouping {
        by: by?,
        wait_ms: wait_ms?,
        interval_ms: interval_ms?,
        repeat_ms,
        active_for_ms: active_for_ms?,
    })
}

fn read_http(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<HttpOptions> {
    let allow_private = section.bool("allow_private", diagnostics);
    let connect_timeout = section.duration("connect_timeout", 1, diagnostics).map(millis);
    let timeout = section.duration("timeout", 1, diagnostics).map(millis);
    Some(HttpOptions { allow_private: allow_private?, connect_timeout: connect_timeout?, timeout: timeout? })
}

fn read_target(mut to: Section<'_>, http: HttpOptions, diagnostics: &mut Diagnostics) -> Option<Target> {
    let kind = to.choice("kind", &TargetKind::ALL, diagnostics);
    let endpoint = read_endpoint(&mut to, kind, http, diagnostics);
    let key = match kind {
        Some(TargetKind::Webhook) => Some("secret"),
        Some(TargetKind::PagerDuty) => Some("routing_key"),
        _ => None,
    };
    let secret = key.and_then(|key| read_secret(&mut to, key, diagnostics));
    if let (Some(TargetKind::Webhook), Some(secret)) = (kind, &secret)
        && let Err(expected) = check_secret(secret)
    {
        let key = if to.has("secret") { "secret" } else { "secret_file" };
        to.report_error(key, expected, diagnostics);
        return None;
    }
    let template = read_template(&mut to, diagnostics);
    let headers = read_headers(&mut to, diagnostics);
    let (has_secret, has_template) = (key.is_none() || secret.is_some(), template.is_some());
    let at = if has_template { "template_file" } else { "kind" };
    let target = has_secret.then_some(()).and_then(|()| {
        Some(Target { kind: kind?, endpoint: endpoint?, secret, headers, template: template?, http })
    });
    if let Some(target) = &target
        && let Err(message) = target.check()
    {
        to.report_error(at, message, diagnostics);
    }
    to.end(diagnostics);
    target
}

fn read_endpoint(
    to: &mut Section<'_>,
    kind: Option<TargetKind>,
    http: HttpOptions,
    diagnostics: &mut Diagnostics,
) -> Option<Endpoint> {
    let is_given = to.has("url") || to.has("url_file");
    let (key, url) = match (secrets::secret(to, "url", diagnostics), kind) {
        (Some(given), _) => given,
        (None, Some(TargetKind::PagerDuty)) if !is_given => ("url".to_owned(), Secret::from(PAGERDUTY)),
        (None, _) => {
            if !is_given {
                to.report_missing("url", diagnostics);
            }
            return None;
        }
    };
    let endpoint = match Endpoint::parse(url.expose()) {
        Ok(endpoint) => endpoint,
        Err(message) => {
            to.report_error(&key, message, diagnostics);
            return None;
        }
    };
    if key == "url" {
        let display = Node::Text(format!("{endpoint:?}")).to_toml();
        diagnostics.effective.push((format!("{}{key}", to.path()), display));
    }
    if endpoint.literal().is_some_and(is_private) && !http.allow_private {
        let message = format!(
            "{endpoint} is an address of this machine or a private network: `allow_private = true` permits the route \
             to reach it"
        );
        to.report_error(&key, message, diagnostics);
        return None;
    }
    Some(if kind == Some(TargetKind::Alertmanager) {
        endpoint.with_default_path(ALERTMANAGER)
    } else {
        endpoint
    })
}

/// Reads a secret that this kind of receiver needs.
fn read_secret(to: &mut Section<'_>, key: &str, diagnostics: &mut Diagnostics) -> Option<Secret> {
    let is_given = to.has(key) || to.has(&format!("{key}_file"));
    let secret = secrets::secret(to, key, diagnostics);
    match &secret {
        Some((given, _)) if given == key => {
            diagnostics.effective.push((format!("{}{key}", to.path()), "\"***\"".to_owned()));
        }
        None if !is_given => to.report_missing(&format!("{key}_file"), diagnostics),
        _ => {}
    }
    secret.map(|(_, secret)| secret)
}

/// Reads the file of a template. Returns `Some(None)` if there is none, and `None` if an error was reported.
fn read_template(to: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<Option<String>> {
    if !to.has("template_file") {
        return Some(None);
    }
    let path = to.file("template_file", diagnostics)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(Some(text)),
        Err(error) => {
            to.report_error("template_file", format!("cannot read the file: {error}"), diagnostics);
            None
        }
    }
}

/// Reads the section `headers`: names and values, which may be secret.
pub fn read_headers(to: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Vec<(HeaderName, HeaderValue)> {
    let Some(mut section) = to.section("headers", diagnostics) else { return Vec::new() };
    let items: BTreeMap<String, _> = section.items().map(|(name, item)| (name.clone(), item)).collect();
    let mut headers = Vec::new();
    for (name, item) in items {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        let value = item.node.text().and_then(|text| HeaderValue::from_str(text).ok());
        match parsed.zip(value) {
            Some((header, mut value)) => {
                value.set_sensitive(true);
                diagnostics.effective.push((format!("{}{name}", section.path()), "\"***\"".to_owned()));
                headers.push((header, value));
            }
            None => section.report_error(
                &name,
                "expected the name of a header, and a text as its value",
                diagnostics,
            ),
        }
    }
    headers
}

#[cfg(test)]
mod tests;
