use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;

fn fresh() -> (tempfile::TempDir, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("meta")).unwrap();
    (directory, store)
}

fn text(entry: Option<Entry>) -> Option<String> {
    entry.map(|entry| String::from_utf8(entry.value).unwrap())
}

#[test]
fn a_full_store_refuses_a_new_key_and_takes_changes_of_old_ones() {
    let (_directory, store) = fresh();
    let entry = Entry { value: vec![], revision: Revision(1) };
    let entries = (0..ENTRIES_MAX).map(|index| (format!("k{index}"), entry.clone())).collect();
    let full = State { revision: 1, entries };
    fs::write(store.path(STATE), format::encode(&full).unwrap()).unwrap();
    let error = store.compare_and_set("more", Expected::Absent, b"").unwrap_err();
    assert!(matches!(error, CasError::Failed(MetaError::Full)));
    store.compare_and_set("k0", Expected::At(Revision(1)), b"new").unwrap();
}

#[test]
fn a_writer_that_died_before_the_rename_leaves_the_old_state() {
    let (_directory, store) = fresh();
    let first = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    for leftover in [&b""[..], b"halfmoon-meta 1 00", b"rubbish"] {
        fs::write(store.path(STATE_NEW), leftover).unwrap();
        let again = FileStore::open(store.directory()).unwrap();
        assert_eq!(again.get("a").unwrap().unwrap().revision, first);
    }
    store.compare_and_set("a", Expected::At(first), b"two").unwrap();
    assert_eq!(text(store.get("a").unwrap()).as_deref(), Some("two"));
}

#[test]
fn a_writer_that_died_after_the_rename_leaves_the_new_state_and_the_next_reader_settles_it() {
    let (_directory, store) = fresh();
    let first = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    let lock = store.lock(FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut state = store.load().unwrap();
    state.revision += 1;
    let value = b"two".to_vec();
    let next = Entry { value, revision: Revision(state.revision) };
    state.entries.insert("a".to_owned(), next.clone());
    store.replace(&lock, &state).unwrap();
    drop(lock);
    assert_eq!(fs::read(store.path(LOCK)).unwrap(), [UNSETTLED]);
    assert_eq!(store.get("a").unwrap(), Some(next));
    assert_eq!(fs::read(store.path(LOCK)).unwrap(), [SETTLED]);
    let stale = store.compare_and_set("a", Expected::At(first), b"three");
    assert!(matches!(stale, Err(CasError::Conflict { .. })));
}

#[test]
fn a_damaged_state_is_refused_with_the_reason_and_left_as_it_is() {
    let (_directory, store) = fresh();
    store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    let good = fs::read(store.path(STATE)).unwrap();
    for index in 0..good.len() {
        let mut bad = good.clone();
        if let Some(byte) = bad.get_mut(index) {
            *byte ^= 0x04;
        }
        assert_refused(&store, &bad);
    }
    for len in 0..good.len() {
        assert_refused(&store, good.get(..len).unwrap());
    }
    assert_refused(&store, &[good.as_slice(), b" "].concat());
}

fn assert_refused(store: &FileStore, bytes: &[u8]) {
    fs::write(store.path(STATE), bytes).unwrap();
    assert!(matches!(store.get("a"), Err(MetaError::Corrupt { .. })), "{bytes:?}");
    let change = store.compare_and_set("a", Expected::Absent, b"x");
    assert!(matches!(change, Err(CasError::Failed(MetaError::Corrupt { .. }))), "{bytes:?}");
    assert!(FileStore::open(store.directory()).is_err());
    assert_eq!(fs::read(store.path(STATE)).unwrap(), bytes);
}

#[test]
fn a_state_of_a_later_format_is_refused_by_its_number() {
    let (_directory, store) = fresh();
    fs::write(store.path(STATE), "halfmoon-meta 2 00000000\n{}").unwrap();
    let error = store.get("a").unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("state"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = FileStore::open(file.join("meta")).unwrap_err().to_string();
    assert!(error.contains("cannot make directory") && error.contains("file/meta"), "{error}");
}

#[test]
fn of_many_threads_that_expect_the_same_exactly_one_wins_each_round() {
    let (_directory, store) = fresh();
    let store = Arc::new(store);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || count_up(&store, 20))
        })
        .collect();
    let mut seen = BTreeSet::new();
    for thread in threads {
        for number in thread.join().unwrap() {
            assert!(seen.insert(number), "{number} was taken twice");
        }
    }
    assert_eq!(seen, (1..=80).collect());
}

/// Takes `times` numbers off a counter.
fn count_up(store: &FileStore, times: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    let mut current = store.get("n").unwrap();
    while taken.len() < times {
        let number: u64 = text(current.clone()).map_or(0, |text| text.parse().unwrap()) + 1;
        let value = number.to_string();
        match store.compare_and_set("n", Expected::of(current.as_ref()), value.as_bytes()) {
            Ok(revision) => {
                taken.push(number);
                current = Some(Entry { value: value.into_bytes(), revision });
            }
            Err(CasError::Conflict { current: found }) => current = found,
            Err(other) => panic!("{other}"),
        }
    }
    taken
}
