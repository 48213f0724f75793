//! Receivers and the requests that they get: a body rendered from a template, and headers.

use headwater_sinks::Secret;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde_json::{Map, json};

use super::alert::AlertChange;
use super::content::Content;
use super::signature::sign;
use crate::client::{Endpoint, HttpOptions};
use crate::json::rfc3339;

/// A kind of receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A webhook after the specification of Standard Webhooks.
    Webhook,
    /// An incoming webhook of Slack.
    Slack,
    /// PagerDuty's Events API v2.
    PagerDuty,
    /// Prometheus Alertmanager's API v2.
    Alertmanager,
}

impl TargetKind {
    /// All kinds, with their names.
    pub const ALL: [(&str, TargetKind); 4] = [
        ("webhook", TargetKind::Webhook),
        ("slack", TargetKind::Slack),
        ("pagerduty", TargetKind::PagerDuty),
        ("alertmanager", TargetKind::Alertmanager),
    ];

    /// Returns true if the receiver keeps a raised alert open until it is resolved.
    pub fn keeps_state(self) -> bool {
        matches!(self, TargetKind::PagerDuty | TargetKind::Alertmanager)
    }

    /// Returns the template of the body.
    fn template(self) -> &'static str {
        match self {
            TargetKind::Webhook => include_str!("templates/webhook.json.j2"),
            TargetKind::Slack => include_str!("templates/slack.json.j2"),
            TargetKind::PagerDuty => include_str!("templates/pagerduty.json.j2"),
            TargetKind::Alertmanager => include_str!("templates/alertmanager.json.j2"),
        }
    }
}

/// A receiver.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind of receiver.
    pub kind: TargetKind,
    /// The address.
    pub endpoint: Endpoint,
    /// The secret: the key of a webhook's signature, or the routing key of PagerDuty.
    pub secret: Option<Secret>,
    /// Further headers, whose values may be secret.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The template of the body, instead of that of the kind.
    pub template: Option<String>,
    /// The limits of a request.
    pub http: HttpOptions,
}

/// A request, except for its address.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The headers.
    pub headers: HeaderMap,
    /// The body: JSON.
    pub body: String,
}

/// The origin of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// The name of the route.
    pub route: &'a str,
}

impl Target {
    /// Renders and signs the request of a delivery that is tried at this time, in milliseconds since 1970.
    ///
    /// # Errors
    /// If the template fails, or its result is not JSON.
    pub fn payload(
        &self,
        origin: Origin<'_>,
        delivery_id: &str,
        content: &Content,
        now_ms: i64,
    ) -> Result<Payload, String> {
        let body = self.render(origin, delivery_id, content)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("headwater/", env!("CARGO_PKG_VERSION"))));
        if let (TargetKind::Webhook, Some(secret)) = (self.kind, &self.secret) {
            let seconds = now_ms.div_euclid(1000);
            let signature = sign(secret, delivery_id, seconds, &body)?;
            for (name, value) in [
                ("webhook-id", delivery_id),
                ("webhook-timestamp", &seconds.to_string()),
                ("webhook-signature", &signature),
            ] {
                let value =
                    HeaderValue::from_str(value).map_err(|error| format!("header {name}: {error}"))?;
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.extend(self.headers.iter().cloned());
        Ok(Payload { headers, body })
    }

    fn render(&self, origin: Origin<'_>, delivery_id: &str, content: &Content) -> Result<String, String> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Json);
        environment.add_filter("slack", escape_for_slack);
        environment.add_filter("pairs", pairs);
        let routing_key = match self.kind {
            TargetKind::PagerDuty => self.secret.as_ref().map(Secret::expose),
            _ => None,
        };
        let context = json!({
            "pipeline": origin.pipeline,
            "route": origin.route,
            "id": delivery_id,
            "dedup_key": content.dedup_key,
            "routing_key": routing_key,
            "status": content.status(),
            "severity": content.alerts.iter().map(|alert| alert.severity).max(),
            "summary": summary(content),
            "time": rfc3339(content.created_ms),
            "group": content.group,
            "active": content.active,
            "repeat": content.repeat,
            "alerts": content.alerts.iter().map(|alert| described(alert, content)).collect::<Vec<_>>(),
        });
        let source = self.template.as_deref().unwrap_or_else(|| self.kind.template());
        let rendered = environment
            .render_str(source, Serde(&context))
            .map_err(|error| format!("the template cannot be rendered: {error}"))?;
        let body: serde_json::Value = serde_json::from_str(&rendered)
            .map_err(|error| format!("the rendered template is not JSON: {error}"))?;
        Ok(body.to_string())
    }

    /// Checks that a sample of a delivery can be rendered and signed.
    ///
    /// # Errors
    /// If it cannot.
    pub fn check(&self) -> Result<(), String> {
        let alert = json!({
            "alert_id": "0123456789abcdef0123456789abcdef", "status": "raised", "rule": "velocity_spike",
            "rule_version": 1, "severity": "high", "key_kind": "user", "key": "user-1", "event_ids": ["event-1"],
            "event_time": rfc3339(0), "epoch": 1, "final": false, "details": { "count": 101 },
        });
        let alert: AlertChange = serde_json::from_value(alert).expect("the sample has all fields");
        let content = Content {
            group: Default::default(),
            dedup_key: alert.alert_id.clone(),
            active: 1,
            repeat: false,
            created_ms: 0,
            active_until_ms: 1000,
            alerts: vec![alert],
        };
        let origin = Origin { pipeline: "pipeline", route: "route" };
        self.payload(origin, &content.id(), &content, 0).map(drop)
    }
}

