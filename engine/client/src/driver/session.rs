//! The lanes of a client: who is dialled, what peers say, what is sent.

mod inbox;
mod links;
mod sequencers;

use std::cell::Cell;
use std::rc::Rc;

use halfmoon_index::Outcome;
use halfmoon_transport::{Endpoint, Event, LaneId, SendError, Source, Transport};
use halfmoon_wire::{Message, NodeId, Refusal, Role, SeqNum};

use crate::calls::Peer;
use crate::core::{Core, Ended, Item, Outbox, bump};
use crate::directory::{Directory, Places};
use crate::value::ValueIn;
use links::StorageLink;
use sequencers::Sequencers;

/// Records applied in one turn, so that a long log keeps nobody waiting.
const APPLY_PER_TURN: usize = 8 * 1024;

/// With appends or questions under way and nothing applied for so long, in ns, the directory is asked whether
/// there is another sequencer.
const STALL_NS: u64 = 100_000_000;

/// See the module.
pub(super) struct Session<D> {
    core: Rc<Core>,
    directory: D,
    cluster: u128,
    role: Role,
    places: Places,
    sequencers: Sequencers,
    storage: Vec<StorageLink>,
    /// Lanes that nobody asked for, or that said something wrong.
    to_close: Vec<LaneId>,
    welcome: Option<Welcome>,
    /// Grows with each welcome and each loss of the sequencer: a catch-up of an earlier one stops.
    visit: Rc<Cell<u64>>,
    /// What was applied when, to notice a stall.
    seen: (SeqNum, u64),
    /// How many lanes have come up or gone down.
    lane_changes: u64,
}

/// What the sequencer on the lane has said.
#[derive(Clone, Copy, Debug)]
struct Welcome {
    /// Between two reports, in ns.
    report_every_ns: u64,
    next_report_ns: u64,
}

impl<D> Session<D> {
    pub(super) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Whose lanes are up.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (Role, NodeId, LaneId)> {
        let storage =
            |found: &StorageLink| Some((Role::Storage, found.node, found.link.lane_up()?));
        let sequencers = self.sequencers.lanes();
        let sequencers = sequencers.map(|(node, lane)| (Role::Sequencer, node, lane));
        sequencers.chain(self.storage.iter().filter_map(storage))
    }

    /// Changes whenever those may have changed.
    pub(super) const fn lanes_version(&self) -> u64 {
        self.lane_changes
    }
}

impl<D: Directory> Session<D> {
    pub(super) fn new(core: Rc<Core>, mut directory: D, cluster: u128, role: Role) -> Self {
        directory.ask();
        Self {
            core,
            directory,
            cluster,
            role,
            places: Places::default(),
            sequencers: Sequencers::default(),
            storage: Vec::new(),
            to_close: Vec::new(),
            welcome: None,
            visit: Rc::default(),
            seen: (SeqNum::ZERO, 0),
            lane_changes: 0,
        }
    }

    /// Takes an event of the endpoint.
    pub(super) fn handle(&mut self, event: Event<'_>) {
        if matches!(event, Event::Up { .. } | Event::Down { .. }) {
            self.lane_changes += 1;
        }
        match event {
            Event::Up { lane, hello, dialled } => self.up(lane, hello, dialled),
            Event::Message { lane, bytes } => {
                if self.to_close.contains(&lane) {
                    return;
                }
                if let Err(fault) = self.message(lane, bytes) {
                    let peer = self.peer(lane);
                    tracing::warn!(?peer, %fault, "a peer broke the protocol; its lane is closed");
                    self.to_close.push(lane);
                }
            }
            // Everything that waits is tried in every turn.
            Event::Written { .. } | Event::Room { .. } => {}
            Event::Down { lane, reason } => self.down(lane, &reason),
        }
    }

