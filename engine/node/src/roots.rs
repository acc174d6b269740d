//! The life of a root on this engine: started, attempted until it ends or has failed too often,
//! parked and resumed; whoever waits for it is answered once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use halfmoon_protocol::call::{self, Input};
use halfmoon_protocol::finish::{Ending, Finish};
use halfmoon_protocol::root::{self, Reload, Request, Start, Started};
use halfmoon_protocol::{Attempt, Refused, Stop};
use halfmoon_wire::{InstanceId, SeqNum};
use tokio::sync::oneshot;

use crate::command::{Consistency, Invoke, Invoked, Wait};
use crate::hot::{Hot, ROOTS_MAX, ended};
use crate::ids::fingerprint;
use crate::manifest::{ATTEMPTS_DEFAULT, Version};
use crate::metrics::count;
use crate::names::{DEFAULT_NAMESPACE, FunctionName};
use crate::ops::{EngineOps, Tree};
use crate::pool;
use crate::registry::Function;
use crate::session::{self, Halt, Lost, Plan};
use crate::sync::Notify;
use crate::value::Value;
use crate::workers::AcquireError;

/// How often an attempt may start over without any of them having failed, before it counts as a
/// failure: each time somebody else was faster, so many in a row are a mistake somewhere.
const RESTARTS_MAX: u32 = 64;

/// Where a root comes from.
pub(crate) enum Origin {
    /// A client's request, yet to be looked up.
    Client(Box<Invoke>),
    /// A request that is complete.
    Request(Box<Request<Value>>),
    /// The log knows.
    Log,
}

/// A root that is unfinished here.
pub(crate) struct Root {
    pub(crate) id: InstanceId,
    /// Its initial cursor, or a lower bound of it: what holds the safe point.
    pub(crate) floor: Cell<SeqNum>,
    pub(crate) function: RefCell<Option<String>>,
    pub(crate) attempts: Cell<u32>,
    /// The error for which it is parked.
    pub(crate) parked: RefCell<Option<String>>,
    pub(crate) resume: Notify,
    origin: RefCell<Option<Origin>>,
    /// What a request under the same key must have.
    input: Option<(String, u128)>,
    waiters: RefCell<Vec<(Wait, oneshot::Sender<Invoked>)>>,
    /// What its waiters were answered: whoever asks again before its Finish is committed hears the
    /// same.
    answered: RefCell<Option<Invoked>>,
    accepted: Cell<bool>,
    keyed: Cell<bool>,
    tree: Rc<Tree>,
}

/// What an attempt's end means for its root.
enum Next {
    Done,
    Again,
    Failed(String),
    Park(String),
}

impl Root {
    pub(crate) fn new(id: InstanceId, origin: Origin, floor: SeqNum) -> Rc<Self> {
        let (input, keyed) = match &origin {
            Origin::Client(invoke) => {
                let input = (invoke.function.to_string(), fingerprint(&invoke.input));
                (Some(input), invoke.keyed)
            }
            Origin::Request(request) => (None, request.keyed),
            Origin::Log => (None, true),
        };
        Rc::new(Self {
            id,
            floor: Cell::new(floor),
            function: RefCell::new(input.as_ref().map(|(function, _)| function.clone())),
            attempts: Cell::new(0),
            parked: RefCell::default(),
            resume: Notify::default(),
            origin: RefCell::new(Some(origin)),
            input,
            waiters: RefCell::default(),
            answered: RefCell::default(),
            accepted: Cell::new(false),
            keyed: Cell::new(keyed),
            tree: Rc::default(),
        })
    }

    fn wait(&self, wait: Wait, reply: oneshot::Sender<Invoked>) {
        self.waiters.borrow_mut().push((wait, reply));
    }

    fn answer(&self, outcome: &Invoked) {
        self.answered.replace(Some(outcome.clone()));
        for (_, reply) in self.waiters.borrow_mut().drain(..) {
            // A caller that has gone needs no answer.
            reply.send(outcome.clone()).ok();
        }
    }

