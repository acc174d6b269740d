use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::memory::{HeapMemory, Memory};

const SIZE: usize = MIN_RING_BYTES;

/// What a transport carries: a run of bytes to be placed at an offset.
type Write = (u64, Vec<u8>);

fn writes(placed: &Placement, payload: &[u8]) -> Vec<Write> {
    let mut entry = placed.header.to_vec();
    entry.extend(payload);
    entry.resize(entry.len() + placed.fill, 0);
    let pad = placed.pad.iter().map(|(offset, header)| (*offset, header.to_vec()));
    pad.chain([(placed.offset, entry)]).collect()
}

fn apply(memory: &HeapMemory, write: &Write) {
    memory::copy_in(memory.words(), write.0, &write.1).unwrap();
}

fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| seed.wrapping_add((n % 256).to_le_bytes()[0])).collect()
}

/// The extent arrives.
fn tell(writer: &mut RingWriter, reader: &mut RingReader) {
    let extent = writer.extent_due().unwrap();
    reader.extent(extent).unwrap();
    writer.told(extent);
    assert_eq!(writer.extent_due(), None);
}

/// Words of a write, in an order that `keys` decides (T2).
fn shuffled(write: &Write, keys: &[u32]) -> Vec<Write> {
    let mut words: Vec<(u32, Write)> = write
        .1
        .chunks(WORD)
        .enumerate()
        .map(|(n, word)| (keys[n % keys.len()], (write.0 + (n * WORD) as u64, word.to_vec())))
        .collect();
    words.sort_by_key(|(key, _)| *key);
    words.into_iter().map(|(_, word)| word).collect()
}

fn message_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..120usize, 1 => 0..=max_message_bytes(SIZE)]
}

proptest! {
    /// M1 to M3 against a queue: any sizes, any pace of reader and credits.
    #[test]
    fn what_is_sent_is_received_once_whole_and_in_order(
        lens in prop::collection::vec(message_len(), 1..200),
        paces in prop::collection::vec(0usize..6, 1..50),
    ) {
        let memory = HeapMemory::new(SIZE);
        let (mut writer, mut reader) = (RingWriter::new(SIZE, 3), RingReader::new(SIZE, 3));
        let mut model = VecDeque::new();
        let mut sent = 0;
        let mut paces = paces.iter().cycle();
        while sent < lens.len() || !model.is_empty() {
            let bytes = lens.get(sent).map(|len| payload(*len, sent.to_le_bytes()[0]));
            if let Some(bytes) = bytes {
                match writer.place(&[&bytes]) {
                    Ok(placed) => {
                        writes(&placed, &bytes).iter().for_each(|write| apply(&memory, write));
                        writer.commit(&placed);
                        tell(&mut writer, &mut reader);
                        model.push_back(bytes);
                        sent += 1;
                        if model.len() < 5 {
                            continue;
                        }
                    }
                    Err(error) => {
                        prop_assert_eq!(error, PlaceError::Full);
                        prop_assert!(!model.is_empty(), "full, and nothing is on its way");
                    }
                }
            }
            // At least one, so that a full ring gets on.
            for _ in 0..=*paces.next().unwrap() {
                let expected = model.pop_front();
                let expected = expected.as_deref().map_or(Found::Nothing, Found::Message);
                prop_assert_eq!(reader.next(memory.words()), expected);
            }
            if let Some(credit) = reader.credit_due() {
                writer.credit(credit).unwrap();
                reader.credited(credit);
            }
        }
        prop_assert_eq!(reader.next(memory.words()), Found::Nothing);
    }

    /// M1 under T2: whatever order the words of an entry appear in, over whatever an earlier lap
    /// left, nobody looks at it before the extent covers it, and then it is as it was sent.
    #[test]
    fn an_entry_is_delivered_once_the_extent_covers_it_and_not_before(
        lens in prop::collection::vec(message_len(), 20..60),
        keys in prop::collection::vec(any::<u32>(), 1..300),
    ) {
        let memory = HeapMemory::new(SIZE);
        let (mut writer, mut reader) = (RingWriter::new(SIZE, 3), RingReader::new(SIZE, 3));
        for (n, len) in lens.iter().enumerate() {
            let bytes = payload(*len, n.to_le_bytes()[0]);
            let placed = writer.place(&[&bytes]).unwrap();
            for write in writes(&placed, &bytes) {
                for word in shuffled(&write, &keys) {
                    prop_assert_eq!(reader.next(memory.words()), Found::Nothing);
                    apply(&memory, &word);
                }
            }
            writer.commit(&placed);
            prop_assert_eq!(reader.next(memory.words()), Found::Nothing);
            tell(&mut writer, &mut reader);
            prop_assert_eq!(reader.next(memory.words()), Found::Message(&bytes[..]));
            prop_assert_eq!(reader.next(memory.words()), Found::Nothing);
            writer.credit(reader.position).unwrap();
        }
    }

    /// M4: any change of an entry is noticed, and never delivered.
    #[test]
    fn a_changed_entry_is_corrupt(
        len in 1usize..300, at in 0usize..324, flip in 1u8..=255,
    ) {
        let memory = HeapMemory::new(SIZE);
        let (mut writer, mut reader) = (RingWriter::new(SIZE, 3), RingReader::new(SIZE, 3));
        let bytes = payload(len, 1);
        let placed = writer.place(&[&bytes]).unwrap();
        let mut entry = writes(&placed, &bytes).remove(0);
        let at = at % (HEADER_BYTES + len);
        entry.1[at] ^= flip;
        apply(&memory, &entry);
        writer.commit(&placed);
        tell(&mut writer, &mut reader);
        prop_assert_eq!(reader.next(memory.words()), Found::Corrupt);
    }

    /// Whatever a peer puts into the ring, reading it neither panics nor ends nowhere.
    #[test]
    fn garbage_never_panics(
        words in prop::collection::vec(prop_oneof![any::<u64>(), 0..9000u64], SIZE / WORD),
        extent in 0..2 * SIZE as u64 + 9,
    ) {
        let memory = HeapMemory::new(SIZE);
        for (word, garbage) in memory.words().iter().zip(&words) {
            word.store(garbage.to_le(), Ordering::Release);
        }
        memory.words()[0].store((SIZE as u64).to_le(), Ordering::Release);
        let mut reader = RingReader::new(SIZE, 3);
        let taken = reader.extent(extent).is_ok();
        prop_assert_eq!(taken, extent == 0 || (SIZE..=2 * SIZE).contains(&(extent as usize)));
        for _ in 0..4 {
            prop_assert!(!matches!(reader.next(memory.words()), Found::Message(_)));
        }
    }
}

