//! The engine role: functions run here.
//!
//! ```text
//! HTTP ─▶ gateway threads ─▶ commands ─▶ hot thread: roots ─▶ sessions ⇄ workers (processes)
//!                                          │                     │
//!                                          │                     └─▶ protocols ─▶ log, state store
//!                                          └─ fold of every applied record: registry, intents
//! ```
//! - [`run`] hosts it: reactor, lanes, workers, gateway.
//! - [`registry`] and [`pool`] decide and do no I/O; whose roots are whose is
//!   [`halfmoon_protocol::intents`].
//!
//! # Invariants
//! - One thread, the *hot* one, holds all state; the gateway's threads and the thread that starts
//!   workers reach it by queues, and it never blocks on them.
//! - A worker's bytes are copied before they are parsed or stored; a worker that breaks a rule, a
//!   time limit or its neck costs the attempt that it ran, and nobody else.
//! - A root with an Init is in the safe point that this engine reports until its Finish is applied.

#![forbid(unsafe_code)]

mod asked;
pub mod binaries;
pub mod command;
mod config;
mod describe;
mod fresh;
pub mod gateway;
mod hot;
pub mod ids;
pub mod manifest;
pub mod metrics;
pub mod names;
mod node;
mod nursery;
mod obey;
mod ops;
pub mod pool;
pub mod registry;
mod roots;
mod scratch;
mod session;
mod show;
mod sync;
mod takeovers;
#[cfg(test)]
mod tests;
mod tree;
mod value;
mod workers;

pub use config::Config;
pub use describe::RunToDescribe;
pub use node::{RunError, run};
