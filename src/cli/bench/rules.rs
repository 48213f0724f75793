//! `headwater bench rules`: compares rules of one's own with the five patterns, over the same events: rules of the same
//! meaning, many rules, and rules by several keys.

use std::sync::Arc;

use differential_dataflow::VecCollection;
use headwater_dataflows::{Admission, Admit, ControlStream, Emission, Epoch, Events, Keyed, Scan};
use serde_json::json;
use timely::dataflow::StreamVec;

use super::args::RulesBenchArgs;
use super::cost::{median, patterns, per_second};
use super::drive::{Drive, Spent, events, in_order, plan};
use crate::cli::output::{self, OutputError, Table, note};
use crate::event::Event;
use crate::outputs::Alert;
use crate::pipeline::{KeySpace, Plan, SpaceEvent, rule_set, rules, rules_by};
use crate::source::generator::GeneratorSettings;

/// The lag of the watermark behind the newest event, in milliseconds.
const BEHIND_MS: i64 = 5000;

/// The rules of the same meaning as the five patterns.
pub const SAME: &str = r#"
[[rules]]
id = "velocity"
count = { more_than = 100, within = "1h" }
[[rules]]
id = "burst"
count = { at_least = 10, within = "10s" }
[[rules]]
id = "diversity"
where = "has(event.merchant_id)"
distinct = { of = "merchant_id", at_least = 8, within = "1h" }
[[rules]]
id = "amount"
where = "has(event.amount)"
outlier = { of = "event.amount" }
[[rules]]
id = "travel"
travel = {}
"#;

/// The name of the form that others are compared with.
const PATTERNS: &str = "patterns";

/// A form that is compared with the patterns: its name, and a function that returns its keys and rules.
type Form = (&'static str, fn() -> String);

const FORMS: [Form; 6] = [
    ("five rules", || SAME.to_owned()),
    ("50 rules", || specific_rules(50)),
    ("200 rules", || specific_rules(200)),
    ("one key", || counting_rules(&["key"])),
    ("two keys", || counting_rules(&["key", "merchant"])),
    ("four keys", || counting_rules(&["key", "merchant", "session", "address"])),
];

/// Returns the names of the forms that can be chosen.
pub fn form_names() -> impl Iterator<Item = &'static str> {
    FORMS.iter().map(|(name, _)| *name)
}

/// Returns rules that each select the events of another merchant.
fn specific_rules(count: usize) -> String {
    (0..count).map(|n| specific(n, "key")).collect()
}

/// Returns keys, and a rule by each of the named ones.
fn counting_rules(names: &[&str]) -> String {
    let keys = "[keys]\nmerchant = \"merchant_id\"\nsession = \"session_id\"\naddress = \"ip_address\"\n";
    let rules: String = names.iter().enumerate().map(|(n, name)| counting(n, name)).collect();
    format!("{keys}{rules}")
}

/// Returns a rule for the events of one merchant.
fn specific(n: usize, by: &str) -> String {
    format!(
        "[[rules]]\nid = \"r{n}\"\nby = \"{by}\"\nwhere = \"event.merchant_id == 'm{n}' && event.amount > 1.0\"\n\
         count = {{ at_least = 3, within = \"1h\" }}\n"
    )
}

/// Returns a rule that counts events.
fn counting(n: usize, by: &str) -> String {
    format!("[[rules]]\nid = \"r{n}\"\nby = \"{by}\"\ncount = {{ at_least = 1000, within = \"10s\" }}\n")
}

