//! Who waits for what, and how it is answered.

use std::sync::Arc;

use halfmoon_transport::{LaneId, RegionId, RemoteSpan};
use halfmoon_wire::limits::{INLINE_MAX_BYTES, MESSAGE_MAX_BYTES};
use halfmoon_wire::{CellTuple, Landing, Message, SeqNum, StateReply, StoredCell, ValueSource};

use crate::lanes::Lanes;
use crate::limits::MESSAGE_HEAD_BYTES;
use crate::state::entry::{CELL_HEAD_BYTES, SEQ_BYTES, parse_cell, parse_seq};

/// Someone who waits for an answer.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) lane: LaneId,
    pub(super) token: u64,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// To be told that a write is durable.
    Done,
    Value(Shape, Arc<[u8]>, Option<Landing>),
    Blob([u8; 32], u64),
    /// What comes after a key.
    Scan(Arc<[u8]>),
}

/// How a stored value is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Cell,
    Tuple,
    Version,
    Base,
}

impl Ask {
    pub(super) fn answer(&self, reply: StateReply<'_>, lanes: &mut Lanes) {
        lanes.send(self.lane, &Message::StateAnswer { token: self.token, reply });
    }

    pub(super) fn answer_value(
        &self,
        shape: Shape,
        stored: Option<Arc<[u8]>>,
        landing: Option<Landing>,
        lanes: &mut Lanes,
    ) {
        let Some(stored) = stored else {
            let nothing = match shape {
                Shape::Cell => StateReply::Cell(None),
                Shape::Tuple => StateReply::Tuple(None),
                Shape::Version | Shape::Base => StateReply::Value(None),
            };
            return self.answer(nothing, lanes);
        };
        let Some((head, skip)) = Head::parse(shape, &stored) else {
            tracing::error!(?shape, "a stored value does not parse");
            return self.answer(StateReply::Failed("a stored value does not parse"), lanes);
        };
        if let Head::Tuple(tuple) = head {
            return self.answer(StateReply::Tuple(Some(tuple)), lanes);
        }
        if let Head::Cell(tuple, false) = head {
            let cell = StoredCell { tuple, value: None };
            return self.answer(StateReply::Cell(Some(cell)), lanes);
        }
        let Some(source) = self.place(&stored, skip, landing, lanes) else { return };
        match head {
            Head::Cell(tuple, _) => {
                let cell = StoredCell { tuple, value: Some(source) };
                self.answer(StateReply::Cell(Some(cell)), lanes);
            }
            Head::Seq(seq) => self.answer(StateReply::Value(Some((seq, Some(source)))), lanes),
            Head::Tuple(_) => {}
        }
    }

    /// Decides how a value goes to the asker: in the message, or ahead of it into its memory. `None`
    /// when it has no room, which it was told.
    fn place<'a>(
        &self,
        stored: &'a Arc<[u8]>,
        skip: usize,
        landing: Option<Landing>,
        lanes: &mut Lanes,
    ) -> Option<ValueSource<'a>> {
        let value = stored.get(skip..).unwrap_or_default();
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let inline_max =
            landing.map_or(MESSAGE_MAX_BYTES - MESSAGE_HEAD_BYTES, |_| INLINE_MAX_BYTES);
        if value.len() <= inline_max {
            return Some(ValueSource::Inline(value));
        }
        let Some(landing) = landing.filter(|landing| landing.capacity >= len) else {
            self.answer(StateReply::NeedRoom { len }, lanes);
            return None;
        };
        let to = RemoteSpan { region: RegionId(landing.region), offset: landing.offset };
        lanes.land(self.lane, to, stored.clone(), skip);
        Some(ValueSource::Staged { offset: 0, len })
    }
}

/// What stands before a stored value.
#[derive(Clone, Copy)]
enum Head {
    Cell(CellTuple, bool),
    Tuple(CellTuple),
    Seq(SeqNum),
}

impl Head {
    /// The head, and where the value begins.
    fn parse(shape: Shape, stored: &[u8]) -> Option<(Self, usize)> {
        Some(match shape {
            Shape::Cell => {
                let (tuple, has_value) = parse_cell(stored)?;
                (Self::Cell(tuple, has_value), CELL_HEAD_BYTES)
            }
            Shape::Tuple => (Self::Tuple(parse_cell(stored)?.0), CELL_HEAD_BYTES),
            Shape::Version => (Self::Seq(SeqNum::ZERO), 0),
            Shape::Base => (Self::Seq(parse_seq(stored)?), SEQ_BYTES),
        })
    }
}
