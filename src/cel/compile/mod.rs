//! From the tree of an expression to typed expressions.
//!
//! ```text
//!   tree ─ names, literals ─▶ Typed ─ operators, functions: types must fit ─▶ Typed ─▶ Truth, Whole, Float, Text
//! ```
//!
//! A literal number has no type of its own: next to a decimal it is read from its digits as a decimal, next to a
//! floating-point number as one.

mod compare;
mod functions;
mod lists;
mod numeric;

use std::sync::Arc;

use ::cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};

use self::numeric::Number;
use super::alert::MEMBERS;
use super::dynamic::Attribute;
use super::error::{CelError, names};
use super::eval::{Float, Relation, Text, Truth, Whole};
use super::lists::Lookup;
use super::syntax::Syntax;
use super::{Scope, Subject};
use crate::fields::{FieldId, FieldType};
use crate::lists::List;

type Result<T> = std::result::Result<T, CelError>;

/// The greatest number of nodes that are compiled, those of unrolled macros included.
const MAX_NODES: usize = 20_000;

/// An expression and its type.
#[derive(Clone, Debug)]
pub(super) enum Typed {
    Boolean(Truth),
    Integer(Whole),
    Decimal(Whole),
    Float(Float),
    String(Text),
    Timestamp(Whole),
    Duration(Whole),
    /// A constant number, which takes the type of what it meets.
    Number(Number),
    /// A member of an object; the object itself if the path is empty.
    Attribute(Attribute),
    Location(FieldId),
    List(Arc<List>),
    /// An entry of a list.
    Row(Lookup),
}

impl Typed {
    /// Returns the name of the type.
    pub fn name(&self) -> &'static str {
        match self {
            Typed::Boolean(_) => "boolean",
            Typed::Integer(_) => "integer",
            Typed::Decimal(_) => "decimal",
            Typed::Float(_) => "float",
            Typed::String(_) => "string",
            Typed::Timestamp(_) => "timestamp",
            Typed::Duration(_) => "duration",
            Typed::Number(_) => "number",
            Typed::Attribute(attribute) if attribute.path.is_empty() => "object",
            Typed::Attribute(_) => "attribute",
            Typed::Location(_) => "location",
            Typed::List(_) => "list",
            Typed::Row(_) => "row",
        }
    }

    /// Returns the name of the type with its article.
    pub fn a_name(&self) -> String {
        let name = self.name();
        format!("{} {name}", if name.starts_with(['a', 'i', 'o']) { "an" } else { "a" })
    }

    /// Returns the value as text, if it can be text.
    fn text(&self) -> Option<Text> {
        match self {
            Typed::String(text) => Some(text.clone()),
            Typed::Attribute(attribute) if !attribute.path.is_empty() => {
                Some(Text::Attribute(attribute.clone()))
            }
            _ => None,
        }
    }

    /// Returns the value as a condition, if it can be one.
    fn truth(&self) -> Option<Truth> {
        match self {
            Typed::Boolean(truth) => Some(truth.clone()),
            Typed::Attribute(attribute) if !attribute.path.is_empty() => {
                Some(Truth::Attribute(attribute.clone()))
            }
            _ => None,
        }
    }
}

/// An operation on two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

type Operation = std::result::Result<Relation, Arithmetic>;

/// Returns the comparison or operation of an operator, and the words for it.
fn binary(function: &str) -> Option<(Operation, &'static str, &'static str)> {
    Some(match function {
        operators::EQUALS => (Ok(Relation::Equal), "compare", "with"),
        operators::NOT_EQUALS => (Ok(Relation::NotEqual), "compare", "with"),
        operators::LESS => (Ok(Relation::Less), "compare", "with"),
        operators::LESS_EQUALS => (Ok(Relation::LessEqual), "compare", "with"),
        operators::GREATER => (Ok(Relation::Greater), "compare", "with"),
        operators::GREATER_EQUALS => (Ok(Relation::GreaterEqual), "compare", "with"),
        operators::ADD => (Err(Arithmetic::Add), "add", "and"),
        operators::SUBSTRACT => (Err(Arithmetic::Subtract), "subtract", "and"),
        operators::MULTIPLY => (Err(Arithmetic::Multiply), "multiply", "and"),
        operators::DIVIDE => (Err(Arithmetic::Divide), "divide", "by"),
        operators::MODULO => (Err(Arithmetic::Remainder), "take the remainder of", "by"),
        _ => return None,
    })
}

