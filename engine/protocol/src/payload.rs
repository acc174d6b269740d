//! What the payload of a record says. Every record carries its full names; whoever finds it through
//! a tag compares them. Bytes are parsed, never asserted.

use halfmoon_wire::limits::{KEY_MAX_BYTES, RECORD_MAX_BYTES, TABLE_NAME_MAX_BYTES, TAGS_MAX};
use halfmoon_wire::{DecodeError, InstanceId, Reader, RunId, SeqNum, VersionId, Writer};

use crate::call::{Point, Status};
use crate::{Mode, Object, ids};

const WHAT: &str = "protocol entry";

/// Bytes of a function's name.
pub const FUNCTION_NAME_MAX_BYTES: usize = 256;

/// What a record of the intent stream means for roots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Intent {
    /// These roots are in the log from here on (a step that starts a detached root may also carry
    /// its own root's Init, so there can be two).
    Begins(Vec<InstanceId>),
    /// This root has ended.
    Ends(InstanceId),
}

/// Parses a record of the intent stream: what a take-over scans for an Init without a Finish.
pub fn intent(payload: &[u8]) -> Result<Intent, DecodeError> {
    let entry = Entry::decode(payload)?;
    if let Body::Finish { .. } = entry.body {
        return Ok(Intent::Ends(entry.instance));
    }
    let inits = entry.init.iter().chain(entry.body.detached());
    Ok(Intent::Begins(inits.map(|init| init.root).collect()))
}

/// What a record counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A standalone Init.
    Init,
    /// A step other than a fence.
    Step,
    /// An empty step.
    Fence,
    /// The end marker of an instance.
    Finish,
    /// A request to cancel.
    Cancel,
}

/// What a record counts as, for whoever counts appends; `None` when it does not parse.
#[must_use]
pub fn kind(payload: &[u8]) -> Option<Kind> {
    Some(match Entry::decode(payload).ok()?.body {
        Body::Init => Kind::Init,
        Body::Fence => Kind::Fence,
        Body::Finish { .. } => Kind::Finish,
        Body::Cancel => Kind::Cancel,
        Body::Write { .. }
        | Body::Read { .. }
        | Body::WriteIntent { .. }
        | Body::WriteDone { .. }
        | Body::Commit { .. }
        | Body::TooManyConflicts { .. }
        | Body::SideEffect { .. }
        | Body::Select { .. }
        | Body::Detached(_)
        | Body::CallIntent { .. }
        | Body::CallDone { .. }
        | Body::Begin => Kind::Step,
    })
}

/// A value as a record holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stored {
    /// Small: here.
    Inline(Vec<u8>),
    /// Large: in the state store, durable before this record (R2).
    Version(VersionId),
}

/// What makes a root exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Init {
    pub(crate) root: InstanceId,
    /// Initial cursor; `None`: the place of the record itself (a detached root).
    pub(crate) cursor: Option<SeqNum>,
    pub(crate) function: String,
    pub(crate) version: [u8; 32],
    pub(crate) input: Stored,
    pub(crate) fingerprint: u128,
    pub(crate) mode: Mode,
    pub(crate) read_only: bool,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// Whose it is.
    pub(crate) instance: InstanceId,
    /// The run of its root.
    pub(crate) run: RunId,
    /// The root's Init: standing alone, or merged into the first step.
    pub(crate) init: Option<Init>,
    pub(crate) body: Body,
}

/// What a record is. All but `Init`, `Finish` and `Cancel` are steps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    /// A standalone Init.
    Init,
    /// Write of a halfmoon-read object; `None` deletes.
    Write { object: Object, value: Option<Stored> },
    /// Logged read of a cell; `None`: absent.
    Read { object: Object, value: Option<Stored> },
    /// Boki: before the put; its place orders the write.
    WriteIntent { object: Object },
    /// Boki: after the put.
    WriteDone { object: Object },
    /// A transaction's outcome: number, where it read, what it wrote.
    Commit { transaction: u32, cursor: SeqNum, writes: Vec<(Object, Option<Stored>)> },
    /// A transaction met too many conflicts.
    TooManyConflicts { transaction: u32 },
    /// Result of a side effect.
    SideEffect { result: Stored },
    /// Nothing, in its place.
    Fence,
    /// First-of: this call won.
    Select { call: u32 },
    /// Starts a root that nobody waits for.
    Detached(Init),
    /// Boki: before a call.
    CallIntent { call: u32 },
    /// Boki: after a call.
    CallDone { call: u32, status: Status, result: Stored, point: Point },
    /// Boki: a callee has started.
    Begin,
    /// The end marker.
    Finish { status: Status, result: Stored, point: Point },
    /// A request to cancel `instance`.
    Cancel,
}

