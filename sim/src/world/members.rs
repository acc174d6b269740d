//! Storage nodes that are replaced, one after another, by machines that were empty until then.

use halfmoon_meta::{ClusterInfo, cluster};
use halfmoon_wire::NodeId;

use super::{Event, Mend, Phase, SEQUENCERS, STORAGE, World};
use crate::disk::DiskProfile;
use crate::host::Machine;
use crate::plan::Plan;
use crate::time::MILLI;

/// Between two looks at whether the last one that was added is whole, in ns: least and most.
const LOOK_NS: (u64, u64) = (MILLI, 10 * MILLI);

/// Chance in a million that whoever copies is replaced before it is whole, at every look.
const BEFORE_WHOLE: u64 = 10_000;

/// Chance in a million that the one who is replaced is lost; otherwise it goes on.
const LOST: u64 = 600_000;

/// Chance in a million that the change comes into effect with a takeover.
const WITH_TAKEOVER: u64 = 500_000;

/// Chance in a million that one who stays hears no sequencer when the members change.
const LEFT_OUT: u64 = 300_000;

/// Chance in a million that before that one who stays hears no engine for a while: what is written
/// then is on the other one who stays, and on the one who is replaced.
const ON_ONE: u64 = 500_000;

/// Chance in a million that the embedded engine of that other one lags behind then.
const LAGS: u64 = 500_000;

/// How often it takes writes slowly, and how slowly at most, in ns.
const LAG: (u64, u64) = (900_000, 200 * MILLI);

/// How long that lasts, in ns: least and most.
const EVE_LASTS_NS: (u64, u64) = (20 * MILLI, 100 * MILLI);

/// From there to the change, in ns: least and most.
const EVE_NS: (u64, u64) = (MILLI, 40 * MILLI);

/// Chance in a million, at every turn, that a node loses power while it notes that it is whole.
const SAYING_SO: u64 = 200_000;

/// Who holds the log and the state, and who may in place of one of them.
pub(super) struct Members {
    /// Their machines.
    machines: Vec<usize>,
    /// Machines that were not used yet.
    spares: Vec<usize>,
    /// How many are still to be replaced.
    left: usize,
    /// The place of the one who is replaced next.
    next: Option<usize>,
    /// The last one that was added is whole, as far as is known.
    is_whole: bool,
}

impl Members {
    pub(super) fn new(plan: &Plan) -> Self {
        let first = STORAGE + SEQUENCERS + plan.engines;
        // One more than are to be replaced, as one that copies may be replaced as well.
        let count = if plan.replacements > 0 { plan.replacements + 1 } else { 0 };
        Self {
            machines: (0..STORAGE).collect(),
            spares: (first..first + count).collect(),
            left: plan.replacements,
            next: None,
            is_whole: true,
        }
    }

    /// The machines of all storage nodes, in the order of their numbers.
    pub(super) fn machines(&self, plan: &Plan) -> impl Iterator<Item = usize> + use<> {
        let first = STORAGE + SEQUENCERS + plan.engines;
        (0..STORAGE).chain(first..first + self.spares.len())
    }

    pub(super) fn spares(&self) -> usize {
        self.spares.len()
    }
}

impl World {
    /// The machine of the member at this place.
    pub(super) fn member(&self, place: usize) -> usize {
        self.members.machines[place]
    }

    /// Which storage node runs on a machine.
    pub(super) fn storage_at(&self, machine: usize) -> Option<usize> {
        let others = SEQUENCERS + self.engines.len();
        if machine < STORAGE {
            Some(machine)
        } else {
            machine.checked_sub(others).filter(|which| *which >= STORAGE)
        }
    }

    pub(super) fn is_storage(&self, machine: usize) -> bool {
        self.storage_at(machine).is_some()
    }

    pub(super) fn may_start(&self, machine: usize) -> bool {
        self.storage_at(machine).is_none_or(|which| self.storage[which].may_start())
    }

    /// Whether all were replaced that were to be, and everybody is whole.
    pub(super) fn is_replaced(&self) -> bool {
        self.members.left == 0 && self.members.is_whole
    }

    pub(super) fn begin_replacing(&mut self) {
        if self.members.left > 0 {
            let first = self.plan.settle_ns + self.chaos.below(self.plan.faults_ns / 2);
            self.schedule(first, Event::Replace);
        }
    }

