use headwater_dataflows::{Epoch, Offset, Partition};
use proptest::prelude::*;

use super::*;
use crate::fields::FieldType;

fn since(epoch: u64, end: i64, last_time: i64) -> Since {
    Since { epoch: Epoch(epoch), ends: vec![Offset(end)], last_time: EventTime(last_time) }
}

fn position(offset: i64) -> Position {
    Position { partition: Partition(0), offset: Offset(offset) }
}

fn lists() -> Lists {
    Lists::new([("blocked".into(), Schema::set())])
}

fn table(keys: &[&str]) -> Arc<Table> {
    Arc::new(Table::new(keys.iter().map(|key| (Key::Text((*key).into()), Row::default()))))
}

/// Returns the offsets of 0 to 30 in tens at which a key is found.
fn found(list: &List, key: &str) -> Vec<i64> {
    let is_found = |offset: &i64| list.at(position(*offset), |table| table.text(key).is_some());
    [0, 10, 20, 30].into_iter().filter(is_found).collect()
}

fn add(list: &List, since: Since, hash: u8, keys: &[&str]) {
    list.add(&since, [hash; 32], || Ok::<_, ()>(table(keys))).expect("contents");
}

#[test]
fn an_event_is_judged_by_the_contents_at_its_position() {
    let lists = lists();
    let list = lists.get("blocked").expect("the list");
    assert!(found(list, "a").is_empty());
    add(list, since(3, 10, 100), 1, &["a"]);
    assert_eq!(found(list, "a"), [10, 20, 30]);
    add(list, since(5, 20, 200), 2, &["b"]);
    assert_eq!((found(list, "a"), found(list, "b")), (vec![10], vec![20, 30]));
    // Another worker adds it again.
    list.add(&since(3, 10, 100), [1; 32], || Err::<Arc<Table>, _>("made twice")).expect("added before");
    list.add(&since(7, 30, 300), [1; 32], || Err::<Arc<Table>, _>("made twice")).expect("at hand");
    assert_eq!(found(list, "a"), [10, 30], "contents that come back");
}

#[test]
fn contents_are_forgotten_when_no_event_needs_them() {
    let lists = lists();
    let list = lists.get("blocked").expect("the list");
    add(list, since(3, 10, 100), 1, &["a"]);
    add(list, since(5, 20, 200), 2, &["b"]);
    let kept = || list.locked().len();
    lists.settle(EventTime(99));
    assert_eq!(kept(), 3);
    lists.settle(EventTime(199));
    assert_eq!(kept(), 2, "an event at 150 may be looked up in the first contents");
    assert_eq!(found(list, "a"), [0, 10], "no event is before offset 10");
    lists.settle(EventTime(200));
    assert_eq!((kept(), found(list, "b")), (1, vec![0, 10, 20, 30]));
}

#[test]
fn a_run_begins_with_its_own_contents() {
    let lists = lists();
    let list = lists.get("blocked").expect("the list");
    add(list, since(3, 10, 100), 1, &["a"]);
    let version = Version { since: since(9, 20, 5), hash: Some([2; 32]), table: table(&["b"]) };
    list.begin([version]);
    assert_eq!((found(list, "a"), found(list, "b")), (vec![], vec![20, 30]));
}

#[test]
fn threads_see_a_version_that_another_has_added() {
    let lists = lists();
    let list = lists.get("blocked").expect("the list");
    assert!(found(list, "a").is_empty());
    std::thread::scope(|scope| {
        scope.spawn(|| add(list, since(3, 10, 100), 1, &["a"]));
    });
    assert_eq!(found(list, "a"), [10, 20, 30]);
}

fn schema(columns: &[(&str, FieldType)]) -> Schema {
    let columns = columns.iter().map(|(name, kind)| ((*name).into(), *kind)).collect();
    Schema { key: KeyType::String, columns }
}

/// The encoding of version 1, which must never change.
#[test]
fn golden_bytes() {
    let schema = schema(&[("risk", FieldType::Decimal), ("tier", FieldType::String)]);
    let row = |risk| [Cell::Whole(risk), Cell::Text("au".into())].into();
    let entries = Entries::from([(Key::Text("b".into()), row(-1)), (Key::Text("a".into()), row(4_500_000))]);
    let bytes = encode(&schema, &entries);
    let expected: Vec<u8> = [
        &[1, 0, 2, 4][..],
        b"risk",
        &[7],
        b"decimal",
        &[4],
        b"tier",
        &[6],
        b"string",
        &[2, 0, 1],
        b"a",
        &[2, 2, 252, 64, 84, 137, 0, 1, 2],
        b"au",
        &[0, 1],
        b"b",
        &[2, 2, 1, 1, 2],
        b"au",
    ]
    .concat();
    assert_eq!(bytes, expected);
    let table = Table::decode(&schema, &bytes).expect("contents");
    assert_eq!((table.len(), table.text("a")), (2, Some(&row(4_500_000))));
}

