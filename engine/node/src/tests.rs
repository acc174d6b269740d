//! Roots, sessions and workers against a sequencer and storage nodes that do what a test tells
//! them, in virtual time. Workers are threads that run real functions over real channels; a thread
//! cannot be killed, so a killed one is cut off and left to itself.

mod effects;
mod fresh;
mod inherited;
mod keys;
mod outages;
mod status;
mod tables;
mod workers;

#[path = "../../client/tests/cluster/fake.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests of the client")]
#[expect(clippy::wildcard_enum_match_arm, reason = "shared with the tests of the client")]
mod fake;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use halfmoon::App;
use halfmoon_channel::{Doorbell, EngineSide};
use halfmoon_protocol::intents::Owner;
use halfmoon_transport::{ExposeError, Memory, RegionId};
use halfmoon_wire::{Incarnation, InstanceId, NodeId, SeqNum};
use tokio::sync::oneshot;

use crate::binaries::Binaries;
use crate::command::{
    Command, Consistency, DeployBinary, Document, Ended, Invoke, Invoked, RootStatus, Wait,
};
use crate::hot::{Hot, Parts};
use crate::ids::Draw;
use crate::manifest::{Manifest, Protocol, Version};
use crate::metrics::Metrics;
use crate::names::{DEFAULT_NAMESPACE, FunctionName};
use crate::nursery::{Care, Event, Label};
use crate::obey::obey;
use crate::pool::{PoolConfig, WorkerId};
use crate::scratch::Scratch;
use crate::workers::{Expose, Workers};
use fake::World;

/// A test that needs more rounds hangs.
const ROUNDS_MAX: usize = 200_000;
const BINARY: &[u8] = b"what every worker of a test runs";

/// An engine on its hot thread, without gateway and processes.
struct Engine {
    world: World,
    hot: Rc<Hot>,
    app: App,
    silent: Rc<Cell<bool>>,
    directory: tempfile::TempDir,
}

/// Starts workers as threads of this process.
struct Threads {
    app: App,
    binaries: Binaries,
    /// Workers from here on say nothing at all.
    silent: Rc<Cell<bool>>,
    events: (Sender<Event>, Receiver<Event>),
    /// The events of those that were killed come to nobody.
    killed: RefCell<BTreeSet<WorkerId>>,
}

/// Where a function waits for the test.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    open: bool,
    arrived: usize,
}

impl Gate {
    /// For functions: waits until it is open.
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.arrived += 1;
        while !state.open {
            state = changed.wait(state).unwrap();
        }
    }

    fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    fn arrived(&self) -> usize {
        self.0.0.lock().unwrap().arrived
    }
}

impl Care for Threads {
    fn spawn(&self, id: WorkerId, _path: PathBuf, side: &EngineSide, _label: Label) {
        let (events, app) = (self.events.0.clone(), self.app.clone());
        events.send(Event::Started { id, pid: 1 }).unwrap();
        if self.silent.get() {
            return;
        }
        let [memory, doorbell] = side.spawn_fds().map(|fd| fd.try_clone_to_owned().unwrap());
        std::thread::spawn(move || {
            halfmoon::testing::serve_in_process(&app, &memory, doorbell);
            events.send(Event::Exited { id, status: None }).ok();
        });
    }

    fn kill(&self, id: WorkerId) {
        if self.killed.borrow_mut().insert(id) {
            self.events.0.send(Event::Exited { id, status: None }).unwrap();
        }
    }

    fn store(&self, version: Version, binary: Vec<u8>) {
        let outcome = self.binaries.store(version, &binary);
        self.events.0.send(Event::Stored { version, outcome }).unwrap();
    }

    fn poll(&self) -> Option<Event> {
        self.events.1.try_recv().ok()
    }
}

struct Exposed<'a>(&'a mut World);

impl Expose for Exposed<'_> {
    fn expose(&mut self, memory: Arc<dyn Memory>) -> Result<RegionId, ExposeError> {
        self.0.driver.expose(memory)
    }

    fn withdraw(&mut self, region: RegionId) {
        self.0.driver.withdraw(region);
    }
}

/// What an engine of a test is like.
struct Setup {
    app: App,
    protocol: Option<Protocol>,
    pool: PoolConfig,
}

impl From<App> for Setup {
    fn from(app: App) -> Self {
        Self { app, protocol: None, pool: PoolConfig::for_cores(2) }
    }
}

impl Engine {
    /// An engine that has seen the end of the log, and has the functions of an app.
    fn new(setup: impl Into<Setup>) -> Self {
        let Setup { app, protocol, pool } = setup.into();
        let mut engine = Self::in_world(World::new(), app, pool, (fake::ENGINE, fake::LIFE));
        engine.catch_up();
        let manifest = Manifest::parse(engine.app.manifest().as_bytes()).unwrap();
        let (reply, deployed) = oneshot::channel();
        let deploy = DeployBinary {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            protocol,
            manifest,
            version: Version::of(BINARY),
            binary: BINARY.into(),
        };
        engine.obey(Command::Deploy(Box::new(deploy), reply));
        engine.answer(deployed).unwrap();
        engine
    }

