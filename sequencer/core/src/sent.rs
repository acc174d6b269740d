//! Which appends of one engine incarnation are in the log: exactly those, and not "all up to the
//! highest", because a refused append leaves a hole that its resubmission may fill.

use std::collections::VecDeque;

use halfmoon_wire::{LocalId, broken};

/// Most chunks of 1024 ids that are kept for one incarnation between what it has reported as
/// answered and its newest append. An engine that goes beyond is told `Overloaded`.
pub const SENT_CHUNKS_MAX: usize = 1024;

const WORDS: usize = 16;
const CHUNK_IDS: u64 = WORDS as u64 * 64;

/// A set of local ids, of which a growing prefix is known to be answered and is forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct SentIds {
    answered: u64,
    /// Ascending by number; chunks without an id are left out.
    chunks: VecDeque<Chunk>,
}

#[derive(Clone, Debug)]
struct Chunk {
    number: u64,
    bits: [u64; WORDS],
}

impl SentIds {
    /// Whether the id is in the log, or was answered, which means that it is never sent again.
    pub(crate) fn contains(&self, id: LocalId) -> bool {
        if id.0 <= self.answered {
            return true;
        }
        if broken!(DedupByHighest) {
            return self.chunks.back().is_some_and(|last| last.highest() >= id.0);
        }
        let (number, word, bit) = place(id);
        let found = match self.chunks.back() {
            Some(last) if last.number == number => Some(last),
            _ => self.find(number).ok().and_then(|index| self.chunks.get(index)),
        };
        found.is_some_and(|chunk| chunk.bits[word] & bit != 0)
    }

    /// Whether there is room to note the id.
    pub(crate) fn has_room(&self, id: LocalId) -> bool {
        self.chunks.len() < SENT_CHUNKS_MAX || self.find(place(id).0).is_ok()
    }

    /// Notes that the id is in the log.
    pub(crate) fn insert(&mut self, id: LocalId) {
        if broken!(DedupForgets) {
            return;
        }
        let (number, word, bit) = place(id);
        let index = match self.find(number) {
            Ok(index) => index,
            Err(index) => {
                self.chunks.insert(index, Chunk { number, bits: [0; WORDS] });
                index
            }
        };
        self.chunks[index].bits[word] |= bit;
    }

    /// All up to here are answered. A lower bound than an earlier one changes nothing.
    pub(crate) fn answered(&mut self, up_to: LocalId) {
        self.answered = self.answered.max(up_to.0);
        let below = self.answered / CHUNK_IDS;
        while self.chunks.front().is_some_and(|chunk| chunk.number < below) {
            self.chunks.pop_front();
        }
    }

    fn find(&self, number: u64) -> Result<usize, usize> {
        match self.chunks.back() {
            None => Err(0),
            Some(last) if last.number == number => Ok(self.chunks.len() - 1),
            Some(last) if last.number < number => Err(self.chunks.len()),
            Some(_) => self.chunks.binary_search_by_key(&number, |chunk| chunk.number),
        }
    }
}

impl Chunk {
    /// The highest id that is noted here.
    fn highest(&self) -> u64 {
        let word = self.bits.iter().rposition(|bits| *bits != 0).unwrap_or(0);
        let bit = u64::from(63 - self.bits[word].leading_zeros().min(63));
        self.number * CHUNK_IDS + word as u64 * 64 + bit
    }
}

/// Chunk, word and bit of an id.
fn place(id: LocalId) -> (u64, usize, u64) {
    let within = id.0 % CHUNK_IDS;
    let word = usize::try_from(within / 64).unwrap_or(0);
    (id.0 / CHUNK_IDS, word, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_are_remembered_one_by_one(
            steps in prop::collection::vec((0u8..3, 1u64..5000), 0..300)
        ) {
            let (mut ids, mut model, mut answered) = (SentIds::default(), BTreeSet::new(), 0);
            for (kind, id) in steps {
                match kind {
                    0 | 1 => {
                        prop_assert_eq!(ids.contains(LocalId(id)), id <= answered || model.contains(&id));
                        if !ids.contains(LocalId(id)) {
                            ids.insert(LocalId(id));
                            model.insert(id);
                        }
                    }
                    _ => {
                        answered = answered.max(id / 2);
                        ids.answered(LocalId(id / 2));
                    }
                }
            }
            for id in 1..5000 {
                prop_assert_eq!(ids.contains(LocalId(id)), id <= answered || model.contains(&id));
            }
        }
    }

    #[test]
    fn an_engine_that_never_says_what_is_answered_is_bounded() {
        let mut ids = SentIds::default();
        for chunk in 0..SENT_CHUNKS_MAX as u64 {
            assert!(ids.has_room(LocalId(chunk * CHUNK_IDS + 1)));
            ids.insert(LocalId(chunk * CHUNK_IDS + 1));
        }
        assert!(ids.has_room(LocalId(2)));
        assert!(!ids.has_room(LocalId(SENT_CHUNKS_MAX as u64 * CHUNK_IDS)));
        ids.answered(LocalId(CHUNK_IDS));
        assert!(ids.has_room(LocalId(SENT_CHUNKS_MAX as u64 * CHUNK_IDS)));
    }
}
