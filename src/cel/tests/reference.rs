//! Expressions have the values that the interpreter of the crate `cel` gives them.
//!
//! Random expressions are written twice: for this module, and for the interpreter, which does not know decimals. There a
//! decimal is an integer of millionths, so that literals differ, and decimals are not multiplied or divided by each other. A
//! field that is absent is one that the interpreter's map does not have. What differs on purpose is left out: integers
//! compared with floating-point numbers, regular expressions, times.

use std::collections::HashMap;

use ::cel::{Context, Program, Value};
use proptest::prelude::*;

use super::*;
use crate::json;

/// An expression, as written here and for the interpreter.
#[derive(Clone, Debug)]
struct Both {
    ours: String,
    theirs: String,
}

impl Both {
    fn same(text: impl Into<String>) -> Both {
        let text = text.into();
        Both { ours: text.clone(), theirs: text }
    }

    /// Puts expressions in the places of `$0`, `$1`, `$2` of a text.
    fn of(text: &str, parts: &[Both]) -> Both {
        let put = |part: fn(&Both) -> &str| {
            parts
                .iter()
                .enumerate()
                .fold(text.to_owned(), |text, (at, both)| text.replace(&format!("${at}"), part(both)))
        };
        Both { ours: put(|both| &both.ours), theirs: put(|both| &both.theirs) }
    }
}

/// Integers at which something could go wrong.
fn integers() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => -3i64..4,
        1 => prop::sample::select(&[i64::MAX, i64::MIN + 1, i64::MAX - 1, 3_037_000_500][..]),
    ]
}

const TEXTS: [&str; 6] = ["", "a", "ab", "b", "é", "aé"];
const FLOATS: [f64; 7] = [0.0, 1.0, -1.5, 0.1, 0.25, 1e300, -3.0];

fn leaf_integer() -> impl Strategy<Value = Both> {
    prop_oneof![
        prop::sample::select(&["event.n", "event.m"][..]).prop_map(Both::same),
        integers().prop_map(|n| Both::same(format!("{n}"))),
        text(1).prop_map(|text| Both::of("size($0)", &[text])),
    ]
}

fn integer(depth: u32) -> BoxedStrategy<Both> {
    if depth == 0 {
        return leaf_integer().boxed();
    }
    let operator = prop::sample::select(&["+", "-", "*", "/", "%"][..]);
    prop_oneof![
        2 => leaf_integer(),
        2 => (operator, integer(depth - 1), integer(depth - 1))
            .prop_map(|(operator, left, right)| Both::of(&format!("($0 {operator} $1)"), &[left, right])),
        1 => integer(depth - 1).prop_map(|inner| Both::of("(-($0))", &[inner])),
        1 => (condition(depth - 1), integer(depth - 1), integer(depth - 1))
            .prop_map(|(condition, yes, no)| Both::of("($0 ? $1 : $2)", &[condition, yes, no])),
    ]
    .boxed()
}

/// Decimals; for the interpreter, integers of millionths.
fn decimal(depth: u32) -> BoxedStrategy<Both> {
    let literal = (-3_000_000i64..3_000_000).prop_map(|micros| {
        let mut ours = Vec::new();
        json::write_micros(&mut ours, micros);
        let ours = String::from_utf8(ours).expect("digits");
        let point = if ours.contains('.') { "" } else { ".0" };
        Both { ours: ours + point, theirs: micros.to_string() }
    });
    let leaf =
        prop_oneof![prop::sample::select(&["event.amount", "event.fee"][..]).prop_map(Both::same), literal];
    if depth == 0 {
        return leaf.boxed();
    }
    prop_oneof![
        2 => leaf,
        2 => (prop::sample::select(&["+", "-", "%"][..]), decimal(depth - 1), decimal(depth - 1))
            .prop_map(|(operator, left, right)| Both::of(&format!("($0 {operator} $1)"), &[left, right])),
        // Times an integer.
        1 => (decimal(depth - 1), -5i64..6).prop_map(|(inner, n)| Both::of(&format!("($0 * {n})"), &[inner])),
    ]
    .boxed()
}

