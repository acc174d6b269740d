//! Segments made ready and taken back, and peers looked up, a little later.

use std::net::SocketAddr;

use halfmoon_log::SegmentId;
use halfmoon_storage::{Keeper, Kept, NodeError, Segment, Which};
use halfmoon_wire::NodeId;

use super::{Drive, Inner};
use crate::time::MICRO;

/// What a keeper asks the metadata store, at the moment it is called.
pub trait Registry {
    /// Where a storage node listens.
    fn find(&self, node: NodeId) -> Option<SocketAddr>;

    /// Writes down that the keeper's node has copied the state; whether that was done.
    fn mark_copied(&self) -> bool;
}

/// Duration of a chore, in ns: least and most.
const CHORE_NS: (u64, u64) = (50 * MICRO, 3000 * MICRO);

/// A chore under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chore {
    ready_at: u64,
    task: Task,
}

impl Chore {
    pub(super) const fn is_of_whole(&self) -> bool {
        matches!(self.task, Task::Whole)
    }
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Prepare(Which, SegmentId),
    Recycle(Which, SegmentId),
    Find(NodeId),
    Whole,
}

/// The keeper of one life of a node.
pub(crate) struct SimKeeper {
    drive: Drive,
    registry: Box<dyn Registry>,
}

impl SimKeeper {
    pub(super) fn new(drive: Drive, registry: Box<dyn Registry>) -> Self {
        Self { drive, registry }
    }

    fn ask(&mut self, task: Task) -> Result<(), NodeError> {
        let mut inner = self.drive.0.borrow_mut();
        let (low, high) = CHORE_NS;
        let before = inner.chores.back().map_or(0, |chore| chore.ready_at);
        let ready_at = before.max(inner.shared.now() + inner.random.within(low, high));
        inner.shared.wake(ready_at, inner.node);
        inner.chores.push_back(Chore { ready_at, task });
        Ok(())
    }
}

impl Keeper<usize> for SimKeeper {
    fn prepare(&mut self, which: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ask(Task::Prepare(which, id))
    }

    fn recycle(&mut self, which: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ask(Task::Recycle(which, id))
    }

    fn find(&mut self, node: NodeId) -> Result<(), NodeError> {
        self.ask(Task::Find(node))
    }

    fn next(&mut self) -> Option<Kept<usize>> {
        let mut inner = self.drive.0.borrow_mut();
        let now = inner.shared.now();
        while inner.chores.front().is_some_and(|chore| chore.ready_at <= now) {
            let Some(Chore { task, .. }) = inner.chores.pop_front() else { break };
            match task {
                Task::Prepare(which, id) => {
                    let file = inner.prepare(which, id);
                    let segment = Segment { id, file, direct: true };
                    return Some(Kept::Prepared(which, segment));
                }
                Task::Recycle(which, id) => inner.recycle(which, id),
                Task::Find(node) => return Some(Kept::Found(node, self.registry.find(node))),
                Task::Whole => {
                    inner.whole = true;
                    return Some(Kept::Whole { is_known: self.registry.mark_copied() });
                }
            }
        }
        None
    }

    fn begun(&mut self) -> Result<(), NodeError> {
        let mut inner = self.drive.0.borrow_mut();
        inner.identity = Some(inner.drawn);
        Ok(())
    }

    fn whole(&mut self) -> Result<(), NodeError> {
        self.ask(Task::Whole)
    }
}

impl Inner {
    /// The chores under way are done, or not.
    pub(super) fn crash_chores(&mut self) {
        for Chore { task, .. } in std::mem::take(&mut self.chores) {
            if self.random.chance(500_000) {
                return;
            }
            match task {
                Task::Prepare(which, id) => drop(self.prepare(which, id)),
                Task::Recycle(which, id) => self.recycle(which, id),
                Task::Find(_) => {}
                // The directory may say so although the metadata store was not told.
                Task::Whole => self.whole = true,
            }
        }
    }
}
