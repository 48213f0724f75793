//! Lookups in lists.

use std::sync::Arc;

use headwater_dataflows::Since;

use super::*;
use crate::lists::{Cell, Key, KeyType, Lists, Schema, Table, Version};

const COLUMNS: [(&str, FieldType); 6] = [
    ("risk", FieldType::Decimal),
    ("tier", FieldType::String),
    ("visits", FieldType::Integer),
    ("score", FieldType::Float),
    ("open", FieldType::Boolean),
    ("since", FieldType::Timestamp),
];

fn lists() -> Lists {
    let columns = COLUMNS.map(|(name, kind)| (name.into(), kind)).to_vec();
    let lists = Lists::new([
        ("blocked".into(), Schema::set()),
        ("merchants".into(), Schema { key: KeyType::String, columns }),
        ("numbers".into(), Schema { key: KeyType::Integer, columns: Vec::new() }),
        ("amounts".into(), Schema { key: KeyType::Decimal, columns: Vec::new() }),
    ]);
    let text = |text: &str| Key::Text(text.into());
    let row = [
        Cell::Whole(3_500_000),
        Cell::Text("gold".into()),
        Cell::Whole(7),
        Cell::Float(0.5),
        Cell::Boolean(true),
        Cell::Whole(1_000),
    ];
    let contents = [
        ("blocked", vec![(text("ann"), Box::default()), (text("shop-1"), Box::default())]),
        (
            "merchants",
            vec![(text("shop-1"), row.into()), (text("bare"), COLUMNS.map(|_| Cell::Absent).into())],
        ),
        ("numbers", vec![(Key::Whole(4), Box::default())]),
        ("amounts", vec![(Key::Whole(12_340_000), Box::default())]),
    ];
    for (name, entries) in contents {
        let version = Version { since: Since::beginning(), hash: None, table: Arc::new(Table::new(entries)) };
        lists.get(name).expect("a list").begin([version]);
    }
    lists
}

