//! Worker processes and their channels, on the hot thread.
//!
//! [`Pool`] decides, the nursery ([`Care`]) starts and buries, and this holds the channel of each worker.
//! A session has a worker by a [`Lease`]; a lease that ends in the middle of an invocation kills
//! the worker, so that what it still does reaches nobody.

mod lease;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use halfmoon_channel::{
    AllocError, Buffer, ChannelConfig, ChannelError, Doorbell, EngineSide, Inbox, Request,
};
use halfmoon_transport::{ExposeError, Memory, RegionId};
use halfmoon_wire::InstanceId;

use crate::binaries::Binaries;
use crate::manifest::Version;
use crate::metrics::{Metrics, count};
use crate::names::FunctionName;
use crate::nursery::{Care, Event, Label};
use crate::pool::{Action, Pool, PoolConfig, Refused, Ticket, Want, WorkerId};
use crate::sync::{Give, Notify, slot};

pub(crate) use lease::{Lease, Way};

/// State buffers that a function may hold on to after its end; beyond that its worker is replaced.
const HELD_MAX: usize = 64;

/// Makes memory known to peers.
pub(crate) trait Expose {
    fn expose(&mut self, memory: Arc<dyn Memory>) -> Result<RegionId, ExposeError>;
    fn withdraw(&mut self, region: RegionId);
}

/// How long a process may take from its start to its hello. Far longer than any that is sound
/// needs on a busy machine, as whoever waits for it waits so long.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// No worker was had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("its binary does not start: {0}")]
    DoesNotStart(String),
    #[error("{0}")]
    NoBinary(String),
    #[error("the engine is stopping")]
    Stopping,
}

/// The worker is lost, and the attempt with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum WorkerLost {
    #[error("the worker died: {0}")]
    Died(String),
    #[error("{0}")]
    Broke(String),
}

/// What a worker runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) function: FunctionName,
    pub(crate) instance: InstanceId,
}

/// For `status`.
pub(crate) struct Shown {
    pub(crate) pid: Option<u32>,
    pub(crate) version: Version,
    pub(crate) running: Option<Running>,
}

/// A state buffer, the region it lies in, and that region's memory.
pub(crate) type Lent = (Buffer, RegionId, Arc<dyn Memory>);

struct Live {
    side: EngineSide,
    region: Option<RegionId>,
    pid: Option<u32>,
    /// When it must have said hello, once its process runs.
    hello_by: Option<Duration>,
    version: Version,
    label: Label,
    notify: Rc<Notify>,
    running: Option<Running>,
    killed: bool,
    /// Its process is gone.
    exited: bool,
}

/// Where an invocation waits for a worker.
type GiveWorker = Give<Result<WorkerId, AcquireError>>;

/// All workers of an engine.
pub(crate) struct Workers {
    pool: RefCell<Pool>,
    live: RefCell<BTreeMap<WorkerId, Live>>,
    tickets: RefCell<BTreeMap<Ticket, (Version, GiveWorker)>>,
    /// Processes that wait for their binary.
    awaiting: RefCell<BTreeMap<Version, Vec<WorkerId>>>,
    deaths: RefCell<VecDeque<(WorkerId, String)>>,
    /// Processes that are gone and have left something to be heard: for one turn.
    last_words: RefCell<Vec<(WorkerId, String)>>,
    /// Why a binary did not start, the last time that it did not.
    start_errors: RefCell<BTreeMap<Version, AcquireError>>,
    withdrawn: RefCell<Vec<RegionId>>,
    inbox: RefCell<Inbox>,
    nursery: Box<dyn Care>,
    doorbell: Doorbell,
    binaries: Binaries,
    metrics: Arc<Metrics>,
    next_ticket: Cell<u64>,
    stopping: Cell<bool>,
    now: Cell<Duration>,
}

/// Deaths that are remembered, for sessions that have yet to notice.
const DEATHS_MAX: usize = 256;

