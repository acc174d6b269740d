//! A storage node that is no member yet waits until it becomes one.
//!
//! It is published, so that it can be found, and answers who asks how it is. It promises nothing and
//! gives nothing: whatever it said would come from a disk that the cluster does not count on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use halfmoon_meta::{NodeEntry, cluster, disks, nodes};
use halfmoon_rdma::{Wire, wire};
use halfmoon_reactor::{Reactor, SharedReactor};
use halfmoon_transport::{Endpoint, EndpointOptions, Event, LaneId};
use halfmoon_wire::{Hello, Message, NodeStatus, Role as RoleKind};

use crate::home::Home;
use crate::limits::SLEEP_MAX;
use crate::run::reactor_options;
use crate::{Config, NodeError};

/// How often it is looked whether the node has become a member.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until the node is a member of the cluster; `false`: it was asked to stop before that.
///
/// # Errors
/// [`NodeError::NoMember`] when the node, or its directory, has stored something before: it was
/// replaced, and what it holds is of no use.
pub(crate) fn wait(config: &Config, stop: &AtomicBool) -> Result<bool, NodeError> {
    let (node, cluster) = (config.role.node, config.role.cluster);
    let meta = &*config.meta;
    if cluster::read(meta)?.has_part(node) {
        return Ok(true);
    }
    // Held while it waits: the directory is promised to this process.
    let home = Home::open(&config.role.data_dir)?;
    if home.identity(node, cluster)?.is_some() || disks::find(meta, node)?.is_some() {
        return Err(NodeError::NoMember { node });
    }
    let mut waiting = Waiting::start(config)?;
    nodes::publish(meta, &waiting.entry)?;
    tracing::info!(%node, address = %waiting.entry.address,
        "a spare: `halfmoon node replace OLD {node}` makes it a member, in place of another");
    let mut look_at = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        waiting.turn()?;
        if Instant::now() < look_at {
            continue;
        }
        look_at = Instant::now() + LOOK_EVERY;
        match cluster::read(meta) {
            Ok(info) if info.has_part(node) => {
                // Another process may bear the same number, and have been faster.
                if disks::find(meta, node)?.is_some() {
                    nodes::withdraw(meta, &waiting.entry)?;
                    return Err(NodeError::NoMember { node });
                }
                tracing::info!(%node, "no spare any more: a member");
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "metadata store; it is looked again"),
        }
    }
    if let Err(error) = nodes::withdraw(meta, &waiting.entry) {
        tracing::warn!(%error, "the address stays published");
    }
    Ok(false)
}

struct Waiting {
    reactor: SharedReactor,
    endpoint: Endpoint<Wire>,
    entry: NodeEntry,
    cluster: u128,
}

impl Waiting {
    fn start(config: &Config) -> Result<Self, NodeError> {
        let (node, cluster) = (config.role.node, config.role.cluster);
        let reactor = Reactor::shared(reactor_options(config))?;
        let incarnation = nodes::next_incarnation(&*config.meta, node)?;
        let hello = Hello { cluster, role: RoleKind::Storage, node, incarnation };
        let options = EndpointOptions::new(hello.to_bytes());
        let mut endpoint = Endpoint::new(wire(reactor.clone(), config.transport), options);
        let address = config.published(endpoint.listen(&config.listen)?)?;
        let entry = NodeEntry::new(RoleKind::Storage, node, incarnation, address);
        Ok(Self { reactor, endpoint, entry, cluster })
    }

    fn turn(&mut self) -> Result<(), NodeError> {
        let (mut asked, mut strangers) = (Vec::<LaneId>::new(), Vec::new());
        let cluster = self.cluster;
        let turn = self.endpoint.poll(&mut |event| match event {
            Event::Up { lane, hello, .. } => {
                if Hello::parse(hello).is_ok_and(|hello| hello.cluster != cluster) {
                    strangers.push(lane);
                }
            }
            Event::Message { lane, bytes } => {
                if matches!(Message::parse(bytes), Ok(Message::AskStatus)) {
                    asked.push(lane);
                }
            }
            Event::Down { .. } | Event::Written { .. } | Event::Room { .. } => {}
        });
        let status = Message::Status(NodeStatus::default());
        for lane in asked {
            // Who takes no answer has gone, or asks again.
            self.endpoint.send(lane, &[&status.to_bytes()]).ok();
        }
        for lane in strangers {
            self.endpoint.close(lane);
        }
        self.endpoint.flush();
        let sleep = if turn.more { Duration::ZERO } else { SLEEP_MAX };
        self.reactor.borrow_mut().wait(sleep)?;
        Ok(())
    }
}
