//! Names of single outputs, as used by `--skip`: `events/3/42`, `alerts/5f…`, `enriched-events/ann/0`.

use std::collections::HashMap;

use crate::tables::ALL;
use crate::text::{decimal, rfc3339};
use crate::{Cell, Message, Row};

/// Returns the name of a row: its table and the cells of its key, separated by `/`.
pub fn row_name(row: &Row<'_>) -> String {
    let table = &ALL[row.table];
    let mut name = table.name.to_owned();
    for cell in row.cells().take(table.key()) {
        name.push('/');
        match cell {
            Cell::Null => {}
            Cell::Bool(value) => name += &value.to_string(),
            Cell::Int(value) => name += &value.to_string(),
            Cell::Float(value) => name += &value.to_string(),
            Cell::Micros(value) => name += &decimal(value),
            Cell::Time(ms) => name += &rfc3339(ms),
            Cell::Text(text) | Cell::Json(text) => name += text,
            Cell::Bytes(bytes) => name += &String::from_utf8_lossy(bytes),
        }
    }
    name
}

/// Names the messages of an epoch, which must be passed in order. A name consists of the topic, the key, and the number
/// of earlier messages of the epoch with the same topic and key.
#[derive(Debug, Default)]
pub struct MessageNames(HashMap<(usize, Option<Vec<u8>>), usize>);

impl MessageNames {
    /// Returns the name of the next message; `topics` are the topics to which messages refer by index.
    pub fn next(&mut self, message: &Message<'_>, topics: &[String]) -> String {
        let before = self.0.entry((message.topic, message.key.map(<[u8]>::to_vec))).or_default();
        let key = String::from_utf8_lossy(message.key.unwrap_or_default());
        let name = format!("{}/{key}/{before}", topics.get(message.topic).map_or("", String::as_str));
        *before += 1;
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Changes, tables};

    #[test]
    fn every_output_has_a_unique_name() {
        let mut changes = Changes::default();
        changes.rows.row(tables::EVENTS).cell(Cell::Int(3)).cell(Cell::Int(42)).cell(Cell::Int(7)).end();
        let mut window = changes.rows.row(tables::WINDOW_AGGREGATES);
        for text in ["user_1m", "user", "a/b"] {
            window.cell(Cell::Text(text));
        }
        window.cell(Cell::Time(60_000)).cell(Cell::Int(5)).end();
        let rows: Vec<_> = changes.rows.iter().map(|row| row_name(&row)).collect();
        assert_eq!(rows, ["events/3/42", "window_aggregates/user_1m/user/a/b/1970-01-01T00:01:00.000Z"]);

        for (topic, key) in [(1, Some("a")), (0, Some("a")), (1, Some("a")), (1, None), (1, Some("b"))] {
            changes.messages.push(topic, key.map(str::as_bytes), &[], |_| {});
        }
        let (mut names, topics) = (MessageNames::default(), ["alerts", "events"].map(str::to_owned));
        let messages: Vec<_> = changes.messages.iter().map(|message| names.next(&message, &topics)).collect();
        assert_eq!(messages, ["events/a/0", "alerts/a/0", "events/a/1", "events//0", "events/b/0"]);
    }
}
