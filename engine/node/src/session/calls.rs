//! Calls of an attempt: callees run beside it, on workers of their own.

use std::collections::BTreeMap;
use std::rc::Rc;

use halfmoon_channel::{Outcome as Answer, Refusal};
use halfmoon_client::JoinHandle;
use halfmoon_protocol::attempt::Callee;
use halfmoon_protocol::call::{Begin, Ended, Envelope, Input, Outcome, Status};
use halfmoon_protocol::finish::Ending;
use halfmoon_protocol::root::Request;
use halfmoon_protocol::{Attempt, Mode, Stop};

use super::{Broken, Lost, Plan, Session, minding_init, run};
use crate::asked::{Asked, Bytes};
use crate::hot::Hot;
use crate::ids::fingerprint;
use crate::metrics::count;
use crate::names::FunctionName;
use crate::ops::EngineOps;
use crate::registry::Function;
use crate::tree::Tree;
use crate::value::Value;
use crate::workers::Way;

/// Attempts of a callee within one attempt of its caller.
const CALLEE_ATTEMPTS_MAX: u32 = 4;

type CalleeHandle = JoinHandle<Result<Outcome<Value>, Lost>>;

pub(super) enum Call {
    Runs(u32),
    Ended(Box<Outcome<Value>>),
}

/// Callees under way, by the caller's number. They end with the attempt that called them.
#[derive(Default)]
pub(super) struct Handles(BTreeMap<u32, CalleeHandle>);

impl Drop for Handles {
    fn drop(&mut self) {
        self.0.values().for_each(JoinHandle::abort);
    }
}

impl Session {
    /// Carries out what has to do with other functions.
    pub(super) async fn call(&mut self, id: u64, asked: Asked) -> Result<(), Broken> {
        match asked {
            Asked::Call { function, input } => {
                if let Some(call) = self.begin_call(id, &function, input).await? {
                    self.join(id, call).await?;
                }
            }
            Asked::CallBegin { function, input } => {
                if let Some(call) = self.begin_call(id, &function, input).await? {
                    self.calls.insert(id, call);
                    self.lease.reply(id, &Answer::Done)?;
                }
            }
            Asked::Join { call } => match self.calls.remove(&call) {
                Some(call) => self.join(id, call).await?,
                None => self.refuse(id, Refusal::NoSuchCall, "no such call is outstanding")?,
            },
            Asked::Spawn { function, input } => self.spawn(id, &function, input).await?,
            Asked::Read { .. }
            | Asked::Write { .. }
            | Asked::TxnBegin
            | Asked::TxnCommit
            | Asked::TxnAbort
            | Asked::SideEffectBegin
            | Asked::SideEffectDone { .. }
            | Asked::Fence
            | Asked::Now
            | Asked::Random
            | Asked::Unknown => {
                let text = "this engine does not know the operation";
                self.refuse(id, Refusal::NotAllowed, text)?;
            }
        }
        Ok(())
    }

    /// The function as of the root's initial cursor.
    fn callee(&self, function: &str) -> Option<Function> {
        let home = self.plan.function.name.namespace();
        let name = FunctionName::parse(function, home).ok()?;
        self.hot.registry.borrow().function(&name, self.attempt.identity().floor).cloned()
    }

    async fn begin_call(
        &mut self,
        id: u64,
        function: &str,
        input: Bytes,
    ) -> Result<Option<Call>, Broken> {
        let Some(callee) = self.callee(function) else {
            let text = format!("no function {function:?} was deployed when this root started");
            self.refuse(id, Refusal::UnknownFunction, cut(&text))?;
            return Ok(None);
        };
        count(&self.hot.metrics.calls_total);
        let input = Input { value: Value::Bytes(input.here()), fingerprint: 0 };
        let name = callee.name.to_string();
        match self.attempt.begin_call(&name, input, callee.spec.read_only).await? {
            Begin::Recorded(outcome) => Ok(Some(Call::Ended(Box::new(outcome)))),
            Begin::Run(envelope) => {
                let number = envelope.call;
                let mut above = Vec::clone(&self.plan.above);
                above.push(self.plan.function.name.clone());
                let (hot, tree) = (Rc::clone(&self.hot), Rc::clone(&self.tree));
                let plan = Plan { function: callee, above: Rc::new(above), number: 1 };
                let task = run_callee(hot, tree, plan, *envelope);
                let spawned = self.hot.executor.spawn(task);
                let handle = spawned.map_err(|error| Broken::Lost(failed(&error)))?;
                self.handles.0.insert(number, handle);
                Ok(Some(Call::Runs(number)))
            }
        }
    }

