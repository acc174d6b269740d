//! The `halfmoon` command.
fn main() {}
