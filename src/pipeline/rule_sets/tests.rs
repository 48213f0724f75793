//! The state that a changed rule keeps, and the time from which on its alerts are complete.

use headwater_dataflows::{Epoch, EventTime, Offset};

use super::*;
use crate::config::Config;

const BASE: &str = "pipeline = \"p\"\n[source]\nkind = \"generator\"\n";

fn rules(text: &str) -> Vec<RulePlan> {
    let text = format!("{BASE}{text}");
    Config::parse_without_sinks(&text, std::iter::empty()).expect("a valid configuration").plan.rules
}

fn rule(settings: &str) -> String {
    format!("[[rules]]\nid = \"r\"\n{settings}\n")
}

fn since(last_time: i64) -> Since {
    Since { epoch: Epoch(5), ends: vec![Offset(7)], last_time: EventTime(last_time) }
}

const COUNT: &str = "count = { at_least = 3, within = \"1s\" }";

/// Returns the rule that follows one with `before` by one with `now`, and whether it has the same state.
fn follow(before: &str, now: &str) -> (RulePlan, bool) {
    let first = RuleSetPlan::first(rules(&rule(before)));
    let mut next = first.followed_by(rules(&rule(now)), &since(1_000));
    let rule = next.rules.pop().expect("a rule");
    let keeps_state = rule.state_id == first.rules[0].state_id;
    (rule, keeps_state)
}

#[test]
fn an_unchanged_rule_stays_as_it_is() {
    let severe = format!("{COUNT}\nseverity = \"high\"\ndescription = \"x\"");
    for now in [COUNT, &severe, "count = { within = \"1s\", at_least = 3 }"] {
        let (rule, keeps_state) = follow(COUNT, now);
        assert_eq!((rule.revision, rule.complete, keeps_state), (1, Completeness::Always, true), "{now}");
    }
}

#[test]
fn an_easier_rule_keeps_state_and_stays_complete() {
    for now in ["count = { at_least = 2, within = \"1s\" }", "count = { at_least = 3, within = \"500ms\" }"] {
        let (rule, keeps_state) = follow(COUNT, now);
        assert_eq!((rule.revision, rule.complete, keeps_state), (2, Completeness::Always, true), "{now}");
    }
    let sum = |bound: &str| format!("sum = {{ of = \"amount\", {bound}, within = \"1s\" }}");
    let (rule, keeps_state) = follow(&sum("more_than = 5"), &sum("at_least = 9"));
    assert_eq!((rule.complete, keeps_state), (Completeness::Always, true), "all numbers are kept");
}

#[test]
fn a_rule_that_needs_more_is_complete_later() {
    for (now, from) in [
        ("count = { at_least = 4, within = \"1s\" }", 2_000),
        ("count = { at_least = 3, within = \"3s\" }", 4_000),
        ("count = { at_least = 2, within = \"3s\" }\nsuppress = \"5s\"", 6_000),
    ] {
        let (rule, keeps_state) = follow(COUNT, now);
        assert_eq!((rule.revision, rule.complete, keeps_state), (2, Completeness::From(from), true), "{now}");
    }
}

#[test]
fn another_filter_or_condition_begins_without_state() {
    let filtered = format!("where = \"event.amount > 1.0\"\n{COUNT}");
    let by_device = format!("by = \"device\"\n{COUNT}");
    for now in [
        filtered.as_str(),
        by_device.as_str(),
        "sequence = { within = \"1s\", steps = [{ where = \"true\" }] }",
    ] {
        let (rule, keeps_state) = follow(COUNT, now);
        assert_eq!(
            (rule.revision, rule.complete, keeps_state),
            (2, Completeness::From(2_000), false),
            "{now}"
        );
    }
    let (rule, _) = follow(COUNT, "outlier = { of = \"amount\" }");
    assert_eq!(rule.complete, Completeness::Since(1_000));
    let (rule, _) = follow(COUNT, "match = true");
    assert_eq!(rule.complete, Completeness::From(1_000));
}

