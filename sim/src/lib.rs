//! The simulated world: a whole cluster from one seed, on simulated network, disks and clocks.
//!
//! The roles are the real ones: they are handed a transport, a disk and the time, and do not know
//! that none of it is real. Nothing here uses a thread or a real clock, so one seed is one run, and
//! a failure is replayed by its seed.
//!
//! - [`net`]: one-sided writes that tear, come late, stop half way, or never.
//! - [`disk`]: what survives a crash, block by block.
//! - [`meta`]: a metadata store that fails, or does not say whether it did.
//! - [`check`]: what must hold, judged at every step.
//! - [`plan`]: what kind of run a seed is.

#![forbid(unsafe_code)]

pub mod check;
pub mod disk;
mod host;
pub mod meta;
pub mod net;
pub mod plan;
pub mod random;
mod report;
mod run;
pub mod shared;
pub mod time;
mod work;
mod world;

pub use report::Report;
pub use run::{run, run_about, run_plan};
pub use shared::now_ns;
pub use world::{Counts, Outcome};
