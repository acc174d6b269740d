//! What the engines of a run do.

pub(crate) mod log;
mod operations;
