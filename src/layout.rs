//! Where a cluster on one machine keeps its things, and who its nodes are.

use std::path::{Path, PathBuf};

use anyhow::Context;
use halfmoon_meta::{Durability, FileStore, cluster};
use halfmoon_wire::NodeId;

/// Storage nodes of a cluster on one machine.
pub(crate) const STORAGE: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// Its sequencer.
pub(crate) const SEQUENCER: NodeId = NodeId(10);
/// Its first engine; the others follow.
pub(crate) const FIRST_ENGINE: u32 = 21;

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

    pub(crate) fn meta(&self) -> PathBuf {
        self.root.join("meta")
    }

    pub(crate) fn node(&self, role: &str, node: NodeId) -> PathBuf {
        self.root.join(format!("{role}-{node}"))
    }

    /// Makes the directories and founds the cluster, unless that was done before.
    pub(crate) fn found(&self, durability: Durability) -> anyhow::Result<FileStore> {
        std::fs::create_dir_all(&self.root).with_context(|| {
            format!(
                "cannot make the data directory {}; choose another with --data-dir",
                self.root.display()
            )
        })?;
        let store = FileStore::open(self.meta())?;
        match cluster::read(&store) {
            Ok(_) => {}
            Err(halfmoon_meta::ClusterError::NoCluster) => {
                cluster::create(&store, cluster::random_id()?, durability, &STORAGE)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(store)
    }

    /// Opens the metadata of a cluster that is there.
    pub(crate) fn open(&self) -> anyhow::Result<FileStore> {
        anyhow::ensure!(
            self.meta().is_dir(),
            "there is no cluster in {}; start one with `halfmoon dev`, or name a server with --server",
            self.root.display()
        );
        Ok(FileStore::open(self.meta())?)
    }
}

/// Engines by number.
pub(crate) const fn engine(index: u32) -> NodeId {
    NodeId(FIRST_ENGINE + index)
}

fn default_root() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .context("neither XDG_DATA_HOME nor HOME is set; name a directory with --data-dir")?;
    Ok(base.join("halfmoon/dev"))
}
