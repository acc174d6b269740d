//! The world that the exhaustive tests run in: one log, one store, no failures but those chosen.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use halfmoon_wire::{
    CellTuple, Condition, Epoch, Incarnation, InstanceId, LocalId, NewRecord, NodeId, Origin,
    RecordKind, SeqNum, Tag, TagPos, VersionId, tag,
};

use crate::Object;
use crate::ops::{Append, AppendOutcome, Cell, Found, Value};
use crate::payload::{self, Entry, Kind};

/// A value; a `large` one claims to be too long for a record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Val {
    pub(crate) bytes: Rc<[u8]>,
    pub(crate) large: bool,
}

/// Appends, by what they are for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) init: u32,
    pub(crate) steps: u32,
    pub(crate) fences: u32,
    pub(crate) finish: u32,
}

pub(crate) struct Record {
    pub(crate) tags: Vec<(Tag, u64)>,
    pub(crate) payload: Arc<[u8]>,
}

/// Log and store.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) log: Vec<Record>,
    streams: BTreeMap<Tag, Vec<usize>>,
    pub(crate) cells: BTreeMap<Object, Cell<Val>>,
    pub(crate) versions: BTreeMap<(Object, VersionId), Val>,
    pub(crate) counts: Counts,
    prints: Prints,
}

/// Hashes of log, cells and versions, kept up to date.
#[derive(Clone, Copy, Hash, Default)]
struct Prints {
    log: u64,
    cells: u64,
    versions: u64,
}

/// A record's bytes, as a log would hold them at this index.
pub(crate) fn encode(index: usize, record: &Record, bytes: &mut Vec<u8>) {
    let tags: Vec<TagPos> =
        record.tags.iter().map(|(tag, position)| TagPos::new(*tag, *position)).collect();
    let record = NewRecord {
        seq: SeqNum(index as u64 + 1),
        epoch: Epoch(1),
        time_ns: 0,
        origin: Origin { engine: NodeId(1), incarnation: Incarnation(1), local: LocalId(1) },
        floor: SeqNum::MAX,
        kind: RecordKind::Data,
        tags: &tags,
        payload: &record.payload,
    };
    record.encode(bytes);
}

impl Value for Val {
    fn len_bytes(&self) -> usize {
        if self.large { 1 << 20 } else { self.bytes.len() }
    }

    fn copy_to(&self, record: &mut Vec<u8>) {
        assert!(!self.large, "large values stay where they are");
        record.extend_from_slice(&self.bytes);
    }
}

impl Val {
    pub(crate) fn small(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), large: false }
    }
}

