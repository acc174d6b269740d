//! The engine's view of the log: quorum commit, tag index, resubmission. Pure: bytes and the time
//! are passed in, what is to be sent is asked for.
//!
//! - [`Commit`] turns watermarks into a committed position (the rule Watermark).
//! - [`View`] holds the stream of the current epoch back until it is committed, then applies it to
//!   the index of tags, over which reads are bounded.
//! - [`Submissions`] keeps every append until it is answered, over any number of epochs (the rule
//!   Resubmit).

#![forbid(unsafe_code)]

mod commit;
mod store;
mod submit;
mod tags;
mod view;

pub use commit::Commit;
pub use submit::{
    Answer, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, NewAppend, Outcome, Submissions, SubmitError,
};
pub use tags::{NotYet, TagError, TagIndex};
pub use view::{ApplyError, EnterError, Entered, Limits, Progress, StreamError, View};
