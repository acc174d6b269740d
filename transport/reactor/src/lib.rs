//! One ring for sockets, disk and wake-ups, with one place to wait.
//!
//! Whoever owns a thread owns a [`Reactor`]. Operations move their buffers in ([`Op`]) and get them
//! back with the result ([`Done`]), so the kernel never writes to memory that somebody else owns.
//! Several users share a reactor, each with its own queue of completions ([`UserId`]).
//!
//! Two backends do the work, chosen when the reactor is made and told by [`Reactor::backend`]:
//! io_uring ([`Backend::Uring`]), and `poll` with plain system calls where io_uring is refused
//! ([`Backend::Poll`]), as in many containers.
//!
//! `unsafe` code of this package is in `uring.rs`; `buffer.rs` has two `unsafe impl`s, each argued.

mod buffer;
pub mod floor;
mod op;
mod poll;
mod reactor;
mod uring;
mod waker;

pub use buffer::{AlignedBuffer, BLOCK_BYTES};
pub use op::{Done, Op};
pub use reactor::{
    Backend, MAX_IN_FLIGHT, Options, Polling, Reactor, ReactorError, SharedReactor, UserId, Watch,
    open_direct,
};
pub use waker::Waker;
