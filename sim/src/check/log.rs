//! Checker 1: the log. There is one, whoever looks at it, and it keeps its rules.
//!
//! - What one engine has applied at a position, every engine applies there, in this and in every
//!   later epoch: so what is committed is never lost.
//! - Positions are dense, times and epochs do not go back, an append is there at most once, and only
//!   as it was asked for.
//! - A record's conditions held at its place: so no position of a tag is given twice.
//! - An append that is answered is there, after everything that was answered before it began; one
//!   that is refused is not there, and what refused it is committed and as it was said to be.
//! - Reads of a tag return the right neighbours.

use std::rc::Rc;

use halfmoon_client::Appended;
use halfmoon_wire::{Condition, Epoch, Evict, RecordKind, RecordRef, SafePoint, SeqNum, Tag};
use rustc_hash::FxHashMap;

use super::Judge;
use crate::shared::Shared;

/// Bytes of an append's name at the front of its payload.
pub const NAME_BYTES: usize = 8;

const AGREE: &str = "every engine applies the same log";
const ONCE: &str = "an append is in the log at most once, as it was asked for";
const DENSE: &str = "positions are dense, times and epochs grow";
const CONDITIONS: &str = "conditions hold where their record stands";
const ANSWER: &str = "an answered append is where the answer says";
const REAL_TIME: &str = "what began after an answer comes after it in the log";
const REFUSAL: &str = "a refusal is true, and its reason is committed";
const READ: &str = "a read of a tag returns the right neighbour";

/// Names an append, over all engines and their lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AppendName(pub u64);

/// Everything that is known of the log and of what was asked of it.
pub struct History {
    shared: Rc<Shared>,
    judge: Judge,
    truth: Vec<Truth>,
    tags: FxHashMap<Tag, Vec<SeqNum>>,
    asked: Vec<Asked>,
    /// The last position that somebody knows of who has been told.
    known: SeqNum,
    safe_point: SeqNum,
    epoch: Epoch,
    time_ns: u64,
    evictions: Vec<Evict>,
    /// Records of engines are appends that were asked for here.
    is_asked_here: bool,
    counts: LogCounts,
}

/// What happened to the log, counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LogCounts {
    /// Appends that were asked for.
    pub appends: u64,
    /// Appends that were answered with a position.
    pub appended: u64,
    /// Appends that were refused.
    pub refused: u64,
    /// Reads of tags, records and the tail.
    pub reads: u64,
    /// Engine incarnations taken out of the log.
    pub evictions: u64,
}

struct Truth {
    bytes: Box<[u8]>,
    asked: Option<usize>,
}

struct Asked {
    floor: SeqNum,
    conditions: Vec<Condition>,
    tags: Vec<Tag>,
    len: usize,
    /// What was known when it was asked for.
    after: SeqNum,
    /// The lengths of its conditions' tags, as its engine knew them then. Whether another engine
    /// knew more says nothing: a verdict that names no record may come from a sequencer that has
    /// been deposed and does not know it.
    lengths: Vec<u64>,
    seq: Option<SeqNum>,
    refused: bool,
}

/// What is to be appended, for the record.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Initial cursor.
    pub floor: SeqNum,
    /// What must hold.
    pub conditions: &'a [Condition],
    /// The sub-streams.
    pub tags: &'a [Tag],
    /// Bytes of the payload.
    pub len: usize,
    /// The length of each condition's tag, as the appender's engine has applied it.
    pub lengths: &'a [u64],
}

/// The payload of an append: its name, and bytes that follow from it.
#[must_use]
pub fn payload(name: AppendName, len: usize) -> Vec<u8> {
    let mut bytes = name.0.to_le_bytes().to_vec();
    let mut salt = name.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        salt = salt.rotate_left(7).wrapping_mul(0x2545_f491_4f6c_dd1d);
        bytes.extend_from_slice(&salt.to_le_bytes());
    }
    bytes.truncate(len.max(NAME_BYTES));
    bytes
}

impl History {
    /// An empty log.
    #[must_use]
    pub fn new(shared: Rc<Shared>, judge: Judge) -> Self {
        Self {
            shared,
            judge,
            truth: Vec::new(),
            tags: FxHashMap::default(),
            asked: Vec::new(),
            known: SeqNum::ZERO,
            safe_point: SeqNum::ZERO,
            epoch: Epoch(0),
            time_ns: 0,
            evictions: Vec::new(),
            is_asked_here: true,
            counts: LogCounts::default(),
        }
    }

