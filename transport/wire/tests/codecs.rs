//! Every codec gives back what went in, and refuses everything else without a panic.
#![allow(missing_docs, reason = "tests")]

use halfmoon_wire::*;
use proptest::prelude::*;

fn record(seq: u64, tags: &[TagPos], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    NewRecord {
        seq: SeqNum(seq),
        epoch: Epoch(3),
        time_ns: 17,
        origin: Origin { engine: NodeId(9), incarnation: Incarnation(2), local: LocalId(5) },
        floor: SeqNum(1),
        kind: RecordKind::Data,
        tags,
        payload,
    }
    .encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was(
        tags in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8),
        payload in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let tags: Vec<_> = tags.iter().map(|(t, p)| TagPos::new(Tag(*t), *p)).collect();
        let bytes = record(7, &tags, &payload);
        prop_assert_eq!(bytes.len() % 8, 0);
        let back = RecordRef::parse(&bytes).unwrap();
        prop_assert_eq!(back.payload(), &payload[..]);
        prop_assert_eq!(back.tags().collect::<Vec<_>>(), tags);
        prop_assert_eq!((back.seq(), back.epoch(), back.time_ns()), (SeqNum(7), Epoch(3), 17));
        prop_assert_eq!(back.bytes().len(), bytes.len());
    }

    #[test]
    fn a_record_with_any_bit_flipped_is_refused(
        bit in 0..(128usize * 8),
        payload in prop::collection::vec(any::<u8>(), 40),
    ) {
        let mut bytes = record(7, &[TagPos::new(Tag(1), 2)], &payload);
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(RecordRef::parse(&bytes).is_err());
    }

    #[test]
    fn no_decoder_panics_on_noise(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..20) {
        drop(RecordRef::parse(&bytes));
        drop(Hello::parse(&bytes));
        drop(Message::parse(&bytes));
        let mut with_kind = vec![kind];
        with_kind.extend_from_slice(&bytes);
        drop(Message::parse(&with_kind));
        prop_assert!(Records::new(&bytes).count() <= bytes.len());
    }

    #[test]
    fn a_truncated_message_is_refused(cut in 0usize..200) {
        for message in samples() {
            let bytes = message.to_bytes();
            if cut < bytes.len() && !matches!(message, Message::Stream { .. } | Message::LogChunk { .. }) {
                prop_assert!(Message::parse(&bytes[..cut]).is_err(), "{message:?} cut at {cut}");
            }
        }
    }
}

fn samples() -> Vec<Message<'static>> {
    let history = vec![
        EpochStart { epoch: Epoch(1), first: SeqNum(1) },
        EpochStart { epoch: Epoch(4), first: SeqNum(9) },
    ];
    let mut samples = state_samples();
    samples.extend([
        Message::Append {
            epoch: Epoch(2),
            append: Append {
                local: LocalId(3),
                kind: RecordKind::Data,
                floor: SeqNum(8),
                conditions: vec![
                    Condition::Length { tag: Tag(1), length: 3 },
                    Condition::NothingAfter { tag: Tag(2), after: SeqNum(4) },
                ],
                tags: vec![Tag(1), Tag(9)],
                payload: b"payload",
            },
        },
        Message::Report { applied: SeqNum(3), safe_point: SeqNum(1), answered: LocalId(9) },
        Message::Follow { from: SeqNum(3) },
        Message::AskTail { token: 8 },
        Message::Tail { token: 8, seq: SeqNum(2) },
        Message::Refused {
            epoch: Epoch(1),
            local: LocalId(1),
            refusal: Refusal::Conflict { condition: 2, winner: SeqNum(6) },
        },
        Message::Refused { epoch: Epoch(1), local: LocalId(1), refusal: Refusal::Evicted },
        Message::Welcome {
            epoch: Epoch(4),
            history: history.clone(),
            window_start: SeqNum(2),
            tail: SeqNum(12),
            members: vec![NodeId(1), NodeId(2)],
            lease_ms: 1000,
            places_max: 1 << 20,
        },
        Message::Stream { epoch: Epoch(2), first: SeqNum(5), records: b"12345678" },
        Message::Seal { epoch: Epoch(4) },
        Message::Sealed { promised: Epoch(4), history, end: SeqNum(11) },
        Message::Durable { epoch: Epoch(4), seq: SeqNum(11) },
        Message::Confirm { epoch: Epoch(4), token: 6 },
        Message::Confirmed { epoch: Epoch(4), token: 6 },
        Message::Heartbeat { epoch: Epoch(4), committed: SeqNum(10) },
        Message::WatermarkHere { epoch: Epoch(4), region: 7 },
        Message::ReadLog { token: 1, epoch: Epoch(4), raw: true, from: SeqNum(1), max_bytes: 9 },
        Message::LogChunk {
            token: 1,
            epoch: Epoch(4),
            first: SeqNum(1),
            end: SeqNum(9),
            records: b"",
        },
        Message::Staging { region: 4, len: 1 << 24 },
        Message::AskStatus,
        Message::Status(NodeStatus {
            promised: Epoch(4),
            end: SeqNum(12),
            epoch: Epoch(3),
            durable: SeqNum(11),
            copied_bytes: 1 << 30,
        }),
    ]);
    samples
}

