//! Counters of one engine, and how they are shown.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use halfmoon_client::PeerLane;
use halfmoon_transport::NoRdma;

use crate::show;

macro_rules! counters {
    ($($name:ident: $kind:literal $help:literal;)*) => {
        /// Counters and gauges. Written by the hot thread, read by the gateway's.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $name: AtomicU64,)*
            latency: Histogram,
            takeovers: Sum,
            /// The lanes that are up. Changed only when one comes up or goes down.
            lanes: Mutex<Vec<PeerLane>>,
        }

        /// The counters at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Snapshot {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl Metrics {
            /// The counters now; each is exact, all of them are not of one instant.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }

            /// In the text format of Prometheus.
            #[must_use]
            pub fn to_prometheus(&self) -> String {
                let mut text = String::new();
                $(
                    let name = concat!("halfmoon_", stringify!($name));
                    let value = self.$name.load(Ordering::Relaxed);
                    line(&mut text, name, $kind, $help, value);
                )*
                self.latency.print(&mut text);
                self.takeovers.print(&mut text);
                print_lanes(&self.lanes.lock().unwrap_or_else(PoisonError::into_inner), &mut text);
                text
            }
        }
    };
}

counters! {
    requests_total: "counter" "Requests to run a function.";
    requests_refused_total: "counter" "Requests refused for want of room.";
    roots_finished_total: "counter" "Roots that ended with a result or an error of the function.";
    roots_failed_total: "counter" "Of these, with an error of the function.";
    roots_parked_total: "counter" "Roots given up after too many attempts.";
    roots_taken_over_total: "counter" "Roots inherited from evicted engines.";
    roots_taken_over_unfinished: "gauge" "Of these, the ones that have not ended.";
    roots_unfinished: "gauge" "Roots that run, wait or are parked here.";
    attempts_total: "counter" "Attempts of roots.";
    calls_total: "counter" "Calls between functions.";
    appends_init_total: "counter" "Init records appended alone.";
    appends_step_total: "counter" "Steps appended, fences left out.";
    appends_fence_total: "counter" "Fences appended.";
    appends_finish_total: "counter" "Finish records appended.";
    appends_conflict_total: "counter" "Appends that lost to another record.";
    reads_total: "counter" "Reads of objects by functions.";
    writes_total: "counter" "Writes of objects by functions.";
    values_landed_total: "counter" "Large values that storage wrote straight into a worker's memory.";
    value_bytes_copied_total: "counter" "Bytes of large values that the engine copied on their way in.";
    workers: "gauge" "Worker processes.";
    workers_busy: "gauge" "Worker processes that run an invocation.";
    workers_started_total: "counter" "Worker processes started.";
    workers_killed_total: "counter" "Worker processes killed for breaking a rule or a deadline.";
    workers_died_total: "counter" "Worker processes that ended by themselves or by others.";
    queue_waiting: "gauge" "Invocations that wait for a worker.";
    applied_seqnum: "gauge" "The log is applied up to here.";
    log_places: "gauge" "Places of records in tags in the log's window.";
    log_places_max: "gauge" "Most such places: above it nothing is ordered until the log is trimmed.";
    lanes_tcp: "gauge" "Lanes to other nodes that are up, over TCP.";
    lanes_rdma: "gauge" "Lanes to other nodes that are up, over RDMA.";
    lane_bytes_tcp_total: "counter" "Bytes written to other nodes over TCP.";
    lane_bytes_rdma_total: "counter" "Bytes written to other nodes over RDMA.";
}

