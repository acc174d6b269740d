//! What an ordered log must be, checked record by record by somebody who had no part in it.

use halfmoon_wire::{
    Epoch, Evict, Incarnation, NodeId, Open, RecordKind, RecordRef, SafePoint, SeqNum, Tag,
};
use rustc_hash::{FxHashMap, FxHashSet};
use thiserror::Error;

/// Reads a log from its first record on.
///
/// Its memory grows with the log: an id of each record, and a length of each tag.
#[derive(Debug, Default)]
pub struct LogAudit {
    last: Option<Last>,
    /// It began with the first record that there ever was.
    is_whole: bool,
    safe_point: SeqNum,
    lengths: FxHashMap<Tag, u64>,
    ids: FxHashMap<(NodeId, Incarnation), FxHashSet<u64>>,
    /// The last life of each engine that is out.
    evicted: FxHashMap<NodeId, Incarnation>,
    counts: LogCounts,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    seq: SeqNum,
    epoch: Epoch,
    time_ns: u64,
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogCounts {
    /// Records.
    pub records: u64,
    /// Records of engines.
    pub data: u64,
    /// Epochs.
    pub epochs: u64,
    /// Engine incarnations taken out.
    pub evictions: u64,
    /// Sub-streams.
    pub tags: u64,
}

/// What is wrong with a record.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LogFlaw {
    /// Positions are dense.
    #[error("it follows {before}")]
    NotContiguous {
        /// The position before it.
        before: SeqNum,
    },
    /// Epochs only grow.
    #[error("it is of {epoch}, after a record of {before}")]
    EpochWentBack {
        /// Its own epoch.
        epoch: Epoch,
        /// The epoch before.
        before: Epoch,
    },
    /// An epoch begins with its opening record, and has one.
    #[error("the opening record of its epoch is missing, or is not the first of it")]
    Opening,
    /// Time stamps never decrease.
    #[error("its time stamp is {ns} ns before that of the record before it")]
    TimeWentBack {
        /// By how much.
        ns: u64,
    },
    /// Positions within a tag are dense.
    #[error("it is number {found} of its tag {tag:?}, whose next is {expected}")]
    TagPosition {
        /// The tag.
        tag: Tag,
        /// What the record says.
        found: u64,
        /// What belongs there.
        expected: u64,
    },
    /// An id of an engine's incarnation is in the log at most once.
    #[error("append {local} of incarnation {incarnation} of engine {engine} is in the log twice")]
    Doubled {
        /// The engine.
        engine: NodeId,
        /// Its life.
        incarnation: Incarnation,
        /// The id.
        local: u64,
    },
    /// Nothing of an engine is ordered after the record that took it out.
    #[error("incarnation {incarnation} of engine {engine} was evicted before")]
    AfterEviction {
        /// The engine.
        engine: NodeId,
        /// Its life.
        incarnation: Incarnation,
    },
    /// No append of a root that started below the safe point is taken.
    #[error("its root started at {floor}, below the safe point {safe_point}")]
    BelowSafePoint {
        /// Initial cursor of the root.
        floor: SeqNum,
        /// The safe point as it stood.
        safe_point: SeqNum,
    },
    /// The safe point only grows.
    #[error("it moves the safe point back, from {before} to {after}")]
    SafePointWentBack {
        /// Where it stood.
        before: SeqNum,
        /// Where this would put it.
        after: SeqNum,
    },
    /// A record of the sequencer's own does not parse.
    #[error("its payload does not parse")]
    Payload,
}

impl LogAudit {
    /// Looks at the next record; tells what is wrong with it, and goes on as if it were right.
    pub fn record(&mut self, record: RecordRef<'_>, mut flaw: impl FnMut(LogFlaw)) {
        self.counts.records += 1;
        self.place(record, &mut flaw);
        self.tags(record, &mut flaw);
        match record.kind() {
            RecordKind::Data => self.data(record, &mut flaw),
            RecordKind::Open => {
                if Open::parse(record.payload()).is_err() {
                    flaw(LogFlaw::Payload);
                }
            }
            RecordKind::Evict => match Evict::parse(record.payload()) {
                Ok(evict) => {
                    self.counts.evictions += 1;
                    let out = self.evicted.entry(evict.engine).or_insert(evict.incarnation);
                    *out = (*out).max(evict.incarnation);
                }
                Err(_) => flaw(LogFlaw::Payload),
            },
            RecordKind::SafePoint => match SafePoint::parse(record.payload()) {
                Ok(SafePoint { safe_point: after }) => {
                    let before = std::mem::replace(&mut self.safe_point, after);
                    if after < before {
                        flaw(LogFlaw::SafePointWentBack { before, after });
                    }
                }
                Err(_) => flaw(LogFlaw::Payload),
            },
        }
    }

