//! One attempt: what a worker asks for, carried out by the protocols, one operation after another;
//! its callees run beside it.

mod calls;

use std::collections::BTreeMap;
use std::rc::Rc;

use halfmoon_channel::{EndReason, Outcome as Answer, Refusal};
use halfmoon_protocol::attempt::{BeginTransaction, SideEffect};
use halfmoon_protocol::finish::Ending;
use halfmoon_protocol::transaction::Commit;
use halfmoon_protocol::{Attempt, Stop, TableSpec};

use crate::asked::{Asked, Bytes, Finished, Said, arena_full, refusal};
use crate::hot::Hot;
use crate::metrics::count;
use crate::names::FunctionName;
use crate::ops::{EngineOps, OpsError};
use crate::pool::Want;
use crate::registry::Function;
use crate::sync::{Either, first_of};
use crate::tree::Tree;
use crate::value::Value;
use crate::workers::{AcquireError, Lease, Running, Way, WorkerLost};

use calls::{Call, Handles, cut};

/// How long a worker may take to unwind an attempt that is over, in ns.
const UNWIND_WITHIN_NS: u64 = 2_000_000_000;
/// An attempt that is over its time while log or store have owed it an answer for so long, in ns,
/// was held up by them. Or half its time, if that is less.
const OUTAGE_AFTER_NS: u64 = 1_000_000_000;

pub(crate) type Halt = Stop<Value, OpsError>;

/// An attempt that came to no end.
pub(crate) enum Lost {
    /// The protocols say so.
    Stop(Halt),
    /// No worker was had.
    NoWorker(AcquireError),
    /// Log or store did not answer in time: attempt again, for as long as it takes.
    Outage(String),
    /// The worker or the function failed: attempt again.
    Failed(String),
}

/// What an attempt runs.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) function: Function,
    /// The functions above it, the root's first.
    pub(crate) above: Rc<Vec<FunctionName>>,
    /// Which attempt it is, from 1.
    pub(crate) number: u32,
}

struct Session {
    hot: Rc<Hot>,
    tree: Rc<Tree>,
    plan: Plan,
    lease: Lease,
    attempt: Box<Attempt<EngineOps>>,
    calls: BTreeMap<u64, Call>,
    handles: Handles,
}

/// Why an operation has no answer.
enum Broken {
    Worker(WorkerLost),
    Stop(Halt),
    Lost(Lost),
}

impl From<WorkerLost> for Broken {
    fn from(lost: WorkerLost) -> Self {
        Self::Worker(lost)
    }
}

impl From<Halt> for Broken {
    fn from(stop: Halt) -> Self {
        Self::Stop(stop)
    }
}

/// Runs an attempt to its end, within the function's time limit.
pub(crate) async fn run(
    hot: &Rc<Hot>,
    tree: &Rc<Tree>,
    plan: Plan,
    attempt: Box<Attempt<EngineOps>>,
) -> Result<Ending<EngineOps>, Lost> {
    let lease = hot.workers.acquire(want(&plan)).await.map_err(Lost::NoWorker)?;
    let limit_ms = plan.function.spec.timeout_ms.max(1);
    let deadline_ns = hot.executor.now_ns() + limit_ms * 1_000_000;
    let name = plan.function.name.clone();
    let session = Session {
        hot: Rc::clone(hot),
        tree: Rc::clone(tree),
        plan,
        lease,
        attempt,
        calls: BTreeMap::new(),
        handles: Handles::default(),
    };
    let mut driven = Box::pin(session.drive(limit_ms));
    match first_of(driven.as_mut(), hot.executor.sleep_until(deadline_ns)).await {
        Either::First(outcome) => outcome,
        // The session goes, and its lease kills the worker.
        Either::Second(()) => {
            let late = format!("{name} did not end within {limit_ms} ms");
            let patience_ns = OUTAGE_AFTER_NS.min(limit_ms * 1_000_000 / 2);
            if tree.waits_ns(hot.executor.now_ns()) < patience_ns {
                return Err(Lost::Failed(late));
            }
            Err(Lost::Outage(format!("{late}, as the log or the state store did not answer")))
        }
    }
}

