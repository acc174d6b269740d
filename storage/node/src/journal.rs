//! Carries the writes of one log to its segment files.

use std::collections::BTreeMap;
use std::io;

use halfmoon_log::limits::{IN_FLIGHT_MAX, WRITE_MAX_BYTES};
use halfmoon_log::{Run, SegmentId, Write};
use halfmoon_reactor::AlignedBuffer;
use halfmoon_wire::broken;

use crate::NodeError;
use crate::disk::Disk;
use crate::ground::{Keeper, Segment, Which};

/// The files of one log, and the writes to them that are under way.
pub(crate) struct Journal<F> {
    which: Which,
    files: BTreeMap<SegmentId, Segment<F>>,
    /// The newest segment that is ready to be written.
    ready: SegmentId,
    preparing: bool,
    buffers: Vec<AlignedBuffer>,
    /// Buffers that may still be made: a node that is never busy needs one.
    unmade: usize,
    flying: Vec<Write>,
    durable: bool,
}

/// Completions carry which log they are of, and a number.
pub(crate) const TOKEN_SHIFT: u32 = 56;

impl<F: Clone> Journal<F> {
    pub(crate) fn new(which: Which, segments: Vec<Segment<F>>, durable: bool) -> Self {
        let ready = segments.last().map_or(SegmentId(0), |segment| segment.id);
        let files = segments.into_iter().map(|segment| (segment.id, segment)).collect();
        let (preparing, buffers, flying) = (false, Vec::new(), Vec::new());
        Self { which, files, ready, preparing, buffers, unmade: IN_FLIGHT_MAX, flying, durable }
    }

    /// Whether all files bypass the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.files.values().all(|segment| segment.direct)
    }

    /// Starts all writes that can be. `next` lays one out, given the newest segment that is ready.
    pub(crate) fn pump(
        &mut self,
        disk: &mut impl Disk<File = F>,
        mut next: impl FnMut(SegmentId, &mut [u8]) -> Option<Write>,
    ) {
        while let Some(mut buffer) = self.buffer() {
            let Some(write) = next(self.ready, buffer.bytes_mut()) else {
                self.buffers.push(buffer);
                return;
            };
            let Some(segment) = self.files.get(&write.segment) else {
                unreachable!("a log writes only to segments up to the one that is ready");
            };
            let token = (self.which as u64) << TOKEN_SHIFT | write.number;
            let durable = self.durable && !broken!(WriteNotDurable);
            disk.write(&segment.file, write.offset, buffer, write.len, durable, token);
            self.flying.push(write);
        }
    }

    fn buffer(&mut self) -> Option<AlignedBuffer> {
        self.buffers.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(AlignedBuffer::zeroed(WRITE_MAX_BYTES))
        })
    }

    /// Has the next segment made ready, if it is not.
    pub(crate) fn prepare(
        &mut self,
        wanted: SegmentId,
        keeper: &mut dyn Keeper<F>,
    ) -> Result<(), NodeError> {
        if wanted > self.ready && !self.preparing {
            self.preparing = true;
            keeper.prepare(self.which, wanted)?;
        }
        Ok(())
    }

    pub(crate) fn prepared(&mut self, segment: Segment<F>) {
        self.preparing = false;
        self.ready = self.ready.max(segment.id);
        self.files.insert(segment.id, segment);
    }

    /// A segment that the log does not need any more.
    pub(crate) fn dropped(
        &mut self,
        id: SegmentId,
        keeper: &mut dyn Keeper<F>,
    ) -> Result<(), NodeError> {
        self.files.remove(&id);
        keeper.recycle(self.which, id)
    }

    /// A write has ended. All of it is durable, or the node is done.
    pub(crate) fn completed(
        &mut self,
        number: u64,
        result: io::Result<usize>,
        buffer: AlignedBuffer,
    ) -> Result<u64, NodeError> {
        self.buffers.push(buffer);
        let Some(index) = self.flying.iter().position(|write| write.number == number) else {
            return Ok(0);
        };
        let write = self.flying.swap_remove(index);
        let source = match result {
            Ok(written) if written == write.len => return Ok(number),
            Ok(_) => io::Error::from(io::ErrorKind::WriteZero),
            Err(_) if broken!(FailedFlushCounts) => return Ok(number),
            Err(error) => error,
        };
        Err(NodeError::Flush { segment: write.segment, offset: write.offset, source })
    }

    pub(crate) fn file(&self, run: &Run) -> Option<F> {
        self.files.get(&run.segment).map(|segment| segment.file.clone())
    }
}
