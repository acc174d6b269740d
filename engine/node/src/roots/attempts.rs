//! Attempts of a root, one after another, until it ends, is parked, or is given up without a trace.

use std::rc::Rc;

use halfmoon_protocol::call::{self, Input, Status};
use halfmoon_protocol::finish::{Ending, Finish};
use halfmoon_protocol::root::{self, Reload, Request, Start, Started};
use halfmoon_protocol::{Attempt, Refused, Stop};
use halfmoon_wire::SeqNum;

use super::{Origin, Root, decided};
use crate::command::{Consistency, Ended, Invoked};
use crate::fresh;
use crate::hot::{Hot, ended};
use crate::ids::fingerprint;
use crate::manifest::{ATTEMPTS_DEFAULT, Version};
use crate::metrics::count;
use crate::names::{DEFAULT_NAMESPACE, FunctionName};
use crate::ops::{EngineOps, OpsError};
use crate::pool;
use crate::registry::Function;
use crate::session::{self, Halt, Lost, Plan};
use crate::value::Value;
use crate::workers::AcquireError;

/// How often an attempt may start over without any of them having failed, before it counts as a
/// failure: each time somebody else was faster, so many in a row are a mistake somewhere.
const RESTARTS_MAX: u32 = 64;
/// How long a root that is given up waits for the answers to its appends before whoever waits for
/// it is told that it goes on, in ns. As long as a new sequencer takes to be found, and more.
const SETTLE_WITHIN_NS: u64 = 2_000_000_000;

/// What an attempt's end means for its root.
enum Next {
    Done,
    Again,
    /// The function, or its worker, failed: so many of these, and the root is given up or parked.
    Failed(String),
    /// Log, store or pool cannot serve now: no fault of the function's, so it is not counted.
    Outage(String),
    /// No invocation can wait for a worker any more.
    Full(String),
    Park(String),
}

/// Failures and pauses of a root so far.
#[derive(Default)]
struct Tally {
    failures: u32,
    restarts: u32,
    outages: u32,
}

/// Brings a root to its end.
pub(super) async fn live(hot: &Rc<Hot>, root: &Rc<Root>) {
    let request = match prepare(hot, root).await {
        Ok(request) => request,
        Err(outcome) => {
            root.answer(&outcome);
            return;
        }
    };
    let mut tally = Tally::default();
    loop {
        root.attempts.set(root.attempts.get() + 1);
        root.ended.set(false);
        count(&hot.metrics.attempts_total);
        let next = attempt(hot, root, request.clone()).await;
        root.tree.prune();
        if !go_on(hot, root, &mut tally, next).await || is_needless(hot, root) {
            return;
        }
    }
}

/// Whether nobody waits for it and nothing of it is anywhere, nor will be: its Init may be under
/// way, and would find that its floor is held no more.
fn is_needless(hot: &Hot, root: &Root) -> bool {
    root.tree.prune();
    root.is_forgotten() && root.tree.is_settled() && !has_effects(hot, root)
}

/// Waits until there is to be another attempt; false if there is to be none.
async fn go_on(hot: &Rc<Hot>, root: &Root, tally: &mut Tally, next: Next) -> bool {
    let error = match next {
        Next::Done => return false,
        Next::Again if tally.restarts < RESTARTS_MAX => {
            tally.restarts += 1;
            return true;
        }
        Next::Again => "it was started over too often".to_owned(),
        Next::Park(error) => {
            if !root.ended.get() {
                park(hot, root, &error).await;
            }
            *tally = Tally::default();
            return true;
        }
        Next::Full(why) => {
            settle(hot, root).await;
            if root.ended.get() {
                return true;
            }
            if !has_effects(hot, root) {
                root.answer(&Invoked::Overloaded(why));
                return false;
            }
            return outlast(hot, root, tally, why).await;
        }
        Next::Outage(why) => return outlast(hot, root, tally, why).await,
        Next::Failed(error) => error,
    };
    tally.outages = 0;
    tally.failures += 1;
    tracing::info!(root = %root.id, failures = tally.failures, error, "an attempt failed");
    root.trouble.replace(Some(error.clone()));
    if tally.failures < max_attempts(hot, root) {
        hot.executor.sleep(hot.backoff_ns(tally.failures)).await;
        return true;
    }
    settle(hot, root).await;
    // A peer has ended it meanwhile, and not without effects: the next attempt finds its result.
    if root.ended.get() {
        *tally = Tally::default();
        return true;
    }
    if has_effects(hot, root) {
        park(hot, root, &error).await;
        *tally = Tally::default();
        return true;
    }
    root.answer(&Invoked::GaveUp { error });
    false
}

