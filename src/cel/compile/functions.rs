//! Functions: `size(x)`, `x.startsWith('a')`.

use ::cel::common::ast::{CallExpr, IdedExpr};

use super::super::error::{CelError, names};
use super::super::eval::{Float, Text, Truth, Whole};
use super::super::number::{self, MICROS};
use super::super::time::{self, Part};
use super::numeric::{self, scaled};
use super::{Compiler, Result, Typed};

/// The functions that are called on a value, besides those of [`Part::NAMES`].
const METHODS: [&str; 7] =
    ["startsWith", "endsWith", "contains", "matches", "size", "lowerAscii", "upperAscii"];

/// The other functions.
const FUNCTIONS: [&str; 9] =
    ["has", "size", "matches", "int", "double", "decimal", "string", "timestamp", "duration"];

/// The greatest size of a compiled regular expression, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

impl<'a> Compiler<'a> {
    /// Compiles the call of a function.
    pub(super) fn function(&mut self, node: &'a IdedExpr, call: &'a CallExpr) -> Result<Typed> {
        let name = call.func_name.as_str();
        match (&call.target, &*call.args) {
            (Some(target), arguments) => {
                if let Some((_, part)) = Part::NAMES.into_iter().find(|(known, _)| *known == name) {
                    return self.part(node, target, part, arguments);
                }
                if !METHODS.contains(&name) {
                    return self.unknown(node, call);
                }
                match (name, arguments) {
                    ("size", []) => self.size(target),
                    ("lowerAscii", []) => Ok(Typed::String(Text::Lower(Box::new(self.text(target)?)))),
                    ("upperAscii", []) => Ok(Typed::String(Text::Upper(Box::new(self.text(target)?)))),
                    ("matches", [pattern]) => self.matches(target, pattern),
                    ("startsWith" | "endsWith" | "contains", [other]) => {
                        let sides = Box::new((self.text(target)?, self.text(other)?));
                        Ok(Typed::Boolean(match name {
                            "startsWith" => Truth::StartsWith(sides),
                            "endsWith" => Truth::EndsWith(sides),
                            _ => Truth::Contains(sides),
                        }))
                    }
                    _ => self.arity(node, name, arguments.len()),
                }
            }
            (None, arguments) => match (name, arguments) {
                ("size", [value]) => self.size(value),
                ("matches", [value, pattern]) => self.matches(value, pattern),
                ("int" | "double" | "decimal" | "string" | "timestamp" | "duration", [value]) => {
                    self.conversion(node, name, value)
                }
                _ if FUNCTIONS.contains(&name) => self.arity(node, name, arguments.len()),
                _ => self.unknown(node, call),
            },
        }
    }

    fn arity(&self, node: &IdedExpr, name: &str, found: usize) -> Result<Typed> {
        self.error(
            node,
            format!("{name} does not take {found} argument{}", if found == 1 { "" } else { "s" }),
        )
    }

    fn unknown(&self, node: &IdedExpr, call: &CallExpr) -> Result<Typed> {
        let name = call.func_name.as_str();
        let parts = Part::NAMES.iter().map(|(name, _)| *name);
        let suggestion = match call.target {
            Some(_) if FUNCTIONS.contains(&name) => format!("write {name}(…)"),
            Some(_) => names(name, "functions", METHODS.into_iter().chain(parts)),
            None if METHODS.contains(&name) || Part::NAMES.iter().any(|(part, _)| *part == name) => {
                format!("write value.{name}(…)")
            }
            None => names(name, "functions", FUNCTIONS.into_iter()),
        };
        Err(CelError::new(self.syntax.offset(node), format!("unknown function {name}")).suggest(suggestion))
    }

    /// Compiles an expression that must be text.
    fn text(&mut self, node: &'a IdedExpr) -> Result<Text> {
        let typed = self.expression(node)?;
        let failed = || {
            let error = CelError::new(
                self.syntax.start(node),
                format!("expected a string, found {}", typed.a_name()),
            );
            error.suggest("write string(…) of it")
        };
        typed.text().ok_or_else(failed)
    }

