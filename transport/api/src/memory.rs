//! Memory that a peer may write to.
//!
//! A peer, or the kernel on its behalf, stores into such memory at any time, so safe code sees
//! words with interior mutability and never a byte slice. What is read from it is a *copy*, and
//! the copy is what is checked and parsed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// A range of memory made of whole words.
///
/// Its length in bytes is a multiple of eight, and `words` returns the same words at every call.
/// What is exposed is an `Arc<dyn Memory>`: a transport holds it for as long as anything may
/// still be written to it.
pub trait Memory: Send + Sync + 'static {
    /// The words.
    fn words(&self) -> &[AtomicU64];

    /// The length in bytes.
    fn len_bytes(&self) -> usize {
        self.words().len() * WORD
    }
}

/// Bytes in a word.
pub const WORD: usize = size_of::<u64>();

/// Zeroed memory on the heap.
pub struct HeapMemory {
    words: Box<[AtomicU64]>,
}

impl HeapMemory {
    /// Zeroed memory of at least `len_bytes`, rounded up to whole words.
    pub fn new(len_bytes: usize) -> Self {
        let words = bytemuck::allocation::zeroed_slice_box(len_bytes.div_ceil(WORD));
        Self { words }
    }
}

impl Memory for HeapMemory {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }
}

impl fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapMemory").field("len_bytes", &self.len_bytes()).finish()
    }
}

/// A range that does not lie within the memory it was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{len} bytes at {offset} do not lie within {size} bytes of memory")]
pub struct OutOfBounds {
    /// Offset asked for, in bytes.
    pub offset: u64,
    /// Length asked for, in bytes.
    pub len: u64,
    /// Size of the memory, in bytes.
    pub size: u64,
}

/// Checks that `len` bytes at `offset` lie within `words`; returns the offset as an index.
pub fn check(words: &[AtomicU64], offset: u64, len: usize) -> Result<usize, OutOfBounds> {
    let size = words.len() * WORD;
    let refused = OutOfBounds { offset, len: len as u64, size: size as u64 };
    let start = usize::try_from(offset).map_err(|_| refused)?;
    match start.checked_add(len) {
        Some(end) if end <= size => Ok(start),
        Some(_) | None => Err(refused),
    }
}

/// Copies `bytes` to `offset`.
///
/// Whole words are stored whole. Of the words at the ends only the bytes in the range change,
/// even if another thread changes the other bytes meanwhile.
pub fn copy_in(words: &[AtomicU64], offset: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
    let start = check(words, offset, bytes.len())?;
    let mut index = start / WORD;
    let skip = start % WORD;
    let mut rest = bytes;
    if skip != 0 {
        let (head, tail) = rest.split_at(rest.len().min(WORD - skip));
        patch(&words[index], skip, head);
        index += 1;
        rest = tail;
    }
    let (whole, tail) = rest.as_chunks::<WORD>();
    // A range of no bytes may begin one past the last word.
    for (word, chunk) in words[index.min(words.len())..].iter().zip(whole) {
        word.store(u64::from_ne_bytes(*chunk), Ordering::Release);
    }
    if !tail.is_empty() {
        patch(&words[index + whole.len()], 0, tail);
    }
    Ok(())
}

/// Copies the bytes at `offset` out into `into`, whose length says how many.
pub fn copy_out(words: &[AtomicU64], offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
    let start = check(words, offset, into.len())?;
    let mut index = start / WORD;
    let skip = start % WORD;
    let mut rest = into;
    if skip != 0 {
        let (head, tail) = rest.split_at_mut(rest.len().min(WORD - skip));
        let word = words[index].load(Ordering::Acquire).to_ne_bytes();
        head.copy_from_slice(&word[skip..skip + head.len()]);
        index += 1;
        rest = tail;
    }
    let (whole, tail) = rest.as_chunks_mut::<WORD>();
    for (word, chunk) in words[index.min(words.len())..].iter().zip(whole.iter_mut()) {
        *chunk = word.load(Ordering::Acquire).to_ne_bytes();
    }
    if !tail.is_empty() {
        let word = words[index + whole.len()].load(Ordering::Acquire).to_ne_bytes();
        tail.copy_from_slice(&word[..tail.len()]);
    }
    Ok(())
}

/// Appends `len` bytes at `offset` to `into`.
pub fn append_out(
    words: &[AtomicU64],
    offset: u64,
    len: usize,
    into: &mut Vec<u8>,
) -> Result<(), OutOfBounds> {
    check(words, offset, len)?;
    let before = into.len();
    into.resize(before + len, 0);
    copy_out(words, offset, &mut into[before..])
}

/// Replaces the bytes of one word that begin at `skip`.
fn patch(word: &AtomicU64, skip: usize, bytes: &[u8]) {
    let replace = |old: u64| {
        let mut new = old.to_ne_bytes();
        new[skip..skip + bytes.len()].copy_from_slice(bytes);
        Some(u64::from_ne_bytes(new))
    };
    word.fetch_update(Ordering::AcqRel, Ordering::Acquire, replace)
        .expect("the closure always gives a value");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_agree_with_a_byte_vector(
            size in 1usize..12,
            writes in prop::collection::vec((0usize..100, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            reads in prop::collection::vec((0usize..100, 0usize..40), 0..6),
        ) {
            let memory = HeapMemory::new(size * WORD);
            let mut model = vec![0u8; size * WORD];
            for (offset, bytes) in &writes {
                let start = *offset;
                let fits = start + bytes.len() <= model.len();
                prop_assert_eq!(copy_in(memory.words(), start as u64, bytes).is_ok(), fits);
                if fits {
                    model[start..start + bytes.len()].copy_from_slice(bytes);
                }
            }
            for (offset, len) in reads {
                let start = offset;
                let mut got = Vec::new();
                let done = append_out(memory.words(), start as u64, len, &mut got);
                prop_assert_eq!(done.is_ok(), start + len <= model.len());
                if done.is_ok() {
                    prop_assert_eq!(&got[..], &model[start..start + len]);
                }
            }
        }
    }

    #[test]
    fn a_range_past_the_largest_offset_is_refused() {
        let memory = HeapMemory::new(16);
        assert!(check(memory.words(), u64::MAX, 8).is_err());
        assert!(check(memory.words(), 8, usize::MAX).is_err());
        assert_eq!(check(memory.words(), 16, 0), Ok(16));
        assert!(copy_in(memory.words(), 16, &[]).is_ok());
    }
}
