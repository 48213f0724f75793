//! docs/exactly-once.md names only test files, tests and guards of the model that exist.

use crate::{path, rust_sources, text};

#[test]
fn the_fault_table_names_existing_tests() {
    let folders = ["src", "tests", "sinks", "dataflows"];
    let sources: Vec<_> = folders.iter().flat_map(|folder| rust_sources(&path(folder))).collect();
    let (mut missing, mut rows) = (Vec::new(), 0);
    for row in text("docs/exactly-once.md").lines().filter(|line| line.starts_with("| ")).skip(2) {
        let held_by = row.split('|').nth(2).expect("a second column");
        let names: Vec<_> = held_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {row}");
        rows += 1;
        for name in names {
            let exists = match name.ends_with(".rs") {
                true => sources.iter().any(|(path, _)| path.ends_with(name)),
                false => sources.iter().any(|(_, code)| {
                    [format!("fn {name}("), format!(" {name}: ")].iter().any(|at| code.contains(at))
                }),
            };
            if !exists {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(rows > 20, "{rows}");
    assert_eq!(missing, Vec::<String>::new());
}
