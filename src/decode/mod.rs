//! Bytes in, events or rejections out.
