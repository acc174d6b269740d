//! Messages between nodes, one per ring entry.
//!
//! | message | from → to | when |
//! |---|---|---|
//! | [`Message::Append`] | engine → sequencer | a record to order |
//! | [`Message::Report`] | engine → sequencer | now and then: renews the engine's lease, carries its safe point |
//! | [`Message::Follow`] | engine, storage, standby → sequencer | stream to me from this position on |
//! | [`Message::AskTail`] / [`Message::Tail`] | engine ⇄ sequencer | the linearizable start of a root |
//! | [`Message::Refused`] | sequencer → engine | an append was not ordered, and why |
//! | [`Message::Welcome`] | sequencer → all | the epoch, its log's history, the window |
//! | [`Message::Stream`] | sequencer → all | records back to back, contiguous |
//! | [`Message::Heartbeat`] | sequencer → standby | the ordering loop turns; how far it is committed |
//! | [`Message::Seal`] / [`Message::Sealed`] | sequencer ⇄ storage | the promise at the start of an epoch |
//! | [`Message::Durable`] | storage → sequencer | watermark, as a message |
//! | [`Message::Confirm`] / [`Message::Confirmed`] | sequencer ⇄ storage | does my epoch still hold? |
//! | [`Message::WatermarkHere`] | engine → storage | the word, fresh per epoch, that watermarks go to |
//! | [`Message::ReadLog`] / [`Message::LogChunk`] | any → storage | records below the window |
//! | [`Message::Staging`] | storage → engine | where large values of puts may be written |
//! | [`Message::State`] / [`Message::StateAnswer`] | engine ⇄ storage | the state store |
//! | the same, with a scan | storage ⇄ storage | a new member copies the state |
//! | [`Message::AskStatus`] / [`Message::Status`] | any ⇄ storage | how is it? |

use crate::limits::{HISTORY_MAX, MESSAGE_MAX_BYTES};
use crate::{
    Append, AppendParts, AppendView, DecodeError, Epoch, LocalId, NodeId, Reader, Refusal, SeqNum,
    StateReply, StateRequest, Writer,
};

/// Where an epoch's records begin in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Position of its first record, the opening one.
    pub first: SeqNum,
}

/// How a storage node is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NodeStatus {
    /// The highest epoch promised; 0 for a node that was asked for nothing yet.
    pub promised: Epoch,
    /// Last position in the node's log, of whatever epoch, flushed or not.
    pub end: SeqNum,
    /// The epoch of its watermark; 0 while there is none.
    pub epoch: Epoch,
    /// Its watermark in that epoch.
    pub durable: SeqNum,
    /// Bytes of state that it has copied from its peers since it was started.
    pub copied_bytes: u64,
}

impl NodeStatus {
    fn encode(&self, out: &mut Writer<'_>) {
        out.epoch(self.promised).seq(self.end).epoch(self.epoch).seq(self.durable);
        out.u64(self.copied_bytes);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            promised: reader.epoch()?,
            end: reader.seq()?,
            epoch: reader.epoch()?,
            durable: reader.seq()?,
            copied_bytes: reader.u64()?,
        })
    }
}