fn subject() -> Event {
    let own = [("n", Own::Slot(Slot::Integer(4))), ("city", Own::Text("bare"))];
    event(r#","merchant_id":"shop-1","amount":"12.34""#, &own)
}

fn holds(source: &str) -> bool {
    let (layout, lists) = (layout(), lists());
    let scope = Scope::of_events(&layout).with_lists(&lists);
    let predicate = compile_predicate(source, &scope).unwrap_or_else(|error| panic!("{source}: {error}"));
    let holds = predicate.holds(&subject());
    assert_eq!(predicate.errors(), 0, "{source}");
    holds
}

#[test]
fn keys_and_values_are_looked_up() {
    for source in [
        "event.user_id in lists.blocked",
        "key in lists.blocked && !('bob' in lists.blocked)",
        "'shop-' + string(1) in lists.blocked",
        "event.merchant_id in lists.merchants",
        "lists.merchants[event.merchant_id].risk > 3.0 && lists.merchants[event.merchant_id].risk == 3.5",
        "lists.merchants[event.merchant_id].risk * 2.0 == 7.0",
        "lists.merchants[event.merchant_id].tier == 'gold'",
        "lists.merchants[event.merchant_id].tier in ['gold', 'silver']",
        "lists.merchants[event.merchant_id].visits == 7 && lists.merchants['shop-1'].score < 0.6",
        "lists.merchants[event.merchant_id].open",
        "lists.merchants[event.merchant_id].since < event.time",
        "has(lists.merchants[event.merchant_id].risk)",
        "!has(lists.merchants['none'].risk) && !has(lists.merchants[event.city].risk)",
        "!has(lists.merchants[event.country].risk)",
        "event.n in lists.numbers && 4 in lists.numbers && !(5 in lists.numbers)",
        "event.amount in lists.amounts && !(event.amount + 1.0 in lists.amounts)",
        "event.n > 3 && event.city in lists.merchants",
        "['ann', 'bob'].exists(name, name in lists.blocked)",
        "lists.merchants[lists.merchants['none'].tier].risk > 1.0 || event.user_id in lists.blocked",
    ] {
        assert!(holds(source), "{source}");
    }
}

#[test]
fn what_is_absent_makes_no_condition_hold() {
    for source in [
        "event.country in lists.blocked",
        "!(event.country in lists.blocked)",
        "lists.merchants['none'].risk > 1.0",
        "!(lists.merchants['none'].risk > 1.0)",
        "lists.merchants[event.city].tier != 'gold'",
        "lists.merchants[event.country].open",
    ] {
        assert!(!holds(source), "{source}");
    }
}

#[test]
fn numbers_values_and_choices_can_be_of_lists() {
    let (layout, lists) = (layout(), lists());
    let scope = Scope::of_events(&layout).with_lists(&lists);
    let number = compile_number("lists.merchants[event.merchant_id].risk", &scope).expect("a number");
    assert_eq!(number.micros(&subject()), Some(3_500_000));
    let scalar = |source| compile_scalar(source, &scope).expect("a value").hash(&subject());
    assert_eq!(scalar("lists.merchants['shop-1'].tier"), scalar("'gold'"));
    let severity = "event.user_id in lists.blocked ? 'high' : 'low'";
    let choice = compile_choice(severity, &scope, &["low", "high"]).expect("a choice");
    assert_eq!(choice.index(&subject()), Some(1));
}

#[test]
fn wrong_lookups_say_what_to_write() {
    let (layout, lists) = (layout(), lists());
    let scope = Scope::of_events(&layout).with_lists(&lists);
    for (source, expected) in [
        ("key in lists.blocket", "column 14: there is no list blocket; did you mean blocked?"),
        (
            "lists.merchants[key].rsk > 1.0",
            "column 22: the list merchants has no column rsk; did you mean risk?",
        ),
        (
            "lists.blocked[key].risk > 1.0",
            "column 20: the list blocked has no column risk; declare its `columns`, or write event.ip_address in lists.blocked",
        ),
        (
            "event.n in lists.blocked",
            "column 1: the keys of lists.blocked are strings, and this is an integer; write string(…) around it, or set the \
             list's `key_type`",
        ),
        (
            "event.user_id in lists.numbers",
            "column 1: the keys of lists.numbers are integers, and this is a string; write int(…) around it",
        ),
        (
            "has(lists.blocked)",
            "column 11: a list is never absent, but may be empty; write event.ip_address in lists.blocked",
        ),
        (
            "lists.merchants[key] == 'gold'",
            "column 22: cannot compare row with string; name a column: lists.merchants[key].risk",
        ),
        ("lists.blocked == 'gold'", "column 15: cannot compare list with string; write … in lists.blocked"),
        ("lists.blocked", "column 1: expected a condition, found a list"),
    ] {
        let error = compile_predicate(source, &scope).expect_err(source);
        assert_eq!(error.to_string(), expected, "{source}");
    }
    let none = compile_predicate("key in lists.blocked", &Scope::of_events(&layout)).expect_err("no lists");
    assert_eq!(none.to_string(), "column 14: there is no list blocked; declare it in a section [[lists]]");
}

/// The interpreter of the crate has a list as a map, whose `in` looks a key up, and whose entries have members.
#[test]
fn lookups_agree_with_the_interpreter() {
    use std::collections::HashMap;

    use ::cel::{Context, Program, Value};

    let map = |entries: Vec<(&str, Value)>| -> Value {
        let entries: HashMap<String, Value> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Value::from(entries)
    };
    let row =
        map(vec![("risk", Value::Float(3.5)), ("tier", Value::from("gold")), ("visits", Value::Int(7))]);
    let lists = map(vec![
        ("blocked", map(vec![("ann", Value::Bool(true)), ("shop-1", Value::Bool(true))])),
        ("merchants", map(vec![("shop-1", row), ("bare", map(vec![]))])),
    ]);
    let event = map(vec![
        ("user_id", Value::from("ann")),
        ("merchant_id", Value::from("shop-1")),
        ("city", Value::from("bare")),
    ]);
    let mut context = Context::default();
    context.add_variable("lists", lists).expect("a value");
    context.add_variable("event", event).expect("a value");
    for source in [
        "event.user_id in lists.blocked",
        "event.merchant_id in lists.merchants && event.city in lists.merchants",
        "!(event.city in lists.blocked)",
        "lists.merchants[event.merchant_id].risk > 3.0",
        "lists.merchants[event.merchant_id].risk > 4.0",
        "lists.merchants[event.merchant_id].tier == 'gold' && lists.merchants['shop-1'].visits == 7",
        "lists.merchants[event.city].tier == 'gold'",
        "lists.merchants['none'].tier == 'gold' || event.user_id in lists.blocked",
        "lists.merchants['none'].tier == 'gold' && !(event.user_id in lists.blocked)",
        "has(lists.merchants[event.merchant_id].risk)",
        "has(lists.merchants[event.city].risk)",
    ] {
        let theirs = match Program::compile(source).expect("a program").execute(&context) {
            Ok(Value::Bool(value)) => value,
            Ok(other) => panic!("{source}: {other:?}"),
            Err(_) => false,
        };
        assert_eq!(holds(source), theirs, "{source}");
    }
}
