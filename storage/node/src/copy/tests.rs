//! What is merged when sources fail, change while they are read, and give what nobody wrote.

use std::collections::BTreeMap;

use halfmoon_wire::{CellTuple, Incarnation, ObjectKey, SeqNum, StateRequest, Stored, VersionId};
use proptest::prelude::*;

use super::*;
use crate::state::entry::{cell_head, cell_key, version_key};

const ME: NodeId = NodeId(9);

/// Longest page of a source here, in bytes of values: so short that most are cut.
const PAGE_BYTES: usize = 40;

/// What a source has, and what it was asked.
#[derive(Default)]
struct Source {
    stored: BTreeMap<Vec<u8>, Vec<u8>>,
    lane: Option<LaneId>,
    asked: Option<(LaneId, u64, Vec<u8>, usize)>,
    /// The value of which a part was sent.
    cut: Option<(Vec<u8>, Vec<u8>)>,
}

impl Source {
    fn put_cell(&mut self, key: u8, cursor: u64) {
        let tuple = CellTuple { cursor: SeqNum(cursor), ..CellTuple::default() };
        let mut value = cell_head(tuple, true);
        value.resize(value.len() + cursor as usize * 7 % 90, key);
        let key = cell_key(ObjectKey { table: "t", key: &[key] }).to_vec();
        if self.stored.get(&key).is_none_or(|known| *known < value) {
            self.stored.insert(key, value);
        }
    }

    fn put_version(&mut self, key: u8) {
        let object = ObjectKey { table: "t", key: &[key] };
        let key = version_key(object, VersionId(1)).to_vec();
        self.stored.insert(key.clone(), key);
    }

    /// Answers what it was asked.
    fn answer(&mut self, copy: &mut Copy, now: Instant) {
        let Some((lane, token, after, offset)) = self.asked.take() else { return };
        let rest: Vec<_> = match (self.cut.take(), offset) {
            (_, 0) => {
                let rest = self.stored.iter().filter(|(key, _)| **key > after);
                rest.map(|(key, value)| (key.clone(), value.clone())).collect()
            }
            (Some(cut), _) => vec![cut],
            (None, _) => {
                let anew = StateReply::Failed("begin that value anew");
                copy.answer((lane, token), &anew, now).unwrap();
                return;
            }
        };
        let (mut room, mut end, mut items) = (PAGE_BYTES, offset == 0, Vec::new());
        for (index, (key, value)) in rest.iter().enumerate() {
            let from = if index == 0 { offset } else { 0 };
            let bytes = &value[from..value.len().min(from + room)];
            if bytes.is_empty() {
                end = false;
                break;
            }
            room -= bytes.len();
            items.push(Stored { key, total: value.len() as u32, bytes });
            if from + bytes.len() < value.len() {
                self.cut = Some((key.clone(), value.clone()));
                end = false;
                break;
            }
        }
        let reply = StateReply::Page { items, end };
        copy.answer((lane, token), &reply, now).unwrap();
    }
}

struct Fixture {
    copy: Copy,
    sources: BTreeMap<NodeId, Source>,
    now: Instant,
    lanes: u64,
    merged: BTreeMap<Vec<u8>, Vec<u8>>,
    closed: Vec<LaneId>,
}

impl Fixture {
    fn new(members: &[u32]) -> Self {
        let nodes: Vec<_> = members.iter().copied().map(NodeId).chain([ME]).collect();
        let mut copy = Copy::new(ME);
        let now = Instant::now();
        copy.welcome(Epoch(2), &nodes, now);
        let others = nodes.iter().filter(|id| **id != ME);
        let sources = others.map(|id| (*id, Source::default())).collect();
        let (merged, closed) = (BTreeMap::new(), Vec::new());
        Self { copy, sources, now, lanes: 0, merged, closed }
    }

    fn source(&mut self, node: u32) -> &mut Source {
        self.sources.get_mut(&NodeId(node)).unwrap()
    }

