//! Attempts on single nodes, and what makes a quorum of them.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use halfmoon_transport::RemoteSpan;
use halfmoon_transport::memory::check;
use halfmoon_wire::{
    CellTuple, Epoch, Message, NodeId, ObjectKey, StateRequest, ValueSource, VersionId, broken,
};

use super::{State, StateError, check_value};
use crate::calls::{Hold, Peer, Reply};
use crate::core::{Ask, Backoff, bump};
use crate::value::{Lend, ValueIn};

/// Values up to this many bytes travel inside the message of a put.
const INLINE_PUT_BYTES: u32 = 8 * 1024;

/// Longest wait for one node's answer to a read before another is asked, in ns.
pub(super) const READ_PATIENCE_NS: u64 = 50_000_000;

/// What that grows to, doubled by every round without an answer, while a blob is fetched: long enough
/// for a slow disk to read a large function binary.
pub(super) const BLOB_PATIENCE_MAX_NS: u64 = 10_000_000_000;

/// The same when memory is lent. Then the lane is taken down, because only so is it certain that
/// the node no longer writes there.
const LANDING_PATIENCE_NS: u64 = 1_000_000_000;

/// Longest wait for one node's answer to a write before it is sent again, in ns.
const WRITE_PATIENCE_NS: u64 = 1_000_000_000;

/// What one node said.
pub(super) enum Attempt {
    Reply(Reply),
    /// It failed, or did not answer, or was not there.
    Failed,
}

/// A write of a value.
pub(super) struct Put<'a> {
    pub(super) object: ObjectKey<'a>,
    pub(super) what: What,
    pub(super) value: Option<ValueIn>,
}

#[derive(Clone, Copy)]
pub(super) enum What {
    Cell(CellTuple),
    Version(VersionId),
}

/// Whether a write could be sent.
enum Sent {
    Asked(Ask),
    /// No lane, or no room in the node's staging region now.
    NotNow,
}

impl Put<'_> {
    fn request<'b>(&'b self, value: Option<ValueSource<'b>>) -> StateRequest<'b> {
        match self.what {
            What::Cell(tuple) => StateRequest::PutCell { object: self.object, tuple, value },
            What::Version(version) => {
                let value = value.unwrap_or(ValueSource::Inline(b""));
                StateRequest::PutVersion { object: self.object, version, value }
            }
        }
    }
}

impl State {
    /// The nodes in an order that begins at a random one, those that can be asked first. Waits
    /// until they are known.
    pub(super) async fn nodes_in_turn(&self) -> Result<Vec<NodeId>, StateError> {
        self.known_nodes().await?;
        let links = self.0.links.borrow();
        let mut nodes: Vec<_> =
            links.replicas.iter().map(|replica| (!replica.outbox.up, replica.node)).collect();
        let first = self.0.pick(nodes.len());
        nodes.rotate_left(first);
        nodes.sort_by_key(|(down, _)| *down);
        Ok(nodes.into_iter().map(|(_, node)| node).collect())
    }

    /// The first of these nodes that gives an answer of the right kind, asked one after the other,
    /// again and again, in this epoch. `None` once the client is in another one: the members may be
    /// others then, and voices of before and after do not make a quorum.
    pub(super) async fn first_of<T>(
        &self,
        (epoch, nodes): (Epoch, &[NodeId]),
        request: &StateRequest<'_>,
        lend: Option<&Lend>,
        pick: impl Fn(Reply) -> Option<T>,
    ) -> Result<Option<(NodeId, T)>, StateError> {
        let mut backoff = Backoff::new();
        loop {
            for node in nodes {
                if self.0.epoch() != epoch {
                    return Ok(None);
                }
                if let Attempt::Reply(reply) = self.attempt(*node, request, lend).await?
                    && let Some(found) = pick(reply)
                {
                    return Ok(Some((*node, found)));
                }
                bump(&self.0.counts.state_retries);
            }
            self.0.executor.sleep(backoff.next_ns(&self.0)).await;
        }
    }

    /// One read, of one node.
    pub(super) async fn attempt(
        &self,
        node: NodeId,
        request: &StateRequest<'_>,
        lend: Option<&Lend>,
    ) -> Result<Attempt, StateError> {
        let patience_ns = if lend.is_some() { LANDING_PATIENCE_NS } else { READ_PATIENCE_NS };
        self.attempt_within(node, request, lend, patience_ns).await
    }