    async fn join(&mut self, id: u64, call: Call) -> Result<(), Broken> {
        let outcome = self.outcome(call).await?;
        let mut ended = self.attempt.joined(vec![outcome]).await?;
        let Some(Ended { status, result, .. }) = ended.pop() else { return Ok(()) };
        match status {
            Status::Returned => self.lease.reply_value(id, &result, Way::Value)?,
            Status::Failed => self.lease.reply_value(id, &result, Way::CalleeFailed)?,
            Status::Parked | Status::Cancelled => {
                self.refuse(id, Refusal::CalleeParked, "the callee was parked")?;
            }
        }
        Ok(())
    }

    /// How a callee ended; meanwhile Init is sent if one below needs it.
    pub(super) async fn outcome(&mut self, call: Call) -> Result<Outcome<Value>, Broken> {
        let number = match call {
            Call::Ended(outcome) => return Ok(*outcome),
            Call::Runs(number) => number,
        };
        let is_root = self.is_root();
        // The handle stays where it is aborted if this wait is dropped.
        let Self { handles, tree, attempt, .. } = self;
        let Some(handle) = handles.0.get_mut(&number) else {
            return Err(Broken::Lost(Lost::Failed("a call was joined twice".to_owned())));
        };
        let joined = match is_root {
            true => minding_init(tree, attempt, handle).await?,
            false => handle.await,
        };
        handles.0.remove(&number);
        match joined {
            Ok(outcome) => outcome.map_err(Broken::Lost),
            Err(aborted) => Err(Broken::Lost(failed(&aborted))),
        }
    }

    async fn spawn(&mut self, id: u64, function: &str, input: Bytes) -> Result<(), Broken> {
        let Some(callee) = self.callee(function) else {
            let text = format!("no function {function:?} was deployed when this root started");
            return Ok(self.refuse(id, Refusal::UnknownFunction, cut(&text))?);
        };
        let bytes = input.here();
        let mode = self.attempt.identity().mode;
        let request = Request {
            function: callee.name.to_string(),
            version: callee.version.0,
            input: Input { fingerprint: fingerprint(&bytes), value: Value::Bytes(bytes) },
            mode,
            keyed: false,
            read_only: callee.spec.read_only,
        };
        let root = self.attempt.call_detached(request.clone()).await?;
        if mode == Mode::Unlogged {
            // Nothing is in the log, so nobody else starts it.
            self.tree.acts();
            self.hot.start_unlogged(root, request);
        }
        Ok(self.lease.reply(id, &Answer::Instance(root.0))?)
    }
}

/// A callee, attempted until it ends or has failed too often.
async fn run_callee(
    hot: Rc<Hot>,
    tree: Rc<Tree>,
    mut plan: Plan,
    envelope: Envelope<Value>,
) -> Result<Outcome<Value>, Lost> {
    let call = envelope.call;
    loop {
        let lost = match attempt_callee(&hot, &tree, &plan, envelope.clone()).await {
            Err(Lost::Stop(Stop::Ended(ended))) => {
                return Ok(Outcome { call, ended: *ended, transaction: None });
            }
            Err(Lost::Failed(why)) => why,
            other => return other,
        };
        if plan.number >= CALLEE_ATTEMPTS_MAX {
            return Err(Lost::Failed(lost));
        }
        tracing::info!(function = %plan.function.name, attempt = plan.number, lost, "calling again");
        hot.executor.sleep(hot.backoff_ns(plan.number)).await;
        plan.number += 1;
    }
}

async fn attempt_callee(
    hot: &Rc<Hot>,
    tree: &Rc<Tree>,
    plan: &Plan,
    envelope: Envelope<Value>,
) -> Result<Outcome<Value>, Lost> {
    let ops = EngineOps::new(Rc::clone(hot), Rc::clone(tree));
    let attempt = match Attempt::callee(ops, envelope).await.map_err(Lost::Stop)? {
        Callee::Ended(outcome) => return Ok(outcome),
        Callee::Run(attempt) => attempt,
    };
    let Ending { outcome, finish } = Box::pin(run(hot, tree, plan.clone(), attempt)).await?;
    if let Some(finish) = finish {
        // It only spares running the callee again: lost, it costs that.
        hot.executor.spawn(async move { finish.append().await.is_ok() }).map(drop).ok();
    }
    Ok(outcome)
}

fn failed(error: &impl std::fmt::Display) -> Lost {
    Lost::Failed(error.to_string())
}

pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(halfmoon_channel::limits::TEXT_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