#[test]
fn an_entry_of_another_epoch_is_not_delivered() {
    let memory = HeapMemory::new(SIZE);
    let (mut writer, mut reader) = (RingWriter::new(SIZE, 2), RingReader::new(SIZE, 3));
    let placed = writer.place(&[b"old"]).unwrap();
    writes(&placed, b"old").iter().for_each(|write| apply(&memory, write));
    writer.commit(&placed);
    tell(&mut writer, &mut reader);
    assert_eq!(reader.next(memory.words()), Found::Corrupt);
}

#[test]
fn an_entry_of_an_earlier_lap_never_passes() {
    let memory = HeapMemory::new(SIZE);
    let (mut writer, mut reader) = (RingWriter::new(SIZE, 3), RingReader::new(SIZE, 3));
    let bytes = payload(SIZE / 8 - HEADER_BYTES, 1);
    // Eight of them fill a lap exactly, so the next is expected where the first still lies whole.
    for _ in 0..8 {
        let placed = writer.place(&[&bytes]).unwrap();
        writes(&placed, &bytes).iter().for_each(|write| apply(&memory, write));
        writer.commit(&placed);
        tell(&mut writer, &mut reader);
        assert_eq!(reader.next(memory.words()), Found::Message(&bytes[..]));
    }
    assert_eq!(reader.next(memory.words()), Found::Nothing);
    // Nor when the sender says that there is a new one.
    reader.extent(2 * SIZE as u64 + 64).unwrap();
    assert_eq!(reader.next(memory.words()), Found::Corrupt);
}

#[test]
fn an_extent_that_falls_or_runs_ahead_of_the_credit_is_refused() {
    let mut reader = RingReader::new(SIZE, 3);
    let (read, known) = (SIZE as u64, SIZE as u64 + 64);
    reader.extent(known).unwrap();
    for extent in [0, known - 8, read + SIZE as u64 + 8, u64::MAX] {
        assert_eq!(reader.extent(extent), Err(BadExtent { extent, read, known }));
    }
    reader.extent(read + SIZE as u64).unwrap();
}

#[test]
fn nothing_is_placed_over_what_was_not_given_back() {
    let mut writer = RingWriter::new(SIZE, 3);
    let bytes = payload(SIZE / 8 - HEADER_BYTES, 1);
    for _ in 0..8 {
        let placed = writer.place(&[&bytes]).unwrap();
        writer.commit(&placed);
    }
    assert_eq!(writer.place(&[b""]), Err(PlaceError::Full));
    let first = (SIZE + SIZE / 8) as u64;
    writer.credit(first).unwrap();
    assert!(writer.place(&[&bytes]).is_ok());
    let (consumed, sent) = (first, 2 * SIZE as u64);
    for credit in [first - 8, sent + 8] {
        assert_eq!(writer.credit(credit), Err(BadCredit { credit, consumed, sent }));
    }
}

#[test]
fn a_message_longer_than_a_quarter_of_the_ring_is_refused() {
    let writer = RingWriter::new(SIZE, 3);
    let limit = max_message_bytes(SIZE);
    assert!(writer.place(&[&payload(limit, 1)]).is_ok());
    let refused = writer.place(&[&payload(limit, 1), b"x"]);
    assert_eq!(refused, Err(PlaceError::TooLong { len: limit + 1, limit }));
}
