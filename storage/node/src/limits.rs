//! Bounds of a storage node.

use std::time::Duration;

/// Default bytes of a segment, of the log and of the state log.
pub const SEGMENT_DEFAULT_BYTES: u64 = 64 << 20;
/// Free segment files kept for later, per log.
pub const POOL_MAX: usize = 2;
/// Reads of the log from disk under way at once.
pub const READS_MAX: usize = 8;
/// Reads of the log that wait for one of those; who asks for more has its lane closed.
pub const READS_WAITING_MAX: usize = 1024;
/// Bytes that wait for room on one lane. A peer that takes so little of what it asked for is cut.
pub const OUTBOX_MAX_BYTES: usize = 128 << 20;
/// Bytes of a message that are not records: headroom under the longest message.
pub const MESSAGE_HEAD_BYTES: usize = 256;
/// Bytes of the region where an engine leaves large values of puts, per lane.
pub const STAGING_DEFAULT_BYTES: usize = 32 << 20;
/// Lanes that may hold such a region at once. Others send values inline.
pub const STAGINGS_MAX: usize = 64;
/// How long to wait before asking another peer for records that one did not have.
pub const FETCH_RETRY: Duration = Duration::from_millis(50);
/// How long an answer of a peer may take.
pub const FETCH_PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing must have been written before a mark is.
pub const MARK_AFTER: Duration = Duration::from_secs(1);
/// The longest sleep: how late a request to stop may be noticed.
pub const SLEEP_MAX: Duration = Duration::from_millis(50);
/// How long an orderly end may take before the node ends anyway (nothing acknowledged is lost).
pub const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of one entry of the state log. Longer writes are several entries.
pub const FRAGMENT_MAX_BYTES: usize = 256 << 10;
/// Bytes of writes that are not in the embedded engine yet. Further writes wait.
pub const OVERLAY_MAX_BYTES: usize = 64 << 20;
/// Bytes of requests that wait for room in the overlay. Further ones fail as busy.
pub const PARKED_MAX_BYTES: usize = 16 << 20;
/// Reads of the state store under way at once. Further ones fail as busy.
pub const STATE_READS_MAX: usize = 4096;
/// Bytes of values that were read or written lately, kept for readers.
pub const CACHE_MAX_BYTES: usize = 32 << 20;
/// Writes that the embedded engine takes in one batch.
pub const APPLY_MAX: usize = 1024;
/// Bytes of a log that are read at once to see whether they are as they were written.
pub const SCRUB_PIECE_BYTES: usize = 1 << 20;
/// Longest function binary.
pub const BLOB_MAX_BYTES: u64 = 1 << 30;
/// Memory of the embedded engine's block cache.
pub const STORE_CACHE_BYTES: u64 = 32 << 20;
/// Memory of one of the embedded engine's two write buffers.
pub const STORE_BUFFER_BYTES: u64 = 16 << 20;
/// Journals of the embedded engine on disk (its least).
pub const STORE_JOURNAL_BYTES: u64 = 64 << 20;
/// Values from this many bytes on are kept apart from keys by the embedded engine.
pub const STORE_APART_BYTES: u32 = 4 << 10;

/// Peers that may wait for a page of the state at once. Further ones are told that the node is busy.
pub const SCANS_MAX: usize = 8;
/// A member that copies the state stops while so much of what was written, by itself or by engines,
/// waits for its embedded engine: engines may go on to [`OVERLAY_MAX_BYTES`].
pub const COPY_OVERLAY_MAX_BYTES: usize = 8 << 20;
/// Bytes of state that are copied in one turn of the loop.
pub const COPY_TURN_BYTES: usize = 1 << 20;
/// How long an answer of a peer whose state is copied may take. It may have to write much before.
pub const COPY_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a peer is asked again that could not serve a page; doubled each time.
pub const COPY_RETRY_MIN: Duration = Duration::from_millis(20);
/// What that grows to.
pub const COPY_RETRY_MAX: Duration = Duration::from_secs(2);
/// How often it is said how far the copy is.
pub const COPY_TELL_EVERY: Duration = Duration::from_secs(1);