/// Pauses before the next attempt, for as long as it takes.
async fn outlast(hot: &Hot, root: &Root, tally: &mut Tally, why: String) -> bool {
    tally.outages += 1;
    tracing::info!(root = %root.id, outages = tally.outages, why, "an attempt was cut short");
    root.trouble.replace(Some(why));
    hot.executor.sleep(hot.backoff_ns(tally.outages)).await;
    true
}

/// Waits until it is known what has got into the log of what the attempts have sent there. Those
/// who wait for the root are not kept waiting for that.
async fn settle(hot: &Hot, root: &Root) {
    let until_ns = hot.executor.now_ns() + SETTLE_WITHIN_NS;
    if hot.executor.timeout_at(until_ns, root.tree.settled()).await.is_err() {
        root.answer(&Invoked::Running);
        root.tree.settled().await;
        root.answered.replace(None);
    }
}

/// Looks up what the client asked for, as of where the root starts.
async fn prepare(hot: &Rc<Hot>, root: &Root) -> Result<Option<Request<Value>>, Invoked> {
    let origin = root.origin.borrow_mut().take();
    let invoke = match origin {
        Some(Origin::Client(invoke)) => *invoke,
        Some(Origin::Request(request)) => return Ok(Some(*request)),
        Some(Origin::Log) | None => return Ok(None),
    };
    let unavailable = |error: halfmoon_client::LogError| Invoked::Unavailable(error.to_string());
    let linearizable = invoke.consistency == Consistency::Linearizable;
    if linearizable || invoke.cursor > hot.log.applied() {
        fresh::renew(hot).await.map_err(unavailable)?;
    }
    // What is asked for from here on shows all that was committed before the request came.
    if !hot.lease.is_fresh(hot.executor.now_ns()) {
        fresh::renew(hot).await.map_err(unavailable)?;
    }
    // Whoever was given a cursor was given one that is in the log.
    if invoke.cursor > hot.log.applied() {
        return Err(Invoked::BeyondTail { cursor: invoke.cursor, tail: hot.log.applied() });
    }
    root.floor.set(hot.log.applied());
    let find = || {
        let registry = hot.registry.borrow();
        registry.function(&invoke.function, root.floor.get()).cloned()
    };
    let function = match find() {
        Some(function) => function,
        None => {
            // It may have been deployed through another engine a moment ago.
            fresh::renew(hot).await.map_err(unavailable)?;
            root.floor.set(hot.log.applied());
            find().ok_or_else(|| Invoked::Unknown(hot.registry.borrow().near(&invoke.function)))?
        }
    };
    let mode = hot.registry.borrow().mode(function.name.namespace());
    Ok(Some(Request {
        function: function.name.to_string(),
        version: function.version.0,
        input: Input { fingerprint: fingerprint(&invoke.input), value: Value::from(invoke.input) },
        mode,
        keyed: invoke.keyed,
        read_only: function.spec.read_only,
    }))
}

