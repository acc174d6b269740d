//! The operations of a client of the log, each compared with what is known.

use std::rc::Rc;

use halfmoon_client::{AppendRequest, LogError, StateError, Value, ValueIn};
use halfmoon_wire::{CellTuple, Condition, InstanceId, SeqNum, Tag, VersionId};

use super::log::{Floors, LogWork};
use crate::check::log::{Wish, payload};
use crate::host::engine::LifeOf;
use crate::plan::Scenario;
use crate::random::Random;
use crate::time::SECOND;

/// Tags of the world: few, so that they are contended for.
const TAGS: u64 = 12;

/// Keys of cells.
const KEYS: u64 = 3;

/// How often each version is read at the end.
const LOOKS: usize = 4;

/// The table of all cells and versions.
const TABLE: &str = "simulated";

/// How long an operation of the store, or the read of a record, may take.
const WITHIN_NS: u64 = 20 * SECOND;

const ENDS: &str = "once nothing fails any more, everything that was begun ends";
const ONE_LOG: &str = "an engine never finds that its log is another one";

impl LogWork {
    /// One operation, or a few at once; `false` when the engine has ended.
    pub(super) async fn operate(
        &self,
        life: &LifeOf,
        floors: &Floors,
        random: &mut Random,
    ) -> bool {
        let appends = match self.plan.scenario {
            Scenario::Log | Scenario::Functions => 60,
            Scenario::Bulk => 98,
        };
        match random.below(100) {
            part if part < appends => {
                let count = 1 + random.below(self.plan.burst);
                self.append(life, floors, random, count).await
            }
            part if part < appends + (100 - appends) / 2 => self.look(life, random).await,
            _ => self.store(life, random).await,
        }
    }

