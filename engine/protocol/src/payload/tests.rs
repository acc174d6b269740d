use halfmoon_wire::{InstanceId, RunId, SeqNum, VersionId};

use super::{Body, Entry, Init, Intent, Kind, Stored, intent, kind};
use crate::call::{Point, Status};
use crate::{Mode, Object};

fn object() -> Object {
    Object { table: "shop/hotels".to_owned(), key: vec![0, 1, 2] }
}

fn init(root: u128) -> Init {
    Init {
        root: InstanceId(root),
        cursor: (root == 1).then_some(SeqNum(7)),
        function: "shop/reserve".to_owned(),
        version: [3; 32],
        input: Stored::Inline(vec![1, 2, 3]),
        fingerprint: 99,
        mode: Mode::Boki,
        read_only: true,
    }
}

fn bodies() -> Vec<Body> {
    let small = || Stored::Inline(b"small".to_vec());
    let large = || Stored::Version(VersionId(5));
    let point = Point { cursor: SeqNum(4), counter: 2 };
    let writes = vec![(object(), Some(small())), (object(), None), (object(), Some(large()))];
    vec![
        Body::Init,
        Body::Write { object: object(), value: Some(large()) },
        Body::Write { object: object(), value: None },
        Body::Read { object: object(), value: Some(small()) },
        Body::WriteIntent { object: object() },
        Body::WriteDone { object: object() },
        Body::Commit { transaction: 3, cursor: SeqNum(9), writes },
        Body::TooManyConflicts { transaction: 4 },
        Body::SideEffect { result: large() },
        Body::Fence,
        Body::Select { call: 1 },
        Body::Detached(init(2)),
        Body::CallIntent { call: 1 },
        Body::CallDone { call: 1, status: Status::Failed, result: small(), point },
        Body::Begin,
        Body::Finish { status: Status::Cancelled, result: large(), point },
        Body::Cancel,
    ]
}

fn entries() -> impl Iterator<Item = Entry> {
    let entry = |init, body| Entry { instance: InstanceId(1), run: RunId(2), init, body };
    let plain = bodies().into_iter().map(move |body| entry(None, body));
    plain.chain(bodies().into_iter().map(move |body| entry(Some(init(1)), body)))
}

#[test]
fn what_is_written_is_read_back() {
    for entry in entries() {
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry.clone()), "{entry:?}");
    }
}

#[test]
fn cut_or_lengthened_records_are_refused() {
    for entry in entries() {
        let whole = entry.encode();
        for len in 0..whole.len() {
            assert!(Entry::decode(&whole[..len]).is_err(), "{entry:?} cut to {len}");
        }
        let mut longer = whole;
        longer.push(0);
        assert!(Entry::decode(&longer).is_err(), "{entry:?} with a byte too many");
    }
}

#[test]
fn a_flipped_byte_is_an_error_or_another_record_but_never_a_panic() {
    for entry in entries() {
        let whole = entry.encode();
        for at in 0..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                if let Ok(other) = Entry::decode(&bytes) {
                    assert_ne!(other, entry);
                }
            }
        }
    }
}

#[test]
fn the_intent_stream_says_which_roots_begin_and_end() {
    let entry = |init, body| Entry { instance: InstanceId(1), run: RunId(2), init, body };
    let begins = |roots: &[u128]| Intent::Begins(roots.iter().copied().map(InstanceId).collect());
    let read = |entry: Entry| intent(&entry.encode()).unwrap();
    assert_eq!(read(entry(Some(init(1)), Body::Init)), begins(&[1]));
    assert_eq!(read(entry(None, Body::Detached(init(2)))), begins(&[2]));
    assert_eq!(read(entry(Some(init(1)), Body::Detached(init(2)))), begins(&[1, 2]));
    let point = Point::default();
    let result = Stored::Inline(vec![]);
    let finish = Body::Finish { status: Status::Returned, result, point };
    assert_eq!(read(entry(None, finish)), Intent::Ends(InstanceId(1)));
    assert!(intent(b"nonsense").is_err());
}

#[test]
fn records_count_as_what_they_are_for() {
    let counted =
        |body| kind(&Entry { instance: InstanceId(1), run: RunId(2), init: None, body }.encode());
    assert_eq!(counted(Body::Fence), Some(Kind::Fence));
    assert_eq!(counted(Body::Init), Some(Kind::Init));
    assert_eq!(counted(Body::Begin), Some(Kind::Step));
    assert_eq!(kind(b"nonsense"), None);
}
