//! Judges appends and gives them their place in the log.
//!
//! An append is judged once, against tables that follow from the log alone, and its record goes
//! into the stream in the same call: there is no place that is promised and not filled.

use halfmoon_wire::{
    AppendView, Condition, Epoch, Evict, Incarnation, LocalId, NewRecord, NodeId, Open, Origin,
    RecordKind, RecordRef, Refusal, SafePoint, SeqNum, TagPos, broken,
};
use rustc_hash::FxHashMap;

use crate::sent::SentIds;
use crate::tags::{Standing, Tags};
use crate::window::Window;

/// Most engines that the log may know, dead ones included.
pub const ENGINES_MAX: usize = 4096;

/// Most incarnations of one engine that are not evicted at the same time.
pub const LIVES_MAX: usize = 16;

/// What became of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is in the stream, here.
    Ordered(SeqNum),
    /// It was in the log already: its engine sees it in the stream, and is told nothing.
    Duplicate,
    /// It is not in the log.
    Refused(Refusal),
}

/// Why a record of an earlier epoch was not taken. The log that it came from is damaged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    /// Positions of a log are dense.
    #[error("the log has record {found} where {expected} belongs")]
    NotContiguous {
        /// What belongs there.
        expected: SeqNum,
        /// What is there.
        found: SeqNum,
    },
    /// Epochs of a log only grow.
    #[error("record {seq} is of epoch {found}, after one of epoch {before}")]
    EpochWentBack {
        /// The record.
        seq: SeqNum,
        /// Its epoch.
        found: Epoch,
        /// The epoch before.
        before: Epoch,
    },
    /// A record of the sequencer's own does not parse.
    #[error("the payload of record {seq} does not parse")]
    Payload {
        /// The record.
        seq: SeqNum,
        /// What is wrong with it.
        #[source]
        source: halfmoon_wire::DecodeError,
    },
}

/// The ordering machine of one epoch.
#[derive(Debug)]
pub struct Order {
    epoch: Epoch,
    next: SeqNum,
    /// Position of the newest record that an engine appended.
    last_data: SeqNum,
    /// Epoch and time of the newest record.
    last_epoch: Epoch,
    time_ns: u64,
    tags: Tags,
    engines: FxHashMap<NodeId, Engine>,
    /// The first record that is not trimmed.
    start: SeqNum,
    /// The safe point as of the end of the stream.
    safe_point: SeqNum,
    /// Safe points whose records are not committed yet: (record, safe point).
    uncommitted: Vec<(SeqNum, SeqNum)>,
    /// The safe point as of what is committed: the one that counts.
    floor: SeqNum,
    /// The safe point of the log that this epoch began with. Which one was committed before is not
    /// known any more; but whatever this epoch orders is committed only together with that log.
    found: SeqNum,
    places: Vec<TagPos>,
}

#[derive(Clone, Debug, Default)]
struct Engine {
    /// This incarnation and all before it are out; 0 when none is.
    evicted: Incarnation,
    lives: Vec<(Incarnation, SentIds)>,
}