fn state_samples() -> Vec<Message<'static>> {
    let state = |request| Message::State { token: 3, epoch: Epoch(9), request };
    let answer = |reply| Message::StateAnswer { token: 3, reply };
    let object = ObjectKey { table: "app/hotel", key: b"k" };
    let landing = Some(Landing { region: 4, offset: 64, capacity: 4096 });
    let tuple = CellTuple { cursor: SeqNum(4), counter: 2, instance: InstanceId(77) };
    vec![
        state(StateRequest::GetCell { object, landing }),
        state(StateRequest::GetTuple { object }),
        state(StateRequest::PutCell { object, tuple, value: None }),
        state(StateRequest::PutCell { object, tuple, value: Some(ValueSource::Inline(b"v")) }),
        state(StateRequest::GetVersion { object, version: VersionId(5), landing: None }),
        state(StateRequest::PutVersion {
            object,
            version: VersionId(5),
            value: ValueSource::Staged { offset: 8, len: 100_000 },
        }),
        state(StateRequest::GetBase { object, floor: SeqNum(2), landing }),
        state(StateRequest::PutBlob { hash: [3; 32], total: 9, offset: 0, bytes: b"elf" }),
        state(StateRequest::GetBlob { hash: [3; 32], offset: 5 }),
        state(StateRequest::Scan { after: b"", offset: 0 }),
        state(StateRequest::Scan { after: b"c\0\x01tk", offset: 300_000 }),
        answer(StateReply::Done),
        answer(StateReply::Cell(None)),
        answer(StateReply::Cell(Some(StoredCell { tuple, value: None }))),
        answer(StateReply::Value(Some((SeqNum(3), Some(ValueSource::Inline(b"x")))))),
        answer(StateReply::NeedRoom { len: 100 }),
        answer(StateReply::Blob { total: 4, bytes: b"ab" }),
        answer(StateReply::NoBlob),
        answer(StateReply::Tuple(None)),
        answer(StateReply::Tuple(Some(tuple))),
        answer(StateReply::Page { items: vec![], end: true }),
        answer(StateReply::Page {
            items: vec![
                Stored { key: b"c1", total: 3, bytes: b"abc" },
                Stored { key: b"c2", total: 9, bytes: b"ab" },
            ],
            end: false,
        }),
        answer(StateReply::Failed("disk full")),
    ]
}

#[test]
fn every_message_comes_back_as_it_was() {
    for message in samples() {
        assert_eq!(Message::parse(&message.to_bytes()).unwrap(), message);
    }
}

