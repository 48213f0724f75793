//! A fetched record, as the C library holds it.
//!
//! Two things need it instead of the Rust binding's message. Any producer can write a header whose name is not UTF-8, and the
//! binding's accessors panic on it: one such record would end the process after every start. And records that are taken
//! from a queue together have no message of the binding.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::{ptr, slice};

use rdkafka::bindings::{
    rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers, rd_kafka_message_timestamp,
};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::{RDKafkaMessage, RDKafkaRespErr};

/// A record that lives for `'a`.
pub(super) struct Fetched<'a> {
    native: *mut RDKafkaMessage,
    lives: PhantomData<&'a RDKafkaMessage>,
}

impl<'a> From<&'a BorrowedMessage<'_>> for Fetched<'a> {
    fn from(message: &'a BorrowedMessage<'_>) -> Fetched<'a> {
        Fetched { native: message.ptr(), lives: PhantomData }
    }
}

impl<'a> Fetched<'a> {
    /// Wraps a record.
    ///
    /// # Safety
    /// The pointer must be that of a record, not of an error, that is not changed or freed in `'a`.
    pub unsafe fn new(native: *mut RDKafkaMessage) -> Fetched<'a> {
        Fetched { native, lives: PhantomData }
    }

    fn native(&self) -> &'a RDKafkaMessage {
        // SAFETY: both constructors have a record that lives for 'a.
        unsafe { &*self.native }
    }

    /// Returns the offset.
    pub fn offset(&self) -> i64 {
        self.native().offset
    }

    /// Returns the timestamp in milliseconds since 1970; −1 if there is none.
    pub fn timestamp(&self) -> i64 {
        // SAFETY: the record lives, and a null pointer is allowed for the type of the timestamp.
        unsafe { rd_kafka_message_timestamp(self.native, ptr::null_mut()) }
    }

    /// Returns the key, if there is one.
    pub fn key(&self) -> Option<&'a [u8]> {
        let native = self.native();
        bytes(native.key, native.key_len)
    }

    /// Returns the value, if there is one.
    pub fn value(&self) -> Option<&'a [u8]> {
        let native = self.native();
        bytes(native.payload, native.len)
    }

    /// Returns the number of bytes of key and value.
    pub fn size(&self) -> usize {
        let native = self.native();
        native.key_len + native.len
    }

    /// Returns the headers, in order: the name and the value, if there is one.
    pub fn headers(&self) -> Headers<'a> {
        let mut native = ptr::null_mut();
        // SAFETY: the record lives, and `native` is a place for one pointer.
        let answer = unsafe { rd_kafka_message_headers(self.native, &mut native) };
        let native =
            if answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { native } else { ptr::null_mut() };
        Headers { native, next: 0, lives: PhantomData }
    }
}

fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: a key or a value of a record has this length, unless it is null, and lives as long as the record, which is the
    // lifetime that both callers choose.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast::<u8>(), len) })
}

/// The headers of a record, which live as long as it.
pub(super) struct Headers<'a> {
    /// Null if there are none.
    native: *const rd_kafka_headers_t,
    next: usize,
    lives: PhantomData<&'a c_void>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.native.is_null() {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers live; the places are for one value each. An index beyond the last is an error.
        let answer =
            unsafe { rd_kafka_header_get_all(self.native, self.next, &mut name, &mut value, &mut size) };
        if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        self.next += 1;
        // SAFETY: names end with a zero byte, and live as long as the record.
        Some((unsafe { CStr::from_ptr(name) }.to_bytes(), bytes(value, size)))
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::{rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new};

    use super::*;

    #[test]
    fn header_names_that_are_not_utf_8_are_read() {
        let wanted: [(&[u8], Option<&[u8]>); 4] =
            [(b"plain", Some(b"1")), (b"\xff\xfe", Some(b"\x00")), (b"", Some(b"")), (b"none", None)];
        // SAFETY: the headers are made, filled from slices of the stated length, read and destroyed here.
        let read: Vec<(Vec<u8>, Option<Vec<u8>>)> = unsafe {
            let native = rd_kafka_headers_new(4);
            for (name, value) in wanted {
                let (start, size) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
                let (name_size, size) = (name.len() as isize, size as isize);
                rd_kafka_header_add(native, name.as_ptr().cast(), name_size, start.cast(), size);
            }
            let headers = Headers { native, next: 0, lives: PhantomData };
            let read = headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect();
            rd_kafka_headers_destroy(native);
            read
        };
        assert_eq!(read, wanted.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))));
    }
}
