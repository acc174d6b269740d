//! What the tasks of the hot thread share.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use halfmoon_client::{AppendRequest, Appended, Executor, Log, State};
use halfmoon_protocol::call::Status;
use halfmoon_protocol::intents::{Intents, Owner};
use halfmoon_protocol::payload::{self, Intent};
use halfmoon_protocol::root::{self, Request};
use halfmoon_wire::{Condition, Evict, InstanceId, RecordKind, RecordRef, SeqNum, tag};

use crate::command::{DeployBinary, DeployFailed, Deployed, Ended};
use crate::fresh::{self, TailLease};
use crate::ids::Draw;
use crate::manifest::{Deploy, Version};
use crate::metrics::{Metrics, count};
use crate::registry::Registry;
use crate::roots::{self, Origin, Root};
use crate::scratch::Scratch;
use crate::takeovers::Takeovers;
use crate::value::Value;
use crate::workers::{AcquireError, Workers};

/// Roots that one engine may have under way; further requests are refused.
pub(crate) const ROOTS_MAX: usize = 8 * 1024;
/// The share of the log's places, one in so many, that is left to roots which have begun.
const LOG_RESERVE: u64 = 8;
/// Parked roots beyond which an engine refuses further requests: each holds a task.
pub(crate) const PARKED_MAX: usize = 32 * 1024;
/// Ended roots that are remembered for whoever asks how they ended.
const ENDED_MAX: usize = 1024;
/// Results and errors longer than this are not remembered; the log has those that were logged.
const ENDED_MAX_BYTES: usize = 16 * 1024;
/// First pause before a failed attempt is made again, in ns; it doubles.
const BACKOFF_FIRST_NS: u64 = 5_000_000;
/// Longest such pause, in ns.
const BACKOFF_MAX_NS: u64 = 5_000_000_000;
/// How long storing or fetching a binary may take, in ns.
const BLOB_WITHIN_NS: u64 = 60_000_000_000;
/// How often a deployment is tried when others deploy at the same time.
const DEPLOY_TRIES_MAX: u32 = 16;

/// See the module.
pub(crate) struct Hot {
    pub(crate) me: Owner,
    pub(crate) executor: Executor,
    pub(crate) log: Log,
    pub(crate) state: State,
    pub(crate) workers: Rc<Workers>,
    pub(crate) scratch: Scratch,
    pub(crate) registry: RefCell<Registry>,
    pub(crate) intents: RefCell<Intents>,
    pub(crate) roots: RefCell<BTreeMap<InstanceId, Rc<Root>>>,
    /// How many of them are parked.
    pub(crate) resting: Cell<usize>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) draw: Arc<Draw>,
    /// Last record of the registry's tag.
    pub(crate) registered: Cell<SeqNum>,
    pub(crate) stopping: Cell<bool>,
    /// The log is applied up to the tail that it had when this engine started.
    pub(crate) caught_up: Cell<bool>,
    /// How long ago that was last so.
    pub(crate) lease: TailLease,
    pub(crate) takeovers: RefCell<Takeovers>,
    ended: RefCell<VecDeque<(InstanceId, Ended, SeqNum)>>,
    /// Roots to take up: inherited, or started by a step of this engine's.
    adopted: RefCell<VecDeque<InstanceId>>,
}

/// What a [`Hot`] is made of.
pub(crate) struct Parts {
    pub(crate) me: Owner,
    pub(crate) executor: Executor,
    pub(crate) log: Log,
    pub(crate) state: State,
    pub(crate) workers: Rc<Workers>,
    pub(crate) scratch: Scratch,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) draw: Arc<Draw>,
}

impl Hot {
    pub(crate) fn new(parts: Parts) -> Rc<Self> {
        let Parts { me, executor, log, state, workers, scratch, metrics, draw } = parts;
        Rc::new(Self {
            me,
            executor,
            log,
            state,
            workers,
            scratch,
            registry: RefCell::default(),
            intents: RefCell::default(),
            roots: RefCell::default(),
            resting: Cell::new(0),
            metrics,
            draw,
            registered: Cell::new(SeqNum::ZERO),
            stopping: Cell::new(false),
            takeovers: RefCell::default(),
            caught_up: Cell::new(false),
            lease: TailLease::default(),
            ended: RefCell::default(),
            adopted: RefCell::default(),
        })
    }

