//! The contract of one-sided writes, rings over it, the in-process transport, and the
//! conformance suite.
//!
//! Layers, from the bottom:
//!
//! - [`memory`]: memory that a peer may write to, which is `&[AtomicU64]` and never `&[u8]`.
//! - [`contract`]: what every transport promises, rules T1 to T5.
//! - [`mailbox`]: messages over one-sided writes, by a byte ring per direction.
//! - [`endpoint`]: what roles use: dial, listen, send, write, poll.
//! - [`local`]: the transport between endpoints of one process.
//! - `conformance` (feature of that name): the tests that every transport passes.
//!
//! A role's loop looks like this:
//!
//! ```no_run
//! # use halfmoon_transport::{Endpoint, Event, EndpointOptions, Transport};
//! # fn turn<T: Transport>(endpoint: &mut Endpoint<T>) {
//! let turn = endpoint.poll(&mut |event| match event {
//!     Event::Up { lane, hello, dialled } => { /* a peer is there */ }
//!     Event::Message { lane, bytes } => { /* parse, hand to the machine */ }
//!     Event::Written { lane, token } => { /* a signalled write is in the peer's memory */ }
//!     Event::Room { lane } => { /* what was refused as `Full` fits now */ }
//!     Event::Down { lane, reason } => { /* whether the last writes arrived is unknown */ }
//! });
//! // … send what the machine answers with `endpoint.send`, then:
//! endpoint.flush();
//! // Wait in the reactor, without sleeping if `turn.more`.
//! # let _more = turn.more;
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod carrier;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod endpoint;
pub mod gauge;

pub mod lanes;
pub mod local;

pub mod mailbox;
pub mod memory;
pub mod regions;

pub use carrier::{Carrier, NoRdma};
pub use contract::{
    Access, DialError, DownReason, ExposeError, LaneId, ListenError, Occurrence, PostError,
    RegionId, RemoteSpan, Share, Source, Token, Traffic, Transport, Wake,
};
pub use endpoint::{Endpoint, EndpointOptions, Event, SendError, Turn};

pub use gauge::TrafficGauge;
pub use local::{LocalNet, LocalTransport};
pub use memory::{HeapMemory, Memory};
