//! What all attempts of one root's tree share on this engine.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use halfmoon_client::Appending;
use halfmoon_protocol::ops::Object;
use halfmoon_wire::CellTuple;

use crate::command::Appends;
use crate::sync::Notify;

/// See the module.
#[derive(Default)]
pub(crate) struct Tree {
    /// A callee must log and found no Init.
    pub(crate) need_init: Notify,
    /// Appends so far.
    pub(crate) appends: Cell<Appends>,
    /// Something that is not in the log was done, or may have been: a write to a cell, a side
    /// effect, a root that was started beside it.
    acted: Cell<bool>,
    waits: Rc<Waits>,
    /// Appends that an attempt did not wait for to be answered: they may still get into the log.
    /// As many as the log takes without answering.
    left: RefCell<Vec<(Appending, UnderWay)>>,
    /// Puts of cells that no quorum has acknowledged, whether an attempt still waits for that or
    /// not: they may land at any time. Of each object the newest, as that one settles the others.
    owed: RefCell<BTreeMap<Object, Owed>>,
}

/// What a put puts.
type Owed = (CellTuple, Option<Rc<[u8]>>);

/// Operations that log and store have not answered: when each began, in ns.
#[derive(Default)]
struct Waits {
    since_ns: RefCell<BTreeMap<u64, u64>>,
    next: Cell<u64>,
}

/// An operation, until it is answered.
pub(crate) struct UnderWay {
    waits: Rc<Waits>,
    key: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.waits.since_ns.borrow_mut().remove(&self.key);
    }
}

impl Tree {
    /// An operation of log or store begins.
    pub(crate) fn begins(&self, now_ns: u64) -> UnderWay {
        let waits = Rc::clone(&self.waits);
        let key = waits.next.get();
        waits.next.set(key + 1);
        waits.since_ns.borrow_mut().insert(key, now_ns);
        UnderWay { waits, key }
    }

    /// How long the oldest operation has had no answer, in ns.
    pub(crate) fn waits_ns(&self, now_ns: u64) -> u64 {
        let since_ns = self.waits.since_ns.borrow();
        since_ns.first_key_value().map_or(0, |(_, since)| now_ns.saturating_sub(*since))
    }

    /// Notes that there may be effects which the log does not tell of.
    pub(crate) fn acts(&self) {
        self.acted.set(true);
    }

    pub(crate) fn has_acted(&self) -> bool {
        self.acted.get()
    }

    /// A put begins.
    pub(crate) fn owes(&self, object: &Object, tuple: CellTuple, value: Option<Rc<[u8]>>) {
        let mut owed = self.owed.borrow_mut();
        if owed.get(object).is_none_or(|(newest, _)| *newest < tuple) {
            owed.insert(object.clone(), (tuple, value));
        }
    }

    /// A quorum has acknowledged a put, and with it all older ones.
    pub(crate) fn has_put(&self, object: &Object, tuple: CellTuple) {
        let mut owed = self.owed.borrow_mut();
        if owed.get(object).is_some_and(|(newest, _)| *newest <= tuple) {
            owed.remove(object);
        }
    }

    /// A put that is not acknowledged.
    pub(crate) fn owed(&self) -> Option<(Object, Owed)> {
        let owed = self.owed.borrow();
        owed.first_key_value().map(|(object, owed)| (object.clone(), owed.clone()))
    }

    /// How many objects have one.
    pub(crate) fn owed_len(&self) -> usize {
        self.owed.borrow().len()
    }

    /// Nobody waits for this append any more.
    pub(crate) fn leave(&self, append: Appending, under_way: UnderWay) {
        self.left.borrow_mut().push((append, under_way));
    }

    /// Forgets those that were answered meanwhile. Not while somebody waits for them.
    pub(crate) fn prune(&self) {
        self.left.borrow_mut().retain_mut(|(append, _)| {
            Pin::new(append).poll(&mut Context::from_waker(Waker::noop())).is_pending()
        });
    }

    /// Whether every append that was left is answered, as far as [`prune`](Self::prune) has looked.
    pub(crate) fn is_settled(&self) -> bool {
        self.left.borrow().is_empty()
    }

    /// Ends when every append that was left is answered.
    pub(crate) async fn settled(&self) {
        std::future::poll_fn(|context| self.poll_left(context)).await;
    }

    fn poll_left(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut left = self.left.borrow_mut();
        left.retain_mut(|(append, _)| Pin::new(append).poll(context).is_pending());
        if left.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}
