//! State buffers: handles, the allocator of one half of the arena, and the arena as memory that
//! the network may write to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use halfmoon_transport::{Memory, memory};

use crate::layout::{Layout, WORD};
use crate::limits::{BUFFER_ALIGN_BYTES, BUFFERS_MAX, VALUE_MAX_BYTES};
use crate::sys::Mapping;

/// Names a state buffer: bytes of the arena, and which use of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Buffer {
    /// Where it begins, in bytes from the start of the arena; a multiple of
    /// [`BUFFER_ALIGN_BYTES`].
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
    /// Which of the buffers that ever began there.
    pub generation: u32,
}

impl Buffer {
    /// The length as a size.
    #[must_use]
    pub fn len_bytes(self) -> usize {
        usize::try_from(self.len).expect("32 bits fit a size")
    }

    pub(crate) fn start(self) -> usize {
        usize::try_from(self.offset).expect("32 bits fit a size")
    }

    /// Whether it lies within this range of the arena and keeps the rules for buffers.
    pub(crate) fn lies_in(self, from: usize, to: usize) -> bool {
        let start = self.start();
        start >= from
            && start.is_multiple_of(BUFFER_ALIGN_BYTES)
            && self.len_bytes() <= VALUE_MAX_BYTES
            && start.checked_add(self.len_bytes()).is_some_and(|end| end <= to)
    }
}

/// No buffer could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// More than a value may have.
    #[error("a value has at most {VALUE_MAX_BYTES} bytes, not {len}")]
    TooLong {
        /// Bytes asked for.
        len: usize,
    },
    /// The half of the arena has no such gap. Values that the function still holds fill it.
    #[error("no {len} bytes are free in this half of the arena")]
    Full {
        /// Bytes asked for.
        len: usize,
    },
    /// Too many buffers are in use.
    #[error("more than {BUFFERS_MAX} buffers are in use")]
    TooMany,
}

/// A handle that names no buffer in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} names no state buffer that its sender may name")]
pub struct BadBuffer(pub Buffer);

#[derive(Clone, Copy, Debug)]
struct Extent {
    buffer: Buffer,
    /// Bytes it occupies, whole units.
    capacity: usize,
    /// The other side was told about it and may give it back.
    given: bool,
}

/// Allocator of one half of the arena, in the private memory of the side that allocates there.
///
/// First fit over extents in order of place. There are few at a time; the limit keeps it bounded.
#[derive(Debug)]
pub(crate) struct Extents {
    from: usize,
    to: usize,
    used: Vec<Extent>,
    generation: u32,
}

impl Extents {
    pub(crate) fn engine_half(layout: Layout) -> Self {
        Self::new(0, layout.engine_bytes())
    }

    pub(crate) fn worker_half(layout: Layout) -> Self {
        Self::new(layout.engine_bytes(), layout.arena_bytes())
    }

    fn new(from: usize, to: usize) -> Self {
        Self { from, to, used: Vec::with_capacity(BUFFERS_MAX), generation: 0 }
    }

    pub(crate) const fn count(&self) -> usize {
        self.used.len()
    }

    /// A buffer of `len` bytes; its content is whatever lay there before.
    pub(crate) fn alloc(&mut self, len: usize) -> Result<Buffer, AllocError> {
        if len > VALUE_MAX_BYTES {
            return Err(AllocError::TooLong { len });
        }
        if self.used.len() == BUFFERS_MAX {
            return Err(AllocError::TooMany);
        }
        let capacity = len.max(1).next_multiple_of(BUFFER_ALIGN_BYTES);
        let (index, start) = self.gap(capacity).ok_or(AllocError::Full { len })?;
        self.generation = self.generation.wrapping_add(1);
        let number = |value: usize| u32::try_from(value).expect("the arena is below 4 GiB");
        let buffer =
            Buffer { offset: number(start), len: number(len), generation: self.generation };
        self.used.insert(index, Extent { buffer, capacity, given: false });
        Ok(buffer)
    }