    /// What was read so far.
    #[must_use]
    pub fn counts(&self) -> LogCounts {
        LogCounts { tags: self.lengths.len() as u64, ..self.counts }
    }

    /// The last position.
    #[must_use]
    pub fn end(&self) -> SeqNum {
        self.last.map_or(SeqNum::ZERO, |last| last.seq)
    }

    fn place(&mut self, record: RecordRef<'_>, flaw: &mut impl FnMut(LogFlaw)) {
        let (seq, epoch, time_ns) = (record.seq(), record.epoch(), record.time_ns());
        let opens = record.kind() == RecordKind::Open;
        if let Some(last) = self.last {
            if seq != last.seq.next() {
                flaw(LogFlaw::NotContiguous { before: last.seq });
            }
            if epoch < last.epoch {
                flaw(LogFlaw::EpochWentBack { epoch, before: last.epoch });
            }
            if opens != (epoch > last.epoch) {
                flaw(LogFlaw::Opening);
            }
            if time_ns < last.time_ns {
                flaw(LogFlaw::TimeWentBack { ns: last.time_ns - time_ns });
            }
        } else if !opens && seq == SeqNum(1) {
            flaw(LogFlaw::Opening);
        }
        // A log whose beginning was trimmed may begin anywhere.
        self.is_whole |= self.last.is_none() && seq == SeqNum(1);
        self.counts.epochs += u64::from(self.last.is_none_or(|last| epoch != last.epoch));
        self.last = Some(Last { seq, epoch, time_ns });
    }

    fn tags(&mut self, record: RecordRef<'_>, flaw: &mut impl FnMut(LogFlaw)) {
        for pos in record.tags() {
            let next = pos.position().saturating_add(1);
            let known = self.lengths.insert(pos.tag(), next);
            // Of a log whose beginning was trimmed, a tag may begin anywhere, too.
            let expected = known.unwrap_or(if self.is_whole { 0 } else { pos.position() });
            if expected != pos.position() {
                let (tag, found) = (pos.tag(), pos.position());
                flaw(LogFlaw::TagPosition { tag, found, expected });
            }
        }
    }

