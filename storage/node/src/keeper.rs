//! The helper thread for what blocks and is not on the hot path: segment files made ready and taken
//! back, addresses of peers.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use halfmoon_log::SegmentId;
use halfmoon_meta::{MetaStore, cluster, nodes};
use halfmoon_transport::Wake;
use halfmoon_wire::{NodeId, Role};

use crate::NodeError;
use crate::ground::{Keeper, Kept, Which};
use crate::home::{Home, Identity, SegmentDir};

enum Task {
    Prepare(Which, SegmentId),
    Recycle(Which, SegmentId),
    Find(NodeId),
    Whole,
}

/// The hot thread's side. What it asks for at once is bounded: a segment per log, the segments that
/// are dropped, one address.
pub(crate) struct KeeperThread {
    tasks: Option<Sender<Task>>,
    kept: Receiver<Kept<Arc<File>>>,
    thread: Option<JoinHandle<()>>,
    home: Home,
    /// Written once both logs have begun, so that a directory with an identity has logs.
    unwritten_identity: Option<Identity>,
}

struct Work {
    home: Home,
    identity: Identity,
    log: SegmentDir,
    state: SegmentDir,
    meta: Arc<dyn MetaStore>,
}

impl KeeperThread {
    pub(crate) fn start(
        home: Home,
        (identity, is_written): (Identity, bool),
        (log, state): (SegmentDir, SegmentDir),
        meta: Arc<dyn MetaStore>,
        wake: Arc<dyn Wake>,
    ) -> Result<Self, NodeError> {
        let (tasks, todo) = channel::<Task>();
        let (done, kept) = channel();
        let unwritten_identity = (!is_written).then_some(identity);
        let mut work = Work { home: home.clone(), identity, log, state, meta };
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
        let (tasks, thread) = (Some(tasks), Some(thread));
        Ok(Self { tasks, kept, thread, home, unwritten_identity })
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

impl Keeper<Arc<File>> for KeeperThread {
    fn prepare(&mut self, which: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ask(Task::Prepare(which, id))
    }

    fn recycle(&mut self, which: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ask(Task::Recycle(which, id))
    }

    fn find(&mut self, node: NodeId) -> Result<(), NodeError> {
        self.ask(Task::Find(node))
    }

    fn whole(&mut self) -> Result<(), NodeError> {
        self.ask(Task::Whole)
    }

    fn next(&mut self) -> Option<Kept<Arc<File>>> {
        self.kept.try_recv().ok()
    }

    fn begun(&mut self) -> Result<(), NodeError> {
        match self.unwritten_identity.take() {
            Some(identity) => self.home.set_identity(&identity),
            None => Ok(()),
        }
    }
}

impl Drop for KeeperThread {
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

    /// In this order: a directory that does not say so is copied anew, whatever the metadata says.
    fn whole(&mut self) -> Kept<Arc<File>> {
        if !self.identity.whole {
            self.identity.whole = true;
            if let Err(error) = self.home.set_identity(&self.identity) {
                return Kept::Failed(error);
            }
        }
        let node = self.identity.node;
        let marked = cluster::mark_copied(&*self.meta, node);
        if let Err(error) = &marked {
            tracing::warn!(%node, %error, "that the state is copied cannot be written down yet");
        }
        Kept::Whole { is_known: marked.is_ok() }
    }

    fn carry_out(&mut self, task: Task) -> Option<Kept<Arc<File>>> {
        match task {
            Task::Prepare(which, id) => Some(match self.dir(which).prepare(id) {
                Ok(segment) => Kept::Prepared(which, segment),
                Err(error) => Kept::Failed(error),
            }),
            Task::Whole => Some(self.whole()),
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
