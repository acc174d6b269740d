//! Every interleaving of a sleeper and a waker, also those that only weak memory allows.

use std::sync::Arc;

use atomics::{AtomicU32, Ordering};

mod atomics {
    pub(super) use loom::sync::atomic::{AtomicU32, Ordering, fence};
}
#[expect(clippy::duplicate_mod, reason = "the same code over the atomics of the model")]
#[path = "handshake.rs"]
mod handshake;

#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let sleeps = Arc::new(AtomicU32::new(0));
        let messages = Arc::new(AtomicU32::new(0));
        let waker = {
            let (sleeps, messages) = (Arc::clone(&sleeps), Arc::clone(&messages));
            loom::thread::spawn(move || {
                let wakes = (1..=2).map(|count| {
                    messages.store(count, Ordering::Release);
                    handshake::must_wake(&sleeps)
                });
                wakes.filter(|wakes| *wakes).count()
            })
        };
        let is_asleep = handshake::prepare_sleep(&sleeps, || messages.load(Ordering::Acquire) < 2);
        let wakes = waker.join().unwrap();
        assert!(!is_asleep || wakes == 1, "asleep, with {wakes} calls to wake it");
        assert!(wakes <= 1);
    });
}
