//! Seeds that have found something wrong once, each under the name of what it was.
#![allow(missing_docs, reason = "tests")]

use halfmoon_sim::run;

fn passes(seed: u64) {
    let outcome = run(seed);
    assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
}

/// The endpoint lost the end of a lane whose slot the transport had given to another lane before it
/// told, so an engine waited for ever on a sequencer that was gone.
#[test]
fn the_end_of_a_lane_whose_slot_is_taken_again_is_not_lost() {
    for seed in [9, 11, 22, 25, 29] {
        passes(seed);
    }
}

/// An attempt that was refused before it had a run took the run that had won for one that was lost.
#[test]
fn a_root_that_is_refused_before_it_has_a_run_joins_the_one_that_won() {
    passes(8313);
}
