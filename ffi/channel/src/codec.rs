//! Messages as bytes. What is read is parsed, never asserted.

use halfmoon_wire::{DecodeError, Reader, Writer};

use crate::arena::Buffer;
use crate::limits::{
    ENTRY_MAX_BYTES, FUNCTION_NAME_MAX_BYTES, INLINE_MAX_BYTES, KEY_MAX_BYTES,
    TABLE_NAME_MAX_BYTES, TEXT_MAX_BYTES,
};
use crate::message::{
    Data, EndReason, Finish, Invoke, Level, Operation, Outcome, Refusal, Request, ToWorker,
};

/// A part of a message exceeds its limit, so it was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} has {len} bytes; at most {limit} are allowed")]
pub struct TooLong {
    /// Which part.
    pub what: &'static str,
    /// Its length.
    pub len: usize,
    /// Its limit.
    pub limit: usize,
}

type Encoded = Result<(), TooLong>;

/// Writes the parts of a message, each within its limit.
struct Encoder<'a>(Writer<'a>);

impl Encoder<'_> {
    fn bytes(&mut self, what: &'static str, bytes: &[u8], limit: usize) -> Encoded {
        if bytes.len() > limit {
            return Err(TooLong { what, len: bytes.len(), limit });
        }
        self.0.bytes(bytes);
        Ok(())
    }

    fn table(&mut self, table: &str) -> Encoded {
        self.bytes("the table's name", table.as_bytes(), TABLE_NAME_MAX_BYTES)
    }

    fn key(&mut self, key: &[u8]) -> Encoded {
        self.bytes("the key", key, KEY_MAX_BYTES)
    }

    fn function(&mut self, name: &str) -> Encoded {
        self.bytes("the function's name", name.as_bytes(), FUNCTION_NAME_MAX_BYTES)
    }

    fn text(&mut self, text: &str) -> Encoded {
        self.bytes("a text", text.as_bytes(), TEXT_MAX_BYTES)
    }

    fn data(&mut self, data: Data<'_>) -> Encoded {
        match data {
            Data::Inline(bytes) => {
                self.0.u8(0);
                self.bytes("an inline value", bytes, INLINE_MAX_BYTES)
            }
            Data::Shared(buffer) => {
                self.0.u8(1);
                self.buffer(buffer);
                Ok(())
            }
        }
    }

    fn buffer(&mut self, buffer: Buffer) {
        self.0.u32(buffer.offset).u32(buffer.len).u32(buffer.generation);
    }
}

/// Takes the parts of a message.
struct Decoder<'a>(Reader<'a>);

impl<'a> Decoder<'a> {
    fn table(&mut self) -> Result<&'a str, DecodeError> {
        self.0.text(TABLE_NAME_MAX_BYTES)
    }

    fn key(&mut self) -> Result<&'a [u8], DecodeError> {
        self.0.bytes(KEY_MAX_BYTES)
    }

    fn function(&mut self) -> Result<&'a str, DecodeError> {
        self.0.text(FUNCTION_NAME_MAX_BYTES)
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        self.0.text(TEXT_MAX_BYTES)
    }

    fn data(&mut self) -> Result<Data<'a>, DecodeError> {
        if self.0.flag()? {
            Ok(Data::Shared(self.buffer()?))
        } else {
            Ok(Data::Inline(self.0.bytes(INLINE_MAX_BYTES)?))
        }
    }

    fn buffer(&mut self) -> Result<Buffer, DecodeError> {
        Ok(Buffer { offset: self.0.u32()?, len: self.0.u32()?, generation: self.0.u32()? })
    }

    fn code<T>(&mut self, from: impl FnOnce(u8) -> Option<T>) -> Result<T, DecodeError> {
        let code = self.0.u8()?;
        from(code).ok_or_else(|| self.0.bad(u64::from(code)))
    }

    fn bad<T>(&self, code: u8) -> Result<T, DecodeError> {
        Err(self.0.bad(u64::from(code)))
    }

    fn draw(&mut self) -> Result<[u8; 32], DecodeError> {
        let bytes = self.0.raw(32)?;
        Ok(*bytes.first_chunk().expect("32 bytes were taken"))
    }
}

/// A buffer for messages that never grows: every message fits.
pub(crate) fn scratch() -> Vec<u8> {
    Vec::with_capacity(ENTRY_MAX_BYTES)
}

