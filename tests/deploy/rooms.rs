//! The modules of the root crate import each other in one direction only.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{path, rust_sources};

/// The modules from the bottom to the top: each may import only modules before it.
const LAYERS: [&str; 35] = [
    "json",
    "exact",
    "spelling",
    "wall",
    "logging",
    "fields",
    "event",
    "lists",
    "cel",
    "coordination",
    "rounds",
    "source",
    "decode",
    "outputs",
    "database",
    "dead_letters",
    "metrics",
    "client",
    "registry",
    "routes",
    "ledger",
    "state",
    "pipeline",
    "settings",
    "connectors",
    "config",
    "cluster",
    "otlp",
    "topics",
    "results",
    "runtime",
    "assembly",
    "http",
    "cli",
    "embed",
];

/// Returns the names that follow `crate::`, also inside the braces of `crate::{a::X, b::Y}`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, matched) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + matched.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = &list[..list.find("};").unwrap_or(list.len())];
                found.extend(list.split(',').map(|item| name(item.trim())));
            }
            None => {
                found.insert(name(rest));
            }
        }
    }
    found
}

/// Returns the imports that point upwards, of a file or of all files of a folder. Files of tests may import anything.
fn upward_imports(place: &Path, module: &str) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut upwards = Vec::new();
    for (file, code) in rust_sources(place) {
        if file.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        for import in imports(&code) {
            if layer(&import).is_some_and(|imported| Some(imported) > layer(module)) {
                upwards.push(format!("{} imports crate::{import}", file.display()));
            }
        }
    }
    upwards
}

#[test]
fn modules_import_only_modules_of_lower_layers() {
    let (mut upwards, mut modules) = (Vec::new(), BTreeSet::new());
    for entry in std::fs::read_dir(path("src")).expect("a folder") {
        let entry = entry.expect("an entry").path();
        let module = entry.file_stem().expect("a name").to_string_lossy().into_owned();
        if module != "lib" && module != "main" {
            upwards.extend(upward_imports(&entry, &module));
            modules.insert(module);
        }
    }
    assert_eq!(modules, LAYERS.map(str::to_owned).into(), "every module has its layer");
    assert_eq!(upwards, Vec::<String>::new());
}

#[test]
fn an_upward_import_is_found() {
    let code =
        "use crate::{json::write, runtime::run};\nfn f() { crate::wall::wall_ms(); other_crate::cli(); }";
    assert_eq!(imports(code), ["json", "runtime", "wall"].map(str::to_owned).into());
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("record.rs");
    std::fs::write(&file, code).expect("written");
    let upwards = upward_imports(&file, "decode");
    assert_eq!(upwards.len(), 1, "{upwards:?}");
    assert!(upwards[0].ends_with("imports crate::runtime"), "{upwards:?}");
}
