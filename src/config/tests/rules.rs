//! Fields, keys and rules of one's own: what is read, and each error with its place.

use headwater_dataflows::patterns::Bound;

use super::*;
use crate::pipeline::{By, ConditionPlan, SeverityPlan};

const HEAD: &str = "pipeline = \"p\"\n[source]\nkind = \"generator\"\n";

pub(in crate::config) fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse_without_sinks(&format!("{HEAD}{text}"), std::iter::empty())
        .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
}

/// Checks the errors of lines that follow three others.
#[track_caller]
pub(in crate::config) fn expect_errors(text: &str, expected: &[&str]) {
    assert_eq!(parse(text).map(drop).expect_err("errors"), expected, "{text}");
}

#[test]
fn a_rule_has_a_filter_a_condition_and_labels() {
    let config = parse(
        "[fields]\nevent_time = \"t\"\ncard = \"card\"\n[keys]\ncard = \"card\"\n[[rules]]\nid = \"big\"\nby = \"card\"\n\
         where = \"event.amount > 2.5\"\nsum = { of = \"amount\", at_least = \"0.5\", within = \"1h\" }\nsuppress = \"2d\"\n\
         severity = \"has(event.card) ? 'high' : 'low'\"\ndescription = \"much\"\n",
    )
    .expect("valid");
    let [rule] = &config.plan.rules[..] else { panic!("one rule") };
    assert_eq!((&*rule.id, rule.by.name(), rule.suppress_ms), ("big", "card", Some(172_800_000)));
    assert!(matches!(&rule.by, By::Space(space) if space.fields.len() == 1));
    assert!(matches!(rule.severity, SeverityPlan::Chosen(_)));
    let ConditionPlan::Sum { bound, within_ms, .. } = &rule.condition else { panic!("{:?}", rule.condition) };
    assert_eq!((*bound, *within_ms), (Bound::AtLeast(500_000), 3_600_000));
    assert_eq!(rule.reach_ms(), 172_800_000, "the suppression is longer");
    let settings: Vec<_> = rule.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    assert_eq!(
        settings,
        [
            "by = \"card\"",
            "where = \"event.amount > 2.5\"",
            "sum.within = \"1h\"",
            "sum.of = \"amount\"",
            "sum.at_least = \"0.5\"",
        ]
    );
}

#[test]
fn the_state_of_a_rule_depends_on_what_decides_which_events_match() {
    let state_id = |text: &str| {
        let text = format!("[[rules]]\nid = \"a\"\ncount = {{ at_least = 2, within = \"1m\" }}\n{text}");
        parse(&text).expect("valid").plan.rules[0].state_id
    };
    let plain = state_id("");
    for same in [
        "severity = \"high\"",
        "suppress = \"1m\"",
        "emit = \"final\"",
        "mode = \"shadow\"",
        "description = \"x\"",
    ] {
        assert_eq!(state_id(same), plain, "{same}");
    }
    for other in ["by = \"user\"", "where = \"event.amount > 2.5\""] {
        assert_ne!(state_id(other), plain, "{other}");
    }
}

#[test]
fn each_error_of_fields_names_its_place() {
    expect_errors(
        "[fields]\nevent_time = \"a..b\"\ncard = { pth = \"x\" }\nn = { path = \"x\", scale = 2 }\n\
         flag = { path = \"x\", type = \"boolean\", format = \"unix_s\" }\ntime = \"t\"\nX = \"t\"\n\
         amount = { path = \"a\", type = \"integer\" }\nplace = { lat = \"a\" }\nz = { path = \"x\", type = \"timestamp\", zone = \"UTC\" }\n",
        &[
            "line 5: fields.event_time: expected a path such as \"txn.id\" or \"a['b.c'][0]\" (a name is missing at byte 2), \
             got \"a..b\"",
            "line 6: fields.card: unknown key `pth`; known are path, const, type, format, zone, scale, not, required, lat, \
             lon",
            "line 7: fields.n: `scale` applies to the type decimal, not to string",
            "line 8: fields.flag: `format` and `zone` apply to the type timestamp, not to boolean",
            "line 9: fields.time: expected another name: this one is reserved",
            "line 10: fields.X: expected a name of at most 63 lower-case letters, digits and _ that begins with a letter",
            "line 11: fields.amount: `amount` has the type decimal; give another name to a field of type integer",
            "line 12: fields.place: expected both `lat` and `lon`",
            "line 13: fields.z: `zone` applies to a `format` with a strftime pattern",
        ],
    );
    expect_errors(
        "[fields]\nevent_id = \"id\"\n",
        &[
            "fields.event_time: is missing: name the path of the event's time, or `{ format = \"kafka\" }` for the record's \
           timestamp",
        ],
    );
}

