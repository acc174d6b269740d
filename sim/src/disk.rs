//! The simulated disk of one storage node: what survives of writes, and what does not.
//!
//! - A write that has completed as durable survives everything. Of one that is under way when the
//!   node dies, each block is old, new, torn between its sectors, has a bit flipped, or has landed
//!   in the place of another.
//! - A write that completed without being durable survives the end of the process, and of a loss of
//!   power any blocks of it.
//! - A write may fail, or be short; what it left then is anybody's guess.
//! - The embedded engine comes back with what it had persisted, and any prefix of what it took later.
//! - A segment file that is used again still holds what was in it.

mod engine;
mod keeper;
mod platter;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use halfmoon_log::{Batch, CorruptError, Log, LogConfig, LogId, Recovered, Scan, SegmentId};
use halfmoon_reactor::AlignedBuffer;
use halfmoon_storage::{
    Disk, DiskDone, Ground, NodeError, Opened, PutReader, RoleConfig, Segment, Which,
};

use crate::random::{Concern, Random};
use crate::shared::Shared;
use crate::time::{MICRO, MILLI};

use engine::{EngineFiles, SimEngine};
pub use keeper::Registry;
use keeper::{Chore, SimKeeper};
use platter::{Effect, File, Op, Platter};

/// How a disk behaves. Chances are in a million.
#[derive(Clone, Debug)]
pub struct DiskProfile {
    /// Duration of a write, in ns: least and most.
    pub write_ns: (u64, u64),
    /// Chance that an operation is slow, and how slow it is at most, in ns.
    pub slow: (u64, u64),
    /// Chance that a write of the embedded engine is slow, and how slow at most, in ns. Reads pass
    /// it.
    pub lags: (u64, u64),
    /// Chance that a write fails, or is short.
    pub fails: u64,
}

/// What was done to disks, counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DiskCounts {
    /// Writes begun.
    pub writes: u64,
    /// Writes that failed or were short.
    pub failed: u64,
    /// Operations that were slow.
    pub slow: u64,
    /// Blocks that were lost when a node died.
    pub lost: u64,
    /// Blocks that tore, flipped a bit, or landed elsewhere.
    pub damaged: u64,
}

impl DiskCounts {
    /// Adds what was done to another disk.
    pub fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.failed += other.failed;
        self.slow += other.slow;
        self.lost += other.lost;
        self.damaged += other.damaged;
    }
}

impl Default for DiskProfile {
    fn default() -> Self {
        Self {
            write_ns: (20 * MICRO, 120 * MICRO),
            slow: (3000, 20 * MILLI),
            lags: (3000, 20 * MILLI),
            fails: 0,
        }
    }
}

/// The disk of one node. It outlives the node's lives; clones are handles to the same one.
#[derive(Clone)]
pub struct Drive(Rc<RefCell<Inner>>);

pub(crate) struct Inner {
    shared: Rc<Shared>,
    node: usize,
    random: Random,
    profile: DiskProfile,
    counts: DiskCounts,
    platter: Platter,
    names: BTreeMap<(Which, SegmentId), usize>,
    pool: Vec<(Which, usize)>,
    /// The names of the logs, once it is noted that they have begun.
    identity: Option<(LogId, LogId)>,
    /// It is noted that all of the state is here.
    whole: bool,
    /// The names that the current life uses.
    drawn: (LogId, LogId),
    chores: VecDeque<Chore>,
    serial: u64,
    engine: EngineFiles,
}

impl Drive {
    /// An empty disk, for the node that is woken when something is done.
    #[must_use]
    pub fn new(shared: Rc<Shared>, node: usize, seed: u64, profile: DiskProfile) -> Self {
        let random = Random::new(seed, Concern::Disk, node as u64);
        let nobody = (LogId(0), LogId(0));
        Self(Rc::new(RefCell::new(Inner {
            shared,
            node,
            random,
            profile,
            counts: DiskCounts::default(),
            platter: Platter::default(),
            names: BTreeMap::new(),
            pool: Vec::new(),
            identity: None,
            whole: false,
            drawn: nobody,
            chores: VecDeque::new(),
            serial: 0,
            engine: EngineFiles::default(),
        })))
    }

    /// Behaves like this from now on.
    pub fn set_profile(&self, profile: DiskProfile) {
        self.0.borrow_mut().profile = profile;
    }

    /// What was done to it.
    #[must_use]
    pub fn counts(&self) -> DiskCounts {
        self.0.borrow().counts
    }

    /// Whether it is being noted that all of the state is here.
    pub(crate) fn is_noting_whole(&self) -> bool {
        self.0.borrow().chores.iter().any(Chore::is_of_whole)
    }

    /// The node's process is gone; with `power`, the machine is.
    pub fn crash(&self, power: bool) {
        let mut inner = self.0.borrow_mut();
        let now = inner.shared.now();
        inner.finish_until(now);
        let Inner { platter, random, counts, .. } = &mut *inner;
        platter.crash(power, random, counts);
        inner.crash_chores();
        let Inner { engine, random, .. } = &mut *inner;
        engine.crash(random);
    }

