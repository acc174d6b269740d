//! Handles of values: bytes of this process, or a range of a worker's arena where the network has
//! put them.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use halfmoon_channel::Buffer;
use halfmoon_protocol::ops;
use halfmoon_transport::{Memory, memory};

use crate::pool::WorkerId;
use crate::workers::Workers;

/// A value on its way through the engine.
#[derive(Clone)]
pub(crate) enum Value {
    Bytes(Rc<[u8]>),
    Landed(Rc<Landing>, u32),
}

/// A state buffer of the engine's half of a worker's arena. Given back when nothing can write
/// there any more, unless the worker has it then.
pub(crate) struct Landing {
    workers: Rc<Workers>,
    worker: WorkerId,
    buffer: Buffer,
    memory: Arc<dyn Memory>,
    given: Cell<bool>,
}

impl Landing {
    pub(crate) const fn new(
        workers: Rc<Workers>,
        worker: WorkerId,
        buffer: Buffer,
        memory: Arc<dyn Memory>,
    ) -> Self {
        Self { workers, worker, buffer, memory, given: Cell::new(false) }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.given.get() {
            self.workers.free(self.worker, self.buffer);
        }
    }
}

impl Value {
    /// The bytes, copied if they lie in an arena.
    pub(crate) fn bytes(&self) -> Rc<[u8]> {
        match self {
            Self::Bytes(bytes) => Rc::clone(bytes),
            Self::Landed(landing, len) => {
                let mut bytes = Vec::new();
                let (offset, len) = (u64::from(landing.buffer.offset), *len as usize);
                let copied = memory::append_out(landing.memory.words(), offset, len, &mut bytes);
                assert!(copied.is_ok(), "a landing lies in its memory");
                bytes.into()
            }
        }
    }

    /// The buffer in which it lies, if that is this worker's and nobody else needs it: the worker
    /// has it from here on.
    pub(crate) fn give_to(&self, worker: WorkerId) -> Option<Buffer> {
        let Self::Landed(landing, len) = self else { return None };
        let whole = landing.buffer.len == *len;
        // A node that was slow to answer may still write there: then the client holds it too.
        let alone = Rc::strong_count(landing) == 1;
        if landing.worker != worker || !whole || !alone || landing.given.replace(true) {
            return None;
        }
        Some(landing.buffer)
    }
}

impl ops::Value for Value {
    fn len_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Landed(_, len) => *len as usize,
        }
    }

    fn copy_to(&self, record: &mut Vec<u8>) {
        record.extend_from_slice(&self.bytes());
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}
