use halfmoon_wire::{Incarnation, LocalId, NewRecord, Open, Origin, Tag, TagPos};

use super::*;

const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

struct Rec {
    seq: u64,
    epoch: u64,
    kind: RecordKind,
    payload: Vec<u8>,
    tags: Vec<TagPos>,
}

fn data(seq: u64, epoch: u64) -> Rec {
    Rec { seq, epoch, kind: RecordKind::Data, payload: vec![7], tags: Vec::new() }
}

fn open(seq: u64, epoch: u64) -> Rec {
    let payload = Open { members: MEMBERS.to_vec() }.to_bytes();
    Rec { seq, epoch, kind: RecordKind::Open, payload, tags: Vec::new() }
}

fn bytes(records: &[Rec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        NewRecord {
            seq: SeqNum(record.seq),
            epoch: Epoch(record.epoch),
            time_ns: 0,
            origin: Origin {
                engine: NodeId(9),
                incarnation: Incarnation(1),
                local: LocalId(record.seq),
            },
            floor: SeqNum::MAX,
            kind: record.kind,
            tags: &record.tags,
            payload: &record.payload,
        }
        .encode(&mut bytes);
    }
    bytes
}

fn entered(epoch: u64, opening: u64) -> View {
    let mut view = View::new(Limits::default());
    view.enter(Epoch(epoch), SeqNum(opening), &MEMBERS).unwrap();
    view
}

fn extend(view: &mut View, epoch: u64, records: &[Rec]) -> Result<(), StreamError> {
    let first = records.first().map_or(0, |record| record.seq);
    view.extend(Epoch(epoch), SeqNum(first), &bytes(records))
}

fn commit(view: &mut View, epoch: u64, seq: u64) {
    view.watermark(Epoch(epoch), NodeId(1), SeqNum(seq));
    view.watermark(Epoch(epoch), NodeId(3), SeqNum(seq));
}

fn apply(view: &mut View) -> Vec<(u64, u64)> {
    let mut seen = Vec::new();
    view.apply(usize::MAX, |record| seen.push((record.seq().0, record.epoch().0))).unwrap();
    seen
}

#[test]
fn nothing_is_seen_before_it_is_committed() {
    let mut view = entered(1, 1);
    extend(&mut view, 1, &[open(1, 1), data(2, 1), data(3, 1)]).unwrap();
    assert_eq!(apply(&mut view), []);
    assert!(view.record(SeqNum(1)).is_none());
    commit(&mut view, 1, 2);
    assert_eq!(apply(&mut view), [(1, 1), (2, 1)]);
    assert!(view.is_open());
    assert!(view.record(SeqNum(2)).is_some());
    assert!(view.record(SeqNum(3)).is_none());
    assert_eq!(view.wanted(), SeqNum(4));
}

#[test]
fn a_watermark_ahead_of_the_stream_applies_what_is_here() {
    let mut view = entered(1, 1);
    commit(&mut view, 1, 9);
    extend(&mut view, 1, &[open(1, 1), data(2, 1)]).unwrap();
    assert_eq!(apply(&mut view).len(), 2);
    extend(&mut view, 1, &[data(3, 1)]).unwrap();
    assert_eq!(apply(&mut view), [(3, 1)]);
}

#[test]
fn a_new_epoch_drops_what_was_held_back_and_takes_its_own() {
    let mut view = entered(1, 1);
    extend(&mut view, 1, &[open(1, 1), data(2, 1), data(3, 1), data(4, 1)]).unwrap();
    commit(&mut view, 1, 2);
    apply(&mut view);
    // The recovered log ends with 3; what stood at 4 is lost.
    assert_eq!(view.enter(Epoch(2), SeqNum(4), &MEMBERS), Ok(Entered::New));
    assert_eq!(view.wanted(), SeqNum(3));
    assert_eq!(view.held_bytes(), 0);
    commit(&mut view, 2, 4);
    assert_eq!(apply(&mut view), [], "what was held back in epoch 1 counts for nothing");
    extend(&mut view, 2, &[data(3, 1), open(4, 2), data(5, 2)]).unwrap();
    assert_eq!(apply(&mut view), [(3, 1), (4, 2)]);
}

#[test]
fn entering_the_same_epoch_again_keeps_what_is_held_back() {
    let mut view = entered(1, 1);
    extend(&mut view, 1, &[open(1, 1), data(2, 1)]).unwrap();
    assert_eq!(view.enter(Epoch(1), SeqNum(1), &MEMBERS), Ok(Entered::Again));
    assert_eq!(view.wanted(), SeqNum(3));
    commit(&mut view, 1, 2);
    assert_eq!(apply(&mut view).len(), 2);
}

#[test]
fn an_old_epoch_is_not_entered_and_its_stream_is_refused() {
    let mut view = entered(3, 1);
    let old = EnterError::Old { current: Epoch(3), found: Epoch(2) };
    assert_eq!(view.enter(Epoch(2), SeqNum(1), &MEMBERS), Err(old));
    let error = extend(&mut view, 2, &[open(1, 2)]).unwrap_err();
    assert_eq!(error, StreamError::OtherEpoch { current: Epoch(3), found: Epoch(2) });
}

#[test]
fn an_epoch_that_begins_within_the_applied_log_is_refused() {
    let mut view = entered(1, 1);
    extend(&mut view, 1, &[open(1, 1), data(2, 1)]).unwrap();
    commit(&mut view, 1, 2);
    apply(&mut view);
    let error = view.enter(Epoch(2), SeqNum(2), &MEMBERS).unwrap_err();
    assert!(matches!(error, EnterError::Diverged { .. }), "{error}");
    let error = view.enter(Epoch(1), SeqNum(2), &MEMBERS).unwrap_err();
    assert!(matches!(error, EnterError::Diverged { .. }), "{error}");
}

