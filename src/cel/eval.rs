//! Typed expressions, and their evaluation over an event.
//!
//! ```text
//!   Truth ── And, Or, comparisons ──▶ Whole (integer, decimal, instant, duration), Float, Text, Attribute ──▶ slots of the event
//! ```
//!
//! The types were checked by the compiler, so an expression of each type is a tree of its own, and nothing is looked up by
//! name. Evaluation allocates only for text that is made.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::attributes::Member;
use super::dynamic::{Attribute, Operand, compare_attribute};
use super::lists::{Column, Lookup};
use super::number;
use super::time::{self, Part};
use crate::event::{Event, split_key};
use crate::fields::{FieldId, Value};
use crate::json;

/// The reason why an expression has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A field or attribute is absent.
    Absent,
    /// A division by zero, an overflow, a value that cannot be converted, or an attribute of another type.
    Error,
}

pub(super) type Eval<T> = Result<T, Fault>;

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Relation {
    #[inline]
    pub fn holds<T: PartialOrd + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::LessEqual => left <= right,
            Relation::Greater => left > right,
            Relation::GreaterEqual => left >= right,
        }
    }

    pub fn is_of(self, order: Ordering) -> bool {
        self.holds(&order, &Ordering::Equal)
    }

    /// Returns the comparison with left and right exchanged.
    pub fn mirrored(self) -> Relation {
        match self {
            Relation::Less => Relation::Greater,
            Relation::LessEqual => Relation::GreaterEqual,
            Relation::Greater => Relation::Less,
            Relation::GreaterEqual => Relation::LessEqual,
            same => same,
        }
    }
}

/// A value chosen by a condition.
pub(super) type Choice<T> = Box<(Truth, T, T)>;

/// An expression that is true or false.
#[derive(Clone, Debug)]
pub(super) enum Truth {
    Const(bool),
    Field(FieldId),
    Has(FieldId),
    HasAttribute(Attribute),
    Not(Box<Truth>),
    /// False if one is false, else the first fault.
    And(Box<[Truth]>),
    /// True if one is true, else the first fault.
    Or(Box<[Truth]>),
    If(Choice<Truth>),
    /// A condition on values of a list, each of which must have a value.
    Given(Box<(Vec<Operand>, Truth)>),
    Equal(Box<(Truth, Truth)>, bool),
    /// A field of text equals a constant, or differs from it.
    FieldIs(FieldId, Box<str>, bool),
    /// A field held as a whole number, against a constant.
    FieldCompare(FieldId, Relation, i64),
    WholeCompare(Relation, Box<(Whole, Whole)>),
    /// A whole number against a decimal.
    MixedCompare(Relation, Box<(Whole, Whole)>),
    FloatCompare(Relation, Box<(Float, Float)>),
    TextCompare(Relation, Box<(Text, Text)>),
    AttributeCompare(Relation, Box<(Attribute, Operand)>),
    WholeIn(Box<(Whole, Vec<Whole>)>),
    /// In a sorted list of constants.
    WholeInConst(Box<(Whole, Box<[i64]>)>),
    FloatIn(Box<(Float, Vec<Float>)>),
    TextIn(Box<(Text, Vec<Text>)>),
    /// In a sorted list of constants.
    TextInConst(Box<(Text, Box<[Box<str>]>)>),
    /// A field of text, in a sorted list of constants.
    FieldIn(FieldId, Box<[Box<str>]>),
    AttributeIn(Box<(Attribute, Vec<Operand>)>),
    StartsWith(Box<(Text, Text)>),
    EndsWith(Box<(Text, Text)>),
    Contains(Box<(Text, Text)>),
    Matches(Box<(Text, regex_lite::Regex)>),
    Attribute(Attribute),
    InList(Box<Lookup>),
    Column(Box<Column>),
    HasColumn(Box<Column>),
}

