//! How long appends stand still when a node dies or hangs under load, and whether each of them is in
//! the log afterwards, once.

mod engine;
mod phases;
mod replace;
mod verify;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use halfmoon_client::{AppendRequest, Appended, Executor, Log, LogError};
use halfmoon_wire::SeqNum;
use serde::Serialize;

use crate::cluster::{Cluster, Part};
use crate::log::{LogBench, TAG};
pub use engine::{EngineOptions, EngineOutcome, EngineRun, run as run_engines};
pub use phases::Phases;
pub use replace::{Phase, ReplaceOptions, Replaced, TABLE, run as replace};
pub use verify::{Findings, verify};

/// Load before a node dies: enough for one that stands by to have learned what came before.
const BEFORE: Duration = Duration::from_millis(1500);
/// Load after that: the gap is looked for in here.
const AFTER: Duration = Duration::from_millis(1500);
/// How long a storage node is down.
const DOWN: Duration = Duration::from_millis(1500);
/// How long a node that was killed may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// Rest after it is back, in which it catches up.
const SETTLE: Duration = Duration::from_millis(1500);
/// How long the last answers of a run may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// What follows the number in a payload: it tells these appends from a joining client's probe.
pub(crate) const FILLER: u8 = 7;
/// Pause before an append for which there is no room is tried again, in ns.
const BUSY_PAUSE_NS: u64 = 1_000_000;

/// What dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// The sequencer in charge.
    Sequencer,
    /// Storage nodes, one after the other.
    Storage,
}

/// How it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// By SIGKILL. It is started again: a sequencer at once, a storage node after a while.
    Kill,
    /// By SIGSTOP. It goes on, as if nothing had happened, before the load ends.
    Stop,
}

/// How often, and under which load.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often a node dies.
    pub runs: u32,
    /// Appends started per second, on a schedule.
    pub rate_per_s: u32,
    /// Bytes of a payload, at least 16.
    pub size_bytes: usize,
    /// What dies.
    pub victim: Victim,
    /// How.
    pub death: Death,
    /// Sequencers that stand by, which each death of one waits for.
    pub standbys: u32,
}

/// One death.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Longest time between two acknowledgements around the death.
    pub gap_ms: f64,
    /// When that ended, after the death: soon, if it is the takeover; later, if it is something else,
    /// such as the node being started again.
    pub gap_end_ms: f64,
    /// The same, before it: what the machine does by itself.
    pub gap_before_ms: f64,
    /// Longest latency of an append, from its scheduled start.
    pub latency_max_ms: f64,
    /// Latency from the scheduled start of the appends started before the death, p99.
    pub p99_before_ms: f64,
    /// Of those started after it.
    pub p99_after_ms: f64,
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Appends without an answer.
    pub unknown: u64,
    /// Epochs that were entered.
    pub epochs: u64,
    /// Before, during and after the death of a storage node.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
}

/// An append that was started.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Its number, which its payload begins with.
    pub number: u64,
    /// When it was to be started, in ns.
    due_ns: u64,
    /// When it was acknowledged, in ns, and where it is; `None`: there was no answer.
    answer: Option<(u64, SeqNum)>,
}

impl Started {
    /// Where it is in the log, if it was acknowledged.
    #[must_use]
    pub fn place(&self) -> Option<SeqNum> {
        self.answer.map(|(_, seq)| seq)
    }
}

type All = Rc<RefCell<Vec<Started>>>;

/// Has a node die under load, and measures. `started` collects every append.
pub fn run(
    bench: &mut LogBench,
    cluster: &Arc<dyn Cluster>,
    options: &Options,
    number: u32,
    started: &mut Vec<Started>,
) -> anyhow::Result<Run> {
    if options.victim == Victim::Sequencer {
        wait_for_standbys(bench, options.standbys)?;
    }
    let epochs = bench.driver.metrics().epochs;
    let all: All = Rc::default();
    let first = started.len() as u64;
    let begin_ns = bench.driver.executor().now_ns();
    let begin = bench.begin + Duration::from_nanos(begin_ns);
    let death = die(Arc::clone(cluster), options, number, begin + BEFORE)?;
    let load = load(bench, *options, first, Rc::clone(&all));
    bench.run(options.lasting() + ANSWERS_WITHIN, load)??;
    let (died, back) =
        death.join().map_err(|_| anyhow::anyhow!("the thread that kills panicked"))??;
    let ns = |moment: Instant| u64::try_from((moment - bench.begin).as_nanos());
    let (died_ns, back_ns) = (ns(died)?, ns(back)?);
    let of_run = all.take();
    let epochs = bench.driver.metrics().epochs - epochs;
    let mut measured = measure(&of_run, died_ns, epochs)?;
    if options.victim == Victim::Storage {
        let lost = bench.lanes_lost.iter().copied();
        let noticed_ns = lost.filter(|at_ns| (died_ns..back_ns).contains(at_ns)).min();
        let moments = phases::Moments { died_ns, back_ns, noticed_ns };
        measured.phases = Some(phases::measure(&of_run, moments));
    }
    started.extend(of_run);
    Ok(measured)
}