impl ToWorker<'_> {
    /// Replaces `into` with the message.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<(), TooLong> {
        into.clear();
        let mut to = Encoder(Writer(into));
        match self {
            Self::Invoke(invoke) => {
                to.0.u8(1).u128(invoke.instance).u32(invoke.attempt).u64(invoke.deadline_ms);
                to.function(invoke.function)?;
                to.data(invoke.input)
            }
            Self::Reply { id, outcome } => {
                to.0.u8(2).u64(*id);
                encode_outcome(&mut to, outcome)
            }
            Self::Shutdown => {
                to.0.u8(3);
                Ok(())
            }
        }
    }

    /// Parses a message.
    pub fn decode(bytes: &[u8]) -> Result<ToWorker<'_>, DecodeError> {
        let mut from = Decoder(Reader::new(bytes, "message to a worker"));
        let message = match from.0.u8()? {
            1 => {
                let (instance, attempt) = (from.0.u128()?, from.0.u32()?);
                let (deadline_ms, function) = (from.0.u64()?, from.function()?);
                let input = from.data()?;
                ToWorker::Invoke(Invoke { function, instance, attempt, deadline_ms, input })
            }
            2 => ToWorker::Reply { id: from.0.u64()?, outcome: decode_outcome(&mut from)? },
            3 => ToWorker::Shutdown,
            other => return from.bad(other),
        };
        from.0.finish()?;
        Ok(message)
    }
}

fn encode_outcome(to: &mut Encoder<'_>, outcome: &Outcome<'_>) -> Encoded {
    match *outcome {
        Outcome::Done => to.0.u8(1),
        Outcome::Value(data) => {
            to.0.u8(2);
            return to.data(data);
        }
        Outcome::Absent => to.0.u8(3),
        Outcome::Committed => to.0.u8(4),
        Outcome::Conflict => to.0.u8(5),
        Outcome::Go => to.0.u8(6),
        Outcome::Time(ns) => to.0.u8(7).u64(ns),
        Outcome::Instance(id) => to.0.u8(8).u128(id),
        Outcome::Draw(bytes) => to.0.u8(9).raw(&bytes),
        Outcome::CalleeFailed(data) => {
            to.0.u8(10);
            return to.data(data);
        }
        Outcome::Refused { code, text } => {
            to.0.u8(11).u8(code.code());
            return to.text(text);
        }
        Outcome::Ended(reason) => to.0.u8(12).u8(reason.code()),
    };
    Ok(())
}

fn decode_outcome<'a>(from: &mut Decoder<'a>) -> Result<Outcome<'a>, DecodeError> {
    Ok(match from.0.u8()? {
        1 => Outcome::Done,
        2 => Outcome::Value(from.data()?),
        3 => Outcome::Absent,
        4 => Outcome::Committed,
        5 => Outcome::Conflict,
        6 => Outcome::Go,
        7 => Outcome::Time(from.0.u64()?),
        8 => Outcome::Instance(from.0.u128()?),
        9 => Outcome::Draw(from.draw()?),
        10 => Outcome::CalleeFailed(from.data()?),
        11 => Outcome::Refused { code: from.code(Refusal::from_code)?, text: from.text()? },
        12 => Outcome::Ended(from.code(EndReason::from_code)?),
        other => return from.bad(other),
    })
}

/// First byte of a `Release`.
const RELEASE: u8 = 3;

/// Whether these are the bytes of a `Release`.
pub(crate) fn is_release(message: &[u8]) -> bool {
    message.first() == Some(&RELEASE)
}

