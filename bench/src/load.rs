//! Open-loop load: start times are a schedule, and latency counts from the *scheduled* start, so a
//! stall is charged to every request that it delays.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Requests that may be on their way at once; beyond, starts wait (and their latency counts it).
const IN_FLIGHT_MAX: usize = 512;
/// Longest latency that is told apart, in µs.
const LATENCY_MAX_US: u64 = 120_000_000;

/// How much, how long.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Requests started per second.
    pub rate_per_s: f64,
    /// Requests in all.
    pub count: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Measured {
    /// Latencies in µs, from the scheduled start.
    pub latency_us: Histogram<u64>,
    /// Requests that ended well.
    pub succeeded: u64,
    /// Requests that did not.
    pub failed: u64,
    /// From the first start to the last end.
    pub elapsed: Duration,
}

impl Schedule {
    /// A schedule of `duration` at `rate_per_s`.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate times a duration, both positive and far below 2^53"
    )]
    pub fn lasting(duration: Duration, rate_per_s: f64) -> Self {
        Self { rate_per_s, count: (duration.as_secs_f64() * rate_per_s).ceil() as u64 }
    }

    fn start_of(&self, index: u64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a request's number, far below 2^53")]
        Duration::from_secs_f64(index as f64 / self.rate_per_s)
    }
}

impl Measured {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { latency_us: histogram(), succeeded: 0, failed: 0, elapsed: Duration::ZERO }
    }

    /// Adds another measurement's figures.
    pub fn merge(&mut self, other: &Self) {
        self.latency_us.add(&other.latency_us).expect("both have the same bounds");
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.elapsed += other.elapsed;
    }

    /// Notes one request.
    pub fn note(&mut self, latency: Duration, well: bool) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.saturating_record(us);
        *(if well { &mut self.succeeded } else { &mut self.failed }) += 1;
    }
}

impl Default for Measured {
    fn default() -> Self {
        Self::new()
    }
}

/// A histogram as all latencies use it: µs, three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("constant, valid bounds")
}

/// Runs `request(index)` for every index of the schedule at its time. A request says whether it
/// ended well.
pub async fn open_loop<F, R>(schedule: Schedule, request: F) -> Measured
where
    F: Fn(u64) -> R,
    R: Future<Output = bool> + Send + 'static,
{
    let mut measured = Measured::new();
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut running = JoinSet::new();
    let begin = Instant::now();
    for index in 0..schedule.count {
        let due = begin + schedule.start_of(index);
        tokio::time::sleep_until(due).await;
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let work = request(index);
        running.spawn(async move {
            let well = work.await;
            drop(slot);
            (due.elapsed(), well)
        });
        while let Some(Ok((latency, well))) = running.try_join_next() {
            measured.note(latency, well);
        }
    }
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((latency, well)) => measured.note(latency, well),
            Err(_) => measured.failed += 1,
        }
    }
    measured.elapsed = begin.elapsed();
    measured
}
