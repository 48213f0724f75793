//! Files with tests of rules, and the configurations that they name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::events::{Arrival, TestFields};
use super::expect::{self, ExpectedAlert, ExpectedLetter, Names};
use super::keys::find;
use super::lists;
use crate::config::{Config, ConfigError, Origin};
use crate::decode::Decoding;
use crate::lists::Lists;
use crate::pipeline::Plan;
use crate::settings::{Diagnostics, Section, tree};

/// Errors in files, each with its place.
#[derive(Debug, Default, Error)]
#[error("{}", .0.join("\n"))]
pub struct WrongFiles(pub Vec<String>);

/// A file with tests.
#[derive(Debug)]
pub struct TestFile {
    /// The path.
    pub path: PathBuf,
    /// The computation whose rules are tested, without windows.
    pub plan: Plan,
    /// The lists that the rules look values up in.
    pub registry: Lists,
    /// The contents of lists, unless a test has others.
    pub lists: lists::Contents,
    /// The tests, in their order.
    pub tests: Vec<TestCase>,
}

/// A test.
#[derive(Debug)]
pub struct TestCase {
    /// The name.
    pub name: String,
    /// The line of the name.
    pub line: usize,
    /// The contents of lists.
    pub lists: lists::Contents,
    /// The events, in the order of arrival.
    pub arrivals: Vec<Arrival>,
    /// The expected changes of alerts.
    pub alerts: Vec<ExpectedAlert>,
    /// The expected refusals of events.
    pub letters: Vec<ExpectedLetter>,
}

/// Returns the files with tests at these paths, sorted, each once: files, and in directories and below all whose names
/// end with `_test.toml` or `.test.toml`.
///
/// # Errors
/// If a path cannot be read, or a directory has no such file.
pub fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, WrongFiles> {
    let (mut found, mut errors) = (BTreeSet::new(), Vec::new());
    for path in paths {
        let mut files = BTreeSet::new();
        match collect(path, true, &mut files) {
            Err(error) => errors.push(format!("{}: {error}", path.display())),
            Ok(()) if files.is_empty() => {
                errors
                    .push(format!("{}: the directory has no *_test.toml and no *.test.toml", path.display()));
            }
            Ok(()) => found.append(&mut files),
        }
    }
    if errors.is_empty() { Ok(found.into_iter().collect()) } else { Err(WrongFiles(errors)) }
}

/// Collects the files at a path. Links below it are not followed, so that there are no cycles.
fn collect(path: &Path, is_named: bool, found: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    let metadata = if is_named { path.metadata()? } else { path.symlink_metadata()? };
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            collect(&entry?.path(), false, found)?;
        }
    } else if is_named || name.ends_with("_test.toml") || name.ends_with(".test.toml") {
        found.insert(path.to_owned());
    }
    Ok(())
}

/// Reads all files.
///
/// # Errors
/// Returns all errors in them and in the configurations that they name.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<TestFile>, WrongFiles> {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for path in paths {
        match read(path) {
            Ok(file) => files.push(file),
            Err(WrongFiles(found)) => errors.extend(found),
        }
    }
    // Several files may name the same configuration.
    let mut seen = BTreeSet::new();
    errors.retain(|error| seen.insert(error.clone()));
    if errors.is_empty() { Ok(files) } else { Err(WrongFiles(errors)) }
}

fn read(path: &Path) -> Result<TestFile, WrongFiles> {
    let text = read_text(path)?;
    let tree = tree::parse(&text, &[]).map_err(|(origin, message)| {
        wrong(path, &[ConfigError { origin, key: "the file".into(), message }])
    })?;
    let mut diagnostics = Diagnostics::default();
    let mut top = Section::top(&tree, find);
    let configuration = read_configuration(&mut top, path, &mut diagnostics);
    // Without the configuration, the names of rules and fields are not known.
    let Some((configuration, text)) = configuration else { return Err(wrong(path, &diagnostics.errors)) };
    let (mut plan, registry) = parse_plan(&configuration, &text)?;
    let contents = lists::read(&mut top, &registry, &mut diagnostics);
    let fields = TestFields::new(plan.decoding.fields.as_deref());
    let tests = read_tests(&mut top, &plan, &registry, &fields, &mut diagnostics);
    Section::end_of(&mut top, &mut diagnostics);
    if !diagnostics.errors.is_empty() {
        let mut errors = diagnostics.errors;
        errors.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
        return Err(wrong(path, &errors));
    }
    // Events are written by the names of their fields, whatever the format of records.
    plan.decoding = Decoding { fields: Some(fields.map().clone()), binary: None, ..plan.decoding };
    Ok(TestFile { path: path.to_owned(), plan, registry, lists: contents, tests })
}

