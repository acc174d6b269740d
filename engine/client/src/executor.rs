//! A small executor for one thread: tasks, wakers without locks, timers by the time passed in.

mod alarms;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_queue::ArrayQueue;
use thiserror::Error;

pub(crate) use alarms::{AlarmId, Alarms};

/// Most tasks at once.
pub const TASKS_MAX: usize = 64 * 1024;

/// Tasks that are polled before the driver looks at the network again.
const POLLS_PER_RUN: usize = 4096;

/// Runs tasks on the thread that calls [`run_ready`](Self::run_ready). Clones are handles to the
/// same executor.
#[derive(Clone)]
pub struct Executor(Rc<Shared>);

/// There are [`TASKS_MAX`] tasks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("all {TASKS_MAX} tasks are in use")]
pub struct TooManyTasks;

/// The task was aborted, or its executor has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the task was aborted")]
pub struct Aborted;

/// The time was up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the time was up")]
pub struct Elapsed;

/// The end of a task. Dropping it lets the task go on.
pub struct JoinHandle<T> {
    executor: Executor,
    index: u32,
    generation: u64,
    join: Rc<Join<T>>,
}

/// Ends at a point in time. See [`Executor::sleep_until`].
pub struct Sleep {
    executor: Executor,
    at_ns: u64,
    alarm: Option<AlarmId>,
}

struct Shared {
    tasks: RefCell<Tasks>,
    ready: Arc<Ready>,
    timers: RefCell<Alarms>,
    now_ns: Cell<u64>,
}

#[derive(Default)]
struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
    generations: u64,
}

