//! Readers of values that may hold a secret: the addresses of servers and the options of the Kafka client. Each value
//! is in its key, or in the file that `KEY_file` names. Error messages contain no secret.

use std::collections::BTreeMap;

use headwater_sinks::Secret;
use headwater_sinks::kafka::options::{Options, check_option, is_harmless, names};

use super::address::Server;
use super::read::{ConfigError, Diagnostics, Section, nearest};
use super::tree::{Item, Node};

/// The suffix of a key whose value is the path of a file with the secret.
const FILE: &str = "_file";

/// An address with its password, and the key that it was read from: `url` or `url_file`.
pub struct Address {
    pub key: String,
    pub url: Secret,
}

/// Reads an address from `url` or `url_file`, and its password from `password_file`.
pub fn address(section: &mut Section<'_>, server: Server, diagnostics: &mut Diagnostics) -> Option<Address> {
    if section.item("password_file").is_some() && !section.has("url") && !section.has("url_file") {
        section.report_error("password_file", "a password needs a `url` in the same section", diagnostics);
    }
    let (key, url) = secret(section, "url", diagnostics)?;
    let redacted = match server.redacted(url.expose()) {
        Ok(redacted) => redacted,
        Err(message) => {
            section.report_error(&key, message, diagnostics);
            return None;
        }
    };
    if key == "url" {
        diagnostics.effective.push((format!("{}{key}", section.path()), Node::Text(redacted).to_toml()));
    }
    if let Err(wrong) = server.check(&url) {
        section.report_error(&key, wrong.to_string(), diagnostics);
        return None;
    }
    let Some(password) = file(section, "password_file", diagnostics)? else {
        return Some(Address { key, url });
    };
    match server.with_password(&url, &password) {
        Ok(url) => Some(Address { key, url }),
        Err(message) => {
            section.report_error("password_file", message, diagnostics);
            None
        }
    }
}

/// Reads a secret text from a key, or from the file that the key with `_file` names; None if neither is set, or if an
/// error was reported.
pub fn text(section: &mut Section<'_>, key: &str, diagnostics: &mut Diagnostics) -> Option<Secret> {
    let (found, secret) = secret(section, key, diagnostics)?;
    if found == key {
        diagnostics.effective.push((format!("{}{key}", section.path()), Node::Text("***".into()).to_toml()));
    }
    Some(secret)
}

/// Reads the text of a key, or of the file that the key with `_file` names; returns the key that was set. None if
/// neither is set, or if an error was reported.
pub fn secret(
    section: &mut Section<'_>,
    key: &str,
    diagnostics: &mut Diagnostics,
) -> Option<(String, Secret)> {
    let file_key = format!("{key}{FILE}");
    let (value, path) = (section.item(key), section.item(&file_key));
    match locate(value, path) {
        Ok(None) => None,
        Ok(Some(Location::Inline(item))) => match item.node.text() {
            Some(text) if !text.is_empty() => Some((key.to_owned(), text.into())),
            text => {
                let got = if text.is_some() { "empty text" } else { item.node.kind() };
                section.report_error(key, format!("expected text, got {got}"), diagnostics);
                None
            }
        },
        Ok(Some(Location::InFile(_))) => Some((file_key.clone(), file(section, &file_key, diagnostics)??)),
        Err(message) => {
            section.report_error(&file_key, message, diagnostics);
            None
        }
    }
}

/// Reads the file that a key names. Returns `Some(None)` if the key is not set, and `None` if an error was reported.
fn file(section: &mut Section<'_>, key: &str, diagnostics: &mut Diagnostics) -> Option<Option<Secret>> {
    let Some(item) = section.item(key) else { return Some(None) };
    match read_file(item) {
        Ok(secret) => {
            let path = item.node.text().unwrap_or_default().to_owned();
            diagnostics.effective.push((format!("{}{key}", section.path()), Node::Text(path).to_toml()));
            Some(Some(secret))
        }
        Err(message) => {
            section.report_error(key, message, diagnostics);
            None
        }
    }
}

