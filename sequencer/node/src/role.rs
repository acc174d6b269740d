//! The role without a thread, a clock or a metadata store.

mod messages;
mod standing;

use std::collections::VecDeque;
use std::sync::Arc;

use halfmoon_order::{LearnError, Recovery, RecoveryError};
use halfmoon_transport::{
    DialError, Endpoint, EndpointOptions, Event, LaneId, ListenError, Traffic, Transport,
};
use halfmoon_wire::{
    DecodeError, Epoch, Hello, Incarnation, Message, NodeId, Role as WireRole, SeqNum,
};

use crate::epoch::OpenEpoch;
use crate::host::{Now, Options, Reign, Request, RoleError, Scene, Status, Turn};
use crate::metrics::{Metrics, Snapshot};
use crate::peers::{Delivery, Peers};
use crate::standby::Standby;
use crate::trio::Trio;

/// Time between two heartbeats, in ns: many of them within the time of suspicion, and no more turns
/// of an idle loop than there are without.
const HEARTBEAT_NS: u64 = 20_000_000;

/// How long a storage node may take to give records of the log that is recovered, in ns.
const READ_PATIENCE_NS: u64 = 1_000_000_000;

/// How long a reign may be without a quorum before it shows no life any more, in ns: long enough for
/// storage nodes that start with the sequencer.
const SEAL_PATIENCE_NS: u64 = 2_000_000_000;

/// A sequencer: it stands by, and reigns for an epoch at a time.
#[derive(Debug)]
pub struct Role<T> {
    endpoint: Endpoint<T>,
    core: Core,
}

/// All but the endpoint, which reports to it.
#[derive(Debug)]
struct Core {
    options: Options,
    /// Of its reign; 0 while it stands by.
    epoch: Epoch,
    /// The member set that the epoch opens with.
    members: Vec<NodeId>,
    stage: Stage,
    /// When those that stand by are told next that this one lives; `None`: nobody stands by.
    beat_at_ns: Option<u64>,
    /// When its reign began, by the first turn of it.
    reigns_since_ns: Option<u64>,
    /// The storage node that is asked for records of the log, and until when it may take.
    read_until: Option<(LaneId, u64)>,
    trio: Trio,
    peers: Peers,
    closing: Vec<LaneId>,
    requests: VecDeque<Request>,
    failure: Option<RoleError>,
    counted: Snapshot,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Stage {
    Standby(Box<Standby>),
    Recovering(Box<Recovery>),
    Open(Box<OpenEpoch>),
}

/// A peer did what it may not; its lane is closed.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("a {role:?} sent what only others send")]
    NotItsPart { role: WireRole },
    #[error("it asks to follow from {from}, beyond the end of the stream")]
    BeyondTheEnd { from: SeqNum },
    #[error(transparent)]
    TooManyQuestions(#[from] halfmoon_order::TailsFull),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error(transparent)]
    Learn(#[from] LearnError),
    #[error("its stream does not go on at the end of what it sent before")]
    OtherStream,
}

impl<T: Transport> Role<T> {
    /// What its lanes carry.
    pub fn traffic(&self) -> Traffic {
        self.endpoint.transport().traffic()
    }

    /// A sequencer that stands by, and looks with its first turn whom it has to watch.
    #[must_use]
    pub fn new(transport: T, options: Options) -> Self {
        let hello = hello(&options, Epoch(0));
        let endpoint = Endpoint::new(transport, EndpointOptions::new(hello));
        let standby = standby(&options, options.is_patient);
        let core = Core {
            epoch: Epoch(0),
            members: Vec::new(),
            stage: Stage::Standby(Box::new(standby)),
            beat_at_ns: None,
            reigns_since_ns: None,
            read_until: None,
            trio: Trio::new(),
            options,
            peers: Peers::new(),
            closing: Vec::new(),
            requests: VecDeque::new(),
            failure: None,
            counted: Snapshot::default(),
            metrics: Arc::default(),
        };
        Self { endpoint, core }
    }

    /// The epoch is this sequencer's: storage nodes are sealed from now on.
    pub fn reign(&mut self, reign: Reign) {
        self.endpoint.set_hello(hello(&self.core.options, reign.epoch));
        self.core.reign(reign);
    }

    /// The reign is over: it stands by, and leaves all lanes so that everybody looks for its
    /// successor.
    pub fn stand_by(&mut self) {
        self.endpoint.set_hello(hello(&self.core.options, Epoch(0)));
        self.core.stand_by();
    }

    /// Another sequencer has taken this epoch, which ends a reign that is older. Whether it did.
    pub fn superseded(&mut self, by: Epoch) -> bool {
        let is_over = Epoch(0) < self.core.epoch && self.core.epoch < by;
        if is_over {
            self.stand_by();
        }
        is_over
    }

    /// The answer to [`Request::Look`], and to a [`Request::Take`] for which somebody was faster.
    pub fn looked(&mut self, now: Now, scene: Scene) {
        self.core.looked(now, scene);
    }

    /// The metadata store has failed to answer [`Request::Look`] or [`Request::Take`].
    pub fn not_taken(&mut self, now: Now) {
        if let Stage::Standby(standby) = &mut self.core.stage {
            standby.store_failed(now.mono_ns);
        }
    }

    /// Accepts lanes at `address`; returns the address with the port that was given.
    pub fn listen(&mut self, address: &str) -> Result<String, ListenError> {
        self.endpoint.listen(address)
    }

    /// What is to be done with the metadata store.
    pub fn next_request(&mut self) -> Option<Request> {
        self.core.requests.pop_front()
    }

    /// The answer to [`Request::Locate`]; `None` when the node has published no address.
    pub fn located(&mut self, now: Now, node: NodeId, address: Option<&str>) {
        if !self.core.trio.is_locating(node) {
            return;
        }
        let dialled = address.map(|address| self.endpoint.dial(address));
        match dialled {
            Some(Ok(lane)) => self.core.trio.dialling(node, lane),
            Some(Err(error)) => self.core.not_dialled(now, node, &error),
            None => self.core.trio.failed(now.mono_ns, node),
        }
    }

    /// Takes what has arrived, orders it, and gives everybody what is there for them.
    pub fn turn(&mut self, now: Now) -> Result<Turn, RoleError> {
        let core = &mut self.core;
        let polled = self.endpoint.poll(&mut |event| core.event(now, event));
        core.pass_time(now);
        let dialled = core.dial_watched(now, &mut self.endpoint);
        if let Some(failure) = core.failure.take() {
            return Err(failure);
        }
        core.deliver(&mut self.endpoint);
        for lane in core.closing.drain(..) {
            self.endpoint.close(lane);
        }
        self.endpoint.flush();
        core.publish_metrics();
        let reading = core.read_until.map(|(_, at)| at);
        let deadlines = [core.trio.deadline(), core.beat_at_ns, core.standby_deadline(), reading];
        let deadline_ns = deadlines.into_iter().flatten().min();
        Ok(Turn { more: polled.more || dialled, deadline_ns })
    }

    /// Counters that any thread may read.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.core.metrics)
    }

    /// How far it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let core = &self.core;
        let storage = core.trio.nodes().collect();
        let epoch = core.epoch;
        let engines = Vec::new();
        match &core.stage {
            Stage::Standby(standby) => Status {
                epoch: standby.epoch(),
                is_open: false,
                standby: Some(standby.watch()),
                reading: None,
                tail: SeqNum::ZERO,
                committed: SeqNum::ZERO,
                storage,
                engines,
            },
            Stage::Recovering(recovery) => Status {
                epoch,
                is_open: false,
                standby: None,
                reading: recovery.progress(),
                tail: SeqNum::ZERO,
                committed: SeqNum::ZERO,
                storage,
                engines,
            },
            Stage::Open(open) => Status {
                epoch,
                is_open: true,
                standby: None,
                reading: None,
                tail: open.order.tail(),
                committed: open.commit.committed(),
                storage,
                engines: open.leases.engines().collect(),
            },
        }
    }
}

