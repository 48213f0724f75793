//! Numbers: literals, which take the type of what they meet, and arithmetic.

use super::super::error::CelError;
use super::super::eval::{Fault, Float, Text, Whole};
use super::super::number::{self, MICROS};
use super::{Arithmetic, Result, Typed};

/// A constant number, whose type depends on what it meets.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cel) struct Number {
    /// The value of a whole number without a point.
    pub whole: Option<i64>,
    /// The value in millionths, or why it is no decimal.
    pub decimal: std::result::Result<i64, &'static str>,
    pub float: f64,
}

const TOO_LARGE: &str = "is beyond the range of decimals, which is about ±9.2×10^12";
const FAILED: &str = "the constants overflow, or divide by zero";
const TOO_FINE: &str = "has more than the six digits after the point that a decimal holds";

impl Number {
    pub fn of_whole(whole: i64) -> Number {
        let decimal = whole.checked_mul(MICROS).ok_or(TOO_LARGE);
        Number { whole: Some(whole), decimal, float: whole as f64 }
    }

    /// Returns the number with these digits.
    pub fn of_digits(digits: &str, float: f64) -> Number {
        let decimal = match number::read_decimal(digits) {
            None => Err(TOO_LARGE),
            Some(read) if !read.is_exact => Err(TOO_FINE),
            Some(read) if float.is_sign_negative() => Ok(-read.micros),
            Some(read) => Ok(read.micros),
        };
        Number { whole: None, decimal, float }
    }

    pub fn negated(&self, at: usize) -> Result<Number> {
        if let Some(whole) = self.whole {
            return whole.checked_neg().map(Number::of_whole).ok_or_else(|| CelError::new(at, FAILED));
        }
        let decimal = self.decimal.and_then(|micros| micros.checked_neg().ok_or(TOO_LARGE));
        Ok(Number { whole: None, decimal, float: -self.float })
    }

    /// Returns the value in millionths.
    pub fn micros(&self, offset: usize) -> Result<i64> {
        self.decimal.map_err(|reason| match reason {
            FAILED => CelError::new(offset, FAILED),
            reason => CelError::new(offset, format!("{} {reason}", self.float)),
        })
    }

    /// Returns the number as an integer if it is whole, else as a decimal.
    pub fn settled(&self, offset: usize) -> Result<Typed> {
        match self.whole {
            Some(whole) => Ok(Typed::Integer(Whole::Const(whole))),
            None => Ok(Typed::Decimal(Whole::Const(self.micros(offset)?))),
        }
    }
}

/// Two numbers of one type.
pub(super) enum Pair {
    Integers(Whole, Whole),
    Decimals(Whole, Whole),
    Floats(Float, Float),
}

/// Returns an integer as a decimal.
pub(super) fn scaled(whole: Whole) -> Whole {
    match whole {
        Whole::Const(value) if value.checked_mul(MICROS).is_some() => Whole::Const(value * MICROS),
        whole => Whole::Scale(Box::new(whole), MICROS),
    }
}

/// Returns a value as a decimal; None if it is not exact, or not a number.
pub(super) fn decimal(value: &Typed, offset: usize) -> Result<Option<Whole>> {
    Ok(Some(match value {
        Typed::Decimal(whole) => whole.clone(),
        Typed::Integer(whole) => scaled(whole.clone()),
        Typed::Number(number) => Whole::Const(number.micros(offset)?),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Whole::Attribute(attribute.clone()),
        _ => return Ok(None),
    }))
}

/// Returns a value as a floating-point number; None if it is of another type.
pub(super) fn float(value: &Typed) -> Option<Float> {
    Some(match value {
        Typed::Float(float) => float.clone(),
        Typed::Number(number) => Float::Const(number.float),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Float::Attribute(attribute.clone()),
        _ => return None,
    })
}

/// Returns two values as numbers of one type; None if they are not numbers, or of types that do not meet exactly. One of
/// them is not a literal or an attribute.
pub(super) fn pair(left: &Typed, right: &Typed, offsets: (usize, usize)) -> Result<Option<Pair>> {
    use Typed::{Attribute, Float, Integer, Number};
    Ok(match (left, right) {
        (Attribute(_), Attribute(_)) => None,
        (Integer(left), Integer(right)) => Some(Pair::Integers(left.clone(), right.clone())),
        (Integer(left), Number(number)) if let Some(right) = number.whole => {
            Some(Pair::Integers(left.clone(), Whole::Const(right)))
        }
        (Number(number), Integer(right)) if let Some(left) = number.whole => {
            Some(Pair::Integers(Whole::Const(left), right.clone()))
        }
        (Float(_), _) | (_, Float(_)) => {
            float(left).zip(float(right)).map(|(left, right)| Pair::Floats(left, right))
        }
        _ => decimal(left, offsets.0)?
            .zip(decimal(right, offsets.1)?)
            .map(|(left, right)| Pair::Decimals(left, right)),
    })
}

