//! Roots: where they start, what makes one of their runs win, what to do when one has lost.

use halfmoon_wire::{InstanceId, RunId, SeqNum, tag};

use crate::call::{Ended, Input, Point};
use crate::ops::{Append, AppendOutcome, Found};
use crate::payload::{Body, Entry, Init};
use crate::step_log::{collision, parse};
use crate::{Attempt, Done, Fault, Mode, Ops, Refused, Stop, ids};

/// A client's request to run a function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<V> {
    /// Name of the function.
    pub function: String,
    /// Version of its binary (BLAKE3).
    pub version: [u8; 32],
    /// Its input.
    pub input: Input<V>,
    /// How the tree is logged.
    pub mode: Mode,
    /// The id is the client's idempotency key: Init must be durable before the reply.
    pub keyed: bool,
    /// The function is declared `read_only`.
    pub read_only: bool,
}

/// How to start an attempt of a root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start<V> {
    /// The root's id.
    pub root: InstanceId,
    /// The engine's committed position; a tail just asked for (`linearizable`); at least the lower
    /// bound that the client passed. All attempts that one engine makes of a root under a drawn id
    /// use the same. Ignored when the log has an Init.
    pub cursor: SeqNum,
    /// What the client asked for; `None` at a take-over, where the log knows.
    pub request: Option<Request<V>>,
}

/// What a start led to.
pub enum Started<O: Ops> {
    /// Run the function.
    Run(Box<Attempt<O>>),
    /// It has ended before; this is the reply.
    Ended(Ended<O::Value>),
    /// No client asks and the log has no Init: there is nothing to do.
    Nothing,
}

/// What a driver does about an attempt whose snapshot or floor is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reload<V> {
    /// A peer ended it; this is the reply.
    Ended(Ended<V>),
    /// It had no effect: the log has no Init, or that of another run. Start over with a new cursor.
    StartOver,
}

/// Who is running: everything that an attempt knows of its place in the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// This instance.
    pub instance: InstanceId,
    /// The root of its tree.
    pub root: InstanceId,
    /// The root's run.
    pub run: RunId,
    /// The root's initial cursor.
    pub floor: SeqNum,
    /// Name of the function; for a root, what the log says if it has an Init.
    pub function: String,
    /// Version of the root's binary; zero for callees, which run whatever is deployed with it.
    pub version: [u8; 32],
    /// How the tree is logged.
    pub mode: Mode,
    /// It, or one above it, is declared `read_only`.
    pub read_only: bool,
}

/// Starts an attempt of a root: loads `Step(root)` from the local index and decides on a run.
///
/// With an Init in the log the attempt is of that run: at its cursor, with its function version
/// and input ([`Attempt::identity`], [`Attempt::input`]), whatever the request says; a request
/// with another input is [`crate::Refused::KeyReused`]. Without, it is of the run that starts at
/// `start.cursor`. Called again after [`crate::Stop::RunLost`].
pub async fn start<O: Ops>(ops: O, start: Start<O::Value>) -> Done<Started<O>, O> {
    let Start { root, cursor, request } = start;
    let logged = request.as_ref().is_none_or(|request| request.mode != Mode::Unlogged);
    let steps = match logged {
        true => ops.stream(tag::step(root)).await.map_err(Stop::Ops)?,
        false => Vec::new(),
    };
    let mut attempt = match steps.first() {
        None => match request {
            Some(request) => fresh(ops, root, cursor, request),
            None => return Ok(Started::Nothing),
        },
        Some(first) => {
            let (seq, init) = winner(root, first)?;
            if let (Some(init), Some(request)) = (&init, &request)
                && (init.fingerprint, &init.function)
                    != (request.input.fingerprint, &request.function)
            {
                return Err(Refused::KeyReused.into());
            }
            if let Some(ended) = ended::<O>(&ops, root, &steps).await? {
                return Ok(Started::Ended(ended));
            }
            resumed(ops, root, seq, init.ok_or(Stop::RootGone)?).await?
        }
    };
    attempt.log.learn(steps);
    attempt.peek()?;
    if attempt.identity.mode == Mode::Boki {
        attempt.init_known().await?;
    }
    Ok(Started::Run(Box::new(attempt)))
}