    /// An empty log that functions write to: what they append is theirs to judge.
    #[must_use]
    pub fn of_functions(shared: Rc<Shared>, judge: Judge) -> Self {
        Self { is_asked_here: false, ..Self::new(shared, judge) }
    }

    /// What happened to it.
    #[must_use]
    pub fn counts(&self) -> LogCounts {
        LogCounts { evictions: self.evictions.len() as u64, ..self.counts }
    }

    /// The last position that anybody has applied.
    #[must_use]
    pub fn end(&self) -> SeqNum {
        SeqNum(self.truth.len() as u64)
    }

    /// What somebody has been told of by now, so that everything from here on comes after it.
    #[must_use]
    pub fn known(&self) -> SeqNum {
        self.known
    }

    /// Somebody learns that the log reaches so far.
    pub fn learned(&mut self, seq: SeqNum) {
        self.known = self.known.max(seq);
    }

    /// An append is about to be asked for.
    pub fn ask(&mut self, wish: &Wish<'_>) -> AppendName {
        self.counts.appends += 1;
        self.asked.push(Asked {
            floor: wish.floor,
            conditions: wish.conditions.to_vec(),
            tags: wish.tags.to_vec(),
            len: wish.len.max(NAME_BYTES),
            after: self.known,
            lengths: wish.lengths.to_vec(),
            seq: None,
            refused: false,
        });
        AppendName(self.asked.len() as u64 - 1)
    }

    /// An engine applies a record, after the one before it.
    pub fn applied(&mut self, before: SeqNum, record: &RecordRef<'_>) {
        let seq = record.seq();
        if seq != before.next() {
            self.object(DENSE, format!("record {seq} is applied after {before}"));
        }
        let index = usize::try_from(seq.0).unwrap_or(0).wrapping_sub(1);
        if let Some(known) = self.truth.get(index) {
            if *known.bytes != *record.bytes() {
                let (epoch, kind) = (record.epoch(), record.kind());
                let known = RecordRef::parse(&known.bytes).map(|known| known.epoch());
                let what = format!(
                    "at {seq} there is a {kind:?} of epoch {epoch}, and somebody has applied one of \
                     {known:?} there"
                );
                self.object(AGREE, what);
            }
        } else if index == self.truth.len() {
            self.extend(record);
        } else {
            self.object(DENSE, format!("record {seq} is applied, and nobody has applied {index}"));
        }
    }

    fn extend(&mut self, record: &RecordRef<'_>) {
        let seq = record.seq();
        if record.epoch() < self.epoch || record.time_ns() < self.time_ns {
            self.object(DENSE, format!("record {seq} goes back in epoch or time"));
        }
        if (record.epoch() > self.epoch) != (record.kind() == RecordKind::Open) {
            self.object(DENSE, format!("record {seq}: an epoch begins with an opening record"));
        }
        (self.epoch, self.time_ns) = (record.epoch(), record.time_ns());
        let mut asked = None;
        match record.kind() {
            RecordKind::Data => {
                self.judge_origin(record);
                if self.is_asked_here {
                    asked = self.known_append(record);
                } else {
                    self.counts.appends += 1;
                    self.counts.appended += 1;
                }
            }
            RecordKind::Open => {}
            RecordKind::Evict => self.evictions.extend(Evict::parse(record.payload()).ok()),
            RecordKind::SafePoint => {
                if let Ok(moved) = SafePoint::parse(record.payload()) {
                    if moved.safe_point > seq || moved.safe_point <= self.safe_point {
                        self.object(DENSE, format!("safe point {} at {seq}", moved.safe_point));
                    }
                    self.safe_point = moved.safe_point;
                }
            }
        }
        for place in record.tags() {
            let list = self.tags.entry(place.tag()).or_default();
            let expected = list.len() as u64;
            list.push(seq);
            if place.position() != expected {
                let (tag, found) = (place.tag(), place.position());
                let what = format!("record {seq} is number {found} of tag {tag}, not {expected}");
                self.object(CONDITIONS, what);
            }
        }
        self.truth.push(Truth { bytes: record.bytes().into(), asked });
    }

