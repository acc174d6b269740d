//! Buffers for direct I/O.

use bytemuck::{Pod, Zeroable};

/// Alignment and unit of direct I/O, in bytes.
pub const BLOCK_BYTES: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

// SAFETY: an array of bytes: any bit pattern is valid, all zeros included.
unsafe impl Zeroable for Block {}
// SAFETY: `repr(C)`, no padding (size equals alignment), no pointers, every bit pattern valid.
unsafe impl Pod for Block {}

/// Bytes on the heap, aligned to [`BLOCK_BYTES`], a whole number of blocks.
#[derive(Clone, Default)]
pub struct AlignedBuffer {
    blocks: Vec<Block>,
}

impl AlignedBuffer {
    /// A zeroed buffer of at least `bytes`.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        Self { blocks: vec![Block([0; BLOCK_BYTES]); bytes.div_ceil(BLOCK_BYTES)] }
    }

    /// Makes room for at least `bytes`; what is new is zero.
    pub fn grow(&mut self, bytes: usize) {
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, Block([0; BLOCK_BYTES]));
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.blocks)
    }

    /// The bytes, to change them.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.blocks)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len())
    }
}
