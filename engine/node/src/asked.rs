//! What a worker says, copied out of shared memory.

use std::rc::Rc;

use halfmoon_channel::{
    ChannelError, Data, EngineSide, Finish, Level, Operation, Outcome, Refusal, Request,
};
use halfmoon_protocol::Refused;

/// A message of a worker.
pub(crate) enum Said {
    Hello,
    Log(Level, String),
    Ask(u64, Asked),
    Finish(Finished),
}

/// Bytes that the worker sent: here, or still in its arena.
pub(crate) enum Bytes {
    Here(Rc<[u8]>),
    There(halfmoon_channel::Buffer),
}

/// An operation.
pub(crate) enum Asked {
    Read { table: String, key: Vec<u8> },
    Write { table: String, key: Vec<u8>, value: Option<Bytes> },
    TxnBegin,
    TxnCommit,
    TxnAbort,
    Call { function: String, input: Bytes },
    CallBegin { function: String, input: Bytes },
    Join { call: u64 },
    Spawn { function: String, input: Bytes },
    SideEffectBegin,
    SideEffectDone { result: Bytes },
    Fence,
    Now,
    Random,
    Unknown,
}

/// How a function ended.
pub(crate) enum Finished {
    Returned(Bytes),
    Failed(Bytes),
    Unwound,
    Crashed(String),
}

impl Said {
    /// Copies what is in the message.
    pub(crate) fn of(request: Request<'_>) -> Self {
        match request {
            // A release is handled inside the channel.
            Request::Hello { .. } | Request::Release(_) => Self::Hello,
            Request::Log { level, text } => Self::Log(level, text.to_owned()),
            Request::Ask { id, operation } => Self::Ask(id, Asked::of(operation)),
            Request::Finish(finish) => Self::Finish(match finish {
                Finish::Returned(data) => Finished::Returned(Bytes::of(data)),
                Finish::Failed(data) => Finished::Failed(Bytes::of(data)),
                Finish::Unwound => Finished::Unwound,
                Finish::Crashed { text } => Finished::Crashed(text.to_owned()),
            }),
        }
    }

    /// Copies what is in the arena: the worker can change that at any time, and what is stored on
    /// three nodes must be the same bytes on each.
    pub(crate) fn load(self, side: &EngineSide) -> Result<Self, ChannelError> {
        Ok(match self {
            Self::Ask(id, asked) => Self::Ask(id, asked.load(side)?),
            Self::Finish(Finished::Returned(bytes)) => {
                Self::Finish(Finished::Returned(bytes.load(side)?))
            }
            Self::Finish(Finished::Failed(bytes)) => {
                Self::Finish(Finished::Failed(bytes.load(side)?))
            }
            said @ (Self::Hello | Self::Log(..) | Self::Finish(_)) => said,
        })
    }
}

impl Bytes {
    fn of(data: Data<'_>) -> Self {
        match data {
            Data::Inline(bytes) => Self::Here(bytes.into()),
            Data::Shared(buffer) => Self::There(buffer),
        }
    }

    fn load(self, side: &EngineSide) -> Result<Self, ChannelError> {
        let Self::There(buffer) = self else { return Ok(self) };
        let mut bytes = Vec::with_capacity(buffer.len_bytes());
        side.copy_out(Data::Shared(buffer), &mut bytes)?;
        Ok(Self::Here(bytes.into()))
    }

    /// The bytes, once loaded.
    pub(crate) fn here(self) -> Rc<[u8]> {
        match self {
            Self::Here(bytes) => bytes,
            Self::There(_) => Rc::from([]),
        }
    }
}

impl Asked {
    fn of(operation: Operation<'_>) -> Self {
        match operation {
            Operation::Read { table, key } => {
                Self::Read { table: table.to_owned(), key: key.to_vec() }
            }
            Operation::Write { table, key, value } => Self::Write {
                table: table.to_owned(),
                key: key.to_vec(),
                value: value.map(Bytes::of),
            },
            Operation::TxnBegin => Self::TxnBegin,
            Operation::TxnCommit => Self::TxnCommit,
            Operation::TxnAbort => Self::TxnAbort,
            Operation::Call { function, input } => {
                Self::Call { function: function.to_owned(), input: Bytes::of(input) }
            }
            Operation::CallBegin { function, input } => {
                Self::CallBegin { function: function.to_owned(), input: Bytes::of(input) }
            }
            Operation::Join { call } => Self::Join { call },
            Operation::Spawn { function, input } => {
                Self::Spawn { function: function.to_owned(), input: Bytes::of(input) }
            }
            Operation::SideEffectBegin => Self::SideEffectBegin,
            Operation::SideEffectDone { result } => {
                Self::SideEffectDone { result: Bytes::of(result) }
            }
            Operation::Fence => Self::Fence,
            Operation::Now => Self::Now,
            Operation::Random => Self::Random,
            // Of a later version of the channel.
            _ => Self::Unknown,
        }
    }

    fn load(self, side: &EngineSide) -> Result<Self, ChannelError> {
        Ok(match self {
            Self::Write { table, key, value } => {
                let value = value.map(|value| value.load(side)).transpose()?;
                Self::Write { table, key, value }
            }
            Self::Call { function, input } => Self::Call { function, input: input.load(side)? },
            Self::CallBegin { function, input } => {
                Self::CallBegin { function, input: input.load(side)? }
            }
            Self::Spawn { function, input } => Self::Spawn { function, input: input.load(side)? },
            Self::SideEffectDone { result } => Self::SideEffectDone { result: result.load(side)? },
            asked @ (Self::Read { .. }
            | Self::TxnBegin
            | Self::TxnCommit
            | Self::TxnAbort
            | Self::Join { .. }
            | Self::SideEffectBegin
            | Self::Fence
            | Self::Now
            | Self::Random
            | Self::Unknown) => asked,
        })
    }
}

/// The arena has no room for a value.
pub(crate) fn arena_full() -> Outcome<'static> {
    Outcome::Refused {
        code: Refusal::ArenaFull,
        text: "no state buffer is free for the value: the function holds on to too many",
    }
}

/// What the function is told about a refusal of the protocols.
pub(crate) const fn refusal(refused: Refused) -> Refusal {
    match refused {
        Refused::ReadOnly
        | Refused::InTransaction
        | Refused::ParallelInTransaction
        | Refused::NoTransaction
        | Refused::LoggedTable
        | Refused::CallsOutstanding
        | Refused::KeyReused => Refusal::NotAllowed,
        Refused::NotTransactional => Refusal::NotTransactional,
        Refused::TransactionTooLarge => Refusal::TransactionTooLarge,
        Refused::NameTooLong | Refused::ValueTooLong => Refusal::TooLong,
        Refused::NoSuchCall => Refusal::NoSuchCall,
    }
}
