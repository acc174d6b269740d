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
