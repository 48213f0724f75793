//! The section `[keys]`: key spaces of one's own; and the key `by` of windows and rules.

use std::sync::Arc;

use super::is_name;
use crate::fields::{FieldId, FieldType, Layout};
use crate::pipeline::{By, KeySpace};
use crate::settings::{Diagnostics, Node, Section, nearest};

/// Names that key spaces cannot have, because they mean something else in `by` or in outputs.
const RESERVED: [&str; 6] = ["key", "user", "device", "user_id", "device_id", "none"];

/// The maximum number of fields of a key.
const MAX_FIELDS: usize = 8;

/// The key spaces of a configuration.
#[derive(Clone, Debug)]
pub(super) struct Spaces(Vec<Arc<KeySpace>>);

impl Spaces {
    /// Reads the section.
    pub fn read(mut section: Section<'_>, layout: &Layout, diagnostics: &mut Diagnostics) -> Spaces {
        let mut spaces: Vec<_> = KeySpace::built_in().map(Arc::new).into();
        for (name, item) in section.items() {
            if RESERVED.contains(&name.as_str()) {
                section.report_error(name, "expected another name: this one is built in", diagnostics);
                continue;
            }
            if !is_name(name, "_") {
                let expected = "expected a name of at most 63 lower-case letters, digits and _";
                section.report_error(name, expected, diagnostics);
                continue;
            }
            match fields(item.node.value(), layout) {
                Ok(fields) => {
                    spaces.push(Arc::new(KeySpace { name: name.as_str().into(), fields }));
                    let path = format!("{}{name}", section.path());
                    diagnostics.effective.push((path, item.node.value().to_toml()));
                }
                Err(message) => section.report_error(name, message, diagnostics),
            }
        }
        section.end(diagnostics);
        Spaces(spaces)
    }

    /// Returns the key spaces of the section, without those that every pipeline has.
    pub fn declared(&self) -> impl Iterator<Item = &Arc<KeySpace>> {
        self.0.iter().filter(|space| !RESERVED.contains(&&*space.name))
    }

    /// Reads the key `by` of a window or a rule.
    pub fn by(&self, section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<By> {
        section.get_text("by", diagnostics, |text| match text {
            Some("key") => Ok(By::Key),
            Some("user_id") => Ok(By::KeyOfUser),
            Some("device_id") => Ok(By::KeyOfDevice),
            text => {
                let text = text.unwrap_or_default();
                let space = self.0.iter().find(|space| &*space.name == text);
                space.map(|space| By::Space(Arc::clone(space))).ok_or_else(|| {
                    let names: Vec<_> = self.0.iter().map(|space| format!("{:?}", space.name)).collect();
                    format!("\"key\" or a key of [keys]: {}", names.join(", "))
                })
            }
        })
    }
}

/// Returns the fields of a key: one name, or a list of names.
fn fields(node: &Node, layout: &Layout) -> Result<Vec<FieldId>, String> {
    const EXPECTED: &str = "expected a field, or a list of at most 8 fields that make the key together";
    let names: Vec<&str> = match node {
        Node::Text(name) => vec![name],
        Node::Array(items) => {
            items.iter().map(|item| item.node.text()).collect::<Option<_>>().ok_or(EXPECTED)?
        }
        _ => return Err(EXPECTED.to_owned()),
    };
    if names.is_empty() || names.len() > MAX_FIELDS {
        return Err(EXPECTED.to_owned());
    }
    let mut fields = Vec::new();
    for name in names {
        match layout.field(name) {
            Some((_, kind @ (FieldType::Location | FieldType::Object))) => {
                return Err(format!("the field {name:?} is a {kind}, which is no key"));
            }
            Some((field, _)) if fields.contains(&field) => {
                return Err(format!("the field {name:?} occurs twice"));
            }
            Some((field, _)) => fields.push(field),
            None => {
                let suggested = nearest(name, layout.fields().map(|(name, _)| name));
                let suggested = suggested.map_or(String::new(), |name| format!("; did you mean {name:?}?"));
                return Err(format!("there is no field {name:?}{suggested}"));
            }
        }
    }
    Ok(fields)
}
