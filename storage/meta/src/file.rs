//! The metadata store of one machine: a directory that several processes share.
//!
//! | file | what |
//! |---|---|
//! | `state` | the whole map (see [`format`]); replaced by rename, so a reader sees all or nothing |
//! | `state.new` | the next one, while it is being written; a leftover is overwritten |
//! | `lock` | `flock`ed: shared by readers, exclusive for writers. Its first byte says whether a rename may not be durable yet |
//!
//! A change costs two syncs, and a restart finds either the map before it or the map after it.

mod format;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::store::{ENTRIES_MAX, check_key, check_value};
use crate::{CasError, Entry, Expected, MetaError, MetaStore, Revision};
use format::State;

/// How long a call waits for other processes. A change takes two syncs, milliseconds on a healthy
/// disk; one that stalls for seconds is not unheard of.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Pause between two tries to get the lock.
const LOCK_RETRY: Duration = Duration::from_millis(1);

const STATE: &str = "state";
const STATE_NEW: &str = "state.new";
const LOCK: &str = "lock";

/// First byte of the lock file: what was renamed is durable.
const SETTLED: u8 = b'.';
/// First byte of the lock file: a rename was begun, and may not have been made durable.
const UNSETTLED: u8 = b'!';

/// A [`MetaStore`] in a directory, for the processes of one machine.
///
/// The directory must lie on a file system where `flock` and `rename` work between the processes
/// that share it: any local one.
#[derive(Debug)]
pub struct FileStore {
    directory: PathBuf,
}

impl FileStore {
    /// Opens the store in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made or written to, or holds a damaged store.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, MetaError> {
        let directory = directory.into();
        let io = |what| {
            let path = directory.clone();
            move |source| MetaError::Io { what, path, source }
        };
        fs::create_dir_all(&directory).map_err(io("make directory"))?;
        // The name of a directory lies in its parent; without this a loss of power may take it.
        let absolute = directory.canonicalize().map_err(io("find"))?;
        if let Some(parent) = absolute.parent() {
            sync_directory(parent)?;
        }
        let store = Self { directory: absolute };
        let lock = store.lock(FlockOperation::NonBlockingLockExclusive)?;
        match store.load() {
            Ok(_) => {}
            Err(MetaError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                store.replace(&lock, &State::default())?;
                store.settle(&lock)?;
            }
            Err(error) => return Err(error),
        }
        Ok(store)
    }

    /// The directory it lies in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn io(&self, what: &'static str, name: &str) -> impl FnOnce(io::Error) -> MetaError + use<> {
        let path = self.path(name);
        move |source| MetaError::Io { what, path, source }
    }

    /// Takes the lock, through a file description of its own: so it also stands between threads,
    /// and goes when the file is closed, by return or by death.
    fn lock(&self, operation: FlockOperation) -> Result<File, MetaError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(LOCK))
            .map_err(self.io("open", LOCK))?;
        let began = Instant::now();
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.io("lock", LOCK)(error.into())),
            }
            let waited = began.elapsed();
            if waited >= LOCK_WAIT_MAX {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(MetaError::Busy { path: self.path(LOCK), waited_ms });
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }

    fn load(&self) -> Result<State, MetaError> {
        let path = self.path(STATE);
        let bytes = fs::read(&path).map_err(self.io("read", STATE))?;
        format::decode(&bytes)
            .map_err(|why| MetaError::Corrupt { place: path.display().to_string(), why })
    }

    /// The state, and nothing that a loss of power could take back.
    fn load_durable(&self) -> Result<State, MetaError> {
        let lock = self.lock(FlockOperation::NonBlockingLockShared)?;
        self.settle(&lock)?;
        self.load()
    }

    /// Makes the last rename durable if its writer may have died before it could. The mark itself
    /// needs no sync: it only has to reach the processes that outlive the writer.
    fn settle(&self, lock: &File) -> Result<(), MetaError> {
        let mut mark = [SETTLED];
        let read = lock.read_at(&mut mark, 0).map_err(self.io("read", LOCK))?;
        if read == 1 && mark == [SETTLED] {
            return Ok(());
        }
        sync_directory(&self.directory)?;
        lock.write_all_at(&[SETTLED], 0).map_err(self.io("write", LOCK))
    }

    /// Puts `state` in the place of what is there; [`Self::settle`] then makes that durable. The
    /// caller holds the exclusive lock. After an error the old state is there.
    fn replace(&self, lock: &File, state: &State) -> Result<(), MetaError> {
        let bytes = format::encode(state).map_err(|error| MetaError::Corrupt {
            place: "the new state".to_owned(),
            why: error.to_string(),
        })?;
        let new = self.path(STATE_NEW);
        let mut file = File::create(&new).map_err(self.io("make", STATE_NEW))?;
        file.write_all(&bytes).map_err(self.io("write", STATE_NEW))?;
        file.sync_all().map_err(self.io("sync", STATE_NEW))?;
        lock.write_all_at(&[UNSETTLED], 0).map_err(self.io("write", LOCK))?;
        fs::rename(&new, self.path(STATE)).map_err(self.io("rename", STATE_NEW))
    }

    /// Checks what is there, lets `apply` change it, and writes it under the next revision.
    fn change(
        &self,
        key: &str,
        expected: Expected,
        apply: impl FnOnce(&mut State, Revision),
    ) -> Result<Revision, CasError> {
        check_key(key)?;
        let lock = self.lock(FlockOperation::NonBlockingLockExclusive)?;
        self.settle(&lock)?;
        let mut state = self.load()?;
        let current = state.entries.get(key);
        if !expected.matches(current.map(|entry| entry.revision)) {
            return Err(CasError::Conflict { current: current.cloned() });
        }
        state.revision = state.revision.saturating_add(1);
        let revision = Revision(state.revision);
        apply(&mut state, revision);
        if state.entries.len() > ENTRIES_MAX {
            return Err(CasError::Failed(MetaError::Full));
        }
        self.replace(&lock, &state)?;
        // The change is there, and may or may not stay.
        self.settle(&lock).map_err(|source| CasError::Unknown { source })?;
        Ok(revision)
    }
}

impl MetaStore for FileStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, MetaError> {
        check_key(key)?;
        Ok(self.load_durable()?.entries.remove(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Entry)>, MetaError> {
        let entries = self.load_durable()?.entries;
        Ok(entries.into_iter().filter(|(key, _)| key.starts_with(prefix)).collect())
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Expected,
        value: &[u8],
    ) -> Result<Revision, CasError> {
        check_value(key, value)?;
        self.change(key, expected, |state, revision| {
            state.entries.insert(key.to_owned(), Entry { value: value.to_vec(), revision });
        })
    }

    fn delete(&self, key: &str, expected: Revision) -> Result<(), CasError> {
        let gone = |state: &mut State, _: Revision| {
            state.entries.remove(key);
        };
        self.change(key, Expected::At(expected), gone).map(drop)
    }
}

fn sync_directory(path: &Path) -> Result<(), MetaError> {
    let io = |source| MetaError::Io { what: "sync", path: path.to_owned(), source };
    File::open(path).map_err(io)?.sync_all().map_err(io)
}

#[cfg(test)]
mod tests;
