//! The stage: strands (attempts) that wait for one operation each, and whoever picks which is next.
//!
//! A strand is deterministic, so the answers it has been given *are* its state; a hash of them stands
//! for it when states are compared. An operation takes effect and is answered in one move: being
//! slow afterwards is the same as being slow before the next one. What no other strand can change
//! (a read at a bound of the log) is answered at once and is no move. How much of the log an
//! engine's index shows is chosen when an attempt starts, and grows only as it must (O2, O3).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use halfmoon_wire::{CellTuple, InstanceId, SeqNum, Tag, VersionId};

use super::mock::Mock;
use super::world::{Val, World, hash_of};
use crate::Object;
use crate::ops::{Append, AppendOutcome, Cell, Found};

/// The shell never fails here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Never {}

/// What a strand waits for.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// To begin, as soon as `when` allows it; answered with an initial cursor.
    Start(When),
    Append(Append),
    First(Tag),
    GetCell(Object),
    PutCell(Object, CellTuple, Option<Val>),
    GetVersion(Object, VersionId),
    PutVersion(Object, VersionId, Val),
    /// Whatever else may happen in between.
    Pause,
}

/// When a root may be started, and at which cursors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    /// At any time, on an engine whose index lags as much as it likes.
    Lagging,
    /// At the start of the log: for those whose first operation is a step, so that it is all one.
    AtOnce,
    /// As `Lagging`, once the strand before it has started: twins are alike.
    Twin,
    /// At any time, at the tail.
    AtTail,
    /// When its Init is in the log: a take-over.
    Init(InstanceId),
    /// As `Lagging` once this root has replied.
    After(usize),
    /// As `AtTail` once this root has replied.
    AtTailAfter(usize),
    /// When a detached root is in the log that nobody has taken up.
    Detached,
}

#[derive(Clone, Hash, Debug)]
pub(super) enum Answer {
    Cursor(SeqNum),
    Root(InstanceId),
    Outcome(AppendOutcome),
    First(Found),
    Cell(Option<Cell<Val>>),
    Version(Option<Val>),
    Done,
}

pub(super) struct Strand {
    pub(super) path: u64,
    pub(super) parent: Option<usize>,
    pub(super) children: u64,
    pub(super) task: Option<Pin<Box<dyn Future<Output = ()>>>>,
    pub(super) request: Option<Request>,
    pub(super) answer: Option<Answer>,
    /// Hash of all answers so far.
    pub(super) history: u64,
    /// Its engine's index shows the log at least up to here.
    pub(super) known: SeqNum,
    pub(super) posts: Vec<Post>,
    pub(super) wants_init: bool,
    pub(super) nonces: u64,
    /// Only the tests that make crashes explicit set it.
    pub(super) crashed: bool,
}

pub(super) struct Post {
    pub(super) append: Append,
    pub(super) outcome: Option<AppendOutcome>,
}

/// One thing that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Move {
    /// Answer a strand's request in the given way.
    Answer(usize, usize),
    /// Deliver a strand's background append.
    Post(usize, usize),
}

/// What an attempt of a root replied.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Reply {
    pub(crate) root: usize,
    pub(crate) status: u8,
    /// `None`: replied from a Finish that does not say what was observed.
    pub(crate) observed: Option<Vec<super::program::Observed>>,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) world: World,
    pub(super) strands: Vec<Strand>,
    pub(super) runnable: Vec<usize>,
    pub(crate) replies: Vec<Reply>,
    pub(crate) violation: Option<String>,
    pub(crate) detached: BTreeMap<InstanceId, bool>,
    pub(super) clock: u64,
}

/// Shared by all strands.
#[derive(Clone, Default)]
pub(crate) struct Stage(pub(crate) Rc<RefCell<Inner>>);

