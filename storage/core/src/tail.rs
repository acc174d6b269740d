//! The newest records, in memory, for readers that are a little behind.

use std::collections::VecDeque;

use halfmoon_wire::{Records, SeqNum};

#[derive(Clone, Debug)]
struct Piece {
    first: SeqNum,
    last: SeqNum,
    bytes: Vec<u8>,
}

/// The newest records of a log, up to a number of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pieces: VecDeque<Piece>,
    bytes: usize,
    limit: usize,
    /// Buffers to use again, so that a steady stream allocates nothing.
    spare: Vec<Vec<u8>>,
}

/// Buffers kept to be used again.
const SPARE_MAX: usize = 8;

impl Tail {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, limit, spare: Vec::new() }
    }

    /// An empty buffer.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, first: SeqNum, last: SeqNum, bytes: Vec<u8>) {
        if self.pieces.back().is_some_and(|piece| piece.last.next() != first) {
            // A cut went through a piece, and took all of it: what is left does not reach here.
            self.cut(SeqNum::ZERO);
        }
        self.bytes += bytes.len();
        self.pieces.push_back(Piece { first, last, bytes });
        while self.bytes > self.limit
            && let Some(piece) = self.pieces.pop_front()
        {
            self.recycle(piece);
        }
    }

    pub(crate) fn cut(&mut self, to: SeqNum) {
        while self.pieces.back().is_some_and(|piece| piece.last > to)
            && let Some(piece) = self.pieces.pop_back()
        {
            self.recycle(piece);
        }
    }

    fn recycle(&mut self, piece: Piece) {
        self.bytes -= piece.bytes.len();
        if self.spare.len() < SPARE_MAX {
            let mut bytes = piece.bytes;
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Appends whole records from `from` to `upto`, within `max_bytes` (the first always fits).
    /// `None` when `from` is not in memory.
    pub(crate) fn read(
        &self,
        from: SeqNum,
        upto: SeqNum,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Option<SeqNum> {
        let start = self.pieces.partition_point(|piece| piece.last < from);
        self.pieces.get(start).filter(|piece| piece.first <= from)?;
        let mut last = None;
        for piece in self.pieces.range(start..) {
            for record in Records::new(&piece.bytes) {
                let record = record.ok()?;
                if record.seq() < from {
                    continue;
                }
                let full = last.is_some() && out.len() + record.bytes().len() > max_bytes;
                if record.seq() > upto || full {
                    return last;
                }
                out.extend_from_slice(record.bytes());
                last = Some(record.seq());
            }
        }
        last
    }
}