    /// Has every applied record shown to it. Weakly: the log is part of it.
    pub(crate) fn fold(self: &Rc<Self>) {
        let folded = Rc::downgrade(self);
        self.log.on_apply(move |record| {
            if let Some(hot) = folded.upgrade() {
                hot.apply(record);
            }
        });
    }

    /// Folds an applied record into registry and intents, before any task learns of it.
    fn apply(&self, record: RecordRef<'_>) {
        match record.kind() {
            RecordKind::Evict => self.apply_evict(record),
            RecordKind::Data => {
                let (registry, intent) = (tag::registry(), tag::intent());
                for pos in record.tags() {
                    if pos.tag() == registry {
                        self.apply_deploy(record);
                    } else if pos.tag() == intent {
                        self.apply_intent(record);
                    }
                }
            }
            RecordKind::Open | RecordKind::SafePoint => {}
        }
    }

    fn apply_deploy(&self, record: RecordRef<'_>) {
        self.registered.set(record.seq());
        match self.registry.borrow_mut().apply(record.seq(), record.payload()) {
            Ok(deploy) => tracing::info!(
                namespace = deploy.namespace,
                version = %deploy.version,
                functions = deploy.manifest.functions.len(),
                "deployed"
            ),
            Err(error) => tracing::warn!(seq = %record.seq(), %error, "a deployment is skipped"),
        }
    }

    fn apply_intent(&self, record: RecordRef<'_>) {
        let origin = record.origin();
        let owner = Owner { engine: origin.engine, incarnation: origin.incarnation };
        match payload::intent(record.payload()) {
            Ok(Intent::Begins(roots)) => {
                for root in roots {
                    let mut intents = self.intents.borrow_mut();
                    intents.begins(root, owner, record.floor(), record.seq());
                    drop(intents);
                    let here = self.roots.borrow().get(&root).cloned();
                    match here {
                        Some(here) => roots::decided(self, &here),
                        None if owner == self.me => self.adopted.borrow_mut().push_back(root),
                        None => {}
                    }
                }
            }
            Ok(Intent::Ends(root)) => {
                self.intents.borrow_mut().ends(root);
                let took_ns = self.takeovers.borrow_mut().ends(root, self.executor.now_ns());
                self.taken_over(took_ns);
                if let Some(root) = self.roots.borrow().get(&root) {
                    root.log_ends_it();
                }
            }
            Err(error) => {
                tracing::error!(seq = %record.seq(), %error, "an intent record does not parse");
            }
        }
    }

    fn apply_evict(&self, record: RecordRef<'_>) {
        let evict = match Evict::parse(record.payload()) {
            Ok(evict) => evict,
            Err(error) => {
                tracing::error!(seq = %record.seq(), %error, "an evict record does not parse");
                return;
            }
        };
        let heir = Owner { engine: evict.heir, incarnation: evict.heir_incarnation };
        let moved = self.intents.borrow_mut().evicted(&evict);
        tracing::info!(
            engine = %evict.engine,
            incarnation = %evict.incarnation,
            heir = %evict.heir,
            roots = moved.len(),
            "an engine is out of the log"
        );
        if heir == self.me {
            let inherited = moved.len() as u64;
            self.metrics.roots_taken_over_total.fetch_add(inherited, Ordering::Relaxed);
            let now_ns = self.executor.now_ns();
            let took_ns = self.takeovers.borrow_mut().begins(evict, record.seq(), &moved, now_ns);
            self.taken_over(took_ns);
            self.adopted.borrow_mut().extend(moved);
        }
        // Before the report that says that this record was applied: on that report the dead
        // engine's own is dropped, and only this one then holds what its roots need.
        self.log.set_safe_point(self.least_floor());
    }

