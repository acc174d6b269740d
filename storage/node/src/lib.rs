//! The storage role: the stream as write-ahead log, and the native state store.

#![forbid(unsafe_code)]

pub mod state;
