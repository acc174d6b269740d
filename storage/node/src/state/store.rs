//! The embedded engine, on threads of its own: one writes what the state log holds, one reads.
//!
//! The writer does not sync per write: the state log is what makes a write durable. A segment of
//! that log is given up only after [`EngineEvent::Persisted`] covers it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use halfmoon_transport::Wake;

use crate::NodeError;
use crate::limits::{
    STORE_APART_BYTES, STORE_BUFFER_BYTES, STORE_CACHE_BYTES, STORE_JOURNAL_BYTES,
};
use crate::state::entry::{
    Kind, Put, Rule, SEQ_BYTES, blob_key, blob_offset, blob_prefix, parse_u64,
};
use crate::state::scan::Page;

enum Write {
    /// Ascending by number.
    Apply(Vec<Put>),
    Persist(u64),
}

enum Read {
    Value { id: u64, key: Arc<[u8]> },
    Blob { id: u64, hash: [u8; 32], offset: u64 },
    Page { id: u64, after: Arc<[u8]> },
}

/// The engine under a state store. Each call returns at once; what came of it is told, in order, by
/// [`Engine::next`].
pub trait Engine {
    /// Entries of the state log up to this one were synced when the engine was opened.
    fn synced(&self) -> u64;

    /// Takes writes, ascending by number: of several to one key the one counts that [`Put::beats`]
    /// the others.
    fn apply(&mut self, puts: Vec<Put>);

    /// Has all that was handed over survive a loss of power; it holds the state log up to `upto`.
    fn persist(&mut self, upto: u64);

    /// Reads a key.
    fn read(&mut self, id: u64, key: Arc<[u8]>);

    /// Reads a blob from an offset on.
    fn read_blob(&mut self, id: u64, hash: [u8; 32], offset: u64);

    /// Reads a page of what comes after a key.
    fn scan(&mut self, id: u64, after: Arc<[u8]>);

    /// What was done.
    fn next(&mut self) -> Option<EngineEvent>;
}

/// What an [`Engine`] did.
#[derive(Debug)]
pub enum EngineEvent {
    /// All that was handed over is visible to reads.
    Applied,
    /// All up to this entry survives a loss of power.
    Persisted(u64),
    /// What a key has.
    Value(u64, Option<Arc<[u8]>>),
    /// A piece of a blob that is whole: bytes of the whole, and the piece.
    Blob(u64, Option<(u64, Arc<[u8]>)>),
    /// What comes after a key.
    Page(u64, Page),
    /// It is of no more use: the node stops.
    Failed(NodeError),
}

/// The hot thread's side.
pub(crate) struct Store {
    synced: u64,
    writes: Option<Sender<Write>>,
    reads: Option<Sender<Read>>,
    events: Receiver<EngineEvent>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Embedded {
    path: PathBuf,
    database: Database,
    /// Cells.
    small: Keyspace,
    /// Versions, bases and blobs, their values apart from their keys.
    large: Keyspace,
}

/// Where the engine notes what was synced; no key of an object begins so.
const SYNCED_KEY: &[u8] = b"!synced";

impl Store {
    pub(crate) fn open(path: &Path, wake: Arc<dyn Wake>) -> Result<Self, NodeError> {
        let engine = Embedded::open(path)?;
        let synced = engine.synced().map_err(engine.failed())?;
        let (writes, write_tasks) = channel();
        let (reads, read_tasks) = channel();
        let (done, events) = channel();
        let writer = {
            let (engine, done, wake) = (engine.clone(), done.clone(), wake.clone());
            thread("store-write", move || {
                for task in write_tasks {
                    tell(&done, &*wake, engine.write(task));
                }
            })?
        };
        let reader = thread("store-read", move || {
            let mut verified = BTreeMap::new();
            for task in read_tasks {
                tell(&done, &*wake, engine.read(task, &mut verified));
            }
        })?;
        let threads = vec![writer, reader];
        Ok(Self { synced, writes: Some(writes), reads: Some(reads), events, threads })
    }
}

impl Engine for Store {
    fn synced(&self) -> u64 {
        self.synced
    }

    /// A thread that is gone has left [`EngineEvent::Failed`] behind.
    fn apply(&mut self, puts: Vec<Put>) {
        if let Some(writes) = &self.writes {
            writes.send(Write::Apply(puts)).ok();
        }
    }

    fn persist(&mut self, upto: u64) {
        if let Some(writes) = &self.writes {
            writes.send(Write::Persist(upto)).ok();
        }
    }

