//! The engine role: log client, workers, gateway.

#![forbid(unsafe_code)]

pub mod binaries;
pub mod command;
pub mod gateway;
pub mod ids;
pub mod manifest;
pub mod metrics;
pub mod names;
pub mod pool;
pub mod registry;
pub mod takeover;
