//! JSON values on a [`MetaStore`], and the one loop that changes them.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{CasError, ClusterError, Entry, Expected, MetaError, MetaStore};

/// How often a change is tried again when others change the same key in between. Each failed try
/// means that somebody else succeeded, so this many losses in a row are a misbehaving peer.
const ATTEMPTS_MAX: u32 = 256;

/// What to do with the value that is there.
pub(crate) enum Change<T, R> {
    /// Leave it; the operation's result is this.
    Keep(R),
    /// Write this instead; once written, the result is the second.
    Write(T, R),
}

/// Parses a stored value.
pub(crate) fn decode<T: DeserializeOwned>(key: &str, entry: &Entry) -> Result<T, MetaError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| MetaError::Corrupt { place: format!("key {key}"), why: error.to_string() })
}

/// Reads and parses a value.
pub(crate) fn read<T: DeserializeOwned>(
    store: &dyn MetaStore,
    key: &str,
) -> Result<Option<T>, MetaError> {
    store.get(key)?.map(|entry| decode(key, &entry)).transpose()
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, MetaError> {
    serde_json::to_vec(value)
        .map_err(|error| MetaError::Corrupt { place: format!("key {key}"), why: error.to_string() })
}

/// Changes a value by compare-and-set: reads it, asks `decide`, writes, and starts again when
/// somebody else was faster.
///
/// A write of unknown outcome is looked up and decided on again. So `decide` must recognise its own
/// work where doing it twice would harm.
pub(crate) fn change<T, R>(
    store: &dyn MetaStore,
    key: &str,
    mut decide: impl FnMut(Option<T>) -> Result<Change<T, R>, ClusterError>,
) -> Result<R, ClusterError>
where
    T: Serialize + DeserializeOwned,
{
    let mut current = store.get(key)?;
    for _ in 0..ATTEMPTS_MAX {
        let value = current.as_ref().map(|entry| decode(key, entry)).transpose()?;
        let (next, result) = match decide(value)? {
            Change::Keep(result) => return Ok(result),
            Change::Write(next, result) => (next, result),
        };
        let bytes = encode(key, &next)?;
        match store.compare_and_set(key, Expected::of(current.as_ref()), &bytes) {
            Ok(_) => return Ok(result),
            Err(CasError::Conflict { current: found }) => current = found,
            Err(CasError::Unknown { .. }) => {
                current = store.get(key).map_err(ClusterError::Unknown)?;
            }
            Err(CasError::Failed(error)) => return Err(error.into()),
        }
    }
    Err(ClusterError::Contended { key: key.to_owned(), attempts: ATTEMPTS_MAX })
}
