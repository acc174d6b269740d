//! The role without a thread, a clock or a metadata store.

use std::collections::VecDeque;
use std::sync::Arc;

use halfmoon_order::{Recovery, RecoveryError, SealedLog};
use halfmoon_transport::{
    DialError, Endpoint, EndpointOptions, Event, LaneId, ListenError, Transport,
};
use halfmoon_wire::{
    AppendView, DecodeError, Epoch, Hello, Incarnation, LocalId, Message, NodeId, Role as WireRole,
    SeqNum, append_view,
};

use crate::epoch::OpenEpoch;
use crate::host::{Now, Options, Request, RoleError, Status, Turn};
use crate::metrics::{Metrics, Snapshot};
use crate::peers::{Delivery, Peers};
use crate::trio::Trio;

/// A sequencer for one epoch.
#[derive(Debug)]
pub struct Role<T> {
    endpoint: Endpoint<T>,
    core: Core,
}

/// All but the endpoint, which reports to it.
#[derive(Debug)]
struct Core {
    options: Options,
    stage: Stage,
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
}

impl<T: Transport> Role<T> {
    /// A sequencer that begins to seal its epoch with the first turn.
    #[must_use]
    pub fn new(transport: T, options: Options) -> Self {
        let hello = Hello {
            cluster: options.cluster,
            role: WireRole::Sequencer,
            node: options.node,
            incarnation: Incarnation(options.epoch.0),
        };
        let endpoint = Endpoint::new(transport, EndpointOptions::new(hello.to_bytes()));
        let (sets, bytes) = (options.member_sets.clone(), options.window_bytes);
        let recovery = Recovery::new(options.epoch, sets, bytes);
        let core = Core {
            trio: Trio::new(&recovery.nodes()),
            stage: Stage::Recovering(Box::new(recovery)),
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
        if let Some(failure) = core.failure.take() {
            return Err(failure);
        }
        core.deliver(&mut self.endpoint);
        for lane in core.closing.drain(..) {
            self.endpoint.close(lane);
        }
        self.endpoint.flush();
        core.publish_metrics();
        Ok(Turn { more: polled.more, deadline_ns: core.trio.deadline() })
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
        let epoch = core.options.epoch;
        match &core.stage {
            Stage::Recovering(recovery) => Status {
                epoch,
                is_open: false,
                reading: recovery.progress(),
                tail: SeqNum::ZERO,
                committed: SeqNum::ZERO,
                storage,
                engines: Vec::new(),
            },
            Stage::Open(open) => Status {
                epoch,
                is_open: true,
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
            WireRole::Sequencer => false,
        };
        if !is_expected {
            return self.violated(lane, Violation::NotItsPart { role: hello.role });
        }
        // A node has one lane. What still comes on the one before is not heard any more.
        while let Some(earlier) = self.peers.earlier_lane(lane, &hello) {
            self.peers.remove(earlier);
            self.closing.push(earlier);
        }
        self.peers.add(lane, &hello);
        if hello.role == WireRole::Storage {
            self.trio.up(hello.node, lane);
            return self.peers.tell(lane, &Message::Seal { epoch: self.options.epoch });
        }
        if let Stage::Open(open) = &mut self.stage {
            if hello.role == WireRole::Engine {
                let known = open.leases.hello(now.mono_ns, hello.node, hello.incarnation);
                known.unwrap_or_else(|over| tracing::info!(engine = hello.node.0, "{over}"));
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
        let Some(node) = self.trio.node_of(lane) else { return };
        self.trio.failed(now.mono_ns, node);
        if let Stage::Recovering(recovery) = &mut self.stage {
            let lost = recovery.lost(node);
            self.failure = self.failure.take().or(lost.err().map(RoleError::Recovery));
        }
    }

    fn message(&mut self, now: Now, lane: LaneId, bytes: &[u8]) -> Result<(), Violation> {
        // A lane that is being closed is no longer known, and not heard.
        let Some(peer) = self.peers.find(lane) else { return Ok(()) };
        let (role, node, incarnation) = (peer.role, peer.node, peer.incarnation);
        if let Some(parsed) = append_view(bytes) {
            let (epoch, append) = parsed?;
            if role != WireRole::Engine {
                return Err(Violation::NotItsPart { role });
            }
            self.append(now, (lane, node, incarnation), epoch, &append);
            return Ok(());
        }
        match (role, Message::parse(bytes)?) {
            (WireRole::Engine, Message::Report { applied, safe_point, answered }) => {
                self.report(now, (node, incarnation), (applied, safe_point), answered);
                Ok(())
            }
            (WireRole::Engine | WireRole::Observer, Message::AskTail { token }) => {
                let Stage::Open(open) = &mut self.stage else { return Ok(()) };
                Ok(open.tails.ask((lane, token), open.order.tail())?)
            }
            (_, Message::Follow { from }) => self.follow(lane, from),
            (WireRole::Storage, message) => self.storage_message(lane, node, &message),
            (role, _) => Err(Violation::NotItsPart { role }),
        }
    }

    fn append(
        &mut self,
        now: Now,
        (lane, engine, incarnation): (LaneId, NodeId, Incarnation),
        epoch: Epoch,
        append: &AppendView<'_>,
    ) {
        let Stage::Open(open) = &mut self.stage else { return };
        if epoch != self.options.epoch {
            self.counted.misdirected += 1;
            return;
        }
        let refused = open.append(now, engine, incarnation, append, &mut self.counted);
        if let Some(refusal) = refused {
            let local = append.local;
            self.peers.tell(lane, &Message::Refused { epoch, local, refusal });
        }
    }

    fn report(
        &mut self,
        now: Now,
        (engine, incarnation): (NodeId, Incarnation),
        (applied, safe_point): (SeqNum, SeqNum),
        answered: LocalId,
    ) {
        let Stage::Open(open) = &mut self.stage else { return };
        open.order.answered(engine, incarnation, answered);
        let renewed = open.leases.report(now.mono_ns, engine, incarnation, applied, safe_point);
        // An incarnation that is over learns it from the stream, and from what it appends.
        renewed.unwrap_or_else(|over| tracing::debug!(engine = engine.0, "{over}"));
    }

    fn follow(&mut self, lane: LaneId, from: SeqNum) -> Result<(), Violation> {
        let Stage::Open(open) = &self.stage else { return Ok(()) };
        if from > open.window.next() || from == SeqNum::ZERO {
            return Err(Violation::BeyondTheEnd { from });
        }
        if let Some(peer) = self.peers.find_mut(lane) {
            peer.next = Some(from);
        }
        Ok(())
    }

    fn storage_message(
        &mut self,
        lane: LaneId,
        node: NodeId,
        message: &Message<'_>,
    ) -> Result<(), Violation> {
        let own = self.options.epoch;
        match (message, &mut self.stage) {
            (Message::Sealed { promised, .. }, _) if *promised > own => {
                self.failure = Some(RoleError::Deposed { own, promised: *promised });
            }
            (Message::Sealed { promised, history, end }, Stage::Recovering(recovery)) => {
                self.trio.sealed(lane);
                let log = SealedLog { history: history.clone(), end: *end };
                recovery.sealed(node, *promised, log)?;
            }
            (Message::Sealed { .. }, Stage::Open(open)) => {
                self.trio.sealed(lane);
                let (welcome, round) = (open.welcome(), open.tails.last_round());
                self.peers.tell(lane, &welcome);
                if let Some(token) = round {
                    self.peers.tell(lane, &Message::Confirm { epoch: own, token });
                }
            }
            (Message::LogChunk { token, records, .. }, Stage::Recovering(recovery)) => {
                recovery.chunk(node, *token, records)?;
            }
            (Message::Durable { epoch, seq }, Stage::Open(open)) if *epoch == own => {
                self.trio.proven(node);
                if open.durable(node, *seq) {
                    tracing::info!(epoch = own.0, "the opening record is committed");
                    self.requests.push_back(Request::MarkCommitted);
                }
            }
            (Message::Confirmed { epoch, token }, Stage::Open(open)) if *epoch == own => {
                open.tails.confirmed(node, *token);
            }
            // Late, or of an epoch before.
            (Message::LogChunk { .. } | Message::Durable { .. } | Message::Confirmed { .. }, _) => {
            }
            _ => return Err(Violation::NotItsPart { role: WireRole::Storage }),
        }
        Ok(())
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
        match &mut self.stage {
            Stage::Recovering(recovery) => {
                if let Some((node, request)) = recovery.next_read()
                    && let Some(lane) = self.trio.lane_to(node)
                {
                    self.peers.tell(lane, &request);
                }
                if let Some(recovered) = recovery.open(now.wall_ns) {
                    self.open(now, recovered);
                }
            }
            Stage::Open(open) => {
                open.turn(now, &mut self.counted);
                if let Some(token) = open.tails.next_round() {
                    let confirm = Message::Confirm { epoch: self.options.epoch, token };
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
        let members = self.options.member_sets.last().cloned().unwrap_or_default();
        tracing::info!(
            epoch = self.options.epoch.0,
            opening = recovered.opening.0,
            source = recovered.source.0,
            "epoch open"
        );
        let mut open = OpenEpoch::new(recovered, members, self.options.lease_ms, now);
        let welcome = open.welcome();
        for lane in self.peers.lanes().to_vec() {
            let Some(peer) = self.peers.find_mut(lane) else { continue };
            let is_sealed = self.trio.lane_to(peer.node) == Some(lane);
            if peer.role == WireRole::Engine {
                let known = open.leases.hello(now.mono_ns, peer.node, peer.incarnation);
                known.unwrap_or_else(|over| tracing::info!(engine = peer.node.0, "{over}"));
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
            Stage::Recovering(_) => None,
        };
        let window = open.map(|open| &open.window);
        for index in 0..self.peers.lanes().len() {
            let lane = self.peers.lanes()[index];
            let Some(peer) = self.peers.find_mut(lane) else { continue };
            let epoch = self.options.epoch;
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
            self.counted.epoch = self.options.epoch.0;
            self.counted.tail = open.order.tail().0;
            self.counted.committed = open.commit.committed().0;
            self.counted.safe_point = open.order.safe_point().0;
            self.counted.tags = open.order.table_sizes().0 as u64;
        }
        self.counted.lanes = self.peers.lanes().len() as u64;
        self.metrics.publish(&self.counted);
    }
}
