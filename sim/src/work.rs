//! What the engines of a run do.

pub(crate) mod functions;
pub(crate) mod log;
mod operations;
mod ops;
mod programs;
