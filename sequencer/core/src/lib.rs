//! The ordering core: records in, one contiguous stream out. Pure: no I/O, no clock.
//!
//! - [`order`]: judges appends and gives them their place.
//! - [`window`]: the recent stream, from which every follower is served.
//! - [`leases`]: which engines live, who inherits from a dead one, and the safe point.
//! - [`learner`]: a log taken in record by record, by a standby or by a recovery.
//! - [`recovery`]: the start of an epoch: whose log is *the* log, and the tables it implies.
//! - [`commit`]: what a quorum of storage nodes holds.
//! - [`audit`]: what an ordered log must be, for those who check one.
//! - [`tails`]: questions for the tail, answered only once the epoch is known to hold.
//!
//! Invariants, each with the tests that fail without it:
//!
//! - **One order.** Positions are dense; what is in the stream is never taken back in its epoch.
//! - **At most once.** An id of an engine's incarnation that is in the log is not ordered again, and
//!   an id that was refused is not taken for one that is.
//! - **Tables follow from the log.** A machine rebuilt from its own stream judges as it did before.

#![forbid(unsafe_code)]

pub mod audit;
pub mod commit;
pub mod learner;
pub mod leases;
pub mod order;
pub mod recovery;
mod sent;
mod tags;
pub mod tails;
pub mod window;

pub use audit::{LogAudit, LogCounts, LogFlaw};
pub use commit::Commit;
pub use learner::{LearnError, Learner};
pub use leases::{Leases, UnknownEngine};
pub use order::{Order, ReplayError, Verdict};
pub use recovery::{Recovered, Recovery, RecoveryError, SealedLog};
pub use tails::{Tails, TailsFull};
pub use window::{Span, Window};

pub use sent::SENT_CHUNKS_MAX;
pub use tags::{CONFLICT_REACH_MAX, PLACE_BYTES, PLACES_MAX_DEFAULT};
