//! An engine: the client of log and state store, and the tasks that use it.

use std::cell::RefCell;
use std::rc::Rc;

use halfmoon_client::{Directory, Driver, Executor, Log, Options, Places, State, look_up};
use halfmoon_meta::nodes;
use halfmoon_wire::{Incarnation, NodeId, Role as WireRole, SeqNum};

use super::{CLUSTER, Env, Machine, Turned};
use crate::check::log::History;
use crate::net::{Host, SimTransport};
use crate::random::{Concern, Random};
use crate::time::{Clock, MICRO, MILLI, SECOND};

/// Duration of a look-up in the metadata store, in ns: least and most.
const LOOK_UP_NS: (u64, u64) = (100 * MICRO, 3 * MILLI);

/// Longest sleep, in ns.
const SLEEP_NS: u64 = SECOND;

/// What the tasks of an engine are: started with every life of it.
pub(crate) trait Work {
    /// Starts the tasks of a life, which shows what it applies to the history.
    fn begin(&self, life: &LifeOf);

    /// What was begun is brought to its end, and nothing more is begun.
    fn stop(&self);

    /// What has not ended.
    fn running(&self) -> usize;

    /// Has a look at what is left, through this life.
    fn verify(&self, life: &LifeOf);

    /// Whether that was done.
    fn is_verified(&self) -> bool;

    /// The log, as everybody has seen it.
    fn history(&self) -> Rc<RefCell<History>>;

    /// Function instances that have ended.
    fn instances(&self) -> u64 {
        0
    }

    /// Operations on the state store by themselves.
    fn operations(&self) -> u64 {
        0
    }
}

/// One life of an engine, as its tasks use it.
#[derive(Clone)]
pub(crate) struct LifeOf {
    /// Which engine, from 0.
    pub(crate) number: usize,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) executor: Executor,
    pub(crate) log: Log,
    pub(crate) state: State,
}

pub(crate) struct EngineHost {
    env: Env,
    machine: usize,
    number: usize,
    node: NodeId,
    host: Host,
    clock: Clock,
    work: Rc<dyn Work>,
    life: Option<(Driver<SimTransport, SimDirectory>, LifeOf)>,
    lives: u64,
}

impl EngineHost {
    pub(crate) fn new(
        env: Env,
        (machine, number): (usize, usize),
        node: NodeId,
        host: Host,
        clock: Clock,
        work: Rc<dyn Work>,
    ) -> Self {
        Self { env, machine, number, node, host, clock, work, life: None, lives: 0 }
    }

    /// How far it has applied the log; `None` when it is down.
    pub(crate) fn applied(&self) -> Option<SeqNum> {
        self.life.as_ref().map(|(_, life)| life.log.applied())
    }

    /// Has a look at what is left.
    pub(crate) fn verify(&self) {
        if let Some((_, life)) = &self.life {
            self.work.verify(life);
        }
    }

    fn begin(&mut self) -> Option<(Driver<SimTransport, SimDirectory>, LifeOf)> {
        let env = &self.env;
        let incarnation = nodes::next_incarnation(&env.meta, self.node).ok()?;
        let mut options = Options::new(CLUSTER, WireRole::Engine, self.node, incarnation);
        options.seed ^= env.seed;
        let directory = SimDirectory::new(env.clone(), self.machine, incarnation);
        let transport = env.transport(self.machine, self.host);
        let now_ns = self.clock.local(env.now());
        let driver = Driver::new(transport, directory, &options, now_ns);
        let life = LifeOf {
            number: self.number,
            node: self.node,
            incarnation,
            executor: driver.executor(),
            log: driver.log(),
            state: driver.state(),
        };
        self.work.begin(&life);
        Some((driver, life))
    }
}

impl Machine for EngineHost {
    fn host(&self) -> Host {
        self.host
    }

    fn is_up(&self) -> bool {
        self.life.is_some()
    }

    fn start(&mut self) -> bool {
        self.life = None;
        self.life = self.begin();
        self.lives += u64::from(self.life.is_some());
        self.life.is_some()
    }

    fn turn(&mut self) -> Turned {
        let now = self.env.now();
        let Some((driver, life)) = &mut self.life else { return Turned::Died };
        let pace = driver.turn(self.clock.local(now));
        if life.log.is_evicted() {
            self.life = None;
            return Turned::Died;
        }
        let until = pace
            .wake_at_ns
            .map_or(now + SLEEP_NS, |at| self.clock.global(at).clamp(now + 1, now + SLEEP_NS));
        Turned::Until(if pace.busy { now } else { until })
    }

    fn crash(&mut self, _power: bool) {
        self.life = None;
    }
}

/// The metadata store as an engine's directory: answers a little later.
pub(crate) struct SimDirectory {
    env: Env,
    machine: usize,
    random: Random,
    due: Option<u64>,
}

impl SimDirectory {
    fn new(env: Env, machine: usize, incarnation: Incarnation) -> Self {
        let salt = (machine as u64) << 32 | incarnation.0;
        let random = Random::new(env.seed, Concern::Meta, salt);
        Self { env, machine, random, due: None }
    }
}

impl Directory for SimDirectory {
    fn ask(&mut self) {
        if self.due.is_none() {
            let (low, high) = LOOK_UP_NS;
            let at = self.env.now() + self.random.within(low, high);
            self.env.shared.wake(at, self.machine);
            self.due = Some(at);
        }
    }

    fn poll(&mut self) -> Option<Places> {
        self.due.take_if(|at| *at <= self.env.shared.now())?;
        look_up(&self.env.meta).ok()
    }
}
