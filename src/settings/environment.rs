//! Environment variables: substitution of `${NAME}` in the texts of the file, and detection of unknown `HEADWATER_`
//! variables.

use std::collections::{BTreeMap, BTreeSet};

use super::read::{ConfigError, nearest};
use super::tree::{Item, Node, Origin};

/// The key of errors about variables that set no key.
pub const ENVIRONMENT: &str = "the environment";

/// Known variables that are not configuration keys. A name that ends with `_` is a prefix of variables that the
/// repository's tests and scripts use.
const VARIABLES: [&str; 17] = [
    "HEADWATER_CRASH_AT",
    "HEADWATER_HOSTFILE",
    "HEADWATER_KAFKA_PROXY",
    "HEADWATER_LOG",
    "HEADWATER_MODEL_STEPS",
    "HEADWATER_PEERS",
    "HEADWATER_PLACEMENT",
    "HEADWATER_PROCESS",
    "HEADWATER_PROCESSES",
    "HEADWATER_RECORD",
    "HEADWATER_RESTARTS",
    "HEADWATER_SERVICES_",
    "HEADWATER_SETTLE",
    "HEADWATER_SIMULATED_HISTORIES",
    "HEADWATER_TEST_",
    "HEADWATER_TORTURE_",
    "HEADWATER_WORKERS",
];

/// Returns the environment variables of this process that are UTF-8.
///
/// # Errors
/// If the value of a variable of Headwater is not UTF-8.
pub fn from_process() -> Result<Vec<(String, String)>, ConfigError> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => environment.push((name, value)),
            (Ok(name), Err(_)) if name.starts_with("HEADWATER") => {
                return Err(ConfigError {
                    origin: Origin::Environment(name),
                    key: ENVIRONMENT.into(),
                    message: "the value is not UTF-8".into(),
                });
            }
            _ => {}
        }
    }
    Ok(environment)
}

/// Replaces `${NAME}` in the texts of the file by the variable, and `$${` by `${`. Returns the names of the variables,
/// and an error for each variable that is not set.
pub fn substitute(item: &mut Item, environment: &[(String, String)]) -> (BTreeSet<String>, Vec<ConfigError>) {
    substitute_at(item, String::new(), environment)
}

/// Does the same as [`substitute`] for an item at this path, which errors name.
pub fn substitute_at(
    item: &mut Item,
    path: String,
    environment: &[(String, String)],
) -> (BTreeSet<String>, Vec<ConfigError>) {
    let variables = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut substitution = Substitution { variables, names: BTreeSet::new(), errors: Vec::new() };
    substitution.visit(item, path);
    (substitution.names, substitution.errors)
}

struct Substitution<'a> {
    variables: BTreeMap<&'a str, &'a str>,
    names: BTreeSet<String>,
    errors: Vec<ConfigError>,
}