    /// One read, of one node, that may take so long.
    pub(super) async fn attempt_within(
        &self,
        node: NodeId,
        request: &StateRequest<'_>,
        lend: Option<&Lend>,
        patience_ns: u64,
    ) -> Result<Attempt, StateError> {
        if let Some(ended) = self.0.ended.get() {
            return Err(ended.into());
        }
        let hold = Hold {
            memory: lend.map(|lend| lend.hold.clone()),
            landing_bytes: lend.map_or(0, |lend| lend.capacity),
            room: None,
        };
        let Some(ask) = self.ask(node, hold, None, request) else { return Ok(Attempt::Failed) };
        let executor = &self.0.executor;
        let until_ns = executor.now_ns().saturating_add(patience_ns);
        let mut ask = ask;
        let answer = match executor.timeout_at(until_ns, &mut ask).await {
            Ok(answer) => answer,
            Err(_) if lend.is_none() => return Ok(Attempt::Failed),
            Err(_) => {
                // Only once the lane is down does nobody write to the memory any more.
                self.0.links.borrow_mut().to_close.push(node);
                ask.await
            }
        };
        match answer {
            Ok(Reply::NeedRoom(len)) => Err(StateError::NeedRoom { len }),
            Ok(Reply::Failed) | Err(_) => Ok(Attempt::Failed),
            Ok(reply) => Ok(Attempt::Reply(reply)),
        }
    }

    /// Puts a value on a quorum.
    pub(super) async fn put(&self, put: &Put<'_>) -> Result<(), StateError> {
        check_value(put.value.as_ref())?;
        if let Some(ValueIn::Memory { memory, offset, len, .. }) = &put.value {
            check(memory.words(), *offset, *len as usize).map_err(|_| StateError::OutOfBounds)?;
        }
        self.on_quorum(|node| self.put_on(node, put)).await
    }

