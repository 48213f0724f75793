//! Expressions over events and alerts, in the Common Expression Language (CEL).
//!
//! ```text
//!   source ─ syntax ─▶ tree ─ compile: names, types ─▶ typed expression ─ eval ─▶ bool, number, hash
//!                │                 └─ CelError: place, what is wrong, what to write
//!                └─ bounds of length and depth; the grammar is that of the crate `cel`
//! ```
//!
//! An expression is checked once, when it is compiled. Its evaluation reads the slots of the event, without looking up
//! names. A field that is absent is a fault, as is an error such as a division by zero; faults follow CEL: `false && fault`
//! is false, `true || fault` is true, any other operation with a fault is a fault, and a predicate with a fault is false.
//! Errors are counted, absences are not. See `docs/cel.md`.

mod alert;
mod attributes;
mod compile;
mod dynamic;
mod error;
mod eval;
mod lists;
mod number;
mod syntax;
#[cfg(test)]
mod tests;
mod time;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use headwater_dataflows::KeyHash;

pub use self::alert::{AlertValues, CurrentValues, compile_alert_predicate};
use self::attributes::Member;
use self::compile::{Compiler, Typed};
pub use self::error::CelError;
use self::eval::{Eval, Fault, Float, Text, Truth, Whole};
use self::syntax::Syntax;
use crate::event::Event;
use crate::fields::{FieldId, FieldType, Layout};
use crate::lists::Lists;

/// The names that expressions can use: fields of events, or members of alerts.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    layout: &'a Layout,
    subject: Subject,
    lists: &'a Lists,
    /// True if `key` is the key by which the events are grouped.
    has_key: bool,
}

/// The subject of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Event,
    Alert,
}

