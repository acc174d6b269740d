//! A node's data directory: whose it is, that only one process uses it, and its segment files.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use halfmoon_log::{Batch, Log, LogConfig, LogId, Recovered, Run, Scan, SegmentId};
use halfmoon_wire::NodeId;
use rustix::fs::{Advice, fadvise};

use crate::NodeError;
use crate::ground::{Opened, Segment};
use crate::limits::{POOL_MAX, SCRUB_PIECE_BYTES};

/// Who a directory belongs to, and the names of its logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) cluster: u128,
    pub(crate) log: LogId,
    pub(crate) state: LogId,
    /// All of the state is here: it was from the start, or was copied.
    pub(crate) whole: bool,
}

/// A locked data directory.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
    /// Held as long as the node runs.
    _lock: Arc<File>,
}

/// The segment files of one log.
#[derive(Clone, Debug)]
pub(crate) struct SegmentDir {
    path: PathBuf,
    bytes: u64,
}

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

impl Home {
    /// Makes the directory if need be, and locks it.
    pub(crate) fn open(root: &Path) -> Result<Self, NodeError> {
        fs::create_dir_all(root).map_err(NodeError::directory("create", root))?;
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(NodeError::directory("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: Arc::new(lock) }),
            Err(TryLockError::WouldBlock) => Err(NodeError::Locked { path: root.to_owned() }),
            Err(TryLockError::Error(source)) => Err(NodeError::directory("lock", &path)(source)),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The identity, if the directory has one; it must be this node's.
    pub(crate) fn identity(
        &self,
        node: NodeId,
        cluster: u128,
    ) -> Result<Option<Identity>, NodeError> {
        let path = self.path("identity");
        let Some(found) = Identity::read(&path)? else { return Ok(None) };
        if (found.node, found.cluster) == (node, cluster) {
            return Ok(Some(found));
        }
        let name = |node: NodeId, cluster: u128| format!("node {node} of cluster {cluster:032x}");
        Err(NodeError::Identity {
            path,
            found: name(found.node, found.cluster),
            expected: name(node, cluster),
        })
    }

    /// Writes the identity, durably. From here on a directory without segments is damaged.
    pub(crate) fn set_identity(&self, identity: &Identity) -> Result<(), NodeError> {
        let (path, fresh) = (self.path("identity"), self.path("identity.new"));
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(identity.to_text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            sync_dir(&self.root)
        };
        write().map_err(NodeError::directory("write", &path))
    }
}

impl Identity {
    /// A new one, with logs named at random.
    pub(crate) fn draw(node: NodeId, cluster: u128) -> Result<Self, NodeError> {
        let id = halfmoon_meta::cluster::random_id()
            .map_err(|error| NodeError::Meta(error.into()))?
            .to_le_bytes();
        let [log, state] =
            [&id[..8], &id[8..]].map(|half| half.iter().fold(0, |id, b| id << 8 | u64::from(*b)));
        Ok(Self { node, cluster, log: LogId(log), state: LogId(state), whole: false })
    }

    /// What the file at `path` says; `None` when there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, NodeError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .map_err(|what| NodeError::IdentityDamaged { path: path.to_owned(), what }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NodeError::directory("read", path)(source)),
        }
    }

    fn to_text(self) -> String {
        let Self { node, cluster, log, state, whole } = self;
        let whole = if whole { "yes" } else { "no" };
        format!(
            "halfmoon storage 1\nnode {node}\ncluster {cluster:032x}\nlog {:016x}\nstate {:016x}\n\
             whole {whole}\n",
            log.0, state.0
        )
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines();
        if lines.next() != Some("halfmoon storage 1") {
            return Err("it does not begin with `halfmoon storage 1`");
        }
        let mut field =
            |name: &str| lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let log = |text: &str| u64::from_str_radix(text, 16).ok().map(LogId);
        Ok(Self {
            node: field("node").and_then(|text| text.parse().ok()).map(NodeId).ok_or("no node")?,
            cluster: field("cluster")
                .and_then(|text| u128::from_str_radix(text, 16).ok())
                .ok_or("no cluster")?,
            log: field("log").and_then(log).ok_or("no log")?,
            state: field("state").and_then(log).ok_or("no state log")?,
            whole: match field("whole") {
                Some("yes") => true,
                Some("no") => false,
                Some(_) | None => return Err("it does not say whether all of the state is here"),
            },
        })
    }
}

impl SegmentDir {
    pub(crate) fn open(path: PathBuf, bytes: u64) -> Result<Self, NodeError> {
        let pool = path.join("pool");
        fs::create_dir_all(&pool).map_err(NodeError::directory("create", &pool))?;
        Ok(Self { path, bytes })
    }