impl Substitution<'_> {
    fn visit(&mut self, item: &mut Item, path: String) {
        match &mut item.node {
            Node::Table(entries) => {
                for (key, item) in entries {
                    self.visit(item, if path.is_empty() { key.clone() } else { format!("{path}.{key}") });
                }
            }
            Node::Array(items) => {
                for (at, item) in items.iter_mut().enumerate() {
                    self.visit(item, format!("{path}[{at}]"));
                }
            }
            Node::Text(text) if text.contains("${") => match self.expand(text) {
                Ok(replaced) => item.written = Some(std::mem::replace(text, replaced)),
                Err(message) => {
                    let origin = item.origin.clone();
                    self.errors.push(ConfigError { origin, key: path, message });
                }
            },
            _ => {}
        }
    }

    fn expand(&mut self, text: &str) -> Result<String, String> {
        let (mut replaced, mut rest) = (String::new(), text);
        while let Some(at) = rest.find("${") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                replaced.push_str(before);
                replaced.push_str("${");
                rest = after;
                continue;
            }
            replaced.push_str(before);
            let (name, remaining) = after.split_once('}').filter(|(name, _)| is_variable(name)).ok_or(
                "expected the name of an environment variable in ${NAME}; write $${ for the characters ${",
            )?;
            self.names.insert(name.to_owned());
            let value = self.variables.get(name).ok_or_else(|| {
                format!("the environment variable {name} is not set; write $${{ for the characters ${{")
            })?;
            replaced.push_str(value);
            rest = remaining;
        }
        replaced.push_str(rest);
        Ok(replaced)
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Returns an error for each variable that begins with `HEADWATER_` and is unknown. Variables with unknown keys,
/// `HEADWATER__…`, are found when the sections are read. `keys` has the paths of all keys, for suggestions.
pub fn unknown_variables(
    environment: &[(String, String)],
    named: &BTreeSet<String>,
    keys: &[&'static str],
) -> Vec<ConfigError> {
    let is_unknown = |name: &str| {
        name.starts_with("HEADWATER_")
            && !name.starts_with("HEADWATER__")
            && !named.contains(name)
            && !VARIABLES
                .iter()
                .any(|known| name == *known || known.ends_with('_') && name.starts_with(known))
            && !is_service_link(name)
    };
    let unknown = environment.iter().filter(|(name, _)| is_unknown(name));
    unknown
        .map(|(name, _)| {
            let near = suggestion(name, keys).map_or(String::new(), |near| format!("; did you mean {near}?"));
            ConfigError {
                origin: Origin::Default,
                key: ENVIRONMENT.into(),
                message: format!("{name} is not a variable of Headwater{near}"),
            }
        })
        .collect()
}

/// Returns true for the variables that Kubernetes and Docker links set for a service whose name begins with
/// `headwater`.
fn is_service_link(name: &str) -> bool {
    let has_protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT")
        || name.contains("_PORT_") && has_protocol
}

/// Returns the variable that is probably meant. A wrong number of underscores is the most frequent mistake.
fn suggestion(name: &str, keys: &[&'static str]) -> Option<String> {
    let keys = keys.iter().map(|key| format!("HEADWATER__{}", key.replace('.', "__").to_uppercase()));
    let variables = VARIABLES.iter().filter(|known| !known.ends_with('_')).map(|known| (*known).to_owned());
    let known: Vec<_> = variables.chain(keys).collect();
    let bare = |name: &str| name.replace('_', "");
    let by_bare: BTreeMap<_, _> = known.iter().map(|known| (bare(known), known)).collect();
    let near = nearest(&bare(name), by_bare.keys().map(String::as_str));
    match (near, name.strip_prefix("HEADWATER_")) {
        (Some(near), _) => Some(by_bare[near].clone()),
        (None, Some(rest)) if rest.contains("__OPTIONS__") => Some(format!("HEADWATER__{rest}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(names: &[&str]) -> Vec<String> {
        let environment: Vec<_> = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        unknown_variables(
            &environment,
            &BTreeSet::from(["HEADWATER_DB_PASSWORD".to_owned()]),
            &["pipeline", "source.paths"],
        )
        .into_iter()
        .map(|config_error| config_error.message)
        .collect()
    }

    #[test]
    fn unknown_variables_are_reported_with_a_suggestion() {
        let names =
            ["HEADWATER_SOURCE__PATHS", "HEADWATER_PIPELINE", "HEADWATER_WORKER", "HEADWATER_COLOUR_SCHEME"];
        let no = "is not a variable of Headwater";
        assert_eq!(
            errors(&names),
            [
                format!("HEADWATER_SOURCE__PATHS {no}; did you mean HEADWATER__SOURCE__PATHS?"),
                format!("HEADWATER_PIPELINE {no}; did you mean HEADWATER__PIPELINE?"),
                format!("HEADWATER_WORKER {no}; did you mean HEADWATER_WORKERS?"),
                format!("HEADWATER_COLOUR_SCHEME {no}"),
            ]
        );
        let option = "HEADWATER_SOURCE__OPTIONS__SASL.PASSWORD";
        assert_eq!(
            errors(&[option]),
            [format!("{option} {no}; did you mean HEADWATER__SOURCE__OPTIONS__SASL.PASSWORD?")]
        );
    }

    #[test]
    fn variables_of_other_programs_are_ignored() {
        let names = [
            "HEADWATER_WORKERS",
            "HEADWATER_TEST_KAFKA",
            "HEADWATER_DB_PASSWORD",
            "HEADWATER_SERVICE_HOST",
            "HEADWATER_PORT",
            "HEADWATER_PORT_9464_TCP_ADDR",
            "HEADWATER__TIME__EPOCH",
            "HEADWATERS_OF_THE_NILE",
        ];
        assert_eq!(errors(&names), [""; 0]);
    }
}
