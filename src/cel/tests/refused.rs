//! Expressions that are refused, with the text of the error.

use proptest::prelude::*;

use super::*;

/// Returns the text of the error of a condition.
fn refusal(source: &str) -> String {
    let layout = layout();
    match compile_predicate(source, &Scope::of_events(&layout)) {
        Ok(_) => panic!("{source} is accepted"),
        Err(error) => error.to_string(),
    }
}

fn check(refused: &[(&str, &str)]) {
    let mut wrong = String::new();
    for (source, expected) in refused {
        let text = refusal(source);
        if text != *expected {
            wrong += &format!("{source}\n  {text}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn unknown_names_are_refused() {
    check(&[
        ("event.amout < 2.0", "column 7: unknown field amout; did you mean amount?"),
        (
            "event.x1 == 'a'",
            "column 7: unknown field x1; known fields: event_id, event_type, user_id, device_id, event_time, amount, currency, merchant_id, merchant_category, ip_address, session_id, location, attributes, n, m, score, ratio, fee, country, city, declined, opened, home",
        ),
        ("has(event.contry)", "column 11: unknown field contry; did you mean country?"),
        ("amount < 2.0", "column 1: unknown name amount; write event.amount"),
        ("evnt.amount < 2.0", "column 1: unknown name evnt; did you mean event?"),
        ("country", "column 1: unknown name country; write event.country"),
        ("event", "column 1: event is not a value; name a field, such as event.amount"),
        (
            "event.ip_address in lists.blocked",
            "column 27: there is no list blocked; declare it in a section [[lists]]",
        ),
        ("event.country.name == 'x'", "column 15: a string has no member name"),
        ("event.location.latitude > 1.0", "column 16: a location has no latitude; it has lat and lon"),
        (
            "event.amount == 1.0 &&\n  event.feee > 1.0",
            "line 2, column 9: unknown field feee; did you mean fee?",
        ),
        ("'é' == event.contry", "column 14: unknown field contry; did you mean country?"),
    ]);
}

#[test]
fn types_that_do_not_fit_are_refused() {
    check(&[
        ("event.amount", "column 1: expected a condition, found a decimal"),
        (
            "event.amount && true",
            "column 1: expected a condition, found a decimal; compare it, or write has(event.amount)",
        ),
        (
            "!event.country",
            "column 2: expected a condition, found a string; compare it, or write has(event.country)",
        ),
        (
            "event.amount == '2.0'",
            "column 14: cannot compare decimal with string; write the number without quotes",
        ),
        ("event.country == 2", "column 15: cannot compare string with number; write decimal(event.country)"),
        (
            "event.country < event.amount",
            "column 15: cannot compare string with decimal; write decimal(event.country)",
        ),
        (
            "event.amount < event.score",
            "column 14: cannot compare decimal with float; write double(event.amount)",
        ),
        ("event.n == event.score", "column 9: cannot compare integer with float; write double(event.n)"),
        (
            "event.country == event.score",
            "column 15: cannot compare string with float; write double(event.country)",
        ),
        (
            "event.declined == 'true'",
            "column 16: cannot compare boolean with string; write event.declined or !event.declined alone",
        ),
        (
            "event.declined < true",
            "column 16: cannot compare boolean with boolean; a boolean has no order: write == or !=",
        ),
        (
            "event.declined == 1",
            "column 16: cannot compare boolean with number; write event.declined or !event.declined alone",
        ),
        (
            "event.time > '2026-01-01T00:00:00Z'",
            "column 12: cannot compare timestamp with string; write timestamp('2026-01-01T00:00:00Z')",
        ),
        (
            "event.attributes['at'] > event.time",
            "column 24: cannot compare attribute with timestamp; write timestamp(event.attributes['at'])",
        ),
        (
            "event.time > 1700000000",
            "column 12: cannot compare timestamp with number; write an instant such as timestamp('2026-01-02T03:04:05Z')",
        ),
        (
            "event.time - event.opened > 60",
            "column 27: cannot compare duration with number; write a duration such as duration('5m')",
        ),
    ]);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    check(&[
        (
            "event.amount + event.country == 'x'",
            "column 14: cannot add decimal and string; write decimal(event.country)",
        ),
        ("event.score % 2.0 == 1.0", "column 13: cannot take the remainder of float by number"),
        ("event.time * 2 > event.time", "column 12: cannot multiply timestamp and number"),
        (
            "event.time + 60 > event.time",
            "column 12: cannot add timestamp and number; write a duration such as duration('5m')",
        ),
        (
            "event.amount / event.declined > 1",
            "column 14: cannot divide decimal by boolean; write event.declined or !event.declined alone",
        ),
        (
            "event.attributes['a'] + event.attributes['b'] == 1",
            "column 23: cannot add attribute and attribute; write the type of one, as in decimal(event.attributes['a'])",
        ),
        (
            "event.attributes == 1",
            "column 18: cannot compare object with number; name a member: event.attributes['name']",
        ),
        (
            "event.location == event.home",
            "column 16: cannot compare location with location; write event.location.lat or event.location.lon",
        ),
        ("-event.country == 'x'", "column 1: cannot negate a string"),
        ("event.declined ? 1 : 'a'", "column 16: the two results are of different types: number and string"),
        (
            "event.country in ['DE', 1]",
            "column 25: cannot compare string with number; write decimal(event.country)",
        ),
        (
            "event.n in ['1']",
            "column 13: cannot compare integer with string; write the number without quotes",
        ),
        ("event.declined in [true]", "column 7: a boolean cannot be in a list"),
        ("event.country in []", "column 18: the list is empty"),
        (
            "event.country in event.city",
            "column 24: expected a list such as ['a', 'b'] or lists.NAME, found a string",
        ),
        ("event.country in event.attributes", "column 7: the name of an attribute is a text in quotes"),
        ("event.attributes[event.country] == 1", "column 24: the name of an attribute is a text in quotes"),
        ("event.country[0] == 'D'", "column 14: a string has no members"),
        (
            "event.amount < 0.0000001",
            "column 16: 0.0000001 has more than the six digits after the point that a decimal holds",
        ),
        (
            "event.amount < 10000000000000",
            "column 16: 10000000000000 is beyond the range of decimals, which is about ±9.2×10^12",
        ),
        ("1 / 0 == 1", "column 3: the constants overflow, or divide by zero"),
        ("event.amount > 1.0 / 0.0", "column 16: the constants overflow, or divide by zero"),
    ]);
}

#[test]
fn functions_that_do_not_fit_are_refused() {
    check(&[
        ("event.country.startWith('D')", "column 15: unknown function startWith; did you mean startsWith?"),
        (
            "startsWith(event.country, 'D')",
            "column 1: unknown function startsWith; write value.startsWith(…)",
        ),
        ("event.country.double() > 1.0", "column 15: unknown function double; write double(…)"),
        (
            "event.country.foo()",
            "column 15: unknown function foo; known functions: startsWith, endsWith, contains, matches, size, lowerAscii, upperAscii, getFullYear, getMonth, getDate, getDayOfMonth, getDayOfWeek, getDayOfYear, getHours, getMinutes, getSeconds, getMilliseconds",
        ),
        (
            "foo(event.country)",
            "column 1: unknown function foo; known functions: has, size, matches, int, double, decimal, string, timestamp, duration",
        ),
        ("event.country.startsWith('a', 'b')", "column 15: startsWith does not take 2 arguments"),
        ("size() == 1", "column 1: size does not take 0 arguments"),
        (
            "event.amount.startsWith('1')",
            "column 1: expected a string, found a decimal; write string(…) of it",
        ),
        ("event.country.contains(1)", "column 24: expected a string, found a number; write string(…) of it"),
        (
            "event.country.matches('(')",
            "column 23: not a regular expression: found open group without closing ')'",
        ),
        (
            "event.country.matches(event.city)",
            "column 29: the regular expression is not a constant text in quotes",
        ),
        (
            "event.country.getHours() == 1",
            "column 15: a string has no getHours; write timestamp(…) of a text",
        ),
        (
            "event.time.getHours('Europe/Paris') == 1",
            "column 21: unknown time zone Europe/Paris; write 'UTC' or an offset such as '+01:00'",
        ),
        ("duration('1h').getMonth() == 1", "column 16: a duration has no getMonth"),
        (
            "timestamp('yesterday') < event.time",
            "column 11: not an instant: yesterday; write RFC 3339, such as 2026-01-02T03:04:05Z",
        ),
        (
            "duration('1 day') < duration('1h')",
            "column 10: not a duration of whole milliseconds: 1 day; write one such as 1h30m, 10s or 250ms",
        ),
        ("decimal('x') == 1.0", "column 9: not a decimal: x"),
        ("int(event.declined) == 1", "column 1: a boolean cannot be converted with int()"),
        ("string(event.location) == 'x'", "column 1: a location cannot be converted with string()"),
        (
            "has(event)",
            "column 5: has() takes a field or a member of an object; write has(event.amount) or has(event.attributes.channel)",
        ),
        (
            "has(event.amount > 1)",
            "column 18: has() takes a field or a member of an object; write has(event.amount) or has(event.attributes.channel)",
        ),
        ("has(event.location.lat)", "column 20: a location has no member lat"),
    ]);
}

#[test]
fn what_is_no_expression_is_refused() {
    check(&[
        ("", "column 1: the expression is empty"),
        ("  ", "column 1: the expression is empty"),
        ("event.amount <", "column 15: unexpected end of the expression"),
        ("event.amount = 2", "column 14: unexpected =; write == to compare"),
        ("event.declined & true", "column 16: unexpected &; write && for and"),
        ("event.declined and true", "column 16: unexpected and; write &&"),
        ("(event.declined", "column 16: missing ')' before end of the expression"),
        ("event.declined)", "column 15: unexpected ')'"),
        ("event.country == 'DE", "column 18: a text without its closing quote; end it on the same line"),
        (
            "event.country == '\\d'",
            "column 18: unknown escape in a text; write \\\\ for a backslash, or r'…' for a regular expression",
        ),
        ("event..amount > 1", "column 7: unexpected '.'"),
        ("event.amount > 2,5", "column 17: unexpected ','; write a point in a number, as in 2.5"),
        ("event.n in [1, 2", "column 17: unexpected end of the expression"),
        ("#", "column 1: unexpected character '#'"),
        ("event.n == 99999999999999999999", "column 12: a whole number has at most 64 bits"),
        ("event.n == 1u", "column 12: unsigned numbers are not supported; write 1"),
        ("event.country == b'DE'", "column 18: bytes are not supported"),
        (
            "event.country == null",
            "column 18: a field is never null, but may be absent; write has(event.amount) or !has(event.amount)",
        ),
        ("event.country == {'a': 1}", "column 18: maps and messages are not supported"),
        ("[1, 2] == [1]", "column 1: a list can stand only after in, or before exists and all"),
        ("[1, 2].map(x, x + 1) == [2]", "column 11: of the macros, has, exists and all are supported"),
        ("[1, 2].exists_one(x, x == event.n)", "column 18: of the macros, has, exists and all are supported"),
        (
            "event.country.exists(x, x == 'a')",
            "column 21: exists and all need a list before them, such as ['a', 'b']",
        ),
        ("event.declined or true", "column 16: unexpected or; write ||"),
        (
            "event.if == 1",
            "column 7: unknown field if; known fields: event_id, event_type, user_id, device_id, event_time, amount, currency, merchant_id, merchant_category, ip_address, session_id, location, attributes, n, m, score, ratio, fee, country, city, declined, opened, home",
        ),
        ("if == 1", "column 1: reserved identifier: if"),
    ]);
}

#[test]
fn length_and_depth_are_bounded() {
    let long = format!("event.country == '{}'", "x".repeat(20_000));
    assert_eq!(refusal(&long), "column 16385: the expression is longer than 16384 bytes");
    let deep = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(refusal(&deep(33)), "column 33: brackets are nested deeper than 32");
    let chain = |n: usize| format!("event.n{} > 1", " + 1".repeat(n));
    let refused = "more than 96 operators follow each other without && or ||";
    assert_eq!(refusal(&chain(96)), format!("column 389: {refused}"));
    let list = "[1,2,3,4,5,6,7,8,9,10]";
    let nested = format!(
        "{list}.exists(a, {list}.exists(b, {list}.exists(c, {list}.exists(d, a + b + c + d == event.n))))"
    );
    assert!(refusal(&nested).ends_with("the expression has more than 20000 parts, macros unrolled"));
    // At the bounds, they fit into the smallest of the stacks.
    let worst =
        format!("{}{}{}", "(1 + ".repeat(31), "event.n", " - 1)".repeat(31)) + &" * 1".repeat(30) + " > 1";
    let terms = vec!["event.n == 1"; 1000].join(" || ");
    let compiled = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        let layout = layout();
        for source in [deep(32), chain(94), worst, terms, "!".repeat(95) + "true", "-".repeat(90) + "1 < 2"] {
            let predicate = compile_predicate(&source, &Scope::of_events(&layout));
            predicate.unwrap_or_else(|error| panic!("{source}: {error}")).holds(&full());
        }
    });
    compiled.expect("a thread").join().expect("no overflow");
}

/// The parts of which texts are made that are nearly expressions.
const PARTS: [&str; 66] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    "?",
    ":",
    "-",
    "!",
    "&&",
    "||",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    "+",
    "*",
    "/",
    "%",
    " in ",
    "event.",
    "event.amount",
    "event.n",
    "event.score",
    "event.country",
    "event.attributes",
    "['a']",
    "has(",
    "1",
    "1.5",
    "0.0000001",
    "1e9",
    "'a'",
    "\"",
    "'",
    "é",
    "0x1f",
    "1u",
    "b'",
    "\\",
    "true",
    "null",
    ".matches(",
    ".exists(x,",
    ".all(x,",
    ".map(x,",
    "x",
    "`",
    "@",
    "//",
    "9999999999999999999",
    "1e999",
    "'\\u12'",
    "size(",
    "timestamp('",
    "duration('1h')",
    ".getHours()",
    "int(",
    "=",
    "&",
    "\n",
    "''''",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_the_compiler_panic(text in "\\PC{0,60}") {
        compile_all(&text);
    }

    #[test]
    fn no_sequence_of_tokens_makes_the_compiler_panic(parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..16)) {
        compile_all(&parts.concat());
    }
}

/// Compiles a text as everything that it can be, evaluates it, and checks the place of its errors.
fn compile_all(source: &str) {
    let layout = layout();
    let scope = Scope::of_events(&layout);
    let event = full();
    match compile_predicate(source, &scope) {
        Ok(predicate) => drop(predicate.holds(&event)),
        Err(error) => {
            assert!(source.is_char_boundary(error.offset), "{source}: {error:?}");
            assert!(!error.message.is_empty() && !error.message.contains("Context"), "{source}: {error:?}");
        }
    }
    if let Ok(number) = compile_number(source, &scope) {
        number.micros(&event);
    }
    if let Ok(scalar) = compile_scalar(source, &scope) {
        scalar.hash(&event);
    }
    if let Ok(choice) = compile_choice(source, &scope, &["a"]) {
        choice.index(&event);
    }
}