/// Upper bounds of the latency buckets, in µs.
const BOUNDS_US: [u64; 16] = [
    100, 200, 300, 500, 750, 1_000, 1_500, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000,
    2_500_000, 30_000_000,
];

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// Times that are counted and added up.
#[derive(Debug, Default)]
struct Sum {
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Metrics {
    /// All roots of an evicted engine have ended, so long after its eviction.
    pub fn taken_over(&self, after: Duration) {
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.takeovers.count.fetch_add(1, Ordering::Relaxed);
        self.takeovers.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// These lanes are up now.
    pub fn set_lanes(&self, lanes: Vec<PeerLane>) {
        *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = lanes;
    }

    /// A request was answered with a result after this long.
    pub fn answered(&self, after: Duration) {
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.latency.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn line(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    // Writing to a string does not fail.
    let _ok = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

impl Histogram {
    fn print(&self, text: &mut String) {
        let name = "halfmoon_request_seconds";
        let mut total = 0;
        let _ok = writeln!(text, "# HELP {name} Time to a result, at the gateway.");
        let _ok = writeln!(text, "# TYPE {name} histogram");
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS_US) {
            total += bucket.load(Ordering::Relaxed);
            let (whole, rest) = (bound / 1_000_000, bound % 1_000_000);
            let _ok = writeln!(text, "{name}_bucket{{le=\"{whole}.{rest:06}\"}} {total}");
        }
        total += self.buckets[BOUNDS_US.len()].load(Ordering::Relaxed);
        let sum = self.sum_us.load(Ordering::Relaxed);
        let (whole, rest) = (sum / 1_000_000, sum % 1_000_000);
        let _ok = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ok = writeln!(text, "{name}_sum {whole}.{rest:06}\n{name}_count {total}");
    }
}

impl Sum {
    fn print(&self, text: &mut String) {
        let name = "halfmoon_takeover_seconds";
        let help = "Time from an engine's eviction to the end of the last root inherited from it.";
        let _ok = writeln!(text, "# HELP {name} {help}\n# TYPE {name} summary");
        let sum = self.sum_us.load(Ordering::Relaxed);
        let (whole, rest) = (sum / 1_000_000, sum % 1_000_000);
        let count = self.count.load(Ordering::Relaxed);
        let _ok = writeln!(text, "{name}_sum {whole}.{rest:06}\n{name}_count {count}");
    }
}

/// One line a lane, with what it goes over and why.
fn print_lanes(lanes: &[PeerLane], text: &mut String) {
    let name = "halfmoon_lane";
    let help = "A lane that is up: to whom, over what, and why not over RDMA.";
    let _ok = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    for PeerLane { role, node, carrier } in lanes {
        let Some(carrier) = carrier else { continue };
        let (role, over) = (show::role_name(*role), carrier.name());
        let why = carrier.instead().map_or("", NoRdma::name);
        let labels = format!("role=\"{role}\",node=\"{node}\",transport=\"{over}\",why=\"{why}\"");
        let _ok = writeln!(text, "{name}{{{labels}}} 1");
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_transport::Carrier;
    use halfmoon_wire::{NodeId, Role};

    use super::*;

    #[test]
    fn every_lane_is_shown_with_what_it_goes_over_and_why() {
        let metrics = Metrics::default();
        let lane = |role, node, carrier| PeerLane { role, node: NodeId(node), carrier };
        metrics.set_lanes(vec![
            lane(Role::Sequencer, 10, Some(Carrier::Rdma)),
            lane(Role::Storage, 2, Some(Carrier::Tcp(NoRdma::NotOffered))),
        ]);
        let text = metrics.to_prometheus();
        for line in [
            "halfmoon_lane{role=\"sequencer\",node=\"10\",transport=\"rdma\",why=\"\"} 1\n",
            "halfmoon_lane{role=\"storage\",node=\"2\",transport=\"tcp\",why=\"not-offered\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn counters_and_latencies_are_shown() {
        let metrics = Metrics::default();
        count(&metrics.requests_total);
        metrics.answered(Duration::from_micros(250));
        metrics.answered(Duration::from_secs(60));
        metrics.taken_over(Duration::from_millis(1500));
        let text = metrics.to_prometheus();
        assert!(text.contains("\nhalfmoon_requests_total 1\n"), "{text}");
        assert!(text.contains("halfmoon_request_seconds_bucket{le=\"0.000200\"} 0\n"), "{text}");
        assert!(text.contains("halfmoon_request_seconds_bucket{le=\"0.000300\"} 1\n"), "{text}");
        assert!(text.contains("halfmoon_request_seconds_bucket{le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("halfmoon_request_seconds_sum 60.000250\n"), "{text}");
        let takeovers =
            "halfmoon_takeover_seconds_sum 1.500000\nhalfmoon_takeover_seconds_count 1\n";
        assert!(text.contains(takeovers), "{text}");
        assert_eq!(metrics.snapshot().requests_total, 1);
    }
}
