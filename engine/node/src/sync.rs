//! Waiting for each other, among tasks of one thread.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A value that one task gives and another waits for.
pub(crate) struct Give<T>(Rc<Shared<T>>);

/// The other end of [`Give`]. `None`: the giver is gone.
pub(crate) struct Got<T>(Rc<Shared<T>>);

struct Shared<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

/// Both ends.
pub(crate) fn slot<T>() -> (Give<T>, Got<T>) {
    let shared = Rc::new(Shared {
        value: RefCell::new(None),
        waker: RefCell::new(None),
        closed: Cell::new(false),
    });
    (Give(Rc::clone(&shared)), Got(shared))
}

impl<T> Give<T> {
    /// Gives it.
    pub(crate) fn give(self, value: T) {
        *self.0.value.borrow_mut() = Some(value);
    }
}

impl<T> Drop for Give<T> {
    fn drop(&mut self) {
        self.0.closed.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl<T> Future for Got<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.0.value.borrow_mut().take() {
            return Poll::Ready(Some(value));
        }
        if self.0.closed.get() {
            return Poll::Ready(None);
        }
        *self.0.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

/// A flag that one task waits for; setting it twice before that is setting it once.
#[derive(Default)]
pub(crate) struct Notify {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Notify {
    pub(crate) fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Takes the flag, or leaves a waker.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.set.take() {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// Waits for the flag, and takes it.
    pub(crate) async fn notified(&self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }
}

/// Which of two futures was ready first.
pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Waits for the first of two; the other is dropped.
pub(crate) async fn first_of<A, B>(
    a: impl Future<Output = A>,
    b: impl Future<Output = B>,
) -> Either<A, B> {
    let mut a = std::pin::pin!(a);
    let mut b = std::pin::pin!(b);
    std::future::poll_fn(|context| {
        if let Poll::Ready(value) = a.as_mut().poll(context) {
            return Poll::Ready(Either::First(value));
        }
        b.as_mut().poll(context).map(Either::Second)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_given_is_got_and_a_giver_that_is_gone_is_noticed() {
        let (give, got) = slot::<u32>();
        let mut got = pin!(got);
        assert!(poll(got.as_mut()).is_pending());
        give.give(7);
        assert_eq!(poll(got.as_mut()), Poll::Ready(Some(7)));
        let (give, got) = slot::<u32>();
        drop(give);
        assert_eq!(poll(pin!(got)), Poll::Ready(None));
    }

    #[test]
    fn a_flag_that_was_set_before_the_wait_is_not_lost() {
        let notify = Notify::default();
        notify.notify();
        assert!(poll(pin!(notify.notified())).is_ready());
        assert!(poll(pin!(notify.notified())).is_pending());
    }
}
