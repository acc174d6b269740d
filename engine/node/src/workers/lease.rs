//! A worker in the hands of a session.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::PoisonError;
use std::task::Poll;

use halfmoon_channel::{AllocError, Data, EngineSide, Invoke, Outcome, SendError};

use super::{Running, WorkerLost, Workers};
use crate::asked::Said;
use crate::pool::WorkerId;
use crate::value::Value;

/// As what a worker gets a value.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    Value,
    CalleeFailed,
}

impl Way {
    const fn of(self, data: Data<'_>) -> Outcome<'_> {
        match self {
            Self::Value => Outcome::Value(data),
            Self::CalleeFailed => Outcome::CalleeFailed(data),
        }
    }
}

/// A worker, for one invocation.
pub(crate) struct Lease {
    workers: Rc<Workers>,
    id: WorkerId,
    invoked: Cell<bool>,
}

impl Lease {
    pub(super) const fn new(workers: Rc<Workers>, id: WorkerId) -> Self {
        Self { workers, id, invoked: Cell::new(false) }
    }

    pub(crate) const fn id(&self) -> WorkerId {
        self.id
    }

    /// Starts the invocation.
    pub(crate) fn invoke(
        &self,
        running: Running,
        attempt: u32,
        deadline_ms: u64,
        input: &Value,
    ) -> Result<(), WorkerLost> {
        let label = format!("{} {}", running.function, running.instance);
        let bytes = input.bytes();
        let mut live = self.workers.live.borrow_mut();
        let Some(worker) = live.get_mut(&self.id).filter(|worker| !worker.killed) else {
            return Err(self.workers.why_lost(self.id));
        };
        *worker.label.lock().unwrap_or_else(PoisonError::into_inner) = label;
        let function = running.function.name().to_owned();
        let instance = running.instance.0;
        worker.running = Some(running);
        self.invoked.set(true);
        let input = worker.side.place(&bytes).map_err(|error| broke(&error))?;
        let invoke = Invoke { function: &function, instance, attempt, deadline_ms, input };
        worker.side.invoke(&invoke).map_err(|error| broke(&error))
    }

    /// The next that the worker says.
    pub(crate) async fn next(&self) -> Result<Said, WorkerLost> {
        let notify = {
            let live = self.workers.live.borrow();
            let Some(worker) = live.get(&self.id) else {
                return Err(self.workers.why_lost(self.id));
            };
            Rc::clone(&worker.notify)
        };
        std::future::poll_fn(|context| {
            loop {
                if let Some(said) = self.try_next() {
                    return Poll::Ready(said);
                }
                if notify.poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    fn try_next(&self) -> Option<Result<Said, WorkerLost>> {
        let mut live = self.workers.live.borrow_mut();
        let Some(worker) = live.get_mut(&self.id).filter(|worker| !worker.killed) else {
            drop(live);
            return Some(Err(self.workers.why_lost(self.id)));
        };
        let mut inbox = self.workers.inbox.borrow_mut();
        loop {
            let said = match worker.side.poll_request(&mut inbox) {
                Ok(None) => return None,
                Ok(Some(request)) => Said::of(request),
                Err(error) => return Some(Err(WorkerLost::Broke(error.to_string()))),
            };
            match said {
                Said::Log(level, text) => print(level, worker.running.as_ref(), &text),
                Said::Hello => {}
                said @ (Said::Ask(..) | Said::Finish(_)) => {
                    return Some(said.load(&worker.side).map_err(|error| broke(&error)));
                }
            }
        }
    }

    /// Answers a request.
    pub(crate) fn reply(&self, id: u64, outcome: &Outcome<'_>) -> Result<(), WorkerLost> {
        self.with(|side| side.send_reply(id, outcome))
    }

    /// Answers a request with a value: where it lies, if that is in this worker's arena.
    pub(crate) fn reply_value(&self, id: u64, value: &Value, way: Way) -> Result<(), WorkerLost> {
        if let Some(buffer) = value.give_to(self.id) {
            return self.with(|side| side.send_reply(id, &way.of(Data::Shared(buffer))));
        }
        let bytes = value.bytes();
        self.with(|side| match side.place(&bytes) {
            Ok(data) => side.send_reply(id, &way.of(data)),
            Err(AllocError::Full { .. } | AllocError::TooMany) => {
                side.send_reply(id, &crate::asked::arena_full())
            }
            Err(error) => Err(error.into()),
        })
    }

    fn with(
        &self,
        act: impl FnOnce(&mut EngineSide) -> Result<(), SendError>,
    ) -> Result<(), WorkerLost> {
        let mut live = self.workers.live.borrow_mut();
        match live.get_mut(&self.id).filter(|worker| !worker.killed) {
            Some(worker) => act(&mut worker.side).map_err(|error| broke(&error)),
            None => {
                drop(live);
                Err(self.workers.why_lost(self.id))
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let busy = {
            let live = self.workers.live.borrow();
            live.get(&self.id).is_some_and(|worker| worker.side.is_busy())
        };
        if self.invoked.get() && busy {
            self.workers.kill(self.id);
        } else {
            self.workers.release(self.id);
        }
    }
}

fn broke(error: &impl std::fmt::Display) -> WorkerLost {
    WorkerLost::Broke(error.to_string())
}

fn print(level: halfmoon_channel::Level, running: Option<&Running>, text: &str) {
    use halfmoon_channel::Level;
    let function = running.map(|running| running.function.to_string());
    let instance = running.map(|running| running.instance.to_string());
    match level {
        Level::Error => tracing::error!(target: "function", function, instance, "{text}"),
        Level::Warn => tracing::warn!(target: "function", function, instance, "{text}"),
        Level::Info => tracing::info!(target: "function", function, instance, "{text}"),
        Level::Debug | _ => tracing::debug!(target: "function", function, instance, "{text}"),
    }
}
