//! What a lane goes over, for those who look after a cluster.

use thiserror::Error;

/// What a lane that is up goes over. It does not change while the lane lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// RDMA.
    Rdma,
    /// TCP, and why not RDMA.
    Tcp(NoRdma),
}

impl Carrier {
    /// As flags and metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rdma => "rdma",
            Self::Tcp(_) => "tcp",
        }
    }

    /// Why it is not RDMA.
    #[must_use]
    pub const fn instead(self) -> Option<NoRdma> {
        match self {
            Self::Rdma => None,
            Self::Tcp(why) => Some(why),
        }
    }
}

/// Why a lane is not one over RDMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoRdma {
    /// This program has none.
    #[error("this node's build has no RDMA")]
    NotBuilt,
    /// This node's operator wants none.
    #[error("this node was told to use TCP only")]
    NotWanted,
    /// libibverbs does not load.
    #[error("libibverbs does not load on this node")]
    NoLibrary,
    /// There is no adapter, or none opens.
    #[error("this node has no RDMA device")]
    NoDevice,
    /// There are adapters, and all of them are software.
    #[error("this node's RDMA devices are made of software, which `auto` passes over")]
    SoftwareOnly,
    /// No adapter has the address that the connection has on this side.
    #[error("no RDMA device of this node has the address of this connection")]
    NoAddress,
    /// The port of the adapter does not work.
    #[error("the port of this node's RDMA device is not active")]
    PortDown,
    /// Memory cannot be registered.
    #[error("this node may not lock enough memory")]
    Memory,
    /// The adapter gives no connection.
    #[error("this node's RDMA device gives no connection")]
    NoConnection,
    /// The peer offers none: it has no adapter, was told to use TCP, or its build has no RDMA.
    #[error("the peer has no RDMA, or was told to use TCP only")]
    NotOffered,
    /// The peer wanted to, and could not.
    #[error("the peer cannot on this connection; its own log says why")]
    PeerCannot,
    /// The peer's adapter is not where the peer is.
    #[error("the peer's RDMA device has another address than the peer")]
    PeerElsewhere,
    /// The first write of either side did not arrive.
    #[error("the first write over RDMA did not arrive in time")]
    Late,
    /// A lane to the same address has just failed.
    #[error("a lane to this peer failed over RDMA a moment ago")]
    FailedBefore,
}

impl NoRdma {
    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotBuilt => "not-built",
            Self::NotWanted => "not-wanted",
            Self::NoLibrary => "no-library",
            Self::NoDevice => "no-device",
            Self::SoftwareOnly => "software-only",
            Self::NoAddress => "no-address",
            Self::PortDown => "port-down",
            Self::Memory => "memory",
            Self::NoConnection => "no-connection",
            Self::NotOffered => "not-offered",
            Self::PeerCannot => "peer-cannot",
            Self::PeerElsewhere => "peer-elsewhere",
            Self::Late => "late",
            Self::FailedBefore => "failed-before",
        }
    }
}
