//! Every dependency has a licence that deny.toml allows, and comes from the registry that it names.

use std::process::Command;

use serde_json::Value;

use crate::{text, texts};

/// Returns the packages of this platform that a build with these features compiles, as `cargo metadata` describes them.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"]);
    cargo.arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    for (feature, is_enabled) in [("tls", cfg!(feature = "tls")), ("otlp", cfg!(feature = "otlp"))] {
        if is_enabled {
            cargo.args(["--features", feature]);
        }
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// Returns true if a licence expression is fulfilled: `MIT OR Apache-2.0`, `(MIT OR ISC) AND Zlib`. Old manifests write
/// `/` for `OR`. `AND` binds closer, and a licence `WITH` an exception is one licence.
fn is_fulfilled(expression: &str, allowed: &[&str]) -> bool {
    let spaced =
        expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "+");
    let tokens: Vec<_> = spaced.split_whitespace().collect();
    let (fulfilled, rest) = any_of(&tokens, allowed);
    assert!(rest.is_empty(), "{expression}: cannot read {rest:?}");
    fulfilled
}

fn any_of<'a>(tokens: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (mut fulfilled, mut rest) = all_of(tokens, allowed);
    while let Some(("OR", after)) = rest.split_first().map(|(first, after)| (*first, after)) {
        let (other, after) = all_of(after, allowed);
        (fulfilled, rest) = (fulfilled || other, after);
    }
    (fulfilled, rest)
}

fn all_of<'a>(tokens: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (mut fulfilled, mut rest) = one(tokens, allowed);
    while let Some(("AND", after)) = rest.split_first().map(|(first, after)| (*first, after)) {
        let (other, after) = one(after, allowed);
        (fulfilled, rest) = (fulfilled && other, after);
    }
    (fulfilled, rest)
}

fn one<'a>(tokens: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (&first, rest) = tokens.split_first().expect("a licence");
    if first != "(" {
        return (allowed.contains(&first), rest);
    }
    let (fulfilled, rest) = any_of(rest, allowed);
    assert_eq!(rest.first(), Some(&")"));
    (fulfilled, &rest[1..])
}

/// Returns deny.toml.
fn policy() -> Value {
    let policy: toml::Table = text("deny.toml").parse().expect("TOML");
    serde_json::to_value(policy).expect("JSON")
}

#[test]
fn every_dependency_has_an_allowed_licence_and_source() {
    let policy = policy();
    let (allowed, sources) =
        (texts(&policy["licenses"]["allow"]), texts(&policy["sources"]["allow-registry"]));
    let packages = packages();
    assert!(packages.len() > 100, "{}", packages.len());
    for package in packages {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_fulfilled(licence, &allowed), "{name}: deny.toml does not allow {licence}");
        // The crates of this workspace have no source.
        let source = package["source"].as_str().map(|source| source.trim_start_matches("registry+"));
        assert!(source.is_none_or(|source| sources.contains(&source)), "{name} comes from {source:?}");
    }
}

#[test]
fn licence_expressions_are_evaluated() {
    let allowed = ["MIT", "ISC"];
    for fulfilled in
        ["MIT", "GPL-3.0/MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC", "GPL-3.0 AND Zlib OR MIT"]
    {
        assert!(is_fulfilled(fulfilled, &allowed), "{fulfilled}");
    }
    for unfulfilled in
        ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR (MIT AND Zlib)", "MIT WITH Classpath-exception-2.0"]
    {
        assert!(!is_fulfilled(unfulfilled, &allowed), "{unfulfilled}");
    }
}
