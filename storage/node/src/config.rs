//! What a storage node is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_log::limits::TAIL_MAX_BYTES;
use halfmoon_log::{Contents, LogConfig, LogId};
use halfmoon_meta::MetaStore;
use halfmoon_rdma::Choice;
use halfmoon_transport::{ListenError, TrafficGauge};
use halfmoon_wire::NodeId;

use crate::scrub::Pace;

/// When a node acknowledges.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Durability {
    /// After the flush: what is acknowledged survives loss of power everywhere.
    #[default]
    Flush,
    /// From memory: loses what a quorum of nodes loses together. Only by explicit choice.
    MemoryQuorum,
}

/// What a role is told, whoever hosts it.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// Where its files are. One node per directory.
    pub data_dir: PathBuf,
    /// Who it is.
    pub node: NodeId,
    /// The cluster that it belongs to.
    pub cluster: u128,
    /// Bytes of a segment of the log.
    pub segment_bytes: u64,
    /// Bytes of a segment of the state log.
    pub state_segment_bytes: u64,
    /// Bytes of the region where each engine leaves large values.
    pub staging_bytes: usize,
    /// When it acknowledges.
    pub durability: Durability,
    /// Take the flush out of writes: only to see the tests of power loss fail.
    #[cfg(feature = "fault-injection")]
    pub no_flush: bool,
}

/// What a node with a thread of its own is told.
#[derive(Clone)]
pub struct Config {
    /// The role.
    pub role: RoleConfig,
    /// Where the cluster's metadata is.
    pub meta: Arc<dyn MetaStore>,
    /// Where to listen, like `127.0.0.1:0`; the port that was given is published.
    pub listen: String,
    /// The address that others are told, when it is not the one listened on.
    pub advertise: Option<SocketAddr>,
    /// Look for work so long before sleeping. Zero where cores are shared.
    pub spin: Duration,
    /// How the logs on the disk are read again to find damage.
    pub scrub: Pace,
    /// Do without io_uring.
    pub no_uring: bool,
    /// What lanes go over.
    pub transport: Choice,
    /// Where it is noted what they carry.
    pub traffic: Arc<TrafficGauge>,
}

impl RoleConfig {
    /// With defaults.
    #[must_use]
    pub fn new(data_dir: PathBuf, node: NodeId, cluster: u128) -> Self {
        Self {
            data_dir,
            node,
            cluster,
            segment_bytes: crate::limits::SEGMENT_DEFAULT_BYTES,
            state_segment_bytes: crate::limits::SEGMENT_DEFAULT_BYTES,
            staging_bytes: crate::limits::STAGING_DEFAULT_BYTES,
            durability: Durability::Flush,
            #[cfg(feature = "fault-injection")]
            no_flush: std::env::var_os("HALFMOON_TEST_NO_DSYNC").is_some(),
        }
    }

    /// What its log is, under this name.
    #[must_use]
    pub const fn log(&self, id: LogId) -> LogConfig {
        let contents = Contents::Records;
        LogConfig { id, segment_bytes: self.segment_bytes, contents, tail_bytes: TAIL_MAX_BYTES }
    }

    /// What its state log is, under this name.
    #[must_use]
    pub const fn state_log(&self, id: LogId) -> LogConfig {
        let contents = Contents::Opaque;
        LogConfig { id, segment_bytes: self.state_segment_bytes, contents, tail_bytes: 0 }
    }

    pub(crate) const fn flushes(&self) -> bool {
        #[cfg(feature = "fault-injection")]
        if self.no_flush {
            return false;
        }
        true
    }
}

impl Config {
    /// The address that others are told.
    pub(crate) fn published(&self, bound: String) -> Result<SocketAddr, ListenError> {
        let bound = bound.parse().map_err(|_| ListenError::BadAddress { address: bound })?;
        Ok(self.advertise.unwrap_or(bound))
    }

    /// With defaults.
    #[must_use]
    pub fn new(role: RoleConfig, meta: Arc<dyn MetaStore>, listen: String) -> Self {
        let (spin, scrub, transport) = (Duration::ZERO, Pace::default(), Choice::default());
        let (advertise, traffic) = (None, Arc::default());
        Self { role, meta, listen, advertise, spin, scrub, no_uring: false, transport, traffic }
    }
}
