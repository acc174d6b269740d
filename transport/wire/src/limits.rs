//! Bounds of what travels and what is stored. A peer that exceeds one is refused, never trusted.

/// Longest whole record in the stream, header included, in bytes.
pub const RECORD_MAX_BYTES: usize = 256 * 1024;
/// Values up to this many bytes travel inside the record; longer ones are versions in the store.
pub const INLINE_MAX_BYTES: usize = 2 * 1024;
/// Longest value of an object, in bytes.
pub const VALUE_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Tags of one record.
pub const TAGS_MAX: usize = 64;
/// Conditions of one append.
pub const CONDITIONS_MAX: usize = 128;
/// Bytes of a table's full name (namespace included).
pub const TABLE_NAME_MAX_BYTES: usize = 256;
/// Bytes of an object's key.
pub const KEY_MAX_BYTES: usize = 1024;
/// Longest message between two nodes, in bytes; anything longer goes as a one-sided write.
pub const MESSAGE_MAX_BYTES: usize = 512 * 1024;
/// Epochs in one history: how often a log may have changed its sequencer within its window.
pub const HISTORY_MAX: usize = 4096;
/// Bytes of one piece of a function binary.
pub const BLOB_CHUNK_BYTES: usize = 256 * 1024;
/// Longest key of the state store as it is stored: what kind it is of, the table's name with its
/// length, the object's key, the version.
pub const STORED_KEY_MAX_BYTES: usize = 1 + 2 + TABLE_NAME_MAX_BYTES + KEY_MAX_BYTES + 16;
/// Longest value of the state store as it is stored: a cell's place in the order stands before it.
pub const STORED_VALUE_MAX_BYTES: usize = VALUE_MAX_BYTES + 8 + 4 + 16 + 1;
/// Bytes of keys and values in one page of a scan: little enough that whoever else uses the lane, the
/// disk or the engine's reader does not notice.
pub const SCAN_PAGE_BYTES: usize = 256 * 1024;
/// Keys of one page of a scan.
pub const SCAN_ITEMS_MAX: usize = 1024;