/// The compiler of one expression.
pub(super) struct Compiler<'a> {
    scope: &'a Scope<'a>,
    syntax: &'a Syntax<'a>,
    /// The variables of enclosing macros, with their values.
    variables: Vec<(&'a str, &'a IdedExpr)>,
    nodes: usize,
}

impl<'a> Compiler<'a> {
    pub fn new(scope: &'a Scope<'a>, syntax: &'a Syntax<'a>) -> Compiler<'a> {
        Compiler { scope, syntax, variables: Vec::new(), nodes: 0 }
    }

    /// Compiles the whole expression.
    pub fn root(&mut self) -> Result<Typed> {
        self.expression(&self.syntax.root)
    }

    /// Returns the word for what the subject of the expression has.
    fn member(&self) -> &'static str {
        match self.scope.subject {
            Subject::Event => "field",
            Subject::Alert => "member",
        }
    }

    /// Returns an example of a value of the subject.
    fn example(&self) -> &'static str {
        match self.scope.subject {
            Subject::Event => "event.amount",
            Subject::Alert => "alert.details.count",
        }
    }

    fn error<T>(&self, node: &IdedExpr, message: impl Into<String>) -> Result<T> {
        Err(CelError::new(self.syntax.offset(node), message))
    }

    fn expression(&mut self, node: &'a IdedExpr) -> Result<Typed> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self
                .error(node, format!("the expression has more than {MAX_NODES} parts, macros unrolled"));
        }
        match &node.expr {
            Expr::Literal(literal) => self.literal(node, literal),
            Expr::Ident(name) => self.name(node, name),
            Expr::Select(select) => self.select(node, select),
            Expr::Call(call) => self.call(node, call),
            Expr::Comprehension(comprehension) => self.comprehension(node, comprehension),
            Expr::List(_) => self.error(node, "a list can stand only after in, or before exists and all"),
            Expr::Map(_) | Expr::Struct(_) => self.error(node, "maps and messages are not supported"),
            Expr::Unspecified => self.error(node, "not an expression"),
        }
    }

    fn literal(&self, node: &IdedExpr, literal: &LiteralValue) -> Result<Typed> {
        Ok(match literal {
            LiteralValue::Boolean(value) => Typed::Boolean(Truth::Const(*value.inner())),
            LiteralValue::Int(value) => Typed::Number(Number::of_whole(*value.inner())),
            LiteralValue::Double(value) => {
                let digits = self.syntax.digits(node);
                Typed::Number(Number::of_digits(digits, *value.inner()))
            }
            LiteralValue::String(value) => Typed::String(Text::Const(value.inner().into())),
            LiteralValue::UInt(value) => {
                let error = CelError::new(self.syntax.offset(node), "unsigned numbers are not supported");
                return Err(error.suggest(format!("write {}", value.inner())));
            }
            LiteralValue::Bytes(_) => return self.error(node, "bytes are not supported"),
            LiteralValue::Null => {
                let error =
                    CelError::new(self.syntax.offset(node), "a field is never null, but may be absent");
                let example = self.example();
                return Err(error.suggest(format!("write has({example}) or !has({example})")));
            }
        })
    }

    fn name(&mut self, node: &'a IdedExpr, name: &str) -> Result<Typed> {
        if let Some(at) = self.variables.iter().rposition(|(variable, _)| *variable == name) {
            // The value of a variable is not in the scope of the variable.
            let inner = self.variables.split_off(at);
            let typed = self.expression(inner[0].1);
            self.variables.extend(inner);
            return typed;
        }
        match name {
            "key" if self.scope.has_key => Ok(Typed::String(Text::Key)),
            "key" if self.scope.subject == Subject::Event => self
                .error(node, "key is the event's own key, and this rule groups by another; name its field"),
            _ if name == self.scope.name() => {
                let (what, example) = (self.member(), self.example());
                self.error(node, format!("{name} is not a value; name a {what}, such as {example}"))
            }
            "lists" => self.error(node, "lists is not a value; name a list, such as lists.blocked"),
            _ => {
                let error = CelError::new(self.syntax.offset(node), format!("unknown name {name}"));
                let subject = self.scope.name();
                Err(match self.scope.field(name) {
                    Some(_) => error.suggest(format!("write {subject}.{name}")),
                    None if self.scope.subject == Subject::Alert => error.suggest("did you mean alert?"),
                    None => error.suggest(names(name, "names", ["event", "key"].into_iter())),
                })
            }
        }
    }

    fn select(&mut self, node: &'a IdedExpr, select: &'a SelectExpr) -> Result<Typed> {
        if let Expr::Ident(root) = &select.operand.expr
            && !self.variables.iter().any(|(variable, _)| variable == root)
        {
            match root.as_str() {
                _ if root == self.scope.name() => return self.field(node, select),
                "lists" => return self.list(node, select),
                _ => {}
            }
        }
        match self.expression(&select.operand)? {
            Typed::Attribute(mut attribute) => {
                attribute.path.push(select.field.as_str().into());
                Ok(match select.test {
                    true => Typed::Boolean(Truth::HasAttribute(attribute)),
                    false => Typed::Attribute(attribute),
                })
            }
            Typed::Row(lookup) => self.column(node, lookup, select),
            Typed::Location(field) if !select.test => match select.field.as_str() {
                "lat" => Ok(Typed::Float(Float::Latitude(field))),
                "lon" => Ok(Typed::Float(Float::Longitude(field))),
                _ => self.error(node, format!("a location has no {}; it has lat and lon", select.field)),
            },
            other => self.error(node, format!("{} has no member {}", other.a_name(), select.field)),
        }
    }

    fn field(&self, node: &IdedExpr, select: &SelectExpr) -> Result<Typed> {
        let name = select.field.as_str();
        let Some((id, kind)) = self.scope.field(name) else {
            let at = self.syntax.offset(node);
            return Err(match self.scope.subject {
                Subject::Event => {
                    let fields = self.scope.layout.fields().map(|(name, _)| name);
                    CelError::new(at, format!("unknown field {name}")).suggest(names(name, "fields", fields))
                }
                Subject::Alert => CelError::new(at, format!("unknown member {name} of an alert"))
                    .suggest(names(name, "members", MEMBERS.into_iter())),
            });
        };
        if select.test {
            return Ok(Typed::Boolean(Truth::Has(id)));
        }
        Ok(match kind {
            FieldType::String => Typed::String(Text::Field(id)),
            FieldType::Decimal => Typed::Decimal(Whole::Field(id)),
            FieldType::Integer => Typed::Integer(Whole::Field(id)),
            FieldType::Float => Typed::Float(Float::Field(id)),
            FieldType::Boolean => Typed::Boolean(Truth::Field(id)),
            FieldType::Timestamp => Typed::Timestamp(Whole::Field(id)),
            FieldType::Location => Typed::Location(id),
            FieldType::Object => Typed::Attribute(Attribute { field: id, path: Vec::new() }),
        })
    }

    fn call(&mut self, node: &'a IdedExpr, call: &'a CallExpr) -> Result<Typed> {
        if let Some((operation, verb, with)) = binary(&call.func_name)
            && let [left_node, right_node] = &*call.args
        {
            let (left, right) = (self.expression(left_node)?, self.expression(right_node)?);
            let at = self.syntax.offset(node);
            let (left_at, right_at) = (self.syntax.start(left_node), self.syntax.start(right_node));
            let typed = match operation {
                Ok(relation) => {
                    compare::compare(relation, &left, &right, (left_at, right_at))?.map(Typed::Boolean)
                }
                Err(operation) => numeric::arithmetic(operation, (&left, &right), (at, left_at, right_at))?,
            };
            return typed.ok_or_else(|| {
                let message = format!("cannot {verb} {} {with} {}", left.name(), right.name());
                let error = CelError::new(at, message);
                match compare::advice(operation, (left_node, &left), (right_node, &right)) {
                    Some(advice) => error.suggest(advice),
                    None => error,
                }
            });
        }
        match (call.func_name.as_str(), &*call.args) {
            (operators::LOGICAL_AND, [_, _]) => Ok(Typed::Boolean(Truth::And(self.terms(node)?.into()))),
            (operators::LOGICAL_OR, [_, _]) => Ok(Typed::Boolean(Truth::Or(self.terms(node)?.into()))),
            (operators::LOGICAL_NOT, [inner]) => {
                Ok(Typed::Boolean(Truth::Not(Box::new(self.condition(inner)?))))
            }
            (operators::NEGATE, [inner]) => self.negated(node, inner),
            (operators::CONDITIONAL, [condition, yes, no]) => self.conditional(node, condition, yes, no),
            (operators::IN, [value, list]) => self.membership(value, list),
            (operators::INDEX, [object, index]) => self.index(node, object, index),
            _ => self.function(node, call),
        }
    }

    /// Compiles an expression that must be true or false.
    fn condition(&mut self, node: &'a IdedExpr) -> Result<Truth> {
        let typed = self.expression(node)?;
        typed.truth().ok_or_else(|| {
            let at = self.syntax.start(node);
            let error = CelError::new(at, format!("expected a condition, found {}", typed.a_name()));
            match &node.expr {
                Expr::Select(select) => {
                    error.suggest(format!("compare it, or write has({}.{})", self.scope.name(), select.field))
                }
                _ => error,
            }
        })
    }

    /// Returns the terms of a chain of the operator of this node, which the parser balances.
    fn terms(&mut self, node: &'a IdedExpr) -> Result<Vec<Truth>> {
        let Expr::Call(chain) = &node.expr else { return Ok(vec![self.condition(node)?]) };
        let mut terms = Vec::new();
        for side in &chain.args {
            match &side.expr {
                Expr::Call(inner) if inner.func_name == chain.func_name => terms.extend(self.terms(side)?),
                _ => terms.push(self.condition(side)?),
            }
        }
        Ok(terms)
    }

    fn negated(&mut self, node: &IdedExpr, inner: &'a IdedExpr) -> Result<Typed> {
        let negate = |whole: Whole| Whole::Negate(Box::new(whole));
        let typed = self.expression(inner)?;
        Ok(match typed {
            Typed::Number(number) => Typed::Number(number.negated(self.syntax.offset(node))?),
            Typed::Integer(whole) => Typed::Integer(negate(whole)),
            Typed::Duration(whole) => Typed::Duration(negate(whole)),
            Typed::Float(float) => Typed::Float(Float::Negate(Box::new(float))),
            other => match numeric::decimal(&other, self.syntax.start(inner))? {
                Some(whole) => Typed::Decimal(negate(whole)),
                None => return self.error(node, format!("cannot negate {}", other.a_name())),
            },
        })
    }

    fn conditional(
        &mut self,
        node: &'a IdedExpr,
        condition: &'a IdedExpr,
        yes: &'a IdedExpr,
        no: &'a IdedExpr,
    ) -> Result<Typed> {
        let condition = self.condition(condition)?;
        let offsets = (self.syntax.start(yes), self.syntax.start(no));
        let (mut yes, mut no) = (self.expression(yes)?, self.expression(no)?);
        if let (Typed::Number(left), Typed::Number(right)) = (&yes, &no) {
            let whole = left.whole.is_some() && right.whole.is_some();
            let settle = |number: &Number, at| match whole {
                true => number.settled(at),
                false => Ok(Typed::Decimal(Whole::Const(number.micros(at)?))),
            };
            (yes, no) = (settle(left, offsets.0)?, settle(right, offsets.1)?);
        }
        let whole = |yes, no| Whole::If(Box::new((condition.clone(), yes, no)));
        if let (Some(yes), Some(no)) = (yes.truth(), no.truth()) {
            return Ok(Typed::Boolean(Truth::If(Box::new((condition, yes, no)))));
        }
        if let (Some(yes), Some(no)) = (yes.text(), no.text()) {
            return Ok(Typed::String(Text::If(Box::new((condition, yes, no)))));
        }
        match (&yes, &no) {
            (Typed::Timestamp(yes), Typed::Timestamp(no)) => {
                return Ok(Typed::Timestamp(whole(yes.clone(), no.clone())));
            }
            (Typed::Duration(yes), Typed::Duration(no)) => {
                return Ok(Typed::Duration(whole(yes.clone(), no.clone())));
            }
            _ => {}
        }
        match numeric::pair(&yes, &no, offsets)? {
            Some(numeric::Pair::Integers(yes, no)) => Ok(Typed::Integer(whole(yes, no))),
            Some(numeric::Pair::Decimals(yes, no)) => Ok(Typed::Decimal(whole(yes, no))),
            Some(numeric::Pair::Floats(yes, no)) => {
                Ok(Typed::Float(Float::If(Box::new((condition, yes, no)))))
            }
            None => {
                let message =
                    format!("the two results are of different types: {} and {}", yes.name(), no.name());
                self.error(node, message)
            }
        }
    }

    fn index(&mut self, node: &'a IdedExpr, object: &'a IdedExpr, index: &'a IdedExpr) -> Result<Typed> {
        match self.expression(object)? {
            Typed::Attribute(mut attribute) => match self.expression(index)? {
                Typed::String(Text::Const(name)) => {
                    attribute.path.push(name);
                    Ok(Typed::Attribute(attribute))
                }
                _ => self.error(index, "the name of an attribute is a text in quotes"),
            },
            Typed::List(list) => self.row(list, index),
            other => self.error(node, format!("{} has no members", other.a_name())),
        }
    }

    /// Compiles `[…].exists(x, …)` and `[…].all(x, …)`, which are a chain of `||` or `&&`.
    fn comprehension(&mut self, node: &'a IdedExpr, macro_: &'a ComprehensionExpr) -> Result<Typed> {
        let step = match &macro_.loop_step.expr {
            Expr::Call(step) => step,
            _ => return self.error(node, "of the macros, has, exists and all are supported"),
        };
        let any = match (step.func_name.as_str(), &macro_.accu_init.expr) {
            (operators::LOGICAL_OR, Expr::Literal(LiteralValue::Boolean(_))) => true,
            (operators::LOGICAL_AND, Expr::Literal(LiteralValue::Boolean(_))) => false,
            _ => return self.error(node, "of the macros, has, exists and all are supported"),
        };
        let (Expr::List(list), [_, condition]) = (&macro_.iter_range.expr, &*step.args) else {
            return self.error(node, "exists and all need a list before them, such as ['a', 'b']");
        };
        let (mut items, mut terms) = (Vec::new(), Vec::new());
        for element in &list.elements {
            let typed = self.expression(element)?;
            items.extend(
                compare::operand(&typed, self.syntax.start(element))?.filter(|item| !item.is_const()),
            );
            self.variables.push((&macro_.iter_var, element));
            let term = self.condition(condition);
            self.variables.pop();
            terms.push(term?);
        }
        let chain = if any { Truth::Or(terms.into()) } else { Truth::And(terms.into()) };
        Ok(Typed::Boolean(if items.is_empty() { chain } else { Truth::Given(Box::new((items, chain))) }))
    }
}
