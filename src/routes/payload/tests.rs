use super::super::alert::tests::change;
use super::super::content::tests::content;
use super::*;
use crate::outputs::Severity;

fn target(kind: TargetKind) -> Target {
    Target {
        kind,
        endpoint: Endpoint::parse("http://receiver/hook").expect("valid"),
        secret: Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()),
        headers: vec![(HeaderName::from_static("x-team"), HeaderValue::from_static("fraud"))],
        template: None,
        http: HttpOptions {
            allow_private: true,
            connect_timeout: std::time::Duration::from_secs(1),
            timeout: std::time::Duration::from_secs(1),
        },
    }
}

const ORIGIN: Origin<'_> = Origin { pipeline: "fraud", route: "desk" };

fn body(kind: TargetKind, content: &Content) -> serde_json::Value {
    let payload = target(kind).payload(ORIGIN, "id-1", content, 0).expect("rendered");
    serde_json::from_str(&payload.body).expect("JSON")
}

fn raised() -> Content {
    Content { active: 1, ..content(vec![change("a1", "raised", 7)]) }
}

fn revoked() -> Content {
    content(vec![change("a1", "revoked", 8)])
}

/// A group whose key would break JSON, mention everyone or make a link if it were not escaped.
fn group() -> Content {
    let hostile = AlertChange { key: "<!channel> \"&\n".to_owned(), ..change("a2", "revoked", 9) };
    let critical = AlertChange { severity: Severity::Critical, ..change("a1", "raised", 7) };
    Content {
        group: [("rule".to_owned(), "velocity_spike".to_owned())].into(),
        dedup_key: "5f".to_owned(),
        active: 4,
        ..content(vec![critical, hostile])
    }
}

#[test]
fn a_webhook_has_the_alerts_and_is_signed() {
    let mut alert = serde_json::to_value(change("a1", "raised", 7)).expect("JSON");
    alert["summary"] = json!("high: velocity_spike for user ann");
    alert["ends_at"] = json!("2026-03-02T10:00:01.000Z");
    let expected = json!({
        "type": "alerts.raised",
        "timestamp": "2026-03-01T10:00:01.000Z",
        "data": { "pipeline": "fraud", "route": "desk", "group": {}, "active": 1, "repeat": false, "alerts": [alert] },
    });
    assert_eq!(body(TargetKind::Webhook, &raised()), expected);
    assert_eq!(body(TargetKind::Webhook, &revoked())["type"], "alerts.revoked");

    let signed = |now_ms| target(TargetKind::Webhook).payload(ORIGIN, "a1:raised:7", &raised(), now_ms);
    let Payload { headers, body } = signed(1_614_265_330_500).expect("rendered");
    let header = |name: &str| headers[name].to_str().expect("text").to_owned();
    assert_eq!(
        (header("webhook-id").as_str(), header("webhook-timestamp").as_str()),
        ("a1:raised:7", "1614265330")
    );
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into();
    assert_eq!(Ok(header("webhook-signature")), sign(&secret, "a1:raised:7", 1_614_265_330, &body));
    assert_eq!((header("x-team").as_str(), header("content-type").as_str()), ("fraud", "application/json"));
}

#[test]
fn slack_gets_text_in_which_nothing_is_markup() {
    let expected = json!({
        "text": "high: velocity_spike for user ann",
        "blocks": [
            { "type": "section", "text": { "type": "mrkdwn", "text": "*high: velocity_spike for user ann*" } },
            { "type": "section", "text": { "type": "mrkdwn",
                "text": "high: velocity_spike for user ann\ncount 101, within_ms 3600000" } },
            { "type": "context", "elements": [{ "type": "mrkdwn", "text": "pipeline fraud, route desk" }] },
        ],
    });
    assert_eq!(body(TargetKind::Slack, &raised()), expected);
    let text = body(TargetKind::Slack, &group()).to_string();
    assert!(text.contains("&lt;!channel&gt;") && !text.contains("<!channel>"), "{text}");
    let many = Content { alerts: vec![change("a", "raised", 1); 30], ..group() };
    let body = body(TargetKind::Slack, &many);
    assert_eq!(body["blocks"].as_array().map(Vec::len), Some(22), "Slack accepts 50 blocks");
    assert_eq!(body["blocks"][21]["elements"][0]["text"], "pipeline fraud, route desk, and 10 more");
}

