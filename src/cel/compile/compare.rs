//! Comparisons and membership.

use ::cel::common::ast::{Expr, IdedExpr};

use super::super::dynamic::{Attribute, Operand};
use super::super::error::CelError;
use super::super::eval::{Float, Relation, Text, Truth, Whole};
use super::numeric::{self, Pair, scaled};
use super::{Arithmetic, Compiler, Operation, Result, Typed};

/// Returns a comparison of two values; None if they cannot be compared.
pub(super) fn compare(
    relation: Relation,
    left: &Typed,
    right: &Typed,
    offsets: (usize, usize),
) -> Result<Option<Truth>> {
    match (left, right) {
        (Typed::Attribute(left), right) => return Ok(attribute(relation, left, operand(right, offsets.1)?)),
        (left, Typed::Attribute(right)) => {
            return Ok(attribute(relation.mirrored(), right, operand(left, offsets.0)?));
        }
        (Typed::Number(left), Typed::Number(right)) => {
            if let (Some(left), Some(right)) = (left.whole, right.whole) {
                return Ok(Some(Truth::Const(relation.holds(&left, &right))));
            }
            let (left, right) = (left.micros(offsets.0)?, right.micros(offsets.1)?);
            return Ok(Some(Truth::Const(relation.holds(&left, &right))));
        }
        _ => {}
    }
    Ok(match (left, right) {
        (Typed::String(left), Typed::String(right)) => Some(text(relation, left, right)),
        (Typed::Boolean(left), Typed::Boolean(right)) => {
            let expected = match relation {
                Relation::Equal => true,
                Relation::NotEqual => false,
                _ => return Ok(None),
            };
            Some(Truth::Equal(Box::new((left.clone(), right.clone())), expected))
        }
        (Typed::Timestamp(left), Typed::Timestamp(right))
        | (Typed::Duration(left), Typed::Duration(right)) => {
            Some(whole(relation, left.clone(), right.clone()))
        }
        (Typed::Integer(left), right) if !is_whole(right) => {
            numeric::decimal(right, offsets.1)?.map(|right| mixed(relation, left.clone(), right))
        }
        (left, Typed::Integer(right)) if !is_whole(left) => {
            numeric::decimal(left, offsets.0)?.map(|left| mixed(relation.mirrored(), right.clone(), left))
        }
        _ => numeric::pair(left, right, offsets)?.map(|pair| match pair {
            Pair::Integers(left, right) | Pair::Decimals(left, right) => whole(relation, left, right),
            Pair::Floats(left, right) => Truth::FloatCompare(relation, Box::new((left, right))),
        }),
    })
}

/// Returns true of an integer, or a literal that can be one.
fn is_whole(value: &Typed) -> bool {
    match value {
        Typed::Integer(_) => true,
        Typed::Number(number) => number.whole.is_some(),
        _ => false,
    }
}

fn mixed(relation: Relation, integer: Whole, decimal: Whole) -> Truth {
    Truth::MixedCompare(relation, Box::new((integer, decimal)))
}

fn whole(relation: Relation, left: Whole, right: Whole) -> Truth {
    match (left, right) {
        (Whole::Field(field), Whole::Const(constant)) => Truth::FieldCompare(field, relation, constant),
        (Whole::Const(constant), Whole::Field(field)) => {
            Truth::FieldCompare(field, relation.mirrored(), constant)
        }
        sides => Truth::WholeCompare(relation, Box::new(sides)),
    }
}

fn text(relation: Relation, left: &Text, right: &Text) -> Truth {
    let expected = relation == Relation::Equal;
    match (left, right) {
        (Text::Field(field), Text::Const(constant)) | (Text::Const(constant), Text::Field(field))
            if expected || relation == Relation::NotEqual =>
        {
            Truth::FieldIs(*field, constant.clone(), expected)
        }
        _ => Truth::TextCompare(relation, Box::new((left.clone(), right.clone()))),
    }
}

fn attribute(relation: Relation, left: &Attribute, right: Option<Operand>) -> Option<Truth> {
    let right = right.filter(|_| !left.path.is_empty())?;
    Some(Truth::AttributeCompare(relation, Box::new((left.clone(), right))))
}

/// Returns what an attribute can be compared with.
pub(super) fn operand(value: &Typed, offset: usize) -> Result<Option<Operand>> {
    Ok(Some(match value {
        Typed::String(text) => Operand::Text(text.clone()),
        Typed::Boolean(truth) => Operand::Boolean(truth.clone()),
        Typed::Decimal(whole) => Operand::Decimal(whole.clone()),
        Typed::Integer(whole) => Operand::Integer(whole.clone()),
        Typed::Float(float) => Operand::Float(float.clone()),
        Typed::Number(number) => match number.settled(offset)? {
            Typed::Integer(whole) => Operand::Integer(whole),
            _ => Operand::Decimal(Whole::Const(number.micros(offset)?)),
        },
        Typed::Attribute(attribute) if !attribute.path.is_empty() => Operand::Attribute(attribute.clone()),
        Typed::Attribute(_)
        | Typed::Timestamp(_)
        | Typed::Duration(_)
        | Typed::Location(_)
        | Typed::List(_)
        | Typed::Row(_) => return Ok(None),
    }))
}