impl Init {
    /// The run that it begins.
    pub(crate) fn run(&self) -> RunId {
        let (function, fingerprint) = (&self.function, self.fingerprint);
        self.cursor.map_or_else(
            || ids::detached_run(self.root),
            |at| ids::run(self.root, at, function, &self.version, fingerprint),
        )
    }

    fn encode(&self, out: &mut Writer<'_>) {
        out.u128(self.root.0).option(self.cursor, |out, cursor| {
            out.seq(cursor);
        });
        out.text(&self.function).raw(&self.version);
        self.input.encode(out);
        out.u128(self.fingerprint).u8(self.mode as u8).u8(u8::from(self.read_only));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            root: reader.instance()?,
            cursor: reader.option(Reader::seq)?,
            function: reader.text(FUNCTION_NAME_MAX_BYTES)?.to_owned(),
            version: version(reader)?,
            input: Stored::decode(reader)?,
            fingerprint: reader.u128()?,
            mode: match reader.u8()? {
                0 => Mode::Halfmoon,
                1 => Mode::Boki,
                2 => Mode::Unlogged,
                other => return Err(reader.bad(u64::from(other))),
            },
            read_only: reader.flag()?,
        })
    }
}

impl Stored {
    fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Inline(bytes) => out.u8(0).bytes(bytes),
            Self::Version(version) => out.u8(1).u128(version.0),
        };
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            0 => Ok(Self::Inline(reader.bytes(RECORD_MAX_BYTES)?.to_vec())),
            1 => Ok(Self::Version(reader.version()?)),
            other => Err(reader.bad(u64::from(other))),
        }
    }
}

impl Entry {
    /// The record's payload.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        out.u128(self.instance.0).u128(self.run.0);
        out.option(self.init.as_ref(), |out, init| init.encode(out));
        self.body.encode(&mut out);
        bytes
    }

    /// Parses a payload.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload, WHAT);
        let entry = Self {
            instance: reader.instance()?,
            run: reader.run()?,
            init: reader.option(Init::decode)?,
            body: Body::decode(&mut reader)?,
        };
        reader.finish()?;
        Ok(entry)
    }

    /// The Init of `root`, if this record carries it: merged, alone, or for a detached root.
    pub(crate) fn init_of(&self, root: InstanceId) -> Option<&Init> {
        self.init.iter().chain(self.body.detached()).find(|init| init.root == root)
    }

    /// What this record writes to `object`: `None` if it does not.
    pub(crate) fn write_to(&self, object: &Object) -> Option<Option<&Stored>> {
        if let Body::Commit { writes, .. } = &self.body {
            let found = writes.iter().find(|(written, _)| written == object);
            return found.map(|(_, value)| value.as_ref());
        }
        let Body::Write { object: written, value } = &self.body else { return None };
        (written == object).then_some(value.as_ref())
    }
}

impl Body {
    /// The Init of the root that it starts.
    pub(crate) const fn detached(&self) -> Option<&Init> {
        if let Self::Detached(init) = self { Some(init) } else { None }
    }

