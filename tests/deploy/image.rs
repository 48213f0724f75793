//! Tests of the Dockerfile, and the check that images are pinned.

use crate::{path, text};

/// Returns true if an image's tag identifies one build: a version with at least a minor number, or a date.
pub fn is_pinned(image: &str) -> bool {
    let Some((_, tag)) = image.rsplit_once(':') else { return false };
    let version = tag.split(['-', '@']).next().unwrap_or_default().trim_start_matches('v');
    let numbers: Vec<_> = version.split('.').collect();
    let versioned = numbers.len() >= 2 && numbers.iter().all(|number| number.parse::<u32>().is_ok());
    versioned || tag.split('-').any(|part| part.len() == 8 && part.bytes().all(|c| c.is_ascii_digit()))
}

fn lines_of<'a>(dockerfile: &'a str, instruction: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    dockerfile.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(instruction)).then(|| words.collect())
    })
}

#[test]
fn a_pinned_image_names_a_version_or_a_date() {
    for image in ["a/b:v1.2.3", "a:16.13-alpine", "a:bookworm-20260824-slim"] {
        assert!(is_pinned(image), "{image}");
    }
    for image in ["a", "a:latest", "a:16", "a:16-alpine", "a:bookworm-slim", "a:main", "host:5000/a"] {
        assert!(!is_pinned(image), "{image}");
    }
}

#[test]
fn base_images_are_pinned_and_rust_is_the_pinned_toolchain() {
    let dockerfile = text("deploy/Dockerfile");
    let images: Vec<_> = lines_of(&dockerfile, "FROM").map(|words| words[0].to_owned()).collect();
    assert!(images.iter().all(|image| is_pinned(image)), "{images:?}");
    let pinned: toml::Table = text("rust-toolchain.toml").parse().expect("TOML");
    let version = pinned["toolchain"]["channel"].as_str().expect("a version");
    assert!(images[0].starts_with(&format!("rust:{version}-")), "{version}: {images:?}");
    assert_eq!(version.rsplit_once('.').map(|(minor, _)| minor), Some(env!("CARGO_PKG_RUST_VERSION")));
}

#[test]
fn copied_files_exist_and_are_not_ignored() {
    let (dockerfile, ignore) = (text("deploy/Dockerfile"), text("deploy/Dockerfile.dockerignore"));
    assert!(ignore.lines().any(|line| line == "*"), "other files are not ignored");
    let included: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let mut copied = Vec::new();
    for words in lines_of(&dockerfile, "COPY").filter(|words| !words[0].starts_with("--from")) {
        let words: Vec<_> = words.into_iter().filter(|word| !word.starts_with("--")).collect();
        copied.extend(words[..words.len() - 1].iter().map(|word| (*word).to_owned()));
    }
    copied.sort();
    let mut included: Vec<_> = included.into_iter().map(str::to_owned).collect();
    included.sort();
    assert_eq!(copied, included);
    for source in copied {
        assert!(path(&source).exists(), "{source}");
    }
}

#[test]
fn every_crate_of_the_workspace_is_copied() {
    let manifest: toml::Table = text("Cargo.toml").parse().expect("a manifest");
    let members = manifest["workspace"]["members"].as_array().expect("a list");
    let dockerfile = text("deploy/Dockerfile");
    for member in members.iter().filter_map(toml::Value::as_str) {
        for line in [format!("COPY {member}/Cargo.toml {member}/"), format!("COPY {member}/src {member}/src")]
        {
            assert!(dockerfile.lines().any(|have| have == line), "{line}");
        }
    }
}

#[test]
fn the_image_does_not_run_as_root() {
    let dockerfile = text("deploy/Dockerfile");
    let user = lines_of(&dockerfile, "USER").last().expect("a user")[0].to_owned();
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user}");
}