/// An event that ends an absence takes back the alert that was expected, so that must be the same.
#[test]
fn a_changed_absence_begins_without_state() {
    let absence = |within: &str| format!("absence = {{ within = \"{within}\" }}");
    assert!(follow(&absence("1s"), &format!("{}\ndescription = \"x\"", absence("1s"))).1);
    assert!(!follow(&absence("1s"), &format!("{}\nseverity = \"high\"", absence("1s"))).1);
    assert!(!follow(&absence("1s"), &format!("{}\nmode = \"shadow\"", absence("1s"))).1);
    assert!(!follow(&absence("1s"), &absence("2s")).1);
    assert!(!follow(&absence("1s"), &format!("{}\nsuppress = \"9s\"", absence("1s"))).1);
}

#[test]
fn a_rule_that_comes_back_has_a_state_of_its_own() {
    let first = RuleSetPlan::first(rules(&rule(COUNT)));
    let without = first.followed_by(Vec::new(), &since(1));
    let again = without.followed_by(rules(&rule(COUNT)), &since(2));
    assert_eq!((without.version, again.version, again.rules[0].revision), (2, 3, 1));
    assert_ne!(again.rules[0].state_id, first.rules[0].state_id);
}

#[test]
fn a_set_is_read_from_its_text() {
    let text = format!("{}{}", rule(COUNT), rule("match = true").replace("\"r\"", "\"s\""));
    let first = RuleSetPlan::first(rules(&text));
    let severe = text.replace("at_least = 3", "at_least = 9");
    let next = first.followed_by(rules(&severe), &since(1_000));
    let config = Config::parse_without_sinks(&format!("{BASE}{text}"), std::iter::empty()).expect("valid");
    let compile = move |rules: &[&str]| config.rule_scope.compile(rules).map_err(|errors| errors.to_string());
    for set in [&first, &next] {
        let read = RuleSetPlan::of_text(&set.to_text(), &compile).expect("valid");
        assert_eq!(read.to_text(), set.to_text());
        let essence = |set: &RuleSetPlan| {
            let rules = set.rules.iter().map(|rule| (rule.id.clone(), rule.settings.clone(), rule.complete));
            (set.version, set.file, rules.collect::<Vec<_>>())
        };
        assert_eq!(essence(&read), essence(set));
    }
    assert!(first.has(&rules(&text)) && !next.has(&rules(&text)));
    assert!(RuleSetPlan::of_text("{}", &compile).is_err());
    let unknown = first.to_text().replace("within", "without");
    let error = RuleSetPlan::of_text(&unknown, &compile).expect_err("an unknown key");
    assert!(error.contains("rules[0].count.without"), "{error}");
}

#[test]
fn a_set_is_compiled_once_and_shares_unchanged_rules() {
    let config =
        Config::parse_without_sinks(&format!("{BASE}{}", rule(COUNT)), std::iter::empty()).expect("valid");
    let live = config.live_rules();
    let first = live.current();
    live.resume(&first, Vec::new());
    let bound = live.bind(rules(&rule("match = true")), Some(3), &since(9));
    assert_eq!((bound.version, bound.file, live.bound().version, live.current().version), (2, 3, 2, 1));
    let read = live.read(&bound.to_text()).expect("valid");
    assert!(Arc::ptr_eq(&read, &live.read(&bound.to_text()).expect("valid")));
    live.enter(&read);
    live.enter(&first);
    assert_eq!(live.current().version, 2, "an older set does not come into force again");
}

/// Of several sets that are bound to an epoch only the last comes into force.
#[test]
fn a_set_follows_the_one_before_its_epoch() {
    let live = LiveRules::of(rules(&rule(COUNT)));
    let first = live.bound();
    let bind = |text: &str, file, epoch| {
        let since = Since { epoch: Epoch(epoch), ..since(1_000) };
        live.bind(rules(text), file, &since)
    };
    assert_eq!(bind("", Some(5), 7).version, 2);
    let again = bind(&rule(COUNT), None, 7);
    assert_eq!((again.version, again.file, again.rules[0].state_id), (1, 5, first.rules[0].state_id));
    assert_eq!(bind("", None, 8).version, 2);
    let last = bind(&rule(COUNT), None, 9);
    assert_eq!((last.version, last.file), (3, 5));
    assert_ne!(last.rules[0].state_id, first.rules[0].state_id, "it was removed");
}
