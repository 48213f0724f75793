//! Files of Protobuf, as descriptors that `protoc` writes or as text, compiled to messages that refer to each other by
//! index.
//!
//! ```text
//!   File … ─▶ all messages and enums, by full name ─▶ types of fields resolved ─▶ MessageSet
//! ```
//!
//! A descriptor is itself a message of Protobuf. Only the parts that decoding needs are read.

use std::collections::HashMap;

use super::well_known::{self, WellKnown};
use crate::decode::binary::Malformed;
use crate::decode::binary::wire::Bytes;

/// The index of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageId(pub usize);

/// Compiled messages.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageSet {
    pub(super) messages: Vec<Message>,
    pub(super) enums: Vec<HashMap<i32, Box<str>>>,
    /// By full name, without a leading dot.
    named: HashMap<String, Named>,
    /// The messages of the last file, and those within them, by index.
    roots: Vec<Nested>,
}

/// A message of a file, and the messages within it.
#[derive(Clone, Debug, PartialEq)]
struct Nested {
    id: MessageId,
    nested: Vec<Nested>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Named {
    Message(MessageId),
    Enum(usize),
}

/// A message: its fields in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message {
    pub name: String,
    pub fields: Vec<Field>,
    /// True for an entry of a map.
    pub is_map_entry: bool,
    pub well_known: Option<WellKnown>,
}

/// A field of a message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub number: u32,
    pub name: Box<str>,
    pub kind: Kind,
    pub is_repeated: bool,
    /// True if an absent value is the zero of its type, and not absent.
    pub is_implicit: bool,
    /// The oneof that the field belongs to.
    pub oneof: Option<u32>,
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Double,
    Float,
    /// Signed, of variable length.
    Int,
    /// Unsigned, of variable length.
    Unsigned,
    /// Signed, in zigzag encoding.
    Zigzag,
    Fixed32,
    Fixed64,
    SignedFixed32,
    SignedFixed64,
    Bool,
    Text,
    Bytes,
    /// By index.
    Enum(usize),
    Message(MessageId),
    /// A group, which is passed over.
    Group,
}

/// A file as it is written.
#[derive(Debug, Default)]
pub(super) struct File {
    pub package: String,
    pub messages: Vec<MessageProto>,
    pub enums: Vec<EnumProto>,
    pub is_proto3: bool,
}

#[derive(Debug, Default)]
pub(super) struct MessageProto {
    pub name: String,
    pub fields: Vec<FieldProto>,
    pub nested: Vec<MessageProto>,
    pub enums: Vec<EnumProto>,
    pub is_map_entry: bool,
}

#[derive(Debug, Default)]
pub(super) struct FieldProto {
    pub name: String,
    pub number: u32,
    pub is_repeated: bool,
    pub kind: u64,
    pub type_name: String,
    pub oneof: Option<u32>,
    pub is_optional: bool,
}

#[derive(Debug, Default)]
pub(super) struct EnumProto {
    pub name: String,
    pub values: Vec<(i32, String)>,
}

/// The value of a field in a descriptor.
enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Part<'_> {
    fn text(&self) -> Result<String, Malformed> {
        match self {
            Part::Bytes(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            Part::Number(_) => Err("a number stands where a text is expected".into()),
        }
    }

    fn bytes(&self) -> Result<&[u8], Malformed> {
        match self {
            Part::Bytes(bytes) => Ok(bytes),
            Part::Number(_) => Err("a number stands where a message is expected".into()),
        }
    }

    fn number(&self) -> Result<u64, Malformed> {
        match self {
            Part::Number(number) => Ok(*number),
            Part::Bytes(_) => Err("bytes stand where a number is expected".into()),
        }
    }
}

