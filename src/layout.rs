//! Where a cluster on one machine keeps its things, and who its nodes are.

use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use halfmoon_meta::{ClusterError, Durability, MemberSet, MetaStore, cluster, disks, nodes};
use halfmoon_wire::{NodeId, Role};

/// The storage nodes that a cluster on one machine is founded with.
pub(crate) const STORAGE: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// Its first sequencer; those that stand by follow.
pub(crate) const SEQUENCER: NodeId = NodeId(10);
/// Its first engine; the others follow.
pub(crate) const FIRST_ENGINE: u32 = 21;

/// Numbers of further storage nodes: all that there are between the others and beyond them.
fn further_storage() -> impl Iterator<Item = NodeId> {
    (4..SEQUENCER.0).chain(101..).map(NodeId)
}

/// The file that says where the metadata lies when it does not lie in `meta/`.
const META_ELSEWHERE: &str = "meta-at";

/// A data directory: `meta/`, and one directory a node.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Opens `root`, or what is usual for this user.
    pub(crate) fn new(root: Option<PathBuf>) -> anyhow::Result<Self> {
        let root = match root {
            Some(root) => root,
            None => default_root()?,
        };
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Address of the metadata store: a directory in this one, unless a file says otherwise.
    pub(crate) fn meta(&self) -> anyhow::Result<String> {
        let elsewhere = self.root.join(META_ELSEWHERE);
        match std::fs::read_to_string(&elsewhere) {
            Ok(address) => return Ok(address.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", elsewhere.display()));
            }
        }
        let inside = self.root.join("meta").into_os_string().into_string();
        inside.ok().context("the name of the data directory is no UTF-8; choose another")
    }

    /// Notes that the metadata lies at `address`, before there is any.
    fn meta_lies_at(&self, address: &str) -> anyhow::Result<()> {
        let known = self.meta()?;
        if known == address {
            return Ok(());
        }
        let elsewhere = self.root.join(META_ELSEWHERE);
        anyhow::ensure!(
            !elsewhere.exists() && !self.root.join("meta").exists(),
            "the cluster in {} keeps its metadata at {known}; leave --meta out, or choose another \
             directory with --data-dir",
            self.root.display()
        );
        std::fs::write(&elsewhere, format!("{address}\n"))
            .with_context(|| format!("cannot write {}", elsewhere.display()))
    }

    pub(crate) fn node(&self, role: &str, node: NodeId) -> PathBuf {
        self.root.join(format!("{role}-{node}"))
    }

    /// Makes the directories and founds the cluster, unless that was done before. Nobody else runs a
    /// cluster there as long as the result lives.
    pub(crate) fn found(
        &self,
        durability: Durability,
        meta: Option<&str>,
    ) -> anyhow::Result<Founded> {
        let unusable =
            |what| format!("cannot {what} {}; choose another with --data-dir", self.root.display());
        std::fs::create_dir_all(&self.root).with_context(|| unusable("make the data directory"))?;
        let lock = File::create(self.root.join("lock"))
            .with_context(|| unusable("write to the data directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another cluster runs in {}; stop it, or give this one another directory with --data-dir",
                self.root.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| unusable("lock the data directory"));
            }
        }
        if let Some(address) = meta {
            self.meta_lies_at(address)?;
        }
        let store = halfmoon_meta::open(&self.meta()?)?;
        match cluster::read(&*store) {
            Ok(_) => {}
            Err(ClusterError::NoCluster) => {
                cluster::create(&*store, cluster::random_id()?, durability, &STORAGE)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Founded { meta: store, _lock: lock })
    }

    /// The storage nodes that are to run here: all that have a part in the log, and `spares` more. One
    /// that somebody else runs, from another directory, is not among them.
    pub(crate) fn storage_nodes(
        &self,
        meta: &dyn MetaStore,
        spares: u32,
    ) -> Result<Vec<NodeId>, ClusterError> {
        let info = cluster::read(meta)?;
        let used = disks::list(meta)?;
        let published: Vec<NodeId> = nodes::list(meta)?
            .into_iter()
            .filter(|entry| entry.role() == Role::Storage)
            .map(|entry| entry.node())
            .collect();
        let is_here =
            |node: &NodeId| self.node("storage", *node).is_dir() || !published.contains(node);
        let mut all: Vec<NodeId> =
            info.recovery_sets().flat_map(MemberSet::nodes).filter(is_here).collect();
        let is_fresh = |node: &NodeId| !info.has_part(*node) && !used.contains(node);
        let fresh = further_storage().filter(is_fresh).filter(is_here);
        all.extend(fresh.take(spares as usize));
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Opens the metadata of a cluster that is there.
    pub(crate) fn open(&self) -> anyhow::Result<Arc<dyn MetaStore>> {
        anyhow::ensure!(
            self.root.join("meta").is_dir() || self.root.join(META_ELSEWHERE).exists(),
            "there is no cluster in {}; start one with `halfmoon dev`, or name a server with --server",
            self.root.display()
        );
        Ok(halfmoon_meta::open(&self.meta()?)?)
    }
}

/// A data directory that is this process's alone.
pub(crate) struct Founded {
    pub(crate) meta: Arc<dyn MetaStore>,
    _lock: File,
}

/// Where the engines of a cluster on one machine serve HTTP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EnginePorts {
    /// Of the first engine, the others follow; 0: any.
    first: u16,
    engines: u16,
}

impl EnginePorts {
    pub(crate) fn new(first: u16, engines: u32) -> anyhow::Result<Self> {
        let engines = u16::try_from(engines)?;
        anyhow::ensure!(
            first.checked_add(engines).is_some(),
            "the engines' ports do not fit below 65536; choose a lower --port"
        );
        Ok(Self { first, engines })
    }

    /// The engines, and where each listens.
    pub(crate) fn engines(self) -> impl Iterator<Item = (NodeId, SocketAddr)> {
        (0..self.engines).map(move |index| {
            let port = if self.first == 0 { 0 } else { self.first + index };
            (engine(u32::from(index)), SocketAddr::from(([127, 0, 0, 1], port)))
        })
    }

    /// Sees that nobody else listens there: better said at once than found out by every engine.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        for (_, address) in self.engines() {
            TcpListener::bind(address).with_context(|| {
                format!(
                    "cannot serve HTTP on {address}; stop what listens there, or choose another \
                     port with --port (0: any free one)"
                )
            })?;
        }
        Ok(())
    }
}

/// Engines by number.
pub(crate) const fn engine(index: u32) -> NodeId {
    NodeId(FIRST_ENGINE + index)
}

/// Sequencers that stand by, by number.
pub(crate) const fn standby(index: u32) -> NodeId {
    NodeId(SEQUENCER.0 + 1 + index)
}

fn default_root() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .context("neither XDG_DATA_HOME nor HOME is set; name a directory with --data-dir")?;
    Ok(base.join("halfmoon/dev"))
}
