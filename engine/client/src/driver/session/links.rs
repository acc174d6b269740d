//! Dialling, and what is kept per lane.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use halfmoon_transport::{
    Access, DownReason, Endpoint, HeapMemory, LaneId, Memory, RegionId, Transport,
};
use halfmoon_wire::{Epoch, Hello, Message, NodeId, Role, SeqNum};

use super::Session;
use crate::calls::Peer;
use crate::core::{Backoff, Core, Replica};
use crate::directory::{Directory, Places};

/// One peer that is dialled for as long as the client lives.
pub(super) struct Link {
    state: LinkState,
    backoff: Backoff,
    /// Where it was dialled last.
    address: String,
}

enum LinkState {
    Down { retry_at_ns: u64 },
    Dialling(LaneId),
    Up(LaneId),
}

/// A storage node.
pub(super) struct StorageLink {
    pub(super) node: NodeId,
    pub(super) link: Link,
    word: Option<Word>,
}

/// Where a node writes its watermarks of one epoch.
struct Word {
    epoch: Epoch,
    region: RegionId,
    memory: Arc<HeapMemory>,
    seen: u64,
}

impl Default for Link {
    fn default() -> Self {
        let state = LinkState::Down { retry_at_ns: 0 };
        Self { state, backoff: Backoff::of_dials(), address: String::new() }
    }
}

impl Link {
    pub(super) fn lane(&self) -> Option<LaneId> {
        match self.state {
            LinkState::Down { .. } => None,
            LinkState::Dialling(lane) | LinkState::Up(lane) => Some(lane),
        }
    }

    pub(super) fn lane_up(&self) -> Option<LaneId> {
        match self.state {
            LinkState::Up(lane) => Some(lane),
            LinkState::Down { .. } | LinkState::Dialling(_) => None,
        }
    }

    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        match self.state {
            LinkState::Down { retry_at_ns } => Some(retry_at_ns),
            LinkState::Dialling(_) | LinkState::Up(_) => None,
        }
    }

    /// The next failure is the first again.
    pub(super) fn worked(&mut self) {
        self.backoff = Backoff::of_dials();
    }

    /// The lane is up.
    pub(super) fn is_up(&mut self, lane: LaneId) {
        self.state = LinkState::Up(lane);
    }

    /// Whether it was dialled there.
    pub(super) fn is_at(&self, address: &str) -> bool {
        self.address == address
    }

    /// Not to be dialled before this time, in ns.
    pub(super) fn rest_until(&mut self, at_ns: u64) {
        self.state = LinkState::Down { retry_at_ns: at_ns };
    }

    /// To be dialled at once, and often, unless it is up.
    pub(super) fn hurry(&mut self) {
        self.backoff = Backoff::of_dials();
        if let LinkState::Down { retry_at_ns } = &mut self.state {
            *retry_at_ns = 0;
        }
    }

    /// Somewhere else: worth an attempt at once.
    pub(super) fn moved(&mut self, address: &str) {
        if self.address != address
            && let LinkState::Down { retry_at_ns } = &mut self.state
        {
            *retry_at_ns = 0;
        }
    }

    pub(super) fn failed(&mut self, core: &Core) {
        let pause_ns = self.backoff.next_ns(core);
        let retry_at_ns = core.executor.now_ns().saturating_add(pause_ns);
        self.state = LinkState::Down { retry_at_ns };
    }

    pub(super) fn dial<T: Transport>(
        &mut self,
        core: &Core,
        address: Option<&str>,
        endpoint: &mut Endpoint<T>,
    ) {
        let Some(address) = address else { return self.failed(core) };
        address.clone_into(&mut self.address);
        match endpoint.dial(address) {
            Ok(lane) => self.state = LinkState::Dialling(lane),
            Err(error) => {
                tracing::warn!(%error, address, "cannot dial");
                self.failed(core);
            }
        }
    }
}

impl StorageLink {
    fn new(node: NodeId) -> Self {
        Self { node, link: Link::default(), word: None }
    }

    /// A watermark that was not seen before, and of which epoch it is.
    pub(super) fn watermark(&mut self) -> Option<(Epoch, SeqNum)> {
        let word = self.word.as_mut()?;
        let value = u64::from_le(word.memory.words().first()?.load(Ordering::Acquire));
        if value == word.seen {
            return None;
        }
        word.seen = value;
        Some((word.epoch, SeqNum(value)))
    }
}

impl<D: Directory> Session<D> {
    /// Whose lane it is, once it has introduced itself.
    pub(super) fn peer(&self, lane: LaneId) -> Option<Peer> {
        if self.sequencers.in_charge() == Some(lane) {
            return Some(Peer::Sequencer);
        }
        let found = self.storage.iter().find(|link| link.link.lane_up() == Some(lane))?;
        Some(Peer::Storage(found.node))
    }

    /// Takes what the directory knows now.
    pub(super) fn learn<T: Transport>(&mut self, places: Places, endpoint: &mut Endpoint<T>) {
        self.learn_sequencers(&places.sequencers, endpoint);
        for (node, address) in &places.storage {
            let link = self.storage.iter_mut().find(|link| link.node == *node);
            if let (Some(link), Some(address)) = (link, address) {
                link.link.moved(address);
            }
        }
        // Later, the sequencer says who the members are.
        if self.core.epoch() == Epoch(0) {
            let members: Vec<_> = places.storage.iter().map(|(node, _)| *node).collect();
            self.set_members(&members);
        }
        self.places = places;
    }

