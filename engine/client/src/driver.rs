//! Drives the client: one turn polls the network, applies what is committed, runs the tasks, and
//! sends what they said, with one flush.

mod session;

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use halfmoon_index::Limits;
use halfmoon_transport::endpoint::MAX_HELLO_BYTES;
use halfmoon_transport::mailbox::DEFAULT_RING_BYTES;
use halfmoon_transport::{
    Access, Carrier, Endpoint, EndpointOptions, ExposeError, Memory, RegionId, Transport,
};
use halfmoon_wire::{Epoch, Hello, Incarnation, NodeId, Role, SeqNum};

use crate::core::{Core, Ended};
use crate::directory::Directory;
use crate::executor::Executor;
use crate::log::Log;
use crate::state::State;
use session::Session;

/// How a client is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's id.
    pub cluster: u128,
    /// [`Role::Engine`] to append, [`Role::Observer`] to read.
    pub role: Role,
    /// Who this is. No two engines bear the same id.
    pub node: NodeId,
    /// Which life of it: one that was never used.
    pub incarnation: Incarnation,
    /// For jitter.
    pub seed: u64,
    /// Memory for records.
    pub limits: Limits,
    /// Bytes of the ring that each lane receives into.
    pub ring_bytes: usize,
}

/// Owns the endpoint and the lanes; the handles it gives out are used on its thread.
pub struct Driver<T: Transport, D> {
    endpoint: Endpoint<T>,
    session: Session<D>,
}

/// When the next turn is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// There is more to do now.
    pub busy: bool,
    /// Otherwise: wait for the network, but not beyond this time, in ns.
    pub wake_at_ns: Option<u64>,
}

/// A lane that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerLane {
    /// What the peer is.
    pub role: Role,
    /// Who it is.
    pub node: NodeId,
    /// What the lane goes over; `None` if it goes over no network.
    pub carrier: Option<Carrier>,
}

/// What a client has done, since it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Metrics {
    /// The current epoch.
    pub epoch: u64,
    /// The last position applied.
    pub applied: u64,
    /// Appends taken.
    pub appends: u64,
    /// Appends without an answer.
    pub unanswered: u64,
    /// Answers that were conflicts.
    pub conflicts: u64,
    /// Records applied.
    pub records: u64,
    /// Records fetched from storage because memory had dropped them.
    pub remote_records: u64,
    /// Questions to the state store.
    pub state_calls: u64,
    /// Questions that were asked again, or of another node.
    pub state_retries: u64,
    /// Cell reads that found two nodes apart.
    pub write_backs: u64,
    /// Lanes that went down.
    pub lanes_lost: u64,
    /// Epochs entered.
    pub epochs: u64,
}

impl Options {
    /// Options with the usual limits.
    #[must_use]
    pub fn new(cluster: u128, role: Role, node: NodeId, incarnation: Incarnation) -> Self {
        let limits = Limits::default();
        let seed = incarnation.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(node.0);
        Self { cluster, role, node, incarnation, seed, limits, ring_bytes: DEFAULT_RING_BYTES }
    }
}

impl<T: Transport, D: Directory> Driver<T, D> {
    /// A client that has no lanes yet.
    ///
    /// # Panics
    /// If `ring_bytes` is no size of a ring.
    #[must_use]
    pub fn new(transport: T, directory: D, options: &Options, now_ns: u64) -> Self {
        let Options { cluster, role, node, incarnation, seed, limits, ring_bytes } = *options;
        let hello = Hello { cluster, role, node, incarnation }.to_bytes();
        assert!(hello.len() <= MAX_HELLO_BYTES);
        let endpoint = Endpoint::new(transport, EndpointOptions { hello, ring_bytes });
        let core = Core::new((node, incarnation), limits, seed, now_ns);
        Self { endpoint, session: Session::new(core, directory, cluster, role) }
    }

    /// The executor that turns run.
    #[must_use]
    pub fn executor(&self) -> Executor {
        self.core().executor.clone()
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> Log {
        Log(self.core().clone())
    }

    /// The state store.
    #[must_use]
    pub fn state(&self) -> State {
        State(self.core().clone())
    }

    /// Makes memory known to peers, for large values to land in.
    ///
    /// # Errors
    /// When there are too many regions.
    pub fn expose(&mut self, memory: Arc<dyn Memory>) -> Result<RegionId, ExposeError> {
        self.endpoint.expose(memory, Access::Any)
    }

    /// Ends that.
    pub fn withdraw(&mut self, region: RegionId) {
        self.endpoint.withdraw(region);
    }

    /// The endpoint, for whoever waits on its transport.
    pub fn endpoint_mut(&mut self) -> &mut Endpoint<T> {
        &mut self.endpoint
    }

    /// The lanes that are up: to sequencers, then to storage nodes.
    #[must_use]
    pub fn lanes(&self) -> Vec<PeerLane> {
        let carrier = |lane| self.endpoint.transport().carrier(lane);
        let shown = |(role, node, lane)| PeerLane { role, node, carrier: carrier(lane) };
        self.session.lanes().map(shown).collect()
    }

    /// Changes whenever [`lanes`](Self::lanes) may have changed.
    #[must_use]
    pub fn lanes_version(&self) -> u64 {
        self.session.lanes_version()
    }

    /// Does all that can be done now. `now_ns` is a clock that does not go back.
    pub fn turn(&mut self, now_ns: u64) -> Pace {
        let Self { endpoint, session } = self;
        let executor = session.core().executor.clone();
        executor.set_now(now_ns);
        let polled = endpoint.poll(&mut |event| session.handle(event));
        session.connect(endpoint);
        session.read_words();
        let more = session.apply();
        let ready = executor.run_ready(now_ns);
        session.send(endpoint);
        endpoint.flush();
        Pace { busy: polled.more || more || ready, wake_at_ns: session.wake_at_ns() }
    }

    /// Ends the client: appends under way end as unknown, and all tasks are dropped.
    pub fn close(&mut self) {
        self.core().end(Ended::Closed);
        let lanes: Vec<_> = self.endpoint.lanes().collect();
        for lane in lanes {
            self.endpoint.close(lane);
        }
        self.endpoint.flush();
        self.core().executor.clear();
    }

    /// What the client has done.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let core = self.core();
        let (Epoch(epoch), SeqNum(applied)) = (core.epoch(), core.applied());
        let counts = &core.counts;
        Metrics {
            epoch,
            applied,
            appends: counts.appends.get(),
            unanswered: core.submissions.borrow().unanswered() as u64,
            conflicts: counts.conflicts.get(),
            records: counts.applied.get(),
            remote_records: counts.remote_records.get(),
            state_calls: counts.state_calls.get(),
            state_retries: counts.state_retries.get(),
            write_backs: counts.write_backs.get(),
            lanes_lost: counts.lanes_lost.get(),
            epochs: counts.epochs.get(),
        }
    }

    fn core(&self) -> &Rc<Core> {
        self.session.core()
    }
}

impl<T: Transport, D> Drop for Driver<T, D> {
    fn drop(&mut self) {
        // Tasks hold handles to what holds them.
        self.session.core().end(Ended::Closed);
        self.session.core().executor.clear();
        self.session.core().folds.borrow_mut().clear();
    }
}

impl<T: Transport, D> fmt::Debug for Driver<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