async fn attempt(hot: &Rc<Hot>, root: &Rc<Root>, request: Option<Request<Value>>) -> Next {
    root.run.set(None);
    let ops = EngineOps::new(Rc::clone(hot), Rc::clone(&root.tree));
    let puts = ops.clone();
    let start = Start { root: root.id, cursor: root.floor.get(), request };
    let attempt = match root::start(ops, start).await {
        Ok(Started::Run(attempt)) => attempt,
        Ok(Started::Ended(ended)) => {
            reply(hot, root, &ended);
            return Next::Done;
        }
        Ok(Started::Nothing) => return Next::Done,
        Err(stop) => return stopped(hot, root, stop).await,
    };
    match Box::pin(run(hot, root, attempt)).await {
        Ok(Ending { outcome, finish }) => {
            // Of callees that were cancelled, or of an attempt that failed.
            if finish.is_some()
                && let Err(error) = puts.complete_puts().await
            {
                return unserved(&error);
            }
            reply(hot, root, &outcome.ended);
            match finish {
                Some(finish) => finished(hot, root, finish).await,
                None => Next::Done,
            }
        }
        Err(Lost::Stop(stop)) => stopped(hot, root, stop).await,
        Err(Lost::NoWorker(error)) => no_worker(&error),
        Err(Lost::Outage(why)) => Next::Outage(why),
        Err(Lost::Failed(error)) => Next::Failed(error),
    }
}

async fn run(
    hot: &Rc<Hot>,
    root: &Root,
    mut attempt: Box<Attempt<EngineOps>>,
) -> Result<Ending<EngineOps>, Lost> {
    let identity = attempt.identity();
    root.floor.set(identity.floor);
    root.run.set(Some(identity.run));
    if root.asked.borrow().is_none() {
        root.asked.replace(Some((identity.function.clone(), attempt.fingerprint())));
        decided(hot, root);
    }
    *root.function.borrow_mut() = Some(identity.function.clone());
    let function = function_of(hot, &identity.function, Version(identity.version), identity.floor)
        .ok_or_else(|| Lost::Failed(format!("{} is not deployed any more", identity.function)))?;
    if root.wants_acceptance() {
        match attempt.ensure_init().await {
            Ok(()) => root.accept(),
            Err(Stop::Cancelled) => return attempt.finish_cancelled().await.map_err(Lost::Stop),
            Err(stop) => return Err(Lost::Stop(stop)),
        }
    }
    let plan = Plan { function, above: Rc::default(), number: root.attempts.get() };
    session::run(hot, &root.tree, plan, attempt).await
}

/// The function that a root runs: the version in its Init, whatever was deployed since.
fn function_of(hot: &Hot, function: &str, version: Version, cursor: SeqNum) -> Option<Function> {
    let name = FunctionName::parse(function, DEFAULT_NAMESPACE).ok()?;
    let registry = hot.registry.borrow();
    registry.function_of(&name, version).or_else(|| registry.function(&name, cursor)).cloned()
}

fn reply(hot: &Hot, root: &Root, end: &call::Ended<Value>) {
    let ended = ended(end.status, &end.result);
    count(&hot.metrics.roots_finished_total);
    if matches!(ended, Ended::Failed(_)) {
        count(&hot.metrics.roots_failed_total);
    }
    // What the caller wrote may lie beyond its cursor only as cells, which need no bound.
    let cursor = end.point.cursor;
    hot.remember(root.id, &ended, cursor);
    root.answer(&Invoked::Ended { ended, cursor, appends: root.tree.appends.get() });
}

/// The reply is given; the end is logged, again and again if need be.
async fn finished(hot: &Rc<Hot>, root: &Rc<Root>, finish: Finish<EngineOps>) -> Next {
    match finish.append().await {
        Ok(()) | Err(Stop::RunLost | Stop::Ended(_)) => Next::Done,
        // Finished by a peer and folded away, or never begun: then there is nothing to start over.
        Err(Stop::RootGone) => {
            let next = reload(hot, root).await;
            if matches!(next, Next::Again) { Next::Done } else { next }
        }
        Err(stop) => {
            if !has_trace(hot, root) {
                return Next::Done;
            }
            stopped(hot, root, stop).await
        }
    }
}

