//! Avro schemas, compiled to types that refer to each other by index, so that a type can contain itself.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

/// The index of a type in a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TypeId(pub usize);

/// A compiled schema.
#[derive(Clone, Debug, PartialEq)]
pub struct AvroSchema {
    pub(super) types: Vec<Type>,
    pub(super) root: TypeId,
}

/// A type: how it is encoded, and which JSON value it becomes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Enum(Vec<Box<str>>),
    Array(TypeId),
    Map(TypeId),
    Union(Vec<TypeId>),
    Record(Vec<Field>),
    /// Days since 1970.
    Date,
    /// The time of a day, as a whole number of units.
    TimeOfDay(Unit),
    /// An instant, or a time without a zone.
    Timestamp {
        unit: Unit,
        is_local: bool,
    },
    /// A decimal number of this many decimal places, in bytes of this number or of their own length.
    Decimal {
        scale: u32,
        size: Option<usize>,
    },
    /// A UUID in 16 bytes.
    Uuid,
    /// Months, days and milliseconds.
    Duration,
}

/// The unit of a time, and its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    /// Returns the number of units in a second, and of their decimal digits.
    pub fn per_second(self) -> (i64, u32) {
        match self {
            Unit::Millis => (1_000, 3),
            Unit::Micros => (1_000_000, 6),
            Unit::Nanos => (1_000_000_000, 9),
        }
    }
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    /// The name.
    pub name: Box<str>,
    pub kind: TypeId,
}

impl AvroSchema {
    /// Compiles a schema. The named types of `references`, which are schemas that come before it, are known in it.
    ///
    /// # Errors
    /// If one of them is no valid schema: the reason.
    pub fn parse(text: &str, references: &[String]) -> Result<AvroSchema, String> {
        let mut compiler = Compiler::default();
        for reference in references {
            compiler.is_reference = true;
            compiler.document(reference).map_err(|error| format!("a referenced schema: {error}"))?;
        }
        compiler.is_reference = false;
        let root = compiler.document(text)?;
        let types = compiler.types.into_iter().collect::<Option<Vec<_>>>();
        Ok(AvroSchema { types: types.expect("every type that was begun was compiled"), root })
    }
}

#[derive(Default)]
struct Compiler {
    /// The types; None while a named type is being compiled.
    types: Vec<Option<Type>>,
    /// The named types, by full name.
    named: HashMap<String, TypeId>,
    /// True in a reference, whose types may have been defined by another one.
    is_reference: bool,
}

