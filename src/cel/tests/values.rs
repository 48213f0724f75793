//! The values of expressions.

use super::*;

/// The outcome of a condition on an event.
#[derive(Debug, PartialEq)]
enum Outcome {
    Holds,
    DoesNot,
    /// A field is absent.
    Absent,
    /// An error, which is counted.
    Error,
}

/// Evaluates a condition.
fn outcome(source: &str, event: &Event) -> Outcome {
    let layout = layout();
    let scope = Scope::of_events(&layout);
    let predicate = compile_predicate(source, &scope).unwrap_or_else(|error| panic!("{source}: {error}"));
    let negated = compile_predicate(&format!("!({source}\n)"), &scope).expect("a condition");
    match (predicate.holds(event), negated.holds(event), predicate.errors()) {
        (true, false, 0) => Outcome::Holds,
        (false, true, 0) => Outcome::DoesNot,
        (false, false, 0) => Outcome::Absent,
        (false, false, 1) => Outcome::Error,
        other => panic!("{source}: {other:?}"),
    }
}

fn check(event: &Event, expected: Outcome, sources: &[&str]) {
    for source in sources {
        assert_eq!(outcome(source, event), expected, "{source}");
    }
}

#[test]
fn conditions_hold_for_an_event() {
    check(
        &full(),
        Outcome::Holds,
        &[
            "true",
            "event.event_type == 'transaction'",
            "event.event_type != \"login\"",
            "'EUR' == event.currency",
            "event.user_id == key",
            "event.currency < 'USD' && 'EUQ' < event.currency",
            "event.currency + '/' + event.country == 'EUR/DE'",
            "event.currency in ['USD', 'EUR']",
            "event.currency in [event.city, 'EUR'] || has(event.currency)",
            "!(event.currency in ['USD', 'CHF'])",
            "event.currency.startsWith('E') && event.currency.endsWith('UR') && event.currency.contains('U')",
            "event.merchant_id.matches('^shop-[0-9]+$') && matches(event.merchant_id, 'hop')",
            "event.currency.size() == 3 && size('é€') == 2",
            "event.currency.lowerAscii() == 'eur' && 'eé'.upperAscii() == 'Eé'",
            "event.declined",
            "event.declined == true && event.declined != false",
            "has(event.amount) && !has(event.city) && has(event.attributes) && has(event.time)",
            "event.declined ? event.amount > 100 : event.amount > 1000",
            "(event.n > 100 ? 1 : 2.5) == 2.5",
            "(event.n > 1 ? event.country : event.city) == 'DE'",
            "event.amount > 100 // one hundred",
            "['D', 'E'].exists(x, event.country.startsWith(x)) && ['D', 'DE'].all(x, event.country.contains(x))",
            "['D'].exists(x, [x + 'E'].exists(x, x == event.country))",
            "event.location.lat == 52.5 && event.location.lon < 0.0 && event.home.lat > event.home.lon",
        ],
    );
}

#[test]
fn decimals_and_integers_are_exact() {
    check(
        &full(),
        Outcome::Holds,
        &[
            "event.amount == 129.95",
            "event.amount == 129.950000 && event.amount == 12995e-2",
            "event.amount * 3 == 389.85",
            "event.amount + event.fee == 130.05",
            "event.fee + 0.2 == 0.3",
            "0.1 + 0.2 == 0.3",
            "event.fee * 3 == 0.3 && event.fee / 3 == 0.033333 && 2 * event.fee / 3 == 0.066667",
            "event.amount % 1 == 0.95 && -event.amount % 1 == -0.95 && event.amount - 129 == 0.95",
            "event.amount / 10 == 12.995 && event.amount * 0.000001 == 0.00013",
            "event.n / 2 == 3 && event.n / 2.0 == 3.5 && event.n % 4 == 3 && 7 / 2 == 3",
            "event.n * event.m == -14 && event.n - event.m == 9 && -event.m == 2",
            "event.n < 7.5 && 6.999999 < event.n && event.n == 7.0 && event.n > event.m",
            "event.n < event.amount && event.amount >= event.n && event.n + event.amount == 136.95",
            "event.n in [1, 7] && event.n in [7.0, 1.5] && event.amount in [1, 129.95] && event.n in [event.n, 1]",
            "event.score == 0.25 && event.score < 1 && 2 * event.score == 0.5 && event.score in [0.25, 1]",
            "1.0 / 4 == event.score && event.score - 0.5 == -0.25",
            "int(event.amount) == 129 && int(-1.9) == -1 && int('12') == 12 && int(event.score * 10.0) == 2",
            "double(event.amount) > 129.9 && double(event.n) == 7.0 && double('1e3') == 1000.0",
            "string(event.amount) == '129.95' && string(event.n) == '7' && string(event.declined) == 'true'",
            "decimal('0.1') == event.fee && decimal(event.score) == 0.25 && decimal(event.n) == 7.0",
            "event.n < 9223372036854775807 && -9223372036854775808 < event.n",
            "9223372036854775807 - event.n > 0.5",
        ],
    );
}