struct Slot {
    /// `None` while it is polled, and when the slot is free.
    future: Option<Task>,
    waker: Waker,
    /// Of the task that is here; 0 when there is none.
    generation: u64,
    notice: Arc<Notice>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Slots whose task is to be polled. Each is in it at most once, so it is never full.
struct Ready(ArrayQueue<u32>);

/// What a waker holds. It outlives the task, and a late wake costs its successor one poll.
struct Notice {
    index: u32,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

struct Join<T> {
    result: RefCell<Option<Result<T, Aborted>>>,
    waker: RefCell<Option<Waker>>,
}

/// Says that the task ended, however it did.
struct Ending<T>(Rc<Join<T>>);

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let pushed = self.ready.0.push(self.index);
            assert!(pushed.is_ok(), "a slot is queued at most once");
        }
    }
}

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        self.0.result.borrow_mut().get_or_insert(Err(Aborted));
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Executor {
    /// An executor without tasks, at this time.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        Self(Rc::new(Shared {
            tasks: RefCell::default(),
            ready: Arc::new(Ready(ArrayQueue::new(TASKS_MAX))),
            timers: RefCell::default(),
            now_ns: Cell::new(now_ns),
        }))
    }

    /// Starts a task. It is polled in the next [`run_ready`](Self::run_ready), or later in this one.
    pub fn spawn<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
    ) -> Result<JoinHandle<T>, TooManyTasks> {
        let join = Rc::new(Join { result: RefCell::new(None), waker: RefCell::new(None) });
        let ending = Ending(join.clone());
        let task = Box::pin(async move {
            let result = future.await;
            *ending.0.result.borrow_mut() = Some(Ok(result));
        });
        let (index, generation) = self.place(task)?;
        Ok(JoinHandle { executor: self.clone(), index, generation, join })
    }

    /// Fires what is due and polls the tasks that were woken, until there are none or many were
    /// polled. Returns whether there are more.
    pub fn run_ready(&self, now_ns: u64) -> bool {
        self.set_now(now_ns);
        for _ in 0..POLLS_PER_RUN {
            let Some(index) = self.0.ready.0.pop() else { return false };
            self.poll_task(index);
        }
        !self.0.ready.0.is_empty()
    }

    /// Whether a task waits to be polled.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.0.ready.0.is_empty()
    }

    /// The time that was passed in last, in ns.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.0.now_ns.get()
    }

    /// Passes the time in, and wakes what slept until then. Time does not go back.
    pub fn set_now(&self, now_ns: u64) {
        let now_ns = now_ns.max(self.now_ns());
        self.0.now_ns.set(now_ns);
        self.0.timers.borrow_mut().fire(now_ns);
    }

    /// Ends at `at_ns`.
    #[must_use]
    pub fn sleep_until(&self, at_ns: u64) -> Sleep {
        Sleep { executor: self.clone(), at_ns, alarm: None }
    }

    /// Ends `duration_ns` from now.
    #[must_use]
    pub fn sleep(&self, duration_ns: u64) -> Sleep {
        self.sleep_until(self.now_ns().saturating_add(duration_ns))
    }

    /// The future's result if it ends before `at_ns`; otherwise it is dropped.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is up.
    pub async fn timeout_at<F: Future>(&self, at_ns: u64, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = self.sleep_until(at_ns);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => Pin::new(&mut sleep).poll(context).map(|()| Err(Elapsed)),
        })
        .await
    }

    /// When the next timer is due, in ns.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.0.timers.borrow_mut().next()
    }

    /// Drops every task. Tasks hold handles to their executor, so this is also what frees it.
    pub fn clear(&self) {
        let mut dropped = Vec::new();
        {
            let mut tasks = self.0.tasks.borrow_mut();
            let Tasks { slots, free, .. } = &mut *tasks;
            for (slot, index) in slots.iter_mut().zip(0..) {
                if slot.generation != 0 {
                    slot.generation = 0;
                    free.push(index);
                }
                dropped.extend(slot.future.take());
            }
        }
        // Dropping a task may wake or abort others, so not under the borrow.
        drop(dropped);
    }

    fn place(&self, task: Task) -> Result<(u32, u64), TooManyTasks> {
        let mut tasks = self.0.tasks.borrow_mut();
        tasks.generations += 1;
        let generation = tasks.generations;
        let index = match tasks.free.pop() {
            Some(index) => index,
            None if tasks.slots.len() < TASKS_MAX => {
                let index = u32::try_from(tasks.slots.len()).map_err(|_| TooManyTasks)?;
                let queued = AtomicBool::new(false);
                let notice = Arc::new(Notice { index, queued, ready: self.0.ready.clone() });
                let waker = Waker::from(notice.clone());
                tasks.slots.push(Slot { future: None, waker, generation: 0, notice });
                index
            }
            None => return Err(TooManyTasks),
        };
        let slot = &mut tasks.slots[index as usize];
        slot.future = Some(task);
        slot.generation = generation;
        slot.waker.wake_by_ref();
        Ok((index, generation))
    }

    fn poll_task(&self, index: u32) {
        let at = index as usize;
        let (mut task, waker, generation) = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(slot) = tasks.slots.get_mut(at) else { return };
            slot.notice.queued.store(false, Ordering::Release);
            let Some(task) = slot.future.take() else { return };
            (task, slot.waker.clone(), slot.generation)
        };
        let done = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = self.0.tasks.borrow_mut();
        let slot = tasks.slots.get_mut(at).filter(|slot| slot.generation == generation);
        let Some(slot) = slot else {
            // It aborted itself. Dropping it may come back here, so not under the borrow.
            drop(tasks);
            return drop(task);
        };
        if done {
            slot.generation = 0;
            tasks.free.push(index);
            drop(tasks);
            drop(task);
        } else {
            slot.future = Some(task);
        }
    }

    fn abort(&self, index: u32, generation: u64) {
        let task = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(slot) = tasks.slots.get_mut(index as usize) else { return };
            if slot.generation != generation {
                return;
            }
            slot.generation = 0;
            let task = slot.future.take();
            tasks.free.push(index);
            task
        };
        drop(task);
    }
}

impl<T> JoinHandle<T> {
    /// Ends the task where it stands. Whatever it has sent is not taken back.
    pub fn abort(&self) {
        self.executor.abort(self.index, self.generation);
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.join.result.borrow().is_some()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.join.result.borrow_mut().take() {
            Some(result) => Poll::Ready(result),
            None => {
                *self.join.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut timers = this.executor.0.timers.borrow_mut();
        if this.at_ns <= this.executor.now_ns() {
            return Poll::Ready(());
        }
        match this.alarm {
            Some(alarm) => timers.update(alarm, context.waker()),
            None => this.alarm = Some(timers.set(this.at_ns, context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm {
            self.executor.0.timers.borrow_mut().cancel(alarm);
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("now_ns", &self.now_ns()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("task", &self.generation).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("at_ns", &self.at_ns).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
