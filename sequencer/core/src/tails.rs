//! Questions for the tail. The answer is the last position ordered when it was asked, given only
//! once a quorum of storage nodes has confirmed, *after* the question, that no higher epoch has been
//! promised: a sequencer that was deposed would otherwise answer with a tail that is long past.

use std::collections::VecDeque;

use halfmoon_wire::{NodeId, SeqNum, broken};

/// Most questions that wait at the same time.
pub const QUESTIONS_MAX: usize = 1 << 16;

/// As many questions wait as may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{QUESTIONS_MAX} questions for the tail wait already")]
pub struct TailsFull;

/// Questions of askers `A`, which wait in rounds: one question to the storage nodes serves all that
/// were asked before it.
#[derive(Clone, Debug)]
pub struct Tails<A> {
    round: u64,
    /// Whether the current round is still open for questions: not asked of any node yet.
    open: bool,
    waiting: VecDeque<(u64, A, SeqNum)>,
    confirmed: Vec<(NodeId, u64)>,
}

impl<A> Tails<A> {
    /// No question waits.
    #[must_use]
    pub fn new(members: &[NodeId]) -> Self {
        let confirmed = members.iter().map(|member| (*member, 0)).collect();
        Self { round: 0, open: false, waiting: VecDeque::new(), confirmed }
    }

    /// Takes a question; `tail` is the last position ordered now.
    pub fn ask(&mut self, asker: A, tail: SeqNum) -> Result<(), TailsFull> {
        if self.waiting.len() >= QUESTIONS_MAX {
            return Err(TailsFull);
        }
        if !self.open {
            self.open = true;
            self.round += 1;
        }
        self.waiting.push_back((self.round, asker, tail));
        Ok(())
    }

    /// The token of a `Confirm` to be sent to every storage node now, if questions came in since the
    /// last one.
    pub fn next_round(&mut self) -> Option<u64> {
        std::mem::take(&mut self.open).then_some(self.round)
    }

    /// The token of the `Confirm` that a node which has come back must be asked, as what it was asked
    /// before may be lost.
    #[must_use]
    pub fn last_round(&self) -> Option<u64> {
        let asked = self.round - u64::from(self.open);
        self.waiting.front().filter(|(round, ..)| *round <= asked).map(|_| asked)
    }

    /// The node has confirmed the epoch, asked with this token.
    pub fn confirmed(&mut self, node: NodeId, token: u64) {
        let asked = self.round - u64::from(self.open);
        let member = self.confirmed.iter_mut().find(|(member, _)| *member == node);
        if let Some((_, round)) = member.filter(|_| token <= asked) {
            *round = token.max(*round);
        }
    }

    /// The next question that is answered, and the answer.
    pub fn next_answer(&mut self) -> Option<(A, SeqNum)> {
        let (round, ..) = self.waiting.front()?;
        let confirmed = self.confirmed.iter().filter(|(_, up_to)| up_to >= round).count();
        if confirmed < self.confirmed.len() / 2 + 1 && !broken!(TailUnconfirmed) {
            return None;
        }
        self.waiting.pop_front().map(|(_, asker, tail)| (asker, tail))
    }

    /// Drops the questions of askers that are gone.
    pub fn forget(&mut self, is_gone: impl Fn(&A) -> bool) {
        self.waiting.retain(|(_, asker, _)| !is_gone(asker));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_answered_only_by_confirmations_asked_for_after_the_question() {
        let mut tails = Tails::new(&[NodeId(1), NodeId(2), NodeId(3)]);
        tails.ask('a', SeqNum(5)).unwrap();
        assert_eq!(tails.last_round(), None, "not asked yet");
        assert_eq!(tails.next_round(), Some(1));
        assert_eq!(tails.next_round(), None);
        tails.ask('b', SeqNum(7)).unwrap();
        tails.confirmed(NodeId(1), 1);
        tails.confirmed(NodeId(1), 1);
        tails.confirmed(NodeId(9), 1);
        tails.confirmed(NodeId(3), 2);
        assert_eq!(tails.next_answer(), None, "one node is no quorum");
        tails.confirmed(NodeId(2), 1);
        assert_eq!(tails.next_answer(), Some(('a', SeqNum(5))));
        assert_eq!(tails.next_answer(), None, "b was asked after that round had begun");
        assert_eq!(tails.next_round(), Some(2));
        assert_eq!(tails.last_round(), Some(2));
        tails.confirmed(NodeId(3), 2);
        tails.confirmed(NodeId(2), 2);
        assert_eq!(tails.next_answer(), Some(('b', SeqNum(7))));
        assert_eq!(tails.last_round(), None);
    }

    #[test]
    fn waiting_questions_are_bounded_and_those_of_the_gone_are_dropped() {
        let mut tails = Tails::new(&[NodeId(1)]);
        for _ in 0..QUESTIONS_MAX {
            tails.ask(1, SeqNum(1)).unwrap();
        }
        assert_eq!(tails.ask(2, SeqNum(1)), Err(TailsFull));
        tails.forget(|asker| *asker == 1);
        tails.ask(2, SeqNum(1)).unwrap();
    }
}
