//! Lists: `event.ip in lists.blocked`, `lists.merchants[event.merchant_id].risk`.

use std::sync::Arc;

use ::cel::common::ast::{IdedExpr, SelectExpr};

use super::super::error::{CelError, names};
use super::super::eval::{Float, Text, Truth, Whole};
use super::super::lists::{Column, ListKey, Lookup};
use super::{Compiler, Result, Typed, numeric};
use crate::fields::FieldType;
use crate::lists::{KeyType, List};

impl<'a> Compiler<'a> {
    /// Compiles `lists.NAME`.
    pub(super) fn list(&self, node: &IdedExpr, select: &SelectExpr) -> Result<Typed> {
        let name = select.field.as_str();
        let Some(list) = self.scope.lists.get(name) else {
            let error = CelError::new(self.syntax.offset(node), format!("there is no list {name}"));
            return Err(match self.scope.lists.is_empty() {
                true => error.suggest("declare it in a section [[lists]]"),
                false => error.suggest(names(name, "lists", self.scope.lists.names())),
            });
        };
        if select.test {
            let error = CelError::new(self.syntax.offset(node), "a list is never absent, but may be empty");
            return Err(error.suggest(format!("write {} in lists.{name}", example_of(list))));
        }
        Ok(Typed::List(Arc::clone(list)))
    }

    /// Compiles `lists.NAME[key]`.
    pub(super) fn row(&mut self, list: Arc<List>, key: &'a IdedExpr) -> Result<Typed> {
        let key = self.list_key(&list, key)?;
        Ok(Typed::Row(Lookup { list, key }))
    }

    /// Compiles `lists.NAME[key].COLUMN`, or `has` of it.
    pub(super) fn column(&self, node: &IdedExpr, lookup: Lookup, select: &SelectExpr) -> Result<Typed> {
        let (name, list) = (select.field.as_str(), Arc::clone(&lookup.list));
        let Some((column, kind)) = list.schema().column(name) else {
            let message = format!("the list {} has no column {name}", list.name());
            let error = CelError::new(self.syntax.offset(node), message);
            let columns = &list.schema().columns;
            return Err(if columns.is_empty() {
                let name = list.name();
                error
                    .suggest(format!("declare its `columns`, or write {} in lists.{name}", example_of(&list)))
            } else {
                error.suggest(names(name, "columns", columns.iter().map(|(name, _)| &**name)))
            });
        };
        let column = Box::new(Column { lookup, column });
        if select.test {
            return Ok(Typed::Boolean(Truth::HasColumn(column)));
        }
        Ok(match kind {
            FieldType::String => Typed::String(Text::Column(column)),
            FieldType::Decimal => Typed::Decimal(Whole::Column(column)),
            FieldType::Integer => Typed::Integer(Whole::Column(column)),
            FieldType::Timestamp => Typed::Timestamp(Whole::Column(column)),
            FieldType::Float => Typed::Float(Float::Column(column)),
            FieldType::Boolean => Typed::Boolean(Truth::Column(column)),
            FieldType::Location | FieldType::Object => {
                return self.error(node, format!("a column cannot be of the type {kind}"));
            }
        })
    }

    /// Compiles `value in lists.NAME`.
    pub(super) fn in_list(&mut self, list: Arc<List>, value: &'a IdedExpr) -> Result<Typed> {
        let key = self.list_key(&list, value)?;
        Ok(Typed::Boolean(Truth::InList(Box::new(Lookup { list, key }))))
    }

    /// Compiles a value that is looked up: it has the type of the list's keys.
    fn list_key(&mut self, list: &List, node: &'a IdedExpr) -> Result<ListKey> {
        let offset = self.syntax.start(node);
        let typed = self.expression(node)?;
        let key = match list.schema().key {
            KeyType::String => typed.text().map(ListKey::Text),
            KeyType::Decimal => numeric::decimal(&typed, offset)?.map(ListKey::Whole),
            KeyType::Integer => match &typed {
                Typed::Integer(whole) => Some(ListKey::Whole(whole.clone())),
                Typed::Number(number) if number.whole.is_some() => match number.settled(offset)? {
                    Typed::Integer(whole) => Some(ListKey::Whole(whole)),
                    _ => None,
                },
                _ => None,
            },
        };
        key.ok_or_else(|| {
            let kind = list.schema().key.as_str();
            let message =
                format!("the keys of lists.{} are {kind}s, and this is {}", list.name(), typed.a_name());
            let error = CelError::new(offset, message);
            match (list.schema().key, &typed) {
                (
                    KeyType::String,
                    Typed::Integer(_) | Typed::Decimal(_) | Typed::Float(_) | Typed::Number(_),
                ) => error.suggest("write string(…) around it, or set the list's `key_type`"),
                (KeyType::Decimal, Typed::String(_) | Typed::Float(_)) => {
                    error.suggest("write decimal(…) around it")
                }
                (
                    KeyType::Integer,
                    Typed::String(_) | Typed::Float(_) | Typed::Decimal(_) | Typed::Attribute(_),
                ) => error.suggest("write int(…) around it"),
                _ => error,
            }
        })
    }
}

/// Returns an example of a value to look up.
fn example_of(list: &List) -> &'static str {
    match list.schema().key {
        KeyType::String => "event.ip_address",
        KeyType::Integer => "event.id",
        KeyType::Decimal => "event.amount",
    }
}
