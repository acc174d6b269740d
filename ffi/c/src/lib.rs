//! The C ABI of the function SDK. `include/halfmoon.h` is made from this package's sources by its
//! test `header`; what a caller must keep is said there, in the preamble.
//!
//! Unsafe code is in `app` and `ctx`, the two files that take pointers. Pointers and lengths are
//! parsed at this border; behind it everything is the Rust SDK. No function unwinds into C: a
//! panic in an `extern "C"` function aborts the process, and the engine attempts again.
#![expect(non_camel_case_types, reason = "names of the C ABI")]
#![expect(clippy::missing_safety_doc, reason = "the header's preamble says it for all functions")]

mod app;
mod ctx;

pub use app::*;
pub use ctx::*;
