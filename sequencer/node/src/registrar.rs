//! The metadata store, asked by a thread of its own: its calls block, and the ordering thread does
//! not wait for them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use halfmoon_meta::{ClusterError, MetaStore, NodeEntry, cluster, nodes};
use halfmoon_reactor::Waker;
use halfmoon_wire::{Epoch, NodeId, Role};

use crate::host::Request;

/// How often it is looked whether another sequencer has taken an epoch, and what failed is tried
/// again.
const PERIOD: Duration = Duration::from_secs(1);

/// What the store said.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Where a storage node listens; `None` when that is not known.
    Located(NodeId, Option<String>),
    /// Another sequencer has taken this epoch.
    Deposed(Epoch),
}

/// The thread that asks. Dropping it withdraws this node's address and ends the thread.
#[derive(Debug)]
pub(crate) struct Registrar {
    requests: Option<Sender<Request>>,
    notices: Receiver<Notice>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub(crate) struct Desk {
    pub(crate) store: Arc<dyn MetaStore>,
    pub(crate) waker: Waker,
    /// This node, as it is published.
    pub(crate) entry: NodeEntry,
    pub(crate) epoch: Epoch,
    /// Version of the member set in effect.
    pub(crate) members: u64,
}

impl Registrar {
    pub(crate) fn start(desk: Desk) -> std::io::Result<Self> {
        let (requests, incoming) = channel();
        let (outgoing, notices) = channel();
        let thread = std::thread::Builder::new()
            .name("sequencer-meta".into())
            .spawn(move || desk.work(&incoming, &outgoing))?;
        Ok(Self { requests: Some(requests), notices, thread: Some(thread) })
    }

    /// Asks; the answer comes as a notice.
    pub(crate) fn ask(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // The thread ends only when this side does.
            requests.send(request).ok();
        }
    }

    pub(crate) fn next(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Desk {
    fn work(&self, requests: &Receiver<Request>, notices: &Sender<Notice>) {
        // At most one of each kind that is tried again: publishing, marking.
        let mut unfinished: Vec<Request> = Vec::new();
        loop {
            match requests.recv_timeout(PERIOD) {
                Ok(Request::Locate(node)) => self.tell(notices, self.locate(node)),
                Ok(request @ (Request::Publish | Request::MarkCommitted)) => {
                    unfinished.push(request);
                    unfinished.retain(|request| !self.carry_out(*request));
                }
                Err(RecvTimeoutError::Timeout) => {
                    unfinished.retain(|request| !self.carry_out(*request));
                    self.look_for_successor(notices);
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Err(error) = nodes::withdraw(&*self.store, &self.entry) {
            tracing::warn!(%error, "the sequencer's address stays published");
        }
    }

    fn tell(&self, notices: &Sender<Notice>, notice: Notice) {
        if notices.send(notice).is_ok() {
            self.waker.wake();
        }
    }

    fn locate(&self, node: NodeId) -> Notice {
        let found = nodes::find(&*self.store, Role::Storage, node).unwrap_or_else(|error| {
            tracing::warn!(node = node.0, %error, "the storage node's address is not known");
            None
        });
        Notice::Located(node, found.map(|entry| entry.address.to_string()))
    }

    /// Whether that is the end of it; what failed is tried again.
    fn carry_out(&self, request: Request) -> bool {
        let done = match request {
            Request::Publish => nodes::publish(&*self.store, &self.entry),
            Request::MarkCommitted => {
                cluster::mark_committed(&*self.store, self.members, self.epoch).map(drop)
            }
            Request::Locate(_) => Ok(()),
        };
        match done {
            Ok(()) => true,
            // A successor is there. It is found out by its promise, or by the epoch.
            Err(ClusterError::NodeSuperseded { .. } | ClusterError::MembersSuperseded { .. }) => {
                true
            }
            Err(error) => {
                tracing::warn!(?request, %error, "metadata store; it is tried again");
                false
            }
        }
    }

    fn look_for_successor(&self, notices: &Sender<Notice>) {
        match cluster::read(&*self.store) {
            Ok(info) if info.epoch() > self.epoch => {
                self.tell(notices, Notice::Deposed(info.epoch()));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "metadata store"),
        }
    }
}