    /// Replaces a member, if one can be.
    pub(super) fn replace(&mut self) {
        let (mut low, mut high) = LOOK_NS;
        if let Ok(info) = cluster::read(&self.env.meta) {
            self.take_note(&info);
            let is_copying = |world: &Self, machine| !info.has_state(world.node_of(machine));
            let copying = self.members.machines.iter().position(|at| is_copying(self, *at));
            self.members.is_whole = copying.is_none();
            match (self.members.next.take(), copying) {
                (Some(place), None) => self.replace_at(place),
                (None, None) if self.members.left > 0 => {
                    let place = self.chaos.index(STORAGE);
                    self.members.next = Some(place);
                    self.disturb_eve(place);
                    (low, high) = EVE_NS;
                }
                (None, None) => return,
                (_, Some(place)) if self.chaos.chance(BEFORE_WHOLE) => self.replace_at(place),
                (_, Some(_)) => {}
            }
        }
        let again = self.env.now() + self.chaos.within(low, high);
        self.schedule(again, Event::Replace);
    }

    /// Somebody is about to be replaced: what is written now is on few of those who stay.
    fn disturb_eve(&mut self, place: usize) {
        if !matches!(self.phase, Phase::Faults(_)) || !self.chaos.chance(ON_ONE) {
            return;
        }
        let side = self.chaos.index(STORAGE - 1);
        let (deaf, other) = ((place + 1 + side) % STORAGE, (place + 2 - side) % STORAGE);
        let one = self.machine(self.member(deaf)).host();
        let (low, high) = EVE_LASTS_NS;
        let until = self.env.now() + self.chaos.within(low, high);
        for which in 0..self.engines.len() {
            let engine = self.engines[which].host();
            for (from, to) in [(one, engine), (engine, one)] {
                self.env.net.cut(from, to);
                self.schedule(until, Event::Mend(Mend::Heal(from, to)));
            }
            // What was under way to it never comes.
            self.env.net.break_between(one, engine, MILLI);
        }
        if self.chaos.chance(LAGS)
            && let Some(which) = self.storage_at(self.member(other))
        {
            let profile = DiskProfile { lags: LAG, ..self.plan.disk.clone() };
            self.storage[which].drive().set_profile(profile);
            self.schedule(until, Event::Mend(Mend::Disk(which)));
        }
    }

    fn replace_at(&mut self, place: usize) {
        let Some(new) = self.members.spares.last().copied() else { return };
        let old = self.member(place);
        let mut nodes: Vec<_> = self.members.machines.iter().map(|at| self.node_of(*at)).collect();
        nodes[place] = self.node_of(new);
        self.members.is_whole = false;
        let Ok(set) = cluster::propose_members(&self.env.meta, &nodes) else { return };
        tracing::info!(members = ?set.nodes(), "a storage node is replaced");
        self.note(4000 + place as u64);
        self.counts.replaced += 1;
        self.members.left = self.members.left.saturating_sub(1);
        self.put_in(place, new);
        if self.chaos.chance(LOST)
            && let Some(which) = self.storage_at(old)
        {
            self.storage[which].lose();
        }
        if matches!(self.phase, Phase::Faults(_)) {
            let stays = (place + 1 + self.chaos.index(STORAGE - 1)) % STORAGE;
            self.disturb_change(stays);
        }
    }

    /// A change of members at a bad moment for one who stays.
    fn disturb_change(&mut self, place: usize) {
        if self.chaos.chance(LEFT_OUT) {
            let machine = self.member(place);
            let one = self.machine(machine).host();
            for sequencer in STORAGE..STORAGE + SEQUENCERS {
                let other = self.machine(sequencer).host();
                self.cut(one, other);
                self.cut(other, one);
            }
        }
        if self.chaos.chance(WITH_TAKEOVER) {
            self.take_over();
        }
    }

    /// Whether a member loses its power while it notes that it is whole.
    pub(super) fn dies_saying_so(&mut self, machine: usize) -> bool {
        let Some(which) = self.storage_at(machine) else { return false };
        let dies = self.plan.replacements > 0
            && matches!(self.phase, Phase::Faults(_))
            && self.storage[which].drive().is_noting_whole()
            && self.chaos.chance(SAYING_SO);
        if dies {
            self.storage[which].crash(true);
        }
        dies
    }

    /// A proposal whose outcome was unknown may have taken effect.
    fn take_note(&mut self, info: &ClusterInfo) {
        let nodes = info.members.nodes();
        let spare = self.members.spares.last().copied();
        let Some(new) = spare.filter(|at| nodes.contains(&self.node_of(*at))) else { return };
        let is_out = |at: &usize| !nodes.contains(&self.node_of(*at));
        if let Some(place) = self.members.machines.iter().position(is_out) {
            self.counts.replaced += 1;
            self.members.left = self.members.left.saturating_sub(1);
            self.put_in(place, new);
        }
    }

    fn put_in(&mut self, place: usize, new: usize) {
        self.members.spares.retain(|at| *at != new);
        self.members.machines[place] = new;
        self.start_at(new, self.env.now());
    }

    fn node_of(&self, machine: usize) -> NodeId {
        self.storage_at(machine).map_or(NodeId(0), |which| self.storage[which].node())
    }
}