fn read_text(path: &Path) -> Result<String, WrongFiles> {
    let failed = |error| WrongFiles(vec![format!("cannot read {}: {error}", path.display())]);
    std::fs::read_to_string(path).map_err(failed)
}

/// Returns errors with the file that they are in. Those of further files name them.
fn wrong(path: &Path, errors: &[ConfigError]) -> WrongFiles {
    let named = errors.iter().map(|error| match error.origin {
        Origin::LineOf(..) => error.to_string(),
        _ => format!("{}: {error}", path.display()),
    });
    WrongFiles(named.collect())
}

/// Returns the path and the text of the configuration that a file names.
fn read_configuration(
    top: &mut Section<'_>,
    path: &Path,
    diagnostics: &mut Diagnostics,
) -> Option<(PathBuf, String)> {
    let rules =
        top.get_text("rules", diagnostics, |text| match text {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err("the path of the configuration with the rules, as in a file of tests (NAME_test.toml)"
                .to_owned()),
        })?;
    let configuration = path.parent().unwrap_or(Path::new("")).join(rules);
    match read_text(&configuration) {
        Ok(text) => Some((configuration, text)),
        Err(WrongFiles(errors)) => {
            top.report_error("rules", errors.join(", "), diagnostics);
            None
        }
    }
}

/// Returns the computation of a configuration, without windows, and its lists.
fn parse_plan(path: &Path, text: &str) -> Result<(Plan, Lists), WrongFiles> {
    let environment = Config::environment().map_err(|errors| wrong(path, &errors.0))?;
    let config = Config::parse_to_test_rules(text, environment.into_iter())
        .map_err(|errors| wrong(path, &errors.0))?;
    let lists = config.rule_scope.lists().clone();
    Ok((config.plan, lists))
}

fn read_tests(
    top: &mut Section<'_>,
    plan: &Plan,
    registry: &Lists,
    fields: &TestFields,
    diagnostics: &mut Diagnostics,
) -> Vec<TestCase> {
    let names = Names::of(plan);
    let sections = top.sections("test", diagnostics);
    if sections.is_empty() {
        top.report_error("test", "is missing: a file has at least one section [[test]]", diagnostics);
    }
    let mut known = BTreeSet::new();
    let mut tests = Vec::new();
    for mut section in sections {
        let line = expect::line(&section.item("name").map_or(section.origin(), |item| item.origin.clone()));
        let name = section.text("name", diagnostics);
        if let Some(name) = name.as_ref().filter(|name| !known.insert((*name).clone())) {
            section.report_error("name", format!("two tests have the name {name:?}"), diagnostics);
        }
        for required in ["events", "expect"] {
            if !section.has(required) {
                section.report_missing(required, diagnostics);
            }
        }
        let lists = lists::read(&mut section, registry, diagnostics);
        let events = section.sections("events", diagnostics);
        if section.has("events") && events.is_empty() {
            section.report_error("events", "a test has at least one event", diagnostics);
        }
        let arrivals = fields.read(events, diagnostics);
        let expected = section.sections("expect", diagnostics).into_iter();
        let alerts =
            expected.filter_map(|section| expect::read_alert(section, &names, diagnostics)).collect();
        let letters = section.sections("dead_letters", diagnostics).into_iter();
        let letters = letters.filter_map(|section| expect::read_letter(section, diagnostics)).collect();
        section.end(diagnostics);
        tests.push(TestCase { name: name.unwrap_or_default(), line, lists, arrivals, alerts, letters });
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_directories_are_found_sorted_and_once() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("inner")).expect("created");
        for name in ["b_test.toml", "a.test.toml", "inner/c_test.toml", "rules.toml", "other.txt"] {
            std::fs::write(path(name), "").expect("written");
        }
        std::os::unix::fs::symlink(folder.path(), path("inner/again")).expect("linked");
        let find = |names: &[&str]| find_files(&names.iter().map(|name| path(name)).collect::<Vec<_>>());
        let all = ["a.test.toml", "b_test.toml", "inner/c_test.toml"].map(path);
        assert_eq!(find(&["b_test.toml", ""]).expect("found").as_slice(), all);
        assert_eq!(find(&["rules.toml"]).expect("a file that is named").as_slice(), [path("rules.toml")]);
        std::fs::create_dir(path("empty")).expect("created");
        let WrongFiles(errors) = find(&["empty", "none", "inner"]).expect_err("two of them have none");
        assert_eq!(errors.len(), 2, "{errors:?}");
    }
}
