//! How an engine is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use halfmoon_meta::MetaStore;
use halfmoon_rdma::Choice;
use halfmoon_transport::TrafficGauge;
use halfmoon_wire::NodeId;

use crate::pool::PoolConfig;

/// How an engine is set up.
#[derive(Clone)]
pub struct Config {
    /// The metadata store of the cluster.
    pub meta: Arc<dyn MetaStore>,
    /// This node.
    pub node: NodeId,
    /// Where binaries are kept. Losing it costs fetching them again.
    pub data_dir: PathBuf,
    /// Where lanes would be taken. Engines dial and are not dialled, so nothing listens there yet.
    pub listen: String,
    /// Where HTTP requests are taken; port 0 is any. Published in the metadata store.
    pub http: SocketAddr,
    /// The HTTP address that others are told, when it is not the one listened on.
    pub advertise: Option<SocketAddr>,
    /// How many workers there may be.
    pub pool: PoolConfig,
    /// How the hot thread waits.
    pub reactor: halfmoon_reactor::Options,
    /// What lanes go over.
    pub transport: Choice,
    /// Where it is noted what they carry.
    pub traffic: Arc<TrafficGauge>,
}

impl Config {
    /// The usual settings for this machine.
    #[must_use]
    pub fn new(
        meta: Arc<dyn MetaStore>,
        node: NodeId,
        data_dir: impl Into<PathBuf>,
        listen: impl Into<String>,
        http: SocketAddr,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            meta,
            node,
            data_dir: data_dir.into(),
            listen: listen.into(),
            http,
            advertise: None,
            pool: PoolConfig::for_cores(cores),
            reactor: halfmoon_reactor::Options::default(),
            transport: Choice::default(),
            traffic: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("node", &self.node)
            .field("data_dir", &self.data_dir)
            .field("http", &self.http)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
