//! The shell around the index: lanes to sequencer and storage, appends and state operations as
//! futures.
//!
//! One [`Driver`] per node owns the endpoint. Its handles are cloned freely on the same thread:
//! [`Log`] appends and reads, [`State`] asks the state store, and [`Executor`] runs the tasks that
//! use them. The owner calls [`Driver::turn`] whenever the network has something or a time is
//! reached, and waits in between:
//!
//! ```text
//! turn:  poll lanes → dial who is missing → read watermark words → apply what is committed
//!        → run tasks → send → flush once
//! ```
//!
//! What an operation does when lanes and nodes come and go is its own business: an append stays
//! under way over any number of sequencers until it is answered, and a write to the state store is
//! repeated until a quorum has it or its deadline passes. *Unknown* is an answer of its own.

#![forbid(unsafe_code)]

mod appends;
mod calls;
mod core;
mod directory;
mod driver;
mod executor;
mod log;
mod staging;
mod state;
mod value;

pub use crate::core::SequencerLane;
pub use directory::{Directory, FixedDirectory, MetaDirectory, Places, look_up};
pub use driver::{Driver, Metrics, Options, Pace, PeerLane};
pub use executor::{Aborted, Elapsed, Executor, JoinHandle, Sleep, TASKS_MAX, TooManyTasks};
pub use halfmoon_index::Limits;
pub use log::{AppendRequest, Appended, Appending, Log, LogError, Record};
pub use state::{State, StateError};
pub use value::{Base, Cell, Lend, Value, ValueIn};
