//! Tests against clusters of real processes.
#![expect(unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod crash;
mod disk;
mod everyday;
mod failover;
mod full_log;
mod large_values;
mod members;
mod metadata;
mod settings;
mod strangers;
mod support;
mod unruly;
mod verify;