/// Returns what to write so that two values can be compared or computed with.
pub(super) fn advice(
    operation: Operation,
    left: (&IdedExpr, &Typed),
    right: (&IdedExpr, &Typed),
) -> Option<String> {
    one_way(operation, left, right.1).or_else(|| one_way(operation, right, left.1))
}

/// Returns what to write for a value so that it fits to another.
fn one_way(operation: Operation, (node, value): (&IdedExpr, &Typed), other: &Typed) -> Option<String> {
    use Typed::*;
    let written = described(node);
    let advice = match (value, other) {
        (Boolean(_), Boolean(_)) => "a boolean has no order: write == or !=".to_owned(),
        (Boolean(_), _) => format!("write {written} or !{written} alone"),
        (Location(_), _) => format!("write {written}.lat or {written}.lon"),
        (List(list), _) => format!("write … in lists.{}", list.name()),
        (Row(lookup), _) => match lookup.list.schema().columns.first() {
            Some((column, _)) => format!("name a column: {written}.{column}"),
            None => format!("write … in lists.{}", lookup.list.name()),
        },
        (String(Text::Const(_)), Number(_) | Integer(_) | Decimal(_) | Float(_)) => {
            "write the number without quotes".to_owned()
        }
        (String(_), Number(_) | Integer(_) | Decimal(_)) => format!("write decimal({written})"),
        (String(_) | Decimal(_) | Integer(_), Float(_)) => format!("write double({written})"),
        (String(_) | Attribute(_), Timestamp(_)) => format!("write timestamp({written})"),
        (String(_) | Attribute(_), Duration(_)) => format!("write duration({written})"),
        (Number(_) | Integer(_), Timestamp(_)) if operation.is_ok() => {
            "write an instant such as timestamp('2026-01-02T03:04:05Z')".to_owned()
        }
        (Number(_) | Integer(_), Timestamp(_) | Duration(_))
            if operation.is_ok() || matches!(operation, Err(Arithmetic::Add | Arithmetic::Subtract)) =>
        {
            "write a duration such as duration('5m')".to_owned()
        }
        (Attribute(attribute), _) if attribute.path.is_empty() => format!("name a member: {written}['name']"),
        (Attribute(_), Attribute(_)) => format!("write the type of one, as in decimal({written})"),
        _ => return None,
    };
    Some(advice)
}

/// Returns the text of a simple expression.
fn described(node: &IdedExpr) -> String {
    match &node.expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", described(&select.operand), select.field),
        Expr::Literal(::cel::common::ast::LiteralValue::String(text)) => format!("'{}'", text.inner()),
        Expr::Call(call) if call.func_name == "_[_]" => call
            .args
            .iter()
            .map(described)
            .reduce(|object, index| format!("{object}[{index}]"))
            .unwrap_or_default(),
        _ => "…".to_owned(),
    }
}

impl<'a> Compiler<'a> {
    /// Compiles `value in list`.
    pub(super) fn membership(&mut self, value: &'a IdedExpr, list: &'a IdedExpr) -> Result<Typed> {
        let offset = self.syntax.start(value);
        let Expr::List(items) = &list.expr else {
            let list_typed = match self.expression(list)? {
                Typed::List(list) => return self.in_list(list, value),
                other => other,
            };
            let typed = self.expression(value)?;
            return match (&typed, list_typed) {
                (Typed::String(Text::Const(name)), Typed::Attribute(mut attribute)) => {
                    attribute.path.push(name.clone());
                    Ok(Typed::Boolean(Truth::HasAttribute(attribute)))
                }
                (_, Typed::Attribute(_)) => self.error(value, "the name of an attribute is a text in quotes"),
                (_, other) => self.error(
                    list,
                    format!("expected a list such as ['a', 'b'] or lists.NAME, found {}", other.a_name()),
                ),
            };
        };
        let typed = self.expression(value)?;
        if matches!(typed, Typed::Boolean(_) | Typed::Location(_)) {
            return self.error(value, format!("{} cannot be in a list", typed.a_name()));
        }
        if items.elements.is_empty() {
            return self.error(list, "the list is empty");
        }
        let mut all = Vec::new();
        for item in &items.elements {
            all.push((self.syntax.start(item), self.expression(item)?));
        }
        match member(&typed, offset, &all)? {
            Ok(truth) => Ok(Typed::Boolean(truth)),
            Err(at) => {
                let (offset, item) = &all[at];
                let message = format!("cannot compare {} with {}", typed.name(), item.name());
                let error = CelError::new(*offset, message);
                Err(match advice(Ok(Relation::Equal), (value, &typed), (&items.elements[at], item)) {
                    Some(advice) => error.suggest(advice),
                    None => error,
                })
            }
        }
    }
}