/// Reads the fields of a message of a descriptor.
fn parts(
    bytes: &[u8],
    each: &mut dyn FnMut(u32, Part<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut bytes = Bytes::new(bytes);
    while bytes.left() > 0 {
        let (number, wire_type) = super::tag(&mut bytes)?;
        match wire_type {
            0 => each(number, Part::Number(bytes.varint()?))?,
            2 => {
                let length = usize::try_from(bytes.varint()?).map_err(|_| "a length is too large")?;
                each(number, Part::Bytes(bytes.take(length)?))?;
            }
            _ => super::skip(&mut bytes, number, wire_type, 0)?,
        }
    }
    Ok(())
}

impl File {
    fn parse(bytes: &[u8]) -> Result<File, Malformed> {
        let mut file = File::default();
        parts(bytes, &mut |number, part| {
            match number {
                2 => file.package = part.text()?,
                4 => file.messages.push(MessageProto::parse(part.bytes()?, 0)?),
                5 => file.enums.push(EnumProto::parse(part.bytes()?)?),
                12 => file.is_proto3 = part.text()? == "proto3",
                _ => {}
            }
            Ok(())
        })?;
        Ok(file)
    }
}

impl MessageProto {
    fn parse(bytes: &[u8], depth: usize) -> Result<MessageProto, Malformed> {
        if depth > super::MAX_DEPTH {
            return Err("messages nest too deep".into());
        }
        let mut message = MessageProto::default();
        parts(bytes, &mut |number, part| {
            match number {
                1 => message.name = part.text()?,
                2 => message.fields.push(FieldProto::parse(part.bytes()?)?),
                3 => message.nested.push(MessageProto::parse(part.bytes()?, depth + 1)?),
                4 => message.enums.push(EnumProto::parse(part.bytes()?)?),
                7 => parts(part.bytes()?, &mut |number, part| {
                    if number == 7 {
                        message.is_map_entry = part.number()? != 0;
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(message)
    }
}

impl FieldProto {
    fn parse(bytes: &[u8]) -> Result<FieldProto, Malformed> {
        let mut field = FieldProto::default();
        parts(bytes, &mut |number, part| {
            match number {
                1 => field.name = part.text()?,
                3 => {
                    field.number =
                        u32::try_from(part.number()?).map_err(|_| "a field's number is too large")?
                }
                4 => field.is_repeated = part.number()? == 3,
                5 => field.kind = part.number()?,
                6 => field.type_name = part.text()?,
                9 => field.oneof = Some(part.number()? as u32),
                17 => field.is_optional = part.number()? != 0,
                _ => {}
            }
            Ok(())
        })?;
        Ok(field)
    }
}

impl EnumProto {
    fn parse(bytes: &[u8]) -> Result<EnumProto, Malformed> {
        let mut read = EnumProto::default();
        parts(bytes, &mut |number, part| {
            match number {
                1 => read.name = part.text()?,
                2 => {
                    let (mut name, mut value) = (String::new(), 0);
                    parts(part.bytes()?, &mut |number, part| {
                        match number {
                            1 => name = part.text()?,
                            2 => value = part.number()? as i32,
                            _ => {}
                        }
                        Ok(())
                    })?;
                    read.values.push((value, name));
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }
}

/// A field whose type is not resolved yet.
struct Unresolved {
    message: MessageId,
    scope: String,
    fields: Vec<FieldProto>,
    is_proto3: bool,
}

#[derive(Default)]
struct Compiler {
    messages: Vec<Message>,
    enums: Vec<HashMap<i32, Box<str>>>,
    named: HashMap<String, Named>,
    unresolved: Vec<Unresolved>,
}

impl MessageSet {
    /// Compiles the files of a `FileDescriptorSet`, as `protoc --descriptor_set_out --include_imports` writes it.
    ///
    /// # Errors
    /// If it is not one: the reason.
    pub fn parse_set(bytes: &[u8]) -> Result<MessageSet, String> {
        let mut files = Vec::new();
        let read = parts(bytes, &mut |number, part| {
            if number == 1 {
                files.push(File::parse(part.bytes()?)?);
            }
            Ok(())
        });
        read.map_err(|error| error.to_string())?;
        if files.is_empty() {
            return Err("it has no file".to_owned());
        }
        MessageSet::of_files(files)
    }

    /// Compiles files as people write them, each after those that it imports. The last one has the messages of records.
    ///
    /// # Errors
    /// If one of them is not valid, or a type is not defined: the reason.
    pub fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Result<MessageSet, String> {
        MessageSet::of_files(texts.map(File::of_text).collect::<Result<_, _>>()?)
    }

    /// Compiles files. Those that Google and Confluent define may be missing.
    fn of_files(files: Vec<File>) -> Result<MessageSet, String> {
        let mut compiler = Compiler::default();
        let mut roots = Vec::new();
        for file in files {
            roots = compiler.declare_file(file);
        }
        for file in well_known::files() {
            compiler.declare_file(file);
        }
        compiler.resolve()?;
        let Compiler { messages, enums, named, .. } = compiler;
        Ok(MessageSet { messages, enums, named, roots })
    }

    /// Returns the message with a full name.
    ///
    /// # Errors
    /// If there is none; the error names those that there are.
    pub(super) fn message(&self, name: &str) -> Result<MessageId, String> {
        if let Some(Named::Message(id)) = self.named.get(name) {
            return Ok(*id);
        }
        let ours = |name: &&String| !name.starts_with("google.") && !name.starts_with("confluent.");
        let mut known: Vec<_> = self
            .named
            .iter()
            .filter(|(_, named)| matches!(named, Named::Message(id) if !self.messages[id.0].is_map_entry))
            .map(|(name, _)| name)
            .filter(ours)
            .map(String::as_str)
            .collect();
        known.sort_unstable();
        Err(format!("there is no message {name:?}; there are {}", known.join(", ")))
    }

    /// Returns the message of the last file with these indexes: that of the message in the file, that of the message
    /// within it, and so on. Entries of maps do not count.
    pub(super) fn by_indexes(&self, indexes: &[usize]) -> Option<MessageId> {
        let (first, rest) = indexes.split_first()?;
        let message = rest.iter().try_fold(self.roots.get(*first)?, |outer, at| outer.nested.get(*at));
        message.map(|message| message.id)
    }
}

impl Compiler {
    /// Declares the messages and enums of a file. What is declared already stays as it is.
    fn declare_file(&mut self, file: File) -> Vec<Nested> {
        for read in file.enums {
            self.declare_enum(&file.package, read);
        }
        let messages = file.messages.into_iter();
        messages.map(|message| self.declare_message(&file.package, message, file.is_proto3)).collect()
    }

    fn declare_enum(&mut self, scope: &str, read: EnumProto) {
        let name = within(scope, &read.name);
        if self.named.contains_key(&name) {
            return;
        }
        let mut values = HashMap::new();
        for (number, value) in read.values {
            // Of several names of a number, the first is used.
            values.entry(number).or_insert_with(|| value.into_boxed_str());
        }
        self.named.insert(name, Named::Enum(self.enums.len()));
        self.enums.push(values);
    }

    fn declare_message(&mut self, scope: &str, read: MessageProto, is_proto3: bool) -> Nested {
        let name = within(scope, &read.name);
        let (id, is_new) = match self.named.get(&name) {
            Some(Named::Message(id)) => (*id, false),
            _ => (MessageId(self.messages.len()), true),
        };
        if is_new {
            let (is_map_entry, well_known) = (read.is_map_entry, WellKnown::of(&name));
            self.messages.push(Message { name: name.clone(), fields: Vec::new(), is_map_entry, well_known });
            self.named.insert(name.clone(), Named::Message(id));
        }
        for nested in read.enums {
            self.declare_enum(&name, nested);
        }
        let mut nested = Vec::new();
        for message in read.nested {
            let is_map_entry = message.is_map_entry;
            let declared = self.declare_message(&name, message, is_proto3);
            if !is_map_entry {
                nested.push(declared);
            }
        }
        if is_new {
            self.unresolved.push(Unresolved { message: id, scope: name, fields: read.fields, is_proto3 });
        }
        Nested { id, nested }
    }

    /// Resolves the types of all fields.
    fn resolve(&mut self) -> Result<(), String> {
        for Unresolved { message, scope, fields, is_proto3 } in std::mem::take(&mut self.unresolved) {
            let mut resolved = Vec::with_capacity(fields.len());
            for field in fields {
                let kind = self.kind(&scope, &field)?;
                let is_message = matches!(kind, Kind::Message(_) | Kind::Group);
                // An optional field of proto3 is alone in a oneof, which the language does not show.
                let oneof = field.oneof.filter(|_| !field.is_optional);
                resolved.push(Field {
                    number: field.number,
                    name: field.name.into(),
                    kind,
                    is_repeated: field.is_repeated,
                    is_implicit: is_proto3
                        && !is_message
                        && !field.is_repeated
                        && !field.is_optional
                        && oneof.is_none(),
                    oneof,
                });
            }
            resolved.sort_by_key(|field| field.number);
            if let Some(twice) = resolved.windows(2).find(|pair| pair[0].number == pair[1].number) {
                return Err(format!("{scope} has the field number {} twice", twice[0].number));
            }
            self.messages[message.0].fields = resolved;
        }
        Ok(())
    }

    fn kind(&self, scope: &str, field: &FieldProto) -> Result<Kind, String> {
        Ok(match field.kind {
            1 => Kind::Double,
            2 => Kind::Float,
            3 | 5 => Kind::Int,
            4 | 13 => Kind::Unsigned,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::Text,
            10 => Kind::Group,
            12 => Kind::Bytes,
            15 => Kind::SignedFixed32,
            16 => Kind::SignedFixed64,
            17 | 18 => Kind::Zigzag,
            // A descriptor that no compiler has resolved has only the name.
            0 | 11 | 14 => match self.find(scope, &field.type_name) {
                Some(Named::Message(id)) => Kind::Message(id),
                Some(Named::Enum(at)) => Kind::Enum(at),
                None => {
                    return Err(format!(
                        "the type {:?} of the field {scope}.{} is not defined, also in what is imported",
                        field.type_name, field.name
                    ));
                }
            },
            other => return Err(format!("the field {scope}.{} has the unknown type {other}", field.name)),
        })
    }

    /// Finds a name: with a leading dot as it is, else from the innermost scope outwards.
    fn find(&self, scope: &str, name: &str) -> Option<Named> {
        if let Some(name) = name.strip_prefix('.') {
            return self.named.get(name).copied();
        }
        let mut scope = scope;
        loop {
            if let Some(named) = self.named.get(&within(scope, name)) {
                return Some(*named);
            }
            if scope.is_empty() {
                return None;
            }
            scope = scope.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
    }
}

fn within(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}
