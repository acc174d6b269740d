use std::cell::RefCell;
use std::rc::Rc;

use super::*;

/// A future that is pending until it was opened.
#[derive(Clone, Default)]
struct Gate(Rc<RefCell<(bool, Option<Waker>)>>);

impl Gate {
    fn open(&self) {
        let mut gate = self.0.borrow_mut();
        gate.0 = true;
        if let Some(waker) = gate.1.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|context| {
            let mut gate = self.0.borrow_mut();
            gate.1 = Some(context.waker().clone());
            if gate.0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[test]
fn a_task_runs_when_it_is_woken_and_hands_over_its_result() {
    let executor = Executor::new(0);
    let gate = Gate::default();
    let inner = gate.clone();
    let first = executor
        .spawn(async move {
            inner.wait().await;
            7
        })
        .unwrap();
    let second = executor.spawn(async move { first.await.unwrap() + 1 }).unwrap();
    executor.run_ready(0);
    assert!(!second.is_finished());
    gate.open();
    executor.run_ready(0);
    assert_eq!(*second.join.result.borrow(), Some(Ok(8)));
}

#[test]
fn an_aborted_task_is_dropped_and_its_joiner_told() {
    let executor = Executor::new(0);
    let gate = Gate::default();
    let inner = gate.clone();
    let task = Rc::new(executor.spawn(async move { inner.wait().await }).unwrap());
    executor.run_ready(0);
    assert_eq!(Rc::strong_count(&gate.0), 2);
    task.abort();
    assert_eq!(Rc::strong_count(&gate.0), 1);
    assert_eq!(*task.join.result.borrow(), Some(Err(Aborted)));
    // A stale wake and a stale handle harm nobody who has the slot now.
    let other = executor.spawn(async { 3 }).unwrap();
    gate.open();
    task.abort();
    executor.run_ready(0);
    assert_eq!(*other.join.result.borrow(), Some(Ok(3)));
}

#[test]
fn a_task_may_abort_itself_and_spawn_others() {
    let executor = Executor::new(0);
    let handle: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
    let (own, inner) = (handle.clone(), executor.clone());
    let seen = Rc::new(Cell::new(0));
    let count = seen.clone();
    let task = executor
        .spawn(async move {
            own.borrow().as_ref().unwrap().abort();
            inner.spawn(async move { count.set(count.get() + 1) }).unwrap();
            std::future::pending::<()>().await;
        })
        .unwrap();
    *handle.borrow_mut() = Some(task);
    executor.run_ready(0);
    assert_eq!(seen.get(), 1);
    assert!(handle.borrow().as_ref().unwrap().is_finished());
    assert_eq!(executor.0.tasks.borrow().free.len(), 1, "the slot was used again at once");
}

#[test]
fn sleepers_wake_in_order_of_time_and_a_dropped_one_is_forgotten() {
    let executor = Executor::new(100);
    let order: Rc<RefCell<Vec<u64>>> = Rc::default();
    for at in [300, 200, 400] {
        let (inner, order) = (executor.clone(), order.clone());
        executor
            .spawn(async move {
                inner.sleep_until(at).await;
                order.borrow_mut().push(at);
            })
            .unwrap();
    }
    let dropped = executor.spawn({
        let inner = executor.clone();
        async move { inner.sleep_until(150).await }
    });
    executor.run_ready(100);
    assert_eq!(executor.next_deadline_ns(), Some(150));
    dropped.unwrap().abort();
    assert_eq!(executor.next_deadline_ns(), Some(200));
    executor.run_ready(199);
    assert!(order.borrow().is_empty());
    executor.run_ready(350);
    assert_eq!(*order.borrow(), [200, 300]);
    executor.run_ready(400);
    assert_eq!(*order.borrow(), [200, 300, 400]);
    assert_eq!(executor.next_deadline_ns(), None);
}

#[test]
fn a_timeout_drops_what_it_waited_for() {
    let executor = Executor::new(0);
    let gate = Gate::default();
    let (inner, waited) = (executor.clone(), gate.clone());
    let task = executor
        .spawn(async move { inner.timeout_at(50, async move { waited.wait().await }).await })
        .unwrap();
    executor.run_ready(49);
    assert!(!task.is_finished());
    executor.run_ready(50);
    assert_eq!(*task.join.result.borrow(), Some(Ok(Err(Elapsed))));
    assert_eq!(Rc::strong_count(&gate.0), 1);
}

#[test]
fn tasks_have_a_limit() {
    let executor = Executor::new(0);
    for _ in 0..TASKS_MAX {
        executor.spawn(std::future::pending::<()>()).unwrap();
    }
    assert_eq!(executor.spawn(async {}).err(), Some(TooManyTasks));
    while executor.run_ready(0) {}
    executor.clear();
    assert!(executor.spawn(async {}).is_ok());
}

#[test]
fn clearing_frees_what_tasks_hold() {
    let executor = Executor::new(0);
    let inner = executor.clone();
    executor.spawn(async move { inner.sleep(10).await }).unwrap();
    executor.run_ready(0);
    executor.clear();
    assert_eq!(Rc::strong_count(&executor.0), 1);
}
