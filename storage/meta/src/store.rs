//! The contract of a metadata store.

use std::fmt;

use crate::{CasError, MetaError};

/// Longest key, in bytes.
pub const KEY_MAX_BYTES: usize = 256;

/// Largest value, in bytes. Metadata is read whole by everyone who starts; what is larger belongs
/// on a storage node.
pub const VALUE_MAX_BYTES: usize = 64 * 1024;

/// Most keys in one store. Far above nodes × keys per node; it bounds what a reader must hold.
pub const ENTRIES_MAX: usize = 4096;

/// When a value was written: grows with every change of the store and is never given out twice,
/// not even for a key that was deleted and made again.
///
/// Only equality means something to a caller. The file store counts changes; etcd has the same
/// thing under the name `mod_revision`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value together with when it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// When it was written; what a later [`MetaStore::compare_and_set`] compares.
    pub revision: Revision,
}

/// What must be there for a change to take place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key's value is the one written at this revision.
    At(Revision),
}

impl Expected {
    /// Whether `current` is what is expected.
    #[must_use]
    pub fn matches(self, current: Option<Revision>) -> bool {
        match self {
            Self::Absent => current.is_none(),
            Self::At(revision) => current == Some(revision),
        }
    }

    /// Expects exactly what a read returned.
    #[must_use]
    pub fn of(entry: Option<&Entry>) -> Self {
        entry.map_or(Self::Absent, |entry| Self::At(entry.revision))
    }
}

/// A small, linearizable, durable map that several processes share.
///
/// # Rules of an implementation
/// - **One order.** All operations, from all processes, take effect one at a time, each between its
///   call and its return. A read returns the latest value, not a cached one.
/// - **Durable before seen.** A value that anybody was shown survives loss of power. So a change
///   that is not yet durable is not shown to readers either.
/// - **Unknown is not failed.** A change that may or may not have taken effect (a lost connection,
///   a failed sync after the rename) is [`CasError::Unknown`]; the caller reads again to find out.
///   Every other error of a change means that nothing was changed.
/// - **Bounded.** Every call returns within a time limit of the implementation. Keys, values and
///   their number are within [`KEY_MAX_BYTES`], [`VALUE_MAX_BYTES`] and [`ENTRIES_MAX`].
///
/// Calls block. They may be made from any thread.
pub trait MetaStore: Send + Sync {
    /// The value of `key`, or `None` when it has none.
    ///
    /// # Errors
    /// When the store cannot be read, or what is there is damaged.
    fn get(&self, key: &str) -> Result<Option<Entry>, MetaError>;

    /// All keys that begin with `prefix` and their values, as of one moment, in ascending order.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn list(&self, prefix: &str) -> Result<Vec<(String, Entry)>, MetaError>;

    /// Writes `value` if the key is as `expected`, and returns the revision of the new value.
    ///
    /// # Errors
    /// [`CasError::Conflict`] with what is there instead; [`CasError::Unknown`] when it may have
    /// been written; [`CasError::Failed`] when it was not.
    fn compare_and_set(
        &self,
        key: &str,
        expected: Expected,
        value: &[u8],
    ) -> Result<Revision, CasError>;

    /// Removes the key if its value is the one written at `expected`.
    ///
    /// # Errors
    /// As [`Self::compare_and_set`]; a key without a value is a conflict with `current: None`.
    fn delete(&self, key: &str, expected: Revision) -> Result<(), CasError>;
}

/// Checks a key against what every implementation takes: 1 to [`KEY_MAX_BYTES`] bytes of printable
/// ASCII without spaces.
pub(crate) fn check_key(key: &str) -> Result<(), MetaError> {
    if key.is_empty() || key.len() > KEY_MAX_BYTES || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(MetaError::BadKey { key: key.chars().take(KEY_MAX_BYTES).collect() });
    }
    Ok(())
}

/// Checks the size of a value.
pub(crate) fn check_value(key: &str, value: &[u8]) -> Result<(), MetaError> {
    if value.len() > VALUE_MAX_BYTES {
        return Err(MetaError::ValueTooLarge { key: key.to_owned(), bytes: value.len() });
    }
    Ok(())
}
