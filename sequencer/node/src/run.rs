//! The role on a thread: reactor, TCP, clocks, metadata store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use halfmoon_meta::{ClusterError, MetaStore, cluster, nodes};
use halfmoon_rdma::{Choice, Wire, wire};
use halfmoon_reactor::{Reactor, ReactorError};
use halfmoon_transport::{ListenError, TrafficGauge};
use halfmoon_wire::{NodeId, Role as WireRole};

use crate::caretaker::Caretaker;
use crate::host::{Now, Options, RoleError};
use crate::registrar::{Desk, Notice, Registrar};
use crate::role::Role;

/// Longest sleep between two turns: how late a stop, the end of a lease or a safe point is noticed
/// when nothing arrives.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// How long an engine's lease lasts when nothing else is configured, in ms.
pub const LEASE_MS_DEFAULT: u32 = 2000;

/// How long a sequencer may be silent before one that stands by takes over, when nothing else is
/// configured, in ms: twenty heartbeats, and more than most busy machines keep a process waiting.
pub const SUSPECT_MS_DEFAULT: u32 = 400;

/// How long a storage node may be gone before a spare takes its place, when nothing else is configured,
/// in s: longer than a machine takes to start again, or a node to be upgraded. Where no spare runs
/// nothing is replaced.
pub const REPLACE_AFTER_S_DEFAULT: u32 = 300;

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
    /// Most places of records in tags in the log's window; above it, appends are refused until the log
    /// is trimmed.
    pub places_max: u64,
    /// How long the sequencer in charge may be silent before this one takes over, in ms.
    pub suspect_ms: u32,
    /// How long a storage node may be gone before the sequencer in charge has a spare take its place;
    /// zero: for ever.
    pub replace_after: Duration,
    /// Whether it stands by at first, though nobody may be in charge: others get their time to be.
    pub is_standby: bool,
    /// How the thread waits.
    pub reactor: halfmoon_reactor::Options,
    /// What lanes go over.
    pub transport: Choice,
    /// Where it is noted what they carry.
    pub traffic: Arc<TrafficGauge>,
}

/// Why a sequencer did not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The metadata store does not tell which cluster this is.
    #[error("the sequencer has no cluster: {0}")]
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
            places_max: crate::PLACES_MAX_DEFAULT,
            suspect_ms: SUSPECT_MS_DEFAULT,
            replace_after: Duration::from_secs(REPLACE_AFTER_S_DEFAULT.into()),
            is_standby: false,
            reactor: halfmoon_reactor::Options::default(),
            transport: Choice::default(),
            traffic: Arc::default(),
        }
    }
}

/// Stands by while another sequencer is in charge, takes over when none is, and stands by again when
/// another has taken over; until `stop` is set. Its address is in the metadata store all the while.
///
/// One that starts takes over at once only if no other sequencer is published: one that has stood by
/// knows the log, and is the better successor.
#[expect(clippy::needless_pass_by_value, reason = "what is configured is for one run")]
pub fn run(config: Config, stop: Arc<AtomicBool>) -> Result<(), RunError> {
    let reactor = Reactor::shared(config.reactor)?;
    let info = cluster::read(&*config.meta)?;
    let is_other = |entry: &halfmoon_meta::NodeEntry| {
        entry.role() == WireRole::Sequencer && entry.node() != config.node
    };
    let options = Options {
        cluster: info.id(),
        node: config.node,
        is_patient: config.is_standby || nodes::list(&*config.meta)?.iter().any(is_other),
        lease_ms: config.lease_ms,
        window_bytes: config.window_bytes,
        places_max: config.places_max,
        suspect_ms: config.suspect_ms,
    };
    let mut role = Role::new(wire(reactor.clone(), config.transport), options);
    let address = role.listen(&config.listen)?;
    let bound = address.parse().ok();
    let published = config.advertise.or(bound).ok_or(RunError::Address { address })?;
    let store = Arc::clone(&config.meta);
    let desk = Desk::new(store, reactor.borrow().waker(), config.node, published);
    let registrar = Registrar::start(desk).map_err(RunError::Thread)?;
    let _caretaker = Caretaker::start(&config, info.id()).map_err(RunError::Thread)?;
    tracing::info!(address = %published, "sequencer started");
    let clock = Clock { start: Instant::now() };
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        while let Some(notice) = registrar.next() {
            notify(&mut role, now, notice);
        }
        let turn = match role.turn(now) {
            Ok(turn) => turn,
            Err(error @ RoleError::Deposed { .. }) => {
                tracing::warn!(%error, "standing by");
                role.stand_by();
                continue;
            }
            Err(error @ RoleError::Recovery(_)) => return Err(error.into()),
        };
        while let Some(request) = role.next_request() {
            registrar.ask(request);
        }
        config.traffic.look(clock.start + Duration::from_nanos(now.mono_ns), || role.traffic());
        let until = turn.deadline_ns.map_or(SLEEP_MAX, |at| {
            Duration::from_nanos(at.saturating_sub(now.mono_ns)).min(SLEEP_MAX)
        });
        reactor.borrow_mut().wait(if turn.more { Duration::ZERO } else { until })?;
    }
    // What it still has to say leaves with this turn; how its reign ends matters no more.
    let last = role.turn(clock.now());
    config.traffic.note(role.traffic());
    last.map(drop).or_else(|error| match error {
        RoleError::Deposed { .. } => Ok(()),
        RoleError::Recovery(_) => Err(error.into()),
    })
}

fn notify(role: &mut Role<Wire>, now: Now, notice: Notice) {
    match notice {
        Notice::Located(node, address) => role.located(now, node, address.as_deref()),
        Notice::Looked(scene) => role.looked(now, scene),
        Notice::Taken(reign) => {
            tracing::info!(epoch = reign.epoch.0, "the epoch is ours");
            role.reign(reign);
        }
        Notice::Failed => role.not_taken(now),
        Notice::Deposed(epoch) => {
            if role.superseded(epoch) {
                tracing::warn!(epoch = epoch.0, "another sequencer has taken over, standing by");
            }
        }
    }
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
            .field("suspect_ms", &self.suspect_ms)
            .field("replace_after", &self.replace_after)
            .field("is_standby", &self.is_standby)
            .finish_non_exhaustive()
    }
}
