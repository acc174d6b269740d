//! The hot thread: one loop over network, workers, requests and tasks, with one place to wait.

use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use halfmoon_channel::Doorbell;
use halfmoon_client::{Driver, MetaDirectory, Options};
use halfmoon_meta::{ClusterError, Durability, MetaStore, NodeEntry, cluster, nodes};
use halfmoon_protocol::intents::Owner;
use halfmoon_rdma::{Wire, wire};
use halfmoon_reactor::{Op, Reactor, ReactorError, SharedReactor, UserId};
use halfmoon_transport::{ExposeError, Memory, RegionId, Transport as _};
use halfmoon_wire::Role;

use crate::binaries::{Binaries, StoreError};
use crate::command::{Command, Commands};
use crate::config::Config;
use crate::describe::RunToDescribe;
use crate::gateway::{Context, DRAIN_FOR, Gateway, GatewayError};
use crate::hot::{Hot, Parts};
use crate::ids::Draw;
use crate::metrics::Metrics;
use crate::nursery::Nursery;
use crate::obey::obey;
use crate::scratch::Scratch;
use crate::show::{self, Constants, Network};
use crate::workers::{Expose, Workers};

/// Longest sleep: how late a stop is noticed when nothing happens.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Commands taken in one turn.
const COMMANDS_PER_TURN_MAX: usize = 256;
/// How long running roots may take to end when the engine is stopped. What has an Init and does not
/// end is taken over by another engine.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Why an engine did not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The metadata store refuses.
    #[error("the engine cannot use the metadata store: {0}")]
    Meta(#[from] ClusterError),
    /// The system gives no reactor, or it failed.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The data directory is not usable.
    #[error("the engine's data directory is not usable: {0}; choose another with --data-dir")]
    Data(#[from] StoreError),
    /// The gateway did not start.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The system gives no thread, event or memory.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// No memory for large values can be exposed.
    #[error(transparent)]
    Expose(#[from] ExposeError),
    /// The engine was silent for too long: another has its roots. Start it again.
    #[error("this engine was taken out of the log, another one has its roots; start it again")]
    Evicted,
    /// The log lacks what this engine has seen of it, or breaks its own rules. What it holds in
    /// memory is worth nothing then. Start it again.
    #[error("the log is not the one that this engine has seen before; start it again")]
    Broken,
}

type Lanes = Driver<Wire, MetaDirectory>;

/// Runs an engine until `stop` is set: then it takes no more requests, gives running roots a while
/// to end, and returns.
pub fn run(config: Config, stop: Arc<AtomicBool>) -> Result<(), RunError> {
    let mut node = Node::start(config)?;
    tracing::info!(
        http = %node.entry.address,
        incarnation = node.hot.me.incarnation.0,
        "engine started"
    );
    let outcome = node.serve(&stop);
    node.end();
    outcome
}

struct Node {
    config: Config,
    reactor: SharedReactor,
    bell: Bell,
    driver: Lanes,
    hot: Rc<Hot>,
    commands: Arc<Commands>,
    gateway: Option<Gateway>,
    entry: NodeEntry,
    constants: Constants,
    began: Instant,
    published: bool,
    /// Which of the driver's lanes the metrics show.
    lanes_shown: u64,
}

/// The workers' doorbell, watched by the reactor.
struct Bell {
    doorbell: Doorbell,
    watched: Arc<std::os::fd::OwnedFd>,
    user: UserId,
}

impl Bell {
    fn new(doorbell: Doorbell, reactor: &SharedReactor) -> Result<Self, RunError> {
        let watched = doorbell.as_fd().try_clone_to_owned();
        let watched = Arc::new(watched.map_err(system("watch the workers' doorbell"))?);
        let user = reactor.borrow_mut().register();
        let bell = Self { doorbell, watched, user };
        bell.watch(reactor);
        Ok(bell)
    }

    fn watch(&self, reactor: &SharedReactor) {
        reactor.borrow_mut().start(self.user, 0, Op::Readable(Arc::clone(&self.watched)));
    }

    /// Takes the rings there are, and watches for the next.
    fn answer(&self, reactor: &SharedReactor) {
        let rung = reactor.borrow_mut().take(self.user);
        if rung.is_some() {
            self.doorbell.drain();
            self.watch(reactor);
        }
    }
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

struct Exposed<'a>(&'a mut Lanes);

impl Expose for Exposed<'_> {
    fn expose(&mut self, memory: Arc<dyn Memory>) -> Result<RegionId, ExposeError> {
        self.0.expose(memory)
    }

    fn withdraw(&mut self, region: RegionId) {
        self.0.withdraw(region);
    }
}

/// As `status` says it.
const fn named(durability: Durability) -> &'static str {
    match durability {
        Durability::Flush => "flush",
        Durability::MemoryQuorum => "memory-quorum",
    }
}

