//! The keys of a file with tests of rules.

use crate::settings::{Key, keys};

/// All keys. `docs/rules.md` has their table.
pub const KEYS: &[Key] = keys! {
    "rules" = required: "Path of the configuration whose rules are tested, relative to this file."
    "lists": "Contents of lists, by name: a list of keys, or a table of entries by key, such as `{ blocked = [\"10.0.0.1\"], merchants = { m1 = { risk = \"4.5\" } } }`. A list that is not named is empty."
    "test.name" = required: "Name of the test, different from those of the other tests of the file."
    "test.lists": "Contents of lists in this test, instead of those of the file."
    "test.events" = required: "Events, with their fields by name: `{ at = \"0s\", user_id = \"ann\", amount = \"1.50\" }`."
    "test.events.at" = required: "Event time, after the beginning of the test: `\"90s\"`, `\"1h30m\"`."
    "test.events.arrives": "Time of arrival, if that is later than the event time."
    "test.events.repeat" = "1": "Number of such events."
    "test.events.every" = "\"0s\"": "Time from one of these events, and of its arrival, to the next."
    "test.expect" = required: "Changes of alerts, in any order. Any other change fails the test; `[]` means that there is none."
    "test.expect.rule" = required: "Rule or pattern of the alert."
    "test.expect.key" = required: "Key of the alert; of a key of several fields a list, such as `[\"d1\", \"10.0.0.1\"]`."
    "test.expect.at" = required: "Event time of the alert: that of the triggering event; of an absence, the end of the wait."
    "test.expect.status" = "\"raised\"": "`raised` or `revoked`. An alert whose details or severity change is raised once more."
    "test.expect.key_kind": "Kind of the key: `user`, `device`, or a name in `[keys]`."
    "test.expect.severity": "Severity of the alert."
    "test.expect.event_ids": "Ids of the events of the alert, the triggering one last."
    "test.expect.details": "Details of the alert. Details that are not named may have any value."
    "test.dead_letters": "Events that are refused, in any order. Any other fails the test."
    "test.dead_letters.reason" = required: "`late` or `duplicate`."
    "test.dead_letters.at" = required: "Event time of the refused event."
    "test.dead_letters.event_id": "Id of the refused event."
};

/// Returns the key with this path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_key() {
        let documented = include_str!("../../../docs/rules.md");
        for Key { path, default, required, doc } in KEYS {
            let default = match default {
                Some(default) => format!("`{default}`"),
                None if *required => "required".to_owned(),
                None => "none".to_owned(),
            };
            let row = format!("| `{path}` | {default} | {doc} |");
            assert!(documented.contains(&row), "docs/rules.md lacks the line\n{row}");
        }
    }
}