impl Core {
    fn event(&mut self, now: Now, event: Event<'_>) {
        match event {
            Event::Message { lane, bytes } => {
                if let Err(violation) = self.message(now, lane, bytes) {
                    self.violated(lane, violation);
                }
            }
            Event::Up { lane, hello, dialled } => self.up(now, lane, hello, dialled),
            Event::Down { lane, reason } => {
                if reason.is_for_operators() {
                    tracing::warn!(%lane, %reason, "a peer is turned away");
                } else {
                    tracing::debug!(%lane, %reason, "lane down");
                }
                self.down(now, lane);
            }
            Event::Written { .. } | Event::Room { .. } => {}
        }
    }

    fn up(&mut self, now: Now, lane: LaneId, hello: &[u8], dialled: bool) {
        let hello = match Hello::parse(hello) {
            Ok(hello) => hello,
            Err(error) => return self.violated(lane, error.into()),
        };
        if hello.cluster != self.options.cluster {
            tracing::warn!(%lane, node = hello.node.0, "a node of another cluster");
            return self.closing.push(lane);
        }
        let wanted = self.trio.node_of(lane);
        let is_expected = match hello.role {
            WireRole::Storage => dialled && wanted == Some(hello.node),
            WireRole::Engine | WireRole::Observer => !dialled,
            WireRole::Sequencer => self.is_expected(lane, &hello, dialled),
        };
        if !is_expected {
            return self.violated(lane, Violation::NotItsPart { role: hello.role });
        }
        if self.peers.has_later_life(&hello) {
            tracing::info!(node = hello.node.0, "an earlier life of a node that is here");
            return self.closing.push(lane);
        }
        // A node has one lane. What still comes on the one before is not heard any more.
        while let Some(earlier) = self.peers.earlier_lane(lane, &hello) {
            self.peers.remove(earlier);
            self.closing.push(earlier);
        }
        self.peers.add(lane, &hello);
        if hello.role == WireRole::Storage {
            self.trio.up(hello.node, lane);
            if !matches!(self.stage, Stage::Standby(_)) {
                self.peers.tell(lane, &Message::Seal { epoch: self.epoch });
            }
            return;
        }
        if hello.role == WireRole::Sequencer {
            self.sequencer_up(now, lane);
        }
        if let Stage::Open(open) = &mut self.stage {
            if hello.role == WireRole::Engine {
                open.hello(now, hello.node, hello.incarnation);
            }
            let welcome = open.welcome();
            self.peers.tell(lane, &welcome);
        }
    }