#[test]
fn an_envelope_needs_fields() {
    let text = HEAD.replace("\"generator\"", "\"generator\"\nformat = \"debezium\"");
    let errors = Config::parse_without_sinks(&text, std::iter::empty()).map(drop).expect_err("an error");
    let expected = "fields: the format debezium needs a section [fields], which names the fields";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn each_error_of_keys_names_its_place() {
    expect_errors(
        "[keys]\nip = \"ipaddress\"\npair = [\"currency\", \"currency\"]\nuser = \"currency\"\nat = \"location\"\nnone_of = []\n",
        &[
            "line 5: keys.ip: there is no field \"ipaddress\"; did you mean \"ip_address\"?",
            "line 6: keys.pair: the field \"currency\" occurs twice",
            "line 7: keys.user: expected another name: this one is built in",
            "line 8: keys.at: the field \"location\" is a location, which is no key",
            "line 9: keys.none_of: expected a field, or a list of at most 8 fields that make the key together",
        ],
    );
}

#[test]
fn each_error_of_rules_names_its_place() {
    expect_errors(
        "[patterns.velocity_spike]\n[[rules]]\nid = \"velocity_spike\"\nby = \"crad\"\nwhere = \"event.amuont < 2.0\"\n\
         count = { at_least = 20, within = \"5m\" }\n[[rules]]\nid = \"c\"\nseverity = \"hihg\"\n\
         [[rules]]\nid = \"d\"\nabsence = { within = \"5m\" }\nseverity = \"event.amount > 3.0 ? 'high' : 'low'\"\n\
         [[rules]]\nid = \"e\"\nmatch = true\ncount = { at_least = 0, more_than = 3, within = \"5m\" }\n\
         [[rules]]\nid = \"f\"\ncount = { at_least = 0, more_than = 3, within = \"5m\" }\n\
         [[rules]]\nid = \"g\"\nsequence = { within = \"1m\", steps = [{ not = \"true\" }] }\n\
         [[rules]]\nid = \"h\"\naverage = { of = \"currency\", more_than = 3, within = \"5m\" }\n\
         [[rules]]\nid = \"j\"\nby = \"user\"\nwhere = \"key == 'ann'\"\nmatch = true\n\
         [[rules]]\nid = \"i\"\ndistinct = { at_least = 3, within = \"5m\" }\n",
        &[
            "line 6: rules[0].id: two rules have the id velocity_spike",
            "line 7: rules[0].by: expected \"key\" or a key of [keys]: \"user\", \"device\", got \"crad\"",
            "line 8: rules[0].where: column 7: unknown field amuont; did you mean amount?, in: event.amuont < 2.0",
            "line 11: rules[1].id: the rule needs a condition: one of match, count, sum, average, distinct, share, outlier, \
             travel, sequence, absence",
            "line 12: rules[1].severity: expected low, medium, high, critical or an expression of one, got \"hihg\"",
            "line 16: rules[2].severity: no event raises an absence, so its severity is one of low, medium, high and critical",
            "line 20: rules[3].count: a rule has one condition, and this one has `match` and `count`",
            "line 23: rules[4].count.at_least: expected either `at_least` or `more_than`",
            "line 26: rules[5].sequence.steps: expected 1 to 16 steps such as { where = \"…\", times = 1 }",
            "line 29: rules[6].average.of: column 1: expected a number, found a string, in: currency",
            "line 33: rules[7].where: column 1: key is the event's own key, and this rule groups by another; name its field, in: \
             key == 'ann'",
            "line 37: rules[8].distinct.of: is missing",
        ],
    );
}
