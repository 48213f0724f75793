//! The language of Protobuf, as registries store schemas: only what decoding needs is kept. Options, services, extensions
//! and reserved numbers are passed over.

use std::iter::Peekable;
use std::str::CharIndices;

use super::descriptor::{EnumProto, FieldProto, File, MessageProto};

/// The maximum nesting of messages.
const MAX_DEPTH: usize = 64;

/// The number of a group among the types of fields.
const GROUP: u64 = 10;

/// The types of values, with their numbers in descriptors.
const SCALARS: [(&str, u64); 15] = [
    ("double", 1),
    ("float", 2),
    ("int64", 3),
    ("uint64", 4),
    ("int32", 5),
    ("fixed64", 6),
    ("fixed32", 7),
    ("bool", 8),
    ("string", 9),
    ("bytes", 12),
    ("uint32", 13),
    ("sfixed32", 15),
    ("sfixed64", 16),
    ("sint32", 17),
    ("sint64", 18),
];

impl File {
    /// Parses a file.
    ///
    /// # Errors
    /// If it is not valid; the error has the line.
    pub fn of_text(text: &str) -> Result<File, String> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        parser.file().map_err(|what| format!("line {}: {what}", parser.line()))
    }
}

/// A token, and its line.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    kind: TokenKind,
    line: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum TokenKind {
    /// A name, with dots, or a number.
    Word(String),
    /// A text between quotes.
    Text(String),
    Symbol(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = text[at + c.len_utf8()..].chars().next();
        let kind = match c {
            '\n' => {
                line += 1;
                continue;
            }
            c if c.is_whitespace() || c == '\u{feff}' => continue,
            '/' if next == Some('/') => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
                continue;
            }
            '/' if next == Some('*') => {
                let end = text[at + 2..].find("*/").ok_or(format!("line {line}: a comment is not closed"))?;
                let end = at + 2 + end + 2;
                line += text[at..end].matches('\n').count();
                while chars.next_if(|(other, _)| *other < end).is_some() {}
                continue;
            }
            '"' | '\'' => {
                TokenKind::Text(quoted(c, &mut chars).ok_or(format!("line {line}: a text is not closed"))?)
            }
            c if is_in_word(c) => {
                let mut word = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| is_in_word(*c)) {
                    word.push(c);
                }
                TokenKind::Word(word)
            }
            c => TokenKind::Symbol(c),
        };
        tokens.push(Token { kind, line });
    }
    Ok(tokens)
}

fn is_in_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.')
}

