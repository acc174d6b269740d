//! The world of one strand: every operation of [`Ops`] asks the stage, and waits.

use std::cell::Cell as Slot;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use halfmoon_wire::{CellTuple, InstanceId, RunId, SeqNum, Tag, VersionId};

use super::stage::{Answer, Never, Post, Request, Stage, When};
use super::world::{Val, hash_of};
use crate::ops::{Append, AppendOutcome, Base, Cell, Found};
use crate::{Object, Ops};

/// The world of one strand.
#[derive(Clone)]
pub(crate) struct Mock {
    pub(crate) stage: Stage,
    pub(crate) strand: usize,
}

/// Waits for the answer to a strand's request.
struct Asked<'a> {
    mock: &'a Mock,
    request: Slot<Option<Request>>,
}

/// A background append of a strand.
pub(crate) struct Posted {
    mock: Mock,
    index: usize,
}

impl Future for Asked<'_> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
        let mut inner = self.mock.stage.0.borrow_mut();
        let strand = &mut inner.strands[self.mock.strand];
        if let Some(request) = self.request.take() {
            strand.request = Some(request);
        }
        strand.answer.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Future for Posted {
    type Output = Result<AppendOutcome, Never>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let mut inner = self.mock.stage.0.borrow_mut();
        let strand = &mut inner.strands[self.mock.strand];
        let post = &strand.posts[self.index];
        match &post.outcome {
            None => Poll::Pending,
            Some(outcome) => Poll::Ready(Ok(outcome.clone())),
        }
    }
}

impl Mock {
    fn ask(&self, request: Request) -> Asked<'_> {
        Asked { mock: self, request: Slot::new(Some(request)) }
    }

    fn noted<T: std::hash::Hash>(&self, value: T) -> T {
        let strand = &mut self.stage.0.borrow_mut().strands[self.strand];
        strand.history = hash_of(&(strand.history, &value));
        value
    }

    /// The initial cursor of a root attempt; for a detached one also its id.
    pub(crate) async fn start(&self, when: When) -> (SeqNum, Option<InstanceId>) {
        if when == When::AtOnce {
            return (SeqNum::ZERO, None);
        }
        let answer = self.ask(Request::Start(when)).await;
        if let Answer::Root(root) = answer {
            return (SeqNum::ZERO, Some(root));
        }
        let Answer::Cursor(cursor) = answer else { unreachable!("of its kind") };
        (cursor, None)
    }

    /// Lets anything else happen.
    pub(crate) async fn pause(&self) {
        self.ask(Request::Pause).await;
    }

    /// Runs a callee as a strand of its own.
    pub(crate) fn spawn<F>(&self, make: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let (path, known) = {
            let strand = &mut self.stage.0.borrow_mut().strands[self.strand];
            strand.children += 1;
            (hash_of(&(strand.path, strand.children)), strand.known)
        };
        let strand = self.stage.add(path, Some(self.strand), known);
        let task = Box::pin(make(Self { stage: self.stage.clone(), strand }));
        let mut inner = self.stage.0.borrow_mut();
        inner.strands[strand].task = Some(task);
        inner.runnable.push(strand);
    }

    /// Lets the caller of this strand look at what it has left for it.
    pub(crate) fn wake_parent(&self) {
        self.stage.0.borrow_mut().wake_parent(self.strand);
    }

    /// Has a callee asked for Init since this was last asked?
    pub(crate) fn take_wants_init(&self) -> bool {
        std::mem::take(&mut self.stage.0.borrow_mut().strands[self.strand].wants_init)
    }

    /// An effect happens now: Init must be durable.
    pub(crate) fn must_have_init(&self, root: InstanceId) {
        let mut inner = self.stage.0.borrow_mut();
        if inner.world.init_of(root).is_none() {
            inner.violation.get_or_insert("an effect before Init".to_owned());
        }
    }

    pub(crate) fn violated(&self, what: String) {
        self.stage.0.borrow_mut().violation.get_or_insert(what);
    }
}

