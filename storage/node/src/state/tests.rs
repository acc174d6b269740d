//! When the state log may give up what it holds: with an engine, a keeper and a disk that a test
//! plays.

use std::cell::RefCell;
use std::rc::Rc;

use halfmoon_log::{Contents, LogConfig, LogId, Scan, SegmentId};
use halfmoon_wire::{CellTuple, NodeId, ObjectKey, ValueSource, VersionId};

use super::*;
use crate::disk::DiskDone;
use crate::ground::Kept;

const SEGMENT_BYTES: u64 = 512 << 10;
/// Of each write: an entry of the log, as it is shorter than the longest.
const VALUE_BYTES: usize = 20_000;

/// A disk on which everything is durable at once.
#[derive(Default)]
struct AtOnce(VecDeque<DiskDone>);

impl Disk for AtOnce {
    type File = ();

    fn write(&mut self, _: &(), _: u64, buffer: AlignedBuffer, len: usize, _: bool, token: u64) {
        self.0.push_back(DiskDone { token, result: Ok(len), buffer });
    }

    fn read(&mut self, _: &(), _: u64, _: AlignedBuffer, _: usize, _: u64) {
        unreachable!("the state log is read only when it is opened");
    }

    fn next_done(&mut self) -> Option<DiskDone> {
        self.0.pop_front()
    }
}

/// Has every segment, and notes which it is given back.
#[derive(Default)]
struct Segments {
    ready: VecDeque<SegmentId>,
    given_up: Vec<SegmentId>,
}

impl Keeper<()> for Segments {
    fn prepare(&mut self, _: Which, id: SegmentId) -> Result<(), NodeError> {
        self.ready.push_back(id);
        Ok(())
    }

    fn recycle(&mut self, _: Which, id: SegmentId) -> Result<(), NodeError> {
        self.given_up.push(id);
        Ok(())
    }

    fn find(&mut self, _: NodeId) -> Result<(), NodeError> {
        unreachable!("a state store knows no peers");
    }

    fn next(&mut self) -> Option<Kept<()>> {
        let id = self.ready.pop_front()?;
        Some(Kept::Prepared(Which::State, Segment { id, file: (), direct: true }))
    }

    fn begun(&mut self) -> Result<(), NodeError> {
        Ok(())
    }

    fn whole(&mut self) -> Result<(), NodeError> {
        unreachable!("a state store does not know what others have")
    }
}

/// What the engine was asked, and what it is to say.
#[derive(Default)]
struct Hand {
    taken: u64,
    asked: Option<u64>,
    /// Reads, by their ids.
    reads: Vec<u64>,
    /// Pages that are asked for, by their ids.
    scans: Vec<u64>,
    says: VecDeque<EngineEvent>,
}

/// Takes writes at once, and syncs when the test says so.
struct ByHand(Rc<RefCell<Hand>>);

impl Engine for ByHand {
    fn synced(&self) -> u64 {
        0
    }

    fn apply(&mut self, puts: Vec<Put>) {
        let mut hand = self.0.borrow_mut();
        hand.taken = puts.last().map_or(hand.taken, |put| put.number);
        hand.says.push_back(EngineEvent::Applied);
    }

    fn persist(&mut self, upto: u64) {
        let mut hand = self.0.borrow_mut();
        assert_eq!(hand.asked, None, "one sync at a time");
        assert!(upto <= hand.taken, "the engine is asked for what it has");
        hand.asked = Some(upto);
    }

    fn read(&mut self, id: u64, _: Arc<[u8]>) {
        self.0.borrow_mut().reads.push(id);
    }

    fn read_blob(&mut self, _: u64, _: [u8; 32], _: u64) {
        unreachable!("nobody reads");
    }

    fn scan(&mut self, id: u64, _: Arc<[u8]>) {
        self.0.borrow_mut().scans.push(id);
    }

    fn next(&mut self) -> Option<EngineEvent> {
        self.0.borrow_mut().says.pop_front()
    }
}

struct Fixture {
    state: State<()>,
    hand: Rc<RefCell<Hand>>,
    keeper: Segments,
    disk: AtOnce,
    lanes: Lanes,
    puts: u64,
}

impl Fixture {
    fn new() -> Self {
        let config = LogConfig {
            id: LogId(1),
            segment_bytes: SEGMENT_BYTES,
            contents: Contents::Opaque,
            tail_bytes: 0,
        };
        let recovered = Scan::new(config).finish().unwrap();
        let segments = vec![Segment { id: recovered.segment(), file: (), direct: true }];
        let opened = Opened { log: Log::resume(config, recovered), segments };
        let hand = Rc::new(RefCell::new(Hand::default()));
        let engine = Box::new(ByHand(hand.clone()));
        let state = State::open(opened, Vec::new(), engine, (true, true), Arc::default()).unwrap();
        let (keeper, disk, lanes) = (Segments::default(), AtOnce::default(), Lanes::default());
        Self { state, hand, keeper, disk, lanes, puts: 0 }
    }

    fn trimmed(&self) -> u64 {
        self.state.log.accepted().trimmed.0
    }

    /// Writes a value, and lets everything happen that can.
    fn put(&mut self) {
        self.puts += 1;
        self.state.put(Put {
            rule: Rule::Always,
            key: Arc::new(self.puts.to_le_bytes()),
            value: vec![7; VALUE_BYTES].into(),
            number: 0,
        });
        self.go_on();
        assert_eq!(self.hand.borrow().taken, self.state.log.accepted().end.0, "it comes so far");
    }

