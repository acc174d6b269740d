//! The recent stream: the bytes of the newest records, from which any follower is served from its
//! own position.

use std::collections::VecDeque;

use halfmoon_wire::limits::RECORD_MAX_BYTES;
use halfmoon_wire::{NewRecord, SeqNum};

/// Bytes of stream that are kept when nothing else is configured.
pub const WINDOW_BYTES_DEFAULT: usize = 256 * 1024 * 1024;

/// Bytes of one piece of the window; a span never crosses from one into the next.
pub const CHUNK_BYTES: usize = 1024 * 1024;

/// Fewest pieces that a window has, whatever is configured.
const CHUNKS_MIN: usize = 4;

const _: () = assert!(CHUNK_BYTES >= RECORD_MAX_BYTES);

/// The newest records, back to back. Bounded: the oldest piece goes when a new one is needed, but
/// never one that holds a record which is not committed; while there are too many of those the
/// window is full.
#[derive(Debug)]
pub struct Window {
    chunks: VecDeque<Chunk>,
    spare: Option<Chunk>,
    chunks_max: usize,
    next: SeqNum,
    /// Records below this may be dropped.
    droppable: SeqNum,
}

#[derive(Debug)]
struct Chunk {
    first: SeqNum,
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<usize>,
}

/// Whole records, back to back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span<'a> {
    /// Position of the first.
    pub first: SeqNum,
    /// Position after the last.
    pub next: SeqNum,
    /// Their bytes.
    pub records: &'a [u8],
}

impl Window {
    /// An empty window of about so many bytes, whose first record will be `next`.
    #[must_use]
    pub fn new(bytes_max: usize, next: SeqNum) -> Self {
        let chunks_max = (bytes_max / CHUNK_BYTES).max(CHUNKS_MIN);
        Self { chunks: VecDeque::new(), spare: None, chunks_max, next, droppable: next }
    }

    /// Position of the oldest record here; the next one when there is none.
    #[must_use]
    pub fn start(&self) -> SeqNum {
        self.chunks.front().map_or(self.next, |chunk| chunk.first)
    }

    /// Position that the next record gets.
    #[must_use]
    pub const fn next(&self) -> SeqNum {
        self.next
    }

    /// Bytes of memory held, in whole pieces.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES
    }

    /// Whether a record of `len` bytes fits without dropping one that may still be needed.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.chunks.len() < self.chunks_max
            || self.chunks.back().is_none_or(|chunk| chunk.bytes.len() + len <= CHUNK_BYTES)
            || self.oldest_is_droppable()
    }

    /// Records below `seq` are held elsewhere and may be dropped when room is needed.
    pub fn release(&mut self, seq: SeqNum) {
        self.droppable = self.droppable.max(seq);
    }

    /// Appends a record, whose position is [`Self::next`].
    pub fn push(&mut self, record: &NewRecord<'_>) {
        let len = halfmoon_wire::encoded_len(record.tags.len(), record.payload.len());
        let chunk = self.chunk_for(len);
        record.encode(&mut chunk.bytes);
        chunk.ends.push(chunk.bytes.len());
        self.next = self.next.next();
    }

    /// Appends the bytes of one record, whose position is [`Self::next`].
    pub fn push_encoded(&mut self, record: &[u8]) {
        let chunk = self.chunk_for(record.len());
        chunk.bytes.extend_from_slice(record);
        chunk.ends.push(chunk.bytes.len());
        self.next = self.next.next();
    }

    /// Forgets the records after `seq`, whose place others take.
    pub fn truncate_after(&mut self, seq: SeqNum) {
        while self.chunks.back().is_some_and(|chunk| chunk.first > seq) {
            self.spare = self.chunks.pop_back();
        }
        if let Some(chunk) = self.chunks.back_mut() {
            let count = usize::try_from(seq.0 - chunk.first.0).unwrap_or(usize::MAX);
            chunk.ends.truncate(count.saturating_add(1));
            chunk.bytes.truncate(chunk.ends.last().copied().unwrap_or(0));
        }
        self.next = self.next.min(seq.next());
        self.droppable = self.droppable.min(self.next);
    }

    /// Records from `from` on: as many whole ones as fit into `bytes_max`, but at least one, and
    /// none beyond the end of a piece. `None` when `from` is not here.
    #[must_use]
    pub fn span(&self, from: SeqNum, bytes_max: usize) -> Option<Span<'_>> {
        let index = self.chunks.partition_point(|chunk| chunk.first <= from).checked_sub(1)?;
        let chunk = self.chunks.get(index)?;
        let skip = usize::try_from(from.0 - chunk.first.0).ok()?;
        let start = skip.checked_sub(1).map_or(Some(0), |last| chunk.ends.get(last).copied())?;
        let ends = chunk.ends.get(skip..).filter(|ends| !ends.is_empty())?;
        let count = ends.partition_point(|end| end - start <= bytes_max).max(1);
        let records = chunk.bytes.get(start..*ends.get(count - 1)?)?;
        Some(Span { first: from, next: SeqNum(from.0 + count as u64), records })
    }

    fn oldest_is_droppable(&self) -> bool {
        let second = self.chunks.get(1);
        second.is_some_and(|second| second.first <= self.droppable)
    }

    /// The piece that takes the next `len` bytes. Goes over the bound rather than drop a record
    /// that is needed: whoever may be refused asks `has_room` first.
    fn chunk_for(&mut self, len: usize) -> &mut Chunk {
        if self.chunks.back().is_none_or(|chunk| chunk.bytes.len() + len > CHUNK_BYTES) {
            while self.chunks.len() >= self.chunks_max && self.oldest_is_droppable() {
                self.spare = self.chunks.pop_front();
            }
            let mut chunk = self.spare.take().unwrap_or_else(Chunk::new);
            chunk.first = self.next;
            chunk.bytes.clear();
            chunk.ends.clear();
            self.chunks.push_back(chunk);
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }
}