#[test]
fn a_gap_a_wrong_epoch_and_a_missing_opening_are_refused() {
    let mut view = entered(2, 3);
    extend(&mut view, 2, &[data(1, 1)]).unwrap();
    let error = extend(&mut view, 2, &[open(3, 2)]).unwrap_err();
    assert_eq!(error, StreamError::Gap { expected: SeqNum(2), found: SeqNum(3) });
    let error = extend(&mut view, 2, &[data(2, 2)]).unwrap_err();
    assert_eq!(error, StreamError::WrongEpoch { seq: SeqNum(2), found: Epoch(2) });
    extend(&mut view, 2, &[data(2, 1)]).unwrap();
    let error = extend(&mut view, 2, &[data(3, 2)]).unwrap_err();
    assert_eq!(error, StreamError::NotOpening { seq: SeqNum(3) });
    let error = extend(&mut view, 2, &[data(3, 1)]).unwrap_err();
    assert_eq!(error, StreamError::WrongEpoch { seq: SeqNum(3), found: Epoch(1) });
    extend(&mut view, 2, &[open(3, 2)]).unwrap();
    let error = extend(&mut view, 2, &[open(4, 2)]).unwrap_err();
    assert_eq!(error, StreamError::NotOpening { seq: SeqNum(4) });
    let error = view.extend(Epoch(2), SeqNum(4), &bytes(&[data(5, 2)])).unwrap_err();
    assert_eq!(error, StreamError::Gap { expected: SeqNum(4), found: SeqNum(5) });
}

#[test]
fn what_is_here_already_is_passed_over() {
    let mut view = entered(1, 1);
    extend(&mut view, 1, &[open(1, 1), data(2, 1)]).unwrap();
    extend(&mut view, 1, &[data(2, 1), data(3, 1)]).unwrap();
    assert_eq!(view.wanted(), SeqNum(4));
}

#[test]
fn a_damaged_record_is_refused_and_those_before_it_are_kept() {
    let mut view = entered(1, 1);
    let mut stream = bytes(&[open(1, 1), data(2, 1)]);
    let last = stream.len() - 8;
    stream[last] ^= 1;
    let error = view.extend(Epoch(1), SeqNum(1), &stream).unwrap_err();
    assert!(matches!(error, StreamError::Corrupt(DecodeError::Checksum { .. })), "{error}");
    assert_eq!(view.wanted(), SeqNum(2));
}

#[test]
fn too_much_held_back_is_refused() {
    let mut view = View::new(Limits { held_bytes: 200, ..Limits::default() });
    view.enter(Epoch(1), SeqNum(1), &MEMBERS).unwrap();
    let error = extend(&mut view, 1, &[open(1, 1), data(2, 1), data(3, 1)]).unwrap_err();
    assert!(matches!(error, StreamError::HeldFull { .. }), "{error}");
    commit(&mut view, 1, 9);
    apply(&mut view);
    let wanted = view.wanted().0;
    extend(&mut view, 1, &[data(wanted, 1)]).unwrap();
}

#[test]
fn the_safe_point_is_the_one_that_is_applied() {
    let mut view = entered(1, 1);
    let payload = SafePoint { safe_point: SeqNum(1) }.to_bytes();
    let moved = Rec { seq: 2, epoch: 1, kind: RecordKind::SafePoint, payload, tags: Vec::new() };
    extend(&mut view, 1, &[open(1, 1), moved]).unwrap();
    assert_eq!(view.safe_point(), SeqNum(0));
    commit(&mut view, 1, 2);
    apply(&mut view);
    assert_eq!(view.safe_point(), SeqNum(1));
}

#[test]
fn a_record_that_skips_a_position_of_its_tag_stops_the_view() {
    let mut view = entered(1, 1);
    let tagged = |seq, position| Rec { tags: vec![TagPos::new(Tag(4), position)], ..data(seq, 1) };
    extend(&mut view, 1, &[open(1, 1), tagged(2, 0), tagged(3, 2)]).unwrap();
    commit(&mut view, 1, 3);
    let error = view.apply(usize::MAX, |_| {}).unwrap_err();
    assert!(matches!(error, ApplyError::Tag(TagError { expected: 1, found: 2, .. })), "{error}");
    assert_eq!(view.applied(), SeqNum(2));
}

#[test]
fn the_cache_keeps_to_its_limit_and_to_what_is_held_back() {
    let mut view = View::new(Limits { cache_bytes: 2 << 20, held_bytes: 64 << 20 });
    view.enter(Epoch(1), SeqNum(1), &MEMBERS).unwrap();
    extend(&mut view, 1, &[open(1, 1)]).unwrap();
    for seq in 2..42 {
        extend(&mut view, 1, &[Rec { payload: vec![1; 200_000], ..data(seq, 1) }]).unwrap();
    }
    view.trim_cache();
    commit(&mut view, 1, 30);
    assert_eq!(apply(&mut view).len(), 30);
    view.trim_cache();
    assert!(view.record(SeqNum(1)).is_none());
    assert!(view.record(SeqNum(30)).is_some());
    commit(&mut view, 1, 41);
    assert_eq!(apply(&mut view).len(), 11, "what is held back is never dropped");
}
