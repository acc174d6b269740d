use std::collections::BTreeMap;

use halfmoon_wire::InstanceId;
use proptest::prelude::*;

use super::*;

fn object(n: u8) -> (String, Vec<u8>) {
    (format!("t{}", n % 3), vec![n; usize::from(n % 4)])
}

fn tuple(cursor: u64, instance: u128) -> CellTuple {
    CellTuple { cursor: SeqNum(cursor), counter: 0, instance: InstanceId(instance) }
}

#[derive(Clone, Debug)]
enum Step {
    Cell(u8, u64, Option<u8>),
    Version(u8, u128, u8),
    Base(u8, u64, u8),
    Turn,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, 0u64..8, proptest::option::of(any::<u8>())).prop_map(|(o, c, v)| Step::Cell(o, c, v)),
        2 => (0u8..6, 0u128..4, any::<u8>()).prop_map(|(o, i, v)| Step::Version(o, i, v)),
        2 => (0u8..6, 0u64..8, any::<u8>()).prop_map(|(o, s, v)| Step::Base(o, s, v)),
        2 => Just(Step::Turn),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    cells: BTreeMap<u8, (u64, Option<u8>)>,
    versions: BTreeMap<(u8, u128), u8>,
    bases: BTreeMap<u8, (u64, u8)>,
}

fn compare(store: &StateStore, model: &Model) {
    for n in 0..6 {
        let (table, key) = object(n);
        let object = ObjectKey { table: &table, key: &key };
        let cell = store.cell(object).unwrap();
        let cell = cell.map(|(tuple, value)| (tuple.cursor.0, value.map(|value| value[0])));
        assert_eq!(cell, model.cells.get(&n).copied(), "cell {n}");
        let base = store.base(object).unwrap();
        let base = base.map(|(seq, value)| (seq.0, value.unwrap()[0]));
        assert_eq!(base, model.bases.get(&n).copied(), "base {n}");
        for id in 0..4 {
            let version = store.version(object, VersionId(id)).unwrap().map(|value| value[0]);
            assert_eq!(version, model.versions.get(&(n, id)).copied(), "version {n} {id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_store_agrees_with_a_model_also_when_it_is_reopened_and_the_log_replayed(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = StateStore::open(dir.path(), || {}).unwrap();
        let mut log: Vec<Vec<u8>> = Vec::new();
        let mut model = Model::default();
        for step in steps {
            let (table, key, value);
            let entry = match step {
                Step::Cell(n, cursor, new) => {
                    (table, key) = object(n);
                    value = new.map(|v| [v]);
                    let newer = model.cells.get(&n).is_none_or(|(current, _)| *current < cursor);
                    if newer {
                        model.cells.insert(n, (cursor, new));
                    }
                    let object = ObjectKey { table: &table, key: &key };
                    let value = value.as_ref().map(|v| &v[..]);
                    Entry::Cell { object, tuple: tuple(cursor, 1), value }
                }
                Step::Version(n, id, new) => {
                    (table, key) = object(n);
                    value = Some([new]);
                    model.versions.entry((n, id)).or_insert(new);
                    let object = ObjectKey { table: &table, key: &key };
                    let value = value.as_ref().map_or(&[][..], |v| &v[..]);
                    Entry::Version { object, version: VersionId(id), value }
                }
                Step::Base(n, seq, new) => {
                    (table, key) = object(n);
                    value = Some([new]);
                    if model.bases.get(&n).is_none_or(|(current, _)| *current < seq) {
                        model.bases.insert(n, (seq, new));
                    }
                    let object = ObjectKey { table: &table, key: &key };
                    let value = value.as_ref().map(|v| &v[..]);
                    Entry::Base { object, seq: SeqNum(seq), value }
                }
                Step::Turn => {
                    store.turn().unwrap();
                    compare(&store, &model);
                    continue;
                }
                Step::Reopen => {
                    drop(store);
                    let (reopened, from) = StateStore::open(dir.path(), || {}).unwrap();
                    store = reopened;
                    for (index, bytes) in log.iter().enumerate().skip(from as usize) {
                        store.apply(index as u64 + 1, &Entry::parse(bytes).unwrap()).unwrap();
                    }
                    compare(&store, &model);
                    continue;
                }
            };
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            prop_assert_eq!(Entry::parse(&bytes).unwrap(), entry);
            log.push(bytes);
            store.apply(log.len() as u64, &entry).unwrap();
        }
        compare(&store, &model);
    }

    #[test]
    fn noise_is_no_entry_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        drop(Entry::parse(&bytes));
    }
}

#[test]
fn a_binary_is_served_only_when_it_is_whole_and_its_hash_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = StateStore::open(dir.path(), || {}).unwrap();
    let binary: Vec<u8> = (0..BLOB_CHUNK_BYTES * 2 + 99).map(|n| (n * 31) as u8).collect();
    let hash = *blake3::hash(&binary).as_bytes();
    let total = binary.len() as u64;
    let pieces: Vec<&[u8]> = binary.chunks(BLOB_CHUNK_BYTES).collect();
    let mut position = 0;
    let mut put = |store: &mut StateStore, hash, index: usize, bytes| {
        position += 1;
        let offset = (index * BLOB_CHUNK_BYTES) as u64;
        store.apply(position, &Entry::Blob { hash, total, offset, bytes }).unwrap();
    };
    put(&mut store, hash, 0, pieces[0]);
    put(&mut store, hash, 2, pieces[2]);
    assert!(store.blob(hash, 0).unwrap().is_none());
    put(&mut store, hash, 1, pieces[1]);
    let mut back = Vec::new();
    loop {
        let (whole, piece) = store.blob(hash, back.len() as u64).unwrap().unwrap();
        assert_eq!(whole, total);
        if piece.is_empty() {
            break;
        }
        back.extend_from_slice(&piece);
    }
    assert!(back == binary);
    for (index, piece) in pieces.iter().enumerate() {
        put(&mut store, [9; 32], index, piece);
    }
    assert!(store.blob([9; 32], 0).unwrap().is_none());
}
