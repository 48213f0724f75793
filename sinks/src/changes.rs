//! The outputs that workers send to sinks: rows of tables and messages of topics. They are encoded once, into flat
//! buffers. Sending the outputs of an epoch to the writer's thread therefore needs only a few allocations.

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// The NULL of SQL.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A double.
    Float(f64),
    /// A decimal number in millionths.
    Micros(i128),
    /// A time, in milliseconds since 1970.
    Time(i64),
    /// Text without NUL.
    Text(&'a str),
    /// A JSON text without NUL.
    Json(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// The outputs of one worker for one epoch and one sink.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Rows of tables, in order.
    pub rows: Rows,
    /// Messages of topics, in order.
    pub messages: Messages,
}

impl Changes {
    /// Returns true if there are no rows and no messages.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.messages.is_empty()
    }

    /// Returns the size of all rows and messages, in bytes.
    pub fn bytes(&self) -> usize {
        self.rows.bytes.len() + self.messages.bytes.len()
    }

    /// Returns a copy without the rows and messages for which `row` and `message` return true.
    pub fn without(
        &self,
        mut row: impl FnMut(&Row<'_>) -> bool,
        mut message: impl FnMut(&Message<'_>) -> bool,
    ) -> Changes {
        let mut left = Changes::default();
        for retained in self.rows.iter().filter(|candidate| !row(candidate)) {
            left.rows.bytes.extend_from_slice(retained.bytes);
            RowWriter { rows: &mut left.rows, table: retained.table as u8, deletes: retained.deletes }.end();
        }
        let messages = self.messages.iter().filter(|candidate| !message(candidate));
        for Message { topic, key, value, headers } in messages {
            match value {
                Some(value) => {
                    left.messages.push(topic as u8, key, &headers, |out| out.extend_from_slice(value))
                }
                None => left.messages.push_tombstone(topic as u8, key, &headers),
            }
        }
        left
    }
}

/// Rows in one buffer. A row consists of the index of its table in [`ALL`](crate::tables::ALL) and of its cells
/// in the order of the table's columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    bytes: Vec<u8>,
    rows: Vec<(u8, bool, u32)>,
}

/// One row of [`Rows`].
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The index of the table.
    pub table: usize,
    /// True if the row with this key is deleted; the cells are then only those of the key.
    pub deletes: bool,
    bytes: &'a [u8],
}

/// A writer of the cells of one row. The row is added when [`RowWriter::end`] is called.
#[derive(Debug)]
pub struct RowWriter<'a> {
    rows: &'a mut Rows,
    table: u8,
    deletes: bool,
}

impl Rows {
    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns true if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Begins a row of the table with this index.
    pub fn row(&mut self, table: u8) -> RowWriter<'_> {
        RowWriter { rows: self, table, deletes: false }
    }

    /// Begins the deletion of a row of a keyed table. Its cells are only those of the key.
    pub fn delete(&mut self, table: u8) -> RowWriter<'_> {
        RowWriter { rows: self, table, deletes: true }
    }

    /// Returns the rows in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let mut start = 0;
        self.rows.iter().map(move |&(table, deletes, end)| {
            let bytes = &self.bytes[start..end as usize];
            start = end as usize;
            Row { table: table as usize, deletes, bytes }
        })
    }
}

mod tag {
    pub const NULL: u8 = 0;
    pub const FALSE: u8 = 1;
    pub const TRUE: u8 = 2;
    pub const INT: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const MICROS: u8 = 5;
    pub const TIME: u8 = 6;
    pub const TEXT: u8 = 7;
    pub const JSON: u8 = 8;
    pub const BYTES: u8 = 9;
}

