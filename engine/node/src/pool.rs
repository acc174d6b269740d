//! Who runs on which worker process: decisions only, the processes are the shell's.
//!
//! - P1. A worker runs one invocation at a time, of any function of its binary.
//! - P2. An invocation at call depth d gets a worker only while fewer than `workers_max -
//!   (DEPTH_MAX - d)` are busy. The bound grows with the depth, and only callers that wait for
//!   deeper ones hold workers idle, so the deepest of them always finds a worker: calls never
//!   deadlock for want of one.
//! - P3. What waits is bounded; beyond that the answer is a refusal, at once.
//! - P4. A worker that dies before it was ready fails the invocation that has waited longest for
//!   its binary, so a binary that cannot start is not started for ever.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::manifest::Version;
use crate::names::FunctionName;

/// Levels of calls below a root, the root included. A call beyond that is refused.
pub const DEPTH_MAX: usize = 16;

/// Sizes of an engine's pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolConfig {
    /// Most worker processes; above [`DEPTH_MAX`]. Choose by memory: an idle one costs its code's
    /// pages and what it has touched of its arena. It bounds how many invocations run at once, and
    /// a caller that waits for its callee counts.
    pub workers_max: usize,
    /// Idle workers that are kept, however long they have been idle.
    pub workers_min: usize,
    /// Invocations that may wait for a worker.
    pub queue_max: usize,
    /// How long a worker beyond `workers_min` is kept idle.
    pub idle_for: Duration,
}

/// A worker process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerId(pub u64);

/// An invocation that wants a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// What an invocation wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// A worker of this binary,
    pub version: Version,
    /// for this function,
    pub function: FunctionName,
    /// of which so many may run at once (0: any number);
    pub concurrency: u32,
    /// this deep in the tree of calls; a root is at 0.
    pub depth: usize,
    /// A caller above runs the same function: its limit does not apply, or the two would wait for
    /// each other.
    pub recursive: bool,
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Start a process of this binary; then [`Pool::ready`] or [`Pool::exited`].
    Spawn(WorkerId, Version),
    /// Run the invocation there; then [`Pool::released`] or [`Pool::exited`].
    Assign(Ticket, WorkerId),
    /// End an idle process; then [`Pool::exited`].
    Stop(WorkerId),
    /// The invocation gets no worker: its binary does not start.
    Fail(Ticket),
}

/// There is no room for another invocation to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("{waiting} invocations wait for a worker already")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The calls are nested too deeply.
    #[error("calls are nested more than {DEPTH_MAX} deep")]
    TooDeep,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Starting,
    Idle { since: Duration },
    Busy { function: FunctionName },
    Stopping,
}

#[derive(Debug)]
struct Worker {
    version: Version,
    state: State,
}

/// The pool of one engine.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    workers: BTreeMap<WorkerId, Worker>,
    /// Most recently used last.
    idle: BTreeMap<Version, Vec<WorkerId>>,
    running: BTreeMap<FunctionName, u32>,
    busy: usize,
    /// Deepest first, then in order of arrival.
    waiting: BTreeMap<(Reverse<usize>, Ticket), Want>,
    depths: BTreeMap<Ticket, usize>,
    actions: VecDeque<Action>,
    next: u64,
    now: Duration,
}

impl PoolConfig {
    /// For a machine with `cores`.
    #[must_use]
    pub fn for_cores(cores: usize) -> Self {
        Self {
            workers_max: (cores * 16).clamp(2 * DEPTH_MAX, 256),
            workers_min: cores * 2,
            queue_max: 4096,
            idle_for: Duration::from_secs(60),
        }
    }
}