impl Order {
    /// A machine for `epoch` with the tables of an empty log.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            next: SeqNum(1),
            last_data: SeqNum::ZERO,
            last_epoch: Epoch(0),
            time_ns: 0,
            tags: Tags::new(),
            engines: FxHashMap::default(),
            start: SeqNum(1),
            safe_point: SeqNum::ZERO,
            uncommitted: Vec::new(),
            floor: SeqNum::ZERO,
            found: SeqNum::ZERO,
            places: Vec::new(),
        }
    }

    /// From now on there may be so many places of records in tags in the window.
    pub const fn limit_places(&mut self, places_max: u64) {
        self.tags.limit(places_max);
    }

    /// The epoch that it orders for.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Position of the last record; 0 in an empty log.
    #[must_use]
    pub const fn tail(&self) -> SeqNum {
        self.next.prev()
    }

    /// Position of the last record that an engine appended; 0 when there is none.
    #[must_use]
    pub const fn last_data(&self) -> SeqNum {
        self.last_data
    }

    /// The safe point as it stands at the end of the stream.
    #[must_use]
    pub const fn safe_point(&self) -> SeqNum {
        self.safe_point
    }

    /// The safe point that is committed.
    #[must_use]
    pub const fn floor(&self) -> SeqNum {
        self.floor
    }

    /// Tags in the window, and places of records in them.
    #[must_use]
    pub fn table_sizes(&self) -> (usize, u64) {
        self.tags.sizes()
    }

    /// Whether the log has taken this incarnation of an engine out: it orders nothing more, and owns
    /// nothing.
    #[must_use]
    pub fn is_evicted(&self, engine: NodeId, incarnation: Incarnation) -> bool {
        self.engines.get(&engine).is_some_and(|known| incarnation <= known.evicted)
    }

    /// Engine incarnations that occur in the log, as appender or as heir, and are not evicted;
    /// ascending.
    #[must_use]
    pub fn lives(&self) -> Vec<(NodeId, Incarnation)> {
        let of = |(node, engine): (&NodeId, &Engine)| {
            let lives: Vec<_> = engine.lives.iter().map(|(life, _)| (*node, *life)).collect();
            lives
        };
        let mut lives: Vec<_> = self.engines.iter().flat_map(of).collect();
        lives.sort_unstable();
        lives
    }

    /// Judges an append of an engine's incarnation and, if it holds, puts its record into `window`.
    /// `now_ns` is the time since 1970; time in the log does not go back when it does.
    pub fn append(
        &mut self,
        now_ns: u64,
        engine: NodeId,
        incarnation: Incarnation,
        append: &AppendView<'_>,
        window: &mut Window,
    ) -> Verdict {
        let origin = Origin { engine, incarnation, local: append.local };
        if append.kind != RecordKind::Data || engine == NodeId(0) || append.local == LocalId(0) {
            return Verdict::Refused(Refusal::Invalid);
        }
        let known = self.engines.get(&engine);
        let is_out = known.is_some_and(|known| incarnation <= known.evicted);
        if is_out && !broken!(EvictedAppends) {
            return Verdict::Refused(Refusal::Evicted);
        }
        let sent = known.and_then(|known| known.life(incarnation));
        if sent.is_some_and(|sent| sent.contains(append.local)) {
            return Verdict::Duplicate;
        }
        if let Some(refusal) = self.below_floor(append).or_else(|| self.first_failing(append)) {
            return Verdict::Refused(refusal);
        }
        let has_room = match (known, sent) {
            (_, Some(sent)) => sent.has_room(append.local),
            (Some(known), None) => known.lives.len() < LIVES_MAX,
            (None, None) => self.engines.len() < ENGINES_MAX,
        };
        let len = halfmoon_wire::encoded_len(append.tags().len(), append.payload.len());
        if !has_room || !self.tags.has_room(append.tags().len()) || !window.has_room(len) {
            return Verdict::Refused(Refusal::Overloaded);
        }
        let seq = self.next;
        self.places.clear();
        for tag in append.tags() {
            self.places.push(TagPos::new(tag, self.tags.join(tag, seq)));
        }
        self.engines.entry(engine).or_default().life_mut(incarnation).insert(append.local);
        self.last_data = seq;
        self.push(now_ns, origin, append.floor, RecordKind::Data, append.payload, window);
        Verdict::Ordered(seq)
    }

    /// The incarnation will never again send its appends up to here.
    pub fn answered(&mut self, engine: NodeId, incarnation: Incarnation, up_to: LocalId) {
        let life = self.engines.get_mut(&engine).and_then(|known| {
            known.lives.iter_mut().find(|(life, _)| *life == incarnation).map(|(_, sent)| sent)
        });
        if let Some(sent) = life {
            sent.answered(up_to);
        }
    }

    /// It orders for `epoch` from now on, which is above all that it has replayed.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        assert!(self.last_epoch < epoch, "an epoch begins after the log that it found");
        self.epoch = epoch;
    }

    /// Writes the opening record of the epoch, after the last record that was replayed.
    pub fn open(&mut self, now_ns: u64, open: &Open, window: &mut Window) -> SeqNum {
        self.found = self.safe_point;
        self.push_own(now_ns, RecordKind::Open, &open.to_bytes(), window)
    }

    /// Takes an engine's incarnation out: nothing of it is ordered after this record.
    pub fn evict(&mut self, now_ns: u64, evict: &Evict, window: &mut Window) -> SeqNum {
        self.note_evict(evict);
        self.push_own(now_ns, RecordKind::Evict, &evict.to_bytes(), window)
    }

    /// Moves the safe point, which only grows. It counts once the record is committed.
    pub fn advance(&mut self, now_ns: u64, to: SeqNum, window: &mut Window) -> Option<SeqNum> {
        if to <= self.safe_point {
            return None;
        }
        self.safe_point = to;
        self.uncommitted.push((self.next, to));
        let payload = SafePoint { safe_point: to }.to_bytes();
        Some(self.push_own(now_ns, RecordKind::SafePoint, &payload, window))
    }

    /// All up to here is committed.
    pub fn committed(&mut self, up_to: SeqNum) {
        let count = self.uncommitted.partition_point(|(record, _)| *record <= up_to);
        for (_, safe_point) in self.uncommitted.drain(..count) {
            self.floor = self.floor.max(safe_point);
        }
    }

    /// Takes over a record of an earlier epoch. Records come in order; the first one may have any
    /// position, as the log before it may have been trimmed.
    pub fn replay(&mut self, record: &RecordRef<'_>) -> Result<(), ReplayError> {
        let seq = record.seq();
        if self.last_epoch == Epoch(0) && seq != SeqNum::ZERO {
            self.start = seq;
            self.next = seq;
            // The log is trimmed below safe points that are committed only.
            self.floor = if seq > SeqNum(1) { seq } else { SeqNum::ZERO };
            self.safe_point = self.floor;
        }
        if seq != self.next || seq == SeqNum::ZERO {
            return Err(ReplayError::NotContiguous { expected: self.next, found: seq });
        }
        let (found, before) = (record.epoch(), self.last_epoch);
        if found < before || found == Epoch(0) || found >= self.epoch {
            return Err(ReplayError::EpochWentBack { seq, found, before });
        }
        let payload = |source| ReplayError::Payload { seq, source };
        match record.kind() {
            RecordKind::Data => {
                self.note_origin(record.origin());
                self.last_data = seq;
            }
            RecordKind::Open => {}
            RecordKind::Evict => {
                self.note_evict(&Evict::parse(record.payload()).map_err(payload)?);
            }
            RecordKind::SafePoint => {
                let moved = SafePoint::parse(record.payload()).map_err(payload)?;
                self.safe_point = self.safe_point.max(moved.safe_point);
                self.uncommitted.push((seq, moved.safe_point));
            }
        }
        for place in record.tags() {
            self.tags.put(place.tag(), seq, place.position());
        }
        self.last_epoch = found;
        self.time_ns = self.time_ns.max(record.time_ns());
        self.next = seq.next();
        Ok(())
    }

    /// The log is trimmed: its first record is `start`, which is not beyond the committed safe point.
    /// A tag without a record from there on is as if it had never been.
    pub fn trim(&mut self, start: SeqNum) {
        let start = start.min(self.floor);
        if start > self.start {
            self.start = start;
            self.tags.trim(start);
        }
    }

    /// The rule Floor. A record of no root has no cursor to compare, but its conditions can still
    /// only be judged by what is not trimmed.
    fn below_floor(&self, append: &AppendView<'_>) -> Option<Refusal> {
        let of_root = append.floor != SeqNum::MAX;
        let safe_point = self.floor.max(self.found);
        let least = if of_root { safe_point } else { self.start.prev() };
        let gone = append.floor < least
            || append.conditions().any(|condition| match condition {
                Condition::NothingAfter { after, .. } => after < least,
                Condition::Length { .. } => false,
            });
        // The engine tells nobody before that safe point is committed.
        gone.then_some(Refusal::RootGone { safe_point })
    }

    fn first_failing(&self, append: &AppendView<'_>) -> Option<Refusal> {
        (0..).zip(append.conditions()).find_map(|(index, condition)| match condition {
            Condition::Length { tag, length } => {
                let state = self.tags.find(tag);
                let found = state.map_or(0, |state| state.length);
                match state {
                    _ if found == length || broken!(LengthUnchecked) => None,
                    Some(state) if found > length => Some(self.taken(index, state, length)),
                    _ if append.tags().any(|joined| joined == tag) => {
                        Some(Refusal::Gap { condition: index, length: found })
                    }
                    _ => Some(Refusal::Conflict { condition: index, winner: SeqNum::ZERO }),
                }
            }
            Condition::NothingAfter { tag, after } => {
                let last = self.tags.find(tag).map_or(SeqNum::ZERO, |state| state.last);
                let fails = last > after && !broken!(NothingAfterUnchecked);
                fails.then_some(Refusal::Conflict { condition: index, winner: last })
            }
        })
    }

    fn taken(&self, condition: u16, state: crate::tags::TagState, position: u64) -> Refusal {
        match self.tags.standing(state, position, self.start) {
            Standing::Record(winner) => Refusal::Conflict { condition, winner },
            Standing::Trimmed => Refusal::RootGone { safe_point: self.floor },
            Standing::TooFar => Refusal::Invalid,
        }
    }

    fn note_origin(&mut self, origin: Origin) {
        let engine = self.engines.entry(origin.engine).or_default();
        if origin.incarnation > engine.evicted {
            engine.life_mut(origin.incarnation).insert(origin.local);
        }
    }

    fn note_evict(&mut self, evict: &Evict) {
        let engine = self.engines.entry(evict.engine).or_default();
        engine.evicted = engine.evicted.max(evict.incarnation);
        engine.lives.retain(|(life, _)| *life > evict.incarnation);
        // An heir owns roots, so it is known even before its first append.
        let heir = self.engines.entry(evict.heir).or_default();
        if evict.heir_incarnation > heir.evicted {
            heir.life_mut(evict.heir_incarnation);
        }
    }

    fn push_own(
        &mut self,
        now_ns: u64,
        kind: RecordKind,
        payload: &[u8],
        window: &mut Window,
    ) -> SeqNum {
        let seq = self.next;
        self.places.clear();
        let incarnation = Incarnation(self.epoch.0);
        let origin = Origin { engine: NodeId(0), incarnation, local: LocalId(0) };
        self.push(now_ns, origin, SeqNum::MAX, kind, payload, window);
        seq
    }

    fn push(
        &mut self,
        now_ns: u64,
        origin: Origin,
        floor: SeqNum,
        kind: RecordKind,
        payload: &[u8],
        window: &mut Window,
    ) {
        assert_eq!(window.next(), self.next, "the window holds the stream of this machine");
        self.time_ns = self.time_ns.max(now_ns);
        let (seq, epoch, time_ns, tags) = (self.next, self.epoch, self.time_ns, &self.places);
        window.push(&NewRecord { seq, epoch, time_ns, origin, floor, kind, tags, payload });
        self.last_epoch = epoch;
        self.next = seq.next();
    }
}

impl Engine {
    fn life(&self, incarnation: Incarnation) -> Option<&SentIds> {
        self.lives.iter().find(|(life, _)| *life == incarnation).map(|(_, sent)| sent)
    }

    fn life_mut(&mut self, incarnation: Incarnation) -> &mut SentIds {
        let index = self.lives.iter().position(|(life, _)| *life == incarnation);
        let index = index.unwrap_or_else(|| {
            self.lives.push((incarnation, SentIds::default()));
            self.lives.len() - 1
        });
        &mut self.lives[index].1
    }
}

#[cfg(test)]
mod tests;
