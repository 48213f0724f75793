use crate::config::Config;
use crate::outputs::Severity;
use crate::routes::{Label, TargetKind};

const BASE: &str = "pipeline = 'p'\nsource = { kind = 'generator' }\nledger = { kind = 'sqlite', path = 'l.db' }\n\
    [patterns.velocity_spike]\n";

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn parse(route: &str) -> Result<Config, String> {
    Config::parse(&format!("{BASE}[[routes]]\n{route}"), std::iter::empty())
        .map_err(|errors| errors.to_string())
}

#[test]
fn a_route_has_defaults_and_needs_no_sink() {
    let route = format!(
        "name = 'desk'\nto = {{ kind = 'webhook', url = 'http://hooks.example.com/T0/x', secret = '{SECRET}' }}"
    );
    let config = parse(&route).expect("valid");
    let [route] = &config.routes[..] else { panic!("one route") };
    assert_eq!((route.target.kind, route.give_up_after_ms), (TargetKind::Webhook, 86_400_000));
    assert!(route.filter.send_revoked && !route.grouping.is_stateful() && !route.target.http.allow_private);
    let effective = config.effective();
    assert!(effective.contains("routes[0].to.url = \"http://hooks.example.com/***\"\n"), "{effective}");
    assert!(effective.contains("routes[0].to.secret = \"***\"\n"), "{effective}");
    assert!(!format!("{effective}{config:?}").contains(&SECRET[6..]), "{config:?}");
    assert!(!format!("{effective}{config:?}").contains("/T0"), "{config:?}");
}

#[test]
fn the_keys_of_a_route_are_read() {
    let config = parse(
        "name = 'oncall'\nrules = ['velocity_spike']\nmin_severity = 'high'\nkeys = ['ann']\nwhere = \"alert.details.count > 5\"\ngroup_by = ['key', 'rule']\n\
         group_wait = '1s'\nrepeat_interval = '4h'\nsend_revoked = false\nallow_private = true\n\
         to = { kind = 'alertmanager', url = 'http://127.0.0.1:9093', headers = { authorization = 'Bearer x' } }",
    )
    .expect("valid");
    let route = &config.routes[0];
    assert_eq!(route.filter.min_severity, Some(Severity::High));
    let condition = route.filter.condition.as_ref().map(|condition| condition.source());
    assert_eq!(condition, Some("alert.details.count > 5"));
    assert_eq!((&route.grouping.by[..], route.grouping.wait_ms), (&[Label::Key, Label::Rule][..], 1000));
    assert_eq!(route.grouping.repeat_ms, Some(14_400_000));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(config.effective().contains("routes[0].to.headers.authorization = \"***\"\n"));
    let pagerduty = parse("name = 'x'\nto = { kind = 'pagerduty', routing_key = 'r' }");
    assert_eq!(pagerduty.is_ok(), cfg!(feature = "tls"), "{pagerduty:?}");
}

#[test]
fn errors_of_routes_name_the_key_and_a_way_on() {
    let webhook = |also: &str| {
        format!("{{ kind = 'webhook', url = 'http://example.com/', secret = '{SECRET}'{also} }}")
    };
    for (route, expected) in [
        ("name = 'x'".to_owned(), "routes[0].to: is missing: for example"),
        (format!("name = 'X'\nto = {}", webhook("")), "routes[0].name: expected at most 63"),
        (
            format!("name = 'x'\nwhere = 'alert.sevrity == 1'\nto = {}", webhook("")),
            "line 7: routes[0].where: column 7: unknown member sevrity of an alert; did you mean severity?, in: \
             alert.sevrity == 1",
        ),
        (format!("name = 'x'\ngroup_by = ['user']\nto = {}", webhook("")), "a list of some of"),
        (
            format!("name = 'x'\nto = {}", webhook(", routing_key = 'x'")),
            "routes[0].to.routing_key: unknown key",
        ),
        (format!("name = 'x'\nto = {}", webhook(", headers = { 'a b' = 'x' }")), "routes[0].to.headers.a b"),
        (format!("name = 'x'\nto = {}", webhook(", template_file = '/nowhere'")), "cannot read the file"),
        ("name = 'x'\nto = { kind = 'slack' }".to_owned(), "routes[0].to.url: is missing"),
        (
            "name = 'x'\nto = { kind = 'pagerduty', url = 'http://a/' }".to_owned(),
            "to.routing_key_file: is missing",
        ),
        (
            "name = 'x'\nto = { kind = 'slack', url = 'http://169.254.169.254/x' }".to_owned(),
            "`allow_private = true`",
        ),
        ("name = 'x'\nto = { kind = 'slack', url = 'example.com' }".to_owned(), "expected a URL such as"),
        (
            "name = 'x'\nto = { kind = 'webhook', url = 'http://a/', secret = 'abc' }".to_owned(),
            "openssl rand",
        ),
    ] {
        let message = parse(&route).expect_err(&route);
        assert!(message.contains(expected), "{message}");
    }
    let twice = format!("name = 'x'\nto = {0}\n[[routes]]\nname = 'x'\nto = {0}", webhook(""));
    assert!(parse(&twice).expect_err("twice").contains("two routes have the name x"));
    let without_ledger = format!("[[routes]]\nname = 'x'\nto = {}", webhook(""));
    let message = Config::parse(&without_ledger, std::iter::empty()).expect_err("no ledger").to_string();
    assert!(message.contains("routes need a [ledger]"), "{message}");
    let sink = format!("name = 'x'\nto = {}\n[sinks.routes]\nkind = 'sqlite'\npath = 'a.db'", webhook(""));
    assert!(parse(&sink).expect_err("a sink").contains("give this sink another name"));
    let unknown = parse(&format!("name = 'x'\nrules = ['velocity']\nto = {}", webhook(""))).expect("valid");
    assert!(unknown.warnings[0].to_string().contains("no rule has the name velocity; rules: velocity_spike"));
}
