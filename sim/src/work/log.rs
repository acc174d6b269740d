//! Clients of the log and of the state store, which note all that they ask for and are told.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use halfmoon_wire::SeqNum;

use crate::check::Judge;
use crate::check::log::History;
use crate::check::registers::Registers;
use crate::host::engine::{LifeOf, Work};
use crate::plan::Plan;
use crate::random::{Concern, Random};
use crate::shared::Shared;
use crate::time::MILLI;

/// The clients of all engines.
pub(crate) struct LogWork {
    pub(super) shared: Rc<Shared>,
    pub(super) judge: Judge,
    pub(super) history: Rc<RefCell<History>>,
    pub(super) registers: Rc<RefCell<Registers>>,
    pub(super) plan: Plan,
    seed: u64,
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<usize>>,
    /// All cells and versions were read once more.
    verified: Rc<Cell<bool>>,
    /// Numbers that no two writes of cells share.
    pub(super) last_write: Rc<Cell<u128>>,
    /// Versions that were put, to be read.
    pub(super) versions: Rc<RefCell<Vec<u128>>>,
}

/// The initial cursors of what is under way on one life of an engine: what holds its safe point.
#[derive(Clone, Default)]
pub(super) struct Floors(Rc<RefCell<BTreeMap<SeqNum, usize>>>);

/// One of them; dropping it lets go.
pub(super) struct Floor {
    floors: Floors,
    seq: SeqNum,
    life: LifeOf,
}

/// Counts a client as long as it runs.
struct Running(Rc<Cell<usize>>);

impl LogWork {
    pub(crate) fn new(seed: u64, shared: Rc<Shared>, judge: Judge, plan: Plan) -> Rc<Self> {
        let history = History::new(shared.clone(), judge.clone());
        let registers = Registers::new(shared.clone(), judge.clone());
        Rc::new(Self {
            shared,
            judge,
            history: Rc::new(RefCell::new(history)),
            registers: Rc::new(RefCell::new(registers)),
            plan,
            seed,
            stop: Rc::default(),
            running: Rc::default(),
            verified: Rc::default(),
            last_write: Rc::default(),
            versions: Rc::default(),
        })
    }

    /// A handle with the same contents, for a task.
    fn handle(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            judge: self.judge.clone(),
            history: self.history.clone(),
            registers: self.registers.clone(),
            plan: self.plan.clone(),
            seed: self.seed,
            stop: self.stop.clone(),
            running: self.running.clone(),
            verified: self.verified.clone(),
            last_write: self.last_write.clone(),
            versions: self.versions.clone(),
        }
    }
}

impl Work for LogWork {
    fn begin(&self, life: &LifeOf) {
        let (history, before) = (self.history.clone(), Cell::new(SeqNum::ZERO));
        life.log.on_apply(move |record| {
            history.borrow_mut().applied(before.replace(record.seq()), &record);
        });
        if self.stop.get() {
            return;
        }
        let floors = Floors::default();
        // Two more append nothing, so that somebody does something while all appends wait; one of
        // them does not wait for the store either.
        for client in 0..self.plan.clients + 2 {
            let appends_nothing = client >= self.plan.clients;
            let only_looks = client > self.plan.clients;
            let salt = (life.number as u64) << 48 | (client as u64) << 32 | life.incarnation.0;
            let mut random = Random::new(self.seed, Concern::Workload, salt);
            let (work, life, floors) = (self.handle(), life.clone(), floors.clone());
            let running = Running::new(self.running.clone());
            let executor = life.executor.clone();
            let think_ns =
                if only_looks { 4 * work.plan.think_ns + MILLI } else { work.plan.think_ns };
            let task = async move {
                let _running = running;
                while !work.stop.get() {
                    life.executor.sleep(random.skewed(0, think_ns)).await;
                    let goes_on = match appends_nothing {
                        true if only_looks || random.chance(500_000) => {
                            work.look(&life, &mut random).await
                        }
                        true => work.store(&life, &mut random).await,
                        false => work.operate(&life, &floors, &mut random).await,
                    };
                    if !goes_on {
                        return;
                    }
                }
            };
            assert!(executor.spawn(task).is_ok(), "an engine has few clients");
        }
    }

    fn stop(&self) {
        self.stop.set(true);
    }

    fn running(&self) -> usize {
        self.running.get()
    }

    fn verify(&self, life: &LifeOf) {
        let (work, of) = (self.handle(), life.clone());
        let task = async move {
            if work.read_all(&of).await {
                work.verified.set(true);
            }
        };
        assert!(life.executor.spawn(task).is_ok(), "an engine has few tasks");
    }

    fn is_verified(&self) -> bool {
        self.verified.get()
    }

    fn history(&self) -> Rc<RefCell<History>> {
        self.history.clone()
    }

    fn operations(&self) -> u64 {
        self.registers.borrow().operations()
    }
}

impl Floors {
    pub(super) fn hold(&self, life: &LifeOf) -> Floor {
        let seq = life.log.applied();
        *self.0.borrow_mut().entry(seq).or_default() += 1;
        self.tell(life);
        Floor { floors: self.clone(), seq, life: life.clone() }
    }

    fn tell(&self, life: &LifeOf) {
        life.log.set_safe_point(self.0.borrow().keys().next().copied());
    }
}

impl Floor {
    pub(super) fn seq(&self) -> SeqNum {
        self.seq
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let mut floors = self.floors.0.borrow_mut();
        if let Some(count) = floors.get_mut(&self.seq) {
            *count -= 1;
            if *count == 0 {
                floors.remove(&self.seq);
            }
        }
        drop(floors);
        self.floors.tell(&self.life);
    }
}

impl Running {
    fn new(count: Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
