//! The text of an expression: its bounds, its tree, and the places of the tree's nodes in it.

use ::cel::common::ast::{Expr, IdedExpr, SourceInfo};
use ::cel::parser::{ParseErrors, Parser};

use super::error::CelError;

/// The greatest length of an expression, in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// The greatest depth of brackets.
const MAX_DEPTH: usize = 32;

/// The greatest number of operators that depend on each other, which bounds the depth of the tree. Terms of `&&` and
/// `||`, and items of lists, do not count together.
const MAX_OPERATORS: usize = 96;

/// A parsed expression.
pub(super) struct Syntax<'s> {
    pub root: IdedExpr,
    source: &'s str,
    info: SourceInfo,
}

impl<'s> Syntax<'s> {
    /// Parses an expression.
    pub fn parse(source: &'s str) -> Result<Syntax<'s>, CelError> {
        check_bounds(source)?;
        let (root, info) =
            Parser::new().parse_with_source_info(source).map_err(|errors| of_parser(source, errors))?;
        Ok(Syntax { root, source, info })
    }

    /// Returns the position of a node: of its operator, if it has one, of the name of a field or a function.
    pub fn offset(&self, node: &IdedExpr) -> usize {
        let offset = self.info.offset_for(node.id).map_or(0, |(start, _)| start as usize);
        match &node.expr {
            // Of `has`, the parser gives the parenthesis.
            Expr::Select(select) if select.test => {
                let operand = self.offset(&select.operand);
                let point = self.rest(operand).find('.').unwrap_or(0);
                self.word(operand + point + 1)
            }
            // Of a field it gives the point, of a call the parenthesis.
            Expr::Select(_) => self.word(offset + 1),
            Expr::Call(call) if self.rest(offset).starts_with('(') => {
                let name = self.source.get(..offset).unwrap_or_default().trim_end();
                name.len().saturating_sub(call.func_name.len())
            }
            _ => offset,
        }
    }

    /// Returns the position at which a node begins.
    pub fn start(&self, node: &IdedExpr) -> usize {
        let inner = match &node.expr {
            Expr::Select(select) if !select.test => Some(&*select.operand),
            Expr::Call(call) => call.target.as_deref().or(call.args.first()),
            _ => None,
        };
        let own = self.offset(node);
        inner.map_or(own, |inner| self.start(inner).min(own))
    }

    /// Returns the digits of a literal that is a number, without its sign.
    pub fn digits(&self, node: &IdedExpr) -> &'s str {
        let (start, stop) = self.info.offset_for(node.id).unwrap_or_default();
        self.source.get(start as usize..=stop as usize).unwrap_or_default()
    }

    fn rest(&self, offset: usize) -> &'s str {
        self.source.get(offset..).unwrap_or_default()
    }

    /// Returns the position of the next character that is not white space.
    fn word(&self, offset: usize) -> usize {
        self.source.len() - self.rest(offset).trim_start().len()
    }
}

/// Refuses what is too long or too deep for the parser, whose recursion the stack bounds.
fn check_bounds(source: &str) -> Result<(), CelError> {
    if source.trim().is_empty() {
        return Err(CelError::new(0, "the expression is empty"));
    }
    if source.len() > MAX_BYTES {
        return Err(CelError::new(MAX_BYTES, format!("the expression is longer than {MAX_BYTES} bytes")));
    }
    let bytes = source.as_bytes();
    // The operators of each open bracket's content, and their sum.
    let (mut open, mut operators) = (vec![0usize], 0usize);
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        at += 1;
        match bytes[start] {
            b'\'' | b'"' => at = string_end(bytes, start),
            b'/' if bytes.get(at) == Some(&b'/') => {
                at += bytes[at..].iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len() - at);
            }
            b'(' | b'[' | b'{' => open.push(0),
            b')' | b']' | b'}' if open.len() > 1 => operators -= open.pop().unwrap_or(0),
            b',' => operators -= open.last_mut().map_or(0, std::mem::take),
            first @ (b'&' | b'|') if bytes.get(at) == Some(&first) => {
                at += 1;
                operators -= open.last_mut().map_or(0, std::mem::take);
            }
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' | b'?' => {
                operators += 1;
                *open.last_mut().expect("the outermost content is never closed") += 1;
            }
            _ => {}
        }
        if open.len() > MAX_DEPTH + 1 {
            return Err(CelError::new(start, format!("brackets are nested deeper than {MAX_DEPTH}")));
        }
        if operators > MAX_OPERATORS {
            let message = format!("more than {MAX_OPERATORS} operators follow each other without && or ||");
            return Err(CelError::new(start, message));
        }
    }
    Ok(())
}

