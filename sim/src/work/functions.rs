//! Roots on simulated engines: started by clients, attempted, taken over, ended.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use halfmoon_protocol::Stop;
use halfmoon_protocol::call::{Ended, Input};
use halfmoon_protocol::finish::Ending;
use halfmoon_protocol::intents::{Intents, Owner};
use halfmoon_protocol::payload::{self, Intent};
use halfmoon_protocol::root::{self, Reload, Request, Start, Started};
use halfmoon_wire::{Evict, InstanceId, RecordKind, RecordRef, RunId, SeqNum, tag};

use super::ops::{Bytes, SimOps};
use super::programs::{self, ACCOUNTS, BALANCE, COUNTERS, GAVE_UP, Program, decode};
use crate::check::Judge;
use crate::check::functions::{Deed, Ledger};
use crate::check::log::History;
use crate::host::engine::{LifeOf, Work};
use crate::plan::Plan;
use crate::random::{Concern, Random};
use crate::shared::Shared;
use crate::time::MILLI;

/// Chance in a million that an attempt is ended where it stands, and after how long at most, in ns.
const ATTEMPT_DIES: u64 = 200_000;
const ATTEMPT_DIES_NS: u64 = 3 * MILLI;

/// Chance in a million that a client asks for a root that somebody else has asked for.
const ASKED_TWICE: u64 = 200_000;

/// First pause before a root is attempted again, in ns; longest pause.
const PAUSE_NS: (u64, u64) = (MILLI, 50 * MILLI);

const NO_FAULT: &str = "no root meets what this program would not have written";

/// The version of all functions.
const VERSION: [u8; 32] = [7; 32];

/// Functions on all engines.
#[derive(Clone)]
pub(crate) struct FunctionWork(Rc<Inner>);

struct Inner {
    seed: u64,
    shared: Rc<Shared>,
    judge: Judge,
    history: Rc<RefCell<History>>,
    ledger: RefCell<Ledger>,
    plan: Plan,
    programs: RefCell<BTreeMap<InstanceId, Program>>,
    stop: Cell<bool>,
    running: Cell<usize>,
    nonces: Rc<Cell<u128>>,
    verified: Cell<bool>,
}

/// One life of an engine, as its roots use it.
struct Hot {
    life: LifeOf,
    me: Owner,
    intents: RefCell<Intents>,
    /// Roots under way here, with what holds the safe point; several attempts of one may be.
    floors: RefCell<BTreeMap<(InstanceId, u64), SeqNum>>,
    attempts: Cell<u64>,
    /// Roots to take up.
    adopted: RefCell<VecDeque<InstanceId>>,
}

/// A root under way; dropping it lets go of the safe point.
struct Live {
    work: FunctionWork,
    hot: Rc<Hot>,
    key: (InstanceId, u64),
    /// The run of the attempt that is under way.
    run: Cell<Option<RunId>>,
}

impl FunctionWork {
    pub(crate) fn new(seed: u64, shared: Rc<Shared>, judge: Judge, plan: Plan) -> Rc<Self> {
        let history = History::of_functions(shared.clone(), judge.clone());
        let bank = (ACCOUNTS, BALANCE);
        let ledger = Ledger::new(shared.clone(), judge.clone(), bank, COUNTERS, GAVE_UP);
        Rc::new(Self(Rc::new(Inner {
            seed,
            shared,
            judge,
            history: Rc::new(RefCell::new(history)),
            ledger: RefCell::new(ledger),
            plan,
            programs: RefCell::default(),
            stop: Cell::new(false),
            running: Cell::new(0),
            nonces: Rc::default(),
            verified: Cell::new(false),
        })))
    }