impl Pool {
    /// An empty pool. `workers_max` is raised above [`DEPTH_MAX`] if it is not.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        let workers_max = config.workers_max.max(DEPTH_MAX + 1);
        Self {
            config: PoolConfig { workers_max, ..config },
            workers: BTreeMap::new(),
            idle: BTreeMap::new(),
            running: BTreeMap::new(),
            busy: 0,
            waiting: BTreeMap::new(),
            depths: BTreeMap::new(),
            actions: VecDeque::new(),
            next: 0,
            now: Duration::ZERO,
        }
    }

    /// The time, since whenever; it never goes back.
    pub fn tick(&mut self, now: Duration) {
        self.now = now.max(self.now);
        let keep = self.config.workers_min;
        let mut idle: Vec<(Duration, WorkerId)> = self
            .workers
            .iter()
            .filter_map(|(id, worker)| match worker.state {
                State::Idle { since } => Some((since, *id)),
                State::Starting | State::Busy { .. } | State::Stopping => None,
            })
            .collect();
        idle.sort_unstable();
        let surplus = idle.len().saturating_sub(keep);
        for (since, id) in idle.into_iter().take(surplus) {
            if self.now.saturating_sub(since) >= self.config.idle_for {
                self.stop(id);
            }
        }
    }

    /// An invocation wants a worker. It is told by [`Action::Assign`] or [`Action::Fail`].
    pub fn request(&mut self, ticket: Ticket, want: Want) -> Result<(), Refused> {
        if want.depth >= DEPTH_MAX {
            return Err(Refused::TooDeep);
        }
        if self.waiting.len() >= self.config.queue_max {
            return Err(Refused::QueueFull { waiting: self.waiting.len() });
        }
        self.depths.insert(ticket, want.depth);
        self.waiting.insert((Reverse(want.depth), ticket), want);
        self.schedule();
        Ok(())
    }

    /// The invocation does not want a worker any more. Without effect once it was given one.
    pub fn withdraw(&mut self, ticket: Ticket) {
        if let Some(depth) = self.depths.remove(&ticket) {
            self.waiting.remove(&(Reverse(depth), ticket));
        }
    }

    /// A process is up.
    pub fn ready(&mut self, id: WorkerId) {
        self.make_idle(id);
        self.schedule();
    }

    /// An invocation has left its worker, which is fit for the next one.
    pub fn released(&mut self, id: WorkerId) {
        self.make_idle(id);
        self.schedule();
    }

    /// A process is gone, or not fit for anything any more.
    pub fn exited(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        match worker.state {
            State::Busy { function } => self.not_busy(&function),
            State::Idle { .. } => self.forget_idle(worker.version, id),
            State::Starting => {
                let oldest = self
                    .waiting
                    .iter()
                    .filter(|(_, want)| want.version == worker.version)
                    .map(|((_, ticket), _)| *ticket)
                    .min();
                if let Some(ticket) = oldest {
                    self.withdraw(ticket);
                    self.actions.push_back(Action::Fail(ticket));
                }
            }
            State::Stopping => {}
        }
        self.schedule();
    }

    /// What to do next, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Worker processes, those that start and those that end included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there are no workers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Workers that run an invocation.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Invocations that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn schedule(&mut self) {
        let mut starting: BTreeMap<Version, usize> = BTreeMap::new();
        if self.waiting.is_empty() {
            return;
        }
        for worker in self.workers.values() {
            if worker.state == State::Starting {
                *starting.entry(worker.version).or_default() += 1;
            }
        }
        let mut soon_busy = self.busy;
        let mut assigned = Vec::new();
        let mut wanted = Vec::new();
        for (key, want) in &self.waiting {
            let bound = self.config.workers_max - (DEPTH_MAX - want.depth);
            if soon_busy >= bound {
                // Deepest first: the bound only shrinks from here on.
                break;
            }
            let running = self.running.get(&want.function).copied().unwrap_or(0);
            if want.concurrency > 0 && !want.recursive && running >= want.concurrency {
                continue;
            }
            soon_busy += 1;
            if let Some(id) = self.idle.get_mut(&want.version).and_then(Vec::pop) {
                *self.running.entry(want.function.clone()).or_default() += 1;
                assigned.push((*key, id));
                continue;
            }
            match starting.get_mut(&want.version) {
                Some(count) if *count > 0 => *count -= 1,
                Some(_) | None => wanted.push(want.version),
            }
        }
        for (key, id) in assigned {
            self.assign(key, id);
        }
        for version in wanted {
            self.spawn(version);
        }
    }

    fn assign(&mut self, key: (Reverse<usize>, Ticket), id: WorkerId) {
        let (Some(want), Some(worker)) = (self.waiting.remove(&key), self.workers.get_mut(&id))
        else {
            return;
        };
        self.depths.remove(&key.1);
        worker.state = State::Busy { function: want.function };
        self.busy += 1;
        self.actions.push_back(Action::Assign(key.1, id));
    }

    fn spawn(&mut self, version: Version) {
        if self.workers.len() >= self.config.workers_max {
            self.make_room();
        }
        // One that is being stopped still counts until it is gone; its exit schedules again.
        if self.workers.len() >= self.config.workers_max {
            return;
        }
        self.next += 1;
        let id = WorkerId(self.next);
        self.workers.insert(id, Worker { version, state: State::Starting });
        self.actions.push_back(Action::Spawn(id, version));
    }

    /// Stops the worker that has been idle for longest, unless one is being stopped already.
    fn make_room(&mut self) {
        if self.workers.values().any(|worker| worker.state == State::Stopping) {
            return;
        }
        let oldest = self
            .workers
            .iter()
            .filter_map(|(id, worker)| match worker.state {
                State::Idle { since } => Some((since, *id)),
                State::Starting | State::Busy { .. } | State::Stopping => None,
            })
            .min();
        if let Some((_, id)) = oldest {
            self.stop(id);
        }
    }

    fn stop(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.state = State::Stopping;
            let version = worker.version;
            self.forget_idle(version, id);
            self.actions.push_back(Action::Stop(id));
        }
    }

    fn make_idle(&mut self, id: WorkerId) {
        let since = self.now;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match std::mem::replace(&mut worker.state, State::Idle { since }) {
            State::Busy { function } => {
                let version = worker.version;
                self.not_busy(&function);
                self.idle.entry(version).or_default().push(id);
            }
            State::Starting => self.idle.entry(worker.version).or_default().push(id),
            State::Idle { since } => worker.state = State::Idle { since },
            State::Stopping => worker.state = State::Stopping,
        }
    }

    fn not_busy(&mut self, function: &FunctionName) {
        self.busy -= 1;
        if let Some(count) = self.running.get_mut(function) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(function);
            }
        }
    }

    fn forget_idle(&mut self, version: Version, id: WorkerId) {
        if let Some(idle) = self.idle.get_mut(&version) {
            idle.retain(|other| *other != id);
            if idle.is_empty() {
                self.idle.remove(&version);
            }
        }
    }
}

#[cfg(test)]
mod tests;
