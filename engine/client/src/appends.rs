//! Who waits for the answer of which append.

use std::task::{Context, Poll, Waker};

use halfmoon_index::Outcome;

/// Waiting appends by token. Slots are used again, so in the long run nothing is allocated.
#[derive(Debug, Default)]
pub(crate) struct Appends {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Free,
    Waiting(Option<Waker>),
    /// Nobody waits any more; the slot is kept until the answer comes.
    Detached,
    /// `None`: the client has ended, and whether the record is in the log is unknown.
    Done(Option<Outcome>),
}

impl Appends {
    /// A token for a new append.
    pub(crate) fn open(&mut self) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.slots[index] = Slot::Waiting(None);
        index as u64
    }

    /// The append was not taken after all.
    pub(crate) fn cancel(&mut self, token: u64) {
        self.release(token);
    }

    /// Delivers an answer.
    pub(crate) fn answer(&mut self, token: u64, outcome: Outcome) {
        let Some(slot) = self.slot(token) else { return };
        match std::mem::replace(slot, Slot::Done(Some(outcome))) {
            Slot::Waiting(waker) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Slot::Detached => self.release(token),
            Slot::Free | Slot::Done(_) => {}
        }
    }

    /// The answer, once.
    pub(crate) fn poll(&mut self, token: u64, context: &Context<'_>) -> Poll<Option<Outcome>> {
        match self.slot(token) {
            Some(Slot::Waiting(waker)) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Some(Slot::Done(outcome)) => {
                let outcome = *outcome;
                self.release(token);
                Poll::Ready(outcome)
            }
            Some(Slot::Free | Slot::Detached) | None => Poll::Ready(None),
        }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn detach(&mut self, token: u64) {
        match self.slot(token) {
            Some(slot @ Slot::Waiting(_)) => *slot = Slot::Detached,
            Some(Slot::Done(_)) => self.release(token),
            Some(Slot::Free | Slot::Detached) | None => {}
        }
    }

    /// No answer comes any more.
    pub(crate) fn end(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Waiting(waker) = slot {
                let waker = waker.take();
                *slot = Slot::Done(None);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    fn slot(&mut self, token: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(token).ok()?)
    }

    fn release(&mut self, token: u64) {
        if let Some(slot) = self.slot(token) {
            *slot = Slot::Free;
            self.free.extend(usize::try_from(token));
        }
    }
}
