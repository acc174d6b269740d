//! Runs of seeds.

use crate::plan::{Plan, Scenario};
use crate::world::{Outcome, World};

/// Runs one seed.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    run_plan(seed, Plan::of(seed))
}

/// Runs one seed, about this.
#[must_use]
pub fn run_about(scenario: Scenario, seed: u64) -> Outcome {
    run_plan(seed, Plan::about(scenario, seed))
}

/// Runs one seed with a plan of its own.
#[must_use]
pub fn run_plan(seed: u64, plan: Plan) -> Outcome {
    World::new(seed, plan).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_runs_the_same_way_twice() {
        for scenario in [Scenario::Log, Scenario::Bulk, Scenario::Functions] {
            for seed in 1..4 {
                let (first, second) = (run_about(scenario, seed), run_about(scenario, seed));
                assert_eq!(first, second, "{scenario:?}, seed {seed}");
                let found = &first.violation;
                assert!(found.is_none(), "{scenario:?}, seed {seed}: {found:?}");
            }
        }
    }

    #[test]
    fn seeds_differ() {
        let traces: std::collections::BTreeSet<u64> = (1..6).map(|seed| run(seed).trace).collect();
        assert_eq!(traces.len(), 5);
    }
}