/// An expression held in 64 bits: an integer, a decimal in millionths, an instant or a duration in milliseconds.
#[derive(Clone, Debug)]
pub(super) enum Whole {
    Const(i64),
    Field(FieldId),
    If(Choice<Whole>),
    Negate(Box<Whole>),
    Add(Box<(Whole, Whole)>),
    Subtract(Box<(Whole, Whole)>),
    Multiply(Box<(Whole, Whole)>),
    Divide(Box<(Whole, Whole)>),
    Remainder(Box<(Whole, Whole)>),
    MultiplyDecimals(Box<(Whole, Whole)>),
    DivideDecimals(Box<(Whole, Whole)>),
    /// An integer as a decimal, and the seconds of a duration in milliseconds alike: times the factor.
    Scale(Box<Whole>, i64),
    /// The integer part of a number of so many parts.
    Truncate(Box<Whole>, i64),
    Round(Box<Float>),
    TruncateFloat(Box<Float>),
    ReadInteger(Box<Text>),
    ReadDecimal(Box<Text>),
    ReadInstant(Box<Text>),
    ReadDuration(Box<Text>),
    Characters(Box<Text>),
    /// A part of an instant that is moved by an offset in milliseconds.
    InstantPart(Part, i64, Box<Whole>),
    DurationPart(Part, Box<Whole>),
    /// An attribute as a decimal.
    Attribute(Attribute),
    /// A text or number of an attribute as a decimal.
    AttributeDecimal(Attribute),
    /// A text or number of an attribute as an integer.
    AttributeInteger(Attribute),
    Column(Box<Column>),
}

/// A floating-point number.
#[derive(Clone, Debug)]
pub(super) enum Float {
    Const(f64),
    Field(FieldId),
    Latitude(FieldId),
    Longitude(FieldId),
    If(Choice<Float>),
    Negate(Box<Float>),
    Add(Box<(Float, Float)>),
    Subtract(Box<(Float, Float)>),
    Multiply(Box<(Float, Float)>),
    Divide(Box<(Float, Float)>),
    Integer(Box<Whole>),
    Decimal(Box<Whole>),
    Read(Box<Text>),
    /// An attribute.
    Attribute(Attribute),
    /// A text or number of an attribute.
    Converted(Attribute),
    Column(Box<Column>),
}

/// Text.
#[derive(Clone, Debug)]
pub(super) enum Text {
    Const(Box<str>),
    Field(FieldId),
    Key,
    If(Choice<Text>),
    Concat(Box<[Text]>),
    Lower(Box<Text>),
    Upper(Box<Text>),
    Boolean(Box<Truth>),
    Integer(Box<Whole>),
    Decimal(Box<Whole>),
    Instant(Box<Whole>),
    Float(Box<Float>),
    /// An attribute.
    Attribute(Attribute),
    /// A text, number or boolean of an attribute as text.
    Converted(Attribute),
    Column(Box<Column>),
}

fn checked(value: Option<i64>) -> Eval<i64> {
    value.ok_or(Fault::Error)
}

impl Truth {
    pub fn eval(&self, event: &Event) -> Eval<bool> {
        match self {
            Truth::Const(value) => Ok(*value),
            Truth::And(all) => join(all, event, false),
            Truth::Or(all) => join(all, event, true),
            Truth::FieldIs(field, constant, expected) => match event.value(*field) {
                Value::String(text) => Ok((text == &**constant) == *expected),
                _ => Err(Fault::Absent),
            },
            Truth::FieldCompare(field, relation, constant) => {
                Ok(relation.holds(&whole(event, *field)?, constant))
            }
            Truth::Field(field) => match event.value(*field) {
                Value::Boolean(value) => Ok(value),
                _ => Err(Fault::Absent),
            },
            Truth::Has(field) => Ok(event.has(*field)),
            Truth::Not(inner) => Ok(!inner.eval(event)?),
            Truth::FieldIn(field, constants) => match event.value(*field) {
                Value::String(text) => Ok(is_one(text, constants)),
                _ => Err(Fault::Absent),
            },
            Truth::WholeInConst(sides) => Ok(sides.1.binary_search(&sides.0.eval(event)?).is_ok()),
            Truth::InList(lookup) => lookup.is_found(event),
            _ => self.eval_more(event),
        }
    }

