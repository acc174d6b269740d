//! The helper thread for what blocks and is not on the hot path: segment files made ready and taken
//! back, addresses of peers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use halfmoon_log::SegmentId;
use halfmoon_meta::{MetaStore, nodes};
use halfmoon_transport::Wake;
use halfmoon_wire::{NodeId, Role};

use crate::NodeError;
use crate::home::{Segment, SegmentDir};

/// Which of a node's two logs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Which {
    Log,
    State,
}

enum Task {
    Prepare(Which, SegmentId),
    Recycle(Which, SegmentId),
    Find(NodeId),
}

/// What the keeper did.
pub(crate) enum Kept {
    Prepared(Which, Segment),
    Found(NodeId, Option<SocketAddr>),
    Failed(NodeError),
}

/// The hot thread's side. What it asks for at once is bounded: a segment per log, the segments that
/// are dropped, one address.
pub(crate) struct Keeper {
    tasks: Option<Sender<Task>>,
    kept: Receiver<Kept>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    log: SegmentDir,
    state: SegmentDir,
    meta: Arc<dyn MetaStore>,
}

impl Keeper {
    pub(crate) fn start(
        log: SegmentDir,
        state: SegmentDir,
        meta: Arc<dyn MetaStore>,
        wake: Arc<dyn Wake>,
    ) -> Result<Self, NodeError> {
        let (tasks, todo) = channel::<Task>();
        let (done, kept) = channel();
        let work = Work { log, state, meta };
        let thread = std::thread::Builder::new()
            .name("storage-keeper".to_owned())
            .spawn(move || {
                for task in todo {
                    let Some(result) = work.carry_out(task) else { continue };
                    if done.send(result).is_err() {
                        return;
                    }
                    wake.wake();
                }
            })
            .map_err(|source| NodeError::Thread { name: "storage-keeper", source })?;
        Ok(Self { tasks: Some(tasks), kept, thread: Some(thread) })
    }

    pub(crate) fn prepare(&self, which: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ask(Task::Prepare(which, id))
    }

    pub(crate) fn recycle(&self, which: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ask(Task::Recycle(which, id))
    }

    pub(crate) fn find(&self, node: NodeId) -> Result<(), NodeError> {
        self.ask(Task::Find(node))
    }

    pub(crate) fn next(&self) -> Option<Kept> {
        self.kept.try_recv().ok()
    }

    fn ask(&self, task: Task) -> Result<(), NodeError> {
        let sent = self.tasks.as_ref().is_some_and(|tasks| tasks.send(task).is_ok());
        if sent {
            return Ok(());
        }
        let source = io::Error::from(io::ErrorKind::BrokenPipe);
        Err(NodeError::Thread { name: "storage-keeper", source })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // It ends once the queue is empty; if it panicked, there is nobody left to tell.
            thread.join().ok();
        }
    }
}

impl Work {
    fn dir(&self, which: Which) -> &SegmentDir {
        match which {
            Which::Log => &self.log,
            Which::State => &self.state,
        }
    }

    fn carry_out(&self, task: Task) -> Option<Kept> {
        match task {
            Task::Prepare(which, id) => Some(match self.dir(which).prepare(id) {
                Ok(segment) => Kept::Prepared(which, segment),
                Err(error) => Kept::Failed(error),
            }),
            Task::Recycle(which, id) => self.dir(which).recycle(id).err().map(Kept::Failed),
            Task::Find(node) => {
                let found = nodes::find(&*self.meta, Role::Storage, node);
                let address = found.unwrap_or_else(|error| {
                    tracing::warn!(%node, %error, "a peer's address cannot be looked up");
                    None
                });
                Some(Kept::Found(node, address.map(|entry| entry.address)))
            }
        }
    }
}
