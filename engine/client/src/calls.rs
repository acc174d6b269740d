//! Questions to peers that wait for an answer.

use std::any::Any;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use halfmoon_wire::{CellTuple, Epoch, NodeId, SeqNum};

use crate::staging::Room;

/// Most questions without an answer.
pub(crate) const CALLS_MAX: usize = 64 * 1024;

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    Sequencer,
    Storage(NodeId),
}

/// An answer, copied out of its message.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Reply {
    Tail(SeqNum),
    Log { epoch: Epoch, first: SeqNum, records: Vec<u8> },
    Done,
    Cell(Option<(CellTuple, Option<Bytes>)>),
    Tuple(Option<CellTuple>),
    Value(Option<(SeqNum, Option<Bytes>)>),
    NeedRoom(u32),
    Blob { total: u64, bytes: Vec<u8> },
    NoBlob,
    Failed,
}

/// Where the bytes of an answered value are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Bytes {
    Here(Vec<u8>),
    /// In the landing that went with the question.
    Landed(u32),
}

/// The lane went down before the answer came: whether the peer did it is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lost;

/// What has to stay as it is until the peer has answered.
#[derive(Clone, Default)]
pub(crate) struct Hold {
    /// Memory that the peer writes to, or that is still read from.
    pub(crate) memory: Option<Rc<dyn Any>>,
    /// Room in the peer's staging region.
    pub(crate) room: Option<Room>,
    /// Bytes of the landing that was lent.
    pub(crate) landing_bytes: u32,
}

/// Questions by token. A token is never used again.
#[derive(Default)]
pub(crate) struct Calls {
    slots: Vec<Slot>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    call: Option<Call>,
}

struct Call {
    peer: Peer,
    hold: Hold,
    /// Nobody waits any more; kept because of what it holds.
    orphan: bool,
    waker: Option<Waker>,
    reply: Option<Result<Reply, Lost>>,
}

impl Calls {
    /// Registers a question; `None` when there are too many.
    pub(crate) fn open(&mut self, peer: Peer, hold: Hold) -> Option<u64> {
        if self.len >= CALLS_MAX {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot::default());
                u32::try_from(self.slots.len() - 1).ok()?
            }
        };
        self.len += 1;
        let slot = &mut self.slots[index as usize];
        slot.call = Some(Call { peer, hold, orphan: false, waker: None, reply: None });
        Some(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Takes an answer of a peer. Answers nobody asked this peer for are dropped. Returns the room
    /// in the peer's staging region that is free now.
    pub(crate) fn answer(&mut self, peer: Peer, token: u64, reply: Reply) -> Option<Room> {
        let call = self.call_mut(token).filter(|call| call.peer == peer && call.reply.is_none())?;
        let room = call.hold.room.take();
        if call.orphan {
            self.remove(token);
            return room;
        }
        call.hold.memory = None;
        call.reply = Some(Ok(sound(reply, call.hold.landing_bytes)));
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
        room
    }

    /// The lane to a peer is down: nothing more comes of it, and nothing more is written by it.
    pub(crate) fn lose(&mut self, peer: Peer) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let token = u64::from(slot.generation) << 32 | index as u64;
            let Some(call) = slot.call.as_mut().filter(|call| call.peer == peer) else { continue };
            call.hold = Hold::default();
            if call.orphan {
                self.remove(token);
            } else if call.reply.is_none() {
                call.reply = Some(Err(Lost));
                if let Some(waker) = call.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// The answer, once; the question is over then.
    pub(crate) fn poll(&mut self, token: u64, context: &Context<'_>) -> Poll<Result<Reply, Lost>> {
        let Some(call) = self.call_mut(token) else { return Poll::Ready(Err(Lost)) };
        match call.reply.take() {
            Some(reply) => {
                self.remove(token);
                Poll::Ready(reply)
            }
            None => {
                call.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Nobody waits for the answer any more. What the question holds is held until it comes.
    pub(crate) fn abandon(&mut self, token: u64) {
        let Some(call) = self.call_mut(token) else { return };
        if call.reply.is_none() && (call.hold.memory.is_some() || call.hold.room.is_some()) {
            call.orphan = true;
            call.waker = None;
        } else {
            self.remove(token);
        }
    }

    fn index(&self, token: u64) -> Option<usize> {
        let index = usize::try_from(token & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get(index)?;
        (u64::from(slot.generation) == token >> 32 && slot.call.is_some()).then_some(index)
    }

    fn call_mut(&mut self, token: u64) -> Option<&mut Call> {
        let index = self.index(token)?;
        self.slots[index].call.as_mut()
    }

    fn remove(&mut self, token: u64) {
        let Some(index) = self.index(token) else { return };
        let slot = &mut self.slots[index];
        slot.call = None;
        self.len -= 1;
        // A slot whose generations are used up is not used again.
        if slot.generation < u32::MAX {
            slot.generation += 1;
            self.free.extend(u32::try_from(index));
        }
    }
}

/// An answer that says more was written than was lent is no answer.
fn sound(reply: Reply, landing_bytes: u32) -> Reply {
    let (Reply::Cell(Some((_, Some(bytes)))) | Reply::Value(Some((_, Some(bytes))))) = &reply
    else {
        return reply;
    };
    match bytes {
        Bytes::Landed(len) if *len > landing_bytes || landing_bytes == 0 => Reply::Failed,
        Bytes::Landed(_) | Bytes::Here(_) => reply,
    }
}
