//! What is done to a world on purpose.

use super::{Event, Mend, Phase, SEQUENCERS, STORAGE, World};
use crate::disk::DiskProfile;
use crate::net::Host;
use crate::plan::Fault;
use crate::time::{MILLI, SECOND};

/// Chance in a million that a call of the metadata store fails while it is in trouble.
const META_TROUBLE: u64 = 300_000;

/// Chance in a million that a write fails while a disk is in trouble.
const DISK_TROUBLE: u64 = 30_000;

/// Chance in a million that a split leaves whoever is in charge behind with a minority.
const LEFT_BEHIND: u64 = 400_000;

impl World {
    /// Something fails.
    pub(super) fn fault(&mut self) {
        let total: u64 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
        let mut left = self.chaos.below(total);
        let faults = self.plan.faults.iter();
        let chosen = faults.map(|(fault, weight)| (*fault, *weight)).find(|(_, weight)| {
            let is_it = left < *weight;
            left = left.saturating_sub(*weight);
            is_it
        });
        let Some((fault, _)) = chosen else { return };
        *self.counts.faults.entry(fault).or_default() += 1;
        self.note(3000 + fault as u64);
        tracing::info!(?fault, "something fails");
        match fault {
            Fault::KillStorage => self.kill(0..STORAGE, false),
            Fault::PowerOffStorage => self.kill(0..STORAGE, true),
            Fault::PowerOffAllStorage => self.power_off(Self::is_storage),
            Fault::PowerOffAll => self.power_off(|_, _| true),
            Fault::KillEngine => {
                let first = STORAGE + SEQUENCERS;
                self.kill(first..first + self.engines.len(), false);
            }
            Fault::KillSequencer => self.kill(STORAGE..STORAGE + SEQUENCERS, false),
            Fault::Takeover => self.take_over(),
            Fault::Pause => self.pause(),
            Fault::Split => self.split(),
            Fault::Storm => {
                let gusts = 3 + u32::try_from(self.chaos.below(5)).unwrap_or(0);
                self.gust(gusts);
            }
            Fault::CutOneWay | Fault::CutBothWays | Fault::Isolate | Fault::BreakLanes => {
                self.disturb(fault);
            }
            Fault::DiskFails | Fault::DiskSlow => self.spoil_disk(fault),
            Fault::MetaFails => {
                self.env.meta.set_trouble(META_TROUBLE);
                self.mend_later(Mend::Meta);
            }
            Fault::MetaAlone => {
                let until = self.env.now() + self.lasts();
                let which = self.chaos.index(SEQUENCERS);
                self.sequencers[which].leave_alone(until);
            }
            Fault::ClockJumps => {
                let which = self.chaos.index(SEQUENCERS);
                let ahead = self.chaos.below(20 * SECOND);
                self.sequencers[which].jump(ahead);
            }
        }
    }

    /// The machine in this place: members come first, whoever they are, and then all others.
    fn machine_of(&self, place: usize) -> usize {
        if place < STORAGE { self.member(place) } else { place }
    }

    fn lasts(&mut self) -> u64 {
        self.chaos.skewed(MILLI / 10, self.plan.lasts_ns)
    }

