//! The metadata store: which cluster this is, its members, epochs, incarnations and addresses.
//!
//! A small map from text keys to small values, changed only by compare-and-set. It is asked when a
//! node starts, dials or changes its part in the cluster, and never on the append path: calls
//! block, for milliseconds where the disk or the network is slow, so a hot thread leaves them to a
//! helper thread.
//!
//! [`MetaStore`] is the contract; [`FileStore`] keeps it for the processes of one machine, and
//! [`EtcdStore`] for those of a cluster. On it stand the typed parts: [`cluster`] (identity,
//! durability, members, epochs), [`nodes`] (incarnations and addresses) and [`disks`] (what storage
//! nodes have served from).
//!
//! | key | value |
//! |---|---|
//! | `cluster` | [`ClusterInfo`]: one value, so that an epoch is taken together with a view of the members |
//! | `disks/<node>` | the directory that a storage node has served from |
//! | `incarnations/<node>` | the last incarnation that was given out for the node |
//! | `nodes/<role>-<node>` | [`NodeEntry`]: where the node listens |

#![forbid(unsafe_code)]

pub mod cluster;
pub mod disks;
mod error;
mod etcd;
mod file;
pub mod nodes;
mod store;
mod typed;

pub use cluster::{ClusterInfo, Durability, EpochHolder, MemberSet};
pub use error::{CasError, ClusterError, MetaError};
pub use etcd::EtcdStore;
pub use file::FileStore;
pub use nodes::{NodeEntry, TransportKind};
pub use store::{
    ENTRIES_MAX, Entry, Expected, KEY_MAX_BYTES, MetaStore, Revision, VALUE_MAX_BYTES,
};

/// The metadata store at `address`: a directory, or `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`.
///
/// # Errors
/// When the address is none, or the directory is not usable. etcd is not asked yet.
pub fn open(address: &str) -> Result<std::sync::Arc<dyn MetaStore>, MetaError> {
    if address.starts_with(etcd::SCHEME) {
        return Ok(std::sync::Arc::new(EtcdStore::new(address)?));
    }
    Ok(std::sync::Arc::new(FileStore::open(address)?))
}
