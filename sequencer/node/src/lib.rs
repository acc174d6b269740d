//! The sequencer role: the ordering core on a transport.
//!
//! - [`Role`] is the role without a thread, a clock or a metadata store: whoever hosts it calls
//!   [`Role::turn`] with the time and carries out its [`Request`]s. It stands by, watching whoever is
//!   in charge and learning what that orders; takes over when that is gone; reigns for an epoch; and
//!   stands by again when another has taken over.
//! - [`run`] hosts it on a reactor and TCP.
//!
//! A turn takes all messages that are there, orders them, and gives every follower the stream as far
//! as it has not got it, in as few messages as it fits. There is no timer on that path: batches are
//! what has arrived meanwhile.

#![forbid(unsafe_code)]

mod caretaker;
mod epoch;
mod host;
mod metrics;
mod peers;
mod registrar;
mod role;
mod run;
mod standby;
mod trio;

pub use halfmoon_order::{PLACE_BYTES, PLACES_MAX_DEFAULT};
pub use host::{Now, Options, Reign, Request, RoleError, Scene, Status, Turn, Watch};
pub use metrics::{Metrics, Snapshot};
pub use role::Role;
pub use run::{
    Config, LEASE_MS_DEFAULT, REPLACE_AFTER_S_DEFAULT, RunError, SUSPECT_MS_DEFAULT, run,
};
