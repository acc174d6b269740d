//! Commands of the gateway, carried out on the hot thread.

use std::rc::Rc;

use halfmoon_protocol::{Stop, root};
use halfmoon_wire::{InstanceId, tag};

use crate::command::{Command, Document, RootStatus};
use crate::hot::{Hot, ended};
use crate::ops::EngineOps;
use crate::roots;
use crate::tree::Tree;

/// Carries a command out, or starts the task that does. `show` makes a document.
pub(crate) fn obey(
    hot: &Rc<Hot>,
    command: Command,
    show: impl FnOnce(Document) -> serde_json::Value,
) {
    match command {
        Command::Invoke(invoke, reply) => roots::invoke(hot, *invoke, reply),
        Command::Status(id, reply) => {
            let own = Rc::clone(hot);
            spawn(hot, async move {
                reply.send(status(&own, id).await).ok();
            });
        }
        Command::Resume(id, reply) => {
            let root = hot.roots.borrow().get(&id).cloned();
            reply.send(root.is_some_and(|root| root.take_up())).ok();
        }
        Command::Cancel(id, reply) => {
            let ops = EngineOps::new(Rc::clone(hot), Rc::new(Tree::default()));
            spawn(hot, async move {
                let asked = root::cancel(&ops, id).await;
                reply.send(asked.map_err(|stop| stop.to_string())).ok();
            });
        }
        Command::Deploy(binary, reply) => {
            let own = Rc::clone(hot);
            spawn(hot, async move {
                reply.send(own.deploy(*binary).await).ok();
            });
        }
        Command::Show(what, reply) => {
            reply.send(show(what)).ok();
        }
    }
}

/// Without room for the task its reply is dropped, which the gateway tells its client.
fn spawn(hot: &Hot, task: impl Future<Output = ()> + 'static) {
    hot.executor.spawn(task).map(drop).ok();
}

/// What is known of a root: here, else in the log.
async fn status(hot: &Rc<Hot>, id: InstanceId) -> RootStatus {
    let here = hot.roots.borrow().get(&id).cloned();
    if let Some(root) = here {
        let (function, attempts) = (root.function.borrow().clone(), root.attempts.get());
        return match root.parked.borrow().clone() {
            Some(error) => {
                let function = function.unwrap_or_default();
                RootStatus::Parked { function, attempts, error }
            }
            None => {
                let trouble = root.trouble(hot.executor.now_ns());
                RootStatus::Running { function, attempts, here: true, trouble }
            }
        };
    }
    if let Some((ended, cursor)) = hot.remembered(id) {
        return RootStatus::Ended { ended, cursor };
    }
    if hot.log.tag_len(tag::step(id)) == 0 {
        return RootStatus::Unknown;
    }
    let ops = EngineOps::new(Rc::clone(hot), Rc::new(Tree::default()));
    match root::reload(&ops, id, None).await {
        Ok(root::Reload::Ended(end)) => {
            RootStatus::Ended { ended: ended(end.status, &end.result), cursor: end.point.cursor }
        }
        Ok(root::Reload::StartOver) => RootStatus::Unknown,
        // Steps and no Finish: that is what running looks like.
        Err(Stop::Fault(_)) => {
            RootStatus::Running { function: None, attempts: 0, here: false, trouble: None }
        }
        Err(stop) => RootStatus::Unavailable(stop.to_string()),
    }
}