    /// Appends, `count` at once.
    async fn append(
        &self,
        life: &LifeOf,
        floors: &Floors,
        random: &mut Random,
        count: u64,
    ) -> bool {
        let held = floors.hold(life);
        let mut under_way = Vec::new();
        for _ in 0..count {
            let tags = tags(random);
            let conditions = self.conditions(life, &tags, held.seq(), random);
            // Once in a while a cursor that is gone.
            let stale = random.chance(10_000);
            let floor = if stale { held.seq().prev() } else { held.seq() };
            let len = match random.below(100) {
                0 if self.plan.scenario == Scenario::Log => 2000 + random.index(30_000),
                _ => random.index(200),
            };
            let lengths: Vec<u64> =
                conditions.iter().map(|condition| life.log.tag_len(tag_of(condition))).collect();
            let (conditions_of, lengths) = (&conditions[..], &lengths[..]);
            let wish = Wish { floor, conditions: conditions_of, tags: &tags, len, lengths };
            let name = self.history.borrow_mut().ask(&wish);
            let payload = payload(name, len);
            let request =
                AppendRequest { floor, conditions: &conditions, tags: &tags, payload: &payload };
            under_way.push((name, life.log.append(&request)));
        }
        for (name, appending) in under_way {
            match appending.await {
                Ok(answer) => self.history.borrow_mut().answered(name, &answer),
                Err(LogError::Busy) => {}
                Err(LogError::Broken) => {
                    let what = format!("engine {}", life.node);
                    self.judge.object(self.shared.now(), ONE_LOG, what);
                    return false;
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Conditions that hold as far as this engine knows, and some that do not.
    fn conditions(
        &self,
        life: &LifeOf,
        tags: &[Tag],
        floor: SeqNum,
        random: &mut Random,
    ) -> Vec<Condition> {
        let mut conditions = Vec::new();
        if self.plan.scenario == Scenario::Bulk && random.chance(900_000) {
            return conditions;
        }
        match random.below(10) {
            0..3 => {}
            3..7 => {
                if let Some(tag) = random.pick(tags) {
                    let off = [0, 0, 0, 0, 0, 0, 1, 2][random.index(8)];
                    let length = life.log.tag_len(*tag) + off;
                    conditions.push(Condition::Length { tag: *tag, length });
                }
            }
            _ => {
                if let Some(tag) = random.pick(tags) {
                    conditions.push(Condition::NothingAfter { tag: *tag, after: floor });
                }
            }
        }
        if random.chance(200_000) {
            let tag = Tag(1 + random.below(TAGS));
            let length = life.log.tag_len(tag) + random.below(2);
            conditions.push(Condition::Length { tag, length });
        }
        conditions
    }

    /// Reads the log.
    pub(super) async fn look(&self, life: &LifeOf, random: &mut Random) -> bool {
        let tag = Tag(1 + random.below(TAGS));
        let applied = life.log.applied();
        // Somebody has applied so much, so this engine will.
        let end = self.history.borrow().end();
        match random.below(5) {
            0 => {
                let length = life.log.tag_len(tag);
                self.history.borrow_mut().saw_length(tag, length, applied);
            }
            1 => {
                let max = SeqNum(random.below(end.0 + 1));
                let Ok(found) = life.log.read_prev(tag, max).await else { return false };
                self.history.borrow_mut().saw_previous(tag, max, found);
            }
            2 => {
                let min = SeqNum(random.below(end.0 + 1));
                let Ok(found) = life.log.read_next(tag, min).await else { return false };
                let applied = life.log.applied();
                self.history.borrow_mut().saw_next(tag, min, found, applied);
            }
            3 => {
                let known = self.history.borrow().known();
                let Ok(tail) = life.log.tail().await else { return false };
                self.history.borrow_mut().saw_tail(known, tail);
            }
            _ if applied > SeqNum::ZERO => {
                let seq = SeqNum(1 + random.below(applied.0));
                let deadline_ns = life.executor.now_ns() + WITHIN_NS;
                match life.log.record(seq, deadline_ns).await {
                    Ok(record) => {
                        self.history.borrow_mut().saw_record(seq, record.view().bytes());
                    }
                    Err(LogError::Unavailable) => self.late("a record"),
                    Err(_) => return false,
                }
            }
            _ => {}
        }
        true
    }

    /// Uses the state store.
    pub(super) async fn store(&self, life: &LifeOf, random: &mut Random) -> bool {
        let key = [u8::try_from(random.below(KEYS)).unwrap_or(0)];
        let deadline_ns = life.executor.now_ns() + WITHIN_NS;
        let ended = match random.below(10) {
            0..4 => {
                let (instance, value) = self.fresh(random);
                let cursor = life.log.applied();
                let counter = u32::try_from(random.below(3)).unwrap_or(0);
                let tuple = CellTuple { cursor, counter, instance: InstanceId(instance) };
                self.registers.borrow_mut().put_begins(&key, tuple, &value);
                let value = Some(ValueIn::Bytes(Rc::from(value)));
                let put = life.state.put_cell(TABLE, &key, tuple, value, deadline_ns).await;
                put.map(|()| self.registers.borrow_mut().put_ends(&key, tuple))
            }
            4..8 => self.read_cell(life, &key, deadline_ns).await,
            8 => {
                let (id, value) = self.fresh(random);
                let id = VersionId(id);
                self.registers.borrow_mut().version_begins(id, &value);
                self.versions.borrow_mut().push(id.0);
                let value = ValueIn::Bytes(Rc::from(value));
                let put = life.state.put_version(TABLE, &key[..0], id, value, deadline_ns).await;
                put.map(|()| self.registers.borrow_mut().version_ends(id))
            }
            _ => {
                let Some(id) = random.pick(&self.versions.borrow()).copied() else { return true };
                self.read_version(life, VersionId(id), deadline_ns).await
            }
        };
        self.has_ended(ended)
    }

    /// Reads every cell and every version. Whether the engine lived to the end of it.
    pub(super) async fn read_all(&self, life: &LifeOf) -> bool {
        for key in 0..KEYS {
            let key = [u8::try_from(key).unwrap_or(0)];
            let read = self.read_cell(life, &key, life.executor.now_ns() + WITHIN_NS).await;
            if !self.has_ended(read) {
                return false;
            }
        }
        let versions = self.versions.borrow().clone();
        // Which nodes are asked is chosen anew each time.
        for id in versions.iter().copied().cycle().take(LOOKS * versions.len()) {
            let deadline_ns = life.executor.now_ns() + WITHIN_NS;
            let read = self.read_version(life, VersionId(id), deadline_ns).await;
            if !self.has_ended(read) {
                return false;
            }
        }
        true
    }

    async fn read_cell(
        &self,
        life: &LifeOf,
        key: &[u8],
        deadline_ns: u64,
    ) -> Result<(), StateError> {
        let least = self.registers.borrow_mut().get_begins(key);
        let cell = life.state.get_cell(TABLE, key, None, deadline_ns).await?;
        let found = cell.as_ref().map(|cell| (cell.tuple, bytes(cell.value.as_ref())));
        self.registers.borrow_mut().get_ends(key, least, found);
        Ok(())
    }

    async fn read_version(
        &self,
        life: &LifeOf,
        id: VersionId,
        deadline_ns: u64,
    ) -> Result<(), StateError> {
        let was_there = self.registers.borrow().is_there(id);
        let value = life.state.get_version(TABLE, &[], id, None, deadline_ns).await?;
        let found = value.as_ref().map(|value| bytes(Some(value)));
        self.registers.borrow_mut().version_read(id, was_there, found);
        Ok(())
    }

    /// `false` when the engine has ended.
    fn has_ended(&self, ended: Result<(), StateError>) -> bool {
        match ended {
            Ok(()) => true,
            Err(StateError::Unknown | StateError::Unavailable) => {
                self.late("an operation of the state store");
                true
            }
            Err(_) => false,
        }
    }

    /// A number that nobody was given, and a value.
    fn fresh(&self, random: &mut Random) -> (u128, Vec<u8>) {
        let number = self.last_write.get() + 1;
        self.last_write.set(number);
        let len = match random.below(20) {
            0 => 9000 + random.index(40_000),
            1 => 1000 + random.index(4000),
            _ => 1 + random.index(60),
        };
        let salt = u8::try_from(number % 251).unwrap_or(0);
        (number, vec![salt; len])
    }

    /// It had longer than any fault lasts.
    fn late(&self, what: &str) {
        self.judge.object(self.shared.now(), ENDS, format!("{what} had no answer in time"));
    }
}

fn bytes(value: Option<&Value>) -> &[u8] {
    match value {
        Some(Value::Bytes(bytes)) => bytes,
        Some(Value::Landed { .. }) | None => &[],
    }
}

fn tag_of(condition: &Condition) -> Tag {
    match condition {
        Condition::Length { tag, .. } | Condition::NothingAfter { tag, .. } => *tag,
    }
}

/// One to three different tags.
fn tags(random: &mut Random) -> Vec<Tag> {
    let mut tags = Vec::new();
    for _ in 0..=random.below(3) {
        let tag = Tag(1 + random.below(TAGS));
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}
