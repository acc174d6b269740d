//! Segments made ready and taken back, and peers looked up, a little later.

use std::net::SocketAddr;

use halfmoon_log::SegmentId;
use halfmoon_storage::{Keeper, Kept, NodeError, Segment, Which};
use halfmoon_wire::NodeId;

use super::{Drive, Inner};
use crate::time::MICRO;

/// Looks up where a storage node listens, at the moment it is called.
pub(super) type Find = Box<dyn Fn(NodeId) -> Option<SocketAddr>>;

/// Duration of a chore, in ns: least and most.
const CHORE_NS: (u64, u64) = (50 * MICRO, 3000 * MICRO);

/// A chore under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chore {
    ready_at: u64,
    task: Task,
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Prepare(Which, SegmentId),
    Recycle(Which, SegmentId),
    Find(NodeId),
}

/// The keeper of one life of a node.
pub(crate) struct SimKeeper {
    drive: Drive,
    find: Find,
}

impl SimKeeper {
    pub(super) fn new(drive: Drive, find: Find) -> Self {
        Self { drive, find }
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
                Task::Find(node) => return Some(Kept::Found(node, (self.find)(node))),
            }
        }
        None
    }

    fn begun(&mut self) -> Result<(), NodeError> {
        let mut inner = self.drive.0.borrow_mut();
        inner.identity = Some(inner.drawn);
        Ok(())
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
            }
        }
    }
}
