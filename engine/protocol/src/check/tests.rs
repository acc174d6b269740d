use std::rc::Rc;

use super::explore::explore;
use super::takeover;
use super::{mutants, scenarios};

/// States per program; each is explored completely with less.
const STATES_MAX: usize = 400_000;

fn all_hold(prefix: &str) {
    let chosen = scenarios::all().into_iter().filter(|scenario| scenario.name.starts_with(prefix));
    let mut explored = 0;
    for scenario in chosen {
        let name = scenario.name;
        let report = explore(&Rc::new(scenario), STATES_MAX);
        println!(
            "{name}: {} states, {} results, complete: {}",
            report.states, report.results, report.complete
        );
        if let Some((what, trace)) = report.violation {
            panic!("{name}: {what}\n    {}", trace.join("\n    "));
        }
        assert!(report.complete, "{name} was explored completely");
        explored += 1;
    }
    assert!(explored > 0, "a program is called {prefix}");
}

#[test]
fn halfmoon_read_holds_in_every_interleaving() {
    all_hold("read:");
}

#[test]
fn halfmoon_write_holds_in_every_interleaving() {
    all_hold("write:");
}

#[test]
fn tables_of_both_kinds_hold_in_every_interleaving() {
    all_hold("mixed:");
}

#[test]
fn relaxed_order_keeps_its_weaker_promise() {
    all_hold("relaxed:");
}

#[test]
fn boki_holds_in_every_interleaving() {
    all_hold("boki:");
}

#[test]
fn transactions_hold_in_every_interleaving() {
    all_hold("transaction:");
}

#[test]
fn the_rest_holds_in_every_interleaving() {
    for prefix in ["root:", "side effect:", "first-of:", "detached:", "cancel:"] {
        all_hold(prefix);
    }
}

#[test]
fn a_take_over_in_the_right_order_leaves_no_root_behind() {
    let found = takeover::explore(None);
    assert_eq!(found.violation, None, "after {} states", found.states);
}

#[test]
fn every_broken_variant_is_caught() {
    let verdicts = mutants::run(|verdict| println!("{verdict:?}"));
    let survivors: Vec<_> = verdicts.iter().filter(|verdict| verdict.caught.is_err()).collect();
    assert!(survivors.is_empty(), "{survivors:?}");
}