    /// All roots of an evicted engine have ended, if a time is given.
    fn taken_over(&self, took_ns: Option<u64>) {
        let unfinished = self.takeovers.borrow().unfinished();
        self.metrics.roots_taken_over_unfinished.store(unfinished, Ordering::Relaxed);
        if let Some(took_ns) = took_ns {
            self.metrics.taken_over(Duration::from_nanos(took_ns));
        }
    }

    /// Sees to it that this engine knows the log up to its tail, from now on.
    pub(crate) fn stay_fresh(self: &Rc<Self>) {
        self.executor.spawn(fresh::stay(Rc::clone(self))).map(drop).ok();
    }

    /// Takes up the roots that are waiting for that, once the engine is up.
    pub(crate) fn adopt(self: &Rc<Self>) {
        loop {
            let Some(id) = self.adopted.borrow_mut().pop_front() else { return };
            let Some(floor) = self.own(id) else { continue };
            // The task of one that is here looks, at its end, whether it is this engine's.
            if self.roots.borrow().contains_key(&id) {
                continue;
            }
            if !roots::begin(self, &Root::new(id, Origin::Log, floor)) {
                self.adopted.borrow_mut().push_front(id);
                return;
            }
        }
    }

    /// The floor of a root, if it is unfinished and this engine's to end.
    pub(crate) fn own(&self, id: InstanceId) -> Option<SeqNum> {
        let intents = self.intents.borrow();
        intents.find(id).filter(|found| found.owner == self.me).map(|found| found.floor)
    }

    /// What the log says that an unfinished root runs: the function, and the input's fingerprint.
    pub(crate) fn asked(&self, id: InstanceId) -> Option<(String, u128)> {
        let init = self.intents.borrow().find(id)?.init;
        self.log.with_cached(init, |record| root::asked(id, record.payload())).flatten()
    }