fn read_file(item: &Item) -> Result<Secret, String> {
    let path = item.node.text().filter(|path| !path.is_empty()).ok_or("expected the path of a file")?;
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => format!("the file {path} is not UTF-8"),
        _ => format!("cannot read the file {path}: {error}"),
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err(format!("the file {path} is empty")) } else { Ok(text.into()) }
}

/// The location of a secret.
enum Location<'a> {
    Inline(&'a Item),
    InFile(&'a Item),
}

/// Decides whether the key or the key with `_file` applies. A key that is set by the environment takes precedence over
/// one in the configuration file.
fn locate<'a>(value: Option<&'a Item>, file: Option<&'a Item>) -> Result<Option<Location<'a>>, &'static str> {
    Ok(match (value, file) {
        (None, None) => None,
        (Some(value), None) => Some(Location::Inline(value)),
        (None, Some(file)) => Some(Location::InFile(file)),
        (Some(value), Some(file)) => match (value.is_from_environment(), file.is_from_environment()) {
            (true, false) => Some(Location::Inline(value)),
            (false, true) => Some(Location::InFile(file)),
            _ => return Err("the key is also set without `_file`: remove one of the two"),
        },
    })
}

/// Reads the section `options`, whose keys are options of the Kafka client.
pub fn options(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Options {
    let mut options = Options::new();
    let Some(mut section) = section.section("options", diagnostics) else { return options };
    let mut written = BTreeMap::new();
    for (key, item) in section.items() {
        flatten(key.clone(), item, &mut written);
    }
    let report_error = |diagnostics: &mut Diagnostics, item: &Item, key: &str, message: String| {
        let key = format!("{}{key}", section.path());
        diagnostics.errors.push(ConfigError { origin: item.origin.clone(), key, message });
    };
    for (key, &item) in &written {
        let name = key.strip_suffix(FILE).unwrap_or(key);
        let in_file = written.get(&format!("{name}{FILE}")).copied();
        let read = match locate(written.get(name).copied(), in_file) {
            // The other key of the pair is read.
            Ok(Some(Location::Inline(_))) if name != key => continue,
            Ok(Some(Location::InFile(_))) if name == key => continue,
            Ok(Some(Location::InFile(item))) => read_file(item),
            Ok(_) => option_text(item).map(Secret::from),
            Err(_) if name == key => continue,
            Err(message) => Err(message.to_owned()),
        };
        let value = match read {
            Ok(value) => value,
            Err(message) => {
                report_error(diagnostics, item, key, message);
                continue;
            }
        };
        if let Err(refused) = check_option(name, &value) {
            let near = nearest(name, names()).filter(|near| *near != name);
            let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
            let hint = if refused.is_unknown() { hint } else { String::new() };
            report_error(diagnostics, item, key, format!("the option {}{hint}", refused.reason));
            continue;
        }
        let display = match item.node.text() {
            Some(path) if name != key => path,
            _ if is_harmless(name) => value.expose(),
            _ => "***",
        };
        diagnostics
            .effective
            .push((format!("{}{key:?}", section.path()), Node::Text(display.to_owned()).to_toml()));
        options.insert(name.to_owned(), value);
    }
    options
}

/// Flattens nested tables into names with dots: in TOML, an unquoted name with dots is a table within a table.
fn flatten<'a>(key: String, item: &'a Item, written: &mut BTreeMap<String, &'a Item>) {
    match &item.node {
        Node::Table(entries) => {
            for (name, item) in entries {
                flatten(format!("{key}.{name}"), item, written);
            }
        }
        _ => drop(written.insert(key, item)),
    }
}

fn option_text(item: &Item) -> Result<String, String> {
    match &item.node {
        Node::Array(_) | Node::Table(_) => {
            Err(format!("expected text, a number or a boolean, got {}", item.node.kind()))
        }
        node => Ok(node.text().map_or_else(|| node.describe(), str::to_owned)),
    }
}
