//! The schemas of records in Avro and Protobuf: the sections `[source.schema_registry]`, `[source.avro]` and
//! `[source.protobuf]`.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

use crate::client::Endpoint;
use crate::decode::{Binary, BinaryKind, FileSchema, Format, Framing, Schemas, UnknownId};
use crate::registry::{RegistryClient, RegistryConfig};
use crate::settings::{Diagnostics, Section, millis, secrets};

const REGISTRY: &str = "schema_registry";

/// Reads the sections of the schemas. Returns None if records are text, or if an error was reported.
pub(super) fn read(
    source: &mut Section<'_>,
    format: Format,
    is_topic: bool,
    diagnostics: &mut Diagnostics,
) -> Option<Binary> {
    let Some(kind) = format.binary else {
        for key in [REGISTRY, BinaryKind::Avro.as_str(), BinaryKind::Protobuf.as_str()] {
            if source.has(key) {
                let message = format!(
                    "records of the format {} have no schemas: set `format` to avro or protobuf, or remove the section",
                    format.name
                );
                source.report_error(key, message, diagnostics);
                source.item(key);
            }
        }
        return None;
    };
    if !is_topic {
        let message = format!("records in {} are read from a topic: set `kind = \"kafka\"`", format.name);
        source.report_error("format", message, diagnostics);
    }
    let other = if kind == BinaryKind::Avro { BinaryKind::Protobuf } else { BinaryKind::Avro };
    if source.item(other.as_str()).is_some() {
        let message = format!("the section is of another format: `format` is {}", format.name);
        source.report_error(other.as_str(), message, diagnostics);
    }
    match (source.has(REGISTRY), source.has(kind.as_str())) {
        (true, false) => {
            let section = source.section(REGISTRY, diagnostics)?;
            read_registry(section, kind, diagnostics)
        }
        (false, true) => {
            let section = source.section(kind.as_str(), diagnostics)?;
            read_file(section, kind, diagnostics)
        }
        (has_both, _) => {
            let what = if has_both { "has both" } else { "has neither" };
            let message = format!(
                "{} needs either [source.schema_registry] or [source.{}], and the configuration {what}",
                format.name,
                kind.as_str()
            );
            source.report_error("format", message, diagnostics);
            source.item(REGISTRY);
            source.item(kind.as_str());
            None
        }
    }
}

/// Reads the section of a registry.
fn read_registry(
    mut section: Section<'_>,
    kind: BinaryKind,
    diagnostics: &mut Diagnostics,
) -> Option<Binary> {
    let url = section.text("url", diagnostics).and_then(|url| {
        let url = url.trim_end_matches('/').to_owned();
        let has_user = url.split('/').nth(2).is_some_and(|authority| authority.contains('@'));
        let parsed = match Endpoint::parse(&url) {
            _ if has_user => Err("the URL contains a user: set `user` and `password` instead".to_owned()),
            _ if url.contains(['?', '#']) => Err("expected a URL without a query".to_owned()),
            Ok(_) => Ok(url),
            Err(_) if !url.starts_with("http") => {
                Err("expected the URL of a schema registry, such as \"http://127.0.0.1:8081\"".to_owned())
            }
            Err(message) => Err(message),
        };
        parsed.map_err(|message| section.report_error("url", message, diagnostics)).ok()
    });
    let authorization = read_authorization(&mut section, diagnostics);
    let ca_file = section.file("ca_file", diagnostics);
    let timeout = section.duration("timeout", 1, diagnostics).map(millis);
    let choices = [("hold", UnknownId::Hold), ("dead_letter", UnknownId::DeadLetter)];
    let unknown_id = section.choice("unknown_id", &choices, diagnostics);
    section.end(diagnostics);
    let config = RegistryConfig { url: url?, authorization, ca_file, timeout: timeout? };
    Some(Binary::Registry(Schemas::new(Box::new(RegistryClient::new(config, kind)), unknown_id?)))
}

/// Reads the user with a password, or the token.
fn read_authorization(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<HeaderValue> {
    let user = section.text("user", diagnostics);
    let password = secrets::text(section, "password", diagnostics);
    let token = secrets::text(section, "token", diagnostics);
    let (key, text) = match (user, password, token) {
        (None, None, None) => return None,
        (Some(user), password, None) => {
            let password = password.as_ref().map_or("", |password| password.expose());
            let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            ("user", format!("Basic {encoded}"))
        }
        (None, None, Some(token)) => ("token", format!("Bearer {}", token.expose())),
        (None, Some(_), None) => {
            section.report_error("password", "a password needs a `user` in the same section", diagnostics);
            return None;
        }
        (_, _, Some(_)) => {
            section.report_error("token", "set either a token or a user, not both", diagnostics);
            return None;
        }
    };
    match HeaderValue::from_str(&text) {
        Ok(mut value) => {
            value.set_sensitive(true);
            Some(value)
        }
        Err(_) => {
            section.report_error(key, "has a character that no header can have", diagnostics);
            None
        }
    }
}

/// Reads the section of a schema in a file.
fn read_file(mut section: Section<'_>, kind: BinaryKind, diagnostics: &mut Diagnostics) -> Option<Binary> {
    let (key, message) = match kind {
        BinaryKind::Avro => ("schema_file", None),
        BinaryKind::Protobuf => ("descriptor_file", Some(section.text("message", diagnostics))),
    };
    let path = section.file(key, diagnostics);
    let framings = [("confluent", Framing::Confluent), ("none", Framing::None)];
    let framing = section.choice("framing", &framings, diagnostics);
    let (path, message) = (path?, message.map_or(Some(None), |message| message.map(Some))?);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            section.report_error(
                key,
                format!("cannot read the file {}: {error}", path.display()),
                diagnostics,
            );
            return None;
        }
    };
    let schema = match &message {
        Some(message) => FileSchema::protobuf(&bytes, message),
        None => std::str::from_utf8(&bytes).map_err(|error| error.to_string()).and_then(FileSchema::avro),
    };
    let schema = match schema {
        Ok(schema) => schema,
        Err(reason) => {
            match reason.starts_with("there is no message") {
                true => section.report_error("message", reason, diagnostics),
                false => section.report_error(key, unusable(&path, kind, &reason), diagnostics),
            }
            return None;
        }
    };
    section.end(diagnostics);
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some(Binary::File { schema: Arc::new(schema), framing: framing?, digest: digest.into() })
}

fn unusable(path: &Path, kind: BinaryKind, reason: &str) -> String {
    let expected = match kind {
        BinaryKind::Avro => "a schema of Avro in JSON",
        BinaryKind::Protobuf => "what `protoc --include_imports --descriptor_set_out` writes",
    };
    format!("expected {expected} in {}: {reason}", path.display())
}

#[cfg(test)]
mod tests;