    fn size(&mut self, node: &'a IdedExpr) -> Result<Typed> {
        Ok(Typed::Integer(Whole::Characters(Box::new(self.text(node)?))))
    }

    fn matches(&mut self, value: &'a IdedExpr, pattern: &'a IdedExpr) -> Result<Typed> {
        let value = self.text(value)?;
        let Text::Const(text) = self.text(pattern)? else {
            return self.error(pattern, "the regular expression is not a constant text in quotes");
        };
        let regex = regex_lite::RegexBuilder::new(&text).size_limit(MAX_REGEX_BYTES).build();
        match regex {
            Ok(regex) => Ok(Typed::Boolean(Truth::Matches(Box::new((value, regex))))),
            Err(error) => self.error(pattern, format!("not a regular expression: {error}")),
        }
    }

    /// Compiles a function that returns a part of an instant or a duration.
    fn part(
        &mut self,
        node: &'a IdedExpr,
        value: &'a IdedExpr,
        part: Part,
        arguments: &'a [IdedExpr],
    ) -> Result<Typed> {
        let typed = self.expression(value)?;
        let offset = match arguments {
            [] => 0,
            [zone] => match (self.expression(zone)?, &typed) {
                (Typed::String(Text::Const(text)), Typed::Timestamp(_)) => {
                    let Some(offset) = time::read_offset(&text) else {
                        let error =
                            CelError::new(self.syntax.offset(zone), format!("unknown time zone {text}"));
                        return Err(error.suggest("write 'UTC' or an offset such as '+01:00'"));
                    };
                    offset
                }
                (_, Typed::Timestamp(_)) => return self.error(zone, "the time zone is a text in quotes"),
                _ => return self.error(zone, "only an instant has a time zone"),
            },
            more => return self.arity(node, "the function", more.len()),
        };
        match typed {
            Typed::Timestamp(whole) => Ok(Typed::Integer(Whole::InstantPart(part, offset, Box::new(whole)))),
            Typed::Duration(whole) if part.is_of_durations() => {
                Ok(Typed::Integer(Whole::DurationPart(part, Box::new(whole))))
            }
            other => {
                let name = other.a_name();
                let function = Part::NAMES.iter().find(|(_, known)| *known == part);
                let function = function.map_or("", |(name, _)| name);
                let error = CelError::new(self.syntax.offset(node), format!("{name} has no {function}"));
                Err(match other.text() {
                    Some(_) => error.suggest("write timestamp(…) of a text"),
                    None => error,
                })
            }
        }
    }

    fn conversion(&mut self, node: &IdedExpr, name: &str, value: &'a IdedExpr) -> Result<Typed> {
        let typed = self.expression(value)?;
        let at = self.syntax.start(value);
        let converted = match name {
            "int" => to_integer(&typed, at)?.map(Typed::Integer),
            "double" => to_float(&typed).map(Typed::Float),
            "decimal" => to_decimal(&typed, at)?.map(Typed::Decimal),
            "string" => to_text(&typed, at)?.map(Typed::String),
            "timestamp" => self.instant(value, &typed)?,
            _ => self.duration(value, &typed)?,
        };
        let failed = || {
            CelError::new(
                self.syntax.offset(node),
                format!("{} cannot be converted with {name}()", typed.a_name()),
            )
        };
        converted.ok_or_else(failed)
    }

    fn instant(&self, node: &IdedExpr, value: &Typed) -> Result<Option<Typed>> {
        Ok(match value {
            Typed::String(Text::Const(text)) => match time::read_instant(text) {
                Some(ms) => Some(Typed::Timestamp(Whole::Const(ms))),
                None => {
                    let error = CelError::new(self.syntax.offset(node), format!("not an instant: {text}"));
                    return Err(error.suggest("write RFC 3339, such as 2026-01-02T03:04:05Z"));
                }
            },
            Typed::Timestamp(whole) => Some(Typed::Timestamp(whole.clone())),
            value => value.text().map(|text| Typed::Timestamp(Whole::ReadInstant(Box::new(text)))),
        })
    }