    fn catch_up(&mut self) {
        self.until("the end of the log", |engine| engine.hot.caught_up.get());
    }

    fn in_world(
        mut world: World,
        app: App,
        pool: PoolConfig,
        (engine, incarnation): (NodeId, Incarnation),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let binaries = Binaries::open(directory.path()).unwrap();
        binaries.store(Version::of(BINARY), BINARY).unwrap();
        let silent = Rc::new(Cell::new(false));
        let care = Threads {
            app: app.clone(),
            binaries: binaries.clone(),
            silent: Rc::clone(&silent),
            events: channel(),
            killed: RefCell::default(),
        };
        let memory = Scratch::memory();
        let region = world.driver.expose(memory.clone()).unwrap();
        let (metrics, doorbell) = (Arc::new(Metrics::default()), Doorbell::new().unwrap());
        let hot = Hot::new(Parts {
            me: Owner { engine, incarnation },
            executor: world.driver.executor(),
            log: world.driver.log(),
            state: world.driver.state(),
            workers: Workers::new(pool, Box::new(care), doorbell, binaries, Arc::clone(&metrics)),
            scratch: Scratch::new(memory, region),
            metrics,
            draw: Arc::new(Draw::seeded([7; 32])),
        });
        hot.fold();
        hot.stay_fresh();
        Self { world, hot, app, silent, directory }
    }

    /// This engine is gone, without a word; another takes its place, in the same cluster.
    fn replaced_by(self, me: (NodeId, Incarnation)) -> Self {
        let Self { mut world, hot, app, directory, .. } = self;
        hot.executor.clear();
        hot.roots.borrow_mut().clear();
        drop((hot, directory));
        world.replace_engine(me);
        let mut engine = Self::in_world(world, app, PoolConfig::for_cores(2), me);
        engine.catch_up();
        engine
    }

    fn round(&mut self) {
        let Self { world, hot, .. } = self;
        hot.workers.turn(Duration::from_nanos(world.now_ns));
        hot.log.set_safe_point(hot.least_floor());
        world.round();
        if hot.caught_up.get() {
            hot.adopt();
        }
        for version in hot.workers.act(&mut Exposed(world)) {
            hot.executor.spawn(Rc::clone(hot).fetch(version)).unwrap();
        }
    }

    fn rounds(&mut self, count: usize) {
        (0..count).for_each(|_| self.round());
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if done(self) {
                return;
            }
            self.round();
        }
        panic!("it never came: {what}");
    }

    fn obey(&mut self, command: Command) {
        obey(&self.hot, command, |_: Document| serde_json::Value::Null);
    }

    /// What comes on `answer`, once it comes.
    fn answer<T>(&mut self, mut answer: oneshot::Receiver<T>) -> T {
        let mut got = None;
        self.until("an answer", |_| {
            got = answer.try_recv().ok();
            got.is_some()
        });
        got.unwrap()
    }

    fn invoke(&mut self, invoke: Invoke) -> oneshot::Receiver<Invoked> {
        let (reply, answer) = oneshot::channel();
        self.obey(Command::Invoke(Box::new(invoke), reply));
        answer
    }

    /// Asks for a root to be cancelled, and waits until the log has that.
    fn cancel(&mut self, id: InstanceId) {
        let (reply, asked) = oneshot::channel();
        self.obey(Command::Cancel(id, reply));
        self.answer(asked).unwrap();
    }

    fn resume(&mut self, id: InstanceId) {
        let (reply, resumed) = oneshot::channel();
        self.obey(Command::Resume(id, reply));
        assert!(self.answer(resumed), "it is parked here");
    }

    fn counted(&self, count: impl Fn(&Metrics) -> &AtomicU64) -> u64 {
        count(&self.hot.metrics).load(Ordering::Relaxed)
    }

    /// What keeps a running root from its end.
    fn trouble(&mut self, id: InstanceId) -> Option<String> {
        let RootStatus::Running { trouble, .. } = self.status(id) else { panic!() };
        trouble
    }

    fn status(&mut self, id: InstanceId) -> RootStatus {
        let (reply, answer) = oneshot::channel();
        self.obey(Command::Status(id, reply));
        self.answer(answer)
    }
}

/// A request of a client under a key.
fn keyed(function: &str, key: &str, input: &[u8]) -> Invoke {
    let function = FunctionName::parse(function, DEFAULT_NAMESPACE).unwrap();
    let id = halfmoon_protocol::ids::root(&function.to_string(), key.as_bytes());
    Invoke {
        id,
        keyed: true,
        function,
        input: input.to_vec(),
        consistency: Consistency::Sequential,
        cursor: SeqNum::ZERO,
        wait: Wait::Result,
        deadline: Instant::now() + Duration::from_secs(600),
    }
}

/// A request of a client that has no key.
fn unkeyed(function: &str, input: &[u8]) -> Invoke {
    Invoke { keyed: false, ..keyed(function, "drawn", input) }
}

fn returned(outcome: &Invoked) -> Option<&[u8]> {
    let Invoked::Ended { ended: Ended::Returned(result), .. } = outcome else { return None };
    Some(result)
}