/// A message between two nodes.
#[derive(Clone, PartialEq, Debug)]
pub enum Message<'a> {
    /// A record to order. Carries the epoch whose sequencer it is meant for; any other drops it.
    Append {
        /// The epoch that the engine is in.
        epoch: Epoch,
        /// The record.
        append: Append<'a>,
    },
    /// Renews the engine's lease.
    Report {
        /// All up to here is applied by the engine, and the roots that it inherits by an Evict
        /// record up to here are in its `safe_point`.
        applied: SeqNum,
        /// Least initial cursor of its unfinished roots; its applied position when it has none.
        safe_point: SeqNum,
        /// Every append of this incarnation up to here is answered and is never sent again; 0 when
        /// there is none. The sequencer forgets which of them are in the log.
        answered: LocalId,
    },
    /// Stream to me from this position on.
    Follow {
        /// First position wanted.
        from: SeqNum,
    },
    /// What is the last position ordered, as of now?
    AskTail {
        /// Comes back in the answer.
        token: u64,
    },
    /// The answer to `AskTail`; given only once two storage nodes have confirmed the epoch after
    /// the question.
    Tail {
        /// From the question.
        token: u64,
        /// The last position ordered when it was asked.
        seq: SeqNum,
    },
    /// An append was not ordered.
    Refused {
        /// The epoch that judged; the verdict dies with it.
        epoch: Epoch,
        /// The engine's number for the append.
        local: LocalId,
        /// Why.
        refusal: Refusal,
    },
    /// The state of the log as its sequencer has it. For a storage node it is the order to compare
    /// its log with this history, cut what differs, and `Follow`.
    Welcome {
        /// The epoch.
        epoch: Epoch,
        /// Starts of all epochs in the log, ascending; the last is this epoch's.
        history: Vec<EpochStart>,
        /// Oldest position that the sequencer can stream; older ones are read from storage.
        window_start: SeqNum,
        /// Last position ordered.
        tail: SeqNum,
        /// Who holds the log.
        members: Vec<NodeId>,
        /// How long an engine's lease lasts from a `Report` on, in ms.
        lease_ms: u32,
        /// Most places of records in tags in the log's window: above it nothing is ordered until the
        /// log is trimmed.
        places_max: u64,
    },
    /// Records back to back.
    Stream {
        /// The epoch of the stream (records may be of older ones).
        epoch: Epoch,
        /// Position of the first.
        first: SeqNum,
        /// Whole records ([`crate::Records`]).
        records: &'a [u8],
    },
    /// The loop that orders has come by here. It is said by that loop and by nothing else, so it
    /// ends when the loop does.
    Heartbeat {
        /// The epoch.
        epoch: Epoch,
        /// Last position that the sequencer knows to be committed; 0 while there is none.
        committed: SeqNum,
    },
    /// Promise to serve nobody older than this epoch.
    Seal {
        /// The epoch.
        epoch: Epoch,
    },
    /// The promise is durable, or was given to a higher epoch already. The log's end as of then.
    Sealed {
        /// The highest epoch promised; the seal is refused when it is above the one asked for.
        promised: Epoch,
        /// Starts of all epochs in the node's log.
        history: Vec<EpochStart>,
        /// Last position in the node's log; 0 when it is empty.
        end: SeqNum,
    },
    /// My log is, up to here, record for record the log of the epoch, durable.
    Durable {
        /// The epoch.
        epoch: Epoch,
        /// Up to here.
        seq: SeqNum,
    },
    /// Say whether you have promised to a higher epoch by now.
    Confirm {
        /// The sequencer's epoch.
        epoch: Epoch,
        /// Comes back in the answer.
        token: u64,
    },
    /// When this was sent, no epoch above this one had been promised. Otherwise there is no answer.
    Confirmed {
        /// From the question.
        epoch: Epoch,
        /// From the question.
        token: u64,
    },
    /// Write your watermarks of this epoch to this word.
    WatermarkHere {
        /// The epoch.
        epoch: Epoch,
        /// The region with the word, at offset 0.
        region: u32,
    },
    /// Ask for records.
    ReadLog {
        /// Comes back in the answer.
        token: u64,
        /// The node's log must be of this epoch: sealed for it (`raw`), or compared with it.
        epoch: Epoch,
        /// The log as it is after the seal, before it was compared: for recovery only.
        raw: bool,
        /// First position wanted.
        from: SeqNum,
        /// About so many bytes at most.
        max_bytes: u32,
    },
    /// Records, or none when `from` is beyond the end or the epoch is another.
    LogChunk {
        /// From the question.
        token: u64,
        /// The epoch that the node's log is of.
        epoch: Epoch,
        /// Position of the first.
        first: SeqNum,
        /// Last durable position of the node's log in that epoch.
        end: SeqNum,
        /// Whole records.
        records: &'a [u8],
    },
    /// Large values of puts may be written to this region.
    Staging {
        /// The region.
        region: u32,
        /// Its bytes.
        len: u64,
    },
    /// A request to the state store.
    State {
        /// Comes back in the answer.
        token: u64,
        /// The epoch that the asker is in. A node that has promised to a later one refuses: by then
        /// the state may be on other members.
        epoch: Epoch,
        /// The request.
        request: StateRequest<'a>,
    },
    /// An answer of the state store.
    StateAnswer {
        /// From the request.
        token: u64,
        /// The answer.
        reply: StateReply<'a>,
    },
    /// How are you?
    AskStatus,
    /// How a storage node is. It promises nothing: it is for whoever looks after the cluster.
    Status(NodeStatus),
}