    /// Evaluates the less frequent expressions, apart from the others, which need no more than a few registers.
    #[inline(never)]
    fn eval_more(&self, event: &Event) -> Eval<bool> {
        match self {
            Truth::HasAttribute(attribute) => Ok(attribute.read(event).is_ok()),
            Truth::Column(column) => column.boolean(event),
            Truth::HasColumn(column) => Ok(column.has(event)),
            Truth::If(choice) => {
                if choice.0.eval(event)? {
                    choice.1.eval(event)
                } else {
                    choice.2.eval(event)
                }
            }
            Truth::Given(sides) => {
                sides.0.iter().try_for_each(|item| item.fault(event))?;
                sides.1.eval(event)
            }
            Truth::Equal(sides, expected) => Ok((sides.0.eval(event)? == sides.1.eval(event)?) == *expected),
            Truth::WholeCompare(relation, sides) => {
                Ok(relation.holds(&sides.0.eval(event)?, &sides.1.eval(event)?))
            }
            Truth::MixedCompare(relation, sides) => {
                let order = number::compare_mixed(sides.0.eval(event)?, sides.1.eval(event)?);
                Ok(relation.is_of(order))
            }
            Truth::FloatCompare(relation, sides) => {
                compare_floats(*relation, sides.0.eval(event)?, sides.1.eval(event)?)
            }
            Truth::TextCompare(relation, sides) => {
                Ok(relation.holds(&*sides.0.eval(event)?, &*sides.1.eval(event)?))
            }
            Truth::AttributeCompare(relation, sides) => {
                compare_attribute(&sides.0.read(event)?, *relation, &sides.1, event)
            }
            Truth::Attribute(attribute) => match attribute.read(event)? {
                Member::Boolean(value) => Ok(value),
                _ => Err(Fault::Error),
            },
            Truth::StartsWith(sides) => Ok(sides.0.eval(event)?.starts_with(&*sides.1.eval(event)?)),
            Truth::EndsWith(sides) => Ok(sides.0.eval(event)?.ends_with(&*sides.1.eval(event)?)),
            Truth::Contains(sides) => Ok(sides.0.eval(event)?.contains(&*sides.1.eval(event)?)),
            Truth::TextInConst(sides) => Ok(is_one(&sides.0.eval(event)?, &sides.1)),
            Truth::Matches(sides) => Ok(sides.1.is_match(&sides.0.eval(event)?)),
            _ => self.eval_in(event),
        }
    }

    /// Evaluates whether a value is in a list. A fault of one of the list's values is one of the list.
    fn eval_in(&self, event: &Event) -> Eval<bool> {
        match self {
            Truth::WholeIn(sides) => {
                let value = sides.0.eval(event)?;
                any(&sides.1, |item| Ok(item.eval(event)? == value))
            }
            Truth::FloatIn(sides) => {
                let value = sides.0.eval(event)?;
                any(&sides.1, |item| Ok(item.eval(event)? == value))
            }
            Truth::TextIn(sides) => {
                let value = sides.0.eval(event)?;
                any(&sides.1, |item| Ok(item.eval(event)? == value))
            }
            Truth::AttributeIn(sides) => {
                let value = sides.0.read(event)?;
                any(&sides.1, |item| compare_attribute(&value, Relation::Equal, item, event))
            }
            _ => unreachable!("all other expressions are evaluated before"),
        }
    }
}

/// Returns true if a text is one of sorted constants.
#[inline]
fn is_one(text: &str, constants: &[Box<str>]) -> bool {
    // Most texts of a few differ in their lengths, which is faster to see than an order.
    match constants.len() {
        0..=8 => constants.iter().any(|constant| **constant == *text),
        _ => constants.binary_search_by(|constant| (**constant).cmp(text)).is_ok(),
    }
}

/// Returns whether a condition holds for one of the items: of all of them, so that a fault of any is found.
fn any<T>(items: &[T], mut holds: impl FnMut(&T) -> Eval<bool>) -> Eval<bool> {
    items.iter().try_fold(false, |found, item| Ok(holds(item)? | found))
}

/// Compares numbers. What is not a number, such as zero divided by zero, equals nothing and has no order.
pub(super) fn compare_floats(relation: Relation, left: f64, right: f64) -> Eval<bool> {
    match left.partial_cmp(&right) {
        Some(order) => Ok(relation.is_of(order)),
        None if relation == Relation::Equal => Ok(false),
        None if relation == Relation::NotEqual => Ok(true),
        None => Err(Fault::Error),
    }
}