    fn read(&mut self, id: u64, key: Arc<[u8]>) {
        if let Some(reads) = &self.reads {
            reads.send(Read::Value { id, key }).ok();
        }
    }

    fn read_blob(&mut self, id: u64, hash: [u8; 32], offset: u64) {
        if let Some(reads) = &self.reads {
            reads.send(Read::Blob { id, hash, offset }).ok();
        }
    }

    fn scan(&mut self, id: u64, after: Arc<[u8]>) {
        if let Some(reads) = &self.reads {
            reads.send(Read::Page { id, after }).ok();
        }
    }

    fn next(&mut self) -> Option<EngineEvent> {
        self.events.try_recv().ok()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        (self.writes, self.reads) = (None, None);
        for thread in self.threads.drain(..) {
            // If it panicked there is nobody left to tell.
            thread.join().ok();
        }
    }
}

/// All that the store at `path` holds, with `puts` on top: for whoever looks at a node that does not
/// run. Cells come first; within a kind, keys ascend.
pub(crate) fn contents(
    path: &Path,
    puts: &[Put],
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<(), NodeError> {
    let engine = Embedded::open(path)?;
    for (keyspace, of_cells) in [(&engine.small, true), (&engine.large, false)] {
        let is_small = |key: &[u8]| key.first() == Some(&(Kind::Cell as u8));
        let here = puts.iter().filter(|put| is_small(&put.key) == of_cells);
        merge(keyspace, winners(here), &mut visit).map_err(engine.failed())?;
    }
    Ok(())
}

/// Of several writes to one key, the one that counts.
fn winners<'a>(puts: impl IntoIterator<Item = &'a Put>) -> BTreeMap<&'a [u8], &'a Put> {
    let mut winners: BTreeMap<&[u8], &Put> = BTreeMap::new();
    for put in puts {
        if winners.get(&*put.key).is_none_or(|winner| put.beats(&winner.value)) {
            winners.insert(&put.key, put);
        }
    }
    winners
}

fn merge(
    keyspace: &Keyspace,
    mut on_top: BTreeMap<&[u8], &Put>,
    visit: &mut impl FnMut(&[u8], &[u8]),
) -> fjall::Result<()> {
    for pair in keyspace.iter() {
        let (key, value) = pair.into_inner()?;
        while let Some(next) = on_top.first_entry().filter(|next| **next.key() < *key) {
            visit(next.key(), &next.get().value);
            next.remove();
        }
        match on_top.remove(&*key) {
            Some(put) if put.beats(&value) => visit(&key, &put.value),
            Some(_) | None => visit(&key, &value),
        }
    }
    on_top.into_iter().for_each(|(key, put)| visit(key, &put.value));
    Ok(())
}

fn thread(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, NodeError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| NodeError::Thread { name, source })
}

fn tell(done: &Sender<EngineEvent>, wake: &dyn Wake, result: Result<EngineEvent, NodeError>) {
    // Nobody listens any more when the node is on its way out.
    done.send(result.unwrap_or_else(EngineEvent::Failed)).ok();
    wake.wake();
}

impl Embedded {
    fn open(path: &Path) -> Result<Self, NodeError> {
        let open = || {
            let database = Database::builder(path)
                .cache_size(STORE_CACHE_BYTES)
                .max_journaling_size(STORE_JOURNAL_BYTES)
                .manual_journal_persist(true)
                .worker_threads(1)
                .open()?;
            let options = || {
                KeyspaceCreateOptions::default()
                    .manual_journal_persist(true)
                    .max_memtable_size(STORE_BUFFER_BYTES)
            };
            let small = database.keyspace("cells", options)?;
            let apart = KvSeparationOptions::default().separation_threshold(STORE_APART_BYTES);
            let large =
                database.keyspace("values", || options().with_kv_separation(Some(apart)))?;
            Ok(Self { path: path.to_owned(), database, small, large })
        };
        open().map_err(NodeError::store(path))
    }

    fn synced(&self) -> fjall::Result<u64> {
        let found = self.small.get(SYNCED_KEY)?;
        Ok(found.and_then(|stored| parse_u64(&stored)).unwrap_or_default())
    }

    fn keyspace(&self, key: &[u8]) -> &Keyspace {
        if key.first() == Some(&(Kind::Cell as u8)) { &self.small } else { &self.large }
    }

    fn failed(&self) -> impl FnOnce(fjall::Error) -> NodeError {
        NodeError::store(&self.path)
    }

