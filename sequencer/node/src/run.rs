//! The role on a thread: reactor, TCP, clocks, metadata store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use halfmoon_meta::{ClusterError, MemberSet, MetaStore, NodeEntry, cluster};
use halfmoon_reactor::{Reactor, ReactorError};
use halfmoon_tcp::Tcp;
use halfmoon_transport::ListenError;
use halfmoon_wire::{Incarnation, NodeId, Role as WireRole};

use crate::host::{Now, Options, RoleError};
use crate::registrar::{Desk, Notice, Registrar};
use crate::role::Role;

/// Longest sleep between two turns: how late a stop, the end of a lease or a safe point is noticed
/// when nothing arrives.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// How long an engine's lease lasts when nothing else is configured, in ms.
pub const LEASE_MS_DEFAULT: u32 = 2000;

/// How a sequencer is set up.
#[derive(Clone)]
pub struct Config {
    /// The metadata store of the cluster.
    pub meta: Arc<dyn MetaStore>,
    /// This node.
    pub node: NodeId,
    /// Where it listens, such as `127.0.0.1:0`.
    pub listen: String,
    /// The address that others are told, when it is not the one listened on.
    pub advertise: Option<SocketAddr>,
    /// How long an engine may be silent before its roots are taken over, in ms.
    pub lease_ms: u32,
    /// Bytes of recent stream kept for followers.
    pub window_bytes: usize,
    /// How the thread waits.
    pub reactor: halfmoon_reactor::Options,
}

/// Why a sequencer did not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The metadata store did not give an epoch.
    #[error("the sequencer has no epoch: {0}")]
    Meta(#[from] ClusterError),
    /// The system gives no reactor, or it failed.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The address that was listened on is not one that others can be told.
    #[error("the sequencer's own address {address:?} is not an address")]
    Address {
        /// What the system gave.
        address: String,
    },
    /// The system gives no thread.
    #[error("the sequencer's helper thread did not start: {0}")]
    Thread(#[source] std::io::Error),
    /// The role has ended.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// Another sequencer has taken a later epoch from the metadata store.
    #[error("another sequencer has taken over with epoch {epoch}")]
    Superseded {
        /// Its epoch.
        epoch: u64,
    },
}

impl Config {
    /// The usual settings for a node on one machine.
    #[must_use]
    pub fn new(meta: Arc<dyn MetaStore>, node: NodeId, listen: impl Into<String>) -> Self {
        Self {
            meta,
            node,
            listen: listen.into(),
            advertise: None,
            lease_ms: LEASE_MS_DEFAULT,
            window_bytes: halfmoon_order::window::WINDOW_BYTES_DEFAULT,
            reactor: halfmoon_reactor::Options::default(),
        }
    }
}

/// Takes an epoch and orders for it until `stop` is set, or another sequencer takes over. Its address
/// is in the metadata store from when the epoch is open until the end.
#[expect(clippy::needless_pass_by_value, reason = "what is configured is for one run")]
pub fn run(config: Config, stop: Arc<AtomicBool>) -> Result<(), RunError> {
    let reactor = Reactor::shared(config.reactor)?;
    let info = cluster::next_epoch(&*config.meta, config.node)?;
    let options = Options {
        cluster: info.id(),
        node: config.node,
        epoch: info.epoch(),
        member_sets: info.recovery_sets().map(MemberSet::nodes).collect(),
        lease_ms: config.lease_ms,
        window_bytes: config.window_bytes,
    };
    let mut role = Role::new(Tcp::new(reactor.clone()), options);
    let address = role.listen(&config.listen)?;
    let bound = address.parse().ok();
    let published = config.advertise.or(bound).ok_or(RunError::Address { address })?;
    let incarnation = Incarnation(info.epoch().0);
    let registrar = Registrar::start(Desk {
        store: Arc::clone(&config.meta),
        waker: reactor.borrow().waker(),
        entry: NodeEntry::new(WireRole::Sequencer, config.node, incarnation, published),
        epoch: info.epoch(),
        members: info.members.version,
    })
    .map_err(RunError::Thread)?;
    tracing::info!(epoch = info.epoch().0, address = %published, "sequencer started");
    let clock = Clock { start: Instant::now() };
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        while let Some(notice) = registrar.next() {
            match notice {
                Notice::Located(node, address) => role.located(now, node, address.as_deref()),
                Notice::Deposed(epoch) => return Err(RunError::Superseded { epoch: epoch.0 }),
            }
        }
        let turn = role.turn(now)?;
        while let Some(request) = role.next_request() {
            registrar.ask(request);
        }
        let until = turn.deadline_ns.map_or(SLEEP_MAX, |at| {
            Duration::from_nanos(at.saturating_sub(now.mono_ns)).min(SLEEP_MAX)
        });
        reactor.borrow_mut().wait(if turn.more { Duration::ZERO } else { until })?;
    }
    role.turn(clock.now())?;
    Ok(())
}

struct Clock {
    start: Instant,
}

impl Clock {
    fn now(&self) -> Now {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ns: ns(self.start.elapsed()), wall_ns: ns(wall) }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("node", &self.node)
            .field("listen", &self.listen)
            .field("lease_ms", &self.lease_ms)
            .field("window_bytes", &self.window_bytes)
            .finish_non_exhaustive()
    }
}