    /// The nodes that hold the log, and the state.
    pub(super) fn set_members(&mut self, members: &[NodeId]) {
        let gone = self.storage.extract_if(.., |link| !members.contains(&link.node));
        self.to_close.extend(gone.filter_map(|link| link.link.lane()));
        for node in members {
            if !self.storage.iter().any(|link| link.node == *node) {
                self.storage.push(StorageLink::new(*node));
            }
        }
        let mut links = self.core.links.borrow_mut();
        let gone: Vec<_> =
            links.replicas.extract_if(.., |found| !members.contains(&found.node)).collect();
        for node in members {
            if links.replica(*node).is_none() {
                links.replicas.push(Replica::new(*node));
            }
        }
        links.change();
        drop(links);
        for replica in gone {
            self.core.calls.borrow_mut().lose(Peer::Storage(replica.node));
        }
    }

    /// Dials whoever is due.
    pub(super) fn dial<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) {
        self.dial_sequencers(endpoint);
        let Self { core, places, storage, directory, .. } = self;
        let now_ns = core.executor.now_ns();
        let due = |link: &Link| link.retry_at_ns().is_some_and(|at| at <= now_ns);
        let mut unknown = false;
        for StorageLink { node, link, .. } in storage.iter_mut().filter(|found| due(&found.link)) {
            let place = places.storage.iter().find(|(known, _)| known == node);
            let address = place.and_then(|(_, address)| address.as_deref());
            unknown |= address.is_none();
            link.dial(core, address, endpoint);
        }
        if unknown {
            directory.ask();
        }
    }

    /// Gives each node a word for its watermarks that no other epoch has used.
    pub(super) fn name_words<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) {
        let epoch = self.core.epoch();
        if epoch == Epoch(0) {
            return;
        }
        for link in &mut self.storage {
            let Some(lane) = link.link.lane_up() else { continue };
            if link.word.as_ref().is_some_and(|word| word.epoch == epoch) {
                continue;
            }
            if let Some(old) = link.word.take() {
                endpoint.withdraw(old.region);
            }
            let memory = Arc::new(HeapMemory::new(size_of::<u64>()));
            match endpoint.expose(memory.clone(), Access::Lane(lane)) {
                Ok(region) => {
                    let here = Message::WatermarkHere { epoch, region: region.0 };
                    if self.core.say(Peer::Storage(link.node), &here) {
                        link.word = Some(Word { epoch, region, memory, seen: 0 });
                    } else {
                        // A node that takes nothing would never learn of its word.
                        endpoint.withdraw(region);
                        endpoint.close(lane);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, node = %link.node, "no word for watermarks");
                    endpoint.close(lane);
                }
            }
        }
    }

    /// A lane is up; whether the right node is there, its hello tells.
    pub(super) fn up(&mut self, lane: LaneId, hello: &[u8], dialled: bool) {
        let expected = self.expected(lane).filter(|_| dialled);
        let Some((role, node)) = expected.filter(|who| self.introduces(hello, *who)) else {
            self.to_close.push(lane);
            return;
        };
        if role == Role::Storage {
            if let Some(found) = self.storage.iter_mut().find(|found| found.node == node) {
                found.link.state = LinkState::Up(lane);
                found.link.worked();
                found.word = None;
            }
            self.core.open(Peer::Storage(node));
        } else {
            self.sequencer_up(lane);
        }
    }

    pub(super) fn down(&mut self, lane: LaneId, reason: &DownReason) {
        let peer = if self.sequencer_down(lane) {
            Peer::Sequencer
        } else {
            let found = self.storage.iter_mut().find(|found| found.link.lane() == Some(lane));
            let Some(found) = found else { return };
            found.link.failed(&self.core);
            // Its region went with the lane.
            found.word = None;
            let peer = Peer::Storage(found.node);
            self.core.lost(peer);
            peer
        };
        if reason.is_for_operators() {
            tracing::warn!(?peer, %reason, "a peer cannot be used");
        } else {
            tracing::debug!(?peer, %reason, "a lane is down");
        }
        self.directory.ask();
    }

    /// Who was dialled on a lane.
    fn expected(&self, lane: LaneId) -> Option<(Role, NodeId)> {
        if let Some(node) = self.sequencers.node_of(lane) {
            return Some((Role::Sequencer, node));
        }
        let found = self.storage.iter().find(|found| found.link.lane() == Some(lane))?;
        Some((Role::Storage, found.node))
    }

    fn introduces(&self, hello: &[u8], (role, node): (Role, NodeId)) -> bool {
        match Hello::parse(hello) {
            Ok(hello) => {
                let right = (hello.cluster, hello.role, hello.node) == (self.cluster, role, node);
                if !right {
                    tracing::warn!(?hello, ?role, %node, "another node answers at this address");
                }
                right
            }
            Err(error) => {
                tracing::warn!(%error, ?role, %node, "a node introduces itself wrongly");
                false
            }
        }
    }
}
