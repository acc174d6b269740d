use super::*;

const CONFIG: PoolConfig = PoolConfig {
    workers_max: DEPTH_MAX + 4,
    workers_min: 1,
    queue_max: 64,
    idle_for: Duration::from_secs(10),
};

fn version(of: u8) -> Version {
    Version([of; 32])
}

fn want(binary: u8, depth: usize) -> Want {
    Want {
        version: version(binary),
        function: FunctionName::new("ns", "f").unwrap(),
        concurrency: 0,
        depth,
        recursive: false,
    }
}

fn actions(pool: &mut Pool) -> Vec<Action> {
    std::iter::from_fn(|| pool.poll_action()).collect()
}

/// Carries out spawns at once; returns what was assigned.
fn settle(pool: &mut Pool) -> Vec<(Ticket, WorkerId)> {
    let mut assigned = Vec::new();
    while let Some(action) = pool.poll_action() {
        match action {
            Action::Spawn(id, _) => pool.ready(id),
            Action::Assign(ticket, id) => assigned.push((ticket, id)),
            Action::Stop(id) => pool.exited(id),
            Action::Fail(_) => panic!("nothing fails here"),
        }
    }
    assigned
}

#[test]
fn a_worker_is_started_on_demand_and_used_again() {
    let mut pool = Pool::new(CONFIG);
    pool.request(Ticket(1), want(1, 0)).unwrap();
    let [Action::Spawn(id, _)] = actions(&mut pool)[..] else { panic!() };
    pool.ready(id);
    assert_eq!(actions(&mut pool), [Action::Assign(Ticket(1), id)]);
    pool.released(id);
    pool.request(Ticket(2), want(1, 0)).unwrap();
    assert_eq!(actions(&mut pool), [Action::Assign(Ticket(2), id)]);
    assert_eq!((pool.len(), pool.busy()), (1, 1));
}

#[test]
fn one_that_is_starting_is_not_started_twice_for_one_invocation() {
    let mut pool = Pool::new(CONFIG);
    pool.request(Ticket(1), want(1, 0)).unwrap();
    pool.request(Ticket(2), want(1, 0)).unwrap();
    assert_eq!(actions(&mut pool).len(), 2);
    pool.tick(Duration::from_secs(1));
    pool.withdraw(Ticket(9));
    assert!(actions(&mut pool).is_empty());
}

#[test]
fn roots_leave_workers_for_the_deepest_calls() {
    let mut pool = Pool::new(CONFIG);
    for ticket in 0..40 {
        pool.request(Ticket(ticket), want(1, 0)).unwrap();
    }
    assert_eq!(settle(&mut pool).len(), 4, "roots: workers_max - DEPTH_MAX");
    for depth in 1..DEPTH_MAX {
        pool.request(Ticket(100 + depth as u64), want(1, depth)).unwrap();
        let assigned = settle(&mut pool);
        assert_eq!(assigned.len(), 1, "a call at depth {depth} finds a worker");
        pool.request(Ticket(200 + depth as u64), want(1, depth)).unwrap();
        assert!(settle(&mut pool).is_empty(), "but only one more than the level above");
    }
    assert_eq!(pool.request(Ticket(999), want(1, DEPTH_MAX)), Err(Refused::TooDeep));
}

#[test]
fn the_deepest_gets_the_worker_that_becomes_free() {
    let mut pool = Pool::new(CONFIG);
    for ticket in 0..10 {
        pool.request(Ticket(ticket), want(1, 0)).unwrap();
    }
    let busy = settle(&mut pool);
    pool.request(Ticket(50), want(1, 1)).unwrap();
    pool.request(Ticket(51), want(1, 1)).unwrap();
    settle(&mut pool);
    pool.released(busy[0].1);
    assert_eq!(settle(&mut pool), [(Ticket(51), busy[0].1)]);
}

#[test]
fn a_function_keeps_to_its_own_limit_unless_it_calls_itself() {
    let mut pool = Pool::new(CONFIG);
    let one = |depth, recursive| Want { concurrency: 1, recursive, ..want(1, depth) };
    pool.request(Ticket(1), one(0, false)).unwrap();
    pool.request(Ticket(2), one(0, false)).unwrap();
    let first = settle(&mut pool);
    assert_eq!(first.len(), 1);
    pool.request(Ticket(3), one(1, true)).unwrap();
    let inner = settle(&mut pool);
    assert_eq!(inner.len(), 1);
    pool.released(inner[0].1);
    pool.released(first[0].1);
    assert_eq!(settle(&mut pool)[0].0, Ticket(2));
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut pool = Pool::new(PoolConfig { queue_max: 2, ..CONFIG });
    pool.request(Ticket(1), want(1, 0)).unwrap();
    pool.request(Ticket(2), want(1, 0)).unwrap();
    assert_eq!(pool.request(Ticket(3), want(1, 0)), Err(Refused::QueueFull { waiting: 2 }));
    pool.withdraw(Ticket(1));
    pool.request(Ticket(3), want(1, 0)).unwrap();
}

#[test]
fn a_binary_that_does_not_start_fails_who_waited_longest() {
    let mut pool = Pool::new(CONFIG);
    pool.request(Ticket(1), want(1, 0)).unwrap();
    pool.request(Ticket(2), want(1, 0)).unwrap();
    let [Action::Spawn(a, _), Action::Spawn(b, _)] = actions(&mut pool)[..] else { panic!() };
    pool.exited(a);
    assert_eq!(actions(&mut pool), [Action::Fail(Ticket(1))]);
    pool.exited(b);
    assert_eq!(actions(&mut pool), [Action::Fail(Ticket(2))]);
    assert!(pool.is_empty());
}

#[test]
fn an_idle_worker_of_another_binary_makes_room() {
    let mut pool = Pool::new(CONFIG);
    for ticket in 0..4 {
        pool.request(Ticket(ticket), want(1, 0)).unwrap();
    }
    let mut first = settle(&mut pool);
    // Fill the pool with idle workers of many binaries.
    for binary in 2..2 + DEPTH_MAX as u8 {
        pool.released(first.pop().unwrap().1);
        pool.request(Ticket(100 + u64::from(binary)), want(binary, 0)).unwrap();
        first.extend(settle(&mut pool));
    }
    assert_eq!(pool.len(), CONFIG.workers_max);
    pool.released(first.pop().unwrap().1);
    pool.request(Ticket(900), want(99, 0)).unwrap();
    assert!(matches!(actions(&mut pool)[..], [Action::Stop(_)]));
}

#[test]
fn a_killed_worker_gives_its_place_back() {
    let mut pool = Pool::new(CONFIG);
    for ticket in 0..5 {
        pool.request(Ticket(ticket), want(1, 0)).unwrap();
    }
    let assigned = settle(&mut pool);
    assert_eq!((assigned.len(), pool.waiting()), (4, 1));
    pool.exited(assigned[0].1);
    assert_eq!(settle(&mut pool)[0].0, Ticket(4));
    assert_eq!(pool.busy(), 4);
}

#[test]
fn idle_workers_beyond_the_least_are_stopped_after_a_while() {
    let mut pool = Pool::new(CONFIG);
    pool.request(Ticket(1), want(1, 0)).unwrap();
    pool.request(Ticket(2), want(1, 0)).unwrap();
    for (_, id) in settle(&mut pool) {
        pool.released(id);
    }
    pool.tick(Duration::from_secs(9));
    assert!(actions(&mut pool).is_empty());
    pool.tick(Duration::from_secs(10));
    assert_eq!(actions(&mut pool).len(), 1);
}
