//! Between the journal's outcomes and the channel's.

use super::{Ended, FakeError, Host, Recorded};
use crate::engine::{ChannelError, SendError};
use crate::message::{Data, Finish, Operation, Outcome};

/// How an attempt ended.
pub(super) enum Tried {
    Ended(Ended),
    Unwound,
    Lost(String),
}

pub(super) fn called(ended: Ended) -> Recorded {
    match ended {
        Ended::Returned(bytes) => Recorded::Value(bytes),
        Ended::Failed(bytes) => Recorded::CalleeFailed(bytes),
    }
}

pub(super) fn finished(host: &Host, finish: Finish<'_>) -> Result<Tried, FakeError> {
    let copy = |data: Data<'_>| {
        let mut bytes = Vec::new();
        host.side.copy_out(data, &mut bytes).map(|()| bytes)
    };
    Ok(match finish {
        Finish::Returned(data) => Tried::Ended(Ended::Returned(copy(data)?)),
        Finish::Failed(data) => Tried::Ended(Ended::Failed(copy(data)?)),
        Finish::Unwound => Tried::Unwound,
        Finish::Crashed { text } => Tried::Lost(text.to_owned()),
    })
}

pub(super) fn send(host: &mut Host, id: u64, recorded: &Recorded) -> Result<(), FakeError> {
    let outcome = match recorded {
        Recorded::Done | Recorded::Begun(_) => Outcome::Done,
        Recorded::Value(bytes) => Outcome::Value(host.side.place(bytes).map_err(SendError::from)?),
        Recorded::CalleeFailed(bytes) => {
            Outcome::CalleeFailed(host.side.place(bytes).map_err(SendError::from)?)
        }
        Recorded::Absent => Outcome::Absent,
        Recorded::Committed => Outcome::Committed,
        Recorded::Conflict => Outcome::Conflict,
        Recorded::Go => Outcome::Go,
        Recorded::Time(ns) => Outcome::Time(*ns),
        Recorded::Instance(id) => Outcome::Instance(*id),
        Recorded::Draw(bytes) => Outcome::Draw(*bytes),
        Recorded::Refused(code, text) => Outcome::Refused { code: *code, text },
        Recorded::Ended(reason) => Outcome::Ended(*reason),
    };
    Ok(host.side.send_reply(id, &outcome)?)
}

/// An operation by its content, to be compared with that of another attempt.
pub(super) fn describe(host: &Host, operation: &Operation<'_>) -> Result<String, ChannelError> {
    let shown = |data: Data<'_>| -> Result<String, ChannelError> {
        let mut bytes = Vec::new();
        host.side.copy_out(data, &mut bytes)?;
        bytes.truncate(DESCRIBED_MAX_BYTES);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(match *operation {
        Operation::Write { table, key, value } => {
            let value = value.map(shown).transpose()?;
            format!("write of {table}/{} = {value:?}", String::from_utf8_lossy(key))
        }
        Operation::Call { function, input } => format!("call of {function}({})", shown(input)?),
        Operation::CallBegin { function, input } => {
            format!("begin of a call of {function}({})", shown(input)?)
        }
        Operation::Spawn { function, input } => format!("spawn of {function}({})", shown(input)?),
        Operation::SideEffectDone { .. } => "result of a side effect".to_owned(),
        // Ids differ between attempts.
        Operation::Join { .. } => "join".to_owned(),
        ref other @ (Operation::Read { .. }
        | Operation::TxnBegin
        | Operation::TxnCommit
        | Operation::TxnAbort
        | Operation::SideEffectBegin
        | Operation::Fence
        | Operation::Now
        | Operation::Random) => format!("{other:?}"),
    })
}

/// Bytes of a value that an operation's description holds.
const DESCRIBED_MAX_BYTES: usize = 256;
