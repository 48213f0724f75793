//! The state of a rule in words, and in numbers.

use std::collections::HashMap;

use headwater_dataflows::KeyHash;
use headwater_dataflows::patterns::{Bound, Description};
use serde_json::{Map, Value, json};

use crate::json::{decimal, rfc3339, round6};
use crate::outputs::MICROS;

/// The maximum number of currencies in a text. The numbers have all that the rule describes.
const CURRENCIES_IN_TEXT: usize = 5;

/// Describes the state of a rule. Counts are those of the last D before the later of the watermark and the key's last
/// event: see [`Description`].
pub fn describe(rule: &str, description: &Description) -> (String, Value) {
    match description {
        Description::Count { count, at_least, within_ms } => {
            let within = span(*within_ms);
            let events = counted(*count, "event", *count >= *at_least);
            // The configuration of this rule has the count that must be exceeded.
            if rule == "velocity_spike" {
                let more_than = at_least - 1;
                let text = format!("{events} in the last {within}; raises above {more_than}");
                (text, json!({ "count": count, "within_ms": within_ms, "more_than": more_than }))
            } else {
                let text = format!("{events} in the last {within}; raises at {at_least}");
                (text, json!({ "count": count, "within_ms": within_ms, "at_least": at_least }))
            }
        }
        Description::Distinct { distinct, at_least, within_ms } => {
            let noun = if rule == "merchant_diversity" { "merchant" } else { "distinct value" };
            let values = counted(*distinct, noun, *distinct >= *at_least);
            let text = format!("{values} in the last {}; raises at {at_least}", span(*within_ms));
            (text, json!({ "distinct": distinct, "within_ms": within_ms, "at_least": at_least }))
        }
        Description::Sum { sum, n, bound, within_ms } => {
            let (numbers, within, sum) = (counted(*n, "number", false), span(*within_ms), decimal(*sum));
            let text = format!("{numbers} with the sum {sum} in the last {within}; {}", raises(*bound));
            (text, json!({ "sum": sum, "n": n, "within_ms": within_ms }))
        }
        Description::Average { sum, n, bound, at_least_events, within_ms } => {
            let average = (*n > 0).then(|| round6(*sum as f64 / *n as f64 / MICROS));
            let (numbers, within) = (counted(*n, "number", false), span(*within_ms));
            let of = average.map(|average| format!(" with the average {average}")).unwrap_or_default();
            let raises = raises(*bound);
            let text = format!("{numbers}{of} in the last {within}; {raises} of {at_least_events} or more");
            (text, json!({ "average": average, "n": n, "within_ms": within_ms }))
        }
        Description::Share { hits, n, more_than_ppm, at_least_events, within_ms } => {
            let (events, within) = (counted(*n, "event", false), span(*within_ms));
            let share = f64::from(*more_than_ppm) / 1e6;
            let raises = format!("raises above a share of {share} of {at_least_events} or more");
            let text = format!("{hits} of {events} in the last {within}; {raises}");
            (text, json!({ "hits": hits, "n": n, "within_ms": within_ms, "more_than": share }))
        }
        Description::Amounts { n, mean, stddev, at_least, bounds } => {
            amounts(*n, mean.zip(*stddev), *mean, *at_least, *bounds)
        }
        Description::Place { last, km, kmh } => {
            let at = last.map(|(location, time)| {
                format!("last located at {}, {} at {}", location.lat, location.lon, rfc3339(time.0))
            });
            let at = at.as_deref().unwrap_or("no location yet");
            let state = json!({
                "location": last.map(|(location, _)| location),
                "time": last.map(|(_, time)| rfc3339(time.0)),
                "more_than_km": km,
                "more_than_kmh": kmh,
            });
            (format!("{at}; raises above {km} km and {kmh} km/h"), state)
        }
        Description::Runs { runs, steps } => {
            let text = format!("{} of {steps} steps", counted(runs.len() as u64, "active run", false));
            let run = |(start, events): &(headwater_dataflows::EventTime, u64)| json!({ "start": rfc3339(start.0), "events": events });
            (text, json!({ "runs": runs.iter().map(run).collect::<Vec<_>>(), "steps": steps }))
        }
        Description::Groups { groups, more } => currencies(rule, groups, *more),
    }
}