    fn mend_later(&mut self, mend: Mend) {
        let at = self.env.now() + self.lasts();
        self.schedule(at, Event::Mend(mend));
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Heal(from, to) => self.env.net.heal(from, to),
            Mend::Unite(all_sequencers_die) => {
                for which in 0..SEQUENCERS {
                    if all_sequencers_die && self.machine(STORAGE + which).is_up() {
                        self.machine(STORAGE + which).crash(false);
                        self.died(STORAGE + which);
                    }
                }
                self.env.net.heal_all();
            }
            Mend::Return(deposed) => {
                if self.machine(deposed).is_up() {
                    self.machine(deposed).crash(false);
                }
                let now = self.env.now();
                self.start_at(deposed, now + 1);
                let at = now + self.chaos.within(MILLI, 4 * MILLI);
                self.schedule(at, Event::Mend(Mend::Gust(1)));
            }
            Mend::Gust(left) => self.gust(left),
            Mend::Hush(which) => {
                if matches!(self.phase, Phase::Faults(_)) {
                    self.deafen(which);
                }
            }
            Mend::Disk(which) => {
                self.storage[which].drive().set_profile(self.plan.disk.clone());
            }
            Mend::Meta => self.env.meta.set_trouble(0),
        }
    }

    /// Kills one of these; of the first few, the members that are there by now.
    fn kill(&mut self, range: std::ops::Range<usize>, power: bool) {
        let place = range.start + self.chaos.index(range.len());
        let machine = self.machine_of(place);
        if self.machine(machine).is_up() {
            self.machine(machine).crash(power);
            self.died(machine);
        }
    }

    /// A sequencer that stands by takes an epoch, whether somebody is in charge or not; whoever is
    /// goes on as long as it can.
    pub(super) fn take_over(&mut self) {
        let first = self.chaos.index(SEQUENCERS);
        for which in [first, (first + 1) % SEQUENCERS] {
            if self.sequencers[which].take_over() {
                return self.wake(STORAGE + which, self.env.now());
            }
        }
    }

    /// Two groups that do not hear each other, and a sequencer that was not one before.
    fn split(&mut self) {
        if self.chaos.chance(LEFT_BEHIND) && self.leave_behind() {
            return;
        }
        let sides: Vec<bool> = (0..self.paces.len()).map(|_| self.chaos.chance(500_000)).collect();
        let at = self.env.now() + self.lasts();
        self.part(&sides);
        // Whoever is left over with a log of its own is asked for it by somebody who knows nothing.
        let all_sequencers_die = self.chaos.chance(500_000);
        self.schedule(at, Event::Mend(Mend::Unite(all_sequencers_die)));
        if self.chaos.chance(700_000) {
            self.take_over();
        }
    }

    /// Whoever is in charge keeps all engines but one and less than a quorum, and another takes over:
    /// what it says is out of date then, and what is written there is in vain, and may yet be more
    /// than what the others have agreed on. `false` if nobody is in charge.
    fn leave_behind(&mut self) -> bool {
        let first = self.chaos.index(SEQUENCERS);
        let mut sequencers = (0..SEQUENCERS).map(|which| (first + which) % SEQUENCERS);
        let Some(deposed) = sequencers.find(|which| self.sequencers[*which].is_in_charge()) else {
            return false;
        };
        let (first, engines) = (STORAGE + SEQUENCERS, self.engines.len());
        let (deposed, saved) = (STORAGE + deposed, first + self.chaos.index(engines));
        let storage = self.chaos.index(STORAGE);
        let mut sides = vec![false; self.paces.len()];
        sides[deposed] = true;
        sides[first..first + engines].fill(true);
        sides[saved] = engines == 1;
        sides[self.member(storage)] = self.chaos.chance(800_000);
        self.part(&sides);
        self.take_over();
        let is_short = self.chaos.chance(500_000);
        let lasts = if is_short { self.chaos.within(MILLI, 12 * MILLI) } else { self.lasts() };
        let ends = [Mend::Unite(false), Mend::Unite(true), Mend::Return(deposed)];
        let mend = ends[self.chaos.index(ends.len())];
        self.schedule(self.env.now() + lasts, Event::Mend(mend));
        true
    }

    /// The machines of one side do not hear those of the other.
    fn part(&mut self, sides: &[bool]) {
        for one in 0..sides.len() {
            for other in (0..sides.len()).filter(|other| sides[one] != sides[*other]) {
                let (from, to) = (self.machine(one).host(), self.machine(other).host());
                self.env.net.cut(from, to);
            }
        }
    }

    /// Whoever is in charge dies, another takes over, and one storage node hears nothing of it.
    fn gust(&mut self, left: u32) {
        self.env.net.heal_all();
        if left == 0 || !matches!(self.phase, Phase::Faults(_)) {
            return;
        }
        let deaf = self.chaos.index(STORAGE);
        self.deafen(self.member(deaf));
        let now = self.env.now();
        if self.chaos.chance(600_000) {
            // What the new one writes is then on one node alone.
            let other = (deaf + 1 + self.chaos.index(STORAGE - 1)) % STORAGE;
            let at = now + self.chaos.within(MILLI / 2, 8 * MILLI);
            self.schedule(at, Event::Mend(Mend::Hush(self.member(other))));
        }
        if let Some(next) = (0..SEQUENCERS).find(|which| self.sequencers[*which].take_over()) {
            self.wake(STORAGE + next, now);
            let other = STORAGE + (next + 1) % SEQUENCERS;
            if self.machine(other).is_up() {
                self.machine(other).crash(false);
            }
            self.start_at(other, now + 1);
        }
        let at = now + self.chaos.within(MILLI / 2, 12 * MILLI);
        self.schedule(at, Event::Mend(Mend::Gust(left - 1)));
    }

    /// Nobody hears this machine any more, nor it anybody.
    fn deafen(&mut self, deaf: usize) {
        let from = self.machine(deaf).host();
        for machine in (0..self.paces.len()).filter(|machine| *machine != deaf) {
            let to = self.machine(machine).host();
            self.env.net.cut(from, to);
            self.env.net.cut(to, from);
        }
    }

    fn pause(&mut self) {
        let machine = self.chaos.index(self.paces.len());
        let until = self.env.now() + self.lasts();
        self.paces[machine].paused_until = until;
        // What it would have done meanwhile it does then.
        self.wake(machine, until);
    }

    fn disturb(&mut self, fault: Fault) {
        let machines = self.paces.len();
        // Engines have lanes only to the others.
        let one = self.chaos.index(STORAGE + SEQUENCERS);
        let one = self.machine_of(one);
        let other = (one + 1 + self.chaos.index(machines - 1)) % machines;
        let (one, other) = (self.machine(one).host(), self.machine(other).host());
        match fault {
            Fault::BreakLanes => {
                let notice_ns = self.lasts();
                self.env.net.break_between(one, other, notice_ns);
            }
            Fault::CutBothWays => {
                self.cut(one, other);
                self.cut(other, one);
            }
            Fault::Isolate => {
                let (to, from) = (self.chaos.chance(700_000), self.chaos.chance(700_000));
                for machine in 0..machines {
                    let other = self.machine(machine).host();
                    if other != one && to {
                        self.cut(other, one);
                    }
                    if other != one && from {
                        self.cut(one, other);
                    }
                }
            }
            // One way, and nothing else is handed in here.
            Fault::CutOneWay
            | Fault::KillStorage
            | Fault::PowerOffStorage
            | Fault::PowerOffAllStorage
            | Fault::PowerOffAll
            | Fault::KillEngine
            | Fault::KillSequencer
            | Fault::Takeover
            | Fault::Pause
            | Fault::Split
            | Fault::Storm
            | Fault::DiskFails
            | Fault::DiskSlow
            | Fault::MetaFails
            | Fault::MetaAlone
            | Fault::ClockJumps => self.cut(one, other),
        }
        if fault != Fault::BreakLanes && self.chaos.chance(300_000) {
            // Whoever waits for too long gives the connection up.
            let notice_ns = self.lasts();
            self.env.net.break_between(one, other, notice_ns);
        }
    }

    pub(super) fn cut(&mut self, from: Host, to: Host) {
        self.env.net.cut(from, to);
        self.mend_later(Mend::Heal(from, to));
    }

    fn spoil_disk(&mut self, fault: Fault) {
        let which = self.chaos.index(STORAGE);
        let usual = self.plan.disk.clone();
        let profile = if fault == Fault::DiskFails {
            DiskProfile { fails: DISK_TROUBLE, ..usual }
        } else {
            DiskProfile { slow: (500_000, 30 * MILLI), lags: (500_000, 30 * MILLI), ..usual }
        };
        let Some(which) = self.storage_at(self.member(which)) else { return };
        self.storage[which].drive().set_profile(profile);
        self.mend_later(Mend::Disk(which));
    }
}
