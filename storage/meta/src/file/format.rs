//! The bytes of the `state` file: one line for the machine, then JSON that a person can read.
//!
//! ```text
//! halfmoon-meta 1 0c7e7fbe
//! {
//!   "revision": 7,
//!   "entries": {
//!     "cluster": { "revision": 7, "value": { "text": "{…}" } }
//!   }
//! }
//! ```
//!
//! The last word of the first line is the CRC32C of all that follows it, in hex.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Entry, Revision};

const MAGIC: &str = "halfmoon-meta";
const VERSION: &str = "1";

/// The whole map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct State {
    /// The revision of the last change.
    pub(super) revision: u64,
    pub(super) entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredState {
    revision: u64,
    entries: BTreeMap<String, StoredEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEntry {
    revision: u64,
    value: StoredValue,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StoredValue {
    /// Bytes that are UTF-8.
    Text(String),
    /// Any others.
    Bytes(Vec<u8>),
}

pub(super) fn encode(state: &State) -> serde_json::Result<Vec<u8>> {
    let stored = StoredState {
        revision: state.revision,
        entries: state.entries.iter().map(|(key, entry)| (key.clone(), store(entry))).collect(),
    };
    let body = serde_json::to_string_pretty(&stored)?;
    let crc = crc32c::crc32c(body.as_bytes());
    Ok(format!("{MAGIC} {VERSION} {crc:08x}\n{body}").into_bytes())
}

pub(super) fn decode(bytes: &[u8]) -> Result<State, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (head, body) = text.split_once('\n').ok_or("it has no first line")?;
    let words: Vec<&str> = head.split(' ').collect();
    let &[magic, version, crc] = words.as_slice() else {
        return Err("its first line is not that of a metadata store".to_owned());
    };
    if magic != MAGIC {
        return Err("its first line is not that of a metadata store".to_owned());
    }
    if version != VERSION {
        return Err(format!("it has format {version}; this program reads {VERSION}"));
    }
    let found = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
    if found != crc {
        return Err(format!("its checksum is {found}, the first line says {crc}"));
    }
    let stored: StoredState = serde_json::from_str(body).map_err(|error| error.to_string())?;
    let entries = stored.entries.into_iter().map(|(key, entry)| (key, load(entry))).collect();
    Ok(State { revision: stored.revision, entries })
}

fn store(entry: &Entry) -> StoredEntry {
    let value = match String::from_utf8(entry.value.clone()) {
        Ok(text) => StoredValue::Text(text),
        Err(error) => StoredValue::Bytes(error.into_bytes()),
    };
    StoredEntry { revision: entry.revision.0, value }
}

fn load(entry: StoredEntry) -> Entry {
    let value = match entry.value {
        StoredValue::Text(text) => text.into_bytes(),
        StoredValue::Bytes(bytes) => bytes,
    };
    Entry { value, revision: Revision(entry.revision) }
}