    /// A root that nobody has asked for before.
    fn draw(&self, random: &mut Random) -> InstanceId {
        let counter =
            |random: &mut Random| u8::try_from(random.index(COUNTERS.into())).unwrap_or(0);
        let account =
            |random: &mut Random| u8::try_from(random.index(ACCOUNTS.into())).unwrap_or(0);
        let (program, deed) = match random.below(10) {
            0..4 => {
                let from = account(random);
                let to = (from + 1 + account(random) % (ACCOUNTS - 1)) % ACCOUNTS;
                let amount = 1 + u8::try_from(random.below(20)).unwrap_or(0);
                let program = Program::Transfer { from, to, amount };
                (program, Deed::Transfer { from, to, amount: amount.into() })
            }
            4 => (Program::Audit, Deed::Audit),
            5..7 => {
                let counter = counter(random);
                (Program::Increment { counter }, Deed::Increment { counter })
            }
            _ => {
                let (first, second) = (counter(random), counter(random));
                let table = u8::try_from(random.below(3)).unwrap_or(0);
                (Program::Workflow { first, second, table }, Deed::Workflow { first, second })
            }
        };
        let mut programs = self.0.programs.borrow_mut();
        let id = InstanceId((programs.len() as u128 + 1) << 64 | u128::from(random.draw()));
        programs.insert(id, program);
        self.0.ledger.borrow_mut().asked(id, deed);
        id
    }

    /// What a client asks for next: a root that has no reply, or a new one; `None`: nothing is left.
    fn next(&self, random: &mut Random) -> Option<InstanceId> {
        let waiting: Vec<_> = self.0.ledger.borrow().waiting().collect();
        if self.0.stop.get() {
            return random.pick(&waiting).copied();
        }
        let again = random.chance(ASKED_TWICE);
        match random.pick(&waiting).filter(|_| again) {
            Some(root) => Some(*root),
            None => Some(self.draw(random)),
        }
    }

    fn object(&self, rule: &'static str, what: String) {
        self.0.judge.object(self.0.shared.now(), rule, what);
    }

    async fn client(self, hot: Rc<Hot>, mut random: Random) {
        let think_ns = self.0.plan.think_ns;
        while let Some(root) = self.next(&mut random) {
            hot.life.executor.sleep(random.skewed(0, think_ns)).await;
            let program = self.0.programs.borrow().get(&root).copied();
            if !self.bring_to_its_end(&hot, root, program, &mut random).await {
                return;
            }
        }
    }

    /// Attempts a root until it has ended; `false` when the engine has.
    async fn bring_to_its_end(
        &self,
        hot: &Rc<Hot>,
        root: InstanceId,
        program: Option<Program>,
        random: &mut Random,
    ) -> bool {
        let live = Live::new(self.clone(), hot.clone(), root);
        let executor = &hot.life.executor;
        let mut pause_ns = PAUSE_NS.0;
        loop {
            let dies = random.chance(ATTEMPT_DIES);
            let after = if dies { random.within(1, ATTEMPT_DIES_NS) } else { u64::MAX };
            let until_ns = executor.now_ns().saturating_add(after);
            let attempt = Box::pin(self.attempt(&live, program));
            match executor.timeout_at(until_ns, attempt).await {
                Ok(Next::Done) => return true,
                Ok(Next::Over) => return false,
                Ok(Next::Again) | Err(_) => {}
            }
            executor.sleep(random.within(pause_ns / 2, pause_ns)).await;
            pause_ns = (pause_ns * 2).min(PAUSE_NS.1);
        }
    }

    async fn attempt(&self, live: &Live, program: Option<Program>) -> Next {
        let (hot, id) = (&live.hot, live.key.0);
        let request = program.map(|program| Request {
            function: program.name().to_owned(),
            version: VERSION,
            input: Input { value: program.input(), fingerprint: fingerprint(&program.input()) },
            mode: program.mode(),
            keyed: true,
            read_only: program.is_read_only(),
        });
        let ops = SimOps::new(hot.life.clone(), self.0.nonces.clone());
        live.run.set(None);
        let start = Start { root: id, cursor: live.floor(), request };
        let attempt = match root::start(ops, start).await {
            Ok(Started::Run(attempt)) => attempt,
            Ok(Started::Ended(ended)) => {
                self.reply(id, &ended);
                return Next::Done;
            }
            Ok(Started::Nothing) => return Next::Done,
            Err(stop) => return self.stopped(live, stop).await,
        };
        live.hold(attempt.identity().floor);
        live.run.set(Some(attempt.identity().run));
        match Box::pin(programs::run(attempt)).await {
            Ok(Ending { outcome, finish }) => {
                self.reply(id, &outcome.ended);
                let Some(finish) = finish else { return Next::Done };
                match finish.append().await {
                    Ok(()) | Err(Stop::RunLost | Stop::Ended(_) | Stop::RootGone) => Next::Done,
                    Err(stop) => self.stopped(live, stop).await,
                }
            }
            Err(stop) => self.stopped(live, stop).await,
        }
    }

