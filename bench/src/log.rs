//! Durable appends: latency when idle, latency and rate at several depths and sizes, beside the
//! floors measured in the same run.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use halfmoon_client::{AppendRequest, Appended, Driver, Log, MetaDirectory, Options};
use halfmoon_meta::{MetaStore, cluster, nodes};
use halfmoon_reactor::{Options as ReactorOptions, Reactor, SharedReactor};
use halfmoon_tcp::Tcp;
use halfmoon_wire::{NodeId, Role, SeqNum, Tag};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::histogram;

/// Rounds of each floor.
const FLOOR_ROUNDS: usize = 500;
/// Idle appends are this far apart, on the schedule: enough for each to find everything asleep.
pub const IDLE_EVERY: Duration = Duration::from_millis(4);
/// The tag that all records of the benchmark carry.
pub(crate) const TAG: Tag = Tag(0xbe4c);
/// Lanes whose end is noted.
const LANES_LOST_MAX: usize = 100_000;
/// Longest wait for the log to come up.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// The floors: what one delay and one flush cost on this machine, now.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Floors {
    /// One-way delay of a small message, p50.
    pub d_us: f64,
    /// One durable 4 KiB write by three writers at once, the second of the three, p50.
    pub f_us: f64,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Appends in flight.
    pub depth: usize,
    /// Bytes of the payload.
    pub size_bytes: usize,
    /// Appends that were acknowledged per second.
    pub rate_per_s: f64,
    /// Latency, p50.
    pub p50_us: u64,
    /// Latency, p99.
    pub p99_us: u64,
}

impl Floors {
    /// 3D + F: what an append costs at least.
    #[must_use]
    pub fn append_us(&self) -> f64 {
        3.0 * self.d_us + self.f_us
    }

    /// The mean of two: machines drift, so floors are measured before and after what stands on them.
    #[must_use]
    pub fn between(self, other: Self) -> Self {
        Self {
            d_us: f64::midpoint(self.d_us, other.d_us),
            f_us: f64::midpoint(self.f_us, other.f_us),
        }
    }
}

/// Measures D and F on an idle machine, once per `every`, or back to back if that is zero.
pub fn floors(dir: &Path, every: Duration) -> anyhow::Result<Floors> {
    let options = ReactorOptions::default();
    let delays = halfmoon_tcp::floor::one_way_delays(FLOOR_ROUNDS, every, options)?;
    let writes = halfmoon_reactor::floor::durable_writes(dir, 3, FLOOR_ROUNDS, every)?;
    let second = writes.into_iter().filter_map(|round| round.get(1).copied()).collect();
    Ok(Floors { d_us: median_us(delays), f_us: median_us(second) })
}

fn median_us(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).map_or(0.0, |median| median.as_secs_f64() * 1e6)
}

/// A client of a cluster's log, with the thread that drives it.
pub struct LogBench {
    reactor: SharedReactor,
    pub(crate) driver: Driver<Tcp, MetaDirectory>,
    pub(crate) begin: Instant,
    /// When lanes went down, in ns; the first ones.
    pub(crate) lanes_lost: Vec<u64>,
}

impl LogBench {
    /// Joins the log of the cluster that `meta` describes, as the engine `node`.
    pub fn join(meta: Arc<dyn MetaStore>, node: NodeId) -> anyhow::Result<Self> {
        let mut bench = Self::dial(meta, node, Role::Engine)?;
        let log = bench.driver.log();
        let probe = async move { append(&log, &[0; 16]).await };
        bench.run(UP_WITHIN, probe)?.context("the log did not take a first append")?;
        Ok(bench)
    }

