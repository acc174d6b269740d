//! Tests against clusters of real processes.
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests"
)]

mod bad_input;
mod crash;
mod everyday;
mod support;
