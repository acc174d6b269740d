//! How a run goes on: things fail, then nothing does and everything has to end, then everything
//! loses its power and all that was ever seen has to be seen again.

use std::fmt::Write as _;

use halfmoon_wire::SeqNum;

use super::{Phase, World};
use crate::disk::DiskProfile;
use crate::host::Machine;
use crate::host::engine::EngineHost;
use crate::time::{MILLI, SECOND};

/// Once nothing fails, everything ends within so long.
const CALM_NS: u64 = 60 * SECOND;

/// After so long somebody else has a look at what is left.
const LOOK_NS: u64 = 5 * SECOND;

const ENDS: &str = "once nothing fails any more, everything that was begun ends";
const THERE: &str = "after a loss of power everywhere, everything that was seen is seen again";

impl World {
    pub(super) fn advance_phase(&mut self) {
        let now = self.env.now();
        match self.phase {
            Phase::Faults(until) if now >= until => self.calm(),
            Phase::Faults(_) | Phase::Over => {}
            Phase::Calm(_) if self.work.running() == 0 && self.is_replaced() => self.darken(),
            Phase::Calm(until) if now >= until => {
                let running = self.work.running();
                let whole =
                    if self.is_replaced() { "" } else { "; a member still copies the state" };
                let what = format!("{running} clients still wait{whole}; {}", self.describe());
                self.env.judge.object(now, ENDS, what);
            }
            Phase::Calm(_) => {}
            Phase::Dark { until, upto, look_at } => {
                let sees = |applied: Option<SeqNum>| applied.is_some_and(|seq| seq.0 >= upto);
                if self.engines.iter().all(|engine| sees(engine.applied())) {
                    if self.work.is_verified() {
                        self.phase = Phase::Over;
                    } else if now >= look_at {
                        self.phase = Phase::Dark { until, upto, look_at: now + LOOK_NS };
                        self.engines.iter().take(1).for_each(EngineHost::verify);
                    }
                }
                if self.phase != Phase::Over && now >= until {
                    let what = format!("the log reached {upto}; {}", self.describe());
                    self.env.judge.object(now, THERE, what);
                }
            }
        }
    }

    /// Nothing fails any more, and whoever is down comes back.
    fn calm(&mut self) {
        let now = self.env.now();
        self.phase = Phase::Calm(now + CALM_NS);
        self.work.stop();
        self.mend_all();
        for machine in 0..self.paces.len() {
            self.paces[machine].paused_until = 0;
            if self.machine(machine).is_up() {
                self.wake(machine, now);
            } else {
                self.start_at(machine, now + MILLI);
            }
        }
    }

    fn mend_all(&mut self) {
        self.env.net.heal_all();
        self.env.meta.set_trouble(0);
        for storage in &self.storage {
            storage.drive().set_profile(DiskProfile { fails: 0, ..self.plan.disk.clone() });
        }
        for sequencer in &mut self.sequencers {
            sequencer.leave_alone(0);
        }
    }

    fn darken(&mut self) {
        let now = self.env.now();
        let upto = self.work.history().borrow().end().0;
        self.phase = Phase::Dark { until: now + CALM_NS, upto, look_at: 0 };
        self.power_off(|_, _| true);
    }

    /// The machines lose their power at once; they come back one by one.
    pub(super) fn power_off(&mut self, which: impl Fn(&Self, usize) -> bool) {
        for machine in 0..self.paces.len() {
            if which(self, machine) && self.machine(machine).is_up() {
                self.machine(machine).crash(true);
                self.note(2000 + machine as u64);
                self.died(machine);
            }
        }
    }

    /// Who is where, for a person who reads of a violation.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for storage in &self.storage {
            write!(text, "storage up {}; ", storage.is_up()).ok();
        }
        for sequencer in &self.sequencers {
            write!(text, "sequencer {}; ", sequencer.describe()).ok();
        }
        for engine in &self.engines {
            write!(text, "engine at {:?}; ", engine.applied().map(|seq| seq.0)).ok();
        }
        text
    }
}
