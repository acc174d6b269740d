//! Where things lie in the shared memory, and the header that says so.
//!
//! ```text
//! 0        header page: word 0 magic, 1 layout version, 2 size of the memory, 3 size of a ring,
//!                       4 size of the arena; from byte 512 six cache lines, one word used of each
//! 4096     ring engine → worker
//! +256 KiB ring worker → engine
//! +256 KiB arena: the first half is the engine's to allocate, the second the worker's
//! ```

use std::sync::atomic::Ordering;

use crate::limits::{ARENA_BYTES_MAX, ARENA_BYTES_MIN, BUFFER_ALIGN_BYTES, RING_BYTES};
use crate::sys::Mapping;

/// Version of the layout and of the messages. Engine and worker must agree on it.
pub const LAYOUT_VERSION: u32 = 1;

/// First word of the memory.
const MAGIC: u64 = u64::from_le_bytes(*b"halfmoon");

/// Bytes in a word.
pub(crate) const WORD: usize = 8;
const HEADER_BYTES: usize = 4096;
const RING_WORDS: usize = RING_BYTES / WORD;
const LINE_WORDS: usize = 64 / WORD;
const CONTROL_WORD: usize = 512 / WORD;

/// Word indices of a ring's two positions and of its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingPlace {
    /// Position up to which the producer has written, in words.
    pub(crate) head: usize,
    /// Position up to which the consumer has read, in words.
    pub(crate) tail: usize,
    /// First word of the entries.
    pub(crate) first: usize,
}

/// Ring from engine to worker.
pub(crate) const TO_WORKER: RingPlace =
    RingPlace { head: CONTROL_WORD, tail: CONTROL_WORD + LINE_WORDS, first: HEADER_BYTES / WORD };
/// Ring from worker to engine.
pub(crate) const TO_ENGINE: RingPlace = RingPlace {
    head: CONTROL_WORD + 2 * LINE_WORDS,
    tail: CONTROL_WORD + 3 * LINE_WORDS,
    first: HEADER_BYTES / WORD + RING_WORDS,
};
/// The word whose low half says that the worker sleeps; its futex.
pub(crate) const WORKER_SLEEPS: usize = CONTROL_WORD + 4 * LINE_WORDS;
/// The word whose low half says that the engine sleeps.
pub(crate) const ENGINE_SLEEPS: usize = CONTROL_WORD + 5 * LINE_WORDS;
/// Words of one ring.
pub(crate) const RING_CAPACITY: u64 = RING_WORDS as u64;

const ARENA_OFFSET: usize = HEADER_BYTES + 2 * RING_BYTES;

/// A shared memory whose header this side does not accept.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Too small to be one, or without the first word.
    #[error("this is not a Halfmoon channel")]
    NotAChannel,
    /// Made by another release.
    #[error("the engine speaks layout {theirs} and this function was built for {ours}: rebuild it")]
    Version {
        /// The engine's.
        theirs: u64,
        /// The one this was built with.
        ours: u32,
    },
    /// The sizes contradict each other.
    #[error("the channel's header contradicts its size")]
    Sizes,
}

/// Sizes of one channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    arena_bytes: usize,
}

impl Layout {
    /// A layout with an arena of about so many bytes: within the limits, in whole units.
    pub(crate) fn new(arena_bytes: usize) -> Self {
        let wanted = arena_bytes.clamp(ARENA_BYTES_MIN, ARENA_BYTES_MAX);
        Self { arena_bytes: wanted.next_multiple_of(2 * BUFFER_ALIGN_BYTES) }
    }

    /// Size of the whole memory.
    pub(crate) const fn total_bytes(self) -> usize {
        ARENA_OFFSET + self.arena_bytes
    }

    /// First word of the arena.
    pub(crate) const fn arena_first(self) -> usize {
        _ = self;
        ARENA_OFFSET / WORD
    }

    pub(crate) const fn arena_bytes(self) -> usize {
        self.arena_bytes
    }

    /// Bytes of the arena that are the engine's to allocate; the rest is the worker's.
    pub(crate) const fn engine_bytes(self) -> usize {
        self.arena_bytes / 2
    }

    /// Writes the header of a fresh memory.
    pub(crate) fn write(self, mapping: &Mapping) {
        let words = mapping.words();
        let sizes = [
            u64::from(LAYOUT_VERSION),
            self.total_bytes() as u64,
            RING_BYTES as u64,
            self.arena_bytes as u64,
        ];
        for (word, value) in words[1..].iter().zip(sizes) {
            word.store(value, Ordering::Relaxed);
        }
        words[0].store(MAGIC, Ordering::Release);
    }

    /// Reads the header that the other side wrote.
    pub(crate) fn read(mapping: &Mapping) -> Result<Self, LayoutError> {
        let words = mapping.words();
        if words.len() * WORD <= ARENA_OFFSET || words[0].load(Ordering::Acquire) != MAGIC {
            return Err(LayoutError::NotAChannel);
        }
        let field = |index: usize| words[index].load(Ordering::Relaxed);
        if field(1) != u64::from(LAYOUT_VERSION) {
            return Err(LayoutError::Version { theirs: field(1), ours: LAYOUT_VERSION });
        }
        let arena_bytes = usize::try_from(field(4)).map_err(|_| LayoutError::Sizes)?;
        if !(ARENA_BYTES_MIN..=ARENA_BYTES_MAX + 2 * BUFFER_ALIGN_BYTES).contains(&arena_bytes) {
            return Err(LayoutError::Sizes);
        }
        let layout = Self { arena_bytes };
        let agrees = arena_bytes.is_multiple_of(2 * BUFFER_ALIGN_BYTES)
            && field(2) == layout.total_bytes() as u64
            && words.len() * WORD >= layout.total_bytes()
            && field(3) == RING_BYTES as u64;
        if agrees { Ok(layout) } else { Err(LayoutError::Sizes) }
    }
}