    /// What the engine's reports name as its safe point.
    pub(crate) fn least_floor(&self) -> Option<SeqNum> {
        let live = self.roots.borrow().values().map(|root| root.floor.get()).min();
        let intents = self.intents.borrow();
        let inherited = if intents.is_empty() { None } else { intents.least_floor(self.me) };
        match (live, inherited) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// A root that nobody waits for, in a namespace that logs nothing.
    pub(crate) fn start_unlogged(self: &Rc<Self>, id: InstanceId, request: Request<Value>) {
        let floor = self.log.applied();
        let root = Root::new(id, Origin::Request(Box::new(request)), floor);
        if !roots::begin(self, &root) {
            tracing::warn!(root = %id, "an unlogged root is lost: too many tasks run here");
        }
    }

    /// The pause before attempt `number` + 1.
    pub(crate) fn backoff_ns(&self, number: u32) -> u64 {
        let pause = BACKOFF_FIRST_NS
            .saturating_mul(1_u64 << number.saturating_sub(1).min(16))
            .min(BACKOFF_MAX_NS);
        // Between a half and the whole, so that those that met once do not meet again.
        let jitter = self.draw.draw() % u128::from(pause / 2 + 1);
        pause / 2 + u64::try_from(jitter).unwrap_or(0)
    }

    /// Remembers how a root ended.
    pub(crate) fn remember(&self, id: InstanceId, ended: &Ended, cursor: SeqNum) {
        let bytes = match ended {
            Ended::Returned(result) => result.len(),
            Ended::Failed(error) => error.len(),
            Ended::Cancelled => 0,
        };
        if bytes > ENDED_MAX_BYTES {
            return;
        }
        let mut all = self.ended.borrow_mut();
        all.push_back((id, ended.clone(), cursor));
        if all.len() > ENDED_MAX {
            all.pop_front();
        }
    }

    pub(crate) fn remembered(&self, id: InstanceId) -> Option<(Ended, SeqNum)> {
        let all = self.ended.borrow();
        all.iter().rev().find(|(known, ..)| *known == id).map(|(_, ended, at)| (ended.clone(), *at))
    }

    /// Makes a binary's functions available: stores it, then says so in the log.
    pub(crate) async fn deploy(self: Rc<Self>, binary: DeployBinary) -> Deployed {
        let unavailable = |why: String| DeployFailed::Unavailable(why);
        let DeployBinary { namespace, protocol, manifest, version, binary } = binary;
        let bytes: Rc<[u8]> = Rc::from(&binary[..]);
        let deadline_ns = self.executor.now_ns() + BLOB_WITHIN_NS;
        self.state
            .put_blob(version.0, bytes, deadline_ns)
            .await
            .map_err(|error| unavailable(format!("cannot store the binary: {error}")))?;
        for _ in 0..DEPLOY_TRIES_MAX {
            let after = self.registered.get();
            let known = self.registry.borrow().namespace(&namespace);
            let deploy = Deploy {
                namespace: namespace.clone(),
                version,
                bytes: binary.len() as u64,
                protocol: protocol.or(known).unwrap_or_default(),
                manifest: manifest.clone(),
            };
            let refused = |error: &dyn std::fmt::Display| DeployFailed::Refused(error.to_string());
            self.registry.borrow().check(&deploy).map_err(|error| refused(&error))?;
            let payload = deploy.to_bytes().map_err(|error| refused(&error))?;
            let request = AppendRequest {
                floor: SeqNum::MAX,
                conditions: &[Condition::NothingAfter { tag: tag::registry(), after }],
                tags: &[tag::registry()],
                payload: &payload,
            };
            match self.log.append(&request).await {
                Ok(Appended::At(seq)) => return Ok((seq, deploy)),
                // Somebody else deployed: look again whether this one still fits.
                Ok(Appended::Conflict { .. }) => {}
                Ok(other) => return Err(unavailable(format!("the log refused it: {other:?}"))),
                Err(error) => return Err(unavailable(error.to_string())),
            }
        }
        Err(unavailable("others deploy all the time".to_owned()))
    }

    /// Fetches a binary from the storage nodes.
    pub(crate) async fn fetch(self: Rc<Self>, version: Version) {
        let deadline_ns = self.executor.now_ns() + BLOB_WITHIN_NS;
        let outcome = match self.state.get_blob(version.0, deadline_ns).await {
            Ok(Some(binary)) => Ok(binary),
            Ok(None) => {
                let why = format!("no storage node has binary {version}");
                Err(AcquireError::DoesNotStart(why))
            }
            Err(error) => {
                Err(AcquireError::NoBinary(format!("cannot fetch binary {version}: {error}")))
            }
        };
        self.workers.fetched(version, outcome);
    }

    pub(crate) fn parks(&self) {
        count(&self.metrics.roots_parked_total);
        self.resting.set(self.resting.get() + 1);
    }

    pub(crate) fn unparks(&self) {
        self.resting.set(self.resting.get().saturating_sub(1));
    }

    /// Why there is no room for another root, if there is none.
    pub(crate) fn is_full(&self, id: InstanceId) -> Option<String> {
        let (places, most) = self.log.places();
        // The rest is for those that have begun, here or elsewhere: they have to end, and be known.
        let has_begun = || self.log.tag_len(tag::step(id)) > 0;
        if places >= most - most / LOG_RESERVE && !has_begun() {
            return Some(format!(
                "the log is full: {places} of {most} places are taken; only what has begun goes on"
            ));
        }
        let (all, resting) = (self.roots.borrow().len(), self.resting.get());
        if all.saturating_sub(resting) >= ROOTS_MAX {
            return Some(format!("{ROOTS_MAX} invocations are under way here"));
        }
        let what = "resume or cancel them: GET /v1/status names them";
        (resting >= PARKED_MAX).then(|| format!("{PARKED_MAX} invocations are parked here; {what}"))
    }
}

/// How a root ended, for the client.
pub(crate) fn ended(status: Status, result: &Value) -> Ended {
    match status {
        Status::Returned => Ended::Returned(result.bytes().to_vec()),
        Status::Failed | Status::Parked => {
            Ended::Failed(String::from_utf8_lossy(&result.bytes()).into_owned())
        }
        Status::Cancelled => Ended::Cancelled,
    }
}
