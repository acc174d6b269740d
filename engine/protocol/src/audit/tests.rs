use halfmoon_wire::{
    Epoch, Incarnation, LocalId, NewRecord, NodeId, Origin, RecordKind, Records, TagPos,
};

use super::*;
use crate::Mode;
use crate::call::{Point, Status};

const ROOT: InstanceId = InstanceId(7);

fn init() -> Init {
    Init {
        root: ROOT,
        cursor: Some(SeqNum(3)),
        function: "shop.order".to_owned(),
        version: [1; 32],
        input: Stored::Inline(Vec::new()),
        fingerprint: 9,
        mode: Mode::Halfmoon,
        read_only: false,
    }
}

fn entry(instance: InstanceId, body: Body) -> Entry {
    Entry { instance, run: init().run(), init: None, body }
}

fn begin() -> (Entry, Vec<(Tag, u64)>) {
    let first = Entry { init: Some(init()), ..entry(ROOT, Body::Init) };
    (first, vec![(tag::step(ROOT), 0), (tag::init(init().run()), 0), (tag::intent(), 0)])
}

fn step(instance: InstanceId, position: u64, body: Body) -> (Entry, Vec<(Tag, u64)>) {
    (entry(instance, body), vec![(tag::step(instance), position)])
}

fn end(position: u64) -> (Entry, Vec<(Tag, u64)>) {
    let (result, point) = (Stored::Inline(vec![1]), Point::default());
    step(ROOT, position, Body::Finish { status: Status::Returned, result, point })
}

fn flaws(log: &[(Entry, Vec<(Tag, u64)>)]) -> (Vec<StepFlaw>, StepCounts) {
    let mut bytes = Vec::new();
    for (index, (entry, tags)) in log.iter().enumerate() {
        let tags: Vec<_> = tags.iter().map(|(tag, at)| TagPos::new(*tag, *at)).collect();
        let record = NewRecord {
            seq: SeqNum(index as u64 + 1),
            epoch: Epoch(1),
            time_ns: 0,
            origin: Origin { engine: NodeId(1), incarnation: Incarnation(1), local: LocalId(1) },
            floor: SeqNum::MAX,
            kind: RecordKind::Data,
            tags: &tags,
            payload: &entry.encode(),
        };
        record.encode(&mut bytes);
    }
    let (mut audit, mut flaws) = (StepAudit::default(), Vec::new());
    for record in Records::new(&bytes) {
        audit.record(record.unwrap(), |flaw| flaws.push(flaw), |_| {});
    }
    (flaws, audit.counts())
}

#[test]
fn a_sound_log_has_no_flaw_and_is_counted() {
    let callee = InstanceId(8);
    let log = [begin(), step(ROOT, 1, Body::Fence), step(callee, 0, Body::Fence), end(2)];
    let (found, counts) = flaws(&log);
    assert_eq!(found, []);
    let expected = StepCounts { roots: 1, unfinished: 0, instances: 2, steps: 2, stored_values: 0 };
    assert_eq!(counts, expected);
    assert_eq!(flaws(&log[..2]).1.unfinished, 1);
}

#[test]
fn each_flaw_is_told() {
    let found = |log: &[(Entry, Vec<(Tag, u64)>)]| flaws(log).0;
    let early = found(&[step(InstanceId(8), 0, Body::Fence), begin()]);
    assert!(matches!(early[..], [StepFlaw::BeforeInit { .. }]), "{early:?}");
    let twice = found(&[begin(), begin()]);
    assert!(matches!(twice[..], [StepFlaw::MisplacedInit { .. }]), "{twice:?}");
    let late = found(&[begin(), end(1), step(ROOT, 2, Body::Fence)]);
    assert!(matches!(late[..], [StepFlaw::AfterFinish { .. }]), "{late:?}");
    let cancel = (entry(ROOT, Body::Cancel), vec![(tag::cancel(ROOT), 0)]);
    let after = found(&[begin(), cancel.clone(), step(ROOT, 1, Body::Fence), end(2)]);
    assert!(matches!(after[..], [StepFlaw::AfterCancel { .. }]), "{after:?}");
    let before = found(&[cancel, begin()]);
    assert!(matches!(before[..], [StepFlaw::AfterCancel { .. }]), "{before:?}");
    let object = Object { table: "t".to_owned(), key: vec![1] };
    let untagged = found(&[begin(), step(ROOT, 1, Body::Write { object, value: None })]);
    assert!(matches!(untagged[..], [StepFlaw::MissingTag { .. }]), "{untagged:?}");
    let other = Init { fingerprint: 10, root: InstanceId(9), ..init() };
    let mut foreign = Entry { init: Some(other.clone()), ..entry(InstanceId(9), Body::Init) };
    foreign.run = other.run();
    let tags = vec![(tag::step(InstanceId(9)), 0), (tag::init(other.run()), 0), (tag::intent(), 1)];
    let mixed = found(&[begin(), (foreign, tags), step(InstanceId(9), 1, Body::Fence)]);
    assert!(matches!(mixed[..], [StepFlaw::ForeignRun { .. }]), "{mixed:?}");
}
