//! A storage node loses its disk under load and is replaced: how long appends take before, while it is
//! gone, while the members change, while the new one copies the state, and after; and whether every
//! value is still there.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use halfmoon_client::{Executor, State, StateError, Value, ValueIn};
use halfmoon_wire::VersionId;
use serde::Serialize;

use super::{ANSWERS_WITHIN, All, BUSY_PAUSE_NS, FILLER, Started, append, ms, quantile};
use crate::cluster::{Cluster, Joining};
use crate::log::LogBench;

/// Load before, and after.
const AROUND: Duration = Duration::from_secs(5);
/// How long the node is gone before it is replaced.
const GONE: Duration = Duration::from_secs(3);
/// How long a spare, an epoch or the copy of one GiB may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Appends without an answer; more wait to be started.
const UNANSWERED_MAX: u64 = 32_768;
/// Bytes of a value of the state.
const VALUE_BYTES: u64 = 64 << 10;
/// The table of the state.
pub const TABLE: &str = "bench/replace";
/// Values written, or read, at once.
const VALUES_AT_ONCE: u64 = 32;

/// Under which load.
#[derive(Clone, Copy, Debug)]
pub struct ReplaceOptions {
    /// Appends started per second, on a schedule.
    pub rate_per_s: u32,
    /// Bytes of a payload, at least 16.
    pub size_bytes: usize,
    /// MiB of state that the new member has to copy.
    pub state_mib: u32,
}

/// Appends of one part of the time.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Phase {
    /// Which.
    pub name: &'static str,
    /// How long it lasted.
    pub lasted_s: f64,
    /// Appends that were to be started in it and were acknowledged.
    pub appends: u64,
    /// Latency from their scheduled start, p50.
    pub p50_ms: f64,
    /// p99.
    pub p99_ms: f64,
    /// The longest.
    pub latency_max_ms: f64,
    /// Longest time between two acknowledgements that ended in it.
    pub gap_ms: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Replaced {
    /// The node that lost its disk.
    pub old: u32,
    /// The one in its place.
    pub new: u32,
    /// Values of the state.
    pub values: u64,
    /// Of these, ones that were gone or different afterwards.
    pub values_damaged: u64,
    /// Before, gone, change, copy, after.
    pub phases: Vec<Phase>,
}

/// When the parts of the time end, in order.
struct Course {
    old: u32,
    new: u32,
    ends: Vec<(&'static str, Instant)>,
}

/// Fills the state, has a node replaced under load, and reads the state back. `started` collects every
/// append; `say` hears how far it is.
///
/// # Errors
/// When it could not be done; what was damaged is no error.
pub fn run(
    bench: &mut LogBench,
    cluster: &Arc<dyn Cluster>,
    options: &ReplaceOptions,
    started: &mut Vec<Started>,
    say: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Replaced> {
    let values = (u64::from(options.state_mib) << 20).div_ceil(VALUE_BYTES);
    say(format!("writing {} MiB of state …", options.state_mib));
    on_all(bench, values, put)?;
    let over = Arc::new(AtomicBool::new(false));
    let begin_ns = bench.driver.executor().now_ns();
    let all: All = Rc::default();
    let load = load(bench, *options, Rc::clone(&all), Arc::clone(&over));
    let course = thread::scope(|scope| {
        let (cluster, over) = (Arc::clone(cluster), Arc::clone(&over));
        let course = scope.spawn(move || {
            let course = take_course(&*cluster, say);
            over.store(true, Ordering::Release);
            course
        });
        bench.run(3 * PATIENCE + ANSWERS_WITHIN, load)??;
        course.join().map_err(|_| anyhow::anyhow!("the thread that replaces panicked"))?
    })?;
    let phases = phases(&all.borrow(), bench, begin_ns, &course);
    started.extend(all.take());
    say("reading the state back …".to_owned());
    let damaged = on_all(bench, values, is_damaged)?;
    let Course { old, new, .. } = course;
    Ok(Replaced { old, new, values, values_damaged: damaged, phases })
}

/// What happens to the cluster, from a thread of its own.
fn take_course(cluster: &dyn Cluster, say: &(dyn Fn(String) + Sync)) -> anyhow::Result<Course> {
    let mut ends = Vec::new();
    let mut over = |name| ends.push((name, Instant::now()));
    thread::sleep(AROUND);
    let old = cluster.lose_storage(1)?;
    over("before");
    say(format!("storage node {old} has lost its disk …"));
    thread::sleep(GONE);
    let new = until("a spare", || cluster.replace_storage(old).ok())?;
    over("gone");
    let reached = |wanted: Joining| {
        until("the change", || match cluster.joining(new) {
            Ok(stage) if stage == wanted || stage == Joining::Whole => Some(()),
            Ok(_) | Err(_) => None,
        })
    };
    reached(Joining::Copying)?;
    over("change");
    say(format!("storage node {new} is a member and copies the state …"));
    reached(Joining::Whole)?;
    over("copy");
    say(format!("storage node {new} is whole …"));
    thread::sleep(AROUND);
    over("after");
    Ok(Course { old, new, ends })
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < end, "{what} did not come within {PATIENCE:?}");
        thread::sleep(LOOK_EVERY);
    }
}