    fn write(&self, task: Write) -> Result<EngineEvent, NodeError> {
        match task {
            Write::Apply(puts) => {
                self.apply(&puts).map_err(self.failed())?;
                Ok(EngineEvent::Applied)
            }
            Write::Persist(upto) => {
                self.small.insert(SYNCED_KEY, upto.to_le_bytes()).map_err(self.failed())?;
                self.database.persist(PersistMode::SyncAll).map_err(self.failed())?;
                Ok(EngineEvent::Persisted(upto))
            }
        }
    }

    fn apply(&self, puts: &[Put]) -> fjall::Result<()> {
        let mut batch = self.database.batch();
        for (key, put) in winners(puts) {
            let keyspace = self.keyspace(key);
            if put.rule == Rule::Newer
                && let Some(current) = keyspace.get(key)?
                && !put.beats(&current)
            {
                continue;
            }
            batch.insert(keyspace, key, &*put.value);
        }
        batch.commit()
    }

    fn read(
        &self,
        task: Read,
        verified: &mut BTreeMap<[u8; 32], u64>,
    ) -> Result<EngineEvent, NodeError> {
        match task {
            Read::Value { id, key } => {
                let found = self.keyspace(&key).get(&*key).map_err(self.failed())?;
                Ok(EngineEvent::Value(id, found.map(|value| Arc::from(&*value))))
            }
            Read::Blob { id, hash, offset } => {
                let piece = self.blob(hash, offset, verified).map_err(self.failed())?;
                Ok(EngineEvent::Blob(id, piece))
            }
            Read::Page { id, after } => {
                let page = self.page(&after).map_err(self.failed())?;
                Ok(EngineEvent::Page(id, page))
            }
        }
    }

    /// What comes after a key. Cells are in a keyspace of their own; by key they stand between the
    /// kinds that are in the other.
    fn page(&self, after: &[u8]) -> fjall::Result<Page> {
        const CELLS: u8 = Kind::Cell as u8;
        let pieces = [
            (&self.large, &[][..], [CELLS]),
            (&self.small, &[CELLS], [CELLS + 1]),
            (&self.large, &[CELLS + 1], [u8::MAX]),
        ];
        let pieces = pieces.into_iter().filter(|(_, _, upto)| after < &upto[..]);
        Page::take(pieces.flat_map(|(keyspace, from, upto)| {
            let from = if after < from { Bound::Included(from) } else { Bound::Excluded(after) };
            keyspace.range::<&[u8], _>((from, Bound::Excluded(&upto[..]))).map(|pair| {
                let (key, value) = pair.into_inner()?;
                Ok((Arc::from(&*key), Arc::from(&*value)))
            })
        }))
    }

    /// A piece of a blob, which is whole: its BLAKE3 was compared.
    fn blob(
        &self,
        hash: [u8; 32],
        offset: u64,
        verified: &mut BTreeMap<[u8; 32], u64>,
    ) -> fjall::Result<Option<(u64, Arc<[u8]>)>> {
        let total = match verified.get(&hash) {
            Some(total) => *total,
            None => match self.verify(hash)? {
                Some(total) => *verified.entry(hash).or_insert(total),
                None => return Ok(None),
            },
        };
        if offset >= total {
            return Ok(Some((total, Arc::from([]))));
        }
        let (low, high) = (blob_key(&hash, 0), blob_key(&hash, offset));
        let Some(last) = self.large.range(&*low..=&*high).next_back() else { return Ok(None) };
        let (key, stored) = last.into_inner()?;
        let skip = blob_offset(&key)
            .and_then(|start| usize::try_from(offset.checked_sub(start)?).ok())
            .and_then(|skip| skip.checked_add(SEQ_BYTES));
        Ok(skip.and_then(|skip| stored.get(skip..)).map(|piece| (total, piece.into())))
    }

    fn verify(&self, hash: [u8; 32]) -> fjall::Result<Option<u64>> {
        let (mut hasher, mut next, mut total) = (blake3::Hasher::new(), 0u64, None);
        for piece in self.large.prefix(blob_prefix(&hash)) {
            let (key, stored) = piece.into_inner()?;
            let Some((len, bytes)) = parse_u64(&stored).zip(stored.get(SEQ_BYTES..)) else {
                return Ok(None);
            };
            if blob_offset(&key) != Some(next) || *total.get_or_insert(len) != len {
                return Ok(None);
            }
            hasher.update(bytes);
            next += bytes.len() as u64;
        }
        let whole = total == Some(next) && hasher.finalize().as_bytes() == &hash;
        Ok(total.filter(|_| whole))
    }
}
