//! A storage node: the role, on a simulated disk.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use halfmoon_meta::{ClusterError, NodeEntry, cluster, disks, nodes};
use halfmoon_storage::{NodeError, Role, RoleConfig};
use halfmoon_transport::{Endpoint, EndpointOptions};
use halfmoon_wire::{Hello, NodeId, Role as WireRole};

use super::{CLUSTER, Env, Machine, Turned, listen_at};
use crate::disk::{Drive, Registry, SimDisk};
use crate::meta::SimMeta;
use crate::net::{Host, SimTransport};
use crate::time::{Clock, MILLI};

/// Longest sleep, in ns, as of a node on a thread.
const SLEEP_NS: u64 = 50 * MILLI;

/// Bytes of a segment: the least, so that many are used.
const SEGMENT_BYTES: u64 = 512 << 10;

/// Bytes where an engine leaves large values.
const STAGING_BYTES: usize = 256 << 10;

const READS_BACK: &str = "what was flushed reads back after any crash";
const GOES_ON: &str = "a storage node stops only when a write fails";

pub(crate) struct StorageHost {
    env: Env,
    machine: usize,
    node: NodeId,
    host: Host,
    clock: Clock,
    drive: Drive,
    life: Option<Life>,
    /// The machine is lost, with its disk.
    is_gone: bool,
}

/// What the keeper of a node asks of the metadata store.
struct Known {
    meta: SimMeta,
    node: NodeId,
}

impl Registry for Known {
    fn find(&self, node: NodeId) -> Option<SocketAddr> {
        let found = nodes::find(&self.meta, WireRole::Storage, node).ok()?;
        found.map(|entry| entry.address)
    }

    fn mark_copied(&self) -> bool {
        cluster::mark_copied(&self.meta, self.node).is_ok()
    }
}

struct Life {
    role: Role<SimTransport, SimDisk>,
    entry: NodeEntry,
    is_published: bool,
}

impl StorageHost {
    pub(crate) fn new(
        env: Env,
        machine: usize,
        node: NodeId,
        host: Host,
        clock: Clock,
        drive: Drive,
    ) -> Self {
        Self { env, machine, node, host, clock, drive, life: None, is_gone: false }
    }

    pub(crate) fn drive(&self) -> &Drive {
        &self.drive
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.node
    }

    /// The machine is lost, with its disk: it never comes back.
    pub(crate) fn lose(&mut self) {
        self.crash(true);
        self.is_gone = true;
    }

    /// Whether its process may start: a node that is in no member set does not.
    pub(crate) fn may_start(&self) -> bool {
        // If the metadata store does not say, the node finds out itself.
        let has_part = || cluster::read(&self.env.meta).map(|info| info.has_part(self.node));
        !self.is_gone && has_part().unwrap_or(true)
    }

    fn config(&self) -> RoleConfig {
        RoleConfig {
            segment_bytes: SEGMENT_BYTES,
            state_segment_bytes: SEGMENT_BYTES,
            staging_bytes: STAGING_BYTES,
            ..RoleConfig::new(PathBuf::new(), self.node, CLUSTER)
        }
    }

    fn instant(&self) -> std::time::Instant {
        self.env.base + Duration::from_nanos(self.clock.local(self.env.now()))
    }

    fn open(&self) -> Option<Life> {
        let env = &self.env;
        let incarnation = nodes::next_incarnation(&env.meta, self.node).ok()?;
        let registry = Box::new(Known { meta: env.meta.clone(), node: self.node });
        let config = self.config();
        let ground = match self.drive.open(&config, registry) {
            Ok(ground) => ground,
            Err(error) => {
                env.judge.object(env.now(), READS_BACK, format!("node {}: {error}", self.node));
                return None;
            }
        };
        let role = WireRole::Storage;
        let hello = Hello { cluster: CLUSTER, role, node: self.node, incarnation };
        let transport = env.transport(self.machine, self.host);
        let endpoint = Endpoint::new(transport, EndpointOptions::new(hello.to_bytes()));
        let mut role = match Role::on(config, endpoint, ground, self.instant()) {
            Ok(role) => role,
            Err(error) => {
                env.judge.object(env.now(), READS_BACK, format!("node {}: {error}", self.node));
                return None;
            }
        };
        let address = role.endpoint_mut().listen(&listen_at(self.host)).ok()?.parse().ok()?;
        let entry = NodeEntry::new(WireRole::Storage, self.node, incarnation, address);
        Some(Life { role, entry, is_published: false })
    }
}

impl Life {
    /// Makes the directory the node's, asks whether its state is there, and tells where it listens.
    fn publish(&mut self, meta: &SimMeta) -> Result<(), ClusterError> {
        let node = self.entry.node();
        disks::claim(meta, node, self.role.log_name())?;
        self.role.set_has_state(cluster::read(meta)?.has_state(node));
        nodes::publish(meta, &self.entry)
    }
}

impl Machine for StorageHost {
    fn host(&self) -> Host {
        self.host
    }

    fn is_up(&self) -> bool {
        self.life.is_some()
    }

    fn start(&mut self) -> bool {
        self.life = self.open();
        self.life.is_some()
    }

    fn turn(&mut self) -> Turned {
        let (now, instant) = (self.env.now(), self.instant());
        let Some(life) = &mut self.life else { return Turned::Died };
        match life.role.turn(instant) {
            Ok(more) => {
                if !life.is_published && life.role.has_begun() {
                    life.is_published = life.publish(&self.env.meta).is_ok();
                }
                Turned::Until(if more { now } else { now + SLEEP_NS })
            }
            Err(error) => {
                if !matches!(error, NodeError::Flush { .. }) {
                    self.env.judge.object(now, GOES_ON, format!("node {}: {error}", self.node));
                }
                self.crash(false);
                Turned::Died
            }
        }
    }

    fn crash(&mut self, power: bool) {
        self.life = None;
        self.drive.crash(power);
    }
}
