//! The contract of one-sided writes over TCP: the same writes, as frames that the receiver's
//! reactor applies to the region.
//!
//! All that was posted to a peer in a turn leaves in one system call. Small frames are received
//! into a buffer and copied once into the region; the body of a large one is received straight
//! into it.

#![forbid(unsafe_code)]

pub mod floor;
mod frame;
pub mod greet;
mod lane;
mod offer;
mod socket;
mod tcp;

pub use tcp::Tcp;