impl Options {
    /// How long the load of a run lasts.
    fn lasting(&self) -> Duration {
        match self.victim {
            Victim::Sequencer => BEFORE + AFTER,
            Victim::Storage => BEFORE + DOWN + AFTER,
        }
    }
}

/// Kills at that moment, from a thread of its own; returns when it was done, and when the victim was
/// let live again.
fn die(
    cluster: Arc<dyn Cluster>,
    options: &Options,
    number: u32,
    at: Instant,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<(Instant, Instant)>>> {
    let (part, down) = match (options.victim, options.death) {
        (Victim::Sequencer, Death::Kill) => (Part::Sequencer, Duration::ZERO),
        (Victim::Sequencer, Death::Stop) => (Part::Sequencer, AFTER / 2),
        (Victim::Storage, _) => (Part::Storage(number as usize % 3), DOWN),
    };
    let death = options.death;
    let thread = thread::Builder::new().name("death".into()).spawn(move || {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        match death {
            Death::Kill => {
                cluster.kill_for(part, down)?;
                let died = Instant::now();
                Ok((died, died + down))
            }
            Death::Stop => {
                let pid = cluster.pause(part)?;
                let died = Instant::now();
                thread::sleep(down);
                cluster.resume(pid)?;
                Ok((died, Instant::now()))
            }
        }
    })?;
    Ok(thread)
}

/// Until as many sequencers stand by as there should be, and some time more.
fn wait_for_standbys(bench: &mut LogBench, standbys: u32) -> anyhow::Result<()> {
    let (log, executor) = (bench.driver.log(), bench.driver.executor());
    let all_stand_by = async move {
        let standing = |log: &Log| {
            let lanes = log.sequencers();
            lanes.iter().filter(|lane| lane.is_up && !lane.is_in_charge).count()
        };
        while standing(&log) < standbys as usize {
            executor.sleep(BUSY_PAUSE_NS).await;
        }
        executor.sleep(u64::try_from(SETTLE.as_nanos()).unwrap_or(u64::MAX)).await;
    };
    bench.run(BACK_WITHIN, all_stand_by).context("no sequencer stands by")
}

/// Starts appends on the schedule and waits for all answers.
fn load(
    bench: &LogBench,
    options: Options,
    first: u64,
    all: All,
) -> impl Future<Output = anyhow::Result<()>> + 'static {
    let (log, executor, begin) = (bench.driver.log(), bench.driver.executor(), bench.begin);
    async move {
        let from_ns = executor.now_ns();
        let count = u64::from(options.rate_per_s) * options.lasting().as_millis() as u64 / 1000;
        let mut appends = Vec::new();
        for index in 0..count {
            let due_ns = from_ns + index * 1_000_000_000 / u64::from(options.rate_per_s);
            if due_ns > executor.now_ns() {
                executor.sleep_until(due_ns).await;
            }
            let number = first + index;
            all.borrow_mut().push(Started { number, due_ns, answer: None });
            let (log, all, again) = (log.clone(), Rc::clone(&all), executor.clone());
            let append = async move {
                let mut payload = vec![FILLER; options.size_bytes];
                payload[..8].copy_from_slice(&number.to_le_bytes());
                let seq = append(&log, &again, &payload).await?;
                let at_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let index = usize::try_from(index)?;
                all.borrow_mut()[index].answer = Some((at_ns, seq));
                anyhow::Ok(())
            };
            appends.push(executor.spawn(append).map_err(|_| anyhow::anyhow!("too many tasks"))?);
        }
        for append in appends {
            append.await.map_err(|_| anyhow::anyhow!("a task was aborted"))??;
        }
        anyhow::Ok(())
    }
}

