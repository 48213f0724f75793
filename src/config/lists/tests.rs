use std::collections::BTreeSet;

use crate::config::tests::rules::{expect_errors, parse};
use crate::config::{Config, ListConfig, changes};
use crate::fields::FieldType;
use crate::lists::KeyType;

#[test]
fn a_list_has_types_bounds_and_a_source() {
    let config = parse(
        "[[lists]]\nname = \"blocked\"\nsource = { kind = \"file\", path = \"/tmp/blocked.txt\" }\n[[lists]]\nname = \"shops\"\n\
         columns = { risk = \"decimal\", tier = \"string\" }\nmax_entries = 5\nmax_bytes = \"1KiB\"\nwait = \"0s\"\nkey_type = \
         \"integer\"\nsource = { kind = \"postgres\", query = \"SELECT 1\", url = \"postgres://u:secret@h/d\" }\n[[rules]]\nid = \
         \"r\"\nwhere = \"event.user_id in lists.blocked || lists.shops[4].risk > 1.0\"\nmatch = true\n",
    )
    .expect("valid");
    let [blocked, shops] = &config.lists[..] else { panic!("two lists") };
    assert_eq!(
        (&*blocked.name, blocked.schema.key, blocked.wait.as_secs()),
        ("blocked", KeyType::String, 10)
    );
    assert_eq!(blocked.source.to_string(), "file /tmp/blocked.txt");
    let columns = vec![("risk".into(), FieldType::Decimal), ("tier".into(), FieldType::String)];
    assert_eq!((shops.schema.key, &shops.schema.columns), (KeyType::Integer, &columns));
    assert_eq!((shops.bounds.entries, shops.bounds.bytes, shops.wait.as_secs()), (5, 1024, 0));
    let names: Vec<_> = config.rule_scope.lists().names().collect();
    assert_eq!(names, ["blocked", "shops"]);
    assert!(!config.effective().contains("secret"), "{}", config.effective());
}

#[test]
fn servers_are_those_of_the_source_and_the_only_sink() {
    let text = "pipeline = \"p\"\n[source]\nkind = \"kafka\"\nbrokers = \"b:1\"\n[sinks.postgres]\nurl = \"postgres://u@h/d\"\n";
    let lists = "[[lists]]\nname = \"a\"\nsource = { kind = \"kafka\", topic = \"risk\" }\n[[lists]]\nname = \"b\"\nsource = \
                 { kind = \"postgres\", query = \"SELECT 1\" }\n";
    let config = Config::parse(&format!("{text}{lists}"), std::iter::empty()).expect("valid");
    let sources: Vec<_> = config.lists.iter().map(|list: &ListConfig| list.source.to_string()).collect();
    assert_eq!(sources, ["topic risk at b:1", "query in database d at h:5432"]);
    expect_errors(
        lists,
        &[
            "line 6: lists[0].source.brokers: is missing: the source of the pipeline is not Kafka, whose brokers are the default",
            "line 9: lists[1].source.url: a query needs a url here, or exactly one PostgreSQL sink",
        ]
        .map(|error| error.split_once(": ").map_or(error, |(_, rest)| rest)),
    );
}

#[test]
fn wrong_lists_are_named() {
    let source = "source = { kind = \"file\", path = \"a.txt\" }\n";
    expect_errors(
        &format!(
            "[[lists]]\nname = \"in\"\n{source}[[lists]]\nname = \"a\"\n{source}[[lists]]\nname = \"a\"\n{source}"
        ),
        &[
            "line 5: lists[0].name: expected at most 63 lower-case letters, digits and _ with a letter first, and no word of \
             expressions such as in",
            "line 11: lists[2].name: two lists have the name a",
        ],
    );
    expect_errors(
        "[[lists]]\nname = \"a\"\ncolumns = { risk = \"decimals\", in = \"string\" }\nsource = { kind = \"file\", path = \"a.csv\" }\n",
        &[
            "line 6: lists[0].columns.in: expected the name of a column: at most 63 letters, digits and _",
            "line 6: lists[0].columns.risk: expected a type: string, decimal, integer, float, boolean, timestamp, got \
             \"decimals\"; did you mean \"decimal\"?",
        ],
    );
    expect_errors(
        "[[lists]]\nname = \"a\"\ncolumns = { risk = \"decimal\" }\nsource = { kind = \"file\", path = \"a.txt\" }\n",
        &[
            "line 7: lists[0].source.path: a file with columns ends with .csv or .ndjson; any other has one key in each line",
        ],
    );
    expect_errors(
        "[[lists]]\nname = \"a\"\nsource = { kind = \"file\", path = \"a.ndjson\" }\n",
        &["lists[0].source.key: is missing: the name of the member with the key"],
    );
    expect_errors(
        "[[lists]]\nname = \"a\"\n",
        &["lists[0].source: is missing: for example `source = { kind = \"file\", path = \"blocked.txt\" }`"],
    );
    expect_errors(
        &format!(
            "[[lists]]\nname = \"a\"\n{source}[[rules]]\nid = \"r\"\nwhere = \"key in lists.b\"\nmatch = true\n"
        ),
        &["line 9: rules[0].where: column 14: there is no list b; did you mean a?, in: key in lists.b"],
    );
}

#[test]
fn lists_with_a_ledger_need_checkpoints() {
    let list = "[[lists]]\nname = \"a\"\nsource = { kind = \"file\", path = \"a.txt\" }\n";
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"l.db\"\n";
    expect_errors(
        &format!("{list}{ledger}"),
        &[
            "line 4: lists: lists of a pipeline with a [ledger] need [checkpoint], whose state store keeps the contents that a \
           start replays events with: add an empty section [checkpoint]",
        ],
    );
    assert!(parse(&format!("{list}{ledger}[checkpoint]\n")).is_ok());
    assert!(parse(list).is_ok(), "without a ledger, nothing is replayed");
}

/// Types decide what an expression finds; where contents come from does not, because they are recorded.
#[test]
fn only_names_and_types_are_recorded() {
    let semantics =
        |list: &str| parse(&format!("[[lists]]\nname = \"a\"\n{list}")).expect("valid").semantics();
    let file = |path: &str| format!("source = {{ kind = \"file\", path = \"{path}\" }}\n");
    let before = semantics(&file("a.csv"));
    assert!(before.contains("lists[0].name = \"a\"\nlists[0].key_type = \"string\"\n"), "{before}");
    assert_eq!(before, semantics(&format!("max_entries = 7\nwait = \"1s\"\n{}", file("b.csv"))));
    let now = semantics(&format!("columns = {{ name = \"string\" }}\n{}", file("a.csv")));
    let change = changes(&before, &now, &BTreeSet::new()).expect("permitted").expect("a change");
    assert!(change.reason.contains("`lists.a.columns.name = \"string\"`"), "{}", change.reason);
    assert!(change.discarded.is_empty());
}

#[test]
fn tests_of_rules_need_no_source() {
    let text = "[[lists]]\nname = \"a\"\ncolumns = { x = \"float\" }\nsource = { kind = \"postgres\", query = \"${NOT_SET}\" }\n\
                [[rules]]\nid = \"r\"\nwhere = \"lists.a[key].x > 1.0\"\nmatch = true\n";
    let config = Config::parse_to_test_rules(text, std::iter::empty()).expect("valid");
    assert_eq!(config.rule_scope.lists().names().collect::<Vec<_>>(), ["a"]);
}