#[test]
fn pagerduty_resolves_what_was_revoked() {
    let triggered = body(TargetKind::PagerDuty, &raised());
    let mut expected = json!({
        "routing_key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "event_action": "trigger",
        "dedup_key": "a1",
        "client": "Headwater",
        "payload": {
            "summary": "high: velocity_spike for user ann",
            "source": "fraud",
            "severity": "error",
            "timestamp": "2026-03-01T10:00:00.000Z",
            "component": "ann",
            "class": "velocity_spike",
            "custom_details": { "active": 1, "alerts": [] },
        },
    });
    expected["payload"]["custom_details"]["alerts"] =
        triggered["payload"]["custom_details"]["alerts"].clone();
    assert_eq!(triggered, expected);
    let resolved = body(TargetKind::PagerDuty, &revoked());
    assert_eq!((&resolved["event_action"], &resolved["dedup_key"]), (&json!("resolve"), &json!("a1")));
    let grouped = body(TargetKind::PagerDuty, &group());
    assert_eq!(
        (&grouped["event_action"], &grouped["payload"]["severity"]),
        (&json!("trigger"), &json!("critical"))
    );
    assert_eq!(
        grouped["payload"]["summary"],
        "2 alerts changed, 4 active: velocity_spike, rule velocity_spike"
    );
}

#[test]
fn alertmanager_gets_the_end_of_each_alert() {
    let expected = json!([
        {
            "labels": {
                "alertname": "velocity_spike", "severity": "critical", "key_kind": "user", "key": "ann",
                "alert_id": "a1", "pipeline": "fraud",
            },
            "annotations": {
                "summary": "critical: velocity_spike for user ann", "details": "count 101, within_ms 3600000",
            },
            "startsAt": "2026-03-01T10:00:00.000Z",
            "endsAt": "2026-03-02T10:00:01.000Z",
        },
        {
            "labels": {
                "alertname": "velocity_spike", "severity": "high", "key_kind": "user", "key": "<!channel> \"&\n",
                "alert_id": "a2", "pipeline": "fraud",
            },
            "annotations": {
                "summary": "revoked: velocity_spike for user <!channel> \"&\n",
                "details": "count 101, within_ms 3600000",
            },
            "startsAt": "2026-03-01T10:00:00.000Z",
            "endsAt": "2026-03-01T10:00:01.000Z",
        },
    ]);
    assert_eq!(body(TargetKind::Alertmanager, &group()), expected);
    let mut early = revoked();
    early.created_ms = 0;
    assert_eq!(
        body(TargetKind::Alertmanager, &early)[0]["endsAt"],
        "2026-03-01T10:00:00.000Z",
        "an alert does not end before it starts"
    );
}

#[test]
fn a_template_of_ones_own_must_make_json() {
    let with = |template: &str| Target { template: Some(template.to_owned()), ..target(TargetKind::Slack) };
    let own = with("{\"text\": {{ alerts[0].key ~ \" in \" ~ route }}, \"n\": {{ alerts | length }}}");
    assert_eq!(own.check(), Ok(()));
    let payload = own.payload(ORIGIN, "x", &raised(), 0).expect("rendered");
    assert_eq!(payload.body, r#"{"n":1,"text":"ann in desk"}"#);
    let message = with("{{ alerts").check().expect_err("no template");
    assert!(message.starts_with("the template cannot be rendered"), "{message}");
    let message = with("text: {{ route }}").check().expect_err("no JSON");
    assert!(message.starts_with("the rendered template is not JSON"), "{message}");
}
