//! Bounds of the channel. A worker that exceeds one breaks the channel's rules.

pub use halfmoon_wire::limits::{KEY_MAX_BYTES, TABLE_NAME_MAX_BYTES, VALUE_MAX_BYTES};

/// Bytes of a function's name.
pub const FUNCTION_NAME_MAX_BYTES: usize = 256;
/// Bytes of a line of log, of an error's text, of the SDK's name.
pub const TEXT_MAX_BYTES: usize = 1024;
/// Values up to this many bytes travel inside the ring; longer ones in a state buffer.
pub const INLINE_MAX_BYTES: usize = 1024;
/// Longest message in a ring, in bytes.
pub const ENTRY_MAX_BYTES: usize = 4096;
/// Size of each ring, in bytes; a power of two.
pub const RING_BYTES: usize = 256 * 1024;
/// Requests that a worker may have unanswered.
pub const OUTSTANDING_MAX: usize = 128;
/// Size of the arena unless configured: a half for each side. The memory is sparse: only what is
/// used is there.
pub const ARENA_BYTES_DEFAULT: usize = 32 * 1024 * 1024;
/// Smallest arena, in bytes.
pub const ARENA_BYTES_MIN: usize = 128 * 1024;
/// Largest arena, in bytes.
pub const ARENA_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// State buffers that each side may have at once.
pub const BUFFERS_MAX: usize = 1024;
/// State buffers begin at multiples of this many bytes.
pub const BUFFER_ALIGN_BYTES: usize = 64;

// A reply to each outstanding request, an invocation and a shutdown fit into the ring at once, so
// that a ring that is full to the engine means a worker that breaks the rules.
const _: () =
    assert!((OUTSTANDING_MAX + 1) * (INLINE_MAX_BYTES + 64) + 2 * ENTRY_MAX_BYTES <= RING_BYTES);
// Every message fits into an entry.
const _: () = assert!(
    TABLE_NAME_MAX_BYTES + KEY_MAX_BYTES + INLINE_MAX_BYTES + TEXT_MAX_BYTES <= ENTRY_MAX_BYTES
);
const _: () = assert!(RING_BYTES.is_power_of_two());
const _: () = assert!(ARENA_BYTES_DEFAULT / 2 >= VALUE_MAX_BYTES);