fn want(plan: &Plan) -> Want {
    let Function { name, version, spec, .. } = &plan.function;
    Want {
        version: *version,
        function: name.clone(),
        concurrency: spec.concurrency,
        depth: plan.above.len(),
        recursive: plan.above.contains(name),
    }
}

impl Session {
    async fn drive(mut self, limit_ms: u64) -> Result<Ending<EngineOps>, Lost> {
        self.attempt.ops().lands_at(self.lease.id());
        let running = Running {
            function: self.plan.function.name.clone(),
            instance: self.attempt.identity().instance,
        };
        let input = self.attempt.input().clone();
        if let Err(lost) = self.lease.invoke(running, self.plan.number, limit_ms, &input) {
            return Err(Lost::Failed(lost.to_string()));
        }
        drop(input);
        match self.converse().await {
            Ok(finished) => self.finish(finished).await,
            Err(Broken::Worker(lost)) => Err(Lost::Failed(lost.to_string())),
            Err(Broken::Lost(Lost::Stop(stop)) | Broken::Stop(stop)) => self.stopped(stop).await,
            Err(Broken::Lost(lost)) => {
                self.unwind(EndReason::Restart);
                Err(lost)
            }
        }
    }

    /// Carries out operations until the function ends.
    async fn converse(&mut self) -> Result<Finished, Broken> {
        loop {
            let said = self.next().await?;
            match said {
                Said::Ask(id, asked) => self.answer(id, asked).await?,
                Said::Finish(finished) => return Ok(finished),
                Said::Hello | Said::Log(..) => {}
            }
        }
    }

    /// The next message; meanwhile Init is looked after.
    async fn next(&mut self) -> Result<Said, Broken> {
        let is_root = self.is_root();
        let Self { lease, tree, attempt, .. } = self;
        match is_root {
            true => Ok(minding_init(tree, attempt, lease.next()).await??),
            false => Ok(lease.next().await?),
        }
    }

    fn is_root(&self) -> bool {
        self.plan.above.is_empty()
    }

    async fn answer(&mut self, id: u64, asked: Asked) -> Result<(), Broken> {
        match self.operate(id, asked).await {
            Err(Broken::Stop(Stop::Refused(refused))) => {
                let answer = Answer::Refused { code: refusal(refused), text: &refused.to_string() };
                Ok(self.lease.reply(id, &answer)?)
            }
            Err(Broken::Stop(Stop::Ops(OpsError::ArenaFull))) => {
                Ok(self.lease.reply(id, &arena_full())?)
            }
            Err(Broken::Stop(stop)) => {
                self.lease.reply(id, &Answer::Ended(reason(&stop)))?;
                Err(Broken::Stop(stop))
            }
            Err(Broken::Lost(lost)) => {
                self.lease.reply(id, &Answer::Ended(EndReason::Restart))?;
                Err(Broken::Lost(lost))
            }
            done => done,
        }
    }