    /// Answers those who only wait for it to be sure to run.
    fn accept(&self) {
        self.accepted.set(true);
        let mut waiters = self.waiters.borrow_mut();
        for (_, reply) in waiters.extract_if(.., |(wait, _)| *wait == Wait::Accepted) {
            reply.send(Invoked::Accepted).ok();
        }
    }

    fn wants_acceptance(&self) -> bool {
        self.waiters.borrow().iter().any(|(wait, _)| *wait == Wait::Accepted)
    }

    /// Nobody waits for its reply any more, and nothing of it is in the log.
    fn is_forgotten(&self) -> bool {
        let waiters = self.waiters.borrow();
        !self.keyed.get()
            && !self.accepted.get()
            && self.input.is_some()
            && waiters.iter().all(|(_, reply)| reply.is_closed())
    }
}

/// A client's request: joins the root if it is here, else begins it.
pub(crate) fn invoke(hot: &Rc<Hot>, invoke: Invoke, reply: oneshot::Sender<Invoked>) {
    let known = hot.roots.borrow().get(&invoke.id).cloned();
    if let Some(root) = known {
        join(&root, &invoke, reply);
        return;
    }
    if hot.stopping.get() {
        reply.send(Invoked::Unavailable("the engine is stopping".to_owned())).ok();
        return;
    }
    if hot.roots.borrow().len() >= ROOTS_MAX {
        let why = format!("{ROOTS_MAX} invocations are unfinished here");
        reply.send(Invoked::Overloaded(why)).ok();
        return;
    }
    let (id, wait) = (invoke.id, invoke.wait);
    let root = Root::new(id, Origin::Client(Box::new(invoke)), hot.log.applied());
    root.wait(wait, reply);
    begin(hot, root);
}

fn join(root: &Root, invoke: &Invoke, reply: oneshot::Sender<Invoked>) {
    let same = root.input.as_ref().is_none_or(|(function, input)| {
        *function == invoke.function.to_string() && *input == fingerprint(&invoke.input)
    });
    let (parked, answered) = (root.parked.borrow().clone(), root.answered.borrow().clone());
    let now = match (parked, answered) {
        _ if !same => Invoked::KeyReused,
        (Some(error), _) => Invoked::Parked { error },
        (None, _) if invoke.wait == Wait::Accepted && root.accepted.get() => Invoked::Accepted,
        (None, Some(outcome)) => outcome,
        (None, None) => {
            root.wait(invoke.wait, reply);
            return;
        }
    };
    reply.send(now).ok();
}

/// Starts a root's task.
pub(crate) fn begin(hot: &Rc<Hot>, root: Rc<Root>) {
    hot.roots.borrow_mut().insert(root.id, Rc::clone(&root));
    let task = {
        let (hot, root) = (Rc::clone(hot), Rc::clone(&root));
        async move {
            Box::pin(live(&hot, &root)).await;
            hot.roots.borrow_mut().remove(&root.id);
        }
    };
    if hot.executor.spawn(task).is_err() {
        hot.roots.borrow_mut().remove(&root.id);
        root.answer(&Invoked::Overloaded("too many tasks run on this engine".to_owned()));
    }
}