impl Node {
    fn start(config: Config) -> Result<Self, RunError> {
        let reactor = Reactor::shared(config.reactor)?;
        let waker = reactor.borrow().waker();
        let info = cluster::read(&*config.meta)?;
        let incarnation = nodes::next_incarnation(&*config.meta, config.node)?;
        let binaries = Binaries::open(&config.data_dir)?;
        let metrics = Arc::new(Metrics::default());
        let draw = Arc::new(Draw::new().map_err(system("read random numbers"))?);
        let meta: Arc<dyn MetaStore> = Arc::clone(&config.meta);
        let directory =
            MetaDirectory::new(meta, waker.clone()).map_err(system("start a thread"))?;
        let options = Options::new(info.id(), Role::Engine, config.node, incarnation);
        let transport = wire(reactor.clone(), config.transport);
        let mut driver = Driver::new(transport, directory, &options, 0);
        let doorbell = Doorbell::new().map_err(system("make the workers' doorbell"))?;
        let wake = waker.clone();
        let nursery = Nursery::start(binaries.clone(), move || wake.wake())
            .map_err(system("start the thread that starts workers"))?;
        let memory = Scratch::memory();
        let region = driver.expose(memory.clone())?;
        let workers = Workers::new(
            config.pool,
            Box::new(nursery),
            doorbell.clone(),
            binaries.clone(),
            Arc::clone(&metrics),
        );
        let hot = Hot::new(Parts {
            me: Owner { engine: config.node, incarnation },
            executor: driver.executor(),
            log: driver.log(),
            state: driver.state(),
            workers,
            scratch: Scratch::new(memory, region),
            metrics: Arc::clone(&metrics),
            draw: Arc::clone(&draw),
        });
        hot.fold();
        let commands = Commands::new(move || waker.wake());
        let context = Context {
            commands: Arc::clone(&commands),
            metrics,
            draw,
            scratch: binaries.scratch().to_owned(),
            describe: Arc::new(RunToDescribe),
        };
        let gateway = Gateway::start(config.http, context)?;
        let http = config.advertise.unwrap_or(gateway.address());
        let mut entry = NodeEntry::new(Role::Engine, config.node, incarnation, http);
        entry.gateway = Some(http);
        let backend = format!("{:?}", reactor.borrow().backend()).to_lowercase();
        let constants = Constants { durability: named(info.durability), backend };
        let bell = Bell::new(doorbell, &reactor)?;
        Ok(Self {
            config,
            reactor,
            bell,
            driver,
            hot,
            commands,
            gateway: Some(gateway),
            entry,
            constants,
            began: Instant::now(),
            published: false,
            lanes_shown: 0,
        })
    }

    fn serve(&mut self, stop: &AtomicBool) -> Result<(), RunError> {
        self.hot.stay_fresh();
        let mut until: Option<Instant> = None;
        loop {
            if stop.load(Ordering::Relaxed) && until.is_none() {
                tracing::info!("stopping: no more requests are taken");
                until = Some(Instant::now() + STOP_WITHIN);
                self.hot.stopping.set(true);
                self.commands.set_ready(false);
                if let Some(gateway) = &self.gateway {
                    gateway.close();
                }
            }
            if let Some(until) = until
                && (self.is_quiet() || Instant::now() >= until)
            {
                return Ok(());
            }
            self.turn()?;
            if self.hot.log.is_evicted() {
                return Err(RunError::Evicted);
            }
            if self.hot.log.is_broken() {
                return Err(RunError::Broken);
            }
        }
    }

