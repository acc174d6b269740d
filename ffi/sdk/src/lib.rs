//! Write exactly-once stateful functions in Rust.