/// Longest common prefix of two logs, given their histories and last positions: a position with the
/// same epoch in both has the same records up to it in both, because an epoch has one sequencer, and
/// it copies what it found unchanged.
#[must_use]
pub fn agreement(a: (&[EpochStart], SeqNum), b: (&[EpochStart], SeqNum)) -> SeqNum {
    let mut agreed = SeqNum::ZERO;
    for (index, start) in a.0.iter().enumerate() {
        if b.0.get(index) != Some(start) {
            break;
        }
        let end = |(history, end): (&[EpochStart], SeqNum)| {
            history.get(index + 1).map_or(end, |next| next.first.prev()).min(end)
        };
        agreed = agreed.max(end(a).min(end(b)));
        if end(a) != end(b) {
            break;
        }
    }
    agreed
}

fn put_members(out: &mut Writer<'_>, members: &[NodeId]) {
    out.u32(u32::try_from(members.len()).unwrap_or(u32::MAX));
    for member in members {
        out.node(*member);
    }
}

fn put_history(out: &mut Writer<'_>, history: &[EpochStart]) {
    out.u32(u32::try_from(history.len()).unwrap_or(u32::MAX));
    for start in history {
        out.epoch(start.epoch).seq(start.first);
    }
}

fn take_history(reader: &mut Reader<'_>) -> Result<Vec<EpochStart>, DecodeError> {
    let count = reader.count(HISTORY_MAX)?;
    let mut history: Vec<EpochStart> = Vec::with_capacity(count);
    for _ in 0..count {
        let start = EpochStart { epoch: reader.epoch()?, first: reader.seq()? };
        let ascends =
            history.last().is_none_or(|last| last.epoch < start.epoch && last.first < start.first);
        if !ascends {
            return Err(DecodeError::Value { what: "epoch history", value: start.epoch.0 });
        }
        history.push(start);
    }
    Ok(history)
}

/// Appends the encoding of [`Message::Append`] to `out`, without an [`Append`] being built first.
/// The epoch lies at [`APPEND_EPOCH_AT`], so that a copy kept for resubmission can be sent again in
/// another epoch.
pub fn encode_append(out: &mut Vec<u8>, epoch: Epoch, append: &AppendParts<'_>) {
    append.encode(Writer(out).u8(APPEND).epoch(epoch));
}

/// Where the eight bytes of the epoch lie in an encoded [`Message::Append`], little-endian.
pub const APPEND_EPOCH_AT: usize = 1;

/// The epoch and the append of a [`Message::Append`], without a list built for it; `None` when the
/// bytes are another message.
#[must_use]
pub fn append_view(bytes: &[u8]) -> Option<Result<(Epoch, AppendView<'_>), DecodeError>> {
    let (&APPEND, rest) = bytes.split_first()? else { return None };
    let mut reader = Reader::new(rest, "message");
    Some((|| {
        let parsed = (reader.epoch()?, AppendView::decode(&mut reader)?);
        reader.finish()?;
        Ok(parsed)
    })())
}

const APPEND: u8 = 0;