/// A hash that is the same in every run.
pub(crate) fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl World {
    pub(crate) fn tail(&self) -> SeqNum {
        SeqNum(self.log.len() as u64)
    }

    fn found(&self, tag: Tag, position: usize) -> Option<Found> {
        let index = *self.streams.get(&tag)?.get(position)?;
        let payload = Arc::clone(&self.log[index].payload);
        Some(Found { seq: SeqNum(index as u64 + 1), position: position as u64, payload })
    }

    fn length(&self, tag: Tag) -> u64 {
        self.streams.get(&tag).map_or(0, |stream| stream.len() as u64)
    }

    /// The records of a stream, in order.
    pub(crate) fn stream(&self, tag: Tag) -> Vec<Found> {
        let count = self.streams.get(&tag).map_or(0, Vec::len);
        (0..count).filter_map(|position| self.found(tag, position)).collect()
    }

    pub(crate) fn last(&self, tag: Tag, max: SeqNum) -> Option<Found> {
        let stream = self.streams.get(&tag)?;
        let count = stream.partition_point(|index| (*index as u64) < max.0);
        self.found(tag, count.checked_sub(1)?)
    }

    /// What the sequencer would answer.
    pub(crate) fn judge(&self, append: &Append) -> AppendOutcome {
        for (condition, wanted) in append.conditions.iter().enumerate() {
            match *wanted {
                Condition::Length { tag, length } => {
                    let now = self.length(tag);
                    if now > length {
                        let winner = usize::try_from(length).ok();
                        let winner = winner.and_then(|position| self.found(tag, position));
                        return AppendOutcome::Conflict { condition, winner };
                    }
                    if now < length {
                        return match now {
                            0 => AppendOutcome::Conflict { condition, winner: None },
                            _ => AppendOutcome::Gap { condition },
                        };
                    }
                }
                Condition::NothingAfter { tag, after } => {
                    let last = self.last(tag, SeqNum::MAX).filter(|found| found.seq > after);
                    if last.is_some() {
                        return AppendOutcome::Conflict { condition, winner: last };
                    }
                }
            }
        }
        AppendOutcome::Appended(self.tail().next())
    }

    /// What the sequencer does, and that it is committed.
    pub(crate) fn append(&mut self, append: &Append) -> AppendOutcome {
        let outcome = self.judge(append);
        if !matches!(outcome, AppendOutcome::Appended(_)) {
            return outcome;
        }
        self.prints = self.after_append(append);
        self.count(&append.payload);
        let tags: Vec<_> = append.tags.iter().map(|tag| (*tag, self.length(*tag))).collect();
        for tag in &append.tags {
            self.streams.entry(*tag).or_default().push(self.log.len());
        }
        self.log.push(Record { tags, payload: append.payload.as_slice().into() });
        outcome
    }

    fn after_append(&self, append: &Append) -> Prints {
        Prints { log: hash_of(&(self.prints.log, &append.tags, &append.payload)), ..self.prints }
    }

    fn after_cell(&self, object: &Object, cell: &Cell<Val>) -> Prints {
        let old = self.cells.get(object).map_or(0, |old| hash_of(&(object, old)));
        Prints { cells: self.prints.cells ^ old ^ hash_of(&(object, cell)), ..self.prints }
    }

    fn after_version(&self, name: &(Object, VersionId), value: &Val) -> Prints {
        let old = self.versions.get(name).map_or(0, |old| hash_of(&(name, old)));
        Prints { versions: self.prints.versions ^ old ^ hash_of(&(name, value)), ..self.prints }
    }

    /// [`World::fingerprint`] after an operation that has not happened yet.
    pub(crate) fn fingerprint_after(&self, request: &super::stage::Request) -> u64 {
        use super::stage::Request;
        hash_of(&match request {
            Request::Append(append) if matches!(self.judge(append), AppendOutcome::Appended(_)) => {
                self.after_append(append)
            }
            Request::PutCell(object, tuple, value) => {
                let newer = self.cells.get(object).is_none_or(|cell| cell.tuple < *tuple);
                let cell = Cell { tuple: *tuple, value: value.clone() };
                if newer { self.after_cell(object, &cell) } else { self.prints }
            }
            Request::PutVersion(object, version, value) => {
                self.after_version(&(object.clone(), *version), value)
            }
            Request::Append(_)
            | Request::Start(_)
            | Request::First(_)
            | Request::GetCell(_)
            | Request::GetVersion(..)
            | Request::Pause => self.prints,
        })
    }

    fn count(&mut self, payload: &[u8]) {
        // Only the tests plant what does not parse.
        let Some(kind) = payload::kind(payload) else { return };
        let count = match kind {
            Kind::Init => &mut self.counts.init,
            Kind::Step => &mut self.counts.steps,
            Kind::Fence => &mut self.counts.fences,
            Kind::Finish => &mut self.counts.finish,
            Kind::Cancel => return,
        };
        *count += 1;
    }

    pub(crate) fn put_cell(&mut self, object: &Object, tuple: CellTuple, value: Option<Val>) {
        let newer = self.cells.get(object).is_none_or(|cell| cell.tuple < tuple);
        if newer {
            let cell = Cell { tuple, value };
            self.prints = self.after_cell(object, &cell);
            self.cells.insert(object.clone(), cell);
        }
    }

    pub(crate) fn put_version(&mut self, object: &Object, version: VersionId, value: Val) {
        let name = (object.clone(), version);
        self.prints = self.after_version(&name, &value);
        self.versions.insert(name, value);
    }

    /// Is there an Init of this root?
    pub(crate) fn init_of(&self, root: InstanceId) -> Option<SeqNum> {
        self.found(tag::step(root), 0).map(|found| found.seq)
    }

    /// The value of the last write record of an object, wherever it is kept; `Err` if it is lost.
    pub(crate) fn last_written(&self, object: &Object) -> Result<Option<Val>, String> {
        use crate::payload::Stored;
        let stream = tag::object(&object.table, &object.key);
        let Some(found) = self.last(stream, SeqNum::MAX) else { return Ok(None) };
        let entry = Entry::decode(&found.payload).map_err(|error| error.to_string())?;
        match entry.write_to(object) {
            Some(Some(Stored::Inline(bytes))) => Ok(Some(Val::small(bytes))),
            Some(Some(Stored::Version(version))) => {
                let value = self.versions.get(&(object.clone(), *version)).cloned();
                value.map(Some).ok_or_else(|| format!("the version of {object:?} is lost"))
            }
            Some(None) => Ok(None),
            None => Err(format!("a record under the tag of {object:?} does not write it")),
        }
    }

    /// Hash of all that anyone can see.
    pub(crate) fn fingerprint(&self) -> u64 {
        hash_of(&self.prints)
    }
}