impl Workers {
    pub(crate) fn new(
        config: PoolConfig,
        nursery: Box<dyn Care>,
        doorbell: Doorbell,
        binaries: Binaries,
        metrics: Arc<Metrics>,
    ) -> Rc<Self> {
        Rc::new(Self {
            pool: RefCell::new(Pool::new(config)),
            live: RefCell::default(),
            tickets: RefCell::default(),
            awaiting: RefCell::default(),
            deaths: RefCell::default(),
            last_words: RefCell::default(),
            start_errors: RefCell::default(),
            withdrawn: RefCell::default(),
            inbox: RefCell::new(Inbox::default()),
            nursery,
            doorbell,
            binaries,
            metrics,
            next_ticket: Cell::new(0),
            stopping: Cell::new(false),
            now: Cell::new(Duration::ZERO),
        })
    }

    /// Waits for a worker.
    pub(crate) async fn acquire(self: &Rc<Self>, want: Want) -> Result<Lease, AcquireError> {
        if self.stopping.get() {
            return Err(AcquireError::Stopping);
        }
        let ticket = Ticket(self.next_ticket.get());
        self.next_ticket.set(ticket.0 + 1);
        let (give, got) = slot();
        self.tickets.borrow_mut().insert(ticket, (want.version, give));
        let mut withdraw = Withdraw { workers: self, ticket: Some(ticket) };
        self.pool.borrow_mut().request(ticket, want)?;
        let id = got.await.unwrap_or(Err(AcquireError::Stopping))?;
        withdraw.ticket = None;
        Ok(Lease::new(Rc::clone(self), id))
    }

