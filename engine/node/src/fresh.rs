//! The lease on the log's tail: how old what this engine knows of the log may be.
//!
//! An engine that is cut off from the sequencer hears of no new record, and cannot tell that from
//! silence. So it asks for the tail again and again. The answer is one of a sequencer that a quorum of
//! storage nodes has confirmed after the question; once the log is applied up to it, everything that
//! was committed before the question is known here. A root starts only while that question is younger
//! than the lease; else it waits for the next answer.

use std::cell::Cell;
use std::rc::Rc;

use halfmoon_client::LogError;

use crate::hot::Hot;

/// What a sequential root does not see was committed at most so long before it began, in ns.
pub(crate) const TAIL_LEASE_NS: u64 = 1_000_000_000;
/// Pause between two questions, in ns.
const ASK_EVERY_NS: u64 = TAIL_LEASE_NS / 4;

/// When the question was asked whose answer was applied last.
#[derive(Debug, Default)]
pub(crate) struct TailLease(Cell<Option<u64>>);

impl TailLease {
    /// Whether roots may start, in ns of the engine's clock.
    pub(crate) fn is_fresh(&self, now_ns: u64) -> bool {
        self.0.get().is_some_and(|asked_ns| now_ns.saturating_sub(asked_ns) <= TAIL_LEASE_NS)
    }

    fn renewed(&self, asked_ns: u64) {
        self.0.set(self.0.get().max(Some(asked_ns)));
    }
}

/// Waits until the log is applied up to the tail that it has now, which renews the lease.
pub(crate) async fn renew(hot: &Hot) -> Result<(), LogError> {
    let asked_ns = hot.executor.now_ns();
    hot.log.catch_up().await?;
    hot.lease.renewed(asked_ns);
    Ok(())
}

/// Renews the lease for as long as the log is used.
pub(crate) async fn stay(hot: Rc<Hot>) {
    while renew(&hot).await.is_ok() {
        hot.caught_up.set(true);
        hot.executor.sleep(ASK_EVERY_NS).await;
    }
}
