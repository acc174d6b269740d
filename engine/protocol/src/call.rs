//! Calls: an envelope goes down, an outcome comes back, and nothing is appended for either.

use halfmoon_wire::{InstanceId, RunId, SeqNum};

use crate::payload::Body;
use crate::step_log::parse;
use crate::transaction::Frame;
use crate::{Attempt, Done, Mode, Ops, Refused, Stop, ids};

/// How far an instance has seen the log, and how many log-free writes it has made since.
///
/// Of its parts an instance at a join takes the larger of each (component-wise): the counter is
/// also the mark that there are writes which no record covers yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Point {
    /// The log up to here has been seen.
    pub cursor: SeqNum,
    /// Log-free writes since the cursor moved.
    pub counter: u32,
}

/// What a function is given: a value, and a fingerprint of its bytes by which two requests under
/// one idempotency key are compared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Input<V> {
    /// The bytes.
    pub value: V,
    /// 128 bits of a cryptographic hash of the bytes, made by whoever has them.
    pub fingerprint: u128,
}

/// What a function is called with: all that a callee must know of the tree above it.
#[derive(Clone, Debug)]
pub struct Envelope<V> {
    /// The callee's id: H(run, caller, call index).
    pub instance: InstanceId,
    /// The root of the tree.
    pub root: InstanceId,
    /// Its run.
    pub run: RunId,
    /// The root's initial cursor: the floor of every append of the tree.
    pub floor: SeqNum,
    /// The caller's number for this call.
    pub call: u32,
    /// Name of the function.
    pub function: String,
    /// The input.
    pub input: V,
    /// How the tree is logged.
    pub mode: Mode,
    /// The caller's point; the callee goes on from it.
    pub point: Point,
    /// The callee, or one above it, is declared `read_only`.
    pub read_only: bool,
    /// Where the Init of the run is, when the caller knows it to be committed.
    pub init: Option<SeqNum>,
    /// The open transaction that the callee takes part in.
    pub transaction: Option<Frame<V>>,
}

/// How an instance ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Status {
    /// The function returned a value.
    Returned = 0,
    /// The function returned an error; the value describes it.
    Failed = 1,
    /// A cancel request took effect; the value is empty.
    Cancelled = 2,
    /// It was parked by its attempts; the value describes why. Never in the log.
    Parked = 3,
}

/// The end of an instance: what its Finish says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended<V> {
    /// How.
    pub status: Status,
    /// The result, or what describes the failure.
    pub result: V,
    /// Its point at the end, all its callees joined.
    pub point: Point,
}

/// What a callee's session hands back to its caller's.
#[derive(Clone, Debug)]
pub struct Outcome<V> {
    /// The caller's number for the call.
    pub call: u32,
    /// How it ended.
    pub ended: Ended<V>,
    /// The transaction that it took part in, with its reads and writes.
    pub transaction: Option<Frame<V>>,
}

/// What to do about a call.
#[derive(Clone, Debug)]
pub enum Begin<V> {
    /// Run the callee: [`crate::Attempt::callee`] with this.
    Run(Box<Envelope<V>>),
    /// Its result is in the caller's own steps (only under [`Mode::Boki`]): join this at once.
    Recorded(Outcome<V>),
}

impl Point {
    /// The larger of each part.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        if broken!(JoinLexicographic) {
            let larger = (other.cursor, other.counter) > (self.cursor, self.counter);
            return if larger { other } else { self };
        }
        Self { cursor: self.cursor.max(other.cursor), counter: self.counter.max(other.counter) }
    }
}

