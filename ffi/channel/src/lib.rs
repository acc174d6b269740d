//! The shared-memory channel between an engine and one function worker.
//!
//! One sealed memfd holds a header page, two single-producer rings of messages, and an arena of
//! *state buffers*. The engine allocates from one half of the arena, for values that it brings in;
//! the worker from the other, for values that it builds. The engine exposes the arena to the
//! network ([`EngineSide::region`]), so a value lands where the function reads it, and leaves from
//! where the function built it.
//!
//! - [`EngineSide`] never blocks, allocates nothing after its creation, and trusts nothing: it
//!   copies a message, then parses it, reaches shared memory by atomics alone, and answers every
//!   broken rule with a [`ChannelError`], upon which the worker is killed.
//! - [`WorkerSide`] blocks, and trusts its engine.
//! - [`message`] holds what they say to each other.
//!
//! Either side is woken by a system call only when it sleeps: the worker on a futex, the engine on
//! whatever watches its [`Doorbell`].
//!
//! Unsafe code is in `sys` (mapping, inherited descriptors) and `view` (slices of the arena in the
//! worker).

mod arena;
mod bell;
mod codec;
mod engine;
mod layout;
pub mod limits;
pub mod message;
mod ring;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod view;
mod worker;

pub use arena::{AllocError, Arena, BadBuffer, Buffer};
pub use bell::Doorbell;
pub use codec::TooLong;
pub use engine::{ChannelConfig, ChannelError, EngineSide, Inbox, SendError};
pub use layout::{LAYOUT_VERSION, LayoutError};
pub use message::{
    Data, EndReason, Finish, Invoke, Level, Operation, Outcome, Refusal, Request, ToWorker,
};
pub use ring::RingError;
pub use view::{Draft, Landed};
pub use worker::{
    AlignedBytes, Answer, ConnectError, Incoming, Invocation, Received, WorkerError, WorkerSide,
    connect_from_env,
};

/// Environment variable with the number of the descriptor of the shared memory.
pub const CHANNEL_FD_ENV: &str = "HALFMOON_CHANNEL_FD";
/// Environment variable with the number of the descriptor of the engine's doorbell.
pub const DOORBELL_FD_ENV: &str = "HALFMOON_DOORBELL_FD";
/// Environment variable: how often a worker looks before it sleeps, at most. Unset, it is 0 on
/// machines with two cores or fewer, where spinning takes the engine's core.
pub const SPIN_ENV: &str = "HALFMOON_SPIN";
