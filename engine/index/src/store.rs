//! Whole records in memory, by position: big append-only chunks, of which the oldest are dropped.

use std::collections::VecDeque;

use halfmoon_wire::{RecordRef, SeqNum, limits};

/// Bytes of a chunk. Several of the longest records fit.
const CHUNK_BYTES: usize = 1 << 20;

const _: () = assert!(limits::RECORD_MAX_BYTES <= CHUNK_BYTES);

/// Records of a contiguous range of positions.
#[derive(Debug)]
pub(crate) struct Store {
    chunks: VecDeque<Vec<u8>>,
    /// Number of the first chunk; numbers grow for ever.
    first_chunk: u32,
    places: VecDeque<Place>,
    /// Position of the first record, if there is one.
    first: SeqNum,
    /// A chunk that was dropped, to be used again.
    spare: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    chunk: u32,
    offset: u32,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            first_chunk: 0,
            places: VecDeque::new(),
            first: SeqNum(1),
            spare: None,
        }
    }

    /// Bytes of the chunks.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES
    }

    /// Adds the record after the last one; a store that is empty begins with it.
    pub(crate) fn push(&mut self, record: &RecordRef<'_>) {
        let bytes = record.bytes();
        if self.chunks.back().is_none_or(|chunk| chunk.len() + bytes.len() > CHUNK_BYTES) {
            let chunk = self.spare.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
            self.chunks.push_back(chunk);
        }
        if self.places.is_empty() {
            self.first = record.seq();
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        let offset = u32::try_from(chunk.len()).expect("a chunk is smaller than 4 GiB");
        let last = u32::try_from(last).expect("there are fewer than 2^32 chunks in memory");
        chunk.extend_from_slice(bytes);
        self.places.push_back(Place { chunk: self.first_chunk.wrapping_add(last), offset });
    }

    /// The record at `seq`, if it is here.
    pub(crate) fn record(&self, seq: SeqNum) -> Option<RecordRef<'_>> {
        let index = usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?;
        let place = self.places.get(index)?;
        let chunk = self.chunks.get(self.chunk_index(*place))?;
        RecordRef::parse(chunk.get(place.offset as usize..)?).ok()
    }

    /// Drops the records after `seq`.
    pub(crate) fn truncate_after(&mut self, seq: SeqNum) {
        let keep = usize::try_from((seq.0 + 1).saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        let Some(place) = self.places.get(keep).copied() else { return };
        let index = self.chunk_index(place);
        self.places.truncate(keep);
        self.chunks.truncate(index + 1);
        if let Some(chunk) = self.chunks.get_mut(index) {
            chunk.truncate(place.offset as usize);
        }
    }

    /// Drops whole chunks from the front while there are more than `limit_bytes`, as far as all
    /// their records are at or before `applied`: what is held back stays.
    pub(crate) fn drop_oldest(&mut self, limit_bytes: usize, applied: SeqNum) {
        while self.bytes() > limit_bytes && self.chunks.len() > 1 {
            let in_first =
                self.places.iter().take_while(|place| place.chunk == self.first_chunk).count();
            if self.first.0 + in_first as u64 > applied.next().0 {
                return;
            }
            self.places.drain(..in_first);
            self.first = SeqNum(self.first.0 + in_first as u64);
            self.first_chunk = self.first_chunk.wrapping_add(1);
            self.spare = self.chunks.pop_front().map(|mut chunk| {
                chunk.clear();
                chunk
            });
        }
    }

    fn chunk_index(&self, place: Place) -> usize {
        place.chunk.wrapping_sub(self.first_chunk) as usize
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests run on 64 bits")]
mod tests {
    use super::*;
    use halfmoon_wire::{Epoch, NewRecord, Origin, RecordKind};
    use proptest::prelude::*;

    fn bytes(seq: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        NewRecord {
            seq: SeqNum(seq),
            epoch: Epoch(1),
            time_ns: 0,
            origin: Origin::default(),
            floor: SeqNum::MAX,
            kind: RecordKind::Data,
            tags: &[],
            payload: &vec![0; len],
        }
        .encode(&mut bytes);
        bytes
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(usize),
        Truncate(u64),
        Drop(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0usize..200_000).prop_map(Op::Push),
            1 => (0u64..4).prop_map(Op::Truncate),
            1 => (1usize..4).prop_map(Op::Drop),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_kept_agrees_with_a_list(ops in prop::collection::vec(op(), 0..60)) {
            let mut store = Store::new();
            let mut model: Vec<usize> = Vec::new();
            let mut dropped = 0;
            for op in ops {
                match op {
                    Op::Push(len) => {
                        model.push(len);
                        let bytes = bytes(model.len() as u64, len);
                        store.push(&RecordRef::parse(&bytes).unwrap());
                    }
                    Op::Truncate(back) => {
                        let keep = (model.len() as u64).saturating_sub(back).max(dropped);
                        model.truncate(keep as usize);
                        store.truncate_after(SeqNum(keep));
                    }
                    Op::Drop(chunks) => {
                        // What is applied never shrinks, and what was dropped was applied.
                        let held = (model.len() as u64).saturating_sub(3).max(dropped);
                        store.drop_oldest(chunks * CHUNK_BYTES, SeqNum(held));
                        while store.record(SeqNum(dropped + 1)).is_none() && dropped < held {
                            dropped += 1;
                        }
                        prop_assert!(store.record(SeqNum(held + 1)).is_some() || held == model.len() as u64);
                    }
                }
                for seq in dropped + 1..=model.len() as u64 {
                    let record = store.record(SeqNum(seq)).expect("it was not dropped");
                    prop_assert_eq!(record.seq(), SeqNum(seq));
                    prop_assert_eq!(record.payload().len(), model[seq as usize - 1]);
                }
                prop_assert!(store.record(SeqNum(model.len() as u64 + 1)).is_none());
            }
        }
    }
}