    /// Hands out workers from now on no more.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.tickets.borrow_mut().clear();
    }

    /// Carries out what the pool decided. Returns binaries that must be fetched.
    pub(crate) fn act(&self, lanes: &mut impl Expose) -> Vec<Version> {
        for region in self.withdrawn.borrow_mut().drain(..) {
            lanes.withdraw(region);
        }
        let mut wanted = Vec::new();
        loop {
            let action = self.pool.borrow_mut().poll_action();
            match action {
                None => break,
                Some(Action::Spawn(id, version)) => {
                    if let Err(error) = self.prepare(id, version, lanes, &mut wanted) {
                        self.not_started(id, version, AcquireError::DoesNotStart(error));
                    }
                }
                Some(Action::Assign(ticket, id)) => {
                    match self.tickets.borrow_mut().remove(&ticket) {
                        Some((_, give)) => give.give(Ok(id)),
                        None => self.pool.borrow_mut().released(id),
                    }
                }
                Some(Action::Stop(id)) => self.nursery.kill(id),
                Some(Action::Fail(ticket)) => self.fail(ticket),
            }
        }
        let pool = self.pool.borrow();
        let size = |count: usize| count as u64;
        self.metrics.workers.store(size(pool.len()), Ordering::Relaxed);
        self.metrics.workers_busy.store(size(pool.busy()), Ordering::Relaxed);
        self.metrics.queue_waiting.store(size(pool.waiting()), Ordering::Relaxed);
        wanted
    }

    fn fail(&self, ticket: Ticket) {
        let Some((version, give)) = self.tickets.borrow_mut().remove(&ticket) else { return };
        let why = self.start_errors.borrow().get(&version).cloned();
        give.give(Err(why.unwrap_or_else(|| AcquireError::DoesNotStart(String::new()))));
    }

    fn prepare(
        &self,
        id: WorkerId,
        version: Version,
        lanes: &mut impl Expose,
        wanted: &mut Vec<Version>,
    ) -> Result<(), String> {
        let side = EngineSide::create(&ChannelConfig::default(), &self.doorbell)
            .map_err(|error| format!("cannot make its shared memory: {error}"))?;
        let region = lanes.expose(side.region()).map_err(|error| error.to_string())?;
        let live = Live {
            side,
            region: Some(region),
            pid: None,
            hello_by: None,
            version,
            label: Label::default(),
            notify: Rc::default(),
            running: None,
            killed: false,
            exited: false,
        };
        self.live.borrow_mut().insert(id, live);
        match self.binaries.find(version) {
            Some(path) => self.spawn(id, path),
            None => {
                let mut awaiting = self.awaiting.borrow_mut();
                let waiting = awaiting.entry(version).or_default();
                if waiting.is_empty() {
                    wanted.push(version);
                }
                waiting.push(id);
            }
        }
        Ok(())
    }

    fn spawn(&self, id: WorkerId, path: PathBuf) {
        let live = self.live.borrow();
        let Some(worker) = live.get(&id) else { return };
        count(&self.metrics.workers_started_total);
        self.nursery.spawn(id, path, &worker.side, Arc::clone(&worker.label));
    }

    /// A binary was fetched, or cannot be.
    pub(crate) fn fetched(&self, version: Version, outcome: Result<Vec<u8>, AcquireError>) {
        match outcome {
            Ok(binary) => self.nursery.store(version, binary),
            Err(error) => {
                let waiting = self.awaiting.borrow_mut().remove(&version).unwrap_or_default();
                for id in waiting {
                    self.not_started(id, version, error.clone());
                }
            }
        }
    }

    fn not_started(&self, id: WorkerId, version: Version, error: AcquireError) {
        tracing::warn!(%version, %error, "a worker does not start");
        let why = error.to_string();
        self.start_errors.borrow_mut().insert(version, error);
        self.gone(id, why);
    }

    fn gone(&self, id: WorkerId, why: String) {
        if let Some(live) = self.live.borrow_mut().remove(&id) {
            self.withdrawn.borrow_mut().extend(live.region);
            let mut deaths = self.deaths.borrow_mut();
            deaths.push_back((id, why));
            if deaths.len() > DEATHS_MAX {
                deaths.pop_front();
            }
            live.notify.notify();
        }
        self.pool.borrow_mut().exited(id);
    }

    /// Takes note of what the nursery and the workers say. Cheap when they say nothing.
    pub(crate) fn turn(&self, now: Duration) {
        self.now.set(now);
        self.pool.borrow_mut().tick(now);
        for (id, why) in self.last_words.take() {
            self.gone(id, why);
        }
        while let Some(event) = self.nursery.poll() {
            self.event(event);
        }
        let mut broken = Vec::new();
        let mut greeted = Vec::new();
        let mut silent = Vec::new();
        for (id, live) in self.live.borrow_mut().iter_mut() {
            if live.killed {
                continue;
            }
            if !live.side.has_request() {
                if !live.side.is_greeted() && live.hello_by.is_some_and(|by| now >= by) {
                    silent.push((*id, live.version));
                }
                continue;
            }
            if live.side.is_busy() {
                live.notify.notify();
                continue;
            }
            match live.side.poll_request(&mut self.inbox.borrow_mut()) {
                Ok(Some(Request::Hello { sdk, .. })) => {
                    tracing::debug!(pid = live.pid, sdk, "a worker is up");
                    greeted.push(*id);
                }
                Ok(_) => {}
                Err(error) => broken.push((*id, error)),
            }
        }
        for id in greeted {
            self.pool.borrow_mut().ready(id);
        }
        for (id, error) in broken {
            self.broke(id, &error);
        }
        for (id, version) in silent {
            let why = format!("it said no hello within {} s", HELLO_WITHIN.as_secs());
            tracing::warn!(worker = id.0, %version, why, "a worker is killed");
            self.start_errors.borrow_mut().insert(version, AcquireError::DoesNotStart(why));
            self.kill(id);
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Started { id, pid } => {
                if let Some(live) = self.live.borrow_mut().get_mut(&id) {
                    live.pid = Some(pid);
                    live.hello_by = Some(self.now.get() + HELLO_WITHIN);
                }
            }
            Event::NotStarted { id, error } => {
                let version = self.live.borrow().get(&id).map(|live| live.version);
                if let Some(version) = version {
                    self.not_started(id, version, AcquireError::DoesNotStart(error.to_string()));
                }
            }
            Event::Exited { id, status } => {
                let why = status.map_or_else(|| "?".to_owned(), |status| status.to_string());
                if self.exited(id, &why) {
                    self.last_words.borrow_mut().push((id, why));
                } else {
                    self.gone(id, why);
                }
            }
            Event::Stored { version, outcome } => {
                let waiting = self.awaiting.borrow_mut().remove(&version).unwrap_or_default();
                for id in waiting {
                    match &outcome {
                        Ok(path) => self.spawn(id, path.clone()),
                        Err(error) => {
                            let error = AcquireError::DoesNotStart(error.to_string());
                            self.not_started(id, version, error);
                        }
                    }
                }
            }
        }
    }

    /// A process is gone; whether it has said something to its session that was not heard yet.
    fn exited(&self, id: WorkerId, why: &str) -> bool {
        let mut live = self.live.borrow_mut();
        let Some(live) = live.get_mut(&id).filter(|live| !live.killed) else { return false };
        live.exited = true;
        if !self.stopping.get() {
            count(&self.metrics.workers_died_total);
            let running = live.running.as_ref().map(|running| running.function.to_string());
            tracing::warn!(pid = live.pid, running, "a worker died: {why}");
            if !live.side.is_greeted() {
                let error = format!("it ended before it said hello: {why}");
                let error = AcquireError::DoesNotStart(error);
                self.start_errors.borrow_mut().insert(live.version, error);
            }
        }
        live.side.is_busy() && live.side.has_request()
    }

    fn broke(&self, id: WorkerId, error: &ChannelError) {
        tracing::warn!(worker = id.0, %error, "a worker is killed");
        self.kill(id);
    }

    fn kill(&self, id: WorkerId) {
        if let Some(live) = self.live.borrow_mut().get_mut(&id)
            && !live.killed
        {
            live.killed = true;
            count(&self.metrics.workers_killed_total);
            self.nursery.kill(id);
            live.notify.notify();
        }
    }

    /// Before the hot thread sleeps. False if a worker has said something meanwhile.
    pub(crate) fn prepare_sleep(&self) -> bool {
        let live = self.live.borrow();
        let quiet = live.values().all(|live| live.killed || live.side.prepare_sleep());
        if !quiet {
            live.values().for_each(|live| live.side.awake());
        }
        quiet
    }

    /// After it slept.
    pub(crate) fn awake(&self) {
        self.live.borrow().values().for_each(|live| live.side.awake());
    }

    pub(crate) fn show(&self) -> Vec<Shown> {
        let live = self.live.borrow();
        let show = |live: &Live| Shown {
            pid: live.pid,
            version: live.version,
            running: live.running.clone(),
        };
        live.values().map(show).collect()
    }

    /// A state buffer of a worker, and what is needed to let a value land in it.
    pub(crate) fn lend(&self, id: WorkerId, len: usize) -> Option<Result<Lent, AllocError>> {
        let mut live = self.live.borrow_mut();
        let live = live.get_mut(&id)?;
        let region = live.region?;
        let buffer = match live.side.alloc(len) {
            Ok(buffer) => buffer,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok((buffer, region, live.side.region())))
    }

    /// Gives back a buffer that was not sent to its worker.
    pub(crate) fn free(&self, id: WorkerId, buffer: Buffer) {
        if let Some(live) = self.live.borrow_mut().get_mut(&id)
            && let Err(error) = live.side.free(buffer)
        {
            tracing::error!(%error, "a state buffer was freed twice");
        }
    }

    fn release(&self, id: WorkerId) {
        let mut live = self.live.borrow_mut();
        let Some(worker) = live.get_mut(&id).filter(|worker| !worker.exited) else { return };
        worker.running = None;
        worker.label.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let fit = !worker.side.is_busy() && worker.side.buffers_in_use() <= HELD_MAX;
        drop(live);
        if fit {
            self.pool.borrow_mut().released(id);
        } else {
            self.kill(id);
        }
    }

    fn why_lost(&self, id: WorkerId) -> WorkerLost {
        let deaths = self.deaths.borrow();
        let why = deaths.iter().rev().find(|(dead, _)| *dead == id).map(|(_, why)| why.clone());
        WorkerLost::Died(why.unwrap_or_else(|| "it was killed".to_owned()))
    }
}

struct Withdraw<'a> {
    workers: &'a Workers,
    ticket: Option<Ticket>,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.workers.tickets.borrow_mut().remove(&ticket);
            self.workers.pool.borrow_mut().withdraw(ticket);
        }
    }
}