#[test]
fn times_are_in_utc() {
    // T is 2027-01-15T08:00:00Z, a Friday.
    check(
        &full(),
        Outcome::Holds,
        &[
            "event.time == timestamp('2027-01-15T08:00:00Z') && event.event_time == event.time",
            "event.time.getHours() == 8 && event.time.getHours('+05:30') == 13 && event.time.getMinutes('+05:30') == 30",
            "event.time.getDayOfWeek() == 5 && event.time.getDate() == 15 && event.time.getDayOfMonth() == 14",
            "event.time.getMonth() == 0 && event.time.getFullYear() == 2027 && event.time.getDayOfYear() == 14",
            "event.time - event.opened == duration('1h') && event.opened + duration('60m') == event.time",
            "event.time - event.opened > duration('59m59s') && (event.time - event.opened).getMinutes() == 60",
            "event.time - duration('1h') in [event.opened] && -duration('1h') < duration('0')",
            "event.time >= timestamp('2027-01-15T08:00:00+01:00') && int(event.time) == 1800000000",
            "string(event.time) == '2027-01-15T08:00:00.000Z' && timestamp(string(event.time)) == event.time",
            "duration('1' + 'h') == duration('60m')",
        ],
    );
}

#[test]
fn attributes_have_the_type_that_they_are_compared_as() {
    check(
        &full(),
        Outcome::Holds,
        &[
            "event.attributes['channel'] == 'web' && event.attributes.channel == 'web'",
            "'mail' != event.attributes['channel'] && event.attributes['channel'] < 'wec'",
            "event.attributes['tries'] == 3 && event.attributes['tries'] < 3.5 && 2 < event.attributes.tries",
            "event.attributes['tries'] < event.n && event.attributes['tries'] > event.score",
            "event.attributes['tries'] * 2 == 6 && event.attributes['tries'] + event.n == 10 && -event.attributes.tries < 0",
            "event.attributes['tries'] in [1, 3] && event.attributes['channel'] in ['web']",
            "event.attributes['channel'].startsWith('w') && event.attributes['channel'] + '!' == 'web!'",
            "event.attributes['vip'] && event.attributes['vip'] == true && !(event.attributes['vip'] != true)",
            "event.attributes['device']['os'] == 'x\"y' && event.attributes.device.os.size() == 3",
            "has(event.attributes.vip) && !has(event.attributes.none) && 'tries' in event.attributes",
            "has(event.attributes.device.os) && !('cpu' in event.attributes.device) && has(event.attributes.device)",
            "decimal(event.attributes['price']) == 9.90 && double(event.attributes.price) < 10.0",
            "int(event.attributes['tries']) == 3 && string(event.attributes['tries']) == '3'",
            "event.attributes['tries'] == event.attributes['tries'] && event.attributes.tries != event.attributes.vip",
            "(event.declined ? event.attributes.channel : 'none') == 'web'",
            "event.attributes['big'] == 9007199254740993 && event.attributes['big'] > 2.5 && -2.5 < event.attributes['big']",
            // Of different types, they are not equal.
            "event.attributes['tries'] != '3' && !(event.attributes['channel'] == 3)",
        ],
    );
    check(
        &full(),
        Outcome::Error,
        &[
            "event.attributes['channel'] < 3",
            "event.attributes['channel']",
            "event.attributes['tries'].startsWith('3')",
            "event.attributes['device'] + 'x' == 'x'",
            "event.attributes['vip'] * 2 > 1",
            "timestamp(event.attributes['channel']) > event.time",
        ],
    );
}

#[test]
fn an_absent_field_is_neither_true_nor_false() {
    check(
        &full(),
        Outcome::Absent,
        &[
            "event.city == 'Rome'",
            "event.city != 'Rome'",
            "event.ratio > 1.0",
            "event.city.startsWith('R')",
            "event.city in ['Rome']",
            "event.country in ['DE', event.city]",
            "event.attributes['missing'] == 1",
            "event.attributes['none'] != 1",
            "event.attributes['channel']['x'] == 'y'",
            "event.attributes['tries'] == event.ratio",
            "event.attributes['vip'] == event.city",
            "event.ratio + 1.0 > 0.5",
            "event.city == 'Rome' && true",
            "true && event.city == 'Rome'",
            "event.city == 'Rome' || false",
            "event.city == 'Rome' ? true : true",
        ],
    );
    check(&full(), Outcome::DoesNot, &["event.city == 'Rome' && false", "false && event.city == 'Rome'"]);
    check(
        &full(),
        Outcome::Holds,
        &[
            "event.city == 'Rome' || true",
            "!has(event.city) || event.city == 'Rome'",
            "has(event.city) ? event.city == 'Rome' : true",
        ],
    );
    check(
        &event("", &[]),
        Outcome::Absent,
        &[
            "event.amount < 2.0",
            "event.declined",
            "event.n == 1",
            "event.home.lat > 1.0",
            "event.attributes['x'] == 1",
            "event.opened < event.time",
        ],
    );
}

