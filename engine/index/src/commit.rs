//! Which position is committed: flushed by a quorum of the epoch's members.

use halfmoon_wire::{Epoch, NodeId, SeqNum, broken};

/// Watermarks of one epoch.
///
/// - A watermark of another epoch counts for nothing: the log that it speaks of may be another.
/// - A watermark counts only once it reaches the epoch's opening record. Below that, a node may
///   hold a recovered suffix that a later recovery does not choose.
/// - So on entering an epoch nothing is committed by it yet; what was applied before stays.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    epoch: Epoch,
    opening: SeqNum,
    marks: Vec<(NodeId, SeqNum)>,
    committed: SeqNum,
}

impl Commit {
    /// Starts over for an epoch whose first record is at `opening`.
    pub fn enter(&mut self, epoch: Epoch, opening: SeqNum, members: &[NodeId]) {
        self.epoch = epoch;
        self.opening = opening;
        self.marks.clear();
        self.marks.extend(members.iter().map(|node| (*node, SeqNum::ZERO)));
        self.committed = if broken!(SuffixNotReplicated) {
            SeqNum(opening.0.saturating_sub(1))
        } else {
            SeqNum::ZERO
        };
    }

    /// Takes a node's watermark; returns the committed position of the current epoch, 0 as long as
    /// there is none. A watermark never sinks within an epoch, so a lower one is ignored.
    pub fn watermark(&mut self, epoch: Epoch, node: NodeId, seq: SeqNum) -> SeqNum {
        if epoch == self.epoch
            && let Some((_, mark)) = self.marks.iter_mut().find(|(member, _)| *member == node)
            && seq > *mark
        {
            *mark = seq;
            self.count();
        }
        self.committed
    }

    /// The committed position of the current epoch; 0 as long as there is none.
    #[must_use]
    pub const fn committed(&self) -> SeqNum {
        self.committed
    }

    /// The quorum's least watermark: with three members, the second largest.
    fn count(&mut self) {
        let quorum = if broken!(CommittedByOne) { 1 } else { self.marks.len() / 2 + 1 };
        // At most a handful of members: counting is cheaper than sorting a copy.
        let reached = |seq| self.marks.iter().filter(|(_, mark)| *mark >= seq).count() >= quorum;
        let marks = self.marks.iter().map(|(_, mark)| *mark);
        let highest = marks.filter(|seq| *seq >= self.opening && reached(*seq)).max();
        self.committed = highest.map_or(self.committed, |seq| seq.max(self.committed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn entered(epoch: u64, opening: u64) -> Commit {
        let mut commit = Commit::default();
        commit.enter(Epoch(epoch), SeqNum(opening), &MEMBERS);
        commit
    }

    #[test]
    fn the_second_largest_of_three_watermarks_is_committed() {
        let mut commit = entered(2, 5);
        assert_eq!(commit.watermark(Epoch(2), NodeId(1), SeqNum(9)), SeqNum(0));
        assert_eq!(commit.watermark(Epoch(2), NodeId(3), SeqNum(7)), SeqNum(7));
        assert_eq!(commit.watermark(Epoch(2), NodeId(2), SeqNum(8)), SeqNum(8));
    }

    #[test]
    fn a_watermark_of_an_old_epoch_counts_for_nothing() {
        let mut commit = entered(2, 5);
        commit.watermark(Epoch(1), NodeId(1), SeqNum(9));
        commit.watermark(Epoch(3), NodeId(3), SeqNum(9));
        assert_eq!(commit.watermark(Epoch(2), NodeId(2), SeqNum(9)), SeqNum(0));
        commit.watermark(Epoch(2), NodeId(1), SeqNum(6));
        commit.enter(Epoch(3), SeqNum(7), &MEMBERS);
        assert_eq!(commit.watermark(Epoch(3), NodeId(2), SeqNum(9)), SeqNum(0));
    }

    #[test]
    fn a_watermark_below_the_opening_record_counts_for_nothing() {
        let mut commit = entered(2, 5);
        commit.watermark(Epoch(2), NodeId(1), SeqNum(4));
        assert_eq!(commit.watermark(Epoch(2), NodeId(2), SeqNum(4)), SeqNum(0));
        commit.watermark(Epoch(2), NodeId(1), SeqNum(5));
        assert_eq!(commit.watermark(Epoch(2), NodeId(3), SeqNum(4)), SeqNum(0));
        assert_eq!(commit.watermark(Epoch(2), NodeId(3), SeqNum(5)), SeqNum(5));
    }

    #[test]
    fn a_stranger_counts_for_nothing() {
        let mut commit = entered(1, 1);
        commit.watermark(Epoch(1), NodeId(1), SeqNum(3));
        assert_eq!(commit.watermark(Epoch(1), NodeId(9), SeqNum(3)), SeqNum(0));
    }

    proptest! {
        #[test]
        fn commit_agrees_with_counting_from_scratch(
            marks in prop::collection::vec((1u64..4, 0u32..4, 0u64..20), 0..40),
        ) {
            let mut commit = entered(2, 5);
            let mut seen = Vec::new();
            for (epoch, node, seq) in marks {
                seen.push((epoch, node, seq));
                let got = commit.watermark(Epoch(epoch), NodeId(node), SeqNum(seq));
                let durable = |at: u64| (1..=3).filter(|node| {
                    seen.iter().any(|(e, n, s)| *e == 2 && n == node && *s >= at)
                }).count() >= 2;
                let expected = (5..20).rev().find(|at| durable(*at)).unwrap_or(0);
                prop_assert_eq!(got, SeqNum(expected));
            }
        }
    }
}
