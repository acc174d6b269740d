//! The lanes of a node, and what waits to be sent on them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use halfmoon_transport::{
    Endpoint, HeapMemory, LaneId, RegionId, RemoteSpan, SendError, Source, Transport,
};
use halfmoon_wire::{Epoch, Hello, Message, SeqNum, broken};

use crate::limits::OUTBOX_MAX_BYTES;

/// A lane that is up.
pub(crate) struct Lane {
    pub(crate) hello: Hello,
    /// Where its watermarks go, of which epoch, and the last one written.
    word: Option<(Epoch, RegionId, SeqNum)>,
    /// Where its large values arrive.
    pub(crate) staging: Option<Arc<HeapMemory>>,
    out: VecDeque<Out>,
    out_bytes: usize,
    doomed: bool,
}

/// What is to be sent, in order.
enum Out {
    Message(Vec<u8>),
    /// A value for the peer's memory, ahead of the message that tells of it.
    Landing(RemoteSpan, Arc<[u8]>, usize),
}

/// Lanes by id. Everything sent goes through here.
#[derive(Default)]
pub(crate) struct Lanes {
    up: BTreeMap<LaneId, Lane>,
}

impl Lanes {
    pub(crate) fn add(&mut self, lane: LaneId, hello: Hello) {
        let (word, staging, out) = (None, None, VecDeque::new());
        self.up.insert(lane, Lane { hello, word, staging, out, out_bytes: 0, doomed: false });
    }

    pub(crate) fn remove(&mut self, lane: LaneId) -> Option<Lane> {
        self.up.remove(&lane)
    }

    pub(crate) fn get(&self, lane: LaneId) -> Option<&Lane> {
        self.up.get(&lane)
    }

    pub(crate) fn get_mut(&mut self, lane: LaneId) -> Option<&mut Lane> {
        self.up.get_mut(&lane)
    }

    pub(crate) fn len(&self) -> usize {
        self.up.len()
    }

    pub(crate) fn stagings(&self) -> usize {
        self.up.values().filter(|lane| lane.staging.is_some()).count()
    }

    /// Sends a message; nothing to a lane that is gone.
    pub(crate) fn send(&mut self, lane: LaneId, message: &Message<'_>) {
        self.push(lane, Out::Message(message.to_bytes()));
    }

    /// Sends a message that is encoded already.
    pub(crate) fn send_bytes(&mut self, lane: LaneId, message: Vec<u8>) {
        self.push(lane, Out::Message(message));
    }

    /// Writes the value from `skip` on to the peer's memory, before what is sent after it.
    pub(crate) fn land(&mut self, lane: LaneId, to: RemoteSpan, value: Arc<[u8]>, skip: usize) {
        self.push(lane, Out::Landing(to, value, skip));
    }

    /// Closes the lane at the end of the turn: its peer broke the rules, or takes nothing.
    pub(crate) fn doom(&mut self, lane: LaneId, why: &dyn std::fmt::Display) {
        if let Some(found) = self.up.get_mut(&lane).filter(|found| !found.doomed) {
            tracing::warn!(%lane, peer = %found.hello.node, role = ?found.hello.role, %why,
                "closing a lane");
            found.doomed = true;
        }
    }

    /// Watermarks of this epoch go to that word from now on.
    pub(crate) fn watermark_here(&mut self, lane: LaneId, epoch: Epoch, region: RegionId) {
        if let Some(found) = self.up.get_mut(&lane) {
            found.word = Some((epoch, region, SeqNum::ZERO));
        }
    }

    fn push(&mut self, lane: LaneId, out: Out) {
        let Some(found) = self.up.get_mut(&lane).filter(|found| !found.doomed) else { return };
        found.out_bytes += out.len();
        found.out.push_back(out);
        if found.out_bytes > OUTBOX_MAX_BYTES {
            self.doom(lane, &"it does not take what it asked for");
        }
    }

    /// Hands to the endpoint what it takes; closes what is doomed. Watermarks go ahead of the rest:
    /// a word that could not be written is written later, with what it is by then.
    pub(crate) fn flush<T: Transport>(
        &mut self,
        endpoint: &mut Endpoint<T>,
        watermark: Option<(Epoch, SeqNum)>,
    ) {
        for (id, lane) in &mut self.up {
            if lane.doomed {
                endpoint.close(*id);
                continue;
            }
            lane.write_watermark(*id, endpoint, watermark);
            while let Some(out) = lane.out.front() {
                match out.post(*id, endpoint) {
                    Ok(()) => {}
                    Err(SendError::Full | SendError::Dead) => break,
                    Err(error @ SendError::TooLong { .. }) => {
                        tracing::error!(lane = %id, %error, "an answer cannot be sent");
                    }
                }
                lane.out_bytes -= out.len();
                lane.out.pop_front();
            }
        }
        endpoint.flush();
    }
}

impl Lane {
    fn write_watermark<T: Transport>(
        &mut self,
        lane: LaneId,
        endpoint: &mut Endpoint<T>,
        watermark: Option<(Epoch, SeqNum)>,
    ) {
        let Some(((of, region, written), (epoch, seq))) = self.word.as_mut().zip(watermark) else {
            return;
        };
        let is_other = *of != epoch && !broken!(OldEpochWatermark);
        if is_other || *written >= seq {
            return;
        }
        let to = RemoteSpan { region: *region, offset: 0 };
        if endpoint.write(lane, to, Source::bytes(&seq.0.to_le_bytes()), None).is_ok() {
            *written = seq;
        }
    }
}

impl Out {
    fn len(&self) -> usize {
        match self {
            Self::Message(bytes) => bytes.len(),
            Self::Landing(_, value, skip) => value.len() - skip,
        }
    }

    fn post<T: Transport>(
        &self,
        lane: LaneId,
        endpoint: &mut Endpoint<T>,
    ) -> Result<(), SendError> {
        match self {
            Self::Message(bytes) => endpoint.send(lane, &[bytes]),
            Self::Landing(to, value, skip) => {
                endpoint.write(lane, *to, Source::bytes(&value[*skip..]), None)
            }
        }
    }
}