    fn down(&mut self, now: Now, lane: LaneId) {
        self.peers.remove(lane);
        if let Stage::Open(open) = &mut self.stage {
            open.tails.forget(|(asker, _)| *asker == lane);
        }
        self.watched_down(now, lane);
        let Some(node) = self.trio.node_of(lane) else { return };
        self.trio.failed(now.mono_ns, node);
        if let Stage::Recovering(recovery) = &mut self.stage {
            let lost = recovery.lost(node);
            self.failure = self.failure.take().or(lost.err().map(RoleError::Recovery));
        }
    }

    fn violated(&mut self, lane: LaneId, violation: Violation) {
        if let Violation::Recovery(RecoveryError::HistoryFull) = violation {
            self.failure = Some(RoleError::Recovery(RecoveryError::HistoryFull));
        }
        let node = self.peers.find(lane).map_or(0, |peer| peer.node.0);
        tracing::warn!(%lane, node, %violation, "lane closed");
        self.counted.violations += 1;
        self.peers.remove(lane);
        self.closing.push(lane);
    }

    fn not_dialled(&mut self, now: Now, node: NodeId, error: &DialError) {
        tracing::warn!(node = node.0, %error, "storage node");
        self.trio.failed(now.mono_ns, node);
    }

    /// What does not come from a message.
    fn pass_time(&mut self, now: Now) {
        while let Some(node) = self.trio.next_lookup(now.mono_ns) {
            self.requests.push_back(Request::Locate(node));
        }
        self.beat(now);
        match &mut self.stage {
            Stage::Standby(_) => self.watch(now),
            Stage::Recovering(_) => self.recover(now),
            Stage::Open(open) => {
                open.turn(now, &mut self.counted);
                if let Some(token) = open.tails.next_round() {
                    let confirm = Message::Confirm { epoch: self.epoch, token };
                    for lane in self.trio.sealed_lanes() {
                        self.peers.tell(lane, &confirm);
                    }
                }
                while let Some(((lane, token), seq)) = open.tails.next_answer() {
                    self.peers.tell(lane, &Message::Tail { token, seq });
                }
            }
        }
    }

    fn open(&mut self, now: Now, recovered: halfmoon_order::Recovered) {
        let members = self.members.clone();
        tracing::info!(
            epoch = self.epoch.0,
            opening = recovered.opening.0,
            source = recovered.source.0,
            "epoch open"
        );
        let mut open = OpenEpoch::new(recovered, members, &self.options, now);
        let welcome = open.welcome();
        for lane in self.peers.lanes().to_vec() {
            let Some(peer) = self.peers.find_mut(lane) else { continue };
            let is_sealed = self.trio.lane_to(peer.node) == Some(lane);
            if peer.role == WireRole::Engine {
                open.hello(now, peer.node, peer.incarnation);
            }
            if peer.role != WireRole::Storage || is_sealed {
                peer.outbox.push(&welcome);
            }
        }
        self.stage = Stage::Open(Box::new(open));
        self.requests.push_back(Request::Publish);
    }

    fn deliver<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) {
        let open = match &self.stage {
            Stage::Open(open) => Some(open),
            Stage::Standby(_) | Stage::Recovering(_) => None,
        };
        let window = open.map(|open| &open.window);
        for index in 0..self.peers.lanes().len() {
            let lane = self.peers.lanes()[index];
            let Some(peer) = self.peers.find_mut(lane) else { continue };
            let epoch = self.epoch;
            match peer.deliver(lane, epoch, window, endpoint, &mut self.counted) {
                Delivery::Done => {}
                Delivery::Behind => {
                    peer.next = None;
                    if let Some(open) = open {
                        peer.outbox.push(&open.welcome());
                    }
                }
                Delivery::Broken => self.closing.push(lane),
            }
        }
    }

    fn publish_metrics(&mut self) {
        if let Stage::Open(open) = &self.stage {
            self.counted.epoch = self.epoch.0;
            self.counted.tail = open.order.tail().0;
            self.counted.committed = open.commit.committed().0;
            self.counted.safe_point = open.order.safe_point().0;
            self.counted.tags = open.order.table_sizes().0 as u64;
        }
        self.counted.lanes = self.peers.lanes().len() as u64;
        self.metrics.publish(&self.counted);
    }
}

/// What lanes that come up hear: the epoch of the reign, or 0.
fn hello(options: &Options, epoch: Epoch) -> Vec<u8> {
    let Options { cluster, node, .. } = *options;
    let incarnation = Incarnation(epoch.0);
    Hello { cluster, role: WireRole::Sequencer, node, incarnation }.to_bytes()
}

fn standby(options: &Options, is_patient: bool) -> Standby {
    let Options { node, suspect_ms, window_bytes, .. } = *options;
    Standby::new(node, suspect_ms, window_bytes, is_patient)
}