    async fn operate(&mut self, id: u64, asked: Asked) -> Result<(), Broken> {
        let attempt = &mut self.attempt;
        match asked {
            Asked::Read { table, key } => self.read(id, &table, &key).await?,
            Asked::Write { table, key, value } => self.write(id, &table, &key, value).await?,
            Asked::Fence => {
                attempt.fence().await?;
                self.lease.reply(id, &Answer::Done)?;
            }
            Asked::Now => {
                let now = attempt.now().await?;
                self.lease.reply(id, &Answer::Time(now))?;
            }
            Asked::Random => {
                let drawn = attempt.random();
                self.lease.reply(id, &Answer::Draw(drawn))?;
            }
            Asked::TxnBegin => match attempt.begin_transaction().await? {
                BeginTransaction::Run => self.lease.reply(id, &Answer::Done)?,
                BeginTransaction::TooManyConflicts => {
                    self.committed(id, Commit::TooManyConflicts)?;
                }
            },
            Asked::TxnCommit => {
                let commit = attempt.commit().await?;
                self.committed(id, commit)?;
            }
            Asked::TxnAbort => {
                let commit = attempt.abandon().await?;
                self.committed(id, commit)?;
            }
            Asked::SideEffectBegin => match attempt.begin_side_effect().await? {
                SideEffect::Recorded(value) => {
                    self.lease.reply_value(id, &value, Way::Value)?;
                }
                SideEffect::Run => {
                    self.tree.acts();
                    self.lease.reply(id, &Answer::Go)?;
                }
            },
            Asked::SideEffectDone { result } => {
                let own = result.here();
                let recorded = attempt.record_side_effect(Value::Bytes(Rc::clone(&own))).await?;
                if recorded.bytes() == own {
                    self.lease.reply(id, &Answer::Done)?;
                } else {
                    self.lease.reply_value(id, &recorded, Way::Value)?;
                }
            }
            asked @ (Asked::Call { .. }
            | Asked::CallBegin { .. }
            | Asked::Join { .. }
            | Asked::Spawn { .. }
            | Asked::Unknown) => self.call(id, asked).await?,
        }
        Ok(())
    }

    async fn read(&mut self, id: u64, table: &str, key: &[u8]) -> Result<(), Broken> {
        count(&self.hot.metrics.reads_total);
        let Some(spec) = self.table(table) else { return Ok(self.undeclared(id, table)?) };
        match self.attempt.read(&spec, key).await? {
            Some(value) => self.lease.reply_value(id, &value, Way::Value)?,
            None => self.lease.reply(id, &Answer::Absent)?,
        }
        Ok(())
    }

    async fn write(
        &mut self,
        id: u64,
        table: &str,
        key: &[u8],
        value: Option<Bytes>,
    ) -> Result<(), Broken> {
        count(&self.hot.metrics.writes_total);
        let Some(spec) = self.table(table) else { return Ok(self.undeclared(id, table)?) };
        let value = value.map(|bytes| Value::Bytes(bytes.here()));
        self.attempt.write(&spec, key, value).await?;
        Ok(self.lease.reply(id, &Answer::Done)?)
    }

    /// A table as of the root's initial cursor, which all attempts of its run have in common.
    fn table(&self, table: &str) -> Option<TableSpec> {
        let (registry, namespace) =
            (self.hot.registry.borrow(), self.plan.function.name.namespace());
        registry.table(namespace, table, self.attempt.identity().floor)
    }

    /// Such a table would get its protocol by being used, and another one by being declared later:
    /// then its data would not be found.
    fn undeclared(&self, id: u64, table: &str) -> Result<(), WorkerLost> {
        let text = format!(
            "table {table:?} was not declared when this root started; declare it in the \
             application (App::table, hm_app_table) and deploy that"
        );
        self.refuse(id, Refusal::UnknownTable, cut(&text))
    }

    fn committed(&self, id: u64, commit: Commit) -> Result<(), WorkerLost> {
        match commit {
            Commit::Committed => self.lease.reply(id, &Answer::Committed)?,
            Commit::Again => self.lease.reply(id, &Answer::Conflict)?,
            Commit::TooManyConflicts => {
                let text = "the transaction met too many conflicts";
                self.refuse(id, Refusal::TooManyConflicts, text)?;
            }
        }
        Ok(())
    }

    fn refuse(&self, id: u64, code: Refusal, text: &str) -> Result<(), WorkerLost> {
        self.lease.reply(id, &Answer::Refused { code, text })
    }

