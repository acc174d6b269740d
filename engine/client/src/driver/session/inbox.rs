//! What peers say.

use std::cell::Cell;
use std::rc::Rc;

use halfmoon_index::{EnterError, Entered, StreamError};
use halfmoon_transport::{LaneId, RegionId};
use halfmoon_wire::{
    DecodeError, Epoch, EpochStart, Message, NodeId, SeqNum, StateReply, ValueSource,
};
use thiserror::Error;

use super::{Session, Welcome};
use crate::calls::{Bytes, Peer, Reply};
use crate::core::{Backoff, Core, Ended, bump};
use crate::directory::Directory;
use crate::staging::Staging;

/// Bytes asked for at once while catching up.
const CATCH_UP_BYTES: u32 = 256 * 1024;

/// While so much waits to be committed, catching up pauses: bytes.
const CATCH_UP_HELD_BYTES: usize = 32 << 20;

/// That pause, in ns.
const CATCH_UP_PAUSE_NS: u64 = 1_000_000;

/// Reports per lease, so that one that is late does not end it.
const REPORTS_PER_LEASE: u64 = 3;

/// Why a peer's lane is closed.
#[derive(Debug, Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error("a message that is never sent {0}")]
    Unexpected(&'static str),
    #[error("its history does not end with its own epoch")]
    History,
    #[error("there is no room for another task")]
    Busy,
}

/// What a sequencer says of its log, as far as it matters here.
struct Log<'a> {
    epoch: Epoch,
    history: &'a [EpochStart],
    window_start: SeqNum,
    members: &'a [NodeId],
    lease_ms: u32,
    places_max: u64,
}

