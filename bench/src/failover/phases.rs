//! Appends before a storage node died, while it was down, and after it was back.

use std::time::Duration;

use serde::Serialize;

use super::{Started, ms, quantile};

/// What appends cost in the three phases of a storage node's death.
#[derive(Clone, Debug, Serialize)]
pub struct Phases {
    /// Latency from the scheduled start of the appends started before the death.
    pub p50_before_ms: f64,
    /// The same.
    pub p99_before_ms: f64,
    /// Of those started while the node was down.
    pub p50_down_ms: f64,
    /// The same.
    pub p99_down_ms: f64,
    /// Of those started after the node had been started again, or went on.
    pub p50_back_ms: f64,
    /// The same.
    pub p99_back_ms: f64,
    /// p50 while it was down, by p50 before.
    pub p50_down_ratio: f64,
    /// p50 after it was back, by p50 before.
    pub p50_back_ratio: f64,
    /// Longest time without an acknowledgement while it was down.
    pub stall_down_ms: f64,
    /// The same, after it was back.
    pub stall_back_ms: f64,
    /// From the death until this client saw that the node was gone: its lane went down. `None`: it did
    /// not, and need not.
    pub noticed_ms: Option<f64>,
    /// How long the node was down.
    pub down_ms: f64,
}

/// When what happened, in ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) died_ns: u64,
    pub(super) back_ns: u64,
    /// When the client's lane to the node went down, if it did.
    pub(super) noticed_ns: Option<u64>,
}

pub(super) fn measure(all: &[Started], moments: Moments) -> Phases {
    let Moments { died_ns, back_ns, noticed_ns } = moments;
    let latencies = |from_ns: u64, to_ns: u64| {
        let of = all.iter().filter(|one| (from_ns..to_ns).contains(&one.due_ns));
        let mut latencies: Vec<u64> =
            of.filter_map(|one| Some(one.answer?.0.saturating_sub(one.due_ns))).collect();
        latencies.sort_unstable();
        latencies
    };
    let mut answers: Vec<u64> = all.iter().filter_map(|one| Some(one.answer?.0)).collect();
    answers.sort_unstable();
    let stall = |from_ns: u64, to_ns: u64| {
        let pairs = answers.windows(2).filter(|pair| (from_ns..to_ns).contains(&pair[1]));
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    };
    let before = latencies(0, died_ns);
    let (down, back) = (latencies(died_ns, back_ns), latencies(back_ns, u64::MAX));
    let half = |sorted: &[u64]| ms(quantile(sorted, 50));
    let ratio = |sorted: &[u64]| if before.is_empty() { 0.0 } else { half(sorted) / half(&before) };
    Phases {
        p50_before_ms: half(&before),
        p99_before_ms: ms(quantile(&before, 99)),
        p50_down_ms: half(&down),
        p99_down_ms: ms(quantile(&down, 99)),
        p50_back_ms: half(&back),
        p99_back_ms: ms(quantile(&back, 99)),
        p50_down_ratio: ratio(&down),
        p50_back_ratio: ratio(&back),
        stall_down_ms: ms(stall(died_ns, back_ns)),
        stall_back_ms: ms(stall(back_ns, u64::MAX)),
        noticed_ms: noticed_ns.map(|at_ns| ms(at_ns.saturating_sub(died_ns))),
        down_ms: Duration::from_nanos(back_ns.saturating_sub(died_ns)).as_secs_f64() * 1e3,
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_wire::SeqNum;

    use super::*;

    #[test]
    fn an_append_belongs_to_the_phase_in_which_it_was_due() {
        let ms = |ms: u64| ms * 1_000_000;
        // Each takes as many ms as the second number says.
        let all: Vec<Started> = [(0, 2), (10, 4), (20, 90), (30, 6), (40, 8), (50, 1), (60, 3)]
            .into_iter()
            .map(|(due, takes)| {
                let answer = Some((ms(due + takes), SeqNum(1)));
                Started { number: due, due_ns: ms(due), answer }
            })
            .collect();
        let moments = Moments { died_ns: ms(20), back_ns: ms(50), noticed_ns: Some(ms(23)) };
        let phases = measure(&all, moments);
        let near = |a: f64, b: f64| (a - b).abs() < 0.01;
        assert!(near(phases.p50_before_ms, 2.0), "{phases:?}");
        assert!(near(phases.p50_down_ms, 8.0) && near(phases.p50_down_ratio, 4.0), "{phases:?}");
        assert!(near(phases.p99_down_ms, 8.0), "the second of three: {phases:?}");
        assert!(near(phases.p50_back_ms, 1.0) && near(phases.down_ms, 30.0), "{phases:?}");
        assert!(near(phases.stall_down_ms, 22.0), "from 14 to 36: {phases:?}");
        assert!(near(phases.stall_back_ms, 47.0), "from 63 to 110: {phases:?}");
        assert!(near(phases.noticed_ms.unwrap(), 3.0), "{phases:?}");
    }
}