    /// Its kind, for errors.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Init => "an Init",
            Self::Write { .. } => "a write",
            Self::Read { .. } => "a read",
            Self::WriteIntent { .. } => "the start of a write",
            Self::WriteDone { .. } => "the end of a write",
            Self::Commit { .. } | Self::TooManyConflicts { .. } => "a transaction",
            Self::SideEffect { .. } => "a side effect",
            Self::Fence => "a fence",
            Self::Select { .. } => "a first-of",
            Self::Detached(_) => "an asynchronous call",
            Self::CallIntent { .. } => "the start of a call",
            Self::CallDone { .. } => "the end of a call",
            Self::Begin => "the start of a callee",
            Self::Finish { .. } => "the end of the instance",
            Self::Cancel => "a cancel request",
        }
    }

    fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Init => drop(out.u8(0)),
            Self::Write { object, value } => value_at(out.u8(1), object, value.as_ref()),
            Self::Read { object, value } => value_at(out.u8(2), object, value.as_ref()),
            Self::WriteIntent { object } => put_object(out.u8(3), object),
            Self::WriteDone { object } => put_object(out.u8(4), object),
            Self::Commit { transaction, cursor, writes } => {
                let count = u32::try_from(writes.len()).unwrap_or(u32::MAX);
                out.u8(5).u32(*transaction).seq(*cursor).u32(count);
                for (object, value) in writes {
                    value_at(out, object, value.as_ref());
                }
            }
            Self::TooManyConflicts { transaction } => drop(out.u8(6).u32(*transaction)),
            Self::SideEffect { result } => result.encode(out.u8(7)),
            Self::Fence => drop(out.u8(8)),
            Self::Select { call } => drop(out.u8(9).u32(*call)),
            Self::Detached(init) => init.encode(out.u8(10)),
            Self::CallIntent { call } => drop(out.u8(11).u32(*call)),
            Self::CallDone { call, status, result, point } => {
                put_end(out.u8(12).u32(*call), *status, result, *point);
            }
            Self::Begin => drop(out.u8(13)),
            Self::Finish { status, result, point } => put_end(out.u8(14), *status, result, *point),
            Self::Cancel => drop(out.u8(15)),
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            0 => Self::Init,
            1 => Self::Write { object: object(reader)?, value: reader.option(Stored::decode)? },
            2 => Self::Read { object: object(reader)?, value: reader.option(Stored::decode)? },
            3 => Self::WriteIntent { object: object(reader)? },
            4 => Self::WriteDone { object: object(reader)? },
            5 => {
                let (transaction, cursor) = (reader.u32()?, reader.seq()?);
                let count = reader.count(TAGS_MAX)?;
                let write = |_| Ok((object(reader)?, reader.option(Stored::decode)?));
                let writes = (0..count).map(write).collect::<Result<_, DecodeError>>()?;
                Self::Commit { transaction, cursor, writes }
            }
            6 => Self::TooManyConflicts { transaction: reader.u32()? },
            7 => Self::SideEffect { result: Stored::decode(reader)? },
            8 => Self::Fence,
            9 => Self::Select { call: reader.u32()? },
            10 => Self::Detached(Init::decode(reader)?),
            11 => Self::CallIntent { call: reader.u32()? },
            12 => {
                let call = reader.u32()?;
                let (status, result, point) = end(reader)?;
                Self::CallDone { call, status, result, point }
            }
            13 => Self::Begin,
            14 => {
                let (status, result, point) = end(reader)?;
                Self::Finish { status, result, point }
            }
            15 => Self::Cancel,
            other => return Err(reader.bad(u64::from(other))),
        })
    }
}

fn put_object(out: &mut Writer<'_>, object: &Object) {
    out.text(&object.table).bytes(&object.key);
}

fn value_at(out: &mut Writer<'_>, object: &Object, value: Option<&Stored>) {
    put_object(out, object);
    out.option(value, |out, value| value.encode(out));
}

fn put_end(out: &mut Writer<'_>, status: Status, result: &Stored, point: Point) {
    result.encode(out.u8(status as u8));
    out.seq(point.cursor).u32(point.counter);
}

fn object(reader: &mut Reader<'_>) -> Result<Object, DecodeError> {
    let table = reader.text(TABLE_NAME_MAX_BYTES)?.to_owned();
    Ok(Object { table, key: reader.bytes(KEY_MAX_BYTES)?.to_vec() })
}

fn end(reader: &mut Reader<'_>) -> Result<(Status, Stored, Point), DecodeError> {
    let status = match reader.u8()? {
        0 => Status::Returned,
        1 => Status::Failed,
        2 => Status::Cancelled,
        3 => Status::Parked,
        other => return Err(reader.bad(u64::from(other))),
    };
    let result = Stored::decode(reader)?;
    Ok((status, result, Point { cursor: reader.seq()?, counter: reader.u32()? }))
}

fn version(reader: &mut Reader<'_>) -> Result<[u8; 32], DecodeError> {
    let mut version = [0; 32];
    version.copy_from_slice(reader.raw(32)?);
    Ok(version)
}

#[cfg(test)]
mod tests;
