//! The embedded engine (fjall), written to by a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

/// Batches that may wait for the engine's thread; what does not fit waits with the caller.
const QUEUE_BATCHES: usize = 64;
/// The engine is flushed when so many bytes were written since.
const FLUSH_EVERY_BYTES: usize = 16 << 20;
/// Or when so long nothing was.
const FLUSH_WHEN_IDLE: Duration = Duration::from_millis(500);
/// Row with the position up to which everything is in the engine.
const POSITION_KEY: &[u8] = b"p";

/// Why the store cannot be opened, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StateOpenError {
    /// The embedded engine refuses.
    #[error("the state store in {} cannot be opened: {source}", path.display())]
    Engine {
        /// Its directory.
        path: PathBuf,
        /// What the engine said.
        source: fjall::Error,
    },
    /// No thread could be started.
    #[error("no thread for the state store: {0}")]
    Thread(std::io::Error),
    /// The engine could not write, and does not any more.
    #[error("the state store cannot write any more; its log line says why")]
    Stopped,
}

type Pairs = Vec<(Arc<[u8]>, Arc<[u8]>)>;

struct Batch {
    position: u64,
    pairs: Pairs,
}

#[derive(Default)]
struct Progress {
    written: AtomicU64,
    persisted: AtomicU64,
    failed: AtomicBool,
}

pub(super) struct Keeper {
    rows: Keyspace,
    next: Batch,
    /// A batch that found the queue full.
    refused: Option<Batch>,
    queue: Option<SyncSender<Batch>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn open(
        dir: &Path,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, StateOpenError> {
        let failed = |source| StateOpenError::Engine { path: dir.to_owned(), source };
        // The state log is what makes writes durable; the engine is flushed in bulk.
        let db = Database::builder(dir)
            .manual_journal_persist(true)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let rows = db.keyspace("state", KeyspaceCreateOptions::default).map_err(failed)?;
        let position = match rows.get(POSITION_KEY).map_err(failed)? {
            Some(bytes) => bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
            None => 0,
        };
        let progress = Arc::new(Progress {
            written: AtomicU64::new(position),
            persisted: AtomicU64::new(position),
            failed: AtomicBool::new(false),
        });
        let (queue, batches) = sync_channel(QUEUE_BATCHES);
        let writer =
            Writer { db, rows: rows.clone(), progress: Arc::clone(&progress), unflushed: 0 };
        let thread = std::thread::Builder::new()
            .name("state".into())
            .spawn(move || writer.run(&batches, &wake))
            .map_err(StateOpenError::Thread)?;
        let next = Batch { position, pairs: Vec::new() };
        let (queue, thread) = (Some(queue), Some(thread));
        Ok(Self { rows, next, refused: None, queue, progress, thread })
    }

    /// Queues a row for the engine.
    pub(super) fn add(&mut self, key: Arc<[u8]>, value: Arc<[u8]>) {
        self.next.pairs.push((key, value));
    }

    /// All up to here was added.
    pub(super) fn reach(&mut self, position: u64) {
        self.next.position = self.next.position.max(position);
    }

    /// Hands what was added to the engine's thread, as far as it has room.
    pub(super) fn hand_over(&mut self) -> Result<(), StateOpenError> {
        if self.progress.failed.load(Ordering::Acquire) {
            return Err(StateOpenError::Stopped);
        }
        let Some(queue) = &self.queue else { return Err(StateOpenError::Stopped) };
        if self.refused.is_none() && !self.next.pairs.is_empty() {
            let position = self.next.position;
            let empty = Batch { position, pairs: Vec::new() };
            self.refused = Some(std::mem::replace(&mut self.next, empty));
        }
        if let Some(batch) = self.refused.take() {
            match queue.try_send(batch) {
                Ok(()) => {}
                Err(TrySendError::Full(batch)) => self.refused = Some(batch),
                Err(TrySendError::Disconnected(_)) => return Err(StateOpenError::Stopped),
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Arc<[u8]>>, fjall::Error> {
        Ok(self.rows.get(key)?.map(|value| Arc::from(&*value)))
    }

    pub(super) fn written(&self) -> u64 {
        self.progress.written.load(Ordering::Acquire)
    }

    pub(super) fn persisted(&self) -> u64 {
        self.progress.persisted.load(Ordering::Acquire)
    }
}

impl Drop for Keeper {
    /// Waits for the thread, which writes what was handed over and flushes.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the state store's thread ended by a panic");
        }
    }
}

/// The engine's thread.
struct Writer {
    db: Database,
    rows: Keyspace,
    progress: Arc<Progress>,
    unflushed: usize,
}

impl Writer {
    fn run(mut self, batches: &Receiver<Batch>, wake: &impl Fn()) {
        loop {
            let outcome = match batches.recv_timeout(FLUSH_WHEN_IDLE) {
                Ok(batch) => self.write(batch),
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = outcome {
                tracing::error!(%error, "the state store cannot write; this node stops");
                self.progress.failed.store(true, Ordering::Release);
                wake();
                return;
            }
            wake();
        }
        if let Err(error) = self.flush() {
            tracing::error!(%error, "the state store could not flush at the end");
        }
    }

    fn write(&mut self, batch: Batch) -> fjall::Result<()> {
        let mut writes = self.db.batch();
        for (key, value) in &batch.pairs {
            self.unflushed += key.len() + value.len();
            writes.insert(&self.rows, &**key, &**value);
        }
        writes.insert(&self.rows, POSITION_KEY, batch.position.to_le_bytes());
        writes.commit()?;
        self.progress.written.store(batch.position, Ordering::Release);
        if self.unflushed >= FLUSH_EVERY_BYTES { self.flush() } else { Ok(()) }
    }

    /// Makes everything that was written survive a loss of power.
    fn flush(&mut self) -> fjall::Result<()> {
        let written = self.progress.written.load(Ordering::Acquire);
        if self.progress.persisted.load(Ordering::Acquire) < written {
            self.db.persist(PersistMode::SyncAll)?;
            self.unflushed = 0;
            self.progress.persisted.store(written, Ordering::Release);
        }
        Ok(())
    }
}