/// Returns `decisive` if it is the value of one of them, else an error of one, else an absence, else the opposite.
#[inline]
fn join(all: &[Truth], event: &Event, decisive: bool) -> Eval<bool> {
    let mut result = Ok(!decisive);
    for truth in all {
        match truth.eval(event) {
            Ok(value) if value == decisive => return Ok(decisive),
            Ok(_) => {}
            Err(fault) if result != Err(Fault::Error) => result = Err(fault),
            Err(_) => {}
        }
    }
    result
}

/// Returns the value of a field that is held as a whole number.
#[inline]
fn whole(event: &Event, field: FieldId) -> Eval<i64> {
    event.whole(field).ok_or(Fault::Absent)
}

impl Whole {
    pub fn eval(&self, event: &Event) -> Eval<i64> {
        match self {
            Whole::Const(value) => Ok(*value),
            Whole::Field(field) => whole(event, *field),
            Whole::If(choice) => {
                if choice.0.eval(event)? {
                    choice.1.eval(event)
                } else {
                    choice.2.eval(event)
                }
            }
            Whole::Negate(inner) => checked(inner.eval(event)?.checked_neg()),
            Whole::Add(sides) => checked(sides.0.eval(event)?.checked_add(sides.1.eval(event)?)),
            Whole::Subtract(sides) => checked(sides.0.eval(event)?.checked_sub(sides.1.eval(event)?)),
            Whole::Multiply(sides) => checked(sides.0.eval(event)?.checked_mul(sides.1.eval(event)?)),
            Whole::Divide(sides) => checked(sides.0.eval(event)?.checked_div(sides.1.eval(event)?)),
            Whole::Remainder(sides) => checked(sides.0.eval(event)?.checked_rem(sides.1.eval(event)?)),
            Whole::MultiplyDecimals(sides) => number::multiply(sides.0.eval(event)?, sides.1.eval(event)?),
            Whole::DivideDecimals(sides) => number::divide(sides.0.eval(event)?, sides.1.eval(event)?),
            Whole::Scale(inner, factor) => checked(inner.eval(event)?.checked_mul(*factor)),
            Whole::Truncate(inner, parts) => Ok(inner.eval(event)? / parts),
            Whole::InstantPart(part, offset, inner) => {
                Ok(part.of_instant(checked(inner.eval(event)?.checked_add(*offset))?))
            }
            Whole::DurationPart(part, inner) => Ok(part.of_duration(inner.eval(event)?)),
            _ => self.eval_converted(event),
        }
    }

    /// Evaluates conversions from other types.
    #[inline(never)]
    fn eval_converted(&self, event: &Event) -> Eval<i64> {
        let decimal = |text: &str| checked(number::read_decimal(text).map(|read| read.micros));
        match self {
            Whole::Round(float) => checked(number::from_float(float.eval(event)?)),
            Whole::TruncateFloat(float) => truncated(float.eval(event)?),
            Whole::ReadInteger(text) => text.eval(event)?.parse().map_err(|_| Fault::Error),
            Whole::ReadDecimal(text) => decimal(&text.eval(event)?),
            Whole::ReadInstant(text) => checked(time::read_instant(&text.eval(event)?)),
            Whole::ReadDuration(text) => checked(time::read_duration(&text.eval(event)?)),
            Whole::Column(column) => column.whole(event),
            Whole::Characters(text) => Ok(text.eval(event)?.chars().count() as i64),
            Whole::Attribute(attribute) => match attribute.read(event)? {
                Member::Number(text) => decimal(text),
                _ => Err(Fault::Error),
            },
            Whole::AttributeDecimal(attribute) => match attribute.read(event)? {
                Member::Number(text) => decimal(text),
                Member::Text(text) => decimal(&text),
                _ => Err(Fault::Error),
            },
            Whole::AttributeInteger(attribute) => match attribute.read(event)? {
                Member::Number(text) => match text.parse() {
                    Ok(integer) => Ok(integer),
                    Err(_) => truncated(text.parse().map_err(|_| Fault::Error)?),
                },
                Member::Text(text) => text.parse().map_err(|_| Fault::Error),
                _ => Err(Fault::Error),
            },
            _ => unreachable!("all other expressions are evaluated before"),
        }
    }
}

/// Returns the integer part.
fn truncated(float: f64) -> Eval<i64> {
    // The bounds are the nearest numbers that certainly fit.
    if float.abs() < 9.223_372_036_854_775e18 { Ok(float as i64) } else { Err(Fault::Error) }
}

