//! What the death of storage nodes costs, in the three phases of it.

use halfmoon_bench::failover::{Phases, Run, median_and_worst};
use serde_json::{Value, json};

use crate::commands::show::print;

pub(super) const HEADER: &str = "       before ms          node down ms              back ms   p50, by \
     before   longest stall ms  lane lost\n  run   p50     p99       p50     p99       p50     p99    \
     down    back      down    back   after ms  acknowledged  unknown";

pub(super) fn line(number: u32, run: &Run, phases: &Phases) -> String {
    let noticed = phases.noticed_ms.map_or("never".to_owned(), |ms| format!("{ms:.1}"));
    format!(
        "{number:>5} {:>5.2} {:>7.2} {:>9.2} {:>7.2} {:>9.2} {:>7.2} {:>7.2} {:>7.2} {:>9.1} {:>7.1} \
         {noticed:>10} {:>13} {:>8}",
        phases.p50_before_ms,
        phases.p99_before_ms,
        phases.p50_down_ms,
        phases.p99_down_ms,
        phases.p50_back_ms,
        phases.p99_back_ms,
        phases.p50_down_ratio,
        phases.p50_back_ratio,
        phases.stall_down_ms,
        phases.stall_back_ms,
        run.acknowledged,
        run.unknown
    )
}

/// Median and worst over all runs.
fn over(runs: &[Run], of: fn(&Phases) -> f64) -> (f64, f64) {
    median_and_worst(runs.iter().filter_map(|run| run.phases.as_ref()).map(of))
}

pub(super) fn show(runs: &[Run]) {
    let median = |of| over(runs, of).0;
    print(&format!(
        "p50 and p99, medians: {:.2} and {:.2} ms before, {:.2} and {:.2} ms while the node is down, \
         {:.2} and {:.2} ms after it is back",
        median(|phases| phases.p50_before_ms),
        median(|phases| phases.p99_before_ms),
        median(|phases| phases.p50_down_ms),
        median(|phases| phases.p99_down_ms),
        median(|phases| phases.p50_back_ms),
        median(|phases| phases.p99_back_ms),
    ));
    let (down, back) =
        (over(runs, |phases| phases.p50_down_ratio), over(runs, |phases| phases.p50_back_ratio));
    print(&format!(
        "p50 by p50 before: median {:.2}, worst {:.2} while the node is down; median {:.2}, worst \
         {:.2} after it is back",
        down.0, down.1, back.0, back.1
    ));
    let stall = over(runs, |phases| phases.stall_down_ms.max(phases.stall_back_ms));
    let noticed = noticed(runs);
    let (median, worst) = median_and_worst(noticed.iter().copied());
    let lane = if noticed.is_empty() {
        "no lane to the node went down".to_owned()
    } else {
        format!(
            "the lane to the node went down after {median:.1} ms (median), {worst:.1} ms (worst), in \
             {} of {} runs",
            noticed.len(),
            runs.len()
        )
    };
    print(&format!("longest stall: median {:.1} ms, worst {:.1} ms; {lane}", stall.0, stall.1));
}

/// After how long the client's lane went down, where it did.
fn noticed(runs: &[Run]) -> Vec<f64> {
    runs.iter().filter_map(|run| run.phases.as_ref()?.noticed_ms).collect()
}

pub(super) fn as_json(runs: &[Run]) -> Value {
    let median = |of| over(runs, of).0;
    let worst = |of| over(runs, of).1;
    let noticed = noticed(runs);
    let (noticed_median_ms, noticed_worst_ms) = median_and_worst(noticed.iter().copied());
    // Without any there is no figure.
    let known = |ms: f64| (!noticed.is_empty()).then_some(ms);
    json!({
        "p50_before_ms": median(|phases| phases.p50_before_ms),
        "p99_before_ms": median(|phases| phases.p99_before_ms),
        "p50_down_ms": median(|phases| phases.p50_down_ms),
        "p99_down_ms": median(|phases| phases.p99_down_ms),
        "p50_back_ms": median(|phases| phases.p50_back_ms),
        "p99_back_ms": median(|phases| phases.p99_back_ms),
        "p50_down_median_ratio": median(|phases| phases.p50_down_ratio),
        "p50_down_worst_ratio": worst(|phases| phases.p50_down_ratio),
        "p50_back_median_ratio": median(|phases| phases.p50_back_ratio),
        "p50_back_worst_ratio": worst(|phases| phases.p50_back_ratio),
        "stall_median_ms": median(|phases| phases.stall_down_ms.max(phases.stall_back_ms)),
        "stall_worst_ms": worst(|phases| phases.stall_down_ms.max(phases.stall_back_ms)),
        "noticed_median_ms": known(noticed_median_ms),
        "noticed_worst_ms": known(noticed_worst_ms),
        "noticed_runs": noticed.len(),
    })
}