    fn reply(&self, id: InstanceId, ended: &Ended<Bytes>) {
        let reply = decode(&ended.result);
        self.0.ledger.borrow_mut().told(id, &reply, ended.point.cursor);
    }

    async fn stopped(&self, live: &Live, stop: Stop<Bytes, super::ops::OpsError>) -> Next {
        let id = live.key.0;
        match stop {
            Stop::RunLost | Stop::Cancelled => Next::Again,
            Stop::Ended(ended) => {
                self.reply(id, &ended);
                Next::Done
            }
            Stop::RootGone | Stop::SnapshotTooOld => self.reload(live).await,
            Stop::Fault(fault) => {
                self.object(NO_FAULT, format!("{id}: {fault}"));
                Next::Over
            }
            Stop::Refused(refused) => {
                self.object(NO_FAULT, format!("{id}: {refused}"));
                Next::Over
            }
            Stop::Ops(error) if programs::is_over(error) => Next::Over,
            Stop::Ops(_) => Next::Again,
        }
    }

    async fn reload(&self, live: &Live) -> Next {
        let log = &live.hot.life.log;
        let ops = SimOps::new(live.hot.life.clone(), self.0.nonces.clone());
        if log.catch_up().await.is_err() {
            return Next::Over;
        }
        match root::reload(&ops, live.key.0, live.run.take()).await {
            Ok(Reload::Ended(ended)) => {
                self.reply(live.key.0, &ended);
                Next::Done
            }
            Ok(Reload::StartOver) => {
                live.hold(log.applied());
                Next::Again
            }
            Err(Stop::Ops(_)) => Next::Again,
            Err(stop) => {
                self.object(NO_FAULT, format!("{}: {stop}", live.key.0));
                Next::Over
            }
        }
    }

    /// Reads what is left, once everything has ended.
    async fn look(self, life: LifeOf) {
        let Ok(tail) = life.log.tail().await else { return };
        if life.log.wait_applied(tail).await.is_err() {
            return;
        }
        let program = Program::Dump;
        let request = Request {
            function: program.name().to_owned(),
            version: VERSION,
            input: Input { value: program.input(), fingerprint: 0 },
            mode: program.mode(),
            keyed: false,
            read_only: true,
        };
        let ops = SimOps::new(life.clone(), self.0.nonces.clone());
        let cursor = life.log.applied();
        let start = Start { root: InstanceId(u128::MAX), cursor, request: Some(request) };
        let Ok(Started::Run(attempt)) = root::start(ops, start).await else { return };
        if let Ok(Ending { outcome, .. }) = Box::pin(programs::run(attempt)).await {
            self.0.ledger.borrow().closed(&decode(&outcome.ended.result));
            self.0.verified.set(true);
        }
    }
}

/// What an attempt's end means for its root.
enum Next {
    Done,
    Again,
    /// The engine is of no more use.
    Over,
}

fn fingerprint(input: &Bytes) -> u128 {
    input.0.iter().fold(1, |hash, byte| hash * 257 + u128::from(*byte))
}

impl Hot {
    fn tell_floor(&self) {
        let live = self.floors.borrow().values().min().copied();
        let inherited = self.intents.borrow().least_floor(self.me);
        let least = match (live, inherited) {
            (Some(live), Some(inherited)) => Some(live.min(inherited)),
            (one, other) => one.or(other),
        };
        self.life.log.set_safe_point(least);
    }

