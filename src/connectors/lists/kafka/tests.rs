use super::*;
use crate::fields::FieldType;
use crate::lists::{Cell, KeyType};

fn schema() -> Schema {
    Schema { key: KeyType::String, columns: vec![("risk".into(), FieldType::Decimal)] }
}

fn applied(
    schema: &Schema,
    key: Option<&str>,
    value: Option<&str>,
) -> (Option<Key>, Result<Option<Row>, String>) {
    entry(schema, key.map(str::as_bytes), value.map(str::as_bytes))
}

#[test]
fn a_record_is_an_entry_a_deletion_or_an_error() {
    let key = || Some(Key::Text("a".into()));
    let row: Row = [Cell::Whole(1_500_000)].into();
    assert_eq!(applied(&schema(), Some("a"), Some("{\"risk\":1.5}")), (key(), Ok(Some(row))));
    assert_eq!(applied(&schema(), Some("a"), None), (key(), Ok(None)));
    let (of, error) = applied(&schema(), Some("a"), Some("{\"risk\":{}}"));
    assert_eq!(
        (of, error),
        (key(), Err("risk: expected the type decimal, got an object or an array".into()))
    );
    assert_eq!(applied(&schema(), None, Some("{}")), (None, Err("the record has no key".into())));
    let set = Schema::set();
    assert_eq!(applied(&set, Some("a"), Some("anything")), (key(), Ok(Some(Box::default()))));
}