impl Chunk {
    fn new() -> Self {
        let bytes = Vec::with_capacity(CHUNK_BYTES);
        Self { first: SeqNum::ZERO, bytes, ends: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_wire::{Epoch, Origin, RecordKind, Records};

    use super::*;

    fn record(seq: SeqNum, payload: &[u8]) -> NewRecord<'_> {
        NewRecord {
            seq,
            epoch: Epoch(1),
            time_ns: 0,
            origin: Origin::default(),
            floor: SeqNum::MAX,
            kind: RecordKind::Data,
            tags: &[],
            payload,
        }
    }

    fn filled(count: u64, payload: &[u8]) -> Window {
        let mut window = Window::new(0, SeqNum(1));
        for seq in 1..=count {
            window.push(&record(SeqNum(seq), payload));
            window.release(SeqNum(seq));
        }
        window
    }

    #[test]
    fn any_position_is_served_by_whole_contiguous_records() {
        let window = filled(20_000, &[7; 100]);
        for from in [1, 2, 999, 7_000, 20_000] {
            let mut at = SeqNum(from);
            while let Some(span) = window.span(at, 5000) {
                assert!(span.records.len() <= 5000);
                for parsed in Records::new(span.records) {
                    assert_eq!(parsed.unwrap().seq(), at);
                    at = at.next();
                }
                assert_eq!(span.next, at);
            }
            assert_eq!(at, window.next());
        }
        assert_eq!(window.span(SeqNum(0), 5000), None);
        assert_eq!(window.span(window.next(), 5000), None);
    }

    #[test]
    fn what_is_forgotten_at_the_end_is_replaced() {
        for keep in [0, 1, 7_000, 12_345, 19_999, 20_000, 30_000] {
            let mut window = filled(20_000, &[7; 100]);
            let whole = filled(20_000, &[7; 100]);
            window.truncate_after(SeqNum(keep));
            assert_eq!(window.next(), SeqNum(keep.min(20_000) + 1));
            assert_eq!(window.span(window.next(), 10), None);
            for seq in keep + 1..=20_000 {
                window.push(&record(SeqNum(seq), &[7; 100]));
            }
            let mut at = window.start();
            while let Some(span) = window.span(at, 1) {
                assert_eq!(whole.span(at, 1).map(|span| span.records), Some(span.records));
                at = span.next;
            }
            assert_eq!(at, SeqNum(20_001));
        }
    }

    #[test]
    fn a_record_longer_than_asked_for_is_served_alone() {
        let window = filled(3, &[7; 1000]);
        let span = window.span(SeqNum(2), 10).unwrap();
        assert_eq!((span.first, span.next), (SeqNum(2), SeqNum(3)));
    }

    #[test]
    fn the_oldest_are_dropped_only_over_the_bound_and_only_when_released() {
        let payload = vec![7; 200 * 1024];
        let mut window = Window::new(0, SeqNum(1));
        let len = halfmoon_wire::encoded_len(0, payload.len());
        let mut seq = SeqNum(1);
        while window.has_room(len) {
            window.push(&record(seq, &payload));
            seq = seq.next();
        }
        assert_eq!((window.start(), window.held_bytes()), (SeqNum(1), CHUNKS_MIN * CHUNK_BYTES));
        window.release(SeqNum(5));
        assert!(!window.has_room(len), "the first piece still has a record that is needed");
        window.release(SeqNum(6));
        assert!(window.has_room(len));
        assert_eq!(window.start(), SeqNum(1));
        window.push(&record(seq, &payload));
        assert_eq!((window.start(), window.held_bytes()), (SeqNum(6), CHUNKS_MIN * CHUNK_BYTES));
        assert_eq!(window.span(SeqNum(5), 10), None);
    }
}