/// Returns the result of an operation on two numbers, two texts, or on instants and durations; None if it does not exist.
pub(super) fn arithmetic(
    operation: Arithmetic,
    (left, right): (&Typed, &Typed),
    (at, left_at, right_at): (usize, usize, usize),
) -> Result<Option<Typed>> {
    if let (Typed::Number(left), Typed::Number(right)) = (left, right) {
        return fold(operation, left, right, at).map(|number| Some(Typed::Number(number)));
    }
    if let Some(typed) = of_times(operation, left, right) {
        return Ok(Some(typed));
    }
    if operation == Arithmetic::Add
        && let Some(text) = concat(left, right)
    {
        return Ok(Some(Typed::String(text)));
    }
    Ok(match pair(left, right, (left_at, right_at))? {
        Some(Pair::Integers(left, right)) => {
            Some(Typed::Integer(whole(operation, left, right, Whole::Multiply, Whole::Divide)))
        }
        Some(Pair::Decimals(left, right)) => {
            let result = whole(operation, left, right, Whole::MultiplyDecimals, Whole::DivideDecimals);
            Some(Typed::Decimal(result))
        }
        Some(Pair::Floats(left, right)) => {
            let sides = Box::new((left, right));
            Some(Typed::Float(match operation {
                Arithmetic::Add => Float::Add(sides),
                Arithmetic::Subtract => Float::Subtract(sides),
                Arithmetic::Multiply => Float::Multiply(sides),
                Arithmetic::Divide => Float::Divide(sides),
                Arithmetic::Remainder => return Ok(None),
            }))
        }
        None => None,
    })
}

type Build = fn(Box<(Whole, Whole)>) -> Whole;

fn whole(operation: Arithmetic, left: Whole, right: Whole, multiply: Build, divide: Build) -> Whole {
    let sides = Box::new((left, right));
    match operation {
        Arithmetic::Add => Whole::Add(sides),
        Arithmetic::Subtract => Whole::Subtract(sides),
        Arithmetic::Multiply => multiply(sides),
        Arithmetic::Divide => divide(sides),
        Arithmetic::Remainder => Whole::Remainder(sides),
    }
}

fn of_times(operation: Arithmetic, left: &Typed, right: &Typed) -> Option<Typed> {
    use Typed::{Duration, Timestamp};
    let sides = |left: &Whole, right: &Whole| Box::new((left.clone(), right.clone()));
    Some(match (operation, left, right) {
        (Arithmetic::Add, Timestamp(left), Duration(right)) => Timestamp(Whole::Add(sides(left, right))),
        (Arithmetic::Add, Duration(left), Timestamp(right)) => Timestamp(Whole::Add(sides(left, right))),
        (Arithmetic::Add, Duration(left), Duration(right)) => Duration(Whole::Add(sides(left, right))),
        (Arithmetic::Subtract, Timestamp(left), Duration(right)) => {
            Timestamp(Whole::Subtract(sides(left, right)))
        }
        (Arithmetic::Subtract, Timestamp(left), Timestamp(right))
        | (Arithmetic::Subtract, Duration(left), Duration(right)) => {
            Duration(Whole::Subtract(sides(left, right)))
        }
        _ => return None,
    })
}

fn concat(left: &Typed, right: &Typed) -> Option<Text> {
    if matches!((left, right), (Typed::Attribute(_), Typed::Attribute(_))) {
        return None;
    }
    let mut parts = Vec::new();
    for side in [left, right] {
        match side.text()? {
            Text::Concat(inner) => parts.extend(inner),
            text => parts.push(text),
        }
    }
    Some(Text::Concat(parts.into()))
}

/// Returns the result of an operation on two constants.
fn fold(operation: Arithmetic, left: &Number, right: &Number, at: usize) -> Result<Number> {
    if let (Some(left), Some(right)) = (left.whole, right.whole) {
        let result = match operation {
            Arithmetic::Add => left.checked_add(right),
            Arithmetic::Subtract => left.checked_sub(right),
            Arithmetic::Multiply => left.checked_mul(right),
            Arithmetic::Divide => left.checked_div(right),
            Arithmetic::Remainder => left.checked_rem(right),
        };
        let failed = || CelError::new(at, FAILED);
        return result.map(Number::of_whole).ok_or_else(failed);
    }
    let decimals = left.decimal.and_then(|left| Ok((left, right.decimal?)));
    let decimal = decimals.and_then(|(left, right)| {
        let result = match operation {
            Arithmetic::Add => left.checked_add(right).ok_or(Fault::Error),
            Arithmetic::Subtract => left.checked_sub(right).ok_or(Fault::Error),
            Arithmetic::Multiply => number::multiply(left, right),
            Arithmetic::Divide => number::divide(left, right),
            Arithmetic::Remainder => left.checked_rem(right).ok_or(Fault::Error),
        };
        result.map_err(|_| FAILED)
    });
    let float = match operation {
        Arithmetic::Add => left.float + right.float,
        Arithmetic::Subtract => left.float - right.float,
        Arithmetic::Multiply => left.float * right.float,
        Arithmetic::Divide => left.float / right.float,
        Arithmetic::Remainder => left.float % right.float,
    };
    Ok(Number { whole: None, decimal, float })
}