    /// Reads a log back; `visit` sees its batches in order. `known` says that the directory was
    /// complete once, so that no segment at all is a loss.
    pub(crate) fn recover(
        &self,
        config: LogConfig,
        known: bool,
        visit: impl FnMut(&Batch<'_>),
    ) -> Result<Opened<Arc<File>>, NodeError> {
        let (recovered, ids) = self.scan(config, known, visit)?;
        self.take_up(config, recovered, &ids)
    }

    /// As [`Self::recover`], but changes nothing: what the log amounts to, and its segments.
    pub(crate) fn scan(
        &self,
        config: LogConfig,
        known: bool,
        mut visit: impl FnMut(&Batch<'_>),
    ) -> Result<(Recovered, Vec<SegmentId>), NodeError> {
        let corrupt = |source| NodeError::Corrupt { path: self.path.clone(), source };
        let ids = self.list()?;
        let mut scan = Scan::new(config);
        let mut bytes = Vec::new();
        for id in &ids {
            let path = self.segment_path(*id);
            let mut read = || {
                let file = File::open(&path)?;
                // What an earlier life wrote and this one counts as flushed has to be.
                file.sync_data()?;
                let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
                bytes.resize(len, 0);
                file.read_exact_at(&mut bytes, 0)
            };
            read().map_err(NodeError::directory("read", &path))?;
            scan.segment(*id, &bytes, &mut visit).map_err(corrupt)?;
        }
        let recovered = scan.finish().map_err(corrupt)?;
        if known && recovered.is_empty() {
            return Err(corrupt(halfmoon_log::CorruptError {
                segment: SegmentId(1),
                offset: 0,
                what: "the directory was in use, and holds no segment".to_owned(),
            }));
        }
        Ok((recovered, ids))
    }

    /// Reads the log as it lies on the disk, whatever the page cache has of it, up to the batch with
    /// this number, which is durable. What lies behind it may change meanwhile. `rest` is told of
    /// every piece that was read; `false`: that is enough.
    pub(crate) fn scrub(
        &self,
        config: LogConfig,
        durable: u64,
        rest: impl Fn(usize) -> bool,
    ) -> Result<(), NodeError> {
        let corrupt = |source| NodeError::Corrupt { path: self.path.clone(), source };
        let mut scan = Scan::new(config);
        for id in self.list()? {
            let path = self.segment_path(id);
            let Some(bytes) =
                read_slowly(&path, &rest).map_err(NodeError::directory("read", &path))?
            else {
                return Ok(());
            };
            let seen = scan.segment(id, &bytes, |_| {});
            if scan.reached() >= durable {
                return Ok(());
            }
            seen.map_err(corrupt)?;
        }
        Err(corrupt(halfmoon_log::CorruptError {
            segment: scan.finish().map_err(corrupt)?.segment(),
            offset: 0,
            what: format!("batch {durable} was flushed, and is not here"),
        }))
    }

    /// The bytes of a run, as they lie in its segment.
    pub(crate) fn read_run(&self, run: &Run) -> Result<Vec<u8>, NodeError> {
        let path = self.segment_path(run.segment);
        let read = || {
            let mut bytes = vec![0; usize::try_from(run.bytes).map_err(io::Error::other)?];
            File::open(&path)?.read_exact_at(&mut bytes, run.offset)?;
            Ok(bytes)
        };
        read().map_err(NodeError::directory("read", &path))
    }

    /// The segments of a log that is there, whose files it leaves as they are.
    pub(crate) const fn look(path: PathBuf) -> Self {
        Self { path, bytes: 0 }
    }

    fn take_up(
        &self,
        config: LogConfig,
        recovered: Recovered,
        ids: &[SegmentId],
    ) -> Result<Opened<Arc<File>>, NodeError> {
        let current = recovered.segment();
        for unused in ids.iter().filter(|id| **id > current) {
            self.recycle(*unused)?;
        }
        let mut segments = Vec::new();
        for id in ids.iter().filter(|id| **id < current) {
            segments.push(self.open_segment(*id)?);
        }
        segments.push(self.prepare(current)?);
        Ok(Opened { log: Log::resume(config, recovered), segments })
    }

    /// Makes the file of a segment ready to be written: one that is there, a free one, or a new one
    /// full of zeros.
    pub(crate) fn prepare(&self, id: SegmentId) -> Result<Segment<Arc<File>>, NodeError> {
        let path = self.segment_path(id);
        if !path.exists() {
            let free = match self.free()?.pop() {
                Some(free) => free,
                None => self.fresh(id)?,
            };
            fs::rename(&free, &path)
                .and_then(|()| sync_dir(&self.path))
                .map_err(NodeError::directory("rename", &free))?;
        }
        self.open_segment(id)
    }

    /// Takes a segment's file out of the log and keeps it for later.
    pub(crate) fn recycle(&self, id: SegmentId) -> Result<(), NodeError> {
        let path = self.segment_path(id);
        let keep = self.free()?.len() < POOL_MAX;
        let done =
            if keep { fs::rename(&path, self.free_path(id)) } else { fs::remove_file(&path) };
        done.and_then(|()| sync_dir(&self.path)).map_err(NodeError::directory("recycle", &path))
    }

    fn open_segment(&self, id: SegmentId) -> Result<Segment<Arc<File>>, NodeError> {
        let path = self.segment_path(id);
        let (file, direct) = halfmoon_reactor::open_direct(&path, false)
            .map_err(NodeError::directory("open", &path))?;
        Ok(Segment { id, file: Arc::new(file), direct })
    }

    fn fresh(&self, id: SegmentId) -> Result<PathBuf, NodeError> {
        let path = self.path.join("pool").join("new");
        let write = || {
            let mut file = File::create(&path)?;
            let mut left = self.bytes;
            while left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                file.write_all(&ZEROS[..len])?;
                left -= len as u64;
            }
            file.sync_all()
        };
        write().map_err(|source| {
            // A file that is half written is of no use, and its room may be.
            fs::remove_file(&path).ok();
            NodeError::directory("write", &self.segment_path(id))(source)
        })?;
        Ok(path)
    }

    /// Free files of this log's segment size.
    fn free(&self) -> Result<Vec<PathBuf>, NodeError> {
        let pool = self.path.join("pool");
        let list = || {
            let mut free = Vec::new();
            for entry in fs::read_dir(&pool)? {
                let entry = entry?;
                let is_free = entry.path().extension().is_some_and(|ext| ext == "free");
                if is_free && entry.metadata()?.len() == self.bytes {
                    free.push(entry.path());
                }
            }
            Ok(free)
        };
        list().map_err(NodeError::directory("list", &pool))
    }

    fn list(&self) -> Result<Vec<SegmentId>, NodeError> {
        let list = || {
            let mut ids = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                let name = entry?.file_name();
                let id = name.to_str().and_then(|name| name.strip_suffix(".seg"));
                ids.extend(id.and_then(|id| u64::from_str_radix(id, 16).ok()).map(SegmentId));
            }
            ids.sort_unstable();
            Ok(ids)
        };
        list().map_err(NodeError::directory("list", &self.path))
    }

    fn segment_path(&self, id: SegmentId) -> PathBuf {
        self.path.join(format!("{:016x}.seg", id.0))
    }

    fn free_path(&self, id: SegmentId) -> PathBuf {
        self.path.join("pool").join(format!("{:016x}.free", id.0))
    }
}

/// A file, piece by piece from the disk; `None`: `rest` has had enough.
fn read_slowly(path: &Path, rest: impl Fn(usize) -> bool) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    let mut at = 0;
    for piece in bytes.chunks_mut(SCRUB_PIECE_BYTES) {
        file.read_exact_at(piece, at)?;
        at += piece.len() as u64;
        if !rest(piece.len()) {
            return Ok(None);
        }
    }
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(Some(bytes))
}

/// Makes the names in a directory durable.
fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