    /// Finds the append that a record is, and judges it at its place.
    fn known_append(&mut self, record: &RecordRef<'_>) -> Option<usize> {
        let seq = record.seq();
        let name = record.payload().first_chunk().map(|name| u64::from_le_bytes(*name));
        let index = name.and_then(|name| usize::try_from(name).ok());
        let Some((index, asked)) = index.and_then(|index| Some((index, self.asked.get(index)?)))
        else {
            self.object(ONCE, format!("nobody has asked for record {seq}"));
            return None;
        };
        let same = record.payload() == payload(AppendName(index as u64), asked.len)
            && record.floor() == asked.floor
            && record.tags().map(|place| place.tag()).eq(asked.tags.iter().copied());
        if !same {
            self.object(ONCE, format!("record {seq} is not what append {index} asked for"));
        }
        if asked.refused {
            self.object(ONCE, format!("append {index} was refused, and is record {seq}"));
        }
        if let Some(first) = asked.seq {
            self.object(ONCE, format!("append {index} is record {first}, and record {seq} too"));
        }
        for condition in &asked.conditions {
            let held = match *condition {
                Condition::Length { tag, length } => self.length(tag) == length,
                Condition::NothingAfter { tag, after } => self.last(tag) <= after,
            };
            if !held {
                let what = format!("append {index} is record {seq} in spite of {condition:?}");
                self.judge.object(self.shared.now(), CONDITIONS, what);
            }
        }
        self.asked[index].seq = Some(seq);
        Some(index)
    }

    fn judge_origin(&self, record: &RecordRef<'_>) {
        let (seq, engine) = (record.seq(), record.origin());
        let out = |evict: &Evict| {
            evict.engine == engine.engine && engine.incarnation <= evict.incarnation
        };
        if self.evictions.iter().any(out) {
            self.object(CONDITIONS, format!("record {seq} is of an engine that was evicted"));
        }
        if record.floor() < self.safe_point {
            let (floor, safe_point) = (record.floor(), self.safe_point);
            let what = format!("record {seq} has floor {floor}, below safe point {safe_point}");
            self.object(CONDITIONS, what);
        }
    }

    /// An append is answered.
    pub fn answered(&mut self, name: AppendName, answer: &Appended) {
        let index = usize::try_from(name.0).unwrap_or(usize::MAX);
        let Some(asked) = self.asked.get(index) else { return };
        match *answer {
            Appended::At(seq) => {
                let at =
                    usize::try_from(seq.0).ok().and_then(|seq| self.truth.get(seq.wrapping_sub(1)));
                if at.and_then(|at| at.asked) != Some(index) {
                    self.object(
                        ANSWER,
                        format!("append {index} is answered {seq}, and is not there"),
                    );
                } else if seq <= asked.after {
                    let after = asked.after;
                    let what =
                        format!("append {index} began after {after} was known, and is at {seq}");
                    self.object(REAL_TIME, what);
                }
                self.counts.appended += 1;
                self.learned(seq);
                return;
            }
            Appended::Conflict { condition, winner } => self.conflict(index, condition, winner),
            Appended::Gap { condition, length } => self.gap(index, condition, length),
            Appended::RootGone { safe_point } => self.gone(index, safe_point),
            Appended::Evicted => {
                if self.evictions.is_empty() {
                    self.object(REFUSAL, format!("append {index}: nobody was evicted"));
                }
            }
            Appended::Invalid => self.object(REFUSAL, format!("append {index} is not invalid")),
        }
        self.counts.refused += 1;
        let asked = &mut self.asked[index];
        asked.refused = true;
        if let Some(seq) = asked.seq {
            self.object(REFUSAL, format!("append {index} is refused, and is record {seq}"));
        }
    }

