//! Each preset raises at the same events as its pattern, on random events.

use std::collections::BTreeMap;

use super::*;
use crate::config::Config;
use crate::outputs::Status;
use crate::pipeline::fixtures::typed;
use crate::pipeline::{VirtualRun, patterns};

/// A sequence of numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn parse(text: &str) -> Config {
    let text = format!("pipeline = \"p\"\n[source]\nkind = \"generator\"\n{text}");
    Config::parse_without_sinks(&text, std::iter::empty()).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Returns the text of the patterns with small numbers, so that each raises often.
fn small_patterns(random: &mut Random) -> String {
    let emit = ["immediate", "final"][random.below(2) as usize];
    let per_currency = random.below(2) == 1;
    let (more, seconds) = (1 + random.below(4), 5 + random.below(20));
    format!(
        "[patterns.velocity_spike]\nmore_than = {more}\nwithin = \"{seconds}s\"\nemit = \"{emit}\"\n\
         [patterns.rapid_fire_burst]\nat_least = {more}\nwithin = \"7500ms\"\nseverity = \"low\"\n\
         [patterns.merchant_diversity]\nat_least = 3\nwithin = \"{seconds}s\"\nemit = \"{emit}\"\n\
         [patterns.amount_anomaly]\nsigmas = 1.25\nhigh_sigmas = 2.0\nat_least = 4\nmin_sigma = 0.5\n\
         min_relative_sigma = 0.1\nper_currency = {per_currency}\nemit = \"{emit}\"\n\
         [patterns.impossible_travel]\nmore_than_km = 100.0\nmore_than_kmh = 1200.5\n"
    )
}

/// Returns the fields of an event of one of two users or a device.
fn random_fields(random: &mut Random) -> String {
    let mut fields = match random.below(3) {
        0 => "\"event_type\":\"iot_sensor\",\"user_id\":\"ann\",\"device_id\":\"d\"".to_owned(),
        1 => "\"event_type\":\"transaction\",\"user_id\":\"ann\"".to_owned(),
        _ => "\"event_type\":\"user_activity\",\"user_id\":\"bob\"".to_owned(),
    };
    if random.below(4) > 0 {
        let amount = if random.below(8) == 0 { 500 } else { 10 + random.below(5) };
        fields += &format!(",\"amount\":\"{amount}.{:02}\"", random.below(100));
    }
    if random.below(3) > 0 {
        fields += &format!(",\"currency\":\"{}\"", ["EUR", "USD"][random.below(2) as usize]);
    }
    if random.below(3) > 0 {
        fields += &format!(",\"merchant_id\":\"m{}\"", random.below(5));
    }
    if random.below(2) > 0 {
        fields += &format!(",\"location\":{{\"lat\":{},\"lon\":0}}", random.below(4));
    }
    fields
}

#[test]
fn each_preset_raises_at_the_same_events_as_its_pattern() {
    let mut raised: BTreeMap<String, usize> = BTreeMap::new();
    let mut revoked = 0;
    for seed in 0..24 {
        let mut random = Random(seed);
        let text = small_patterns(&mut random);
        let enabled = parse(&text).plan.patterns;
        let rules = patterns().map(|pattern| {
            let rule = preset(pattern, &enabled).expect("all are enabled");
            rule.replace(&format!("id = \"{pattern}\""), &format!("id = \"own_{pattern}\""))
        });
        let plan = parse(&(text.clone() + &rules.collect::<String>())).plan;
        assert_eq!(plan.rules.len(), 5);
        let (mut run, mut offset) = (VirtualRun::new(&plan), 0);
        let mut changes = Vec::new();
        for second in 0..60 {
            let arriving: Vec<_> = (0..random.below(4))
                .map(|_| {
                    offset += 1;
                    // Some events arrive out of order, and some too late.
                    let time = second - random.below(7) as i64 * i64::from(random.below(3) == 0);
                    typed(offset, time, &random_fields(&mut random))
                })
                .collect();
            changes.extend(run.arrive(arriving).alerts);
        }
        changes.extend(run.finish().alerts);
        let mut by_rule: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for change in &changes {
            let (alert, is_raised) = (&change.alert, matches!(change.status, Status::Raised));
            *raised.entry(alert.rule.to_string()).or_default() += usize::from(is_raised);
            revoked += usize::from(!is_raised);
            by_rule.entry(&alert.rule).or_default().push((
                change.epoch,
                alert.position,
                is_raised,
                alert.key.clone(),
                alert.event_ids.clone(),
                alert.severity,
            ));
        }
        by_rule.values_mut().for_each(|changes| changes.sort());
        for pattern in patterns() {
            let own = by_rule.get(&*format!("own_{pattern}"));
            assert_eq!(by_rule.get(pattern), own, "seed {seed}: {pattern}\n{text}");
        }
    }
    assert!(patterns().all(|pattern| raised.get(pattern).is_some_and(|&count| count > 20)), "{raised:?}");
    assert!(revoked > 20, "{revoked}");
}

#[test]
fn the_defaults_of_patterns_are_valid_rules() {
    let sections: String = patterns().map(|pattern| format!("[patterns.{pattern}]\n")).collect();
    let config = parse(&sections);
    let rules: String = patterns().filter_map(|pattern| preset(pattern, &config.plan.patterns)).collect();
    assert_eq!(parse(&rules).plan.rules.len(), 5);
    assert!(rules.contains("count = { more_than = 100, within = \"1h\" }\n"), "{rules}");
    assert!(preset("other", &config.plan.patterns).is_none());
}

#[test]
fn the_greatest_count_of_a_pattern_is_one_of_a_rule() {
    let config = parse("[patterns.velocity_spike]\nmore_than = 1000000\n");
    let rule = preset("velocity_spike", &config.plan.patterns).expect("enabled");
    assert_eq!(parse(&rule).plan.rules.len(), 1);
}
