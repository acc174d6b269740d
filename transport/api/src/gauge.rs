//! What a node's lanes carry, for those who watch it from other threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::contract::{Share, Traffic};

/// How often a node looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The last [`Traffic`] that a node's thread has seen.
#[derive(Debug)]
pub struct TrafficGauge {
    start: Instant,
    /// When it is looked next, since `start`.
    due_ns: AtomicU64,
    tcp: ShareGauge,
    rdma: ShareGauge,
}

#[derive(Debug, Default)]
struct ShareGauge {
    lanes: AtomicU64,
    bytes: AtomicU64,
}

impl Default for TrafficGauge {
    fn default() -> Self {
        let (tcp, rdma) = (ShareGauge::default(), ShareGauge::default());
        Self { start: Instant::now(), due_ns: AtomicU64::new(0), tcp, rdma }
    }
}

impl TrafficGauge {
    /// Looks at the traffic, unless that was just done. Only the node's own thread calls this.
    pub fn look(&self, now: Instant, traffic: impl FnOnce() -> Traffic) {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let since = ns(now.saturating_duration_since(self.start));
        if since >= self.due_ns.load(Ordering::Relaxed) {
            self.due_ns.store(since + ns(LOOK_EVERY), Ordering::Relaxed);
            self.note(traffic());
        }
    }

    /// Notes the traffic.
    pub fn note(&self, traffic: Traffic) {
        self.tcp.note(traffic.tcp);
        self.rdma.note(traffic.rdma);
    }

    /// What was noted last.
    #[must_use]
    pub fn read(&self) -> Traffic {
        Traffic { tcp: self.tcp.read(), rdma: self.rdma.read() }
    }
}

impl ShareGauge {
    fn note(&self, share: Share) {
        self.lanes.store(share.lanes, Ordering::Relaxed);
        self.bytes.store(share.bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Share {
        Share {
            lanes: self.lanes.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_looked_at_now_and_then_and_read_as_it_was_then() {
        let gauge = TrafficGauge::default();
        let carrying =
            |bytes| Traffic { rdma: Share { lanes: 2, bytes }, tcp: Share { lanes: 1, bytes: 0 } };
        gauge.look(gauge.start, || carrying(5));
        assert_eq!(gauge.read(), carrying(5));
        let soon = gauge.start + LOOK_EVERY / 2;
        gauge.look(soon, || unreachable!("it was just looked"));
        gauge.look(soon + LOOK_EVERY, || carrying(7));
        assert_eq!(gauge.read(), carrying(7));
    }
}
