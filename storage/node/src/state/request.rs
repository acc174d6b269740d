//! Writes as peers ask for them, checked.

use std::sync::Arc;

use halfmoon_transport::{LaneId, Memory as _, memory};
use halfmoon_wire::limits::VALUE_MAX_BYTES;
use halfmoon_wire::{StateRequest, ValueSource};

use crate::lanes::Lanes;
use crate::limits::BLOB_MAX_BYTES;
use crate::state::entry::{Put, Rule, blob_key, cell_head, cell_key, version_key};

/// A request that breaks the rules: its lane is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("a value of {0} bytes is over the limit of {VALUE_MAX_BYTES}")]
    Long(usize),
    #[error("a staged value lies outside the lane's staging region")]
    Staging,
    #[error("a piece of a blob does not lie within it")]
    Blob,
}

/// The write that a request asks for.
pub(super) fn parse_put(
    lane: LaneId,
    request: &StateRequest<'_>,
    lanes: &Lanes,
) -> Result<Put, RequestError> {
    let (rule, key, value) = match *request {
        StateRequest::PutCell { object, tuple, value } => {
            let head = cell_head(tuple, value.is_some());
            let stored = match value {
                Some(value) => fetch(lane, value, head, lanes)?,
                None => head,
            };
            (Rule::Newer, cell_key(object), Arc::from(stored))
        }
        StateRequest::PutVersion { object, version, value } => {
            let stored = fetch(lane, value, Vec::new(), lanes)?;
            (Rule::Always, version_key(object, version), Arc::from(stored))
        }
        StateRequest::PutBlob { hash, total, offset, bytes } => {
            let end = offset.checked_add(bytes.len() as u64).ok_or(RequestError::Blob)?;
            if bytes.is_empty() || end > total || total > BLOB_MAX_BYTES {
                return Err(RequestError::Blob);
            }
            let stored = [&total.to_le_bytes()[..], bytes].concat();
            (Rule::Always, blob_key(&hash, offset), Arc::from(stored))
        }
        StateRequest::GetCell { .. }
        | StateRequest::GetTuple { .. }
        | StateRequest::GetVersion { .. }
        | StateRequest::GetBase { .. }
        | StateRequest::GetBlob { .. }
        | StateRequest::Scan { .. } => unreachable!("reads are told apart before"),
    };
    Ok(Put { rule, key, value, number: 0 })
}

/// Appends the bytes of a value to `stored`: from the message, or from the lane's staging region.
fn fetch(
    lane: LaneId,
    value: ValueSource<'_>,
    mut stored: Vec<u8>,
    lanes: &Lanes,
) -> Result<Vec<u8>, RequestError> {
    if value.len() > VALUE_MAX_BYTES {
        return Err(RequestError::Long(value.len()));
    }
    match value {
        ValueSource::Inline(bytes) => stored.extend_from_slice(bytes),
        ValueSource::Staged { offset, .. } => {
            let region = lanes
                .get(lane)
                .and_then(|lane| lane.staging.as_deref())
                .ok_or(RequestError::Staging)?;
            let words = region.words();
            memory::append_out(words, offset, value.len(), &mut stored)
                .map_err(|_| RequestError::Staging)?;
        }
    }
    Ok(stored)
}