/// Decides what follows [`crate::Stop::RootGone`] and [`crate::Stop::SnapshotTooOld`] of a root.
/// `run` is the run of the attempt that was stopped, if it had come as far as having one. `ops`
/// must show the log up to a tail asked for after the stop.
pub async fn reload<O: Ops>(
    ops: &O,
    root: InstanceId,
    run: Option<RunId>,
) -> Done<Reload<O::Value>, O> {
    let steps = ops.stream(tag::step(root)).await.map_err(Stop::Ops)?;
    let Some(first) = steps.first() else { return Ok(Reload::StartOver) };
    if let Some(ended) = ended::<O>(ops, root, &steps).await? {
        return Ok(Reload::Ended(ended));
    }
    let winner = winner(root, first)?.1.map(|init| init.run());
    match winner {
        // It lost, on an engine that had not seen so, or was stopped before it had a run: its cursor
        // says nothing about the winner's.
        Some(winner) if run != Some(winner) => Ok(Reload::StartOver),
        Some(_) | None => Err(Fault::SnapshotLost { root }.into()),
    }
}

/// What `root` runs, if this record carries its Init: the function, and the input's fingerprint.
/// By these a request under the same key is told from one that reuses it.
#[must_use]
pub fn asked(root: InstanceId, payload: &[u8]) -> Option<(String, u128)> {
    let entry = Entry::decode(payload).ok()?;
    entry.init_of(root).map(|init| (init.function.clone(), init.fingerprint))
}

/// Asks for a root to be cancelled. A request, no verdict: the canceller is then told the root's
/// result, whichever it is.
pub async fn cancel<O: Ops>(ops: &O, root: InstanceId) -> Done<(), O> {
    let entry = Entry { instance: root, run: RunId(0), init: None, body: Body::Cancel };
    let append = Append {
        tags: vec![tag::cancel(root)],
        conditions: vec![],
        floor: SeqNum::MAX,
        payload: entry.encode(),
    };
    match ops.append(append).await.map_err(Stop::Ops)? {
        AppendOutcome::Appended(_) => Ok(()),
        AppendOutcome::Conflict { .. } | AppendOutcome::Gap { .. } | AppendOutcome::RootGone => {
            Err(Stop::RootGone)
        }
    }
}

/// An attempt of a run that may or may not become the root's.
fn fresh<O: Ops>(
    ops: O,
    root: InstanceId,
    cursor: SeqNum,
    request: Request<O::Value>,
) -> Attempt<O> {
    let identity = Identity {
        instance: root,
        root,
        run: ids::run(root, cursor, &request.function, &request.version, request.input.fingerprint),
        floor: cursor,
        function: request.function,
        version: request.version,
        mode: request.mode,
        read_only: request.read_only,
    };
    let mut attempt = Attempt::new(ops, identity, request.input, Point { cursor, counter: 0 });
    attempt.keyed = request.keyed;
    attempt
}

/// An attempt of the run that the log has.
async fn resumed<O: Ops>(ops: O, root: InstanceId, seq: SeqNum, init: Init) -> Done<Attempt<O>, O> {
    let cursor = init.cursor.unwrap_or(seq);
    let value = crate::step_log::load(&ops, &ids::own_object(root), &init.input).await?;
    let identity = Identity {
        instance: root,
        root,
        run: init.run(),
        floor: cursor,
        function: init.function,
        version: init.version,
        mode: init.mode,
        read_only: init.read_only,
    };
    let input = Input { value, fingerprint: init.fingerprint };
    Ok(Attempt::new(ops, identity, input, Point { cursor, counter: 0 }))
}

/// The Init at the head of `Step(root)`; `None` when it was trimmed.
fn winner<V, E>(root: InstanceId, first: &Found) -> Result<(SeqNum, Option<Init>), Stop<V, E>> {
    let entry = parse(first)?;
    match entry.init_of(root) {
        Some(init) => Ok((first.seq, Some(init.clone()))),
        None if entry.instance != root => Err(collision(root, entry.instance, first.seq)),
        None => Ok((first.seq, None)),
    }
}

/// What the Finish at the end of the loaded steps says.
pub(crate) async fn ended<O: Ops>(
    ops: &O,
    instance: InstanceId,
    steps: &[Found],
) -> Done<Option<Ended<O::Value>>, O> {
    let Some(last) = steps.last() else { return Ok(None) };
    let entry = parse(last)?;
    let Body::Finish { status, result, mut point } = entry.body else { return Ok(None) };
    if entry.instance != instance {
        return Err(collision(instance, entry.instance, last.seq));
    }
    if broken!(FinishMovesCursor) {
        point.cursor = last.seq;
    }
    let result = crate::step_log::load(ops, &ids::own_object(instance), &result).await?;
    Ok(Some(Ended { status, result, point }))
}
