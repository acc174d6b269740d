//! Messages through shared memory: a byte ring with one producer and one consumer.
//!
//! An entry is a word with the length of the message in its low half and the complement of that in
//! its high half, then the message, padded to whole words. Positions count words and only grow.
//! Each side keeps its own position in private memory and takes the other's from shared memory
//! without trusting it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{RING_CAPACITY, RingPlace, WORD};
use crate::limits::ENTRY_MAX_BYTES;
use crate::sys::Mapping;

/// The other side wrote nonsense into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// Its position is not within the ring's length of ours.
    #[error("the peer's ring position {theirs} is impossible beside ours, {ours}")]
    Position {
        /// The position found in the ring.
        theirs: u64,
        /// This side's own.
        ours: u64,
    },
    /// The word before a message is not a length.
    #[error("no message begins with {word:#018x}")]
    Entry {
        /// The word.
        word: u64,
    },
}

/// A message was not put into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PushError {
    /// The other side must read first.
    Full,
    /// The other side broke the ring.
    Broken(RingError),
}

/// One end of a ring: `position` is this side's own and is mirrored in shared memory.
#[derive(Debug)]
struct End {
    mapping: Arc<Mapping>,
    place: RingPlace,
    position: u64,
}

impl End {
    fn word(&self, position: u64) -> &AtomicU64 {
        let index = usize::try_from(position % RING_CAPACITY).expect("the ring fits the memory");
        &self.mapping.words()[self.place.first + index]
    }

    /// Words between the two positions, if the other side's makes sense.
    fn between(&self, head: u64, tail: u64, theirs: u64) -> Result<u64, RingError> {
        match head.checked_sub(tail) {
            Some(used) if used <= RING_CAPACITY => Ok(used),
            Some(_) | None => Err(RingError::Position { theirs, ours: self.position }),
        }
    }
}

/// The end that writes.
#[derive(Debug)]
pub(crate) struct Producer(End);

/// The end that reads.
#[derive(Debug)]
pub(crate) struct Consumer(End);

impl Producer {
    pub(crate) const fn new(mapping: Arc<Mapping>, place: RingPlace) -> Self {
        Self(End { mapping, place, position: 0 })
    }

    /// Puts a message into the ring and makes it visible.
    pub(crate) fn push(&mut self, message: &[u8]) -> Result<(), PushError> {
        assert!(message.len() <= ENTRY_MAX_BYTES, "encoders keep to the limit");
        let end = &mut self.0;
        let tail = end.mapping.words()[end.place.tail].load(Ordering::Acquire);
        let used = end.between(end.position, tail, tail).map_err(PushError::Broken)?;
        let need = 1 + message.len().div_ceil(WORD) as u64;
        if RING_CAPACITY - used < need {
            return Err(PushError::Full);
        }
        end.word(end.position).store(entry_word(message.len()), Ordering::Relaxed);
        let (whole, rest) = message.as_chunks::<WORD>();
        let mut at = end.position + 1;
        for chunk in whole {
            end.word(at).store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
            at += 1;
        }
        if !rest.is_empty() {
            let mut chunk = [0; WORD];
            chunk[..rest.len()].copy_from_slice(rest);
            end.word(at).store(u64::from_le_bytes(chunk), Ordering::Relaxed);
        }
        end.position += need;
        end.mapping.words()[end.place.head].store(end.position, Ordering::Release);
        Ok(())
    }
}

impl Consumer {
    pub(crate) const fn new(mapping: Arc<Mapping>, place: RingPlace) -> Self {
        Self(End { mapping, place, position: 0 })
    }

    /// True when there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.mapping.words()[self.0.place.head].load(Ordering::Acquire) == self.0.position
    }

    /// Copies the next message out, if there is one, and frees its place.
    /// Returns its length.
    pub(crate) fn pop(
        &mut self,
        into: &mut [u8; ENTRY_MAX_BYTES],
    ) -> Result<Option<usize>, RingError> {
        let end = &mut self.0;
        let head = end.mapping.words()[end.place.head].load(Ordering::Acquire);
        let filled = end.between(head, end.position, head)?;
        if filled == 0 {
            return Ok(None);
        }
        let word = end.word(end.position).load(Ordering::Relaxed);
        let len = entry_len(word).ok_or(RingError::Entry { word })?;
        let need = 1 + len.div_ceil(WORD) as u64;
        if need > filled {
            return Err(RingError::Entry { word });
        }
        let message = &mut into[..len];
        for (chunk, at) in message.chunks_mut(WORD).zip(end.position + 1..) {
            let bytes = end.word(at).load(Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        end.position += need;
        end.mapping.words()[end.place.tail].store(end.position, Ordering::Release);
        Ok(Some(len))
    }
}

fn entry_word(len: usize) -> u64 {
    let len = u32::try_from(len).expect("an entry is far shorter than 4 GiB");
    u64::from(len) | u64::from(!len) << 32
}

fn entry_len(word: u64) -> Option<usize> {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    let len = u32::from_le_bytes([a, b, c, d]);
    let check = u32::from_le_bytes([e, f, g, h]);
    let len = (check == !len).then_some(usize::try_from(len).ok()?)?;
    (len <= ENTRY_MAX_BYTES).then_some(len)
}
