//! Bounds of the log core.

/// Everything written is a multiple of this many bytes, and lies at a multiple of it: what O_DIRECT
/// asks for on every device, and what a device tears at most.
pub const BLOCK_BYTES: usize = 4096;
/// Longest body of one batch. Longer backlogs become several batches.
pub const BATCH_BODY_MAX_BYTES: usize = 1 << 20;
/// Longest write: a segment's start with the longest history, and a batch after it.
pub const WRITE_MAX_BYTES: usize = BATCH_BODY_MAX_BYTES + 32 * BLOCK_BYTES;
/// Writes under way at once. Recovery relies on it only through what the batches themselves say.
pub const IN_FLIGHT_MAX: usize = 4;
/// Bytes accepted and not yet laid out. A node that has more stops taking the stream, and follows it
/// anew when it has room.
pub const QUEUE_MAX_BYTES: usize = 8 << 20;
/// Bytes of one entry of the sparse index, at most (or one batch, if that is longer): how much a
/// reader reads beside what it wants.
pub const RUN_MAX_BYTES: u64 = 256 << 10;
/// Bytes of newest records kept in memory for readers that catch up.
pub const TAIL_MAX_BYTES: usize = 16 << 20;
/// Smallest segment: a start with the longest history (64 KiB and a bit) and a batch of the longest
/// record.
pub const SEGMENT_MIN_BYTES: u64 = 512 << 10;
/// Largest segment. Recovery reads one into memory.
pub const SEGMENT_MAX_BYTES: u64 = 1 << 30;