impl Compiler {
    fn document(&mut self, text: &str) -> Result<TypeId, String> {
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            // Some tools write the schema of a primitive type without quotes.
            Err(_) if primitive(text.trim()).is_some() => Value::String(text.trim().to_owned()),
            Err(error) => return Err(format!("not JSON: {error}")),
        };
        self.compile(&value, "")
    }

    fn add(&mut self, kind: Type) -> TypeId {
        self.types.push(Some(kind));
        TypeId(self.types.len() - 1)
    }

    /// Compiles a schema in the namespace of what surrounds it.
    fn compile(&mut self, schema: &Value, namespace: &str) -> Result<TypeId, String> {
        match schema {
            Value::String(name) => match primitive(name) {
                Some(kind) => Ok(self.add(kind)),
                None => self.find(name, namespace),
            },
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.compile(branch, namespace));
                let branches = branches.collect::<Result<Vec<_>, _>>()?;
                if branches.is_empty() {
                    return Err("a union has no branches".to_owned());
                }
                Ok(self.add(Type::Union(branches)))
            }
            Value::Object(attributes) => self.compile_object(attributes, namespace),
            other => Err(format!("expected a type, got {other}")),
        }
    }

    fn find(&self, name: &str, namespace: &str) -> Result<TypeId, String> {
        let found = self.named.get(&full_name(name, namespace)).or_else(|| self.named.get(name));
        found.copied().ok_or_else(|| format!("the type {name:?} is not defined before it is used"))
    }

    fn compile_object(&mut self, attributes: &Map<String, Value>, namespace: &str) -> Result<TypeId, String> {
        let kind = attributes.get("type").ok_or("a schema has no `type`")?;
        let Value::String(name) = kind else {
            // A type in a table of its own; attributes beside it mean nothing.
            return self.compile(kind, namespace);
        };
        let part = |key: &str| attributes.get(key).ok_or_else(|| format!("the {name} has no `{key}`"));
        match name.as_str() {
            "array" => {
                let items = self.compile(part("items")?, namespace)?;
                Ok(self.add(Type::Array(items)))
            }
            "map" => {
                let values = self.compile(part("values")?, namespace)?;
                Ok(self.add(Type::Map(values)))
            }
            "record" | "error" | "enum" | "fixed" => self.compile_named(name, attributes, namespace),
            name => match primitive(name) {
                Some(kind) => {
                    let kind = logical(attributes, kind);
                    Ok(self.add(kind))
                }
                None => self.find(name, namespace),
            },
        }
    }

    fn compile_named(
        &mut self,
        kind: &str,
        attributes: &Map<String, Value>,
        namespace: &str,
    ) -> Result<TypeId, String> {
        let text = |key: &str| attributes.get(key).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| format!("the {kind} has no `name`"))?;
        let full_name = full_name(name, text("namespace").unwrap_or(namespace));
        if let Some(id) = self.named.get(&full_name) {
            // Several references may define what all of them use.
            return if self.is_reference { Ok(*id) } else { Err(format!("{full_name} is defined twice")) };
        }
        let id = TypeId(self.types.len());
        self.types.push(None);
        let namespace = full_name.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        self.named.insert(full_name.clone(), id);
        let compiled = match kind {
            "enum" => {
                let symbols = attributes.get("symbols").and_then(Value::as_array);
                let symbols = symbols.ok_or_else(|| format!("the enum {full_name} has no `symbols`"))?;
                let symbols = symbols.iter().map(|symbol| symbol.as_str().map(Box::from)).collect();
                let symbols: Option<Vec<_>> = symbols;
                Type::Enum(
                    symbols.ok_or_else(|| format!("the enum {full_name} has a symbol that is no text"))?,
                )
            }
            "fixed" => {
                let size = attributes.get("size").and_then(Value::as_u64).filter(|size| *size <= 1 << 20);
                let size = size.ok_or_else(|| format!("the fixed {full_name} has no `size` up to 1 MiB"))?;
                logical(attributes, Type::Fixed(size as usize))
            }
            _ => Type::Record(self.fields(attributes, &full_name, &namespace)?),
        };
        self.types[id.0] = Some(compiled);
        Ok(id)
    }

    fn fields(
        &mut self,
        attributes: &Map<String, Value>,
        record: &str,
        namespace: &str,
    ) -> Result<Vec<Field>, String> {
        let fields = attributes.get("fields").and_then(Value::as_array);
        let fields = fields.ok_or_else(|| format!("the record {record} has no `fields`"))?;
        let mut names = BTreeSet::new();
        let mut compiled = Vec::with_capacity(fields.len());
        for field in fields {
            let name = field.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| format!("a field of the record {record} has no `name`"))?;
            if !names.insert(name) {
                return Err(format!("the record {record} has the field {name} twice"));
            }
            let kind = field.get("type").ok_or_else(|| format!("the field {record}.{name} has no `type`"))?;
            // A logical type may stand beside the name of its type, as an attribute of the field: it means nothing there.
            let kind =
                self.compile(kind, namespace).map_err(|error| match error.starts_with("the field ") {
                    true => error,
                    false => format!("the field {record}.{name}: {error}"),
                })?;
            compiled.push(Field { name: name.into(), kind });
        }
        Ok(compiled)
    }
}

/// Returns the full name of a type that is named in a namespace.
fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        name.trim_start_matches('.').to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::Text,
        _ => return None,
    })
}

/// Returns the logical type that the attributes give to a type. As the specification demands, one that is unknown, or
/// does not fit the type, is ignored.
fn logical(attributes: &Map<String, Value>, kind: Type) -> Type {
    let Some(name) = attributes.get("logicalType").and_then(Value::as_str) else { return kind };
    let timestamp = |unit, is_local| Type::Timestamp { unit, is_local };
    match (name, &kind) {
        ("date", Type::Int) => Type::Date,
        ("time-millis", Type::Int) => Type::TimeOfDay(Unit::Millis),
        ("time-micros", Type::Long) => Type::TimeOfDay(Unit::Micros),
        ("timestamp-millis", Type::Long) => timestamp(Unit::Millis, false),
        ("timestamp-micros", Type::Long) => timestamp(Unit::Micros, false),
        ("timestamp-nanos", Type::Long) => timestamp(Unit::Nanos, false),
        ("local-timestamp-millis", Type::Long) => timestamp(Unit::Millis, true),
        ("local-timestamp-micros", Type::Long) => timestamp(Unit::Micros, true),
        ("local-timestamp-nanos", Type::Long) => timestamp(Unit::Nanos, true),
        ("decimal", Type::Bytes | Type::Fixed(_)) => {
            let number = |key: &str, default| attributes.get(key).map_or(default, Value::as_u64);
            let (precision, scale) = (number("precision", None), number("scale", Some(0)));
            let size = if let Type::Fixed(size) = kind { Some(size) } else { None };
            match (precision, scale) {
                (Some(precision), Some(scale)) if scale <= precision && scale <= 1000 => {
                    Type::Decimal { scale: scale as u32, size }
                }
                _ => kind,
            }
        }
        ("uuid", Type::Fixed(16)) => Type::Uuid,
        ("duration", Type::Fixed(12)) => Type::Duration,
        _ => kind,
    }
}