    fn data(&mut self, record: RecordRef<'_>, flaw: &mut impl FnMut(LogFlaw)) {
        self.counts.data += 1;
        let origin = record.origin();
        let (engine, incarnation, local) = (origin.engine, origin.incarnation, origin.local.0);
        if !self.ids.entry((engine, incarnation)).or_default().insert(local) {
            flaw(LogFlaw::Doubled { engine, incarnation, local });
        }
        if self.evicted.get(&engine).is_some_and(|out| incarnation <= *out) {
            flaw(LogFlaw::AfterEviction { engine, incarnation });
        }
        let floor = record.floor();
        if floor < self.safe_point {
            flaw(LogFlaw::BelowSafePoint { floor, safe_point: self.safe_point });
        }
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_wire::{LocalId, NewRecord, Origin, TagPos};

    use super::*;

    struct Maker {
        bytes: Vec<u8>,
        seq: u64,
    }

    const ORIGIN: Origin =
        Origin { engine: NodeId(1), incarnation: Incarnation(1), local: LocalId(1) };

    impl Maker {
        fn add(&mut self, change: impl FnOnce(&mut NewRecord<'_>)) {
            self.seq += 1;
            let mut record = NewRecord {
                seq: SeqNum(self.seq),
                epoch: Epoch(1),
                time_ns: 1000 + self.seq,
                origin: Origin { local: LocalId(self.seq), ..ORIGIN },
                floor: SeqNum::MAX,
                kind: RecordKind::Data,
                tags: &[],
                payload: &[],
            };
            change(&mut record);
            record.encode(&mut self.bytes);
        }

        fn flaws(&self) -> Vec<LogFlaw> {
            let (mut audit, mut flaws) = (LogAudit::default(), Vec::new());
            for record in halfmoon_wire::Records::new(&self.bytes) {
                audit.record(record.unwrap(), |flaw| flaws.push(flaw));
            }
            flaws
        }
    }

    /// A log of an opening record, and what `more` adds.
    fn log(more: impl FnOnce(&mut Maker)) -> Vec<LogFlaw> {
        let mut maker = Maker { bytes: Vec::new(), seq: 0 };
        let open = Open { members: vec![NodeId(1)] }.to_bytes();
        maker.add(|record| {
            record.kind = RecordKind::Open;
            record.payload = open.as_slice().to_vec().leak();
        });
        more(&mut maker);
        maker.flaws()
    }

    fn evict(incarnation: u64) -> &'static [u8] {
        let (engine, heir) = (NodeId(1), NodeId(2));
        let heir_incarnation = Incarnation(1);
        let evict = Evict { engine, incarnation: Incarnation(incarnation), heir, heir_incarnation };
        evict.to_bytes().leak()
    }

    #[test]
    fn a_sound_log_has_no_flaw() {
        let tag = Tag(7);
        let flaws = log(|log| {
            log.add(|record| record.tags = vec![TagPos::new(tag, 0)].leak());
            log.add(|record| record.tags = vec![TagPos::new(tag, 1)].leak());
            log.add(|record| {
                (record.kind, record.payload) = (RecordKind::SafePoint, &[3, 0, 0, 0, 0, 0, 0, 0]);
            });
            log.add(|record| record.floor = SeqNum(3));
            log.add(|record| (record.kind, record.payload) = (RecordKind::Evict, evict(1)));
            log.add(|record| record.origin.incarnation = Incarnation(2));
        });
        assert_eq!(flaws, []);
    }

    #[test]
    fn each_flaw_is_told() {
        let back = |record: &mut NewRecord<'_>| record.seq = SeqNum(1);
        assert!(matches!(log(|log| log.add(back))[..], [LogFlaw::NotContiguous { .. }]));
        let epoch = |record: &mut NewRecord<'_>| record.epoch = Epoch(2);
        assert_eq!(log(|log| log.add(epoch)), [LogFlaw::Opening]);
        let older = |record: &mut NewRecord<'_>| record.epoch = Epoch(0);
        assert!(matches!(log(|log| log.add(older))[..], [LogFlaw::EpochWentBack { .. }]));
        let time = |record: &mut NewRecord<'_>| record.time_ns = 1000;
        assert_eq!(log(|log| log.add(time)), [LogFlaw::TimeWentBack { ns: 1 }]);
        let twice = |record: &mut NewRecord<'_>| record.origin = ORIGIN;
        let flaws = log(|log| [twice; 2].into_iter().for_each(|change| log.add(change)));
        assert!(matches!(flaws[..], [LogFlaw::Doubled { local: 1, .. }]));
        let gap = log(|log| {
            log.add(|record| record.tags = vec![TagPos::new(Tag(7), 0)].leak());
            log.add(|record| record.tags = vec![TagPos::new(Tag(7), 2)].leak());
        });
        assert!(matches!(gap[..], [LogFlaw::TagPosition { found: 2, expected: 1, .. }]));
        let late = |record: &mut NewRecord<'_>| record.tags = vec![TagPos::new(Tag(8), 1)].leak();
        let flaws = log(|log| log.add(late));
        assert!(matches!(flaws[..], [LogFlaw::TagPosition { found: 1, expected: 0, .. }]));
        let late = log(|log| {
            log.add(|record| (record.kind, record.payload) = (RecordKind::Evict, evict(1)));
            log.add(|_| {});
        });
        assert!(matches!(late[..], [LogFlaw::AfterEviction { .. }]));
        let below = log(|log| {
            let at_five: &[u8] = &[5, 0, 0, 0, 0, 0, 0, 0];
            log.add(|record| (record.kind, record.payload) = (RecordKind::SafePoint, at_five));
            log.add(|record| record.floor = SeqNum(4));
        });
        assert!(matches!(below[..], [LogFlaw::BelowSafePoint { .. }]));
    }
}
