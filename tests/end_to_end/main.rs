//! The whole program over whole inputs, against an oracle that shares nothing with it.

mod common;
mod files;
mod kafka;
mod postgres;
