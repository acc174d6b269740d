//! The engine role: log client, workers, gateway.

#![forbid(unsafe_code)]

pub mod manifest;
pub mod names;
pub mod pool;
pub mod registry;
pub mod takeover;