impl Stage {
    pub(super) fn add(&self, path: u64, parent: Option<usize>, known: SeqNum) -> usize {
        let mut inner = self.0.borrow_mut();
        inner.strands.push(Strand {
            path,
            parent,
            children: 0,
            task: None,
            request: None,
            answer: None,
            history: path,
            known,
            posts: Vec::new(),
            wants_init: false,
            nonces: 0,
            crashed: false,
        });
        inner.strands.len() - 1
    }

    /// Puts a strand of its own on the stage.
    pub(crate) fn enter<F>(&self, make: impl FnOnce(Mock) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let count = self.0.borrow().strands.len() as u64;
        let strand = self.add(hash_of(&count), None, SeqNum::ZERO);
        let task = Box::pin(make(Mock { stage: self.clone(), strand }));
        let mut inner = self.0.borrow_mut();
        inner.strands[strand].task = Some(task);
        inner.runnable.push(strand);
        drop(inner);
        self.run();
    }

    /// How many strands there are.
    #[cfg(test)]
    pub(crate) fn strands(&self) -> usize {
        self.0.borrow().strands.len()
    }

    /// Takes a strand off the stage: a crash. What it sent in the background is lost, or not.
    #[cfg(test)]
    pub(crate) fn crash(&self, strand: usize, delivered: bool) {
        let mut inner = self.0.borrow_mut();
        let posts = std::mem::take(&mut inner.strands[strand].posts);
        for post in posts.iter().filter(|post| delivered && post.outcome.is_none()) {
            inner.world.append(&post.append);
        }
        let strand = &mut inner.strands[strand];
        strand.request = None;
        strand.crashed = true;
        let task = strand.task.take();
        drop(inner);
        drop(task);
    }