    /// Does what the copy wants done, and lets time pass.
    fn go_on(&mut self) {
        self.now += COPY_RETRY_MAX;
        while let Some(step) = self.copy.step(self.now) {
            match step {
                Step::Find(node) => {
                    assert!(self.copy.wants(node));
                    self.lanes += 1;
                    let lane = LaneId::from_raw(self.lanes);
                    self.copy.dialled(node, Some(lane), self.now);
                    assert!(self.copy.up(lane, &hello(node), self.now));
                    let source = self.sources.get_mut(&node).unwrap();
                    (source.lane, source.asked, source.cut) = (Some(lane), None, None);
                }
                Step::Send(lane, bytes) => {
                    let Message::State { token, epoch, request } = Message::parse(&bytes).unwrap()
                    else {
                        panic!("nothing else is sent");
                    };
                    let StateRequest::Scan { after, offset } = request else {
                        panic!("nothing else is asked");
                    };
                    assert_eq!(epoch, Epoch(2));
                    let mut all = self.sources.values_mut();
                    let source = all.find(|source| source.lane == Some(lane)).unwrap();
                    source.asked = Some((lane, token, after.to_vec(), offset as usize));
                }
                Step::Close(lane) => self.closed.push(lane),
            }
        }
    }

    fn answer(&mut self, node: u32) {
        let Self { copy, sources, now, .. } = self;
        sources.get_mut(&NodeId(node)).unwrap().answer(copy, *now);
    }

    fn merge(&mut self) {
        while let Some(put) = self.copy.next() {
            let (key, value) = (put.key.to_vec(), put.value.to_vec());
            let after = self.merged.last_key_value().map(|(key, _)| key.clone());
            assert!(after.is_none_or(|after| after < key), "each key once, in order");
            self.merged.insert(key, value);
        }
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.go_on();
            for node in self.sources.keys().map(|id| id.0).collect::<Vec<_>>() {
                self.answer(node);
            }
            self.merge();
            if self.copy.is_over() {
                return;
            }
        }
        panic!("it does not end");
    }
}

fn hello(node: NodeId) -> Hello {
    Hello { cluster: 1, role: Role::Storage, node, incarnation: Incarnation(1) }
}

#[derive(Clone, Debug)]
enum Happening {
    Step,
    Answer(u32),
    /// The lane to this source goes down.
    Down(u32),
    /// This source cannot answer now.
    Fails(u32),
    Merge,
    /// A source takes a write while it is read.
    Put(u32, u8, u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::Step),
        6 => (1u32..3).prop_map(Happening::Answer),
        1 => (1u32..3).prop_map(Happening::Down),
        1 => (1u32..3).prop_map(Happening::Fails),
        3 => Just(Happening::Merge),
        2 => (1u32..3, 0u8..12, 1u64..60).prop_map(|(n, key, cursor)| Happening::Put(n, key, cursor)),
    ]
}

proptest! {
    #[test]
    fn all_that_either_source_had_at_the_start_is_merged_whatever_fails(
        cells in prop::collection::vec((1u32..3, 0u8..12, 1u64..60), 0..40),
        versions in prop::collection::vec((1u32..3, 0u8..12), 0..10),
        happenings in prop::collection::vec(happening(), 0..120),
    ) {
        let mut fixture = Fixture::new(&[1, 2]);
        for (node, key, cursor) in cells {
            fixture.source(node).put_cell(key, cursor);
        }
        for (node, key) in versions {
            fixture.source(node).put_version(key);
        }
        let mut expected = fixture.source(1).stored.clone();
        for (key, value) in &fixture.source(2).stored {
            let known = expected.entry(key.clone()).or_default();
            // Cells of one object: the larger tuple is the larger text here.
            if *known < *value {
                known.clone_from(value);
            }
        }
        for happening in happenings {
            match happening {
                Happening::Step => fixture.go_on(),
                Happening::Answer(node) => fixture.answer(node),
                Happening::Merge => fixture.merge(),
                Happening::Put(node, key, cursor) => fixture.source(node).put_cell(key, cursor),
                Happening::Down(node) => {
                    let now = fixture.now;
                    if let Some(lane) = fixture.source(node).lane.take() {
                        fixture.copy.down(lane, now);
                    }
                }
                Happening::Fails(node) => {
                    let now = fixture.now;
                    if let Some((lane, token, ..)) = fixture.source(node).asked.take() {
                        fixture.source(node).cut = None;
                        let busy = StateReply::Failed("busy");
                        fixture.copy.answer((lane, token), &busy, now).unwrap();
                    }
                }
            }
        }
        fixture.finish();
        for (key, value) in expected {
            let found = fixture.merged.get(&key);
            prop_assert!(found.is_some_and(|found| *found >= value), "{key:?}: {found:?}");
        }
    }
}

