//! The runbook has an entry for each refusal and each alert, and names only flags and alerts that exist.

use std::collections::BTreeSet;

use crate::{path, rust_sources, text, yaml};

/// Returns the source files of the program and the sinks, by name, without tests.
fn sources() -> Vec<(String, String)> {
    let all = ["src", "sinks/src"].into_iter().flat_map(|folder| rust_sources(&path(folder)));
    let named = all.map(|(file, code)| (file.display().to_string(), code));
    let of_program =
        named.filter(|(name, _)| !["model", "memory", "tests"].iter().any(|test| name.contains(test)));
    let without_tests = |code: &str| joined(code.split("#[cfg(test)]").next().unwrap_or_default());
    of_program.map(|(name, code)| (name, without_tests(&code))).collect()
}

/// Joins string literals that continue over several lines.
fn joined(code: &str) -> String {
    let mut parts = code.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.trim_start())
}

/// Returns the literals after each occurrence of `begin`, possibly inside a `format!`.
fn literals<'a>(code: &'a str, begin: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(begin) {
        let rest = code[at + begin.len()..].trim_start();
        let rest = rest.strip_prefix("format!(").unwrap_or(rest).trim_start();
        let Some(rest) = rest.strip_prefix('"') else { continue };
        let ends = rest.match_indices('"').find(|(at, _)| !rest[..*at].ends_with('\\'));
        found.extend(ends.map(|(end, _)| &rest[..end]));
    }
    found
}

/// Returns the longest constant part of a message's literal, cut at a word boundary after at most 60 characters.
fn constant_part(literal: &str) -> &str {
    let pieces = literal.split(['{', '}', '`', '\\']);
    let longest = pieces.max_by_key(|piece| piece.len()).unwrap_or_default().trim();
    match longest.char_indices().nth(60) {
        Some((at, _)) => longest[..at].rsplit_once(' ').map_or(&longest[..at], |(words, _)| words),
        None => longest,
    }
}

#[test]
fn quotes_begin_and_end_at_words() {
    for (n, line) in text("docs/runbook.md").lines().enumerate() {
        for (at, _) in line.match_indices('`') {
            let is_letter = |c: char| c.is_ascii_alphanumeric();
            let inside = line[..at].ends_with(is_letter) && line[at + 1..].starts_with(is_letter);
            assert!(!inside, "line {}: {line}", n + 1);
        }
    }
    let book = text("docs/runbook.md");
    let quotes = book.split('`').skip(1).step_by(2);
    let ragged: Vec<_> = quotes.filter(|quote| quote.trim() != *quote).collect();
    assert!(ragged.is_empty(), "{ragged:?}");
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_refusal_has_an_entry() {
    let book = words(&text("docs/runbook.md"));
    // Files whose error types are all refusals, or have the text of one.
    let kinds = ["coordination/recovery.rs", "runtime/recovery/compatibility.rs", "config/change.rs"];
    let (mut count, mut missing) = (0, Vec::new());
    for (name, code) in sources() {
        let mut literals_found = [literals(&code, "Refused("), literals(&code, "refused(")].concat();
        if kinds.iter().any(|kind| name.ends_with(kind)) {
            literals_found.extend(literals(&code, "#[error("));
        }
        for part in literals_found.into_iter().map(constant_part).filter(|part| part.len() > 12) {
            count += 1;
            if !book.contains(&words(part)) {
                missing.push(format!("{name}: {part}"));
            }
        }
    }
    assert!(count > 30, "{count}");
    assert!(missing.is_empty(), "docs/runbook.md has no entry for:\n{}", missing.join("\n"));
}

#[test]
fn every_alert_has_an_entry_and_every_entry_an_alert() {
    let groups = yaml("deploy/prometheus/alerts.yml")["groups"].as_array().cloned().expect("groups");
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().cloned().expect("rules"));
    let alerts: BTreeSet<_> = rules.map(|rule| rule["alert"].as_str().expect("a name").to_owned()).collect();
    let book = text("docs/runbook.md");
    let entries = book.lines().filter_map(|line| line.strip_prefix("### Headwater"));
    assert_eq!(entries.map(|name| format!("Headwater{name}")).collect::<BTreeSet<_>>(), alerts);
}

#[test]
fn every_flag_in_the_runbook_exists() {
    fn options(command: &clap::Command, all: &mut BTreeSet<String>) {
        all.extend(command.get_arguments().filter_map(|option| option.get_long().map(str::to_owned)));
        command.get_subcommands().for_each(|command| options(command, all));
    }
    let mut known = BTreeSet::new();
    options(&headwater::cli::args::description(|_| None), &mut known);
    assert!(known.contains("accept-loss"), "{known:?}");
    let book = text("docs/runbook.md");
    let flags =
        book.split_whitespace().map(|word| word.trim_matches(['`', '(', ')', ',', '.', ';', ':', '…']));
    let flags: BTreeSet<_> = flags.filter_map(|word| word.strip_prefix("--")).collect();
    for flag in flags.into_iter().filter(|flag| *flag != "files") {
        assert!(known.contains(flag), "{flag}");
    }
}