    /// The function has ended: so does the instance.
    async fn finish(mut self, finished: Finished) -> Result<Ending<EngineOps>, Lost> {
        let result = match finished {
            Finished::Returned(bytes) => Ok(Value::Bytes(bytes.here())),
            Finished::Failed(bytes) => Err(Value::Bytes(bytes.here())),
            Finished::Unwound => {
                return Err(Lost::Failed("the function unwound by itself".to_owned()));
            }
            Finished::Crashed(text) => {
                return Err(Lost::Failed(format!("the function panicked: {text}")));
            }
        };
        // What it began and did not wait for is part of it all the same.
        for call in std::mem::take(&mut self.calls).into_values() {
            let joined = match self.outcome(call).await {
                Ok(outcome) => self.attempt.joined(vec![outcome]).await.map(drop),
                Err(Broken::Stop(stop)) => Err(stop),
                Err(Broken::Lost(lost)) => return Err(lost),
                Err(Broken::Worker(lost)) => return Err(Lost::Failed(lost.to_string())),
            };
            match joined {
                Ok(()) => {}
                Err(Stop::Cancelled) => {
                    return self.attempt.finish_cancelled().await.map_err(Lost::Stop);
                }
                Err(stop) => return Err(Lost::Stop(stop)),
            }
        }
        let Self { attempt, lease, .. } = self;
        // The worker is free for the next one while the end is logged.
        drop(lease);
        attempt.finish(result).await.map_err(Lost::Stop)
    }

    async fn stopped(mut self, stop: Halt) -> Result<Ending<EngineOps>, Lost> {
        self.handles = Handles::default();
        if !matches!(stop, Stop::Cancelled) {
            self.unwind(reason(&stop));
            return Err(Lost::Stop(stop));
        }
        let Self { hot, lease, attempt, .. } = self;
        unwind(&hot, lease, EndReason::Cancelled);
        attempt.finish_cancelled().await.map_err(Lost::Stop)
    }

    fn unwind(self, why: EndReason) {
        unwind(&self.hot, self.lease, why);
    }
}

/// Waits for something in the session of a root. Meanwhile Init is sent if a callee needs it, and
/// one that was sent is answered: a callee waits in vain for one that was refused.
async fn minding_init<T>(
    tree: &Tree,
    attempt: &mut Attempt<EngineOps>,
    wait: impl Future<Output = T>,
) -> Result<T, Halt> {
    let mut wait = std::pin::pin!(wait);
    loop {
        let asked = first_of(tree.need_init.notified(), attempt.watch_init());
        match first_of(wait.as_mut(), asked).await {
            Either::First(done) => return Ok(done),
            Either::Second(Either::First(())) => attempt.send_init().await?,
            Either::Second(Either::Second(answered)) => answered?,
        }
    }
}

/// Lets the function unwind, in the background; a worker that does not is killed.
fn unwind(hot: &Rc<Hot>, lease: Lease, why: EndReason) {
    let executor = hot.executor.clone();
    let deadline_ns = executor.now_ns() + UNWIND_WITHIN_NS;
    let unwound = async move {
        let talk = async {
            loop {
                match lease.next().await {
                    Ok(Said::Ask(id, _)) => lease.reply(id, &Answer::Ended(why)).is_ok(),
                    Ok(Said::Finish(_)) | Err(_) => return,
                    Ok(Said::Hello | Said::Log(..)) => true,
                };
            }
        };
        // Late or not: the lease kills a worker that is in the middle of something.
        executor.timeout_at(deadline_ns, talk).await.ok();
    };
    // Without room for the task its lease is dropped here, with the same effect.
    hot.executor.spawn(unwound).map(drop).ok();
}

const fn reason(stop: &Halt) -> EndReason {
    match stop {
        Stop::RunLost | Stop::Ended(_) => EndReason::Superseded,
        Stop::Cancelled => EndReason::Cancelled,
        Stop::RootGone | Stop::SnapshotTooOld | Stop::Refused(_) => EndReason::Restart,
        Stop::Fault(_) => EndReason::Parked,
        Stop::Ops(_) => EndReason::Stopping,
    }
}
