//! Reading a record's headers as bytes.
//!
//! Any producer can write a header whose name is not UTF-8, and the accessors of the Rust binding panic on it: one such
//! record would end the process after every start. So this module, the only one with `unsafe`, reads headers from the C
//! library.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// Returns the headers of a record, in order: the name and the value, if there is one.
pub(super) fn headers<'a>(message: &'a BorrowedMessage<'_>) -> Headers<'a> {
    let mut native = ptr::null_mut();
    // SAFETY: the message is alive, and `native` is a place for one pointer.
    let answer = unsafe { rd_kafka_message_headers(message.ptr(), &mut native) };
    let native = if answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { native } else { ptr::null_mut() };
    Headers { native, next: 0, message: PhantomData }
}

/// The iterator that [`headers`] returns.
pub(super) struct Headers<'a> {
    /// Null, or headers that live as long as their message.
    native: *const rd_kafka_headers_t,
    next: usize,
    message: PhantomData<&'a c_void>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.native.is_null() {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers are alive; the places are for one value each. An index beyond the last is an error.
        let answer =
            unsafe { rd_kafka_header_get_all(self.native, self.next, &mut name, &mut value, &mut size) };
        if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        self.next += 1;
        // SAFETY: names end with a zero byte, values have `size` bytes, and both live as long as the message.
        unsafe {
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
            Some((CStr::from_ptr(name).to_bytes(), value))
        }
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
            let headers = Headers { native, next: 0, message: PhantomData };
            let read = headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect();
            rd_kafka_headers_destroy(native);
            read
        };
        assert_eq!(read, wanted.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))));
    }
}