async fn live(hot: &Rc<Hot>, root: &Rc<Root>) {
    let request = match prepare(hot, root).await {
        Ok(request) => request,
        Err(outcome) => {
            root.answer(&outcome);
            return;
        }
    };
    let (mut failures, mut restarts) = (0, 0);
    loop {
        root.attempts.set(root.attempts.get() + 1);
        count(&hot.metrics.attempts_total);
        let next = attempt(hot, root, request.clone()).await;
        let error = match next {
            Next::Done => return,
            Next::Again if restarts < RESTARTS_MAX => {
                restarts += 1;
                continue;
            }
            Next::Again => "it was started over too often".to_owned(),
            Next::Park(error) => {
                park(hot, root, &error).await;
                (failures, restarts) = (0, 0);
                continue;
            }
            Next::Failed(error) => error,
        };
        failures += 1;
        tracing::info!(root = %root.id, failures, error, "an attempt failed");
        if failures < max_attempts(hot, root) {
            hot.executor.sleep(hot.backoff_ns(failures)).await;
        } else if has_trace(hot, root) {
            park(hot, root, &error).await;
            (failures, restarts) = (0, 0);
        } else {
            root.answer(&Invoked::GaveUp { error });
            return;
        }
        if root.is_forgotten() && !has_trace(hot, root) {
            return;
        }
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
    let mut cursor = invoke.cursor;
    if invoke.consistency == Consistency::Linearizable {
        cursor = cursor.max(hot.log.tail().await.map_err(unavailable)?);
    }
    hot.log.wait_applied(cursor).await.map_err(unavailable)?;
    root.floor.set(hot.log.applied());
    let find = || {
        let registry = hot.registry.borrow();
        registry.function(&invoke.function, root.floor.get()).cloned()
    };
    let function = match find() {
        Some(function) => function,
        None => {
            // It may have been deployed through another engine a moment ago.
            let tail = hot.log.tail().await.map_err(unavailable)?;
            hot.log.wait_applied(tail).await.map_err(unavailable)?;
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
    let ops = EngineOps::new(Rc::clone(hot), Rc::clone(&root.tree));
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
            reply(hot, root, &outcome.ended);
            match finish {
                Some(finish) => finished(hot, root, finish).await,
                None => Next::Done,
            }
        }
        Err(Lost::Stop(stop)) => stopped(hot, root, stop).await,
        Err(Lost::NoWorker(error)) => no_worker(hot, root, error),
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
    *root.function.borrow_mut() = Some(identity.function.clone());
    let function = function_of(hot, &identity.function, Version(identity.version), identity.floor)
        .ok_or_else(|| Lost::Failed(format!("{} is not deployed any more", identity.function)))?;
    if root.wants_acceptance() {
        attempt.ensure_init().await.map_err(Lost::Stop)?;
        root.accept();
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
    if matches!(ended, crate::command::Ended::Failed(_)) {
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
        // Finished by a peer and folded away, or never begun.
        Err(Stop::RootGone) => Next::Done,
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
        // Told by an operation between attempts; the next attempt meets it again and ends it.
        Stop::Cancelled => Next::Failed("cancelled while it was starting".to_owned()),
        Stop::RootGone | Stop::SnapshotTooOld => reload(hot, root).await,
        Stop::Fault(fault) => Next::Park(fault.to_string()),
        Stop::Refused(Refused::KeyReused) => {
            root.answer(&Invoked::KeyReused);
            Next::Done
        }
        Stop::Refused(refused) => Next::Failed(refused.to_string()),
        Stop::Ops(error) => Next::Failed(error.to_string()),
    }
}

async fn reload(hot: &Rc<Hot>, root: &Root) -> Next {
    let ops = EngineOps::new(Rc::clone(hot), Rc::clone(&root.tree));
    let seen = async {
        let tail = hot.log.tail().await?;
        hot.log.wait_applied(tail).await
    };
    if let Err(error) = seen.await {
        return Next::Failed(error.to_string());
    }
    match root::reload(&ops, root.id).await {
        Ok(Reload::Ended(ended)) => {
            reply(hot, root, &ended);
            Next::Done
        }
        Ok(Reload::StartOver) => {
            root.floor.set(hot.log.applied());
            Next::Again
        }
        Err(stop) => Next::Park(stop.to_string()),
    }
}

fn no_worker(hot: &Hot, root: &Root, error: AcquireError) -> Next {
    let full = matches!(error, AcquireError::Refused(pool::Refused::QueueFull { .. }));
    if full && !has_trace(hot, root) {
        root.answer(&Invoked::Overloaded(error.to_string()));
        return Next::Done;
    }
    Next::Failed(error.to_string())
}

/// Waits until somebody resumes it.
async fn park(hot: &Hot, root: &Root, error: &str) {
    tracing::error!(root = %root.id, error, "parked; POST /v1/invocations/{}/resume", root.id);
    hot.parked();
    *root.parked.borrow_mut() = Some(error.to_owned());
    root.answer(&Invoked::Parked { error: error.to_owned() });
    root.answered.replace(None);
    root.resume.notified().await;
    root.parked.borrow_mut().take();
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