impl Float {
    pub fn eval(&self, event: &Event) -> Eval<f64> {
        let finite = |text: &str| match text.parse::<f64>() {
            Ok(float) if float.is_finite() => Ok(float),
            _ => Err(Fault::Error),
        };
        let place = |field: FieldId| match event.value(field) {
            Value::Location(location) => Ok(location),
            _ => Err(Fault::Absent),
        };
        match self {
            Float::Const(value) => Ok(*value),
            Float::Field(field) => match event.value(*field) {
                Value::Float(value) => Ok(value),
                _ => Err(Fault::Absent),
            },
            Float::Latitude(field) => Ok(place(*field)?.lat),
            Float::Longitude(field) => Ok(place(*field)?.lon),
            Float::If(choice) => {
                if choice.0.eval(event)? {
                    choice.1.eval(event)
                } else {
                    choice.2.eval(event)
                }
            }
            Float::Negate(inner) => Ok(-inner.eval(event)?),
            Float::Add(sides) => Ok(sides.0.eval(event)? + sides.1.eval(event)?),
            Float::Subtract(sides) => Ok(sides.0.eval(event)? - sides.1.eval(event)?),
            Float::Multiply(sides) => Ok(sides.0.eval(event)? * sides.1.eval(event)?),
            Float::Divide(sides) => Ok(sides.0.eval(event)? / sides.1.eval(event)?),
            Float::Integer(whole) => Ok(whole.eval(event)? as f64),
            Float::Decimal(whole) => Ok(number::to_float(whole.eval(event)?)),
            Float::Column(column) => column.float(event),
            Float::Read(text) => finite(&text.eval(event)?),
            Float::Attribute(attribute) => match attribute.read(event)? {
                Member::Number(text) => finite(text),
                _ => Err(Fault::Error),
            },
            Float::Converted(attribute) => match attribute.read(event)? {
                Member::Number(text) => finite(text),
                Member::Text(text) => finite(&text),
                _ => Err(Fault::Error),
            },
        }
    }
}

impl Text {
    pub fn eval<'a>(&'a self, event: &'a Event) -> Eval<Cow<'a, str>> {
        match self {
            Text::Const(text) => Ok(Cow::Borrowed(text)),
            Text::Field(field) => match event.value(*field) {
                Value::String(text) => Ok(Cow::Borrowed(text)),
                _ => Err(Fault::Absent),
            },
            Text::Key => Ok(Cow::Borrowed(split_key(event.key()).1)),
            Text::If(choice) => {
                if choice.0.eval(event)? {
                    choice.1.eval(event)
                } else {
                    choice.2.eval(event)
                }
            }
            Text::Attribute(attribute) => match attribute.read(event)? {
                Member::Text(text) => Ok(text),
                _ => Err(Fault::Error),
            },
            _ => self.eval_made(event).map(Cow::Owned),
        }
    }

    /// Evaluates text that is made.
    #[inline(never)]
    fn eval_made(&self, event: &Event) -> Eval<String> {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).map_err(|_| Fault::Error)
        };
        match self {
            Text::Concat(parts) => parts.iter().try_fold(String::new(), |mut all, part| {
                all.push_str(&part.eval(event)?);
                Ok(all)
            }),
            Text::Column(column) => column.text(event),
            Text::Lower(text) => Ok(text.eval(event)?.to_ascii_lowercase()),
            Text::Upper(text) => Ok(text.eval(event)?.to_ascii_uppercase()),
            Text::Boolean(truth) => Ok(truth.eval(event)?.to_string()),
            Text::Integer(whole) => Ok(whole.eval(event)?.to_string()),
            Text::Decimal(whole) => {
                let micros = whole.eval(event)?;
                written(&|out| json::write_micros(out, micros))
            }
            Text::Instant(whole) => {
                let ms = whole.eval(event)?;
                written(&|out| json::write_time(out, ms))
            }
            Text::Float(float) => Ok(float.eval(event)?.to_string()),
            Text::Converted(attribute) => match attribute.read(event)? {
                Member::Text(text) => Ok(text.into_owned()),
                Member::Number(text) => Ok(text.to_owned()),
                Member::Boolean(value) => Ok(value.to_string()),
                Member::Composite => Err(Fault::Error),
            },
            _ => unreachable!("all other expressions are evaluated before"),
        }
    }
}