    fn apply(&self, record: &RecordRef<'_>) {
        match record.kind() {
            RecordKind::Data if record.tags().any(|place| place.tag() == tag::intent()) => {
                let origin = record.origin();
                let owner = Owner { engine: origin.engine, incarnation: origin.incarnation };
                match payload::intent(record.payload()) {
                    Ok(Intent::Begins(roots)) => {
                        for root in roots {
                            let mut intents = self.intents.borrow_mut();
                            intents.begins(root, owner, record.floor(), record.seq());
                        }
                    }
                    Ok(Intent::Ends(root)) => drop(self.intents.borrow_mut().ends(root)),
                    Err(_) => {}
                }
            }
            RecordKind::Evict => {
                if let Ok(evict) = Evict::parse(record.payload()) {
                    let heir = Owner { engine: evict.heir, incarnation: evict.heir_incarnation };
                    let moved = self.intents.borrow_mut().evicted(&evict);
                    if heir == self.me {
                        self.adopted.borrow_mut().extend(moved);
                    }
                }
            }
            RecordKind::Data | RecordKind::Open | RecordKind::SafePoint => {}
        }
        self.tell_floor();
    }
}

impl Live {
    fn new(work: FunctionWork, hot: Rc<Hot>, root: InstanceId) -> Self {
        work.0.running.set(work.0.running.get() + 1);
        hot.attempts.set(hot.attempts.get() + 1);
        let key = (root, hot.attempts.get());
        let floor = hot.intents.borrow().find(root).map(|found| found.floor);
        let applied = hot.life.log.applied();
        let live = Self { work, hot, key, run: Cell::new(None) };
        live.hold(floor.map_or(applied, |floor| floor.min(applied)));
        live
    }

    fn floor(&self) -> SeqNum {
        self.hot.floors.borrow().get(&self.key).copied().unwrap_or_default()
    }

    fn hold(&self, floor: SeqNum) {
        self.hot.floors.borrow_mut().insert(self.key, floor);
        self.hot.tell_floor();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.work.0.running.set(self.work.0.running.get() - 1);
        self.hot.floors.borrow_mut().remove(&self.key);
        self.hot.tell_floor();
    }
}

impl Work for FunctionWork {
    fn begin(&self, life: &LifeOf) {
        let me = Owner { engine: life.node, incarnation: life.incarnation };
        let hot = Rc::new(Hot {
            life: life.clone(),
            me,
            intents: RefCell::default(),
            floors: RefCell::default(),
            attempts: Cell::new(0),
            adopted: RefCell::default(),
        });
        let (of, history, before) = (hot.clone(), self.0.history.clone(), Cell::new(SeqNum::ZERO));
        life.log.on_apply(move |record| {
            history.borrow_mut().applied(before.replace(record.seq()), &record);
            of.apply(&record);
        });
        for client in 0..self.0.plan.clients {
            let salt = (life.number as u64) << 48 | (client as u64) << 32 | life.incarnation.0;
            let random = Random::new(self.0.seed, Concern::Workload, salt);
            let task = self.clone().client(hot.clone(), random);
            assert!(life.executor.spawn(task).is_ok(), "an engine has few clients");
        }
        let heir = self.clone().adopt(hot);
        assert!(life.executor.spawn(heir).is_ok(), "an engine has few tasks");
    }

    fn stop(&self) {
        self.0.stop.set(true);
    }

    fn running(&self) -> usize {
        self.0.running.get() + self.0.ledger.borrow().waiting().count()
    }

    fn verify(&self, life: &LifeOf) {
        let task = self.clone().look(life.clone());
        assert!(life.executor.spawn(task).is_ok(), "an engine has few tasks");
    }

    fn is_verified(&self) -> bool {
        self.0.verified.get()
    }

    fn history(&self) -> Rc<RefCell<History>> {
        self.0.history.clone()
    }

    fn instances(&self) -> u64 {
        self.0.ledger.borrow().replied()
    }
}

impl FunctionWork {
    /// Takes up what this engine inherits, as long as it lives.
    async fn adopt(self, hot: Rc<Hot>) {
        let mut random = Random::new(self.0.seed, Concern::Workload, hot.me.incarnation.0 << 8 | 1);
        loop {
            let next = hot.adopted.borrow_mut().pop_front();
            let Some(root) = next else {
                hot.life.executor.sleep(MILLI).await;
                continue;
            };
            let is_mine =
                hot.intents.borrow().find(root).is_some_and(|found| found.owner == hot.me);
            if is_mine && !self.bring_to_its_end(&hot, root, None, &mut random).await {
                return;
            }
        }
    }
}