    fn turn(&mut self) -> Result<(), RunError> {
        let now = self.began.elapsed();
        self.hot.workers.turn(now);
        for _ in 0..COMMANDS_PER_TURN_MAX {
            match self.commands.pop() {
                Some(command) => self.obey(command),
                None => break,
            }
        }
        self.hot.log.set_safe_point(self.hot.least_floor());
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let pace = self.driver.turn(now_ns);
        if self.hot.caught_up.get() && !self.hot.stopping.get() {
            self.publish()?;
            self.hot.adopt();
        }
        for version in self.hot.workers.act(&mut Exposed(&mut self.driver)) {
            self.hot.executor.spawn(Rc::clone(&self.hot).fetch(version)).map(drop).ok();
        }
        self.gauges();
        let busy = pace.busy || self.hot.executor.has_ready();
        let sleep = if busy || !self.hot.workers.prepare_sleep() {
            Duration::ZERO
        } else {
            let at = pace.wake_at_ns.map_or(SLEEP_MAX, |at| {
                Duration::from_nanos(at).saturating_sub(self.began.elapsed())
            });
            at.min(SLEEP_MAX)
        };
        self.reactor.borrow_mut().wait(sleep)?;
        self.hot.workers.awake();
        self.bell.answer(&self.reactor);
        Ok(())
    }

    fn gauges(&mut self) {
        let traffic = self.driver.endpoint_mut().transport().traffic();
        self.config.traffic.note(traffic);
        let metrics = &self.hot.metrics;
        let unfinished = self.hot.roots.borrow().len() as u64;
        metrics.roots_unfinished.store(unfinished, Ordering::Relaxed);
        metrics.applied_seqnum.store(self.hot.log.applied().0, Ordering::Relaxed);
        let (places, most) = self.hot.log.places();
        metrics.log_places.store(places, Ordering::Relaxed);
        metrics.log_places_max.store(most, Ordering::Relaxed);
        if self.lanes_shown != self.driver.lanes_version() {
            self.lanes_shown = self.driver.lanes_version();
            metrics.set_lanes(self.driver.lanes());
        }
        metrics.lanes_tcp.store(traffic.tcp.lanes, Ordering::Relaxed);
        metrics.lanes_rdma.store(traffic.rdma.lanes, Ordering::Relaxed);
        metrics.lane_bytes_tcp_total.store(traffic.tcp.bytes, Ordering::Relaxed);
        metrics.lane_bytes_rdma_total.store(traffic.rdma.bytes, Ordering::Relaxed);
    }

    /// Tells where the gateway is, once. Blocks for a moment, before the first request.
    fn publish(&mut self) -> Result<(), RunError> {
        if !self.published {
            nodes::publish(&*self.config.meta, &self.entry)?;
            self.published = true;
            self.commands.set_ready(true);
            tracing::info!(applied = self.hot.log.applied().0, "engine ready");
        }
        Ok(())
    }

    /// No root runs here; what is parked is left to others.
    fn is_quiet(&self) -> bool {
        let roots = self.hot.roots.borrow();
        roots.values().all(|root| root.parked.borrow().is_some())
    }

    fn obey(&mut self, command: Command) {
        let Self { hot, driver, constants, .. } = self;
        obey(hot, command, |what| {
            let traffic = driver.endpoint_mut().transport().traffic();
            let network = Network { traffic, lanes: driver.lanes() };
            show::show(hot, what, constants, &network)
        });
    }

    fn end(mut self) {
        if let Err(error) = nodes::withdraw(&*self.config.meta, &self.entry) {
            tracing::warn!(%error, "the engine's address stays in the metadata store");
        }
        self.hot.workers.stop();
        self.driver.close();
        // Tasks hold what they share with each other; without them all of it goes.
        self.hot.executor.clear();
        self.hot.roots.borrow_mut().clear();
        if let Some(gateway) = self.gateway.take() {
            gateway.stop(DRAIN_FOR);
        }
    }
}