/// Numbers a call, and makes what its callee is given.
pub(crate) async fn begin<O: Ops>(
    attempt: &mut Attempt<O>,
    function: &str,
    input: Input<O::Value>,
    read_only: bool,
) -> Done<Begin<O::Value>, O> {
    let in_transaction = attempt.transaction.is_some();
    if in_transaction && !attempt.outstanding.is_empty() {
        return Err(Refused::ParallelInTransaction.into());
    }
    let call = attempt.calls;
    attempt.calls += 1;
    let read_only = read_only || attempt.identity.read_only;
    match attempt.identity.mode {
        Mode::Boki if !in_transaction => {
            log_intent(attempt, call).await?;
            if let Some(outcome) = recorded(attempt, call).await? {
                attempt.outstanding.insert(call);
                return Ok(Begin::Recorded(outcome));
            }
        }
        // A body logs nothing before its commit, and that can carry Init.
        Mode::Halfmoon if !read_only && !in_transaction => attempt.post_init().await?,
        Mode::Halfmoon | Mode::Boki | Mode::Unlogged => {}
    }
    attempt.outstanding.insert(call);
    let identity = &attempt.identity;
    let mut point = attempt.point;
    if broken!(CounterNotHandedDown) {
        point.counter = 0;
    }
    Ok(Begin::Run(Box::new(Envelope {
        instance: ids::callee(identity.run, identity.instance, call),
        root: identity.root,
        run: identity.run,
        floor: identity.floor,
        call,
        function: function.to_owned(),
        input: input.value,
        mode: identity.mode,
        point,
        read_only,
        init: attempt.known_init(),
        transaction: attempt.frame_for_callee(),
    })))
}

/// Goes on at the larger of each part of its own point and all joined callees' points.
pub(crate) async fn joined<O: Ops>(
    attempt: &mut Attempt<O>,
    mut outcomes: Vec<Outcome<O::Value>>,
) -> Done<Vec<Ended<O::Value>>, O> {
    outcomes.sort_by_key(|outcome| outcome.call);
    for outcome in &outcomes {
        if !attempt.outstanding.remove(&outcome.call) {
            return Err(Refused::NoSuchCall.into());
        }
    }
    let mut ended = Vec::with_capacity(outcomes.len());
    for mut outcome in outcomes {
        if let Some(frame) = outcome.transaction.take() {
            attempt.take_frame(frame);
        } else if attempt.identity.mode == Mode::Boki {
            outcome.ended = log_done(attempt, outcome.call, outcome.ended).await?;
        }
        if broken!(JoinForgetsCallee) {
            attempt.point = outcome.ended.point;
        } else if !broken!(PointNotReturned) {
            attempt.point = attempt.point.join(outcome.ended.point);
        }
        ended.push(outcome.ended);
    }
    attempt.last_written = None;
    match ended.iter().any(|ended| ended.status == Status::Cancelled) {
        true => Err(Stop::Cancelled),
        false => Ok(ended),
    }
}

async fn log_intent<O: Ops>(attempt: &mut Attempt<O>, call: u32) -> Done<(), O> {
    let step = attempt.step(async |_, _| Ok(Body::CallIntent { call })).await?;
    if step.body != (Body::CallIntent { call }) {
        return attempt.differs(&step.body, "the start of a call");
    }
    Ok(())
}

async fn log_done<O: Ops>(
    attempt: &mut Attempt<O>,
    call: u32,
    ended: Ended<O::Value>,
) -> Done<Ended<O::Value>, O> {
    let (run, instance) = (attempt.identity.run, attempt.identity.instance);
    let (object, point) = (ids::own_object(instance), attempt.point);
    let Ended { status, result: own, .. } = &ended;
    let step = attempt.step(async |attempt, position| {
        let version = ids::nonce_version(run, instance, position, attempt.ops.nonce());
        let result = attempt.keep(&object, version, own).await?;
        Ok(Body::CallDone { call, status: *status, result, point: point.join(ended.point) })
    });
    let step = step.await?;
    let Body::CallDone { call: logged, status, result, point } = &step.body else {
        return attempt.differs(&step.body, "the end of a call");
    };
    if *logged != call {
        return attempt.differs(&step.body, "the end of another call");
    }
    if !step.adopted {
        return Ok(ended);
    }
    let result = attempt.load(&object, result).await?;
    Ok(Ended { status: *status, result, point: *point })
}

/// Boki: the outcome of a call, if it is among the caller's loaded steps.
async fn recorded<O: Ops>(attempt: &Attempt<O>, call: u32) -> Done<Option<Outcome<O::Value>>, O> {
    for found in attempt.log.ahead() {
        if let Body::CallDone { call: logged, status, result, point } = parse(found)?.body
            && logged == call
        {
            let object = ids::own_object(attempt.identity.instance);
            let result = attempt.load(&object, &result).await?;
            let ended = Ended { status, result, point };
            return Ok(Some(Outcome { call, ended, transaction: None }));
        }
    }
    Ok(None)
}
