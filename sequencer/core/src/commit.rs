//! What a quorum of storage nodes holds.

use halfmoon_wire::{NodeId, SeqNum};

/// The committed position of one epoch, as its sequencer knows it. Feed it only with watermarks of
/// that epoch: one of an older epoch says nothing about this log.
#[derive(Clone, Debug)]
pub struct Commit {
    opening: SeqNum,
    durable: Vec<(NodeId, SeqNum)>,
    committed: SeqNum,
}

impl Commit {
    /// Nothing is known yet. `opening` is the position of the epoch's opening record.
    #[must_use]
    pub fn new(opening: SeqNum, members: &[NodeId]) -> Self {
        let durable = members.iter().map(|member| (*member, SeqNum::ZERO)).collect();
        Self { opening, durable, committed: SeqNum::ZERO }
    }

    /// All up to here is committed; 0 until the opening record is.
    #[must_use]
    pub const fn committed(&self) -> SeqNum {
        self.committed
    }

    /// What each member holds, durable.
    #[must_use]
    pub fn members(&self) -> &[(NodeId, SeqNum)] {
        &self.durable
    }

    /// The node's log is, up to `seq`, the log of this epoch, durable; `tail` is the last position
    /// ordered. Returns the committed position if it grew. A claim beyond the tail, or of a node that
    /// is no member, counts for nothing.
    pub fn durable(&mut self, node: NodeId, seq: SeqNum, tail: SeqNum) -> Option<SeqNum> {
        let member = self.durable.iter_mut().find(|(member, _)| *member == node)?;
        if seq > tail {
            return None;
        }
        member.1 = member.1.max(seq);
        let quorum = self.durable.len() / 2 + 1;
        let holders = |seq| self.durable.iter().filter(|(_, held)| *held >= seq).count();
        let held = self.durable.iter().map(|(_, held)| *held);
        let reached = held.filter(|seq| holders(*seq) >= quorum).max()?;
        // What is older than the opening record may still be outranked by another epoch's log.
        if reached < self.opening || reached <= self.committed {
            return None;
        }
        self.committed = reached;
        Some(reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_commits_and_only_from_the_opening_record_on() {
        let members = [NodeId(1), NodeId(2), NodeId(3)];
        let mut commit = Commit::new(SeqNum(10), &members);
        let tail = SeqNum(100);
        assert_eq!(commit.durable(NodeId(1), SeqNum(9), tail), None);
        assert_eq!(commit.durable(NodeId(2), SeqNum(9), tail), None, "older than the opening");
        assert_eq!(commit.durable(NodeId(2), SeqNum(12), tail), None, "one node is no quorum");
        assert_eq!(commit.durable(NodeId(9), SeqNum(12), tail), None, "no member");
        assert_eq!(commit.durable(NodeId(3), SeqNum(101), tail), None, "beyond what was ordered");
        assert_eq!(commit.durable(NodeId(3), SeqNum(11), tail), Some(SeqNum(11)));
        assert_eq!(commit.durable(NodeId(3), SeqNum(10), tail), None, "watermarks only grow");
        assert_eq!(commit.durable(NodeId(1), SeqNum(50), tail), Some(SeqNum(12)));
        assert_eq!(commit.committed(), SeqNum(12));
    }
}
