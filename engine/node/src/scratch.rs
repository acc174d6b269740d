//! Memory of the engine's own for large values that come before there is a worker: inputs and
//! recorded results. One at a time.

use std::rc::Rc;
use std::sync::Arc;

use halfmoon_client::{Executor, Lend};
use halfmoon_transport::{HeapMemory, Memory, RegionId, memory};
use halfmoon_wire::limits::VALUE_MAX_BYTES;

/// Pause before looking again whether the memory is free, in ns.
const PAUSE_NS: u64 = 1_000_000;

/// See the module.
pub(crate) struct Scratch {
    memory: Arc<HeapMemory>,
    region: RegionId,
    hold: Rc<()>,
}

/// The memory, until this and all that was lent from it are gone.
pub(crate) struct Borrowed {
    memory: Arc<HeapMemory>,
    region: RegionId,
    capacity: u32,
    hold: Rc<()>,
}

impl Scratch {
    pub(crate) fn memory() -> Arc<HeapMemory> {
        Arc::new(HeapMemory::new(VALUE_MAX_BYTES))
    }

    pub(crate) fn new(memory: Arc<HeapMemory>, region: RegionId) -> Self {
        Self { memory, region, hold: Rc::new(()) }
    }

    pub(crate) async fn borrow(&self, executor: &Executor, len: usize) -> Borrowed {
        while Rc::strong_count(&self.hold) > 1 {
            executor.sleep(PAUSE_NS).await;
        }
        let capacity = u32::try_from(len.min(self.memory.len_bytes())).unwrap_or(u32::MAX);
        let (memory, hold) = (Arc::clone(&self.memory), Rc::clone(&self.hold));
        Borrowed { memory, region: self.region, capacity, hold }
    }
}

impl Borrowed {
    pub(crate) fn lend(&self) -> Lend {
        let memory: Arc<dyn Memory> = self.memory.clone();
        let hold = Rc::clone(&self.hold);
        Lend { region: self.region, memory, offset: 0, capacity: self.capacity, hold }
    }

    /// What has landed.
    pub(crate) fn copy(&self, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let copied = memory::append_out(self.memory.words(), 0, len as usize, &mut bytes);
        assert!(copied.is_ok(), "the client has checked the length against the room");
        bytes
    }
}
