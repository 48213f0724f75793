//! Lookups in lists: whether a value is a key, and the values of its entry.

use std::sync::Arc;

use super::eval::{Eval, Fault, Text, Whole};
use crate::event::Event;
use crate::lists::{Cell, List, Row};

/// A value that is looked up, of the type of a list's keys.
#[derive(Clone, Debug)]
pub(super) enum ListKey {
    Text(Text),
    Whole(Whole),
}

/// An entry of a list.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    pub list: Arc<List>,
    pub key: ListKey,
}

/// A value of an entry, by the index of its column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub lookup: Lookup,
    pub column: usize,
}

impl Lookup {
    /// Calls a function with the entry, or None, in the contents that are in force for the event.
    fn with<T>(&self, event: &Event, look: impl FnOnce(Option<&Row>) -> T) -> Eval<T> {
        let Lookup { list, key } = self;
        Ok(match key {
            ListKey::Text(text) => {
                let text = text.eval(event)?;
                list.at(event.position(), |table| look(table.text(&text)))
            }
            ListKey::Whole(whole) => {
                let whole = whole.eval(event)?;
                list.at(event.position(), |table| look(table.whole(whole)))
            }
        })
    }

    /// Returns true if there is an entry.
    pub fn is_found(&self, event: &Event) -> Eval<bool> {
        self.with(event, |row| row.is_some())
    }
}

impl Column {
    fn read<T>(&self, event: &Event, read: impl FnOnce(&Cell) -> Option<T>) -> Eval<T> {
        let value = self.lookup.with(event, |row| row.and_then(|row| row.get(self.column)).and_then(read))?;
        value.ok_or(Fault::Absent)
    }

    /// Returns true if there is an entry with a value.
    pub fn has(&self, event: &Event) -> bool {
        self.read(event, |cell| (*cell != Cell::Absent).then_some(())).is_ok()
    }

    pub fn text(&self, event: &Event) -> Eval<String> {
        self.read(event, |cell| if let Cell::Text(text) = cell { Some(text.to_string()) } else { None })
    }

    pub fn whole(&self, event: &Event) -> Eval<i64> {
        self.read(event, |cell| if let Cell::Whole(value) = cell { Some(*value) } else { None })
    }

    pub fn float(&self, event: &Event) -> Eval<f64> {
        self.read(event, |cell| if let Cell::Float(value) = cell { Some(*value) } else { None })
    }

    pub fn boolean(&self, event: &Event) -> Eval<bool> {
        self.read(event, |cell| if let Cell::Boolean(value) = cell { Some(*value) } else { None })
    }
}
