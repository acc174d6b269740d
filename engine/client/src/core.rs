//! What driver and handles share, on one thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use halfmoon_index::{Limits, Submissions, View};
use halfmoon_transport::RemoteSpan;
use halfmoon_wire::{Epoch, Incarnation, Message, NodeId, RecordRef, SeqNum};

use crate::appends::Appends;
use crate::calls::{Calls, Hold, Lost, Peer, Reply};
use crate::executor::{Alarms, Executor};
use crate::staging::Staging;
use crate::value::ValueIn;

/// Messages to one peer that wait for room in its ring.
const OUTBOX_MAX: usize = 16 * 1024;

/// First pause before something that failed is tried again, in ns; it doubles.
const PAUSE_FIRST_NS: u64 = 2_000_000;

/// Longest such pause, in ns.
const PAUSE_MAX_NS: u64 = 256_000_000;

/// Longest pause before a peer is dialled again, in ns: what a new sequencer waits for at most.
const DIAL_PAUSE_MAX_NS: u64 = 32_000_000;

pub(crate) type Fold = Box<dyn FnMut(RecordRef<'_>)>;

/// See the module.
pub(crate) struct Core {
    pub(crate) executor: Executor,
    pub(crate) view: RefCell<View>,
    pub(crate) submissions: RefCell<Submissions>,
    pub(crate) appends: RefCell<Appends>,
    /// Tasks that wait for a position to be applied.
    pub(crate) reached: RefCell<Alarms>,
    pub(crate) calls: RefCell<Calls>,
    pub(crate) links: RefCell<Links>,
    pub(crate) folds: RefCell<Vec<Fold>>,
    /// Least initial cursor of unfinished roots, as the engine says; `None`: there are none.
    pub(crate) least: Cell<Option<SeqNum>>,
    pub(crate) ended: Cell<Option<Ended>>,
    /// The sequencers that are known, for whoever asks.
    pub(crate) sequencers: RefCell<Vec<SequencerLane>>,
    pub(crate) counts: Counts,
    /// Most places that the window may have, as the sequencer says.
    pub(crate) places_max: Cell<u64>,
    /// Tasks that have asked the sequencer for the tail.
    pub(crate) tails: Cell<usize>,
    random: Cell<u64>,
}

/// Why the client has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    Closed,
    Broken,
}

/// Counters, read by [`crate::Driver::metrics`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) appends: Cell<u64>,
    pub(crate) conflicts: Cell<u64>,
    pub(crate) applied: Cell<u64>,
    pub(crate) remote_records: Cell<u64>,
    pub(crate) state_calls: Cell<u64>,
    pub(crate) state_retries: Cell<u64>,
    pub(crate) write_backs: Cell<u64>,
    pub(crate) lanes_lost: Cell<u64>,
    pub(crate) epochs: Cell<u64>,
}

/// The lanes as handles see them: who can be asked, and what is to be sent.
#[derive(Default)]
pub(crate) struct Links {
    pub(crate) sequencer: Outbox,
    pub(crate) replicas: Vec<Replica>,
    /// Lanes that are to be taken down: a node did not answer, and memory is lent to it.
    pub(crate) to_close: Vec<NodeId>,
    /// Tasks that wait for any of this to change.
    changed: Vec<Waker>,
    version: u64,
}

pub(crate) struct Replica {
    pub(crate) node: NodeId,
    pub(crate) staging: Option<Staging>,
    pub(crate) outbox: Outbox,
}

/// What is to be sent to one peer, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    /// Whether the lane is up and the peer hears what is said.
    pub(crate) up: bool,
    pub(crate) items: VecDeque<Item>,
}

pub(crate) enum Item {
    Message(Vec<u8>),
    Write { to: RemoteSpan, value: ValueIn },
}

/// A question on its way. Dropping it abandons the question.
pub(crate) struct Ask {
    core: Rc<Core>,
    token: u64,
}

/// Ends when a position is applied, or the client has ended.
pub(crate) struct Reached {
    core: Rc<Core>,
    seq: SeqNum,
    alarm: Option<crate::executor::AlarmId>,
}

/// Counts a task that waits for the tail, as long as it lives.
pub(crate) struct AsksTail(Rc<Core>);

/// Pauses between attempts, each twice as long, with jitter.
pub(crate) struct Backoff {
    next_ns: u64,
    max_ns: u64,
}

