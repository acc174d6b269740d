//! The metadata store, asked by a thread of its own: its calls block, and the ordering thread does
//! not wait for them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use halfmoon_meta::{ClusterError, ClusterInfo, MemberSet, MetaStore, NodeEntry, cluster, nodes};
use halfmoon_reactor::Waker;
use halfmoon_wire::{Epoch, Incarnation, NodeId, Role};

use crate::host::{Reign, Request, Scene};

/// How often it is looked whether another sequencer has taken an epoch, and what failed is tried
/// again.
const PERIOD: Duration = Duration::from_secs(1);

/// What the store said.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Where a storage node listens; `None` when that is not known.
    Located(NodeId, Option<String>),
    /// Who is in charge.
    Looked(Scene),
    /// The epoch is this node's.
    Taken(Reign),
    /// It could not be looked, or the epoch could not be taken.
    Failed,
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
    store: Arc<dyn MetaStore>,
    waker: Waker,
    node: NodeId,
    /// Where it listens.
    address: SocketAddr,
    /// What was published last.
    published: Option<NodeEntry>,
    /// The epoch that was taken last and the version of its member set, while it may last.
    reign: Option<(Epoch, u64)>,
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
    pub(crate) fn new(
        store: Arc<dyn MetaStore>,
        waker: Waker,
        node: NodeId,
        address: SocketAddr,
    ) -> Self {
        Self { store, waker, node, address, published: None, reign: None }
    }

    fn work(mut self, requests: &Receiver<Request>, notices: &Sender<Notice>) {
        // Whoever is to take over must be found, so it is published before it is needed.
        self.be_present();
        // At most one of each kind that is tried again: publishing, marking.
        let mut unfinished: Vec<Request> = Vec::new();
        let mut round_at = Instant::now() + PERIOD;
        loop {
            if round_at <= Instant::now() {
                round_at = Instant::now() + PERIOD;
                unfinished.retain(|request| !self.carry_out(*request));
                self.be_present();
                self.look_around(notices);
            }
            match requests.recv_timeout(round_at.saturating_duration_since(Instant::now())) {
                Ok(Request::Locate(node)) => self.tell(notices, self.locate(node)),
                Ok(Request::Look) => {
                    let notice = self.look();
                    self.tell(notices, notice);
                }
                Ok(Request::Take { after }) => {
                    unfinished.clear();
                    let notice = self.take(after);
                    self.tell(notices, notice);
                }
                Ok(request @ (Request::Publish | Request::MarkCommitted(_))) => {
                    unfinished.push(request);
                    unfinished.retain(|request| !self.carry_out(*request));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(entry) = &self.published
            && let Err(error) = nodes::withdraw(&*self.store, entry)
        {
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

    fn look(&self) -> Notice {
        match scene(&*self.store) {
            Ok(scene) => Notice::Looked(scene),
            Err(error) => {
                tracing::warn!(%error, "it is not known which sequencer is in charge");
                Notice::Failed
            }
        }
    }

    fn take(&mut self, after: Epoch) -> Notice {
        self.be_present();
        match cluster::take_epoch(&*self.store, self.node, after) {
            Ok(info) => {
                self.reign = Some((info.epoch(), info.members.version));
                Notice::Taken(reign(&info))
            }
            Err(error @ ClusterError::EpochTaken { .. }) => {
                tracing::info!(%error, "somebody was faster");
                self.look()
            }
            Err(error) => {
                tracing::warn!(%error, "no epoch could be taken");
                Notice::Failed
            }
        }
    }

    /// Publishes where this node listens, unless that was done.
    fn be_present(&mut self) {
        if self.published.is_some() {
            return;
        }
        let published = cluster::read(&*self.store).and_then(|info| self.publish(info.epoch()));
        if let Err(error) = published {
            tracing::warn!(%error, "the sequencer's address is not published");
        }
    }

    fn publish(&mut self, epoch: Epoch) -> Result<(), ClusterError> {
        let life = Incarnation(epoch.0);
        let entry = NodeEntry::new(Role::Sequencer, self.node, life, self.address);
        nodes::publish(&*self.store, &entry)?;
        self.published = Some(entry);
        Ok(())
    }

    /// Whether that is the end of it; what failed is tried again.
    fn carry_out(&mut self, request: Request) -> bool {
        let Some((epoch, members)) = self.reign else { return true };
        let done = match request {
            Request::Publish => self.publish(epoch),
            // Of a reign before: the set in effect now is another one.
            Request::MarkCommitted(of) if of != epoch => Ok(()),
            Request::MarkCommitted(_) => {
                cluster::mark_committed(&*self.store, members, epoch).map(drop)
            }
            Request::Locate(_) | Request::Look | Request::Take { .. } => Ok(()),
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

    /// Whether there is a successor, and whether other members were proposed: they come into effect
    /// with a new epoch, which whoever is in charge takes.
    fn look_around(&mut self, notices: &Sender<Notice>) {
        let Some((epoch, members)) = self.reign else { return };
        match cluster::read(&*self.store) {
            Ok(info) if info.epoch() > epoch => {
                self.reign = None;
                self.tell(notices, Notice::Deposed(info.epoch()));
            }
            Ok(info) if info.members.version > members => {
                let proposed: Vec<u32> = info.members.nodes().iter().map(|node| node.0).collect();
                tracing::info!(?proposed, "the members change: the reign goes on in a new epoch");
                match cluster::take_epoch(&*self.store, self.node, epoch) {
                    Ok(info) => {
                        self.reign = Some((info.epoch(), info.members.version));
                        self.tell(notices, Notice::Taken(reign(&info)));
                    }
                    // The next look finds out who has.
                    Err(error) => tracing::warn!(%error, "no epoch could be taken"),
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "metadata store"),
        }
    }
}

fn scene(store: &dyn MetaStore) -> Result<Scene, ClusterError> {
    let info = cluster::read(store)?;
    let holder = match &info.holder {
        None => None,
        Some(holder) => {
            let found = nodes::find(store, Role::Sequencer, holder.node())?;
            Some((holder.node(), found.map(|entry| entry.address.to_string())))
        }
    };
    Ok(Scene { epoch: info.epoch(), holder, members: info.members.nodes() })
}

fn reign(info: &ClusterInfo) -> Reign {
    let member_sets = info.recovery_sets().map(MemberSet::nodes).collect();
    Reign { epoch: info.epoch(), member_sets }
}