async fn stopped(hot: &Rc<Hot>, root: &Root, stop: Halt) -> Next {
    match stop {
        Stop::RunLost => Next::Again,
        Stop::Ended(ended) => {
            reply(hot, root, &ended);
            Next::Done
        }
        Stop::Cancelled => cancelled(hot, root).await,
        Stop::RootGone | Stop::SnapshotTooOld => reload(hot, root).await,
        Stop::Fault(fault) => Next::Park(fault.to_string()),
        Stop::Refused(Refused::KeyReused) => {
            root.answer(&Invoked::KeyReused);
            Next::Done
        }
        Stop::Refused(refused) => Next::Failed(refused.to_string()),
        Stop::Ops(error) => unserved(&error),
    }
}

fn unserved(error: &OpsError) -> Next {
    if error.is_outage() {
        Next::Outage(error.to_string())
    } else {
        Next::Failed(error.to_string())
    }
}

/// Told by an operation between attempts. Without an Init it is over: none gets past the request.
/// With one the next attempt meets the request again, and ends the root.
async fn cancelled(hot: &Rc<Hot>, root: &Root) -> Next {
    settle(hot, root).await;
    if root.ended.get() {
        return Next::Again;
    }
    if has_trace(hot, root) {
        return Next::Failed("cancelled while it was starting".to_owned());
    }
    let point = call::Point { cursor: root.floor.get(), counter: 0 };
    let result = Value::from(Vec::new());
    reply(hot, root, &call::Ended { status: Status::Cancelled, result, point });
    Next::Done
}

async fn reload(hot: &Rc<Hot>, root: &Root) -> Next {
    let ops = EngineOps::new(Rc::clone(hot), Rc::clone(&root.tree));
    if let Err(error) = hot.log.catch_up().await {
        return Next::Outage(error.to_string());
    }
    match root::reload(&ops, root.id, root.run.get()).await {
        Ok(Reload::Ended(ended)) => {
            reply(hot, root, &ended);
            Next::Done
        }
        Ok(Reload::StartOver) => {
            root.floor.set(hot.log.applied());
            Next::Again
        }
        Err(Stop::Ops(error)) if error.is_outage() => Next::Outage(error.to_string()),
        Err(stop) => Next::Park(stop.to_string()),
    }
}

fn no_worker(error: &AcquireError) -> Next {
    let why = error.to_string();
    match error {
        AcquireError::Refused(pool::Refused::QueueFull { .. }) => Next::Full(why),
        AcquireError::NoBinary(_) | AcquireError::Stopping => Next::Outage(why),
        AcquireError::Refused(pool::Refused::TooDeep) | AcquireError::DoesNotStart(_) => {
            Next::Failed(why)
        }
    }
}

/// Waits until somebody resumes it.
async fn park(hot: &Hot, root: &Root, error: &str) {
    tracing::error!(root = %root.id, error, "parked; POST /v1/invocations/{}/resume", root.id);
    hot.parks();
    *root.parked.borrow_mut() = Some(error.to_owned());
    root.answer(&Invoked::Parked { error: error.to_owned() });
    root.answered.replace(None);
    root.resume.notified().await;
    hot.unparks();
}

/// Whether anything of it is to be seen anywhere. Only to be trusted once all appends are answered.
fn has_effects(hot: &Hot, root: &Root) -> bool {
    has_trace(hot, root) || root.tree.has_acted()
}

/// Whether the log has an Init of it.
fn has_trace(hot: &Hot, root: &Root) -> bool {
    hot.intents.borrow().find(root.id).is_some()
}

fn max_attempts(hot: &Hot, root: &Root) -> u32 {
    let function = root.function.borrow();
    let declared = function.as_ref().and_then(|function| {
        let name = FunctionName::parse(function, DEFAULT_NAMESPACE).ok()?;
        let registry = hot.registry.borrow();
        registry.function(&name, SeqNum::MAX).map(|function| function.spec.max_attempts)
    });
    declared.unwrap_or(ATTEMPTS_DEFAULT).max(1)
}
