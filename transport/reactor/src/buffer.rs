//! Buffers for direct I/O.

/// Alignment and unit of direct I/O, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes on the heap, aligned to [`BLOCK_BYTES`], a whole number of blocks. They stay where they are
/// when the buffer is moved.
#[derive(Default)]
pub struct AlignedBuffer {
    /// The blocks, with room before and behind them for the alignment. Asked for as zeros, so that
    /// pages which nobody writes to are never touched.
    space: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A zeroed buffer of at least `bytes`.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(BLOCK_BYTES);
        if len == 0 {
            return Self::default();
        }
        let space = vec![0; len + BLOCK_BYTES];
        let start = space.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start <= BLOCK_BYTES, "the room for the alignment is enough");
        Self { space, start, len }
    }

    /// Makes room for at least `bytes`; what is new is zero.
    pub fn grow(&mut self, bytes: usize) {
        if bytes > self.len {
            let mut larger = Self::zeroed(bytes);
            larger.bytes_mut()[..self.len].copy_from_slice(self.bytes());
            *self = larger;
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.space[self.start..self.start + self.len]
    }

    /// The bytes, to change them.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.space[self.start..self.start + self.len]
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Clone for AlignedBuffer {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_zero_and_keeps_what_it_has_when_it_grows_or_is_copied() {
        for bytes in [1, BLOCK_BYTES, BLOCK_BYTES + 1, 1 << 20] {
            let mut buffer = AlignedBuffer::zeroed(bytes);
            assert_eq!(buffer.len(), bytes.next_multiple_of(BLOCK_BYTES));
            assert!(buffer.bytes().iter().all(|byte| *byte == 0));
            buffer.bytes_mut().fill(7);
            let copy = buffer.clone();
            buffer.grow(2 * buffer.len());
            for of in [&copy, &buffer] {
                assert_eq!(of.bytes().as_ptr().align_offset(BLOCK_BYTES), 0);
                assert!(of.bytes()[..copy.len()].iter().all(|byte| *byte == 7));
            }
            assert!(buffer.bytes()[copy.len()..].iter().all(|byte| *byte == 0));
        }
        assert!(AlignedBuffer::default().is_empty());
    }
}
