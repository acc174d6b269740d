//! The logging protocols: pure async functions over a narrow trait.
//!
//! A session driver holds an [`Attempt`] and drives it through its operations; the attempt asks the
//! world for appends, lookups and puts through [`Ops`], and nothing else. There is no runtime, no
//! clock and no randomness in here.
//!
//! # Invariants
//! Each module names its own: S (steps), I (Init), R and W (the two protocols), B, U (the
//! baselines), T (transactions), F (Finish), O (what is asked of the world). What breaks when one is
//! given up is in [`broken`], and `cargo run -p halfmoon-protocol --features mutants --bin mutants`
//! shows that the tests notice.
//!
//! # What a driver does about a [`Stop`]
//! | stop | root | callee |
//! |---|---|---|
//! | `RunLost` | [`root::start`] again, with the same request | ends silently; its caller's attempt is lost as well |
//! | `Ended` | reply with that | outcome is that |
//! | `Cancelled` | [`Attempt::finish_cancelled`] | the same; the caller's `joined` then stops with it too |
//! | `RootGone`, `SnapshotTooOld` | ask for the tail, apply it, [`root::reload`] | to the root's driver |
//! | `Fault` | park | to the root's driver |
//! | `Refused` | to the function | to the function |
//! | `Ops` | attempt again after backoff | to the root's driver |
//!
//! Whenever the driver of a root waits for its worker or for a callee, it also waits for
//! [`Attempt::watch_init`]: a callee that must log waits for an Init, and nobody else hears that the
//! one which was sent is refused.

#![forbid(unsafe_code)]

#[macro_use]
pub mod broken;

pub mod attempt;
pub mod audit;
mod boki;
pub mod call;
#[cfg(any(test, feature = "mutants"))]
pub mod check;
mod error;
pub mod finish;
mod halfmoon_read;
mod halfmoon_write;
pub mod ids;
mod init;
pub mod intents;
pub mod ops;
mod order;
pub mod payload;
pub mod root;
mod step_log;
mod table;
pub mod transaction;
mod unlogged;

pub use attempt::Attempt;
pub use error::{Done, Fault, Refused, Stop};
pub use ops::{Object, Ops};
pub use table::{Mode, Order, Protocol, TableSpec};

pub use halfmoon_wire::limits::INLINE_MAX_BYTES;

/// Inputs up to this many bytes travel inside Init; longer ones are versions in the store.
pub const INPUT_INLINE_MAX_BYTES: usize = 64 * 1024;
/// Objects that a transaction may read: one condition each.
pub const TXN_READS_MAX: usize = 96;
/// Objects that a transaction may write: one tag each.
pub const TXN_WRITES_MAX: usize = 48;
/// Runs of a transaction's body before it fails with too many conflicts.
pub const TXN_RUNS_MAX: u32 = 16;