    /// A client that has not asked for anything yet.
    pub(crate) fn dial(meta: Arc<dyn MetaStore>, node: NodeId, role: Role) -> anyhow::Result<Self> {
        let reactor = Reactor::shared(ReactorOptions::default())?;
        let cluster = cluster::read(&*meta)?.id();
        let incarnation = nodes::next_incarnation(&*meta, node)?;
        let waker = reactor.borrow().waker();
        let directory = MetaDirectory::new(meta, waker)?;
        let options = Options::new(cluster, role, node, incarnation);
        let driver = Driver::new(Tcp::new(reactor.clone()), directory, &options, 0);
        Ok(Self { reactor, driver, begin: Instant::now(), lanes_lost: Vec::new() })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Drives everything until the future ends.
    pub(crate) fn run<T: 'static>(
        &mut self,
        within: Duration,
        future: impl Future<Output = T> + 'static,
    ) -> anyhow::Result<T> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        let task = async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        };
        self.driver.executor().spawn(task).map_err(|_| anyhow::anyhow!("too many tasks"))?;
        let end = Instant::now() + within;
        loop {
            let lost = self.driver.metrics().lanes_lost;
            let pace = self.driver.turn(self.now_ns());
            if self.driver.metrics().lanes_lost > lost && self.lanes_lost.len() < LANES_LOST_MAX {
                self.lanes_lost.push(self.now_ns());
            }
            if let Some(value) = result.borrow_mut().take() {
                return Ok(value);
            }
            anyhow::ensure!(Instant::now() < end, "no end within {within:?}: is the log up?");
            let rest = pace.wake_at_ns.map_or(Duration::from_millis(100), |at| {
                Duration::from_nanos(at.saturating_sub(self.now_ns()))
            });
            let rest = if pace.busy { Duration::ZERO } else { rest };
            self.reactor.borrow_mut().wait(rest)?;
        }
    }

    /// Appends one at a time on a schedule, slowly: the latency of an idle log, counted from the
    /// scheduled start.
    pub fn idle(&mut self, size_bytes: usize, lasting: Duration) -> anyhow::Result<Point> {
        let (log, executor) = (self.driver.log(), self.driver.executor());
        let begin = self.begin;
        let task = async move {
            let mut latency = histogram();
            let payload = vec![7; size_bytes];
            let first = executor.now_ns();
            let every = u64::try_from(IDLE_EVERY.as_nanos()).unwrap_or(u64::MAX);
            let last = first + u64::try_from(lasting.as_nanos()).unwrap_or(u64::MAX);
            let mut due = first;
            while due < last {
                executor.sleep_until(due).await;
                let late = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                // A sleep that ends late is the timer's doing, not the log's, while the log is idle.
                let start = due.max(late);
                append(&log, &payload).await?;
                let end = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                latency.saturating_record((end - start) / 1000);
                due += every;
            }
            anyhow::Ok(latency)
        };
        let latency = self.run(lasting * 4 + UP_WITHIN, task)??;
        Ok(point(1, size_bytes, &latency, lasting))
    }

    /// Keeps `depth` appends in flight: the highest rate, and the latency at it.
    pub fn peak(
        &mut self,
        depth: usize,
        size_bytes: usize,
        lasting: Duration,
    ) -> anyhow::Result<Point> {
        let latency = Rc::new(RefCell::new(histogram()));
        let end = Instant::now() + lasting;
        let (log, executor) = (self.driver.log(), self.driver.executor());
        let noted = Rc::clone(&latency);
        let started = Instant::now();
        let task = async move {
            let mut lanes = Vec::with_capacity(depth);
            for _ in 0..depth {
                let (log, noted) = (log.clone(), Rc::clone(&noted));
                let lane = async move {
                    let payload = vec![7; size_bytes];
                    while Instant::now() < end {
                        let begin = Instant::now();
                        append(&log, &payload).await?;
                        let us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                        noted.borrow_mut().saturating_record(us);
                    }
                    anyhow::Ok(())
                };
                lanes.push(executor.spawn(lane).map_err(|_| anyhow::anyhow!("too many tasks"))?);
            }
            for lane in lanes {
                lane.await.map_err(|_| anyhow::anyhow!("a task was aborted"))??;
            }
            anyhow::Ok(())
        };
        self.run(lasting * 2 + UP_WITHIN, task)??;
        let measured = point(depth, size_bytes, &latency.borrow(), started.elapsed());
        Ok(measured)
    }
}

fn point(depth: usize, size_bytes: usize, latency: &Histogram<u64>, lasting: Duration) -> Point {
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^53, for a rate")]
    let rate_per_s = latency.len() as f64 / lasting.as_secs_f64();
    Point {
        depth,
        size_bytes,
        rate_per_s,
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
    }
}

async fn append(log: &Log, payload: &[u8]) -> anyhow::Result<SeqNum> {
    let request = AppendRequest { floor: SeqNum::MAX, conditions: &[], tags: &[TAG], payload };
    match log.append(&request).await? {
        Appended::At(seq) => Ok(seq),
        other @ (Appended::Conflict { .. }
        | Appended::Gap { .. }
        | Appended::RootGone { .. }
        | Appended::Evicted
        | Appended::Invalid) => anyhow::bail!("an unconditional append was refused: {other:?}"),
    }
}