    /// Polls strands until all of them wait.
    fn run(&self) {
        loop {
            let Some((strand, task)) = self.next_runnable() else { return };
            let Some(mut task) = task else { continue };
            let mut context = Context::from_waker(Waker::noop());
            let done = task.as_mut().poll(&mut context).is_ready();
            let mut inner = self.0.borrow_mut();
            if done {
                inner.wake_parent(strand);
            } else {
                inner.strands[strand].task = Some(task);
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "a task is a boxed future")]
    fn next_runnable(&self) -> Option<(usize, Option<Pin<Box<dyn Future<Output = ()>>>>)> {
        let mut inner = self.0.borrow_mut();
        let strand = inner.runnable.pop()?;
        let task = inner.strands[strand].task.take();
        Some((strand, task))
    }

    /// All that can happen now.
    pub(crate) fn moves(&self) -> Vec<Move> {
        let inner = self.0.borrow();
        let mut moves = Vec::new();
        for (index, strand) in inner.strands.iter().enumerate() {
            for (post, _) in
                strand.posts.iter().enumerate().filter(|(_, post)| post.outcome.is_none())
            {
                moves.push(Move::Post(index, post));
            }
            if let Some(request) = &strand.request {
                let ways = inner.ways(index, request);
                moves.extend((0..ways).map(|way| Move::Answer(index, way)));
            }
        }
        moves
    }

    /// Makes a move, and lets the strand go on until it waits again.
    pub(crate) fn make(&self, chosen: Move) {
        let mut inner = self.0.borrow_mut();
        match chosen {
            Move::Post(strand, post) => {
                let append = inner.strands[strand].posts[post].append.clone();
                let outcome = inner.world.append(&append);
                let waiting = &mut inner.strands[strand];
                waiting.known = waiting.known.max(seen_in(&outcome));
                waiting.history = hash_of(&(waiting.history, "post", &outcome));
                waiting.posts[post].outcome = Some(outcome);
                inner.runnable.push(strand);
            }
            Move::Answer(strand, way) => {
                let request = inner.strands[strand].request.take().expect("it waits");
                let answer = inner.answer(strand, &request, way);
                inner.strands[strand].answer = Some(answer);
                inner.runnable.push(strand);
            }
        }
        drop(inner);
        self.run();
    }

    /// Says what a move would do.
    pub(crate) fn describe(&self, chosen: Move) -> String {
        let inner = self.0.borrow();
        match chosen {
            Move::Post(strand, post) => {
                format!(
                    "strand {strand}: posted {}",
                    shown(&inner.strands[strand].posts[post].append)
                )
            }
            Move::Answer(strand, way) => match &inner.strands[strand].request {
                Some(Request::Append(append)) => format!("strand {strand}: {}", shown(append)),
                Some(request) => format!("strand {strand}: {request:?} way {way}"),
                None => format!("strand {strand}: ?"),
            },
        }
    }

    /// Stands for everything that can ever follow from here.
    pub(crate) fn fingerprint(&self) -> u64 {
        let inner = self.0.borrow();
        hash_of(&(inner.world.fingerprint(), inner.prints()))
    }

    /// Stands for everything that can ever follow from a move: what a strand does with an answer,
    /// until it waits again, depends on nothing else.
    pub(crate) fn fingerprint_after(&self, chosen: Move) -> u64 {
        let inner = self.0.borrow();
        let (strand, world, history, delivered) = match chosen {
            Move::Post(strand, post) => {
                let append = &inner.strands[strand].posts[post].append;
                let outcome = inner.world.judge(append);
                let world = inner.world.fingerprint_after(&Request::Append(append.clone()));
                let history = hash_of(&(inner.strands[strand].history, "post", &outcome));
                (strand, world, history, Some(post))
            }
            Move::Answer(strand, way) => {
                let request = inner.strands[strand].request.as_ref().expect("it waits");
                let world = inner.world.fingerprint_after(request);
                let answer = inner.predict(request, way);
                (strand, world, hash_of(&(inner.strands[strand].history, &answer)), None)
            }
        };
        let waiting = &inner.strands[strand];
        let prints = inner
            .prints()
            .wrapping_sub(waiting.print(waiting.history, None))
            .wrapping_add(waiting.print(history, delivered));
        hash_of(&("after", world, prints))
    }
}

fn shown(append: &Append) -> String {
    match crate::payload::Entry::decode(&append.payload) {
        Ok(entry) => format!(
            "append {:.4}… {}{:?} if {:?}",
            entry.instance.to_string(),
            if entry.init.is_some() { "Init + " } else { "" },
            entry.body,
            append.conditions.len(),
        ),
        Err(error) => error.to_string(),
    }
}

impl Inner {
    /// A caller's engine is its callee's: the index that one has seen the other sees too.
    pub(super) fn wake_parent(&mut self, strand: usize) {
        let known = self.strands[strand].known;
        if let Some(parent) = self.strands[strand].parent {
            let caller = &mut self.strands[parent];
            caller.known = caller.known.max(known);
            self.runnable.push(parent);
        }
    }

    fn prints(&self) -> u64 {
        let prints = self.strands.iter().map(|strand| strand.print(strand.history, None));
        prints.fold(0, u64::wrapping_add)
    }

    /// In how many ways a request can be answered; 0: not now.
    fn ways(&self, strand: usize, request: &Request) -> usize {
        let tail = self.world.log.len();
        let replied = |root: usize| self.replies.iter().any(|reply| reply.root == root);
        match request {
            Request::Start(When::Lagging) => tail + 1,
            Request::Start(When::Twin) => match &self.strands[strand - 1].request {
                Some(Request::Start(_)) => 0,
                Some(_) | None => tail + 1,
            },
            Request::Start(When::AtTail | When::AtOnce) => 1,
            Request::Start(When::After(root)) => {
                if replied(*root) {
                    tail + 1
                } else {
                    0
                }
            }
            Request::Start(When::AtTailAfter(root)) => usize::from(replied(*root)),
            Request::Start(When::Init(root)) => match self.world.init_of(*root) {
                Some(init) => tail + 1 - usize::try_from(init.0).expect("it fits"),
                None => 0,
            },
            Request::Start(When::Detached) => usize::from(self.unclaimed().is_some()),
            Request::First(tag) => usize::from(!self.world.stream(*tag).is_empty()),
            Request::Append(_)
            | Request::GetCell(_)
            | Request::PutCell(..)
            | Request::GetVersion(..)
            | Request::PutVersion(..)
            | Request::Pause => 1,
        }
    }

