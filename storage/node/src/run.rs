//! A storage node on a thread of its own: reactor, TCP, role.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use halfmoon_meta::{NodeEntry, cluster, disks, nodes};
use halfmoon_rdma::{Wire, wire};
use halfmoon_reactor::{Backend, Options, Reactor, SharedReactor};
use halfmoon_transport::{Endpoint, EndpointOptions, TrafficGauge, Transport as _};
use halfmoon_wire::{Hello, Role as RoleKind};

use crate::disk::ReactorDisk;
use crate::limits::{SLEEP_MAX, STOP_PATIENCE};
use crate::metrics::set;
use crate::scrub::Scrubber;
use crate::{Config, Metrics, NodeError, Role, spare};

/// Runs a storage node until `stop` is set (noticed within [`SLEEP_MAX`]) or it fails. It has
/// published its address once it serves. One that is no member, and has never stored anything, is
/// published at once and waits as a spare until it is a member.
pub fn run(config: Config, stop: &AtomicBool) -> Result<(), NodeError> {
    run_with(config, stop, |_| {})
}

/// Like [`run`]; `started` is given the counters.
pub fn run_with(
    config: Config,
    stop: &AtomicBool,
    started: impl FnOnce(Arc<Metrics>),
) -> Result<(), NodeError> {
    if !spare::wait(&config, stop)? {
        return Ok(());
    }
    let reactor = Reactor::shared(reactor_options(&config))?;
    let (node, id) = (config.role.node, config.role.cluster);
    let backend = reactor.borrow().backend().describe();
    tracing::info!(%node, backend, "storage node is starting");
    let incarnation = nodes::next_incarnation(&*config.meta, node)?;
    let hello = Hello { cluster: id, role: RoleKind::Storage, node, incarnation };
    let transport = wire(reactor.clone(), config.transport);
    let endpoint = Endpoint::new(transport, EndpointOptions::new(hello.to_bytes()));
    let disk = ReactorDisk::new(reactor.clone());
    let wake = Arc::new(reactor.borrow().waker());
    let mut role = Role::open(config.role.clone(), endpoint, disk, config.meta.clone(), wake)?;
    let uring = reactor.borrow().backend() == Backend::Uring;
    set(&role.metrics().io_uring, u64::from(uring));
    while !role.has_begun() {
        role.turn(Instant::now())?;
        reactor.borrow_mut().wait(SLEEP_MAX)?;
    }
    // Nobody has been answered yet. From here on this directory, and no other, is the node's.
    disks::claim(&*config.meta, node, role.log_name())?;
    // Asked only now: nobody who has claimed a disk is ever added again, to copy once more.
    role.set_has_state(cluster::read(&*config.meta)?.has_state(node));
    let address = config.published(role.endpoint_mut().listen(&config.listen)?)?;
    let entry = NodeEntry::new(RoleKind::Storage, node, incarnation, address);
    nodes::publish(&*config.meta, &entry)?;
    tracing::info!(%node, %address, "storage node serves");
    started(role.metrics());
    let scrubber = Scrubber::start(&config.role, config.scrub, role.metrics())?;
    while !stop.load(Ordering::Relaxed) {
        turn(&mut role, &reactor, &config.traffic)?;
        if let Some(damage) = scrubber.damage() {
            return Err(damage);
        }
    }
    drop(scrubber);
    finish(&mut role, &reactor, &config.traffic)?;
    // Its end is orderly either way; who dials the address finds nobody.
    if let Err(error) = nodes::withdraw(&*config.meta, &entry) {
        tracing::warn!(%error, "the address stays published");
    }
    tracing::info!(%node, "storage node has stopped");
    Ok(())
}

pub(crate) fn reactor_options(config: &Config) -> Options {
    Options { backend: config.no_uring.then_some(Backend::Poll), spin: config.spin }
}

fn turn(
    role: &mut Role<Wire, ReactorDisk>,
    reactor: &SharedReactor,
    traffic: &TrafficGauge,
) -> Result<(), NodeError> {
    let now = Instant::now();
    let more = role.turn(now)?;
    traffic.look(now, || role.endpoint_mut().transport().traffic());
    let sleep = if more { Duration::ZERO } else { SLEEP_MAX };
    reactor.borrow_mut().wait(sleep)?;
    Ok(())
}

/// Flushes what was accepted, and says on disk that it was.
fn finish(
    role: &mut Role<Wire, ReactorDisk>,
    reactor: &SharedReactor,
    traffic: &TrafficGauge,
) -> Result<(), NodeError> {
    let end = Instant::now() + STOP_PATIENCE;
    for marked in [false, true] {
        if marked {
            role.mark();
        }
        while !role.is_idle() && Instant::now() < end {
            turn(role, reactor, traffic)?;
        }
    }
    traffic.note(role.endpoint_mut().transport().traffic());
    Ok(())
}
