//! The storage role: keeps the log and the state of a cluster on one node's disk.
//!
//! [`run`] is a node with a thread, a reactor and TCP of its own; [`Role`] is the machine alone, for
//! whoever brings an endpoint and a [`Disk`], or a whole [`Ground`]. What the bytes on disk mean is
//! `halfmoon-log`'s business; this package reads, writes, and talks.

#![forbid(unsafe_code)]

mod config;
mod copy;
mod disk;
mod error;
mod fetch;
mod ground;
mod home;
mod inspect;
mod journal;
mod keeper;
mod lanes;
pub mod limits;
mod metrics;
mod reads;
mod role;
mod run;
mod scrub;
mod spare;
mod state;

pub use config::{Config, Durability, RoleConfig};
pub use disk::{Disk, DiskDone, ReactorDisk};
pub use error::NodeError;
pub use ground::{Ground, Keeper, Kept, Opened, PutReader, Segment, Which};
pub use inspect::{Inspection, StateItem};
pub use metrics::{Metrics, Snapshot};
pub use role::Role;
pub use run::{run, run_with};
pub use scrub::Pace;
pub use state::{Engine, EngineEvent, Page, Pair, Put, Rule};