/// A sequencer as this client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SequencerLane {
    /// Who it is.
    pub node: NodeId,
    /// Whether there is a lane to it.
    pub is_up: bool,
    /// Whether it orders; the others stand by.
    pub is_in_charge: bool,
}

impl Core {
    pub(crate) fn new(
        (node, incarnation): (NodeId, Incarnation),
        limits: Limits,
        seed: u64,
        now_ns: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            executor: Executor::new(now_ns),
            view: RefCell::new(View::new(limits)),
            submissions: RefCell::new(Submissions::new(node, incarnation)),
            appends: RefCell::default(),
            reached: RefCell::default(),
            calls: RefCell::default(),
            links: RefCell::default(),
            folds: RefCell::default(),
            least: Cell::new(None),
            ended: Cell::new(None),
            sequencers: RefCell::default(),
            counts: Counts::default(),
            places_max: Cell::new(u64::MAX),
            tails: Cell::new(0),
            random: Cell::new(seed | 1),
        })
    }

    pub(crate) fn applied(&self) -> SeqNum {
        self.view.borrow().applied()
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.view.borrow().epoch()
    }

    /// A number below `limit`, for jitter and to spread reads.
    pub(crate) fn random_below(&self, limit: u64) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x.checked_rem(limit).unwrap_or(0)
    }

    /// Asks a peer; `None` when its lane is not up or too much waits. `message` is given the token
    /// that comes back in the answer. A value goes ahead of the question, into the peer's staging.
    pub(crate) fn ask(
        self: &Rc<Self>,
        peer: Peer,
        hold: Hold,
        value: Option<(RemoteSpan, ValueIn)>,
        message: impl FnOnce(u64, &mut Vec<u8>),
    ) -> Option<Ask> {
        let mut links = self.links.borrow_mut();
        let outbox = links.outbox(peer).filter(|outbox| outbox.takes())?;
        let token = self.calls.borrow_mut().open(peer, hold)?;
        if let Some((to, value)) = value {
            outbox.items.push_back(Item::Write { to, value });
        }
        let mut bytes = Vec::new();
        message(token, &mut bytes);
        outbox.items.push_back(Item::Message(bytes));
        Some(Ask { core: self.clone(), token })
    }

    /// Says something to a peer that is not answered. Whether it will: not when the lane is not up,
    /// or has no room.
    pub(crate) fn say(&self, peer: Peer, message: &Message<'_>) -> bool {
        let mut links = self.links.borrow_mut();
        let outbox = links.outbox(peer).filter(|outbox| outbox.takes());
        outbox.map(|outbox| outbox.items.push_back(Item::Message(message.to_bytes()))).is_some()
    }

    /// Takes an answer that came on a peer's lane.
    pub(crate) fn answered(&self, peer: Peer, token: u64, reply: Reply) {
        let room = self.calls.borrow_mut().answer(peer, token, reply);
        if let (Some(room), Peer::Storage(node)) = (room, peer) {
            let mut links = self.links.borrow_mut();
            if let Some(staging) = links.replica(node).and_then(|found| found.staging.as_mut()) {
                staging.give(room);
            }
            links.change();
        }
    }

    /// A peer hears what is said to it from now on.
    pub(crate) fn open(&self, peer: Peer) {
        let mut links = self.links.borrow_mut();
        if let Some(outbox) = links.outbox(peer) {
            outbox.up = true;
        }
        links.change();
    }

    /// A peer's lane is down.
    pub(crate) fn lost(&self, peer: Peer) {
        let mut links = self.links.borrow_mut();
        if let Some(outbox) = links.outbox(peer) {
            outbox.up = false;
            outbox.items.clear();
        }
        if let Peer::Storage(node) = peer
            && let Some(replica) = links.replica(node)
        {
            replica.staging = None;
        }
        links.change();
        drop(links);
        self.calls.borrow_mut().lose(peer);
        bump(&self.counts.lanes_lost);
    }

    /// Ends when something about the lanes has changed since `version`.
    pub(crate) async fn changed(&self, version: u64) {
        poll_fn(|context| {
            let mut links = self.links.borrow_mut();
            if links.version != version || self.ended.get().is_some() {
                return Poll::Ready(());
            }
            links.wait(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// The same, or some time later: what there was no room for does not always tell of room.
    pub(crate) async fn changed_or(&self, version: u64, backoff: &mut Backoff) {
        let until_ns = self.executor.now_ns().saturating_add(backoff.next_ns(self));
        self.executor.timeout_at(until_ns, self.changed(version)).await.ok();
    }

    /// Whether something waits for the sequencer.
    pub(crate) fn waits(&self) -> bool {
        self.tails.get() > 0 || self.submissions.borrow().unanswered() > 0
    }

    pub(crate) fn asks_tail(self: &Rc<Self>) -> AsksTail {
        self.tails.set(self.tails.get() + 1);
        AsksTail(self.clone())
    }

    /// Ends when a position is applied, or the client has ended.
    pub(crate) fn reached(self: &Rc<Self>, seq: SeqNum) -> Reached {
        Reached { core: self.clone(), seq, alarm: None }
    }

    /// Waits until a position is applied: true; or there is another epoch: false.
    pub(crate) async fn reached_in(
        self: &Rc<Self>,
        epoch: Epoch,
        seq: SeqNum,
    ) -> Result<bool, Ended> {
        let mut reached = pin!(self.reached(seq));
        loop {
            let version = self.links.borrow().version();
            if self.epoch() != epoch {
                return Ok(false);
            }
            let mut changed = pin!(self.changed(version));
            let either = poll_fn(|context| match reached.as_mut().poll(context) {
                Poll::Ready(reached) => Poll::Ready(Some(reached)),
                Poll::Pending => changed.as_mut().poll(context).map(|()| None),
            });
            if let Some(reached) = either.await {
                return reached.map(|()| true);
            }
        }
    }

    /// Nothing more will happen: whoever waits is told.
    pub(crate) fn end(&self, why: Ended) {
        if self.ended.get().is_some() {
            return;
        }
        self.ended.set(Some(why));
        self.appends.borrow_mut().end();
        self.reached.borrow_mut().fire_all();
        let nodes: Vec<_> = self.links.borrow().replicas.iter().map(|found| found.node).collect();
        self.lost(Peer::Sequencer);
        for node in nodes {
            self.lost(Peer::Storage(node));
        }
    }
}

impl Links {
    pub(crate) fn replica(&mut self, node: NodeId) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.node == node)
    }

    pub(crate) fn outbox(&mut self, peer: Peer) -> Option<&mut Outbox> {
        match peer {
            Peer::Sequencer => Some(&mut self.sequencer),
            Peer::Storage(node) => self.replica(node).map(|replica| &mut replica.outbox),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Something has changed that tasks may wait for.
    pub(crate) fn change(&mut self) {
        self.version += 1;
        for waker in self.changed.drain(..) {
            waker.wake();
        }
    }

    fn wait(&mut self, waker: &Waker) {
        if !self.changed.iter().any(|known| known.will_wake(waker)) {
            self.changed.push(waker.clone());
        }
    }
}

impl Replica {
    pub(crate) fn new(node: NodeId) -> Self {
        Self { node, staging: None, outbox: Outbox::default() }
    }
}

impl Outbox {
    fn takes(&self) -> bool {
        self.up && self.items.len() < OUTBOX_MAX
    }
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next_ns: PAUSE_FIRST_NS, max_ns: PAUSE_MAX_NS }
    }

    /// For dialling.
    pub(crate) fn of_dials() -> Self {
        Self { next_ns: PAUSE_FIRST_NS, max_ns: DIAL_PAUSE_MAX_NS }
    }

    /// How long to wait before the next attempt, in ns.
    pub(crate) fn next_ns(&mut self, core: &Core) -> u64 {
        let pause_ns = self.next_ns;
        self.next_ns = (pause_ns * 2).min(self.max_ns);
        pause_ns + core.random_below(pause_ns / 2)
    }
}

impl Drop for AsksTail {
    fn drop(&mut self) {
        self.0.tails.set(self.0.tails.get() - 1);
    }
}

impl Future for Ask {
    type Output = Result<Reply, Lost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.calls.borrow_mut().poll(self.token, context)
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.core.calls.borrow_mut().abandon(self.token);
    }
}

impl Future for Reached {
    type Output = Result<(), Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.core.applied() >= this.seq {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = this.core.ended.get() {
            return Poll::Ready(Err(ended));
        }
        let mut reached = this.core.reached.borrow_mut();
        match this.alarm {
            Some(alarm) => reached.update(alarm, context.waker()),
            None => this.alarm = Some(reached.set(this.seq.0, context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm {
            self.core.reached.borrow_mut().cancel(alarm);
        }
    }
}

/// Adds one to a counter.
pub(crate) fn bump(count: &Cell<u64>) {
    count.set(count.get().wrapping_add(1));
}
