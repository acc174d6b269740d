//! Commands of the gateway, carried out on the hot thread.

use std::rc::Rc;

use halfmoon_protocol::{Stop, root};
use halfmoon_wire::{InstanceId, tag};

use crate::command::{Command, Document, RootStatus};
use crate::hot::{Hot, ended};
use crate::ops::EngineOps;
use crate::roots;
use crate::tree::Tree;

/// How long the sequencer may take to say where the log ends, in ns, before whoever asks for a root
/// is told that this engine cannot tell. Less than the gateway waits.
const TAIL_WITHIN_NS: u64 = 5_000_000_000;

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
    if let Some(known) = here(hot, id) {
        return known;
    }
    // Whoever hears that nothing is known of it may send it again: so not on old knowledge.
    if !hot.caught_up.get() {
        return RootStatus::Unavailable(
            "the engine has not seen the end of the log yet".to_owned(),
        );
    }
    if hot.log.tag_len(tag::step(id)) == 0 {
        let until_ns = hot.executor.now_ns() + TAIL_WITHIN_NS;
        match hot.executor.timeout_at(until_ns, hot.log.catch_up()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return RootStatus::Unavailable(error.to_string()),
            Err(late) => {
                return RootStatus::Unavailable(format!("the log did not say its end: {late}"));
            }
        }
        if let Some(known) = here(hot, id) {
            return known;
        }
    }
    if hot.log.tag_len(tag::step(id)) == 0 {
        return RootStatus::Unknown;
    }
    let ops = EngineOps::new(Rc::clone(hot), Rc::new(Tree::default()));
    match root::reload(&ops, id, None).await {
        Ok(root::Reload::Ended(end)) => {
            RootStatus::Ended { ended: ended(end.status, &end.result), cursor: end.point.cursor }
        }
        // Steps and no Finish: that is what running looks like.
        Ok(root::Reload::StartOver) | Err(Stop::Fault(_)) => {
            RootStatus::Running { function: None, attempts: 0, here: false, trouble: None }
        }
        Err(stop) => RootStatus::Unavailable(stop.to_string()),
    }
}

/// What this engine knows of a root without the log.
fn here(hot: &Hot, id: InstanceId) -> Option<RootStatus> {
    let Some(root) = hot.roots.borrow().get(&id).cloned() else {
        return hot.remembered(id).map(|(ended, cursor)| RootStatus::Ended { ended, cursor });
    };
    let (function, attempts) = (root.function.borrow().clone(), root.attempts.get());
    Some(match root.parked.borrow().clone() {
        Some(error) => {
            RootStatus::Parked { function: function.unwrap_or_default(), attempts, error }
        }
        None => {
            let trouble = root.trouble(hot.executor.now_ns());
            RootStatus::Running { function, attempts, here: true, trouble }
        }
    })
}