    /// Lets everything happen that can.
    fn go_on(&mut self) {
        for _ in 0..8 {
            while let Some(kept) = self.keeper.next() {
                if let Kept::Prepared(_, segment) = kept {
                    self.state.prepared(segment);
                }
            }
            self.state.pump(&mut self.disk, &mut self.keeper).unwrap();
            while let Some(DiskDone { token, result, buffer }) = self.disk.next_done() {
                let number = token & ((1 << crate::journal::TOKEN_SHIFT) - 1);
                self.state.completed(number, result, buffer, &mut self.lanes).unwrap();
            }
            self.state.collect(&mut self.lanes).unwrap();
        }
    }

    /// Writes a cell with this cursor, and lets nothing happen yet.
    fn put_cell(&mut self, key: &Arc<[u8]>, cursor: u64) {
        let value = cell(cursor);
        self.state.put(Put { rule: Rule::Newer, key: key.clone(), value, number: 0 });
    }

    /// The engine answers the read that was asked last.
    fn engine_has(&mut self, cursor: u64) {
        let mut hand = self.hand.borrow_mut();
        let id = *hand.reads.last().unwrap();
        hand.says.push_back(EngineEvent::Value(id, Some(cell(cursor))));
        drop(hand);
        self.state.collect(&mut self.lanes).unwrap();
    }
}

fn cell(cursor: u64) -> Arc<[u8]> {
    let tuple = CellTuple { cursor: SeqNum(cursor), ..CellTuple::default() };
    entry::cell_head(tuple, false).into()
}

#[test]
fn a_late_write_in_the_place_of_one_that_the_engine_took_hides_nothing_newer() {
    let mut fixture = Fixture::new();
    let key = cell_key(ObjectKey { table: "t", key: b"k" });
    fixture.put_cell(&key, 5);
    // It is read while the engine still has 3 …
    let what = What::Value(Shape::Cell, key.clone(), None);
    let ask = Ask { lane: LaneId::from_raw(1), token: 1, what };
    fixture.state.read(ask, &mut fixture.lanes);
    // … takes 5, and then 4 comes, late. Only now the answer of the read is there.
    fixture.go_on();
    fixture.put_cell(&key, 4);
    fixture.engine_has(3);
    assert!(!fixture.state.overlay[&key].settled, "4 is not newer than what the engine has");
    assert_eq!(fixture.hand.borrow().reads.len(), 2, "it is read again");
    fixture.engine_has(5);
    fixture.go_on();
    assert!(fixture.state.cache.get(&key).is_none_or(|found| newer(found, &cell(5))));
    assert!(fixture.state.reading.is_empty());
}

#[test]
fn a_segment_is_given_up_only_once_the_engine_has_synced_what_it_holds() {
    let mut fixture = Fixture::new();
    for _ in 0..8 {
        let trimmed = fixture.trimmed();
        while fixture.hand.borrow().asked.is_none() {
            fixture.put();
        }
        // The sync takes its time, and more is written meanwhile.
        for _ in 0..30 {
            fixture.put();
            assert_eq!(fixture.trimmed(), trimmed, "nothing is given up before it is synced");
        }
        let upto = fixture.hand.borrow_mut().asked.take().unwrap();
        fixture.hand.borrow_mut().says.push_back(EngineEvent::Persisted(upto));
        fixture.put();
        assert_eq!(fixture.trimmed(), upto, "and then all that is");
    }
    assert!(fixture.keeper.given_up.len() > 4, "segments are given up at last");
}

#[test]
fn a_write_that_waited_for_room_is_not_done_once_its_epoch_is_over() {
    let mut fixture = Fixture::new();
    fixture.put();
    let object = ObjectKey { table: "t", key: b"k" };
    let (version, value) = (VersionId(1), ValueSource::Inline(b"v"));
    let request = StateRequest::PutVersion { object, version, value };
    let (state, lanes) = (&mut fixture.state, &mut fixture.lanes);
    let asked = |epoch| (1, Epoch(epoch));
    let room = std::mem::replace(&mut state.overlay_bytes, OVERLAY_MAX_BYTES);
    state.request(LaneId::from_raw(1), asked(1), &request, lanes).unwrap();
    state.request(LaneId::from_raw(1), asked(2), &request, lanes).unwrap();
    assert_eq!(state.parked.len(), 2);
    let before = state.log.accepted().end.0;
    state.promised(Epoch(2), true);
    state.overlay_bytes = room;
    state.applied(lanes);
    assert!(state.parked.is_empty());
    assert_eq!(state.log.accepted().end.0, before + 1, "the one of the epoch that lasts");
}

#[test]
fn a_page_waits_until_the_engine_has_all_that_was_accepted_before_the_promise() {
    let mut fixture = Fixture::new();
    let key = cell_key(ObjectKey { table: "t", key: b"k" });
    let lane = LaneId::from_raw(1);
    let scan = StateRequest::Scan { after: b"", offset: 0 };
    fixture.put_cell(&key, 1);
    let ask = |fixture: &mut Fixture, epoch| {
        let asked = (1, Epoch(epoch));
        fixture.state.request(lane, asked, &scan, &mut fixture.lanes).unwrap();
        fixture.hand.borrow().scans.len()
    };
    fixture.state.promised(Epoch(2), false);
    assert_eq!(ask(&mut fixture, 2), 0, "the promise may be forgotten");
    fixture.state.promised(Epoch(2), true);
    assert_eq!(ask(&mut fixture, 3), 0, "nothing is promised to that epoch");
    assert_eq!(ask(&mut fixture, 1), 0, "that epoch is over");
    // Not asked of the engine, and not refused either.
    assert_eq!(ask(&mut fixture, 2), 0);
    fixture.go_on();
    assert_eq!(fixture.hand.borrow().scans.len(), 1);
    // What comes after the promise is waited for no more.
    fixture.put_cell(&key, 2);
    assert_eq!(ask(&mut fixture, 2), 2);
}