/// Returns the position after a string that starts here. Of a raw string this may be within it, or beyond: a bound needs
/// no more.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let quote = bytes[start];
    let raw = start > 0 && bytes[start - 1].eq_ignore_ascii_case(&b'r');
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' && !raw { 2 } else { 1 };
    }
    at + 1
}

/// Returns the first error of the parser in plain words.
fn of_parser(source: &str, errors: ParseErrors) -> CelError {
    // What follows from an error of the syntax has no place.
    let incidental = |message: &str| message.contains("Context") || message.starts_with("Unknown `");
    let Some(first) = errors.errors.into_iter().find(|error| !incidental(&error.msg)) else {
        return CelError::new(0, "not an expression");
    };
    let offset = offset_of(source, first.pos);
    let rest = &source[offset..];
    let message = first.msg.strip_prefix("Syntax error: ").unwrap_or(&first.msg);
    if message.starts_with("token recognition error") {
        return unknown_token(offset, rest);
    }
    if message.contains("has() macro") {
        let error = CelError::new(offset, "has() takes a field or a member of an object");
        return error.suggest("write has(event.amount) or has(event.attributes.channel)");
    }
    if message.starts_with("invalid") && message.ends_with("int literal") {
        return CelError::new(offset, "a whole number has at most 64 bits");
    }
    if message.contains("expecting ')'") || message.starts_with("missing ')'") {
        return CelError::new(offset, format!("missing ')' before {}", token(rest)));
    }
    let unexpected = ["mismatched input", "extraneous input", "no viable alternative", "missing"];
    if unexpected.iter().any(|prefix| message.starts_with(prefix)) {
        return unexpected_token(source, offset);
    }
    CelError::new(offset, message.lines().next().unwrap_or_default())
}

fn unexpected_token(source: &str, offset: usize) -> CelError {
    let rest = &source[offset..];
    let found = token(rest);
    let error = CelError::new(offset, format!("unexpected {found}"));
    let digit = |text: &str| text.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
    match found.to_ascii_lowercase().as_str() {
        "and" => error.suggest("write &&"),
        "or" => error.suggest("write ||"),
        "not" => error.suggest("write !"),
        "','" if source[..offset].ends_with(|c: char| c.is_ascii_digit()) && digit(&rest[1..]) => {
            error.suggest("write a point in a number, as in 2.5")
        }
        _ => error,
    }
}

/// Returns the error of characters that begin no token.
fn unknown_token(offset: usize, rest: &str) -> CelError {
    let quoted = rest.trim_start_matches(['r', 'R', 'b', 'B']);
    let (message, suggestion) = match (quoted.chars().next(), rest.chars().next()) {
        (Some(quote @ ('\'' | '"')), _) => match quoted[1..].contains(quote) {
            true => {
                ("unknown escape in a text", "write \\\\ for a backslash, or r'…' for a regular expression")
            }
            false => ("a text without its closing quote", "end it on the same line"),
        },
        (_, Some('=')) => ("unexpected =", "write == to compare"),
        (_, Some('&')) => ("unexpected &", "write && for and"),
        (_, Some('|')) => ("unexpected |", "write || for or"),
        (_, Some(other)) => return CelError::new(offset, format!("unexpected character {other:?}")),
        (_, None) => return CelError::new(offset, "unexpected end of the expression"),
    };
    CelError::new(offset, message).suggest(suggestion)
}

/// Returns the first word or character of a text, for messages.
fn token(rest: &str) -> String {
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').take(40).collect();
    match rest.chars().next() {
        None => "end of the expression".to_owned(),
        Some(_) if !word.is_empty() => word,
        Some(symbol) => format!("'{symbol}'"),
    }
}

/// Returns the position of a line and a character of it, both from 1.
fn offset_of(source: &str, (line, column): (isize, isize)) -> usize {
    let (line, column) = (usize::try_from(line - 1).unwrap_or(0), usize::try_from(column - 1).unwrap_or(0));
    let mut start = 0;
    for text in source.split_inclusive('\n').take(line) {
        start += text.len();
    }
    let line = &source[start..];
    start + line.char_indices().nth(column).map_or(line.len(), |(at, _)| at)
}