impl Ops for Mock {
    type Value = Val;
    type Error = Never;
    type Posted = Posted;

    async fn append(&self, append: Append) -> Result<AppendOutcome, Never> {
        let answer = self.ask(Request::Append(append)).await;
        let Answer::Outcome(outcome) = answer else { unreachable!("of its kind") };
        Ok(outcome)
    }

    fn post(&self, append: Append) -> Posted {
        let mut inner = self.stage.0.borrow_mut();
        let posts = &mut inner.strands[self.strand].posts;
        posts.push(Post { append, outcome: None });
        Posted { mock: self.clone(), index: posts.len() - 1 }
    }

    async fn stream(&self, tag: Tag) -> Result<Vec<Found>, Never> {
        let inner = self.stage.0.borrow();
        let known = inner.strands[self.strand].known;
        let mut shown = inner.world.stream(tag);
        drop(inner);
        shown.retain(|found| found.seq <= known);
        Ok(self.noted(shown))
    }

    async fn first(&self, tag: Tag) -> Result<Found, Never> {
        let Answer::First(found) = self.ask(Request::First(tag)).await else {
            unreachable!("of its kind")
        };
        Ok(found)
    }

    async fn last(&self, tag: Tag, max: SeqNum) -> Result<Option<Found>, Never> {
        let found = self.stage.0.borrow().world.last(tag, max);
        Ok(self.noted(found))
    }

    fn applied(&self) -> SeqNum {
        let inner = self.stage.0.borrow();
        // A broken read goes as far as it can; else the index shows no more than it must.
        match crate::broken::is(crate::broken::Broken::IgnoredCursor) {
            true => inner.world.tail(),
            false => inner.strands[self.strand].known,
        }
    }

    async fn timestamp(&self, seq: SeqNum) -> Result<u64, Never> {
        Ok(seq.0 * 1000)
    }

    fn need_init(&self, _: InstanceId, _: RunId) {
        let mut inner = self.stage.0.borrow_mut();
        let mut strand = self.strand;
        while let Some(parent) = inner.strands[strand].parent {
            strand = parent;
        }
        inner.strands[strand].wants_init = true;
        inner.runnable.push(strand);
    }

    async fn get_cell(&self, object: &Object) -> Result<Option<Cell<Val>>, Never> {
        let Answer::Cell(cell) = self.ask(Request::GetCell(object.clone())).await else {
            unreachable!("of its kind")
        };
        Ok(cell)
    }

    async fn put_cell(
        &self,
        object: &Object,
        tuple: CellTuple,
        value: Option<&Val>,
    ) -> Result<(), Never> {
        self.ask(Request::PutCell(object.clone(), tuple, value.cloned())).await;
        Ok(())
    }

    async fn get_version(&self, object: &Object, version: VersionId) -> Result<Option<Val>, Never> {
        let Answer::Version(value) = self.ask(Request::GetVersion(object.clone(), version)).await
        else {
            unreachable!("of its kind")
        };
        Ok(value)
    }

    async fn put_version(
        &self,
        object: &Object,
        version: VersionId,
        value: &Val,
    ) -> Result<(), Never> {
        self.ask(Request::PutVersion(object.clone(), version, value.clone())).await;
        Ok(())
    }

    async fn base(&self, _: &Object) -> Result<Option<Base<Val>>, Never> {
        Ok(None)
    }

    fn inline(&self, bytes: &[u8]) -> Val {
        Val::small(bytes)
    }

    fn nonce(&self) -> u128 {
        let strand = &mut self.stage.0.borrow_mut().strands[self.strand];
        strand.nonces += 1;
        u128::from(hash_of(&(strand.path, strand.nonces)))
    }

    fn clock_ns(&self) -> u64 {
        let mut inner = self.stage.0.borrow_mut();
        inner.clock += 1;
        inner.clock
    }
}