impl RowWriter<'_> {
    /// Appends one cell.
    pub fn cell(&mut self, cell: Cell<'_>) -> &mut Self {
        let out = &mut self.rows.bytes;
        match cell {
            Cell::Null => out.push(tag::NULL),
            Cell::Bool(value) => out.push(if value { tag::TRUE } else { tag::FALSE }),
            Cell::Int(value) => fixed(out, tag::INT, value.to_le_bytes()),
            Cell::Float(value) => fixed(out, tag::FLOAT, value.to_bits().to_le_bytes()),
            Cell::Micros(value) => fixed(out, tag::MICROS, value.to_le_bytes()),
            Cell::Time(value) => fixed(out, tag::TIME, value.to_le_bytes()),
            Cell::Text(value) => sized(out, tag::TEXT, value.as_bytes()),
            Cell::Json(value) => sized(out, tag::JSON, value.as_bytes()),
            Cell::Bytes(value) => sized(out, tag::BYTES, value),
        }
        self
    }

    /// Ends the row.
    pub fn end(&mut self) {
        let end = u32::try_from(self.rows.bytes.len()).expect("an epoch's rows stay below 4 GiB");
        self.rows.rows.push((self.table, self.deletes, end));
    }
}

fn fixed<const N: usize>(out: &mut Vec<u8>, tag: u8, value: [u8; N]) {
    out.push(tag);
    out.extend_from_slice(&value);
}

fn sized(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&u32::try_from(value.len()).expect("a cell stays below 4 GiB").to_le_bytes());
    out.extend_from_slice(value);
}

impl<'a> Row<'a> {
    /// Returns the bytes of the first `n` cells. Equal cells have equal bytes.
    pub fn leading_bytes(&self, n: usize) -> &'a [u8] {
        let mut rest = self.bytes;
        for _ in 0..n {
            if read_cell(&mut rest).is_none() {
                break;
            }
        }
        &self.bytes[..self.bytes.len() - rest.len()]
    }

    /// Returns the cells in the order of the table's columns.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || read_cell(&mut rest))
    }
}

/// Reads the next cell; returns `None` at the end of the row.
fn read_cell<'a>(rest: &mut &'a [u8]) -> Option<Cell<'a>> {
    let (&tag, tail) = rest.split_first()?;
    *rest = tail;
    Some(match tag {
        tag::NULL => Cell::Null,
        tag::FALSE => Cell::Bool(false),
        tag::TRUE => Cell::Bool(true),
        tag::INT => Cell::Int(i64::from_le_bytes(take(rest))),
        tag::FLOAT => Cell::Float(f64::from_bits(u64::from_le_bytes(take(rest)))),
        tag::MICROS => Cell::Micros(i128::from_le_bytes(take(rest))),
        tag::TIME => Cell::Time(i64::from_le_bytes(take(rest))),
        tag::TEXT => Cell::Text(text(take_sized(rest))),
        tag::JSON => Cell::Json(text(take_sized(rest))),
        tag::BYTES => Cell::Bytes(take_sized(rest)),
        other => unreachable!("unknown cell tag {other}"),
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (value, tail) = rest.split_first_chunk::<N>().expect("RowWriter writes complete cells");
    *rest = tail;
    *value
}

fn take_sized<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let len = u32::from_le_bytes(take(rest)) as usize;
    let (value, tail) = rest.split_at(len);
    *rest = tail;
    value
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("RowWriter copies it from a str")
}

/// Messages in one buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Messages {
    bytes: Vec<u8>,
    headers: Vec<(u32, u32)>,
    messages: Vec<Encoded>,
}

#[derive(Clone, Debug, PartialEq)]
struct Encoded {
    topic: u8,
    key: Option<u32>,
    value: Option<u32>,
    headers: u32,
}

/// A header of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header<'a> {
    /// The header's name.
    pub name: &'a str,
    /// Its value.
    pub value: &'a [u8],
}

/// One message of [`Messages`].
#[derive(Clone, Debug, PartialEq)]
pub struct Message<'a> {
    /// The index of the topic in the sink's list of topics.
    pub topic: usize,
    /// The key, which also determines the partition.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers, in order.
    pub headers: Vec<Header<'a>>,
}

