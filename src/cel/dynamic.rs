//! Attributes, whose types are known when they are read, and their comparisons.

use std::cmp::Ordering;

use super::attributes::{Member, member};
use super::eval::{Eval, Fault, Float, Relation, Text, Truth, Whole, compare_floats};
use super::number;
use crate::event::Event;
use crate::fields::{FieldId, Value};

/// A member of an object, whose type is known when it is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attribute {
    pub field: FieldId,
    pub path: Vec<Box<str>>,
}

/// A value that an attribute is compared with.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Text(Text),
    Decimal(Whole),
    Integer(Whole),
    Float(Float),
    Boolean(Truth),
    Attribute(Attribute),
}

impl Attribute {
    pub fn read<'a>(&self, event: &'a Event) -> Eval<Member<'a>> {
        match event.value(self.field) {
            Value::Object(object) => member(object, &self.path).ok_or(Fault::Absent),
            _ => Err(Fault::Absent),
        }
    }
}

/// Compares an attribute with a value. Values of different types are not equal, and cannot be ordered.
pub(super) fn compare_attribute(
    left: &Member<'_>,
    relation: Relation,
    right: &Operand,
    event: &Event,
) -> Eval<bool> {
    let order = match (left, right) {
        (_, Operand::Attribute(right)) => compare_members(left, &right.read(event)?),
        (Member::Text(left), Operand::Text(right)) => Some((**left).cmp(&*right.eval(event)?)),
        (Member::Number(left), Operand::Decimal(right)) => compare_number(left, right.eval(event)?, true),
        (Member::Number(left), Operand::Integer(right)) => compare_number(left, right.eval(event)?, false),
        (Member::Number(left), Operand::Float(right)) => {
            let left: f64 = left.parse().map_err(|_| Fault::Error)?;
            return compare_floats(relation, left, right.eval(event)?);
        }
        (Member::Boolean(left), Operand::Boolean(right)) => Some(left.cmp(&right.eval(event)?)),
        (_, other) => {
            other.fault(event)?;
            None
        }
    };
    match (order, relation) {
        (Some(order), _) => Ok(relation.is_of(order)),
        (None, Relation::Equal) => Ok(false),
        (None, Relation::NotEqual) => Ok(true),
        (None, _) => Err(Fault::Error),
    }
}

/// Compares the text of a number with a decimal in millionths, or with an integer.
fn compare_number(left: &str, right: i64, is_decimal: bool) -> Option<Ordering> {
    if let (false, Ok(left)) = (is_decimal, left.parse::<i64>()) {
        return Some(left.cmp(&right));
    }
    match (number::read_decimal(left), is_decimal) {
        (Some(left), true) => Some(left.micros.cmp(&right)),
        (Some(left), false) => Some(number::compare_mixed(right, left.micros).reverse()),
        // Beyond the range of decimals, where the order is that of the sizes.
        (None, true) => left.parse::<f64>().ok()?.partial_cmp(&number::to_float(right)),
        (None, false) => left.parse::<f64>().ok()?.partial_cmp(&(right as f64)),
    }
}

fn compare_members(left: &Member<'_>, right: &Member<'_>) -> Option<Ordering> {
    match (left, right) {
        (Member::Text(left), Member::Text(right)) => Some(left.cmp(right)),
        (Member::Boolean(left), Member::Boolean(right)) => Some(left.cmp(right)),
        (Member::Number(left), Member::Number(right)) => match number::read_decimal(right) {
            Some(right) => compare_number(left, right.micros, true),
            None => left.parse::<f64>().ok()?.partial_cmp(&right.parse::<f64>().ok()?),
        },
        _ => None,
    }
}

impl Operand {
    /// Returns true of a constant, which never is a fault.
    pub fn is_const(&self) -> bool {
        match self {
            Operand::Text(text) => matches!(text, Text::Const(_)),
            Operand::Decimal(whole) | Operand::Integer(whole) => matches!(whole, Whole::Const(_)),
            Operand::Float(float) => matches!(float, Float::Const(_)),
            Operand::Boolean(truth) => matches!(truth, Truth::Const(_)),
            Operand::Attribute(_) => false,
        }
    }

    /// Returns the fault of the value, if it has one.
    pub fn fault(&self, event: &Event) -> Eval<()> {
        match self {
            Operand::Text(text) => text.eval(event).map(drop),
            Operand::Decimal(whole) | Operand::Integer(whole) => whole.eval(event).map(drop),
            Operand::Float(float) => float.eval(event).map(drop),
            Operand::Boolean(truth) => truth.eval(event).map(drop),
            Operand::Attribute(attribute) => attribute.read(event).map(drop),
        }
    }
}
