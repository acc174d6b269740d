//! Length and last record of every tag in the window, and the way back from there to the record at
//! any position.

use std::collections::VecDeque;

use halfmoon_wire::{SeqNum, Tag};
use rustc_hash::FxHashMap;

/// Most places of records in tags in the untrimmed window, when nothing else is configured.
pub const PLACES_MAX_DEFAULT: u64 = 1 << 26;

/// Bytes of memory that one place may take, here or in an engine's index: most tags have one record,
/// and a table is at worst half empty.
pub const PLACE_BYTES: u64 = 96;

/// How far behind a tag's length a loser may be and still be told which record stands in its way.
/// It bounds the walk that one append can cause.
pub const CONFLICT_REACH_MAX: u64 = 1 << 16;

/// The table is split so that growing it stops the ordering thread for one part only.
const SHARDS: usize = 256;

const LINKS_PER_CHUNK: usize = 4096;

const NONE: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
pub(crate) struct TagState {
    /// Position of the last record + 1. Not a count: what was trimmed has had positions too.
    pub(crate) length: u64,
    pub(crate) last: SeqNum,
    link: u64,
}

/// A record's place in one tag.
#[derive(Clone, Copy, Debug)]
struct Link {
    seq: SeqNum,
    /// The link of the position before, or `NONE`.
    prev: u64,
}

/// What stands at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    Record(SeqNum),
    /// It is no longer in the window.
    Trimmed,
    /// Further back than `CONFLICT_REACH_MAX`.
    TooFar,
}

#[derive(Clone, Debug)]
pub(crate) struct Tags {
    shards: Vec<FxHashMap<u64, TagState>>,
    len: usize,
    links: VecDeque<Vec<Link>>,
    /// Index of the first link kept.
    first_link: u64,
    next_link: u64,
    /// Beyond so many places appends with tags are `Overloaded`. What was replayed is taken in
    /// whatever it is: it is in the log.
    places_max: u64,
}

impl Tags {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| FxHashMap::default()).collect();
        let places_max = PLACES_MAX_DEFAULT;
        let links = VecDeque::new();
        Self { shards, len: 0, links, first_link: 0, next_link: 0, places_max }
    }

    /// Live tags, and places of records in them.
    pub(crate) fn sizes(&self) -> (usize, u64) {
        (self.len, self.next_link - self.first_link)
    }

    pub(crate) fn find(&self, tag: Tag) -> Option<TagState> {
        self.shards[shard(tag)].get(&tag.0).copied()
    }

    pub(crate) const fn limit(&mut self, places_max: u64) {
        self.places_max = places_max;
    }

    /// Whether so many more records can join.
    pub(crate) fn has_room(&self, joins: usize) -> bool {
        let places = self.next_link - self.first_link;
        joins == 0 || places.saturating_add(joins as u64) <= self.places_max
    }

    /// Gives the record the next position in the tag. A record that names a tag twice has one place.
    pub(crate) fn join(&mut self, tag: Tag, seq: SeqNum) -> u64 {
        self.place(tag, seq, None)
    }

    /// The record, which is the newest, has this position in the tag.
    pub(crate) fn put(&mut self, tag: Tag, seq: SeqNum, position: u64) {
        self.place(tag, seq, Some(position));
    }

    fn place(&mut self, tag: Tag, seq: SeqNum, position: Option<u64>) -> u64 {
        let state = self.shards[shard(tag)].entry(tag.0).or_insert_with(|| {
            self.len += 1;
            TagState { length: position.unwrap_or(0), last: SeqNum::ZERO, link: NONE }
        });
        if state.last == seq {
            return state.length - 1;
        }
        // Positions begin anew, at 0, when all of a tag was trimmed. No walk from a position to a
        // lower one passes there.
        let position = position.unwrap_or(state.length);
        let prev = std::mem::replace(&mut state.link, self.next_link);
        (state.length, state.last) = (position.saturating_add(1), seq);
        self.push_link(Link { seq, prev });
        position
    }

    /// The record at `position`, which lies below the tag's length, in a window from `start` on.
    pub(crate) fn standing(&self, state: TagState, position: u64, start: SeqNum) -> Standing {
        let back = (state.length - 1).saturating_sub(position);
        if back > CONFLICT_REACH_MAX {
            return Standing::TooFar;
        }
        let mut link = self.link(state.link);
        for _ in 0..back {
            link = link.and_then(|link| self.link(link.prev));
        }
        let kept = link.filter(|link| link.seq >= start);
        kept.map_or(Standing::Trimmed, |link| Standing::Record(link.seq))
    }

    /// Forgets what is below `start`, which is the first record kept.
    pub(crate) fn trim(&mut self, start: SeqNum) {
        for states in &mut self.shards {
            states.retain(|_, state| state.last >= start);
        }
        self.len = self.shards.iter().map(FxHashMap::len).sum();
        let is_below = |chunk: &Vec<Link>| chunk.last().is_some_and(|link| link.seq < start);
        while self.links.len() > 1 && self.links.front().is_some_and(is_below) {
            self.links.pop_front();
            self.first_link += LINKS_PER_CHUNK as u64;
        }
    }

    fn link(&self, index: u64) -> Option<Link> {
        let at = usize::try_from(index.checked_sub(self.first_link)?).ok()?;
        self.links.get(at / LINKS_PER_CHUNK)?.get(at % LINKS_PER_CHUNK).copied()
    }

    fn push_link(&mut self, link: Link) {
        match self.links.back_mut() {
            Some(chunk) if chunk.len() < LINKS_PER_CHUNK => chunk.push(link),
            _ => {
                let mut chunk = Vec::with_capacity(LINKS_PER_CHUNK);
                chunk.push(link);
                self.links.push_back(chunk);
            }
        }
        self.next_link += 1;
    }
}

/// Tags are hashes already; the map below hashes them by other bits.
const fn shard(tag: Tag) -> usize {
    tag.0.to_be_bytes()[0] as usize
}
