//! The lanes to the storage nodes, which the sequencer dials, and dials again.

use halfmoon_transport::LaneId;
use halfmoon_wire::NodeId;

/// Pause before a storage node is dialled again, in ns; doubled with each failure in a row.
const BACKOFF_MIN_NS: u64 = 5_000_000;

/// Longest pause, in ns.
const BACKOFF_MAX_NS: u64 = 500_000_000;

/// A storage node and the lane to it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    state: State,
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// To be looked up at this time, in ns.
    Waiting(u64),
    /// The metadata store is asked for its address.
    Locating,
    Dialling(LaneId),
    /// Without a promise as yet.
    Up(LaneId),
    /// The promise is given.
    Sealed(LaneId),
}

#[derive(Debug)]
pub(crate) struct Trio {
    links: Vec<Link>,
}

impl Trio {
    pub(crate) const fn new() -> Self {
        Self { links: Vec::new() }
    }

    /// From now on it is these nodes; returns the lanes to those that are no longer among them.
    pub(crate) fn set_nodes(&mut self, nodes: &[NodeId]) -> Vec<LaneId> {
        let gone = self.links.extract_if(.., |link| !nodes.contains(&link.node));
        let gone = gone.filter_map(|link| link.lane()).collect();
        for node in nodes {
            if !self.links.iter().any(|link| link.node == *node) {
                self.links.push(Link { node: *node, state: State::Waiting(0), failures: 0 });
            }
        }
        gone
    }

    /// The lanes that are up and not sealed.
    pub(crate) fn unsealed_lanes(&self) -> Vec<LaneId> {
        let lane = |link: &Link| if let State::Up(lane) = link.state { Some(lane) } else { None };
        self.links.iter().filter_map(lane).collect()
    }

    /// Whether more than half of the nodes can be reached.
    pub(crate) fn has_quorum(&self) -> bool {
        let is_up = |link: &&Link| matches!(link.state, State::Up(_) | State::Sealed(_));
        self.links.iter().filter(is_up).count() > self.links.len() / 2
    }

    /// A node whose address is to be looked up now.
    pub(crate) fn next_lookup(&mut self, now_ns: u64) -> Option<NodeId> {
        let is_due = |link: &&mut Link| matches!(link.state, State::Waiting(at) if at <= now_ns);
        let link = self.links.iter_mut().find(is_due)?;
        link.state = State::Locating;
        Some(link.node)
    }

    /// When the next lookup is due, in ns.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let due = |link: &Link| match link.state {
            State::Waiting(at) => Some(at),
            State::Locating | State::Dialling(_) | State::Up(_) | State::Sealed(_) => None,
        };
        self.links.iter().filter_map(due).min()
    }

    /// Whether the address of this node is waited for.
    pub(crate) fn is_locating(&self, node: NodeId) -> bool {
        let is_it = |link: &Link| link.node == node && matches!(link.state, State::Locating);
        self.links.iter().any(is_it)
    }

    pub(crate) fn dialling(&mut self, node: NodeId, lane: LaneId) {
        self.set(node, State::Dialling(lane));
    }

    /// The node could not be found or dialled.
    pub(crate) fn failed(&mut self, now_ns: u64, node: NodeId) {
        if let Some(link) = self.links.iter_mut().find(|link| link.node == node) {
            let pause = BACKOFF_MIN_NS.saturating_mul(1 << link.failures.min(16));
            link.failures = link.failures.saturating_add(1);
            link.state = State::Waiting(now_ns.saturating_add(pause.min(BACKOFF_MAX_NS)));
        }
    }

    /// The node that this lane was dialled for.
    pub(crate) fn node_of(&self, lane: LaneId) -> Option<NodeId> {
        self.links.iter().find(|link| link.lane() == Some(lane)).map(|link| link.node)
    }

    pub(crate) fn up(&mut self, node: NodeId, lane: LaneId) {
        self.set(node, State::Up(lane));
    }

    pub(crate) fn sealed(&mut self, lane: LaneId) {
        if let Some(link) = self.links.iter_mut().find(|link| link.lane() == Some(lane)) {
            link.state = State::Sealed(lane);
        }
    }

    /// The node does its part: its next failure is the first in a row.
    pub(crate) fn proven(&mut self, node: NodeId) {
        if let Some(link) = self.links.iter_mut().find(|link| link.node == node) {
            link.failures = 0;
        }
    }

    /// The lane to a node that is sealed.
    pub(crate) fn lane_to(&self, node: NodeId) -> Option<LaneId> {
        let link = self.links.iter().find(|link| link.node == node)?;
        if let State::Sealed(lane) = link.state { Some(lane) } else { None }
    }

    /// The lanes to all nodes that are sealed.
    pub(crate) fn sealed_lanes(&self) -> Vec<LaneId> {
        self.links.iter().filter_map(|link| self.lane_to(link.node)).collect()
    }

    /// Each node, and whether it is sealed.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, bool)> + '_ {
        self.links.iter().map(|link| (link.node, matches!(link.state, State::Sealed(_))))
    }

    fn set(&mut self, node: NodeId, state: State) {
        if let Some(link) = self.links.iter_mut().find(|link| link.node == node) {
            link.state = state;
        }
    }
}

impl Link {
    fn lane(&self) -> Option<LaneId> {
        match self.state {
            State::Dialling(lane) | State::Up(lane) | State::Sealed(lane) => Some(lane),
            State::Waiting(_) | State::Locating => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_there_is_looked_for_less_and_less_often_but_always_again() {
        let node = NodeId(4);
        let mut trio = Trio::new();
        trio.set_nodes(&[node]);
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..10 {
            assert_eq!(trio.next_lookup(now), Some(node));
            assert_eq!(trio.next_lookup(u64::MAX), None, "it is being looked for");
            trio.failed(now, node);
            let due = trio.deadline().unwrap();
            assert_eq!(trio.next_lookup(due - 1), None);
            pauses.push(due - now);
            now = due;
        }
        assert_eq!((pauses[0], pauses[1]), (BACKOFF_MIN_NS, 2 * BACKOFF_MIN_NS));
        assert_eq!(pauses[9], BACKOFF_MAX_NS);
    }
}