#[test]
fn run_time_errors_are_counted_unless_they_do_not_matter() {
    check(
        &full(),
        Outcome::Error,
        &[
            "event.n / (event.m + 2) == 1",
            "event.n % (event.m + 2) == 1",
            "event.amount / (event.fee - 0.1) > 1",
            "event.n * 9223372036854775807 > 0",
            "event.n + 9223372036854775807 > 0",
            "-(event.m - 9223372036854775807) > 0",
            "event.amount * 1000000000000 * 1000000 > 0",
            "int(event.country) == 1",
            "decimal(event.country) == 1",
            "double(event.country) == 1.0",
            "timestamp(event.country) == event.time",
            "duration(event.country) == duration('1s')",
            "int(event.score / 0.0) == 1",
            // An error counts, also beside an absence.
            "event.city == 'Rome' && event.n / (event.m + 2) == 1",
            "event.n / (event.m + 2) == 1 || event.city == 'Rome'",
        ],
    );
    check(&full(), Outcome::DoesNot, &["event.n / (event.m + 2) == 1 && event.n == 1"]);
    check(&full(), Outcome::Holds, &["event.n / (event.m + 2) == 1 || event.n == 7"]);
}

#[test]
fn errors_are_counted_by_all_clones() {
    let layout = layout();
    let predicate =
        compile_predicate("event.n / (event.m + 2) == 1", &Scope::of_events(&layout)).expect("a condition");
    let clone = predicate.clone();
    assert!(!predicate.holds(&full()) && !clone.holds(&full()));
    assert_eq!((predicate.errors(), clone.errors()), (2, 2));
    let shared: &(dyn std::any::Any + Send + Sync) = &clone;
    assert!(shared.is::<Predicate>());
    assert_eq!(clone.source(), "event.n / (event.m + 2) == 1");
}

#[test]
fn numbers_are_millionths() {
    let layout = layout();
    let scope = Scope::of_events(&layout);
    for (source, expected, errors) in [
        ("event.amount", Some(129_950_000), 0),
        ("event.n", Some(7_000_000), 0),
        ("event.score", Some(250_000), 0),
        ("event.amount - event.fee", Some(129_850_000), 0),
        ("1", Some(1_000_000), 0),
        ("0.000001", Some(1), 0),
        ("event.attributes['tries']", Some(3_000_000), 0),
        ("event.declined ? event.amount : 0", Some(129_950_000), 0),
        ("event.ratio", None, 0),
        ("event.attributes['channel']", None, 1),
        ("event.n * 9000000000000", None, 1),
        ("event.score / 0.0", None, 1),
    ] {
        let number = compile_number(source, &scope).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!((number.micros(&full()), number.errors()), (expected, errors), "{source}");
    }
}

#[test]
fn hashes_of_text_are_those_of_its_bytes() {
    let layout = layout();
    let scope = Scope::of_events(&layout);
    let hash = |source: &str| {
        let scalar = compile_scalar(source, &scope).unwrap_or_else(|error| panic!("{source}: {error}"));
        scalar.hash(&full())
    };
    assert_eq!(hash("event.merchant_id"), full().merchant());
    assert_eq!(hash("event.currency + '/' + event.country"), Some(KeyHash::of(b"EUR/DE").0));
    assert_eq!(hash("event.attributes['channel']"), Some(KeyHash::of(b"web").0));
    assert_eq!(hash("event.attributes['tries']"), hash("event.amount - 126.95"));
    assert_eq!(hash("0.0 * event.score"), hash("-0.0 * event.score"));
    assert_eq!(hash("event.city"), None);
    let distinct =
        ["event.n", "event.m", "event.score", "event.declined", "event.time", "event.amount", "1.5"];
    let hashes: std::collections::BTreeSet<_> = distinct.map(hash).into();
    assert_eq!(hashes.len(), distinct.len());
    assert!(!hashes.contains(&None));
}

#[test]
fn examples_of_the_documentation_are_expressions() {
    let layout = layout();
    let text = include_str!("../../../docs/cel.md");
    let blocks = text.split("```cel\n").skip(1).filter_map(|rest| rest.split("```").next());
    let examples: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert_eq!(examples.len(), 6);
    for example in examples {
        let compiled = compile_scalar(example, &Scope::of_events(&layout));
        assert!(compiled.is_ok(), "{example}: {compiled:?}");
    }
}

#[test]
fn a_choice_is_one_of_the_names() {
    let layout = layout();
    let scope = Scope::of_events(&layout);
    let names = ["low", "medium", "high"];
    for (source, expected, errors) in [
        ("'low'", Some(0), 0),
        ("event.amount > 1000 ? 'high' : event.amount > 100 ? 'medium' : 'low'", Some(1), 0),
        ("event.attributes['channel']", None, 1),
        ("event.city", None, 0),
    ] {
        let choice =
            compile_choice(source, &scope, &names).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!((choice.index(&full()), choice.errors()), (expected, errors), "{source}");
    }
    let error =
        compile_choice("event.amount > 10 ? 'hihg' : 'low'", &scope, &names).expect_err("no such name");
    assert_eq!(error.to_string(), "column 22: hihg is none of the names; did you mean high?");
}