/// Starts appends on the schedule until it is over, and waits for all answers.
fn load(
    bench: &LogBench,
    options: ReplaceOptions,
    all: All,
    over: Arc<AtomicBool>,
) -> impl Future<Output = anyhow::Result<()>> + 'static {
    let (log, executor, begin) = (bench.driver.log(), bench.driver.executor(), bench.begin);
    async move {
        let (from_ns, unanswered) = (executor.now_ns(), Rc::new(Cell::new(0)));
        let failure = Rc::new(RefCell::new(None));
        for number in 0.. {
            let due_ns = from_ns + number * 1_000_000_000 / u64::from(options.rate_per_s);
            executor.sleep_until(due_ns).await;
            while unanswered.get() >= UNANSWERED_MAX {
                executor.sleep(BUSY_PAUSE_NS).await;
            }
            if over.load(Ordering::Acquire) || failure.borrow().is_some() {
                break;
            }
            all.borrow_mut().push(Started { number, due_ns, answer: None });
            unanswered.set(unanswered.get() + 1);
            let (log, all, again) = (log.clone(), Rc::clone(&all), executor.clone());
            let (unanswered, failure) = (Rc::clone(&unanswered), Rc::clone(&failure));
            let append = async move {
                let mut payload = vec![FILLER; options.size_bytes];
                payload[..8].copy_from_slice(&number.to_le_bytes());
                match append(&log, &again, &payload).await {
                    Ok(seq) => {
                        let at_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                        if let Some(one) = all.borrow_mut().get_mut(number as usize) {
                            one.answer = Some((at_ns, seq));
                        }
                    }
                    Err(error) => *failure.borrow_mut() = Some(error),
                }
                unanswered.set(unanswered.get() - 1);
            };
            executor.spawn(append).map_err(|_| anyhow::anyhow!("too many tasks"))?;
        }
        while unanswered.get() > 0 {
            executor.sleep(BUSY_PAUSE_NS).await;
        }
        failure.take().map_or(Ok(()), Err)
    }
}

fn phases(all: &[Started], bench: &LogBench, begin_ns: u64, course: &Course) -> Vec<Phase> {
    let ns = |at: &Instant| u64::try_from((*at - bench.begin).as_nanos()).unwrap_or(u64::MAX);
    let ends: Vec<(&str, u64)> = course.ends.iter().map(|(name, at)| (*name, ns(at))).collect();
    divided(all, begin_ns, &ends)
}

