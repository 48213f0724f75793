use super::*;
use crate::fields::FieldType;
use crate::lists::{Cell, Key, KeyType};

const BOUNDS: ListBounds = ListBounds { entries: 4, bytes: 1000 };

fn table() -> Schema {
    let columns = [("risk", FieldType::Decimal), ("tier", FieldType::String), ("open", FieldType::Boolean)];
    Schema { key: KeyType::String, columns: columns.map(|(name, kind)| (name.into(), kind)).to_vec() }
}

fn parsed(format: Format, schema: &Schema, text: &str) -> Result<(Entries, Vec<String>), String> {
    parse(&FileListConfig { path: "l".into(), format }, schema, BOUNDS, text)
}

fn keys(entries: &Entries) -> Vec<&str> {
    let mut keys = Vec::new();
    for key in entries.keys() {
        let Key::Text(text) = key else { panic!("a text") };
        keys.push(&**text);
    }
    keys
}

#[test]
fn a_text_file_has_one_key_in_each_line() {
    let set = Schema::set();
    let (entries, warnings) =
        parsed(Format::Lines, &set, "\u{feff}# bad ones\n b \n\na\r\n#c\n").expect("valid");
    assert_eq!((keys(&entries), warnings.len()), (vec!["a", "b"], 0));
    let (entries, warnings) = parsed(Format::Lines, &set, "a\nb\na\nb\n").expect("valid");
    assert_eq!(entries.len(), 2);
    assert_eq!(
        warnings,
        ["l:3 repeats the key \"a\", and 1 more keys are repeated: the last entry of each counts"]
    );
    let too_many = parsed(Format::Lines, &set, "a\nb\nc\nd\ne\n").expect_err("five");
    assert_eq!(too_many, "l:5: there are more than 4 entries: shorten the list, or raise `max_entries`");
    let integers = Schema { key: KeyType::Integer, columns: Vec::new() };
    assert_eq!(
        parsed(Format::Lines, &integers, "4\nx\n").expect_err("no integer"),
        "l:2: the key \"x\" is not of the type integer"
    );
}

#[test]
fn columns_of_csv_are_found_by_name() {
    let text = "open,id,tier,risk\ntrue,a,\"x, y\",1.5\n,b,,\n";
    let (entries, _) = parsed(Format::Csv(Some("id".into())), &table(), text).expect("valid");
    let row = |cells: [Cell; 3]| -> crate::lists::Row { cells.into() };
    let expected = Entries::from([
        (
            Key::Text("a".into()),
            row([Cell::Whole(1_500_000), Cell::Text("x, y".into()), Cell::Boolean(true)]),
        ),
        (Key::Text("b".into()), row([Cell::Absent, Cell::Absent, Cell::Absent])),
    ]);
    assert_eq!(entries, expected);
    let error = |text: &str| parsed(Format::Csv(None), &table(), text).expect_err("wrong");
    assert_eq!(error(""), "l:1: expected a header with the columns");
    assert_eq!(error("id,risk\n"), "l:1: there is no column tier; columns: id, risk");
    let head = "id,risk,tier,open\n";
    assert_eq!(error(&format!("{head}a,1\n")), "l:2: expected 4 columns, got 2");
    assert_eq!(
        error(&format!("{head}\na,1,x,true\nb,much,x,true\n")),
        "l:4: risk: expected the type decimal, got \"much\""
    );
    assert_eq!(error(&format!("{head},1,x,true\n")), "l:2: the key is missing");
}

#[test]
fn objects_of_ndjson_have_members() {
    let format = || Format::Ndjson("id".into());
    let text = "{\"id\":\"a\",\"risk\":0.10,\"other\":[1],\"tier\":7}\n{\"id\":12,\"risk\":\"2\",\"open\":false,\"tier\":null}\n";
    let (entries, _) = parsed(format(), &table(), text).expect("valid");
    let rows: Vec<_> = entries.values().map(|row| row.to_vec()).collect();
    assert_eq!(keys(&entries), ["12", "a"]);
    assert_eq!(rows[0], [Cell::Whole(2_000_000), Cell::Absent, Cell::Boolean(false)]);
    assert_eq!(rows[1], [Cell::Whole(100_000), Cell::Text("7".into()), Cell::Absent]);
    let error = |text: &str| parsed(format(), &table(), text).expect_err("wrong");
    assert!(error("{\"id\":\"a\"}\n{\n").starts_with("l:2: expected a JSON object: "), "{}", error("{\n"));
    assert_eq!(
        error("{\"id\":\"a\",\"tier\":[]}"),
        "l:1: tier: expected the type string, got an object or an array"
    );
}

fn reader(path: &Path) -> FileReader {
    FileListConfig { path: path.to_owned(), format: Format::Lines }.reader(Schema::set(), BOUNDS)
}

/// Returns the number of entries, if they were read again.
fn read(reader: &mut FileReader) -> Result<Option<usize>, String> {
    reader.read().map(|reading| reading.entries.map(|entries| entries.len()))
}

#[test]
fn a_file_is_read_again_when_it_has_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("l.txt");
    let mut reader = reader(&path);
    assert!(read(&mut reader).expect_err("missing").contains("cannot read"));
    std::fs::write(&path, "a\n").expect("written");
    assert_eq!(read(&mut reader), Ok(Some(1)));
    assert_eq!(read(&mut reader), Ok(Some(1)), "it might change again within its time");
    let old = std::fs::File::options().write(true).open(&path).expect("opened");
    old.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("set");
    let other = dir.path().join("other.txt");
    std::fs::write(&other, "a\nb\n").expect("written");
    std::fs::rename(&other, &path).expect("renamed");
    assert_eq!(read(&mut reader), Ok(Some(2)));
    std::fs::write(&path, b"a\n\xff\n").expect("written");
    assert!(read(&mut reader).expect_err("no text").ends_with("l.txt:2: the line is not UTF-8"));
    std::fs::write(&path, "x\n".repeat(501)).expect("written");
    assert!(read(&mut reader).expect_err("too long").contains("above the 1000 of `max_bytes`"));
}

/// Kubernetes replaces a directory of mounted files by changing a link.
#[test]
fn a_link_that_changes_is_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    for (version, text) in [("1", "a\n"), ("2", "a\nb\n")] {
        std::fs::create_dir(dir.path().join(version)).expect("created");
        std::fs::write(dir.path().join(version).join("l.txt"), text).expect("written");
    }
    let link = |version: &str| {
        std::os::unix::fs::symlink(version, dir.path().join("new")).expect("linked");
        std::fs::rename(dir.path().join("new"), dir.path().join("data")).expect("renamed");
    };
    link("1");
    std::os::unix::fs::symlink("data/l.txt", dir.path().join("l.txt")).expect("linked");
    let mut reader = reader(&dir.path().join("l.txt"));
    assert_eq!(read(&mut reader), Ok(Some(1)));
    link("2");
    assert_eq!(read(&mut reader), Ok(Some(2)));
}