impl<D: Directory> Session<D> {
    /// Takes a message of a peer that has introduced itself.
    pub(super) fn message(&mut self, lane: LaneId, bytes: &[u8]) -> Result<(), Fault> {
        match self.peer(lane) {
            Some(Peer::Sequencer) => self.sequencer_says(lane, Message::parse(bytes)?),
            Some(Peer::Storage(node)) => self.storage_says(node, Message::parse(bytes)?),
            None if self.sequencers.is_up(lane) => {
                let message = Message::parse(bytes)?;
                if !matches!(message, Message::Welcome { .. }) {
                    return Err(Fault::Unexpected("before a welcome"));
                }
                self.sequencer_says(lane, message)
            }
            None => Ok(()),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are never sent by this role")]
    fn sequencer_says(&mut self, lane: LaneId, message: Message<'_>) -> Result<(), Fault> {
        match message {
            Message::Stream { epoch, first, records } => {
                Ok(self.core.view.borrow_mut().extend(epoch, first, records)?)
            }
            Message::Refused { epoch, local, refusal } => {
                let now_ns = self.core.executor.now_ns();
                let mut submissions = self.core.submissions.borrow_mut();
                submissions.refused(epoch, local, refusal, now_ns);
                Ok(())
            }
            Message::Tail { token, seq } => {
                self.core.answered(Peer::Sequencer, token, Reply::Tail(seq));
                Ok(())
            }
            Message::Welcome {
                epoch,
                history,
                window_start,
                members,
                lease_ms,
                places_max,
                ..
            } => {
                let (history, members) = (&history[..], &members[..]);
                let log = Log { epoch, history, window_start, members, lease_ms, places_max };
                self.welcomed(lane, &log)
            }
            _ => Err(Fault::Unexpected("by a sequencer")),
        }
    }

    fn welcomed(&mut self, lane: LaneId, log: &Log<'_>) -> Result<(), Fault> {
        let epoch = log.epoch;
        let opening = log.history.last().filter(|start| start.epoch == epoch);
        let opening = opening.ok_or(Fault::History)?.first;
        let core = self.core.clone();
        let entered = core.view.borrow_mut().enter(epoch, opening, log.members);
        match entered {
            Ok(Entered::Again) => {}
            Ok(Entered::New) => {
                core.submissions.borrow_mut().enter(epoch);
                bump(&core.counts.epochs);
                tracing::info!(%epoch, %opening, "entered an epoch");
            }
            Err(error @ EnterError::Diverged { .. }) => {
                tracing::error!(%error, "this engine stops using the log");
                core.end(Ended::Broken);
                return Err(error.into());
            }
            Err(error @ EnterError::Old { .. }) => {
                // It does not know yet that another has taken over.
                tracing::info!(%error, "a sequencer is left");
                self.to_close.push(lane);
                return Ok(());
            }
        }
        // Before anything that can fail: whoever asks in this epoch has to ask its members.
        self.set_members(log.members);
        self.put_in_charge(lane);
        core.places_max.set(log.places_max);
        core.open(Peer::Sequencer);
        let report_every_ns = u64::from(log.lease_ms) * 1_000_000 / REPORTS_PER_LEASE;
        let next_report_ns = core.executor.now_ns();
        self.welcome = Some(Welcome { report_every_ns, next_report_ns });
        self.visit.set(self.visit.get() + 1);
        let task = catch_up(core.clone(), self.visit.clone(), log.window_start);
        core.executor.spawn(task).map_err(|_| Fault::Busy)?;
        Ok(())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are never sent by this role")]
    fn storage_says(&mut self, node: NodeId, message: Message<'_>) -> Result<(), Fault> {
        let peer = Peer::Storage(node);
        match message {
            Message::LogChunk { token, epoch, first, records, .. } => {
                let records = records.to_vec();
                self.core.answered(peer, token, Reply::Log { epoch, first, records });
                Ok(())
            }
            Message::StateAnswer { token, reply } => {
                self.core.answered(peer, token, owned(reply));
                Ok(())
            }
            Message::Staging { region, len } => {
                let mut links = self.core.links.borrow_mut();
                if let Some(replica) = links.replica(node) {
                    replica.staging = Some(Staging::new(RegionId(region), len));
                }
                links.change();
                Ok(())
            }
            _ => Err(Fault::Unexpected("by a storage node")),
        }
    }
}

/// Reads what lies below the sequencer's window from storage nodes that are in the epoch, then
/// has the rest streamed.
async fn catch_up(core: Rc<Core>, visit: Rc<Cell<u64>>, window_start: SeqNum) {
    let own = visit.get();
    let mut backoff = Backoff::new();
    while visit.get() == own && core.ended.get().is_none() {
        let (from, held) = {
            let view = core.view.borrow();
            (view.wanted(), view.held_bytes())
        };
        if from >= window_start {
            core.say(Peer::Sequencer, &Message::Follow { from });
            return;
        }
        if held > CATCH_UP_HELD_BYTES {
            core.executor.sleep(CATCH_UP_PAUSE_NS).await;
            continue;
        }
        match read_some(&core, &visit, own, from).await {
            Some(Ok(())) => backoff = Backoff::new(),
            Some(Err(error)) => {
                tracing::warn!(%error, "a storage node gave records that do not fit");
                core.executor.sleep(backoff.next_ns(&core)).await;
            }
            None => core.executor.sleep(backoff.next_ns(&core)).await,
        }
    }
}

/// Reads from the first node that has something; `None` when none has, or all is different now.
async fn read_some(
    core: &Rc<Core>,
    visit: &Cell<u64>,
    own: u64,
    from: SeqNum,
) -> Option<Result<(), StreamError>> {
    let mut nodes = core.storage_nodes();
    let first = core.pick(nodes.len());
    nodes.rotate_left(first);
    for node in nodes {
        let read = core.read_log(node, from, CATCH_UP_BYTES).await;
        if visit.get() != own {
            return None;
        }
        if let Some((epoch, first, records)) = read {
            return Some(core.view.borrow_mut().extend(epoch, first, &records));
        }
    }
    None
}

fn owned(reply: StateReply<'_>) -> Reply {
    let bytes = |value: ValueSource<'_>| match value {
        ValueSource::Inline(bytes) => Bytes::Here(bytes.to_vec()),
        ValueSource::Staged { len, .. } => Bytes::Landed(len),
    };
    match reply {
        StateReply::Done => Reply::Done,
        StateReply::Cell(cell) => Reply::Cell(cell.map(|cell| (cell.tuple, cell.value.map(bytes)))),
        StateReply::Tuple(tuple) => Reply::Tuple(tuple),
        StateReply::Value(found) => Reply::Value(found.map(|(seq, value)| (seq, value.map(bytes)))),
        StateReply::NeedRoom { len } => Reply::NeedRoom(len),
        StateReply::Blob { total, bytes } => Reply::Blob { total, bytes: bytes.to_vec() },
        StateReply::NoBlob => Reply::NoBlob,
        // An engine does not ask for pages.
        StateReply::Page { .. } => Reply::Failed,
        StateReply::Failed(why) => {
            tracing::debug!(why, "a storage node cannot serve a request");
            Reply::Failed
        }
    }
}