impl Request<'_> {
    /// Replaces `into` with the message.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<(), TooLong> {
        into.clear();
        let mut to = Encoder(Writer(into));
        match self {
            Self::Hello { layout, sdk } => {
                to.0.u8(1).u32(*layout);
                to.text(sdk)
            }
            Self::Ask { id, operation } => {
                to.0.u8(2).u64(*id);
                encode_operation(&mut to, operation)
            }
            Self::Release(buffer) => {
                to.0.u8(RELEASE);
                to.buffer(*buffer);
                Ok(())
            }
            Self::Log { level, text } => {
                to.0.u8(4).u8(level.code());
                to.text(text)
            }
            Self::Finish(finish) => {
                to.0.u8(5);
                encode_finish(&mut to, finish)
            }
        }
    }

    /// Parses a message.
    pub fn decode(bytes: &[u8]) -> Result<Request<'_>, DecodeError> {
        let mut from = Decoder(Reader::new(bytes, "message from a worker"));
        let message = match from.0.u8()? {
            1 => Request::Hello { layout: from.0.u32()?, sdk: from.text()? },
            2 => Request::Ask { id: from.0.u64()?, operation: decode_operation(&mut from)? },
            RELEASE => Request::Release(from.buffer()?),
            4 => Request::Log { level: from.code(Level::from_code)?, text: from.text()? },
            5 => Request::Finish(decode_finish(&mut from)?),
            other => return from.bad(other),
        };
        from.0.finish()?;
        Ok(message)
    }
}

fn encode_operation(to: &mut Encoder<'_>, operation: &Operation<'_>) -> Encoded {
    match *operation {
        Operation::Read { table, key } => {
            to.0.u8(1);
            to.table(table)?;
            return to.key(key);
        }
        Operation::Write { table, key, value } => {
            to.0.u8(2);
            to.table(table)?;
            to.key(key)?;
            to.0.u8(u8::from(value.is_some()));
            return value.map_or(Ok(()), |value| to.data(value));
        }
        Operation::TxnBegin => to.0.u8(3),
        Operation::TxnCommit => to.0.u8(4),
        Operation::TxnAbort => to.0.u8(5),
        Operation::Call { function, input } => return encode_call(to, 6, function, input),
        Operation::CallBegin { function, input } => return encode_call(to, 7, function, input),
        Operation::Join { call } => to.0.u8(8).u64(call),
        Operation::Spawn { function, input } => return encode_call(to, 9, function, input),
        Operation::SideEffectBegin => to.0.u8(10),
        Operation::SideEffectDone { result } => {
            to.0.u8(11);
            return to.data(result);
        }
        Operation::Fence => to.0.u8(12),
        Operation::Now => to.0.u8(13),
        Operation::Random => to.0.u8(14),
    };
    Ok(())
}

fn encode_call(to: &mut Encoder<'_>, kind: u8, function: &str, input: Data<'_>) -> Encoded {
    to.0.u8(kind);
    to.function(function)?;
    to.data(input)
}

fn decode_operation<'a>(from: &mut Decoder<'a>) -> Result<Operation<'a>, DecodeError> {
    Ok(match from.0.u8()? {
        1 => Operation::Read { table: from.table()?, key: from.key()? },
        2 => {
            let (table, key) = (from.table()?, from.key()?);
            let value = if from.0.flag()? { Some(from.data()?) } else { None };
            Operation::Write { table, key, value }
        }
        3 => Operation::TxnBegin,
        4 => Operation::TxnCommit,
        5 => Operation::TxnAbort,
        6 => Operation::Call { function: from.function()?, input: from.data()? },
        7 => Operation::CallBegin { function: from.function()?, input: from.data()? },
        8 => Operation::Join { call: from.0.u64()? },
        9 => Operation::Spawn { function: from.function()?, input: from.data()? },
        10 => Operation::SideEffectBegin,
        11 => Operation::SideEffectDone { result: from.data()? },
        12 => Operation::Fence,
        13 => Operation::Now,
        14 => Operation::Random,
        other => return from.bad(other),
    })
}

fn encode_finish(to: &mut Encoder<'_>, finish: &Finish<'_>) -> Encoded {
    match *finish {
        Finish::Returned(data) => {
            to.0.u8(1);
            to.data(data)
        }
        Finish::Failed(data) => {
            to.0.u8(2);
            to.data(data)
        }
        Finish::Unwound => {
            to.0.u8(3);
            Ok(())
        }
        Finish::Crashed { text } => {
            to.0.u8(4);
            to.text(text)
        }
    }
}

fn decode_finish<'a>(from: &mut Decoder<'a>) -> Result<Finish<'a>, DecodeError> {
    Ok(match from.0.u8()? {
        1 => Finish::Returned(from.data()?),
        2 => Finish::Failed(from.data()?),
        3 => Finish::Unwound,
        4 => Finish::Crashed { text: from.text()? },
        other => return from.bad(other),
    })
}