fn float(depth: u32) -> BoxedStrategy<Both> {
    let leaf = prop_oneof![
        prop::sample::select(&["event.score", "event.ratio"][..]).prop_map(Both::same),
        leaf_integer().prop_map(|integer| Both::of("double($0)", &[integer])),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    // A constant has the type of the field that it meets.
    prop_oneof![
        2 => leaf,
        2 => (prop::sample::select(&["+", "-", "*", "/"][..]), float(depth - 1), float(depth - 1))
            .prop_map(|(operator, left, right)| Both::of(&format!("($0 {operator} $1)"), &[left, right])),
        1 => (float(depth - 1), prop::sample::select(&FLOATS[..]))
            .prop_map(|(inner, n)| Both::of(&format!("($0 + {n:?})"), &[inner])),
    ]
    .boxed()
}

fn text(depth: u32) -> BoxedStrategy<Both> {
    let leaf = prop_oneof![
        prop::sample::select(&["event.country", "event.city", "event.currency"][..]).prop_map(Both::same),
        prop::sample::select(&TEXTS[..]).prop_map(|text| Both::same(format!("'{text}'"))),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    prop_oneof![
        3 => leaf,
        1 => (text(depth - 1), text(depth - 1)).prop_map(|(left, right)| Both::of("($0 + $1)", &[left, right])),
    ]
    .boxed()
}

fn comparison(depth: u32) -> BoxedStrategy<Both> {
    let relation = || prop::sample::select(&["==", "!=", "<", "<=", ">", ">="][..]);
    let compared =
        |pair: (&'static str, Both, Both)| Both::of(&format!("($0 {} $1)", pair.0), &[pair.1, pair.2]);
    let method = prop::sample::select(&["startsWith", "endsWith", "contains"][..]);
    prop_oneof![
        (relation(), integer(depth), integer(depth)).prop_map(compared),
        (relation(), decimal(depth), decimal(depth)).prop_map(compared),
        (relation(), float(depth), float(depth)).prop_map(compared),
        (relation(), text(depth), text(depth)).prop_map(compared),
        (method, text(depth), text(depth))
            .prop_map(|(method, left, right)| Both::of(&format!("$0.{method}($1)"), &[left, right])),
        (integer(depth), integer(0), integer(0))
            .prop_map(|(value, a, b)| Both::of("($0 in [$1, $2])", &[value, a, b])),
        (text(depth), text(0), text(0))
            .prop_map(|(value, a, b)| Both::of("($0 in [$1, $2])", &[value, a, b])),
        prop::sample::select(&["has(event.city)", "has(event.n)", "event.declined", "has(event.fee)"][..])
            .prop_map(Both::same),
        (integer(0), integer(0), integer(0))
            .prop_map(|(a, b, value)| Both::of("[$0, $1].exists(x, x > $2)", &[a, b, value])),
    ]
    .boxed()
}

fn condition(depth: u32) -> BoxedStrategy<Both> {
    if depth == 0 {
        return comparison(0);
    }
    let operator = prop::sample::select(&["&&", "||"][..]);
    prop_oneof![
        3 => comparison(depth - 1),
        2 => (operator, condition(depth - 1), condition(depth - 1))
            .prop_map(|(operator, left, right)| Both::of(&format!("($0 {operator} $1)"), &[left, right])),
        1 => condition(depth - 1).prop_map(|inner| Both::of("!($0)", &[inner])),
        1 => (condition(depth - 1), condition(depth - 1), condition(depth - 1))
            .prop_map(|parts| Both::of("($0 ? $1 : $2)", &[parts.0, parts.1, parts.2])),
    ]
    .boxed()
}

/// The fields of an event, each of which can be absent.
#[derive(Clone, Debug)]
struct Fields {
    n: Option<i64>,
    m: Option<i64>,
    score: Option<f64>,
    ratio: Option<f64>,
    amount: Option<i64>,
    fee: Option<i64>,
    country: Option<&'static str>,
    city: Option<&'static str>,
    declined: Option<bool>,
}

fn fields() -> impl Strategy<Value = Fields> {
    let float = || prop::option::weighted(0.8, prop::sample::select(&FLOATS[..]));
    let decimal =
        || prop::option::weighted(0.8, prop_oneof![-3_000_000i64..3_000_000, Just(1_000_000), Just(0)]);
    let text = || prop::option::weighted(0.8, prop::sample::select(&TEXTS[..]));
    let integer = || prop::option::weighted(0.8, integers());
    let declined = prop::option::weighted(0.8, any::<bool>());
    ((integer(), integer()), (float(), float()), (decimal(), decimal()), (text(), text()), declined).prop_map(
        |((n, m), (score, ratio), (amount, fee), (country, city), declined)| Fields {
            n,
            m,
            score,
            ratio,
            amount,
            fee,
            country,
            city,
            declined,
        },
    )
}

impl Fields {
    fn event(&self) -> Event {
        let slots = [
            ("n", self.n.map(Slot::Integer)),
            ("m", self.m.map(Slot::Integer)),
            ("score", self.score.map(Slot::Float)),
            ("ratio", self.ratio.map(Slot::Float)),
            ("fee", self.fee.map(Slot::Decimal)),
            ("declined", self.declined.map(Slot::Boolean)),
        ];
        let slots = slots.into_iter().filter_map(|(name, slot)| Some((name, Own::Slot(slot?))));
        let texts = [("country", self.country), ("city", self.city)];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, Own::Text(text?))));
        let own: Vec<_> = slots.chain(texts).collect();
        let mut event = event(r#","currency":"ab""#, &own);
        std::sync::Arc::make_mut(&mut event.body).amount = self.amount;
        event
    }

    fn map(&self) -> HashMap<String, Value> {
        let values = [
            ("n", self.n.map(Value::Int)),
            ("m", self.m.map(Value::Int)),
            ("score", self.score.map(Value::Float)),
            ("ratio", self.ratio.map(Value::Float)),
            ("amount", self.amount.map(Value::Int)),
            ("fee", self.fee.map(Value::Int)),
            ("country", self.country.map(Value::from)),
            ("city", self.city.map(Value::from)),
            ("currency", Some(Value::from("ab"))),
            ("declined", self.declined.map(Value::Bool)),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Returns the interpreter's value of a condition; None of an error.
fn interpreted(source: &str, fields: &Fields) -> Option<bool> {
    let program = Program::compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));
    let mut context = Context::default();
    context.add_variable("event", Value::from(fields.map())).expect("a map of values");
    match program.execute(&context) {
        Ok(Value::Bool(value)) => Some(value),
        Ok(other) => panic!("{source}: {other:?}"),
        Err(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn conditions_agree_with_the_interpreter(both in condition(3), fields in fields()) {
        let layout = layout();
        let predicate = match compile_predicate(&both.ours, &Scope::of_events(&layout)) {
            Ok(predicate) => predicate,
            // Constants that overflow, or divide by zero, are errors of the compiler here.
            Err(error) if error.message.contains("overflow") => return Err(TestCaseError::reject("constants")),
            Err(error) => panic!("{}: {error}", both.ours),
        };
        let negated = compile_predicate(&format!("!({})", both.ours), &Scope::of_events(&layout)).expect("a condition");
        let event = fields.event();
        let ours = match (predicate.holds(&event), negated.holds(&event)) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        };
        prop_assert_eq!(ours, interpreted(&both.theirs, &fields), "{} or {}", both.ours, both.theirs);
    }
}
