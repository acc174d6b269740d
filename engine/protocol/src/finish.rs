//! The end of an instance.
//!
//! - F1. Finish is the end marker of a root; of a callee it only spares running it again.
//! - F2. It is appended once every put of the subtree is acknowledged, and is no step.
//! - F3. A root with an Init is unfinished until its Finish is committed; one without until it has
//!   replied.

use halfmoon_wire::{Condition, tag};

use crate::call::{Ended, Outcome, Status};
use crate::init::InitState;
use crate::ops::{Append, AppendOutcome};
use crate::payload::Body;
use crate::{Attempt, Done, Fault, Mode, Ops, Refused, Stop, ids};

/// An instance has ended: reply with the outcome, then append its Finish in the background.
pub struct Ending<O: Ops> {
    /// What the caller, or the client, is told.
    pub outcome: Outcome<O::Value>,
    /// What is left to do. A root with one is *unfinished* until [`Finish::append`] has returned.
    pub finish: Option<Finish<O>>,
}

/// A Finish that is still to be appended. All sessions below it must have ended.
pub struct Finish<O: Ops> {
    attempt: Attempt<O>,
    ended: Ended<O::Value>,
}

/// Ends an instance.
pub(crate) async fn finish<O: Ops>(
    mut attempt: Attempt<O>,
    status: Status,
    result: O::Value,
) -> Done<Ending<O>, O> {
    let cancelled = status == Status::Cancelled;
    if !attempt.outstanding.is_empty() && !cancelled {
        return Err(Refused::CallsOutstanding.into());
    }
    if attempt.transaction.as_ref().is_some_and(|open| open.own.is_some()) && !cancelled {
        return Err(Refused::InTransaction.into());
    }
    let logged = attempt.identity.mode != Mode::Unlogged;
    if attempt.keyed && logged && !cancelled && !broken!(ReplyBeforeInit) {
        attempt.init_known().await?;
    }
    let transaction = attempt.transaction.take().map(|open| open.frame);
    let ended = match attempt.replay().await {
        Err(Stop::Ended(ended)) => *ended, // a peer's reply, should the function not be the same
        Ok(Some(step)) => return attempt.differs(&step.body, "the end of the instance"),
        Ok(None) => Ended { status, result, point: attempt.point },
        Err(stop) => return Err(stop),
    };
    let outcome = Outcome { call: attempt.call, ended: ended.clone(), transaction };
    let wanted = match attempt.identity.mode {
        Mode::Unlogged => false,
        Mode::Halfmoon | Mode::Boki if outcome.transaction.is_some() => false,
        Mode::Halfmoon | Mode::Boki if attempt.is_root() => {
            !matches!(attempt.init, InitState::Unknown)
        }
        Mode::Halfmoon | Mode::Boki => attempt.has_effects,
    };
    let waited_for = attempt.identity.mode == Mode::Boki;
    let mut finish = wanted.then_some(Finish { attempt, ended });
    if waited_for && let Some(finish) = finish.take() {
        finish.append().await?;
    }
    Ok(Ending { outcome, finish })
}

impl<O: Ops> Finish<O> {
    /// Appends it; that a peer's is there already is success.
    ///
    /// # Errors
    /// [`Stop::RunLost`]: another run has the Init, so this root has nothing to finish. Otherwise
    /// as an operation; to be tried again by whoever takes the root up next.
    pub async fn append(self) -> Done<(), O> {
        let Self { mut attempt, ended } = self;
        attempt.settle_init().await?;
        loop {
            match attempt.peek()? {
                Some((_, entry)) if matches!(entry.body, Body::Finish { .. }) => return Ok(()),
                Some((_, entry)) => {
                    return attempt.differs(&entry.body, "the end of the instance");
                }
                None => {}
            }
            let append = attempt.finish_append(&ended).await?;
            match attempt.ops.append(append).await.map_err(Stop::Ops)? {
                AppendOutcome::Appended(_) => return Ok(()),
                AppendOutcome::Conflict { condition: 0, winner: Some(winner) } => {
                    attempt.log.learn([winner]);
                }
                AppendOutcome::Gap { condition: 0 } => {
                    return Err(Fault::Gap { position: attempt.log.next }.into());
                }
                // No Init of this run: it lost, or it was finished and trimmed.
                AppendOutcome::Conflict { .. } | AppendOutcome::Gap { .. } => {
                    return Err(Stop::RunLost);
                }
                AppendOutcome::RootGone => return Err(Stop::RootGone),
            }
        }
    }
}

impl<O: Ops> Attempt<O> {
    async fn finish_append(&self, ended: &Ended<O::Value>) -> Done<Append, O> {
        let identity = &self.identity;
        let object = ids::own_object(identity.instance);
        let nonce = self.ops.nonce();
        let version = ids::nonce_version(identity.run, identity.instance, self.log.next, nonce);
        let result = self.keep(&object, version, &ended.result).await?;
        let mut point = ended.point;
        if broken!(FinishWithoutCounter) {
            point.counter = 0;
        }
        let mut tags = vec![tag::step(identity.instance)];
        if self.is_root() {
            tags.push(tag::intent());
        }
        Ok(Append {
            tags,
            conditions: vec![
                Condition::Length { tag: tag::step(identity.instance), length: self.log.next },
                Condition::Length { tag: tag::init(identity.run), length: 1 },
            ],
            floor: identity.floor,
            payload: self.entry(Body::Finish { status: ended.status, result, point }).encode(),
        })
    }
}