    /// What a request would be answered.
    fn predict(&self, request: &Request, way: usize) -> Answer {
        match request {
            Request::Start(When::Detached) => Answer::Root(self.unclaimed().expect("enabled")),
            Request::Start(when) => Answer::Cursor(match when {
                When::Lagging | When::Twin | When::After(_) => SeqNum(way as u64),
                When::Init(root) => {
                    SeqNum(self.world.init_of(*root).expect("enabled").0 + way as u64)
                }
                When::AtOnce => SeqNum::ZERO,
                When::AtTail | When::AtTailAfter(_) | When::Detached => self.world.tail(),
            }),
            Request::Append(append) => Answer::Outcome(self.world.judge(append)),
            Request::First(tag) => {
                Answer::First(self.world.stream(*tag).into_iter().next().expect("enabled"))
            }
            Request::GetCell(object) => Answer::Cell(self.world.cells.get(object).cloned()),
            Request::GetVersion(object, version) => {
                Answer::Version(self.world.versions.get(&(object.clone(), *version)).cloned())
            }
            Request::PutCell(..) | Request::PutVersion(..) | Request::Pause => Answer::Done,
        }
    }

    fn answer(&mut self, strand: usize, request: &Request, way: usize) -> Answer {
        let answer = self.predict(request, way);
        let known = match &answer {
            Answer::Cursor(cursor) => *cursor,
            Answer::Root(root) => {
                self.detached.insert(*root, true);
                self.world.tail()
            }
            Answer::Outcome(outcome) => seen_in(outcome),
            Answer::First(found) => found.seq,
            Answer::Cell(_) | Answer::Version(_) | Answer::Done => SeqNum::ZERO,
        };
        match request {
            Request::Append(append) => drop(self.world.append(append)),
            Request::PutCell(object, tuple, value) => {
                self.world.put_cell(object, *tuple, value.clone());
            }
            Request::PutVersion(object, version, value) => {
                self.world.put_version(object, *version, value.clone());
            }
            Request::Start(_)
            | Request::First(_)
            | Request::GetCell(_)
            | Request::GetVersion(..)
            | Request::Pause => {}
        }
        let strand = &mut self.strands[strand];
        strand.known = strand.known.max(known);
        strand.history = hash_of(&(strand.history, &answer));
        answer
    }

    /// A detached root that is in the log and that nobody has taken up.
    fn unclaimed(&self) -> Option<InstanceId> {
        use crate::payload::{Body, Entry};
        self.world.log.iter().find_map(|record| {
            let entry = Entry::decode(&record.payload).ok()?;
            let Body::Detached(init) = entry.body else { return None };
            (!self.detached.contains_key(&init.root)).then_some(init.root)
        })
    }
}

/// The newest record that an outcome shows.
fn seen_in(outcome: &AppendOutcome) -> SeqNum {
    match outcome {
        AppendOutcome::Appended(seq) => *seq,
        AppendOutcome::Conflict { winner: Some(winner), .. } => winner.seq,
        AppendOutcome::Conflict { .. } | AppendOutcome::Gap { .. } | AppendOutcome::RootGone => {
            SeqNum::ZERO
        }
    }
}

impl Strand {
    /// Stands for its state, with this history and with one post delivered besides.
    fn print(&self, history: u64, delivered: Option<usize>) -> u64 {
        let posts = self.posts.iter().enumerate();
        let posts: Vec<bool> =
            posts.map(|(index, post)| post.outcome.is_some() || delivered == Some(index)).collect();
        hash_of(&(self.path, history, posts, self.crashed))
    }
}