    fn duration(&self, node: &IdedExpr, value: &Typed) -> Result<Option<Typed>> {
        Ok(match value {
            Typed::String(Text::Const(text)) => match time::read_duration(text) {
                Some(ms) => Some(Typed::Duration(Whole::Const(ms))),
                None => {
                    let message = format!("not a duration of whole milliseconds: {text}");
                    let error = CelError::new(self.syntax.offset(node), message);
                    return Err(error.suggest("write one such as 1h30m, 10s or 250ms"));
                }
            },
            Typed::Duration(whole) => Some(Typed::Duration(whole.clone())),
            value => value.text().map(|text| Typed::Duration(Whole::ReadDuration(Box::new(text)))),
        })
    }
}

/// Returns the integer part of a number, the number in a text, or the seconds of an instant since 1970.
fn to_integer(value: &Typed, at: usize) -> Result<Option<Whole>> {
    Ok(Some(match value {
        Typed::Integer(whole) => whole.clone(),
        Typed::Number(number) => match number.whole {
            Some(whole) => Whole::Const(whole),
            None => Whole::Const(number.micros(at)? / MICROS),
        },
        Typed::Decimal(whole) => Whole::Truncate(Box::new(whole.clone()), MICROS),
        Typed::Float(float) => Whole::TruncateFloat(Box::new(float.clone())),
        Typed::String(text) => Whole::ReadInteger(Box::new(text.clone())),
        Typed::Timestamp(whole) | Typed::Duration(whole) => Whole::Truncate(Box::new(whole.clone()), 1000),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => {
            Whole::AttributeInteger(attribute.clone())
        }
        _ => return Ok(None),
    }))
}

fn to_float(value: &Typed) -> Option<Float> {
    Some(match value {
        Typed::Integer(whole) => Float::Integer(Box::new(whole.clone())),
        Typed::Decimal(whole) => Float::Decimal(Box::new(whole.clone())),
        Typed::String(text) => Float::Read(Box::new(text.clone())),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Float::Converted(attribute.clone()),
        value => return numeric::float(value),
    })
}

/// Returns a number or the number in a text as a decimal, rounded half to even at the sixth digit after the point.
fn to_decimal(value: &Typed, at: usize) -> Result<Option<Whole>> {
    Ok(Some(match value {
        Typed::Integer(whole) => scaled(whole.clone()),
        Typed::Float(float) => Whole::Round(Box::new(float.clone())),
        Typed::String(Text::Const(text)) => match number::read_decimal(text) {
            Some(read) => Whole::Const(read.micros),
            None => return Err(CelError::new(at, format!("not a decimal: {text}"))),
        },
        Typed::String(text) => Whole::ReadDecimal(Box::new(text.clone())),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => {
            Whole::AttributeDecimal(attribute.clone())
        }
        value => return numeric::decimal(value, at),
    }))
}

fn to_text(value: &Typed, at: usize) -> Result<Option<Text>> {
    Ok(Some(match value {
        Typed::String(text) => text.clone(),
        Typed::Boolean(truth) => Text::Boolean(Box::new(truth.clone())),
        Typed::Integer(whole) => Text::Integer(Box::new(whole.clone())),
        Typed::Decimal(whole) => Text::Decimal(Box::new(whole.clone())),
        Typed::Timestamp(whole) => Text::Instant(Box::new(whole.clone())),
        Typed::Float(float) => Text::Float(Box::new(float.clone())),
        Typed::Number(number) => return to_text(&number.settled(at)?, at),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Text::Converted(attribute.clone()),
        _ => return Ok(None),
    }))
}