impl<'a> Message<'a> {
    /// Appends the encoding to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut out = Writer(out);
        match self {
            Self::Append { epoch, append } => append.encode(out.u8(APPEND).epoch(*epoch)),
            Self::Report { applied, safe_point, answered } => {
                out.u8(1).seq(*applied).seq(*safe_point).u64(answered.0);
            }
            Self::Follow { from } => {
                out.u8(2).seq(*from);
            }
            Self::AskTail { token } => {
                out.u8(3).u64(*token);
            }
            Self::Tail { token, seq } => {
                out.u8(4).u64(*token).seq(*seq);
            }
            Self::Refused { epoch, local, refusal } => {
                refusal.encode(out.u8(5).epoch(*epoch).u64(local.0));
            }
            Self::Seal { epoch } => {
                out.u8(8).epoch(*epoch);
            }
            Self::Durable { epoch, seq } => {
                out.u8(10).epoch(*epoch).seq(*seq);
            }
            Self::Confirm { epoch, token } => {
                out.u8(17).epoch(*epoch).u64(*token);
            }
            Self::Confirmed { epoch, token } => {
                out.u8(18).epoch(*epoch).u64(*token);
            }
            Self::Heartbeat { epoch, committed } => {
                out.u8(19).epoch(*epoch).seq(*committed);
            }
            Self::WatermarkHere { epoch, region } => {
                out.u8(11).epoch(*epoch).u32(*region);
            }
            Self::Staging { region, len } => {
                out.u8(14).u32(*region).u64(*len);
            }
            Self::State { token, epoch, request } => {
                request.encode(out.u8(15).u64(*token).epoch(*epoch));
            }
            Self::StateAnswer { token, reply } => reply.encode(out.u8(16).u64(*token)),
            Self::AskStatus => {
                out.u8(30);
            }
            Self::Status(status) => status.encode(out.u8(31)),
            Self::Welcome { epoch, history, window_start, tail, members, lease_ms, places_max } => {
                put_history(out.u8(6).epoch(*epoch), history);
                out.seq(*window_start).seq(*tail);
                put_members(&mut out, members);
                out.u32(*lease_ms).u64(*places_max);
            }
            Self::Stream { epoch, first, records } => {
                out.u8(7).epoch(*epoch).seq(*first).raw(records);
            }
            Self::Sealed { promised, history, end } => {
                put_history(out.u8(9).epoch(*promised), history);
                out.seq(*end);
            }
            Self::ReadLog { token, epoch, raw, from, max_bytes } => {
                out.u8(12).u64(*token).epoch(*epoch).u8(u8::from(*raw)).seq(*from).u32(*max_bytes);
            }
            Self::LogChunk { token, epoch, first, end, records } => {
                out.u8(13).u64(*token).epoch(*epoch).seq(*first).seq(*end).raw(records);
            }
        }
    }

    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }

    /// Parses one whole message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "message");
        let kind = reader.u8()?;
        let message = match kind {
            APPEND => Self::Append { epoch: reader.epoch()?, append: Append::decode(&mut reader)? },
            1 => Self::Report {
                applied: reader.seq()?,
                safe_point: reader.seq()?,
                answered: LocalId(reader.u64()?),
            },
            2 => Self::Follow { from: reader.seq()? },
            3 => Self::AskTail { token: reader.u64()? },
            4 => Self::Tail { token: reader.u64()?, seq: reader.seq()? },
            5 => Self::Refused {
                epoch: reader.epoch()?,
                local: LocalId(reader.u64()?),
                refusal: Refusal::decode(&mut reader)?,
            },
            8 => Self::Seal { epoch: reader.epoch()? },
            10 => Self::Durable { epoch: reader.epoch()?, seq: reader.seq()? },
            11 => Self::WatermarkHere { epoch: reader.epoch()?, region: reader.u32()? },
            14 => Self::Staging { region: reader.u32()?, len: reader.u64()? },
            15 => {
                let (token, epoch) = (reader.u64()?, reader.epoch()?);
                Self::State { token, epoch, request: StateRequest::decode(&mut reader)? }
            }
            16 => {
                Self::StateAnswer { token: reader.u64()?, reply: StateReply::decode(&mut reader)? }
            }
            17 => Self::Confirm { epoch: reader.epoch()?, token: reader.u64()? },
            19 => Self::Heartbeat { epoch: reader.epoch()?, committed: reader.seq()? },
            18 => Self::Confirmed { epoch: reader.epoch()?, token: reader.u64()? },
            30 => Self::AskStatus,
            31 => Self::Status(NodeStatus::decode(&mut reader)?),
            6 | 7 | 9 | 12 | 13 => Self::parse_log(kind, &mut reader)?,
            other => {
                return Err(DecodeError::Value { what: "message kind", value: u64::from(other) });
            }
        };
        reader.finish()?;
        Ok(message)
    }

    fn parse_log(kind: u8, reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match kind {
            6 => Self::Welcome {
                epoch: reader.epoch()?,
                history: take_history(reader)?,
                window_start: reader.seq()?,
                tail: reader.seq()?,
                members: {
                    let count = reader.count(MESSAGE_MAX_BYTES / 4)?;
                    (0..count).map(|_| reader.node()).collect::<Result<_, _>>()?
                },
                lease_ms: reader.u32()?,
                places_max: reader.u64()?,
            },
            7 => Self::Stream {
                epoch: reader.epoch()?,
                first: reader.seq()?,
                records: reader.take_rest(),
            },
            9 => Self::Sealed {
                promised: reader.epoch()?,
                history: take_history(reader)?,
                end: reader.seq()?,
            },
            12 => Self::ReadLog {
                token: reader.u64()?,
                epoch: reader.epoch()?,
                raw: reader.flag()?,
                from: reader.seq()?,
                max_bytes: reader.u32()?,
            },
            _ => Self::LogChunk {
                token: reader.u64()?,
                epoch: reader.epoch()?,
                first: reader.seq()?,
                end: reader.seq()?,
                records: reader.take_rest(),
            },
        })
    }
}
