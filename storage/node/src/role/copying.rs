//! The state, copied by a new member: how it is asked for, written, and said to be there.

use std::time::Instant;

use halfmoon_transport::LaneId;
use halfmoon_wire::{StateReply, broken};

use super::Core;
use crate::NodeError;
use crate::copy::{Copy, Step};
use crate::disk::Disk;
use crate::limits::{COPY_RETRY_MAX, COPY_TELL_EVERY, COPY_TURN_BYTES};
use crate::metrics::{add, set};

/// How far this node is with having the state.
pub(super) struct Copying {
    stage: Stage,
    /// What the metadata store says, until it is acted upon.
    has_state: Option<bool>,
    /// Bytes that came.
    bytes: u64,
    /// The last entry of the state log that holds something of the copy.
    last: u64,
    /// When it was last said how far it is.
    told: Option<Instant>,
}

enum Stage {
    /// It is not known yet whether there is something to copy.
    Unknown,
    /// It is copied.
    Copy(Box<Copy>),
    /// All of it is here, and is being flushed.
    Flush,
    /// It is being written down that it is here, or will be again from then on.
    Write(Option<Instant>),
    /// All of it is here, and is known to be.
    Whole,
}

impl Copying {
    /// `whole`: what the directory says.
    pub(super) const fn new(whole: bool) -> Self {
        let stage = if whole { Stage::Whole } else { Stage::Unknown };
        Self { stage, has_state: None, bytes: 0, last: 0, told: None }
    }

    /// What the metadata store says.
    pub(super) const fn learn(&mut self, has_state: bool) {
        self.has_state = Some(has_state);
    }

    pub(super) fn under_way(&mut self) -> Option<&mut Copy> {
        if let Stage::Copy(copy) = &mut self.stage { Some(copy) } else { None }
    }

    fn tell(&mut self, now: Instant) {
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= COPY_TELL_EVERY) {
            self.told = Some(now);
            tracing::info!(bytes = self.bytes, "copying the state from peers");
        }
    }
}

impl<D: Disk> Core<D> {
    /// Acts upon what the metadata store says of this node's state, once the directory is the node's.
    pub(super) fn begin_state(&mut self) -> Result<(), NodeError> {
        let Some(is_known) = self.copying.has_state.take_if(|_| self.begun) else { return Ok(()) };
        let is_here = matches!(self.copying.stage, Stage::Whole);
        match (is_here, is_known) {
            (true, true) => self.state.set_whole(),
            // It was from the start, or the end of the copy was not written down everywhere.
            (true, false) | (false, true) => {
                self.state.set_whole();
                self.copying.stage = Stage::Write(None);
                self.keeper.whole()?;
            }
            (false, false) if self.copying.under_way().is_none() => {
                let mut copy = Box::new(Copy::new(self.config.node));
                if let Some(epoch) = self.replica.epoch() {
                    copy.welcome(epoch, &self.members, self.now);
                }
                self.copying.stage = Stage::Copy(copy);
                tracing::info!(node = %self.config.node, "this node copies the state from its peers");
            }
            (false, false) => {}
        }
        Ok(())
    }

    /// A peer has answered about its state.
    pub(super) fn copied(&mut self, (lane, token): (LaneId, u64), reply: &StateReply<'_>) {
        let now = self.now;
        let Some(copy) = self.copying.under_way() else { return };
        match copy.answer((lane, token), reply, now) {
            Ok(0) => {}
            Ok(bytes) => {
                self.copying.bytes += bytes as u64;
                add(&self.metrics.copied_bytes, bytes as u64);
                self.copying.tell(now);
            }
            Err(error) => self.lanes.doom(lane, &error),
        }
    }

    /// Asks for what is to come, and writes what has come, as far as there is room.
    pub(super) fn copy_state(&mut self) -> Result<(), NodeError> {
        self.write_copied();
        let now = self.now;
        while let Some(step) = self.copying.under_way().and_then(|copy| copy.step(now)) {
            match step {
                Step::Find(node) => self.keeper.find(node)?,
                Step::Send(lane, bytes) => self.lanes.send_bytes(lane, bytes),
                Step::Close(lane) => self.closing.push(lane),
            }
        }
        if let Some(copy) = self.copying.under_way().filter(|copy| copy.is_over()) {
            self.closing.extend(copy.lanes());
            self.copying.stage = Stage::Flush;
        }
        let is_flushed = self.state.durable() >= self.copying.last || broken!(CopiedBeforeDurable);
        match self.copying.stage {
            Stage::Flush if is_flushed => {
                self.copying.stage = Stage::Write(None);
                self.keeper.whole()?;
            }
            Stage::Write(Some(again)) if now >= again => {
                self.copying.stage = Stage::Write(None);
                self.keeper.whole()?;
            }
            Stage::Unknown | Stage::Copy(_) | Stage::Flush | Stage::Write(_) | Stage::Whole => {}
        }
        set(&self.metrics.state_whole, u64::from(self.state.is_whole()));
        Ok(())
    }

    /// Whether more of what has come can be written at once.
    pub(super) fn has_more_to_copy(&mut self) -> bool {
        self.state.has_room_to_copy()
            && self.copying.under_way().is_some_and(|copy| copy.has_next())
    }

    /// The directory says that all of the state is here. A crash does not change that any more, so it
    /// is read from now on.
    pub(super) fn is_written_down(&mut self, is_known: bool) {
        if !self.state.is_whole() {
            self.state.set_whole();
            tracing::info!(node = %self.config.node, bytes = self.copying.bytes,
                "this node has all of the state");
        }
        self.copying.stage =
            if is_known { Stage::Whole } else { Stage::Write(Some(self.now + COPY_RETRY_MAX)) };
    }

    fn write_copied(&mut self) {
        let Stage::Copy(copy) = &mut self.copying.stage else { return };
        let mut bytes = 0;
        while bytes < COPY_TURN_BYTES
            && self.state.has_room_to_copy()
            && let Some(put) = copy.next()
        {
            bytes += put.key.len() + put.value.len();
            self.copying.last = self.copying.last.max(self.state.copy_in(put));
        }
    }
}
