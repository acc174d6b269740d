//! Tag → positions in the log, over the applied prefix.

use halfmoon_wire::{SeqNum, Tag, TagPos};
use rustc_hash::FxHashMap;
use thiserror::Error;

/// The read is bounded by a position that is not applied yet: ask again when it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("only applied up to {applied}")]
pub struct NotYet {
    /// The last position applied.
    pub applied: SeqNum,
}

/// A committed record does not continue its sub-stream: the sequencer has broken its word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("record {seq} stands at position {found} of tag {tag:?}, where {expected} comes next")]
pub struct TagError {
    /// The record.
    pub seq: SeqNum,
    /// The sub-stream.
    pub tag: Tag,
    /// The position that comes next.
    pub expected: u64,
    /// What the record says.
    pub found: u64,
}

/// Where the records of each tag are. It holds the window of the log, as the sequencer's table
/// does: garbage collection bounds both.
#[derive(Debug, Default)]
pub struct TagIndex {
    tags: FxHashMap<Tag, Entries>,
    places: u64,
    applied: SeqNum,
}

/// Ascending places of one tag's records; positions are contiguous from `first` on.
#[derive(Debug)]
struct Entries {
    first: u64,
    seqs: Seqs,
}

/// Most tags have one record: the steps of short functions, Inits.
#[derive(Debug)]
enum Seqs {
    One(SeqNum),
    Many(Vec<SeqNum>),
}

impl Seqs {
    fn as_slice(&self) -> &[SeqNum] {
        match self {
            Self::One(seq) => std::slice::from_ref(seq),
            Self::Many(seqs) => seqs,
        }
    }

    fn push(&mut self, seq: SeqNum) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, seq]),
            Self::Many(seqs) => seqs.push(seq),
        }
    }
}

impl Entries {
    fn len(&self) -> u64 {
        self.first + self.seqs.as_slice().len() as u64
    }
}

impl TagIndex {
    /// Adds a record. Records come in order; one that names a tag twice stands in it once.
    pub fn apply(
        &mut self,
        seq: SeqNum,
        tags: impl Iterator<Item = TagPos>,
    ) -> Result<(), TagError> {
        for tag_pos in tags {
            self.add(seq, tag_pos)?;
        }
        self.applied = seq;
        Ok(())
    }

    /// The last position applied.
    #[must_use]
    pub const fn applied(&self) -> SeqNum {
        self.applied
    }

    /// The last record of the tag at or before `max`.
    pub fn read_prev(&self, tag: Tag, max: SeqNum) -> Result<Option<SeqNum>, NotYet> {
        self.wait_for(max)?;
        let seqs = self.seqs(tag);
        let after = seqs.partition_point(|seq| *seq <= max);
        Ok(after.checked_sub(1).and_then(|index| seqs.get(index)).copied())
    }

    /// The first record of the tag at or after `min`, among those applied.
    pub fn read_next(&self, tag: Tag, min: SeqNum) -> Result<Option<SeqNum>, NotYet> {
        self.wait_for(min)?;
        let seqs = self.seqs(tag);
        Ok(seqs.get(seqs.partition_point(|seq| *seq < min)).copied())
    }

    /// The record at `position` of the tag, if it is applied and in the window.
    #[must_use]
    pub fn at(&self, tag: Tag, position: u64) -> Option<SeqNum> {
        let entries = self.tags.get(&tag)?;
        let index = usize::try_from(position.checked_sub(entries.first)?).ok()?;
        entries.seqs.as_slice().get(index).copied()
    }

    /// The tag's length: last position in the window + 1.
    #[must_use]
    pub fn len(&self, tag: Tag) -> u64 {
        self.tags.get(&tag).map_or(0, Entries::len)
    }

    /// All applied records of the tag in the window, ascending.
    #[must_use]
    pub fn seqs(&self, tag: Tag) -> &[SeqNum] {
        self.tags.get(&tag).map_or(&[], |entries| entries.seqs.as_slice())
    }

    /// How many tags there are.
    #[must_use]
    pub fn tags(&self) -> usize {
        self.tags.len()
    }

    /// How many places of records in tags there are.
    #[must_use]
    pub const fn places(&self) -> u64 {
        self.places
    }

