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
        for seed in 1..4 {
            let (first, second) = (run(seed), run(seed));
            assert_eq!(first, second, "seed {seed}");
            assert!(first.violation.is_none(), "seed {seed}: {:?}", first.violation);
        }
    }
}