    /// Dials who is missing, and names words for watermarks to nodes that have none.
    pub(super) fn connect<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) {
        for lane in self.to_close.drain(..) {
            endpoint.close(lane);
        }
        if let Some(places) = self.directory.poll() {
            self.learn(places, endpoint);
        }
        if self.core.ended.get().is_some() {
            return;
        }
        self.watch_for_stall();
        self.dial(endpoint);
        self.name_words(endpoint);
    }

    /// Takes the watermarks that nodes have written.
    pub(super) fn read_words(&mut self) {
        let mut view = self.core.view.borrow_mut();
        for link in &mut self.storage {
            if let Some((epoch, seq)) = link.watermark() {
                view.watermark(epoch, link.node, seq);
            }
        }
    }

    /// Applies what is committed; returns whether there is more.
    pub(super) fn apply(&mut self) -> bool {
        let core = &self.core;
        if core.ended.get().is_some() {
            return false;
        }
        let before = core.applied();
        let progress = {
            let mut view = core.view.borrow_mut();
            let mut submissions = core.submissions.borrow_mut();
            let progress = view.apply(APPLY_PER_TURN, |record| submissions.applied(record));
            if view.is_open() {
                submissions.opened();
            }
            submissions.settle(view.applied(), view.safe_point());
            progress
        };
        self.show(before);
        self.answer();
        let applied = core.applied();
        if applied > before {
            core.counts.applied.set(core.counts.applied.get() + (applied.0 - before.0));
            core.reached.borrow_mut().fire(applied.0);
        }
        core.view.borrow_mut().trim_cache();
        match progress {
            Ok(progress) => progress.more,
            Err(error) => {
                tracing::error!(%error, "the log breaks its own rules; this engine stops using it");
                core.end(Ended::Broken);
                false
            }
        }
    }

    /// Sends what waits: appends in order, then what was said to each peer.
    pub(super) fn send<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) {
        let nodes = std::mem::take(&mut self.core.links.borrow_mut().to_close);
        for node in nodes {
            if let Some(lane) = self.storage_lane(node) {
                endpoint.close(lane);
            }
        }
        self.report();
        if let Some(lane) = self.sequencers.in_charge() {
            send_outbox(endpoint, lane, &mut self.core.links.borrow_mut().sequencer);
            if self.welcome.is_some() {
                self.send_appends(endpoint, lane);
            }
        }
        let mut links = self.core.links.borrow_mut();
        for link in &self.storage {
            if let Some(lane) = link.link.lane_up()
                && let Some(replica) = links.replica(link.node)
            {
                send_outbox(endpoint, lane, &mut replica.outbox);
            }
        }
    }

    /// When there is something to do even if nothing comes from the network.
    pub(super) fn wake_at_ns(&self) -> Option<u64> {
        let core = &self.core;
        let stall = core.waits().then_some(self.seen.1 + STALL_NS);
        [
            core.executor.next_deadline_ns(),
            core.submissions.borrow().next_retry_ns().filter(|_| self.welcome.is_some()),
            self.welcome.map(|welcome| welcome.next_report_ns),
            self.sequencers.wake_at_ns(),
            stall,
        ]
        .into_iter()
        .chain(self.storage.iter().map(|link| link.link.retry_at_ns()))
        .flatten()
        .min()
    }

    /// Shows the records after `before` to the folds.
    fn show(&self, before: SeqNum) {
        let mut folds = std::mem::take(&mut *self.core.folds.borrow_mut());
        if !folds.is_empty() {
            let view = self.core.view.borrow();
            for seq in before.0 + 1..=view.applied().0 {
                if let Some(record) = view.record(SeqNum(seq)) {
                    folds.iter_mut().for_each(|fold| fold(record));
                }
            }
        }
        let mut kept = self.core.folds.borrow_mut();
        let added = std::mem::replace(&mut *kept, folds);
        kept.extend(added);
    }

    fn answer(&self) {
        let mut submissions = self.core.submissions.borrow_mut();
        let mut appends = self.core.appends.borrow_mut();
        while let Some(answer) = submissions.poll_answer() {
            if let Outcome::Refused(Refusal::Conflict { .. }) = answer.outcome {
                bump(&self.core.counts.conflicts);
            }
            appends.answer(answer.token, answer.outcome);
        }
    }

    fn send_appends<T: Transport>(&mut self, endpoint: &mut Endpoint<T>, lane: LaneId) {
        let now_ns = self.core.executor.now_ns();
        let mut submissions = self.core.submissions.borrow_mut();
        while let Some(message) = submissions.next_to_send(now_ns) {
            match endpoint.send(lane, &[message]) {
                Ok(()) => submissions.sent(now_ns),
                Err(SendError::Full | SendError::Dead) => return,
                Err(error @ SendError::TooLong { .. }) => {
                    tracing::error!(%error, "the sequencer's ring is too small for a record");
                    endpoint.close(lane);
                    return;
                }
            }
        }
    }

    /// Renews the engine's lease.
    fn report(&mut self) {
        let now_ns = self.core.executor.now_ns();
        let Some(welcome) = self.welcome.as_mut() else { return };
        if now_ns < welcome.next_report_ns || self.role != Role::Engine {
            return;
        }
        welcome.next_report_ns = now_ns.saturating_add(welcome.report_every_ns);
        let applied = self.core.applied();
        let safe_point = self.core.least.get().map_or(applied, |least| least.min(applied));
        let answered = self.core.submissions.borrow().answered();
        let report = Message::Report { applied, safe_point, answered };
        self.core.say(Peer::Sequencer, &report);
    }

    /// Nothing moves although something waits for it: perhaps the sequencer is deposed.
    fn watch_for_stall(&mut self) {
        let now_ns = self.core.executor.now_ns();
        let applied = self.core.applied();
        if applied != self.seen.0 || !self.core.waits() {
            self.seen = (applied, now_ns);
        } else if now_ns >= self.seen.1 + STALL_NS {
            self.seen.1 = now_ns;
            self.directory.ask();
        }
    }

    fn storage_lane(&self, node: NodeId) -> Option<LaneId> {
        let link = self.storage.iter().find(|link| link.node == node)?;
        link.link.lane()
    }
}

/// Sends in order until the lane is full.
fn send_outbox<T: Transport>(endpoint: &mut Endpoint<T>, lane: LaneId, outbox: &mut Outbox) {
    while let Some(item) = outbox.items.front() {
        let sent = match item {
            Item::Message(bytes) => endpoint.send(lane, &[bytes]),
            Item::Write { to, value } => endpoint.write(lane, *to, source(value), None),
        };
        match sent {
            Ok(()) => drop(outbox.items.pop_front()),
            Err(SendError::Full | SendError::Dead) => return,
            Err(error @ SendError::TooLong { .. }) => {
                // The question that it belongs to would wait for ever.
                tracing::error!(%error, "a message does not fit the peer's ring");
                endpoint.close(lane);
                return;
            }
        }
    }
}

fn source(value: &ValueIn) -> Source<'_> {
    match value {
        ValueIn::Bytes(bytes) => Source::bytes(bytes),
        ValueIn::Memory { memory, offset, len, .. } => {
            Source::Memory { memory: memory.clone(), offset: *offset, len: *len as usize }
        }
    }
}