#[test]
fn of_five_members_three_are_copied_and_one_that_fails_gives_way_to_another() {
    let mut fixture = Fixture::new(&[1, 2, 3, 4]);
    for node in 1..=4 {
        fixture.source(node).put_cell(u8::try_from(node).unwrap(), 1);
    }
    fixture.go_on();
    let asked: Vec<_> = fixture.sources.values().map(|source| source.asked.is_some()).collect();
    assert_eq!(asked, [true, true, true, false]);
    let (lane, token, ..) = fixture.source(2).asked.take().unwrap();
    let now = fixture.now;
    fixture.copy.answer((lane, token), &StateReply::Failed("copying"), now).unwrap();
    fixture.finish();
    let expected = [1, 3, 4].map(|key| cell_key(ObjectKey { table: "t", key: &[key] }).to_vec());
    assert_eq!(fixture.merged.into_keys().collect::<Vec<_>>(), expected);
    assert_eq!(fixture.closed, [lane]);
}

#[test]
fn a_node_that_answers_in_the_place_of_another_is_no_source() {
    let mut copy = Copy::new(ME);
    let now = Instant::now();
    copy.welcome(Epoch(2), &[NodeId(1), NodeId(2), ME], now);
    assert_eq!(copy.step(now), Some(Step::Find(NodeId(1))));
    let lane = LaneId::from_raw(1);
    copy.dialled(NodeId(1), Some(lane), now);
    assert!(!copy.up(lane, &hello(NodeId(2)), now));
    assert_eq!(copy.step(now), Some(Step::Find(NodeId(2))));
    assert_eq!(copy.step(now), Some(Step::Close(lane)));
}

#[test]
fn nobody_is_asked_in_an_epoch_in_which_the_node_is_no_member() {
    let mut copy = Copy::new(ME);
    let now = Instant::now();
    copy.welcome(Epoch(2), &[NodeId(1), NodeId(2), NodeId(3)], now);
    assert_eq!(copy.step(now), None);
    assert!(!copy.is_over() && !copy.has_next());
}

#[test]
fn a_page_that_no_store_gives_is_refused() {
    let cell = |key: u8, len| {
        let mut source = Source::default();
        source.put_cell(key, len);
        source.stored.pop_first().unwrap()
    };
    let ((key, value), (later, other)) = (cell(1, 9), cell(2, 9));
    let stored =
        |key, value: &'static [u8]| Stored { key, total: value.len() as u32, bytes: value };
    let (value, other) = (&*value.leak(), &*other.leak());
    let (first, second) = (stored(&key, value), stored(&later, other));
    let cut = Stored { bytes: &value[..30], ..first };
    let rest = Stored { bytes: &value[30..], ..first };
    let none = Stored { bytes: &[], ..first };
    let take = |pages: &[(&[Stored<'_>], bool)]| {
        let mut feed = Feed::after(Arc::from([]));
        pages.iter().try_for_each(|(items, end)| feed.take(items, *end).map(drop))
    };
    assert_eq!(take(&[(&[first, second], true)]), Ok(()));
    assert_eq!(take(&[(&[cut], false), (&[rest], false), (&[], true)]), Ok(()));
    assert_eq!(take(&[(&[second], false), (&[first], true)]), Err(PageError::Order));
    assert_eq!(take(&[(&[cut], false), (&[second], true)]), Err(PageError::Order));
    assert_eq!(take(&[(&[cut], false), (&[first], true)]), Err(PageError::Order));
    let foreign = Stored { bytes: &other[30..], ..second };
    assert_eq!(take(&[(&[cut], false), (&[foreign], true)]), Err(PageError::Order));
    assert_eq!(take(&[(&[cut], true)]), Err(PageError::Order));
    assert_eq!(take(&[(&[], false)]), Err(PageError::Nothing));
    assert_eq!(take(&[(&[none], false)]), Err(PageError::Nothing));
    assert_eq!(take(&[(&[stored(b"!synced", b"12345678")], true)]), Err(PageError::Unknown));
    assert_eq!(take(&[(&[stored(&key, b"short")], true)]), Err(PageError::Unknown));
}