impl Messages {
    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns true if there are no messages.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Appends a message. `write` appends its value to the buffer that it receives.
    pub fn push(
        &mut self,
        topic: u8,
        key: Option<&[u8]>,
        headers: &[Header<'_>],
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let key = key.map(|key| self.put(key));
        for header in headers {
            let name = self.put(header.name.as_bytes());
            let value = self.put(header.value);
            self.headers.push((name, value));
        }
        write(&mut self.bytes);
        let value = Some(self.end());
        self.messages.push(Encoded { topic, key, value, headers: headers.len() as u32 });
    }

    /// Appends a tombstone: a message without a value.
    pub fn push_tombstone(&mut self, topic: u8, key: Option<&[u8]>, headers: &[Header<'_>]) {
        self.push(topic, key, headers, |_| {});
        self.messages.last_mut().expect("just pushed").value = None;
    }

    /// Returns the messages in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        let mut at = 0usize;
        let mut header = 0usize;
        self.messages.iter().map(move |message| {
            let mut upto = |end: u32| {
                let bytes = &self.bytes[at..end as usize];
                at = end as usize;
                bytes
            };
            let key = message.key.map(&mut upto);
            let headers = self.headers[header..header + message.headers as usize]
                .iter()
                .map(|&(name, value)| Header { name: text(upto(name)), value: upto(value) })
                .collect();
            header += message.headers as usize;
            let value = message.value.map(&mut upto);
            Message { topic: message.topic as usize, key, value, headers }
        })
    }

    fn put(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.extend_from_slice(bytes);
        self.end()
    }

    fn end(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("an epoch's messages stay below 4 GiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_written() {
        let cells = [
            Cell::Null,
            Cell::Bool(true),
            Cell::Bool(false),
            Cell::Int(-7),
            Cell::Float(0.5),
            Cell::Micros(i128::MIN),
            Cell::Time(1),
            Cell::Text("é"),
            Cell::Json("{}"),
            Cell::Bytes(&[0, 1]),
        ];
        let mut rows = Rows::default();
        for table in [3, 1] {
            let mut row = rows.row(table);
            for cell in cells {
                row.cell(cell);
            }
            row.end();
        }
        let back: Vec<_> = rows.iter().map(|row| (row.table, row.cells().collect::<Vec<_>>())).collect();
        assert_eq!(back, vec![(3, cells.to_vec()), (1, cells.to_vec())]);
    }

    #[test]
    fn removing_changes_leaves_the_others_unchanged() {
        let mut changes = Changes::default();
        for id in 0..3 {
            changes.rows.row(1).cell(Cell::Int(id)).cell(Cell::Text("é")).end();
            changes.rows.delete(2).cell(Cell::Int(id)).end();
            changes
                .messages
                .push(0, Some(&[id as u8]), &[Header { name: "n", value: b"v" }], |out| out.push(9));
            changes.messages.push_tombstone(1, None, &[]);
        }
        assert_eq!(changes.without(|_| false, |_| false), changes);
        let left = changes.without(
            |row| row.table == 1 && row.cells().next() == Some(Cell::Int(1)),
            |message| message.topic == 1,
        );
        assert_eq!((left.rows.len(), left.messages.len()), (5, 3));
        assert!(left.messages.iter().eq(changes.messages.iter().filter(|message| message.topic == 0)));
        let tables: Vec<_> = left.rows.iter().map(|row| (row.table, row.deletes)).collect();
        assert_eq!(tables, [(1, false), (2, true), (2, true), (1, false), (2, true)]);
    }

    #[test]
    fn messages_are_read_as_written() {
        let mut messages = Messages::default();
        let header = Header { name: "reason", value: b"late" };
        messages.push(2, Some(b"k"), &[header], |out| out.extend_from_slice(b"value"));
        messages.push(0, None, &[], |out| out.extend_from_slice(b""));
        messages.push_tombstone(1, Some(b""), &[header, header]);
        let back: Vec<_> = messages.iter().collect();
        assert_eq!(
            back[0],
            Message { topic: 2, key: Some(b"k"), value: Some(b"value"), headers: vec![header] }
        );
        assert_eq!(back[1], Message { topic: 0, key: None, value: Some(b""), headers: vec![] });
        assert_eq!(back[2], Message { topic: 1, key: Some(b""), value: None, headers: vec![header; 2] });
    }
}
