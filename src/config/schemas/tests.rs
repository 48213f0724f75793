use std::collections::BTreeSet;
use std::path::Path;

use crate::config::Config;
use crate::config::change::changes;
use crate::decode::{Binary, Framing};

fn parse(source: &str) -> Result<Config, String> {
    let text = format!("pipeline = 'p'\nsinks.sqlite.path = 'p.db'\n[source]\nkind = 'kafka'\n{source}");
    Config::parse(&text, std::iter::empty()).map_err(|errors| errors.to_string())
}

fn refused(source: &str, parts: &[&str]) {
    let message = parse(source).expect_err(source);
    for part in parts {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_registry_has_an_address_and_secrets_that_are_not_shown() {
    let config = parse(
        "format = 'avro'\nschema_registry = { url = 'http://r:8081/x/', user = 'u', password = 'hunter2' }",
    );
    let config = config.expect("valid");
    assert!(matches!(config.plan.decoding.binary, Some(Binary::Registry(_))));
    assert!(
        config.effective().contains("source.schema_registry.password = \"***\""),
        "{}",
        config.effective()
    );
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    let semantics = config.semantics();
    assert!(semantics.starts_with("decoder = avro 1\n"), "{semantics}");
    assert!(semantics.contains("source.schema_registry.unknown_id = \"hold\""), "{semantics}");
    assert!(!semantics.contains("http://r"), "the registry may move: {semantics}");
}

/// It is the way on from a record whose schema is not known.
#[test]
fn the_fate_of_unknown_ids_can_change_after_a_stop() {
    let semantics = |unknown_id: &str| {
        let registry = format!("{{ url = 'http://r', unknown_id = '{unknown_id}' }}");
        parse(&format!("format = 'avro'\nschema_registry = {registry}")).expect("valid").semantics()
    };
    let permitted = BTreeSet::new();
    let changed = changes(&semantics("hold"), &semantics("dead_letter"), &permitted).expect("compatible");
    assert!(changed.expect("a change").discarded.is_empty());
}

#[test]
fn wrong_combinations_say_what_is_needed() {
    const URL: &str = "url = 'http://r'";
    refused(
        "format = 'avro'",
        &["line 5: source.format", "[source.schema_registry] or [source.avro]", "neither"],
    );
    refused(
        &format!("schema_registry = {{ {URL} }}"),
        &["source.schema_registry", "format json have no schemas"],
    );
    refused("protobuf = {}", &["source.protobuf", "format json have no schemas"]);
    let both = format!("format = 'avro'\nschema_registry = {{ {URL} }}\navro = {{ schema_file = 'x' }}");
    refused(&both, &["has both"]);
    refused(
        "format = 'avro'\nprotobuf = { message = 'x' }",
        &["source.protobuf: the section is of another format"],
    );
    let of = |keys: &str| format!("format = 'protobuf'\nschema_registry = {{ {keys} }}");
    refused(&of(""), &["source.schema_registry.url: is missing"]);
    refused(&of("url = 'registry:8081'"), &["expected the URL of a schema registry"]);
    refused(&of("url = 'http://u:secret@r'"), &["the URL contains a user"]);
    refused(&of("url = 'http://r?x=1'"), &["without a query"]);
    refused(&of(&format!("{URL}, password = 'x'")), &["password: a password needs a `user`"]);
    refused(&of(&format!("{URL}, user = 'x', token = 'y'")), &["token: set either a token or a user"]);
    refused(
        &of(&format!("{URL}, unknown_id = 'skip'")),
        &["unknown_id: expected \"hold\" or \"dead_letter\""],
    );
    let file = "pipeline = 'p'\nsinks.sqlite.path = 'p.db'\n[source]\nkind = 'file'\npaths = ['x']\nformat = 'avro'\n\
                schema_registry = { url = 'http://r' }";
    let message = Config::parse(file, std::iter::empty()).expect_err("no topic").to_string();
    assert!(message.contains("line 6: source.format: records in avro are read from a topic"), "{message}");
}

#[test]
fn a_schema_in_a_file_is_part_of_what_decides_results() {
    let dir = tempfile::tempdir().expect("a directory");
    let schema = dir.path().join("x.avsc");
    let source = |key: &str, path: &Path, rest: &str| {
        format!(
            "format = '{key}'\n{key} = {{ {}_file = {path:?}{rest} }}",
            match key {
                "avro" => "schema",
                _ => "descriptor",
            }
        )
    };
    refused(&source("avro", &schema, ""), &["source.avro.schema_file: cannot read the file"]);
    std::fs::write(&schema, "{}").expect("written");
    refused(
        &source("avro", &schema, ""),
        &["schema_file: expected a schema of Avro in JSON", "has no `type`"],
    );
    let semantics = |schema_text: &str| {
        std::fs::write(&schema, schema_text).expect("written");
        let config = parse(&source("avro", &schema, ", framing = 'none'")).expect("valid");
        let Some(Binary::File { framing: Framing::None, .. }) = &config.plan.decoding.binary else {
            panic!("{:?}", config.plan.decoding.binary)
        };
        config.semantics()
    };
    assert_ne!(semantics("\"string\""), semantics("\"long\""));
    assert_eq!(semantics("\"long\""), semantics("\"long\""));

    let descriptors = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/decode/binary/protobuf/payment.desc");
    let of = |message: &str| source("protobuf", &descriptors, &format!(", message = '{message}'"));
    let config = parse(&of("shop.v1.Payment")).expect("valid");
    assert!(config.semantics().contains("source.protobuf.message"), "{}", config.semantics());
    refused(
        &of("Payment"),
        &["source.protobuf.message: there is no message \"Payment\"; there are shop.v1.Payment,"],
    );
    refused(&source("protobuf", &schema, ", message = 'x'"), &["descriptor_file: expected what `protoc"]);
}