#[test]
fn a_page_out_of_order_or_cut_in_the_middle_is_none() {
    let stored = |key, total, bytes| Stored { key, total, bytes };
    let parses = |items: &[Stored<'static>]| {
        let reply = StateReply::Page { items: items.to_vec(), end: false };
        Message::parse(&Message::StateAnswer { token: 1, reply }.to_bytes()).is_ok()
    };
    let (first, second) = (stored(b"c1", 1, b"x"), stored(b"c2", 1, b"y"));
    assert!(parses(&[first, second]) && parses(&[first, stored(b"c2", 2, b"y")]));
    assert!(!parses(&[second, first]) && !parses(&[first, first]));
    assert!(!parses(&[stored(b"c1", 2, b"x"), second]), "the next value after a cut one");
    assert!(!parses(&[stored(b"c1", 1, b"xy")]), "more than all of a value");
    let long = u32::try_from(limits::STORED_VALUE_MAX_BYTES).unwrap();
    assert!(parses(&[stored(b"c1", long, b"x")]) && !parses(&[stored(b"c1", long + 1, b"x")]));
}

#[test]
fn an_append_kept_for_resubmission_goes_to_another_epoch() {
    for message in samples() {
        if let Message::Append { append, .. } = message {
            let mut kept = Vec::new();
            encode_append(&mut kept, Epoch(0), &append.parts());
            let at = APPEND_EPOCH_AT..APPEND_EPOCH_AT + 8;
            kept[at].copy_from_slice(&7u64.to_le_bytes());
            assert_eq!(Message::parse(&kept).unwrap(), Message::Append { epoch: Epoch(7), append });
        }
    }
}

#[test]
fn an_append_is_viewed_as_it_was_sent() {
    for message in samples() {
        let bytes = message.to_bytes();
        let Message::Append { epoch, append } = message else {
            assert_eq!(append_view(&bytes), None);
            continue;
        };
        let (view_epoch, view) = append_view(&bytes).unwrap().unwrap();
        assert_eq!((view_epoch, view.local, view.floor), (epoch, append.local, append.floor));
        assert_eq!(view.conditions().collect::<Vec<_>>(), append.conditions);
        assert_eq!(view.tags().collect::<Vec<_>>(), append.tags);
        assert_eq!(view.payload, append.payload);
        for cut in 1..bytes.len() {
            assert!(append_view(&bytes[..cut]).unwrap().is_err());
        }
    }
}

#[test]
fn a_hello_of_another_version_is_told_apart() {
    let hello =
        Hello { cluster: 1, role: Role::Engine, node: NodeId(3), incarnation: Incarnation(4) };
    let mut bytes = hello.to_bytes();
    assert_eq!(Hello::parse(&bytes).unwrap(), hello);
    bytes[4] ^= 0xff;
    let error = Hello::parse(&bytes).unwrap_err();
    assert!(matches!(error, DecodeError::Version { ours: WIRE_VERSION, .. }), "{error}");
}

#[test]
fn two_logs_agree_up_to_the_last_position_of_the_same_epoch() {
    let start = |epoch, first| EpochStart { epoch: Epoch(epoch), first: SeqNum(first) };
    let a = [start(1, 1), start(3, 5)];
    let check = |b: &[EpochStart], b_end, agreed| {
        assert_eq!(agreement((&a, SeqNum(8)), (b, SeqNum(b_end))), SeqNum(agreed), "{b:?} {b_end}");
        assert_eq!(agreement((b, SeqNum(b_end)), (&a, SeqNum(8))), SeqNum(agreed), "{b:?} {b_end}");
    };
    check(&[], 0, 0);
    check(&[start(1, 1)], 3, 3);
    check(&[start(1, 1)], 7, 4);
    check(&[start(1, 1), start(2, 5)], 9, 4);
    check(&[start(1, 1), start(2, 4)], 9, 3);
    check(&[start(1, 1), start(3, 5)], 6, 6);
    check(&[start(1, 1), start(3, 5), start(4, 8)], 9, 7);
    check(&[start(2, 1)], 9, 0);
}