    fn conflict(&mut self, index: usize, condition: u16, winner: SeqNum) {
        let asked = &self.asked[index];
        let number = usize::from(condition);
        let Some(failed) = asked.conditions.get(number) else {
            return self.object(REFUSAL, format!("append {index} has no condition {condition}"));
        };
        let true_reason = match *failed {
            Condition::Length { tag, length } if winner == SeqNum::ZERO => {
                !asked.tags.contains(&tag) && asked.lengths[number] < length
            }
            Condition::Length { tag, length } => {
                let place = usize::try_from(length).ok();
                let there = self.tags.get(&tag).and_then(|list| list.get(place?));
                there == Some(&winner)
            }
            Condition::NothingAfter { tag, after } => {
                winner > after && self.tags.get(&tag).is_some_and(|list| list.contains(&winner))
            }
        };
        if !true_reason {
            let what = format!(
                "append {index} lost {failed:?} to {winner}; the log reaches {}",
                self.end()
            );
            self.object(REFUSAL, what);
        }
        self.learned(winner);
    }

    fn gap(&mut self, index: usize, condition: u16, found: u64) {
        let asked = &self.asked[index];
        let number = usize::from(condition);
        let true_reason = asked.conditions.get(number).is_some_and(|failed| match *failed {
            Condition::Length { tag, length } => {
                asked.tags.contains(&tag) && found < length && found >= asked.lengths[number]
            }
            Condition::NothingAfter { .. } => false,
        });
        if !true_reason {
            self.object(REFUSAL, format!("append {index}: condition {condition} has no gap"));
        }
    }

    fn gone(&mut self, index: usize, safe_point: SeqNum) {
        let asked = &self.asked[index];
        let below = |condition: &Condition| match condition {
            Condition::NothingAfter { after, .. } => *after < safe_point,
            Condition::Length { .. } => false,
        };
        let reason = asked.floor < safe_point || asked.conditions.iter().any(below);
        if !reason || safe_point > self.safe_point {
            let what = format!("append {index} is below no committed safe point {safe_point}");
            self.object(REFUSAL, what);
        }
    }

    /// A tag was read by somebody who has applied the log up to `applied`: its length then.
    pub fn saw_length(&mut self, tag: Tag, length: u64, applied: SeqNum) {
        let expected = self.upto(tag, applied).len() as u64;
        self.saw(tag, expected == length, || format!("length {length}, not {expected}"));
    }

    /// The last record of a tag at or before `max`.
    pub fn saw_previous(&mut self, tag: Tag, max: SeqNum, found: Option<SeqNum>) {
        let expected = self.upto(tag, max).last().copied();
        self.saw(tag, expected == found, || format!("before {max}: {found:?}, not {expected:?}"));
    }

    /// The first record of a tag at or after `min`, by somebody who has applied the log so far.
    pub fn saw_next(&mut self, tag: Tag, min: SeqNum, found: Option<SeqNum>, applied: SeqNum) {
        let list = self.upto(tag, applied);
        let expected = list.get(list.partition_point(|seq| *seq < min)).copied();
        self.saw(tag, expected == found, || format!("after {min}: {found:?}, not {expected:?}"));
    }

    /// A record was read.
    pub fn saw_record(&mut self, seq: SeqNum, bytes: &[u8]) {
        self.counts.reads += 1;
        let index = usize::try_from(seq.0).unwrap_or(0).wrapping_sub(1);
        if self.truth.get(index).is_none_or(|known| *known.bytes != *bytes) {
            self.object(READ, format!("record {seq} is read as another one"));
        }
    }

    /// The tail was asked for when `known` was known, and is said to be here.
    pub fn saw_tail(&mut self, known: SeqNum, tail: SeqNum) {
        self.counts.reads += 1;
        if tail < known {
            self.object(REAL_TIME, format!("the tail is {tail}, after {known} was known"));
        }
    }

    fn saw(&mut self, tag: Tag, right: bool, what: impl FnOnce() -> String) {
        self.counts.reads += 1;
        if !right {
            let what = format!("tag {tag}: {}", what());
            self.object(READ, what);
        }
    }

    fn upto(&self, tag: Tag, bound: SeqNum) -> &[SeqNum] {
        let list = self.tags.get(&tag).map_or(&[][..], Vec::as_slice);
        &list[..list.partition_point(|seq| *seq <= bound)]
    }

    fn length(&self, tag: Tag) -> u64 {
        self.tags.get(&tag).map_or(0, |list| list.len() as u64)
    }

    fn last(&self, tag: Tag) -> SeqNum {
        self.tags.get(&tag).and_then(|list| list.last()).copied().unwrap_or_default()
    }

    fn object(&self, rule: &'static str, what: String) {
        self.judge.object(self.shared.now(), rule, what);
    }
}