    /// Does `one` on every member, and ends when a quorum of them has done it. What the others have
    /// been sent by then they still do. When the members change meanwhile, who is new does it too,
    /// and who left does not count.
    pub(super) async fn on_quorum<F: Future<Output = Result<(), StateError>>>(
        &self,
        one: impl Fn(NodeId) -> F,
    ) -> Result<(), StateError> {
        self.known_nodes().await?;
        let mut done: Vec<NodeId> = Vec::new();
        let mut running: Vec<(NodeId, Pin<Box<F>>)> = Vec::new();
        poll_fn(|context| {
            let members = self.0.storage_nodes();
            running.retain(|(node, _)| members.contains(node));
            for node in &members {
                if !done.contains(node) && !running.iter().any(|(other, _)| other == node) {
                    running.push((*node, Box::pin(one(*node))));
                }
            }
            let mut failed = None;
            running.retain_mut(|(node, future)| match future.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(Ok(())) => {
                    done.push(*node);
                    false
                }
                Poll::Ready(Err(error)) => {
                    failed = Some(error);
                    false
                }
            });
            let count = members.iter().filter(|node| done.contains(node)).count();
            match failed {
                _ if count > members.len() / 2 || (broken!(PutOnOne) && count > 0) => {
                    Poll::Ready(Ok(()))
                }
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Sends a write without staged value to a node until it is done there.
    pub(super) async fn until_done(
        &self,
        node: NodeId,
        request: &StateRequest<'_>,
    ) -> Result<(), StateError> {
        self.again(node, || {
            Ok(self.ask(node, Hold::default(), None, request).map_or(Sent::NotNow, Sent::Asked))
        })
        .await
    }

    async fn put_on(&self, node: NodeId, put: &Put<'_>) -> Result<(), StateError> {
        self.again(node, || self.send_put(node, put)).await
    }

    /// Sends something until it is done: after a failure, a lost lane or a long silence again,
    /// which is harmless because writes are idempotent.
    async fn again(
        &self,
        node: NodeId,
        send: impl Fn() -> Result<Sent, StateError>,
    ) -> Result<(), StateError> {
        let executor = &self.0.executor;
        let mut backoff = Backoff::new();
        loop {
            if let Some(ended) = self.0.ended.get() {
                return Err(ended.into());
            }
            let version = self.0.links.borrow().version();
            match send()? {
                Sent::Asked(ask) => {
                    let until_ns = executor.now_ns().saturating_add(WRITE_PATIENCE_NS);
                    match executor.timeout_at(until_ns, ask).await {
                        Ok(Ok(Reply::Done)) => return Ok(()),
                        Ok(_) | Err(_) => {
                            bump(&self.0.counts.state_retries);
                            tracing::debug!(%node, "a write was not done and is sent again");
                            executor.sleep(backoff.next_ns(&self.0)).await;
                        }
                    }
                }
                Sent::NotNow => self.0.changed_or(version, &mut backoff).await,
            }
        }
    }

    fn send_put(&self, node: NodeId, put: &Put<'_>) -> Result<Sent, StateError> {
        let ask = match &put.value {
            None => self.ask(node, Hold::default(), None, &put.request(None)),
            Some(value) if value.len() <= INLINE_PUT_BYTES => {
                let bytes = value.copy().ok_or(StateError::OutOfBounds)?;
                let source = Some(ValueSource::Inline(&bytes));
                self.ask(node, Hold::default(), None, &put.request(source))
            }
            Some(value) => return self.send_staged(node, put, value),
        };
        Ok(ask.map_or(Sent::NotNow, Sent::Asked))
    }

    fn send_staged(
        &self,
        node: NodeId,
        put: &Put<'_>,
        value: &ValueIn,
    ) -> Result<Sent, StateError> {
        let len = value.len();
        let taken = {
            let mut links = self.0.links.borrow_mut();
            let staging = links.replica(node).and_then(|replica| replica.staging.as_mut());
            let Some(staging) = staging else { return Ok(Sent::NotNow) };
            if !staging.fits(len) {
                // Waiting would be in vain on this node; the others may have more room.
                tracing::warn!(%node, len, "the node's staging region is too small for a value");
                return Ok(Sent::NotNow);
            }
            staging.take(len).map(|room| (room, staging.region))
        };
        let Some((room, region)) = taken else { return Ok(Sent::NotNow) };
        let memory = match value {
            ValueIn::Bytes(_) => None,
            ValueIn::Memory { hold, .. } => Some(hold.clone()),
        };
        let hold = Hold { memory, room: Some(room), landing_bytes: 0 };
        let to = RemoteSpan { region, offset: room.offset };
        let source = ValueSource::Staged { offset: room.offset, len };
        let ask = self.ask(node, hold, Some((to, value.clone())), &put.request(Some(source)));
        if ask.is_none()
            && let Some(replica) = self.0.links.borrow_mut().replica(node)
            && let Some(staging) = replica.staging.as_mut()
        {
            staging.give(room);
        }
        Ok(ask.map_or(Sent::NotNow, Sent::Asked))
    }

    fn ask(
        &self,
        node: NodeId,
        hold: Hold,
        value: Option<(RemoteSpan, ValueIn)>,
        request: &StateRequest<'_>,
    ) -> Option<Ask> {
        let epoch = self.0.epoch();
        if epoch == Epoch(0) {
            // Nobody has said who the members are.
            return None;
        }
        bump(&self.0.counts.state_calls);
        self.0.ask(Peer::Storage(node), hold, value, |token, out| {
            Message::State { token, epoch, request: *request }.encode(out);
        })
    }

    /// The members; waits until they are known.
    async fn known_nodes(&self) -> Result<Vec<NodeId>, StateError> {
        loop {
            if let Some(ended) = self.0.ended.get() {
                return Err(ended.into());
            }
            let version = self.0.links.borrow().version();
            let nodes = self.0.storage_nodes();
            if !nodes.is_empty() {
                return Ok(nodes);
            }
            self.0.changed(version).await;
        }
    }
}

/// Both results, or the first error.
pub(super) async fn both<A, B, E>(
    a: impl Future<Output = Result<A, E>>,
    b: impl Future<Output = Result<B, E>>,
) -> Result<(A, B), E> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut of_a, mut of_b) = (None, None);
    poll_fn(|context| {
        if of_a.is_none()
            && let Poll::Ready(result) = a.as_mut().poll(context)
        {
            match result {
                Ok(value) => of_a = Some(value),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if of_b.is_none()
            && let Poll::Ready(result) = b.as_mut().poll(context)
        {
            match result {
                Ok(value) => of_b = Some(value),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        match (of_a.take(), of_b.take()) {
            (Some(a), Some(b)) => Poll::Ready(Ok((a, b))),
            (a, b) => {
                (of_a, of_b) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}