    /// Reads back what is there, for the next life.
    ///
    /// # Errors
    /// When what was durable is not there any more, which no crash may bring about.
    pub fn open(
        &self,
        config: &RoleConfig,
        registry: Box<dyn Registry>,
    ) -> Result<Ground<SimDisk>, NodeError> {
        let mut inner = self.0.borrow_mut();
        let known = inner.identity.is_some();
        inner.drawn = match inner.identity {
            Some(identity) => identity,
            None => (LogId(inner.random.draw()), LogId(inner.random.draw())),
        };
        let (log_id, state_id) = inner.drawn;
        let log = inner.recover(Which::Log, config.log(log_id), known, |_| {})?;
        let mut puts = PutReader::default();
        let state_config = config.state_log(state_id);
        let state = inner.recover(Which::State, state_config, known, |batch| puts.take(batch))?;
        let puts = puts.finish()?;
        let whole = inner.whole;
        drop(inner);
        let disk = SimDisk(self.clone());
        let keeper = Box::new(SimKeeper::new(self.clone(), registry));
        let engine = Box::new(SimEngine::new(self.clone()));
        Ok(Ground { disk, keeper, engine, log, state, puts, whole })
    }
}

impl Inner {
    fn recover(
        &mut self,
        which: Which,
        config: LogConfig,
        known: bool,
        mut visit: impl FnMut(&Batch<'_>),
    ) -> Result<Opened<usize>, NodeError> {
        let corrupt = |source| NodeError::Corrupt { path: PathBuf::from("simulated"), source };
        let all = (which, SegmentId(0))..=(which, SegmentId(u64::MAX));
        let found: Vec<_> = self.names.range(all).map(|((_, id), file)| (*id, *file)).collect();
        let mut scan = Scan::new(config);
        let size = usize::try_from(config.segment_bytes).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        for (id, file) in &found {
            // What an earlier life wrote and this one counts as flushed is flushed by reading it.
            self.platter.files[*file].sync();
            self.platter.files[*file].read_whole(size, &mut bytes);
            scan.segment(*id, &bytes, &mut visit).map_err(corrupt)?;
        }
        let recovered = scan.finish().map_err(corrupt)?;
        if known && recovered.is_empty() {
            let what = "the disk was in use, and holds no segment".to_owned();
            return Err(corrupt(CorruptError { segment: SegmentId(1), offset: 0, what }));
        }
        Ok(self.take_up(which, config, recovered, &found))
    }

    fn take_up(
        &mut self,
        which: Which,
        config: LogConfig,
        recovered: Recovered,
        found: &[(SegmentId, usize)],
    ) -> Opened<usize> {
        let current = recovered.segment();
        for (unused, _) in found.iter().filter(|(id, _)| *id > current) {
            self.recycle(which, *unused);
        }
        let mut segments: Vec<_> = found.iter().filter(|(id, _)| *id < current).copied().collect();
        segments.push((current, self.prepare(which, current)));
        let segments =
            segments.into_iter().map(|(id, file)| Segment { id, file, direct: true }).collect();
        Opened { log: Log::resume(config, recovered), segments }
    }

    /// The file of a segment: the one that is there, one that is free, or a new one.
    fn prepare(&mut self, which: Which, id: SegmentId) -> usize {
        if let Some(file) = self.names.get(&(which, id)) {
            return *file;
        }
        let free = self.pool.iter().position(|(of, _)| *of == which);
        let file = match free {
            Some(index) => self.pool.swap_remove(index).1,
            None => {
                self.platter.files.push(File::default());
                self.platter.files.len() - 1
            }
        };
        self.names.insert((which, id), file);
        file
    }

    fn recycle(&mut self, which: Which, id: SegmentId) {
        if let Some(file) = self.names.remove(&(which, id)) {
            self.pool.push((which, file));
        }
    }

    fn duration(&mut self) -> u64 {
        let (low, high) = self.profile.write_ns;
        self.random.within(low, high) + self.slowness(self.profile.slow)
    }

    /// By how much more something takes than usual.
    fn slowness(&mut self, (chance, most): (u64, u64)) -> u64 {
        if !self.random.chance(chance) {
            return 0;
        }
        self.counts.slow += 1;
        self.random.skewed(0, most)
    }

    fn start(&mut self, token: u64, effect: Effect, buffer: AlignedBuffer) {
        self.serial += 1;
        let ready_at = self.shared.now() + self.duration();
        self.shared.wake(ready_at, self.node);
        self.platter.flying.push(Op { ready_at, serial: self.serial, token, effect, buffer });
    }

    /// Carries out what the device has done by now, and no process has asked for yet.
    fn finish_until(&mut self, now: u64) {
        while let Some(op) = self.platter.next_ready(now) {
            let done = self.finish(op);
            self.platter.done.push_back(done);
        }
    }

    fn finish(&mut self, op: Op) -> DiskDone {
        let fails =
            matches!(op.effect, Effect::Write { .. }) && self.random.chance(self.profile.fails);
        self.counts.failed += u64::from(fails);
        self.platter.finish(op, fails, &mut self.random)
    }
}

/// The disk as one life of its node uses it.
pub struct SimDisk(Drive);

impl Disk for SimDisk {
    type File = usize;

    fn write(
        &mut self,
        file: &usize,
        offset: u64,
        buffer: AlignedBuffer,
        len: usize,
        durable: bool,
        token: u64,
    ) {
        let mut inner = self.0.0.borrow_mut();
        inner.counts.writes += 1;
        inner.start(token, Effect::Write { file: *file, offset, len, durable }, buffer);
    }

    fn read(&mut self, file: &usize, offset: u64, buffer: AlignedBuffer, len: usize, token: u64) {
        let mut inner = self.0.0.borrow_mut();
        inner.start(token, Effect::Read { file: *file, offset, len }, buffer);
    }

    fn next_done(&mut self) -> Option<DiskDone> {
        let mut inner = self.0.0.borrow_mut();
        let now = inner.shared.now();
        inner.finish_until(now);
        inner.platter.done.pop_front()
    }
}

#[cfg(test)]
mod tests;