/// Returns an alert with its summary, and the time at which it ends or ended.
fn described(alert: &AlertChange, content: &Content) -> serde_json::Value {
    let mut described = serde_json::to_value(alert).expect("an alert encodes as JSON");
    let fields: &mut Map<_, _> = described.as_object_mut().expect("an alert is an object");
    fields.insert("summary".to_owned(), one(alert).into());
    let ends = rfc3339(if alert.is_raised() { content.active_until_ms } else { content.created_ms });
    // An end before the beginning would be refused. Both are RFC 3339 in UTC with the same digits.
    fields.insert("ends_at".to_owned(), ends.max(alert.event_time.clone()).into());
    described
}

fn one(alert: &AlertChange) -> String {
    let AlertChange { rule, key_kind, key, severity, .. } = alert;
    let what = if alert.is_raised() { severity.as_str() } else { "revoked" };
    format!("{what}: {rule} for {key_kind} {key}")
}

/// Returns one line about a delivery.
fn summary(content: &Content) -> String {
    match &content.alerts[..] {
        [only] => one(only),
        alerts => {
            let mut rules: Vec<_> = alerts.iter().map(|alert| alert.rule.as_str()).collect();
            rules.sort_unstable();
            rules.dedup();
            let group: String =
                content.group.iter().map(|(name, value)| format!(", {name} {value}")).collect();
            let what = if content.repeat { "alerts are still active" } else { "alerts changed" };
            format!("{} {what}, {} active: {}{group}", alerts.len(), content.active, rules.join(", "))
        }
    }
}

/// The most bytes of an escaped text in a message of Slack: two are below its limit of 3000 characters.
const MOST_BYTES: usize = 1400;

/// Escapes a text for Slack, so that a key cannot mention people or make links, and truncates it.
fn escape_for_slack(text: String) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if escaped.len() > MOST_BYTES {
            escaped.push('…');
            break;
        }
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Formats the fields of an object as `name value` in a line.
fn pairs(object: Value) -> Result<String, minijinja::Error> {
    let mut pairs = Vec::new();
    for name in object.try_iter()? {
        pairs.push(format!("{name} {}", object.get_item(&name)?));
    }
    Ok(pairs.join(", "))
}

#[cfg(test)]
mod tests;