/// Divides appends by when they were due, and their gaps by when they ended.
fn divided(all: &[Started], begin_ns: u64, ends: &[(&'static str, u64)]) -> Vec<Phase> {
    let mut answers: Vec<u64> =
        all.iter().filter_map(|one| one.answer.map(|(at_ns, _)| at_ns)).collect();
    answers.sort_unstable();
    let mut from_ns = begin_ns;
    let mut phases = Vec::new();
    for (name, end_ns) in ends {
        let span = from_ns..*end_ns;
        let due = all.iter().filter(|one| span.contains(&one.due_ns));
        let mut latencies: Vec<u64> =
            due.filter_map(|one| Some(one.answer?.0.saturating_sub(one.due_ns))).collect();
        latencies.sort_unstable();
        let gaps = answers.windows(2).filter(|pair| span.contains(&pair[1]));
        let gap_ns = gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        phases.push(Phase {
            name,
            lasted_s: ms(end_ns.saturating_sub(from_ns)) / 1e3,
            appends: latencies.len() as u64,
            p50_ms: ms(quantile(&latencies, 50)),
            p99_ms: ms(quantile(&latencies, 99)),
            latency_max_ms: ms(latencies.last().copied().unwrap_or(0)),
            gap_ms: ms(gap_ns),
        });
        from_ns = *end_ns;
    }
    phases
}

/// Does something with all values, several at once; how many were counted.
fn on_all<F>(
    bench: &mut LogBench,
    values: u64,
    act: impl Fn(State, Executor, u64) -> F + Copy + 'static,
) -> anyhow::Result<u64>
where
    F: Future<Output = anyhow::Result<bool>> + 'static,
{
    let (state, executor) = (bench.driver.state(), bench.driver.executor());
    let task = async move {
        let mut lines = Vec::new();
        for line in 0..VALUES_AT_ONCE {
            let (state, again) = (state.clone(), executor.clone());
            let work = async move {
                let mut counted = 0;
                for number in (line..values).step_by(VALUES_AT_ONCE as usize) {
                    counted += u64::from(act(state.clone(), again.clone(), number).await?);
                }
                anyhow::Ok(counted)
            };
            lines.push(executor.spawn(work).map_err(|_| anyhow::anyhow!("too many tasks"))?);
        }
        let mut counted = 0;
        for line in lines {
            counted += line.await.map_err(|_| anyhow::anyhow!("a task was aborted"))??;
        }
        anyhow::Ok(counted)
    };
    bench.run(PATIENCE, task)?
}

/// The value of this number: it says which it is in every word.
fn value(number: u64) -> Vec<u8> {
    let word = crate::travel::mixed(number).to_le_bytes();
    word.repeat(VALUE_BYTES as usize / word.len())
}

const fn version(number: u64) -> VersionId {
    VersionId(number as u128 + 1)
}

async fn put(state: State, executor: Executor, number: u64) -> anyhow::Result<bool> {
    let key = number.to_be_bytes();
    loop {
        let bytes = ValueIn::Bytes(value(number).into());
        let deadline_ns = executor.now_ns() + ANSWERS_WITHIN.as_nanos() as u64;
        match state.put_version(TABLE, &key, version(number), bytes, deadline_ns).await {
            Ok(()) => return Ok(false),
            // The same value under the same name: it may be sent again.
            Err(StateError::Unknown) => {}
            Err(error) => return Err(error).context("the state was not written"),
        }
    }
}

async fn is_damaged(state: State, executor: Executor, number: u64) -> anyhow::Result<bool> {
    let deadline_ns = executor.now_ns() + ANSWERS_WITHIN.as_nanos() as u64;
    let found =
        state.get_version(TABLE, &number.to_be_bytes(), version(number), None, deadline_ns).await;
    match found.context("the state was not read back")? {
        Some(Value::Bytes(bytes)) => Ok(bytes != value(number)),
        Some(Value::Landed { .. }) | None => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_wire::SeqNum;

    use super::*;

    #[test]
    fn appends_are_divided_by_when_they_were_due_and_gaps_by_when_they_ended() {
        let ms = |ms: u64| ms * 1_000_000;
        let one = |number: u64, due: u64, answered: u64| Started {
            number,
            due_ns: ms(due),
            answer: Some((ms(answered), SeqNum(number + 1))),
        };
        let unanswered = Started { number: 4, due_ns: ms(26), answer: None };
        let all = [one(0, 10, 11), one(1, 20, 23), one(2, 25, 48), one(3, 30, 49), unanswered];
        let phases = divided(&all, ms(10), &[("before", ms(22)), ("gone", ms(50))]);
        let near = |a: f64, b: f64| (a - b).abs() < 0.01;
        assert_eq!((phases[0].appends, phases[1].appends), (2, 2));
        assert!(near(phases[0].latency_max_ms, 3.0) && near(phases[0].gap_ms, 0.0), "{phases:?}");
        assert!(near(phases[1].latency_max_ms, 23.0) && near(phases[1].gap_ms, 25.0), "{phases:?}");
        assert!(near(phases[0].lasted_s, 0.012) && near(phases[1].lasted_s, 0.028), "{phases:?}");
    }

    #[test]
    fn values_differ() {
        assert_eq!(value(3).len() as u64, VALUE_BYTES);
        assert_ne!(value(3), value(4));
    }
}