/// Returns the text before the closing quote. Escapes stay as they are: no text with one is used.
fn quoted(quote: char, chars: &mut Peekable<CharIndices<'_>>) -> Option<String> {
    let mut text = String::new();
    loop {
        match chars.next()?.1 {
            c if c == quote => return Some(text),
            '\n' => return None,
            '\\' => {
                text.push('\\');
                text.push(chars.next()?.1);
            }
            c => text.push(c),
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.at.saturating_sub(1)).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn next(&mut self) -> Option<TokenKind> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        Some(token.kind.clone())
    }

    /// Takes a symbol if it is the next token.
    fn takes(&mut self, symbol: char) -> bool {
        let is_next = self.tokens.get(self.at).is_some_and(|token| token.kind == TokenKind::Symbol(symbol));
        self.at += usize::from(is_next);
        is_next
    }

    /// Takes a word if it is the next token.
    fn takes_word(&mut self, word: &str) -> bool {
        let next = self.tokens.get(self.at).map(|token| &token.kind);
        let is_next = matches!(next, Some(TokenKind::Word(next)) if next == word);
        self.at += usize::from(is_next);
        is_next
    }

    fn symbol(&mut self, symbol: char) -> Result<(), String> {
        if self.takes(symbol) { Ok(()) } else { Err(format!("expected {symbol:?}")) }
    }

    fn word(&mut self) -> Result<String, String> {
        match self.next() {
            Some(TokenKind::Word(word)) => Ok(word),
            Some(TokenKind::Text(text)) => Err(format!("expected a name, got {text:?}")),
            Some(TokenKind::Symbol(symbol)) => Err(format!("expected a name, got {symbol:?}")),
            None => Err("expected a name, got the end of the file".to_owned()),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let is_negative = self.takes('-');
        let word = self.word()?;
        let parsed = match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
            Some(digits) => i64::from_str_radix(digits, 16),
            None if word.len() > 1 && word.starts_with('0') => i64::from_str_radix(&word, 8),
            None => word.parse(),
        };
        let number = parsed.map_err(|_| format!("expected a number, got {word:?}"))?;
        Ok(if is_negative { -number } else { number })
    }

    /// Passes over tokens to the end of a statement: a semicolon, or a block in braces.
    fn skip_statement(&mut self) -> Result<(), String> {
        let mut depth = 0usize;
        loop {
            match self.next() {
                None => return Err("a statement does not end".to_owned()),
                Some(TokenKind::Symbol('{' | '[')) => depth += 1,
                Some(TokenKind::Symbol(close @ ('}' | ']'))) => {
                    depth = depth.checked_sub(1).ok_or("a bracket is closed that is not open")?;
                    if depth == 0 && close == '}' {
                        self.takes(';');
                        return Ok(());
                    }
                }
                Some(TokenKind::Symbol(';')) if depth == 0 => return Ok(()),
                _ => {}
            }
        }
    }

    fn file(&mut self) -> Result<File, String> {
        let mut file = File::default();
        while self.at < self.tokens.len() {
            if self.takes(';') {
                continue;
            }
            match self.word()?.as_str() {
                "syntax" => {
                    self.symbol('=')?;
                    file.is_proto3 = self.next() == Some(TokenKind::Text("proto3".to_owned()));
                    self.symbol(';')?;
                }
                "package" => {
                    file.package = self.word()?;
                    self.symbol(';')?;
                }
                "message" => file.messages.push(self.message(0)?),
                "enum" => file.enums.push(self.enumeration()?),
                "edition" | "import" | "option" | "service" | "extend" => self.skip_statement()?,
                other => return Err(format!("expected a declaration, got {other:?}")),
            }
        }
        Ok(file)
    }

    fn message(&mut self, depth: usize) -> Result<MessageProto, String> {
        if depth > MAX_DEPTH {
            return Err("messages nest deeper than 64".to_owned());
        }
        let mut message = MessageProto { name: self.word()?, ..MessageProto::default() };
        let mut oneofs = 0;
        self.symbol('{')?;
        while !self.takes('}') {
            if self.takes(';') {
                continue;
            }
            let start = self.at;
            match self.word()?.as_str() {
                "message" => message.nested.push(self.message(depth + 1)?),
                "enum" => message.enums.push(self.enumeration()?),
                "option" | "reserved" | "extensions" | "extend" => self.skip_statement()?,
                "oneof" => {
                    self.word()?;
                    self.symbol('{')?;
                    while !self.takes('}') {
                        if self.takes_word("option") {
                            self.skip_statement()?;
                        } else if !self.takes(';') {
                            let field = self.field(&mut message)?;
                            message.fields.push(FieldProto { oneof: Some(oneofs), ..field });
                        }
                    }
                    oneofs += 1;
                }
                _ => {
                    self.at = start;
                    let field = self.field(&mut message)?;
                    message.fields.push(field);
                }
            }
        }
        Ok(message)
    }

    /// Parses a field of a message, to which it adds the entry of a map.
    fn field(&mut self, message: &mut MessageProto) -> Result<FieldProto, String> {
        let mut field = FieldProto::default();
        let mut kind = self.word()?;
        if ["optional", "required", "repeated"].contains(&kind.as_str()) {
            (field.is_repeated, field.is_optional) = (kind == "repeated", kind == "optional");
            kind = self.word()?;
        }
        let entry = if kind == "map" && self.takes('<') {
            let mut key = FieldProto { name: "key".to_owned(), number: 1, ..FieldProto::default() };
            let mut value = FieldProto { name: "value".to_owned(), number: 2, ..FieldProto::default() };
            set_type(&mut key, self.word()?);
            self.symbol(',')?;
            set_type(&mut value, self.word()?);
            self.symbol('>')?;
            Some(vec![key, value])
        } else {
            set_type(&mut field, kind);
            None
        };
        field.name = self.word()?;
        self.symbol('=')?;
        field.number =
            u32::try_from(self.number()?).map_err(|_| format!("{} has no valid number", field.name))?;
        if let Some(fields) = entry {
            // No message of the file can have such a name.
            let name = format!("{}.entry", field.name);
            field.type_name = format!("{}.{name}", message.name);
            field.is_repeated = true;
            message.nested.push(MessageProto { name, fields, is_map_entry: true, ..MessageProto::default() });
        }
        if field.kind == GROUP || !self.takes(';') {
            self.skip_statement()?;
        }
        Ok(field)
    }

    fn enumeration(&mut self) -> Result<EnumProto, String> {
        let mut read = EnumProto { name: self.word()?, values: Vec::new() };
        self.symbol('{')?;
        while !self.takes('}') {
            if self.takes(';') {
                continue;
            }
            let name = self.word()?;
            if name == "option" || name == "reserved" {
                self.skip_statement()?;
                continue;
            }
            self.symbol('=')?;
            let number = self.number()?;
            let number = i32::try_from(number).map_err(|_| format!("{name} is beyond 32 bits"))?;
            read.values.push((number, name));
            if !self.takes(';') {
                self.skip_statement()?;
            }
        }
        Ok(read)
    }
}

fn set_type(field: &mut FieldProto, name: String) {
    field.kind = match name.as_str() {
        "group" => GROUP,
        name => SCALARS.iter().find(|(scalar, _)| *scalar == name).map_or(0, |(_, number)| *number),
    };
    if field.kind == 0 {
        field.type_name = name;
    }
}
