//! Labels of events: a CSV file that says which events are fraud, or whatever the rules are to find.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;

use crate::cli::test::WrongFiles;
use crate::connectors::csv_fields as fields;

/// The names of the columns. Other columns are ignored.
const COLUMNS: [&str; 2] = ["event_id", "label"];

/// A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// True if a rule should find the event.
    pub is_positive: bool,
    /// True if the event is in the input, within the times of the backtest.
    pub is_in_input: bool,
}

/// The labels, by event id.
pub type Labels = HashMap<String, Label>;

/// Reads a file of labels.
///
/// # Errors
/// If it cannot be read, or is not in the form; the errors name its lines.
pub fn read(path: &Path) -> anyhow::Result<Labels> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--labels: cannot read {}", path.display()))?;
    parse(&text).map_err(|errors| {
        let at = |(line, message): (usize, String)| format!("{}:{line}: {message}", path.display());
        WrongFiles(errors.into_iter().map(at).collect()).into()
    })
}

/// The maximum number of errors that are reported.
const MAX_ERRORS: usize = 20;

/// Parses labels. Errors have the number of their line.
fn parse(text: &str) -> Result<Labels, Vec<(usize, String)>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let expected = || format!("expected a header with the columns {} and {}", COLUMNS[0], COLUMNS[1]);
    let Some((header, names)) = lines.next() else { return Err(vec![(1, expected())]) };
    let names = fields(names).map_err(|error| vec![(header, error)])?;
    let column = |name: &str| names.iter().position(|found| found.trim() == name);
    let [Some(id_at), Some(label_at)] = COLUMNS.map(column) else { return Err(vec![(header, expected())]) };
    let (mut labels, mut errors) = (Labels::new(), Vec::new());
    for (line, text) in lines {
        match label(text, id_at, label_at, &mut labels) {
            Ok(()) => {}
            Err(_) if errors.len() == MAX_ERRORS => {
                errors.push((line, "further errors are not listed".to_owned()));
                break;
            }
            Err(error) => errors.push((line, error)),
        }
    }
    if errors.is_empty() { Ok(labels) } else { Err(errors) }
}

/// Adds the label of a line.
fn label(line: &str, id_at: usize, label_at: usize, labels: &mut Labels) -> Result<(), String> {
    let mut cells = fields(line)?;
    let count = cells.len();
    let missing = |name| format!("the column {name} is missing: the line has {count} of them");
    let text = cells.get(label_at).ok_or_else(|| missing(COLUMNS[1]))?.trim().to_ascii_lowercase();
    let is_positive = match text.as_str() {
        "1" | "true" => true,
        "0" | "false" => false,
        other => return Err(format!("label: expected 1, 0, true or false, got {other:?}")),
    };
    let id = std::mem::take(cells.get_mut(id_at).ok_or_else(|| missing(COLUMNS[0]))?);
    if id.is_empty() {
        return Err("event_id is empty".to_owned());
    }
    let is_other = |before: &Label| before.is_positive != is_positive;
    if labels.get(&id).is_some_and(is_other) {
        return Err(format!("event_id {id:?} has another label in an earlier line"));
    }
    labels.insert(id, Label { is_positive, is_in_input: false });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, bool)> {
        let labels = parse(text).expect("valid");
        let mut labels: Vec<_> = labels.into_iter().map(|(id, label)| (id, label.is_positive)).collect();
        labels.sort();
        labels
    }

    #[test]
    fn columns_are_found_by_name() {
        let text = "\u{feff}note,label,event_id\r\n\"a, \"\"b\"\"\",1,e1\r\n,false,\"e,2\"\r\n\r\n,TRUE,e3\r\n,1,e3\r\n";
        assert_eq!(parsed(text), [("e,2".into(), false), ("e1".into(), true), ("e3".into(), true)]);
        assert_eq!(parsed("event_id,label\n"), []);
    }

    #[test]
    fn errors_name_their_lines() {
        let errors = |text| parse(text).expect_err("wrong");
        for text in ["", "id,label\ne1,1\n", "event_id\n"] {
            let expected = "expected a header with the columns event_id and label";
            assert_eq!(errors(text), [(1, expected.to_owned())], "{text:?}");
        }
        let text = "event_id,label\ne1,yes\n\ne2\n,1\ne3,1\ne3,0\n\"e4,1\n\"e5\"x,1\n";
        let messages: Vec<_> =
            errors(text).into_iter().map(|(line, message)| format!("{line}: {message}")).collect();
        assert_eq!(
            messages,
            [
                "2: label: expected 1, 0, true or false, got \"yes\"",
                "4: the column label is missing: the line has 1 of them",
                "5: event_id is empty",
                "7: event_id \"e3\" has another label in an earlier line",
                "8: a quote is not closed in the line",
                "9: expected a comma after the closing quote",
            ]
        );
        let many = format!("event_id,label\n{}", "e,2\n".repeat(100));
        assert_eq!(errors(&many).len(), MAX_ERRORS + 1);
    }
}