type Items = [(usize, Typed)];

/// Returns every item in the form that `of` gives it, or the index of the first without one.
fn each<T>(
    items: &Items,
    mut of: impl FnMut(usize, &Typed) -> Result<Option<T>>,
) -> Result<std::result::Result<Vec<T>, usize>> {
    let mut all = Vec::new();
    for (at, (offset, item)) in items.iter().enumerate() {
        match of(*offset, item)? {
            Some(item) => all.push(item),
            None => return Ok(Err(at)),
        }
    }
    Ok(Ok(all))
}

/// Returns the test whether a value is one of the items, or the index of an item that the value cannot be compared with.
fn member(value: &Typed, offset: usize, items: &Items) -> Result<std::result::Result<Truth, usize>> {
    let decimals = |value: Whole| {
        let all = each(items, |offset, item| numeric::decimal(item, offset))?;
        Ok(all.map(|all| whole_in(value, all)))
    };
    Ok(match value {
        Typed::String(text) => each(items, |_, item| Ok(item.text()))?.map(|all| text_in(text.clone(), all)),
        Typed::Float(float) => each(items, |_, item| Ok(numeric::float(item)))?
            .map(|all| Truth::FloatIn(Box::new((float.clone(), all)))),
        Typed::Integer(value) if items.iter().all(|(_, item)| is_whole(item)) => {
            let all = each(items, |offset, item| match item {
                Typed::Number(number) => number.settled(offset).map(Some),
                item => Ok(Some(item.clone())),
            })?;
            let wholes = all.map(|all| all.into_iter().filter_map(integer).collect());
            wholes.map(|all| whole_in(value.clone(), all))
        }
        Typed::Integer(value) => decimals(scaled(value.clone()))?,
        Typed::Decimal(value) => decimals(value.clone())?,
        Typed::Number(number) if items.iter().any(|(_, item)| matches!(item, Typed::Float(_))) => {
            return member(&Typed::Float(Float::Const(number.float)), offset, items);
        }
        Typed::Number(number) => match number.settled(offset)? {
            integer @ Typed::Integer(_) if items.iter().all(|(_, item)| is_whole(item)) => {
                return member(&integer, offset, items);
            }
            _ => decimals(Whole::Const(number.micros(offset)?))?,
        },
        Typed::Timestamp(value) => each(items, |_, item| {
            Ok(if let Typed::Timestamp(item) = item { Some(item.clone()) } else { None })
        })?
        .map(|all| whole_in(value.clone(), all)),
        Typed::Duration(value) => each(items, |_, item| {
            Ok(if let Typed::Duration(item) = item { Some(item.clone()) } else { None })
        })?
        .map(|all| whole_in(value.clone(), all)),
        Typed::Attribute(value) if !value.path.is_empty() => {
            let all = each(items, |offset, item| operand(item, offset))?;
            all.map(|all| Truth::AttributeIn(Box::new((value.clone(), all))))
        }
        Typed::Boolean(_) | Typed::Attribute(_) | Typed::Location(_) | Typed::List(_) | Typed::Row(_) => {
            Err(0)
        }
    })
}

fn integer(value: Typed) -> Option<Whole> {
    if let Typed::Integer(whole) = value { Some(whole) } else { None }
}

fn whole_in(value: Whole, items: Vec<Whole>) -> Truth {
    let constant = |item: &Whole| if let Whole::Const(constant) = item { Some(*constant) } else { None };
    match items.iter().map(constant).collect::<Option<Vec<i64>>>() {
        Some(mut constants) => {
            constants.sort_unstable();
            Truth::WholeInConst(Box::new((value, constants.into())))
        }
        None => Truth::WholeIn(Box::new((value, items))),
    }
}

fn text_in(value: Text, items: Vec<Text>) -> Truth {
    let constant = |item: &Text| if let Text::Const(constant) = item { Some(constant.clone()) } else { None };
    match items.iter().map(constant).collect::<Option<Vec<Box<str>>>>() {
        Some(mut constants) => {
            constants.sort_unstable();
            match value {
                Text::Field(field) => Truth::FieldIn(field, constants.into()),
                value => Truth::TextInConst(Box::new((value, constants.into()))),
            }
        }
        None => Truth::TextIn(Box::new((value, items))),
    }
}