/// Describes amounts. `both` are their mean and standard deviation, in millionths.
fn amounts(
    n: u64,
    both: Option<(f64, f64)>,
    mean: Option<f64>,
    at_least: u64,
    bounds: Option<(f64, f64)>,
) -> (String, Value) {
    let unit = |micros: f64| round6(micros / MICROS);
    let bounds = bounds.map(|(lower, upper)| (unit(lower), unit(upper)));
    let mut text = counted(n, "amount", false);
    if let Some(mean) = mean {
        text += &format!(", mean {}", unit(mean));
    }
    if let Some((_, stddev)) = both {
        text += &format!(", standard deviation {}", unit(stddev));
    }
    text += &match bounds {
        Some((lower, upper)) => format!("; raises below {lower} and above {upper}"),
        None if n < at_least => format!("; raises once there are {at_least} amounts"),
        None => "; does not raise while all amounts are equal".to_owned(),
    };
    let state = json!({
        "n": n,
        "mean": mean.map(unit),
        "stddev": both.map(|(_, stddev)| unit(stddev)),
        "lower": bounds.map(|(lower, _)| lower),
        "upper": bounds.map(|(_, upper)| upper),
        "at_least": at_least,
    });
    (text, state)
}

/// Describes the groups of a rule that evaluates each currency separately.
fn currencies(rule: &str, groups: &[(Option<u64>, Description)], more: usize) -> (String, Value) {
    let names = names(groups.iter().filter_map(|(hash, _)| *hash));
    let (mut texts, mut states) = (Vec::new(), Vec::new());
    for (hash, description) in groups {
        let name = hash.map(|hash| names.get(&hash).cloned().unwrap_or_else(|| format!("hash {hash:016x}")));
        let (text, state) = describe(rule, description);
        texts.push(format!("{}: {text}", name.as_deref().unwrap_or("no currency")));
        let mut named = Map::from_iter([("currency".to_owned(), Value::from(name))]);
        if let Value::Object(members) = state {
            named.extend(members);
        }
        states.push(Value::Object(named));
    }
    let left_out = texts.len().saturating_sub(CURRENCIES_IN_TEXT) + more;
    texts.truncate(CURRENCIES_IN_TEXT);
    let text = match (texts.is_empty(), left_out) {
        (true, _) => "no amount yet".to_owned(),
        (false, 0) => texts.join(". "),
        (false, left_out) => {
            format!("{}. And {}", texts.join(". "), counted(left_out as u64, "other group", false))
        }
    };
    (text, json!({ "currencies": states, "left_out": more }))
}

/// Returns the names of currencies by their hashes, by which the rule distinguishes them. Only codes of three capital
/// letters, as in ISO 4217, are known.
fn names(hashes: impl Iterator<Item = u64>) -> HashMap<u64, String> {
    let mut names: HashMap<u64, String> = hashes.map(|hash| (hash, String::new())).collect();
    let letters = b'A'..=b'Z';
    for (one, two) in letters.clone().flat_map(|one| letters.clone().map(move |two| (one, two))) {
        for three in letters.clone() {
            let code = [one, two, three];
            if let Some(name) = names.get_mut(&KeyHash::of(&code).0) {
                *name = code.map(char::from).iter().collect();
            }
        }
    }
    names.retain(|_, name| !name.is_empty());
    names
}

/// Returns a count with its noun. `is_least` is true if the count may be higher.
fn counted(count: u64, noun: &str, is_least: bool) -> String {
    let plural = if count == 1 { "" } else { "s" };
    let more = if is_least { " or more" } else { "" };
    format!("{count}{more} {noun}{plural}")
}

fn raises(bound: Bound) -> String {
    match bound {
        Bound::MoreThan(micros) => format!("raises above {}", decimal(micros.into())),
        Bound::AtLeast(micros) => format!("raises at {}", decimal(micros.into())),
    }
}

/// Returns a duration in the largest unit that gives a whole number.
fn span(ms: i64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    let fit = units.into_iter().find(|(unit, _)| ms > 0 && ms % unit == 0);
    let (unit, name) = fit.unwrap_or((1, "ms"));
    format!("{} {name}", ms / unit)
}