    fn wait_for(&self, bound: SeqNum) -> Result<(), NotYet> {
        if bound <= self.applied { Ok(()) } else { Err(NotYet { applied: self.applied }) }
    }

    fn add(&mut self, seq: SeqNum, tag_pos: TagPos) -> Result<(), TagError> {
        let (tag, found) = (tag_pos.tag(), tag_pos.position());
        let Some(entries) = self.tags.get_mut(&tag) else {
            self.tags.insert(tag, Entries { first: found, seqs: Seqs::One(seq) });
            self.places += 1;
            return Ok(());
        };
        let expected = entries.len();
        if entries.seqs.as_slice().last() == Some(&seq) && found + 1 == expected {
            return Ok(());
        }
        if found != expected {
            return Err(TagError { seq, tag, expected, found });
        }
        entries.seqs.push(seq);
        self.places += 1;
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests run on 64 bits")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bounded_reads_agree_with_a_scan_of_the_log(
            log in prop::collection::vec(prop::collection::btree_set(0u64..4, 0..3), 0..30),
            reads in prop::collection::vec((0u64..5, 0u64..34), 0..30),
        ) {
            let mut index = TagIndex::default();
            for (at, tags) in log.iter().enumerate() {
                let seq = SeqNum(at as u64 + 1);
                let tags: Vec<_> =
                    tags.iter().map(|tag| TagPos::new(Tag(*tag), index.len(Tag(*tag)))).collect();
                index.apply(seq, tags.into_iter()).unwrap();
            }
            let applied = log.len() as u64;
            prop_assert_eq!(index.places(), log.iter().map(|tags| tags.len() as u64).sum::<u64>());
            let of = |tag: u64| -> Vec<u64> {
                (1..=applied).filter(|seq| log[*seq as usize - 1].contains(&tag)).collect()
            };
            for (tag, bound) in reads {
                let all = of(tag);
                prop_assert_eq!(index.len(Tag(tag)), all.len() as u64);
                for (position, seq) in all.iter().enumerate() {
                    prop_assert_eq!(index.at(Tag(tag), position as u64), Some(SeqNum(*seq)));
                }
                prop_assert_eq!(index.at(Tag(tag), all.len() as u64), None);
                let prev = index.read_prev(Tag(tag), SeqNum(bound));
                let next = index.read_next(Tag(tag), SeqNum(bound));
                if bound > applied {
                    prop_assert_eq!(prev, Err(NotYet { applied: SeqNum(applied) }));
                    prop_assert_eq!(next, Err(NotYet { applied: SeqNum(applied) }));
                } else {
                    let below = all.iter().rev().find(|seq| **seq <= bound);
                    prop_assert_eq!(prev, Ok(below.map(|seq| SeqNum(*seq))));
                    let above = all.iter().find(|seq| **seq >= bound);
                    prop_assert_eq!(next, Ok(above.map(|seq| SeqNum(*seq))));
                }
            }
        }
    }

    #[test]
    fn positions_go_on_after_a_window_that_begins_late() {
        let mut index = TagIndex::default();
        index.apply(SeqNum(40), [TagPos::new(Tag(1), 7)].into_iter()).unwrap();
        index.apply(SeqNum(41), [TagPos::new(Tag(1), 8)].into_iter()).unwrap();
        assert_eq!(index.len(Tag(1)), 9);
        assert_eq!(index.at(Tag(1), 8), Some(SeqNum(41)));
        assert_eq!(index.at(Tag(1), 6), None);
        let error = index.apply(SeqNum(42), [TagPos::new(Tag(1), 8)].into_iter()).unwrap_err();
        assert_eq!((error.expected, error.found), (9, 8));
    }

    #[test]
    fn a_record_that_names_a_tag_twice_stands_in_it_once() {
        let mut index = TagIndex::default();
        let twice = [TagPos::new(Tag(1), 0), TagPos::new(Tag(1), 0)];
        index.apply(SeqNum(1), twice.into_iter()).unwrap();
        assert_eq!(index.places(), 1);
        assert_eq!(index.seqs(Tag(1)), [SeqNum(1)]);
    }
}
