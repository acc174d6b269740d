//! What came of a number of seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use crate::world::{Counts, Outcome};

/// What came of a number of seeds.
#[derive(Default)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// Seeds that found something wrong, and what.
    pub violations: Vec<(u64, String)>,
    total: Counts,
    virtual_ns: u64,
}

impl Report {
    /// Adds what came of one seed.
    pub fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        if let Some(violation) = &outcome.violation {
            self.violations.push((seed, violation.to_string()));
        }
        self.virtual_ns += outcome.ended_ns;
        self.total.add(&outcome.counts);
    }

    /// A run ended in a panic; it is one of these seeds.
    pub fn panicked(&mut self, first: u64, last: u64) {
        self.violations.push((first, format!("a panic, with a seed from {first} to {last}")));
    }

    /// For a person.
    #[must_use]
    pub fn to_text(&self, wall: Duration) -> String {
        let mut text = String::new();
        let total = &self.total;
        let faults: u64 = self.faults().values().sum();
        writeln!(text, "faults injected: {faults}").ok();
        for (name, count) in self.faults() {
            writeln!(text, "  {name}: {count}").ok();
        }
        writeln!(
            text,
            "appends {} ({} in the log, {} refused), reads {}, operations of the state store {}",
            total.log.appends, total.log.appended, total.log.refused, total.log.reads, total.store
        )
        .ok();
        writeln!(
            text,
            "records {}, epochs {}, evictions {}, storage nodes replaced {}, function instances {}",
            total.records, total.reigns, total.log.evictions, total.replaced, total.instances
        )
        .ok();
        let (wall_s, virtual_s) = (wall.as_secs_f64(), self.virtual_ns as f64 / 1e9);
        write!(
            text,
            "wall time {wall_s:.1} s for {virtual_s:.0} s of virtual time, {} events, {:.0} appends/s",
            total.events,
            self.appends_per_s(wall)
        )
        .ok();
        text
    }

    /// For a program.
    #[must_use]
    pub fn to_json(&self, wall: Duration) -> String {
        let total = &self.total;
        let violations: Vec<_> = self
            .violations
            .iter()
            .map(|(seed, what)| json!({ "seed": seed, "what": what }))
            .collect();
        json!({
            "seeds": self.seeds,
            "violations": violations,
            "faults": self.faults(),
            "appends": total.log.appends,
            "appended": total.log.appended,
            "refused": total.log.refused,
            "reads": total.log.reads,
            "store_operations": total.store,
            "function_instances": total.instances,
            "records": total.records,
            "epochs": total.reigns,
            "evictions": total.log.evictions,
            "storage_nodes_replaced": total.replaced,
            "events": total.events,
            "virtual_s": self.virtual_ns as f64 / 1e9,
            "wall_s": wall.as_secs_f64(),
            "appends_per_s": self.appends_per_s(wall),
        })
        .to_string()
    }

    fn appends_per_s(&self, wall: Duration) -> f64 {
        self.total.log.appends as f64 / wall.as_secs_f64().max(1e-9)
    }

    /// Faults by kind: those that were brought about, and what network, disks and metadata store
    /// did by themselves.
    fn faults(&self) -> BTreeMap<String, u64> {
        let total = &self.total;
        let mut faults: BTreeMap<String, u64> = BTreeMap::new();
        for (fault, count) in &total.faults {
            faults.insert(words(&format!("{fault:?}")), *count);
        }
        for (name, count) in [
            ("write torn", total.net.torn),
            ("write stopped half way", total.net.half),
            ("batch late", total.net.late),
            ("lane broken", total.net.broken),
            ("direction cut", total.net.cuts),
            ("disk write failed", total.disk.failed),
            ("disk slow", total.disk.slow),
            ("block lost", total.disk.lost),
            ("block damaged", total.disk.damaged),
            ("metadata call failed", total.meta_failed),
        ] {
            faults.insert(name.to_owned(), count);
        }
        faults
    }
}

/// `KillStorage` as `kill storage`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}