    /// The first gap of that size: where it stands among the extents, and where it begins.
    fn gap(&self, capacity: usize) -> Option<(usize, usize)> {
        let mut start = self.from;
        for (index, extent) in self.used.iter().enumerate() {
            if extent.buffer.start() - start >= capacity {
                return Some((index, start));
            }
            start = extent.buffer.start() + extent.capacity;
        }
        (self.to - start >= capacity).then_some((self.used.len(), start))
    }

    fn find(&self, buffer: Buffer) -> Result<usize, BadBuffer> {
        let index = self
            .used
            .binary_search_by_key(&buffer.offset, |extent| extent.buffer.offset)
            .map_err(|_| BadBuffer(buffer))?;
        let same = self.used[index].buffer.generation == buffer.generation;
        same.then_some(index).ok_or(BadBuffer(buffer))
    }

    /// Shortens a buffer to `len` bytes and gives back the units beyond.
    pub(crate) fn trim(&mut self, buffer: Buffer, len: usize) -> Result<Buffer, BadBuffer> {
        let index = self.find(buffer)?;
        let extent = &mut self.used[index];
        let len = u32::try_from(len).map_err(|_| BadBuffer(buffer))?;
        if len > extent.buffer.len {
            return Err(BadBuffer(buffer));
        }
        extent.buffer.len = len;
        extent.capacity = extent.buffer.len_bytes().max(1).next_multiple_of(BUFFER_ALIGN_BYTES);
        Ok(extent.buffer)
    }

    /// Notes that the other side is told about a buffer.
    pub(crate) fn give(&mut self, buffer: Buffer) -> Result<(), BadBuffer> {
        let index = self.find(buffer)?;
        if self.used[index].buffer != buffer {
            return Err(BadBuffer(buffer));
        }
        self.used[index].given = true;
        Ok(())
    }

    /// The other side gives a buffer back.
    pub(crate) fn give_back(&mut self, buffer: Buffer) -> Result<(), BadBuffer> {
        let index = self.find(buffer)?;
        if !self.used[index].given {
            return Err(BadBuffer(buffer));
        }
        self.used.remove(index);
        Ok(())
    }

    /// Frees a buffer that this side owns.
    pub(crate) fn free(&mut self, buffer: Buffer) -> Result<(), BadBuffer> {
        let index = self.find(buffer)?;
        self.used.remove(index);
        Ok(())
    }
}

/// The arena of one worker, as words: a network transport may write values into it, and read the
/// worker's from it.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    first: usize,
    words: usize,
}

impl Arena {
    pub(crate) const fn new(mapping: Arc<Mapping>, layout: Layout) -> Self {
        Self { mapping, first: layout.arena_first(), words: layout.arena_bytes() / WORD }
    }

    /// Copies bytes into a buffer of this side's that has their length.
    pub(crate) fn fill(&self, buffer: Buffer, bytes: &[u8]) {
        assert_eq!(bytes.len(), buffer.len_bytes(), "the buffer was made for these bytes");
        let words = &self.words()[buffer.start() / WORD..];
        let (whole, rest) = bytes.as_chunks::<WORD>();
        for (word, chunk) in words.iter().zip(whole) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            // Buffers own whole units, so what lies behind the rest is theirs too.
            let mut chunk = [0; WORD];
            chunk[..rest.len()].copy_from_slice(rest);
            words[whole.len()].store(u64::from_ne_bytes(chunk), Ordering::Relaxed);
        }
    }

    /// Copies a buffer out; `into` has its length.
    pub(crate) fn copy_out(&self, buffer: Buffer, into: &mut [u8]) -> Result<(), BadBuffer> {
        let offset = u64::from(buffer.offset);
        memory::copy_out(self.words(), offset, into).map_err(|_| BadBuffer(buffer))
    }
}

impl Memory for Arena {
    fn words(&self) -> &[AtomicU64] {
        &self.mapping.words()[self.first..self.first + self.words]
    }
}
