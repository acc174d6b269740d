//! The embedded engine: a map, and what of it is persisted.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::Arc;

use halfmoon_storage::{Engine, EngineEvent, Page, Put};

use super::Drive;
use crate::random::Random;
use crate::time::MICRO;

/// Duration of one thing, in ns: least and most.
const TASK_NS: (u64, u64) = (2 * MICRO, 300 * MICRO);

type Values = BTreeMap<Arc<[u8]>, Arc<[u8]>>;

/// What is in the engine's files.
#[derive(Default)]
pub(crate) struct EngineFiles {
    persisted: Values,
    synced: u64,
    /// Taken since it last persisted.
    later: Vec<Vec<Put>>,
    now: Values,
}

/// The engine as one life of its node uses it.
pub(crate) struct SimEngine {
    drive: Drive,
    synced: u64,
    /// Writes and reads go on side by side, each in order.
    writes: VecDeque<(u64, Write)>,
    reads: VecDeque<(u64, Read)>,
}

enum Write {
    Apply(Vec<Put>),
    Persist(u64),
}

enum Read {
    Value(u64, Arc<[u8]>),
    Blob(u64),
    Page(u64, Arc<[u8]>),
}

impl EngineFiles {
    pub(super) fn crash(&mut self, random: &mut Random) {
        self.now = self.persisted.clone();
        let kept = random.index(self.later.len() + 1);
        self.later.truncate(kept);
        for puts in &self.later {
            take(&mut self.now, puts);
        }
    }

    fn persist(&mut self, upto: u64) {
        for puts in std::mem::take(&mut self.later) {
            take(&mut self.persisted, &puts);
        }
        self.synced = upto;
    }
}

fn take(values: &mut Values, puts: &[Put]) {
    for put in puts {
        if values.get(&put.key).is_none_or(|current| put.beats(current)) {
            values.insert(put.key.clone(), put.value.clone());
        }
    }
}

impl SimEngine {
    pub(super) fn new(drive: Drive) -> Self {
        let synced = drive.0.borrow().engine.synced;
        Self { drive, synced, writes: VecDeque::new(), reads: VecDeque::new() }
    }

    /// When something that is begun now will be done, after what was begun before. It may take
    /// longer than usual.
    fn ready_at(&self, before: Option<u64>, longer: (u64, u64)) -> u64 {
        let mut inner = self.drive.0.borrow_mut();
        let (low, high) = TASK_NS;
        let took = inner.random.skewed(low, high) + inner.slowness(longer);
        let ready_at = before.unwrap_or(0).max(inner.shared.now()) + took;
        inner.shared.wake(ready_at, inner.node);
        ready_at
    }

    fn ask(&mut self, read: Read) {
        let ready_at = self.ready_at(self.reads.back().map(|(at, _)| *at), (0, 0));
        self.reads.push_back((ready_at, read));
    }

    fn write(&mut self, write: Write) {
        let lags = self.drive.0.borrow().profile.lags;
        let ready_at = self.ready_at(self.writes.back().map(|(at, _)| *at), lags);
        self.writes.push_back((ready_at, write));
    }
}

impl Engine for SimEngine {
    fn synced(&self) -> u64 {
        self.synced
    }

    fn apply(&mut self, puts: Vec<Put>) {
        self.write(Write::Apply(puts));
    }

    fn persist(&mut self, upto: u64) {
        self.write(Write::Persist(upto));
    }

    fn read(&mut self, id: u64, key: Arc<[u8]>) {
        self.ask(Read::Value(id, key));
    }

    fn read_blob(&mut self, id: u64, _hash: [u8; 32], _offset: u64) {
        self.ask(Read::Blob(id));
    }

    fn scan(&mut self, id: u64, after: Arc<[u8]>) {
        self.ask(Read::Page(id, after));
    }

    fn next(&mut self) -> Option<EngineEvent> {
        let mut inner = self.drive.0.borrow_mut();
        let now = inner.shared.now();
        let write_at = self.writes.front().map(|(at, _)| *at).filter(|at| *at <= now);
        let read_at = self.reads.front().map(|(at, _)| *at).filter(|at| *at <= now);
        match (write_at, read_at) {
            (Some(write), read) if read.is_none_or(|read| write <= read) => {
                match self.writes.pop_front()?.1 {
                    Write::Apply(puts) => {
                        take(&mut inner.engine.now, &puts);
                        inner.engine.later.push(puts);
                        Some(EngineEvent::Applied)
                    }
                    Write::Persist(upto) => {
                        inner.engine.persist(upto);
                        Some(EngineEvent::Persisted(upto))
                    }
                }
            }
            (_, Some(_)) => match self.reads.pop_front()?.1 {
                Read::Value(id, key) => {
                    Some(EngineEvent::Value(id, inner.engine.now.get(&key).cloned()))
                }
                // Binaries are not part of the simulated world.
                Read::Blob(id) => Some(EngineEvent::Blob(id, None)),
                Read::Page(id, after) => {
                    let rest = (Bound::Excluded(after), Bound::Unbounded);
                    let rest = inner.engine.now.range(rest);
                    let pairs = rest.map(|(key, value)| Ok((key.clone(), value.clone())));
                    let Ok::<_, Infallible>(page) = Page::take(pairs);
                    Some(EngineEvent::Page(id, page))
                }
            },
            (_, None) => None,
        }
    }
}