/// Runs the forms alternately and prints medians.
///
/// # Errors
/// If the results cannot be printed.
pub fn bench_rules(args: &RulesBenchArgs) -> Result<(), OutputError> {
    let settings = GeneratorSettings { users: args.users, ..in_order() };
    let events = events(settings, args.events);
    let chosen = FORMS.iter().filter(|(name, _)| args.form.as_deref().is_none_or(|form| form == *name));
    let forms: Vec<_> =
        [(PATTERNS, None)].into_iter().chain(chosen.map(|(name, rules)| (*name, Some(rules())))).collect();
    let mut rounds: Vec<Vec<Spent>> = Vec::new();
    for round in 1..=args.rounds.max(1) {
        let spent: Vec<_> = forms.iter().map(|(_, rules)| run(&events, rules.as_deref())).collect();
        let rates: Vec<_> = forms
            .iter()
            .zip(&spent)
            .map(|((name, _), spent)| format!("{name} {:.0}", per_second(args.events, spent.wall)))
            .collect();
        note!("round {round}: {} events/s", rates.join(", "));
        rounds.push(spent);
    }
    let report: Vec<_> =
        forms.iter().enumerate().map(|(at, (name, _))| line(args, name, at, &rounds)).collect();
    let text = || {
        let mut table = Table::new(&["form", "events/s", "of patterns", "CPU ns an event", "alerts"]);
        for line in &report {
            let number = |key: &str, digits: usize| match line[key].as_f64() {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            table.add([
                line["form"].as_str().unwrap_or_default().to_owned(),
                number("events_per_s", 0),
                number("ratio", 2),
                number("cpu_ns_per_event", 0),
                line["alerts"].to_string(),
            ]);
        }
        table.to_string()
    };
    output::report(args.json, || json!({ "events": args.events, "forms": report.clone() }), text)
}

/// Returns the medians of a form. Ratios are computed per round, because the speed of the machine drifts.
fn line(args: &RulesBenchArgs, name: &str, at: usize, rounds: &[Vec<Spent>]) -> serde_json::Value {
    let rate = |spent: &Spent| per_second(args.events, spent.wall);
    let cpu: Option<Vec<f64>> = rounds.iter().map(|round| Some(round[at].cpu?.as_nanos() as f64)).collect();
    json!({
        "form": name,
        "events_per_s": median(rounds.iter().map(|round| rate(&round[at])).collect()).round(),
        "ratio": median(rounds.iter().map(|round| rate(&round[at]) / rate(&round[0])).collect()),
        "cpu_ns_per_event": cpu.map(|cpu| (median(cpu) / args.events as f64).round()),
        "alerts": rounds.last().map(|round| round[at].results),
    })
}

fn run(events: &[Event], own: Option<&str>) -> Spent {
    let drive = Drive { workers: 1, behind_ms: BEHIND_MS, close: false };
    let Some(own) = own else {
        return drive.run(events, |events, control| {
            let (keyed, _) = events.admit(control, Admission::default());
            keyed.scan_all("Rules", rules(&Arc::from("bench"), &patterns(Emission::Immediate))).inner
        });
    };
    let plan = plan(own);
    drive.run(events, move |events, control| by_rules(events, control, &plan))
}

/// Evaluates the rules of a plan, by all of its keys.
fn by_rules<'scope>(
    events: VecCollection<'scope, Epoch, Event>,
    control: ControlStream<'scope>,
    plan: &Plan,
) -> StreamVec<'scope, Epoch, (Alert, Epoch, isize)> {
    let (keyed, _) = events.admit(control.clone(), Admission::default());
    let of_key = rules_by(&plan.rules, None);
    let mut alerts = keyed.clone().scan_all("Rules", rule_set::<Event>(&plan.pipeline, &of_key));
    // In a run, events are exchanged for the key spaces that rules use, and for no others.
    let is_used = |space: &Arc<KeySpace>| plan.rules.iter().any(|rule| rule.by.space() == Some(space));
    for space in plan.all_spaces().into_iter().filter(is_used) {
        let by_space = Arc::clone(&space);
        let events = keyed.clone().events("Events").flat_map(move |event| SpaceEvent::new(event, &by_space));
        let (keyed, _): (Keyed<'_, SpaceEvent>, _) = events.admit(control.clone(), Admission::default());
        let of_space = rule_set::<SpaceEvent>(&plan.pipeline, &rules_by(&plan.rules, Some(&space)));
        alerts = alerts.concat(keyed.scan_all("Rules", of_space));
    }
    alerts.inner
}