#[test]
fn contents_with_other_columns_are_read_by_name_and_type() {
    let before =
        schema(&[("gone", FieldType::String), ("risk", FieldType::Decimal), ("tier", FieldType::String)]);
    let row = [Cell::Text("x".into()), Cell::Whole(7), Cell::Text("gold".into())].into();
    let bytes = encode(&before, &Entries::from([(Key::Text("a".into()), row)]));
    let now = schema(&[("new", FieldType::Float), ("risk", FieldType::Integer), ("tier", FieldType::String)]);
    let table = Table::decode(&now, &bytes).expect("contents");
    let expected: Row = [Cell::Absent, Cell::Absent, Cell::Text("gold".into())].into();
    assert_eq!(table.text("a"), Some(&expected));
    let other_keys = Schema { key: KeyType::Integer, ..now };
    assert!(Table::decode(&other_keys, &bytes).expect("contents").is_empty());
}

#[test]
fn damaged_contents_are_rejected() {
    let schema = Schema::set();
    let bytes = encode(&schema, &Entries::from([(Key::Text("a".into()), Row::default())]));
    assert_eq!(
        Table::decode(&schema, &[]).expect_err("empty").to_string(),
        "the contents are malformed: they are empty"
    );
    assert_eq!(Table::decode(&schema, &[2, 0]).expect_err("unknown"), Malformed::Version(2));
    for end in 1..bytes.len() {
        assert!(Table::decode(&schema, &bytes[..end]).is_err(), "cut at {end}");
    }
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Absent),
        ".{0,9}".prop_map(|text| Cell::Text(text.into())),
        any::<i64>().prop_map(Cell::Whole),
        (-1e9..1e9).prop_map(Cell::Float),
        any::<bool>().prop_map(Cell::Boolean),
    ]
}

proptest! {
    #[test]
    fn contents_round_trip(rows in prop::collection::btree_map(".{0,9}", [cell(), cell()], 0..20)) {
        let schema = schema(&[("a", FieldType::String), ("b", FieldType::Float)]);
        let entries: Entries =
            rows.iter().map(|(key, row)| (Key::Text(key.as_str().into()), row.clone().into())).collect();
        let bytes = encode(&schema, &entries);
        let table = Table::decode(&schema, &bytes).expect("contents");
        prop_assert_eq!(table.len(), rows.len());
        for (key, row) in &rows {
            prop_assert_eq!(table.text(key).map(|row| &**row), Some(&row[..]));
        }
        let mut reordered: Vec<_> = entries.into_iter().collect();
        reordered.reverse();
        prop_assert_eq!(encode(&schema, &reordered.into_iter().collect()), bytes);
    }

    #[test]
    fn any_bytes_are_decoded_or_rejected(body in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = Table::decode(&Schema::set(), &[&[1], &body[..]].concat());
    }

    /// A list with every version that it ever had answers alike, for every event that is not final.
    #[test]
    fn forgetting_changes_no_answer(
        steps in prop::collection::vec((1i64..20, 0i64..50, 0i64..40), 1..12), final_at in 0usize..12
    ) {
        let (kept, all) = (lists(), lists());
        let of = |lists: &Lists| Arc::clone(lists.get("blocked").expect("the list"));
        let (mut end, mut last, mut watermark) = (0, 0, i64::MIN);
        let mut events = Vec::new();
        for (at, (count, ahead, behind)) in steps.iter().enumerate() {
            // Events of the epoch, then a version that is in force after it.
            for offset in end..end + count {
                let time = last + ahead - (offset * 7) % 30;
                if time > watermark {
                    events.push((offset, time));
                }
            }
            end += count;
            let newest = events.iter().map(|(_, time)| *time).max().unwrap_or(i64::MIN);
            last = newest.max(last);
            let key = at.to_string();
            for list in [of(&kept), of(&all)] {
                add(&list, since(at as u64 + 1, end, last.max(watermark)), at as u8, &[&key]);
            }
            watermark = watermark.max(last - behind);
            if at <= final_at {
                kept.settle(EventTime(watermark));
            }
            for (offset, _) in events.iter().filter(|(_, time)| *time > watermark) {
                let contents = |lists: &Lists| of(lists).at(position(*offset), |table| {
                    (0..steps.len()).find(|at| table.text(&at.to_string()).is_some())
                });
                prop_assert_eq!(contents(&kept), contents(&all), "offset {}", offset);
            }
        }
    }
}