async fn append(log: &Log, executor: &Executor, payload: &[u8]) -> anyhow::Result<SeqNum> {
    let request = AppendRequest { floor: SeqNum::MAX, conditions: &[], tags: &[TAG], payload };
    loop {
        match log.append(&request).await {
            Ok(Appended::At(seq)) => return Ok(seq),
            // Nothing was done: there is no room for more.
            Err(LogError::Busy) => executor.sleep(BUSY_PAUSE_NS).await,
            other => anyhow::bail!("an unconditional append ended as {other:?}"),
        }
    }
}

fn measure(all: &[Started], died_ns: u64, epochs: u64) -> anyhow::Result<Run> {
    let mut answers: Vec<u64> =
        all.iter().filter_map(|one| one.answer.map(|(at_ns, _)| at_ns)).collect();
    answers.sort_unstable();
    anyhow::ensure!(answers.last().is_some_and(|last| *last > died_ns), "no answer came after it");
    let gap = |is_before: bool| {
        let pairs = answers.windows(2).filter(|pair| (pair[1] < died_ns) == is_before);
        pairs.map(|pair| (pair[1] - pair[0], pair[1])).max().unwrap_or_default()
    };
    let latencies = |is_before: bool| {
        let of = all.iter().filter(|one| (one.due_ns < died_ns) == is_before);
        let mut latencies: Vec<u64> =
            of.filter_map(|one| Some(one.answer?.0.saturating_sub(one.due_ns))).collect();
        latencies.sort_unstable();
        latencies
    };
    let (before, after) = (latencies(true), latencies(false));
    let worst = before.last().max(after.last()).copied().unwrap_or(0);
    let (gap_ns, end_ns) = gap(false);
    Ok(Run {
        gap_ms: ms(gap_ns),
        gap_end_ms: ms(end_ns.saturating_sub(died_ns)),
        gap_before_ms: ms(gap(true).0),
        latency_max_ms: ms(worst),
        p99_before_ms: ms(quantile(&before, 99)),
        p99_after_ms: ms(quantile(&after, 99)),
        acknowledged: answers.len() as u64,
        unknown: (all.len() - answers.len()) as u64,
        epochs,
        phases: None,
    })
}

/// Of sorted values, by hundredths.
fn quantile(sorted: &[u64], hundredths: usize) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) * hundredths / 100).copied().unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "a duration far below 2^53 ns")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The middle one of several, and the worst.
#[must_use]
pub fn median_and_worst(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match (values.len() % 2, values.get(middle)) {
        (_, None) => 0.0,
        (0, Some(upper)) => f64::midpoint(values[middle - 1], *upper),
        (_, Some(value)) => *value,
    };
    (median, values.last().copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(number: u64, due_ns: u64, answered_ns: Option<u64>) -> Started {
        let answer = answered_ns.map(|at_ns| (at_ns, SeqNum(number + 1)));
        Started { number, due_ns, answer }
    }

    #[test]
    fn the_gap_is_the_longest_time_between_answers_that_ends_after_the_death() {
        let ms = |ms: u64| ms * 1_000_000;
        let all = [
            started(0, ms(0), Some(ms(1))),
            started(1, ms(10), Some(ms(31))),
            started(2, ms(20), Some(ms(33))),
            started(3, ms(30), Some(ms(75))),
            started(4, ms(40), Some(ms(72))),
            started(5, ms(60), None),
        ];
        let run = measure(&all, ms(35), 1).unwrap();
        assert!((run.gap_before_ms - 30.0).abs() < 0.01, "{run:?}");
        assert!((run.gap_ms - 39.0).abs() < 0.01, "from 33, the last before, to 72: {run:?}");
        assert!((run.gap_end_ms - 37.0).abs() < 0.01, "{run:?}");
        assert!((run.latency_max_ms - 45.0).abs() < 0.01, "{run:?}");
        assert_eq!((run.acknowledged, run.unknown), (5, 1));
        assert!(measure(&all, ms(80), 1).is_err(), "nothing came after it");
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median_and_worst([3.0, 1.0, 9.0]), (3.0, 9.0));
        assert_eq!(median_and_worst([4.0, 2.0]), (3.0, 4.0));
        assert_eq!(median_and_worst([]), (0.0, 0.0));
    }
}