impl<'a> Scope<'a> {
    /// Returns the scope of events with the fields of a layout.
    pub fn of_events(layout: &'a Layout) -> Scope<'a> {
        Scope { layout, lists: Lists::none(), subject: Subject::Event, has_key: true }
    }

    /// Returns the scope with these lists.
    pub fn with_lists(self, lists: &'a Lists) -> Scope<'a> {
        Scope { lists, ..self }
    }

    /// Returns the scope of alerts, whose values are in the slots of this layout.
    fn of_alerts(layout: &'a Layout) -> Scope<'a> {
        Scope { layout, lists: Lists::none(), subject: Subject::Alert, has_key: false }
    }

    /// Returns the scope without `key`, for events that are grouped by another key than their own.
    pub fn without_key(self) -> Scope<'a> {
        Scope { has_key: false, ..self }
    }

    /// Returns the name of the subject in expressions.
    fn name(&self) -> &'static str {
        match self.subject {
            Subject::Event => "event",
            Subject::Alert => "alert",
        }
    }

    /// Returns the id and the type of a field of the subject.
    fn field(&self, name: &str) -> Option<(FieldId, FieldType)> {
        match self.subject {
            Subject::Event => self
                .layout
                .field(name)
                .or((name == "time").then_some((FieldId::EVENT_TIME, FieldType::Timestamp))),
            Subject::Alert => alert::field(name),
        }
    }
}

/// An expression of a type, its source, and how often it failed.
struct Compiled<T> {
    expression: T,
    source: Box<str>,
    errors: AtomicU64,
}

impl<T> Compiled<T> {
    /// Returns a value that was evaluated; None of a fault, which is counted if it is an error.
    #[inline]
    fn counted<V>(&self, value: Eval<V>) -> Option<V> {
        match value {
            Ok(value) => Some(value),
            Err(Fault::Absent) => None,
            Err(Fault::Error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

macro_rules! compiled {
    ($($(#[$doc:meta])* $name:ident($expression:ty);)*) => {$(
        $(#[$doc])*
        ///
        /// Clones share the count of errors.
        #[derive(Clone)]
        pub struct $name(Arc<Compiled<$expression>>);

        impl $name {
            fn new(source: &str, expression: $expression) -> $name {
                $name(Arc::new(Compiled { expression, source: source.into(), errors: AtomicU64::new(0) }))
            }

            /// Returns how many evaluations ended with an error, such as a division by zero. An absent field is none.
            pub fn errors(&self) -> u64 {
                self.0.errors.load(Ordering::Relaxed)
            }

            /// Returns the source of the expression.
            pub fn source(&self) -> &str {
                &self.0.source
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0.source).finish()
            }
        }
    )*};
}

compiled! {
    /// A condition on an event.
    Predicate(Truth);
    /// A condition on an alert.
    AlertPredicate(Truth);
    /// A number of an event, in millionths.
    Number(Numeric);
    /// A value of an event, by its hash: values are distinct if their hashes are.
    Scalar(Typed);
    /// One of several names, chosen by an event.
    Choice(OneOf);
}

/// A number of one of the types of numbers.
enum Numeric {
    Micros(Whole),
    Float(Float),
}

/// Text that must be one of several names.
struct OneOf {
    text: Text,
    names: Box<[Box<str>]>,
}

/// Compiles a condition.
///
/// # Errors
/// If the source is not an expression, or not one that is true or false.
///
/// ```
/// # use headwater::{cel, fields::Layout};
/// let layout = Layout::default();
/// let scope = cel::Scope::of_events(&layout);
/// assert!(cel::compile_predicate("event.event_type == 'transaction' && event.amount < 2.0", &scope).is_ok());
/// let error = cel::compile_predicate("event.amuont < 2.0", &scope).expect_err("no such field");
/// assert_eq!(error.to_string(), "column 7: unknown field amuont; did you mean amount?");
/// ```
pub fn compile_predicate(source: &str, scope: &Scope<'_>) -> Result<Predicate, CelError> {
    compile(source, scope, condition).map(|truth| Predicate::new(source, truth))
}

fn condition(typed: Typed, at: usize) -> Result<Truth, CelError> {
    match typed {
        Typed::Boolean(truth) => Ok(truth),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Ok(Truth::Attribute(attribute)),
        other => Err(expected("a condition", &other, at)),
    }
}

/// Compiles a number.
///
/// # Errors
/// If the source is not an expression, or not one of a number.
pub fn compile_number(source: &str, scope: &Scope<'_>) -> Result<Number, CelError> {
    compile(source, scope, |typed, at| match typed {
        Typed::Decimal(whole) => Ok(Numeric::Micros(whole)),
        Typed::Integer(whole) => Ok(Numeric::Micros(Whole::Scale(Box::new(whole), number::MICROS))),
        Typed::Number(number) => Ok(Numeric::Micros(Whole::Const(number.micros(at)?))),
        Typed::Float(float) => Ok(Numeric::Float(float)),
        Typed::Attribute(attribute) if !attribute.path.is_empty() => {
            Ok(Numeric::Micros(Whole::Attribute(attribute)))
        }
        other => Err(expected("a number", &other, at)),
    })
    .map(|numeric| Number::new(source, numeric))
}

/// Compiles a value of which only its equality with others matters.
///
/// # Errors
/// If the source is not an expression, or one of an object or a location.
pub fn compile_scalar(source: &str, scope: &Scope<'_>) -> Result<Scalar, CelError> {
    compile(source, scope, |typed, at| match typed {
        Typed::Attribute(attribute) if attribute.path.is_empty() => {
            Err(expected("a single value", &Typed::Attribute(attribute), at))
        }
        other @ (Typed::Location(_) | Typed::List(_) | Typed::Row(_)) => {
            Err(expected("a single value", &other, at))
        }
        other => Ok(other),
    })
    .map(|typed| Scalar::new(source, typed))
}

/// Compiles the choice of one of several names: an expression of a string.
///
/// # Errors
/// If the source is not an expression, or not one of a string, or if a constant of it is none of the names.
pub fn compile_choice(source: &str, scope: &Scope<'_>, names: &[&str]) -> Result<Choice, CelError> {
    compile(source, scope, |typed, at| match typed {
        Typed::String(text) => {
            if let Some(other) = constants(&text).find(|constant| !names.contains(constant)) {
                let at = source.find(other).unwrap_or(at);
                let suggestion = error::names(other, "names", names.iter().copied());
                return Err(CelError::new(at, format!("{other} is none of the names")).suggest(suggestion));
            }
            Ok(text)
        }
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Ok(Text::Attribute(attribute)),
        other => Err(expected("a string", &other, at)),
    })
    .map(|text| Choice::new(source, OneOf { text, names: names.iter().copied().map(Box::from).collect() }))
}

/// Returns the constants that a text can be.
fn constants(text: &Text) -> Box<dyn Iterator<Item = &str> + '_> {
    match text {
        Text::Const(constant) => Box::new(std::iter::once(&**constant)),
        Text::If(choice) => Box::new(constants(&choice.1).chain(constants(&choice.2))),
        _ => Box::new(std::iter::empty()),
    }
}

fn compile<T>(
    source: &str,
    scope: &Scope<'_>,
    typed: impl FnOnce(Typed, usize) -> Result<T, CelError>,
) -> Result<T, CelError> {
    let compiled = || {
        let syntax = Syntax::parse(source)?;
        let root = Compiler::new(scope, &syntax).root()?;
        typed(root, syntax.start(&syntax.root))
    };
    compiled().map_err(|error| error.located(source))
}

fn expected(what: &str, found: &Typed, at: usize) -> CelError {
    CelError::new(at, format!("expected {what}, found {}", found.a_name()))
}

impl Predicate {
    /// Returns true if the condition holds for an event. A condition with a fault does not.
    #[inline]
    pub fn holds(&self, event: &Event) -> bool {
        self.0.counted(self.0.expression.eval(event)).unwrap_or(false)
    }
}

impl Number {
    /// Returns the number, in millionths: None if it is absent, or an error.
    pub fn micros(&self, event: &Event) -> Option<i64> {
        self.0.counted(match &self.0.expression {
            Numeric::Micros(whole) => whole.eval(event),
            Numeric::Float(float) => {
                float.eval(event).and_then(|float| number::from_float(float).ok_or(Fault::Error))
            }
        })
    }
}

impl Scalar {
    /// Returns the hash of the value: of text, that of its bytes. None if it is absent, or an error.
    pub fn hash(&self, event: &Event) -> Option<u64> {
        let whole = |whole: &Whole| whole.eval(event).map(|value| KeyHash::of(&value.to_le_bytes()).0);
        self.0.counted(match &self.0.expression {
            // Its hash is known.
            Typed::String(Text::Field(FieldId::MERCHANT_ID)) => event.merchant().ok_or(Fault::Absent),
            Typed::String(text) => text.eval(event).map(|text| KeyHash::of(text.as_bytes()).0),
            Typed::Integer(value)
            | Typed::Decimal(value)
            | Typed::Timestamp(value)
            | Typed::Duration(value) => whole(value),
            Typed::Boolean(truth) => truth.eval(event).map(|value| KeyHash::of(&[value.into()]).0),
            Typed::Float(float) => float.eval(event).map(hash_of_float),
            Typed::Number(number) => Ok(hash_of_float(number.float)),
            Typed::Attribute(attribute) => attribute.read(event).and_then(hash_of_member),
            Typed::Location(_) | Typed::List(_) | Typed::Row(_) => Err(Fault::Error),
        })
    }
}

/// Returns the hash of a floating-point number. Both zeros are equal, so their hashes are.
fn hash_of_float(float: f64) -> u64 {
    KeyHash::of(&(float + 0.0).to_bits().to_le_bytes()).0
}

/// Returns the hash of an attribute: of a number, that of its value as a decimal, so that `1` and `1.0` are equal.
fn hash_of_member(member: Member<'_>) -> Eval<u64> {
    match member {
        Member::Text(text) => Ok(KeyHash::of(text.as_bytes()).0),
        Member::Boolean(value) => Ok(KeyHash::of(&[value.into()]).0),
        Member::Number(text) => match number::read_decimal(text) {
            Some(read) => Ok(KeyHash::of(&read.micros.to_le_bytes()).0),
            None => text.parse().map(hash_of_float).map_err(|_| Fault::Error),
        },
        Member::Composite => Err(Fault::Error),
    }
}

impl Choice {
    /// Returns the index of the chosen name: None if the text is absent, or none of the names.
    pub fn index(&self, event: &Event) -> Option<usize> {
        let OneOf { text, names } = &self.0.expression;
        let chosen = text
            .eval(event)
            .and_then(|text| names.iter().position(|name| **name == *text).ok_or(Fault::Error));
        self.0.counted(chosen)
    }
}
